"""smelt: compose language models without training."""

from smelt._version import __version__

__all__ = ["__version__"]
