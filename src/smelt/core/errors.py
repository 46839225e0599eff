"""Every error a user can meet. Each says what was found, where, what was expected and what to do.

SmeltError                  exit 2: nothing was written
├── RecipeError             the recipe is wrong (all problems at once, with YAML paths)
├── CheckpointError         a model on disk is missing, truncated, corrupt or malicious
├── PlanError               recipe and checkpoints do not fit together
├── NonFiniteError          NaN or Inf in an input tensor
├── OutputError             the target cannot be written (not empty, disk too small)
├── MethodError             a merge method is declared or called wrongly
├── LatentError             models, sites or operators of a latent merge do not fit together
├── EvaluationError         prompts, responses or a judge are unusable
├── MissingExtraError       an optional dependency is absent; prints the line that installs it
└── VerificationError       exit 1: an output is not what its plan says
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    >>> print(Problem("unknown key 'wieght'", where="models[0]", fix="did you mean 'weight'?"))
    models[0]: unknown key 'wieght'; did you mean 'weight'?
    """

    what: str
    where: str = ""
    expected: str = ""
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.expected:
            text += f"; expected {self.expected}"
        if self.fix:
            text += f"; {self.fix}"
        return text


class SmeltError(Exception):
    """Base of all errors smelt raises on purpose."""

    exit_code = 2

    def __init__(
        self, what: str | Iterable[Problem], *, where: str = "", expected: str = "", fix: str = ""
    ) -> None:
        self.problems: tuple[Problem, ...] = (
            (Problem(what, where, expected, fix),) if isinstance(what, str) else tuple(what)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class RecipeError(SmeltError):
    """The recipe itself is wrong."""


class CheckpointError(SmeltError):
    """A checkpoint cannot be trusted or read."""


class PlanError(SmeltError):
    """The recipe and the checkpoints it names do not fit together."""


class NonFiniteError(SmeltError):
    """An input tensor holds NaN or Inf."""


class OutputError(SmeltError):
    """The output cannot be written where it was asked for."""


class MethodError(SmeltError):
    """A merge method is declared or called wrongly."""


class LatentError(SmeltError):
    """A latent merge is asked of models or sites that do not allow it."""


class EvaluationError(SmeltError):
    """Prompts, responses, labels or a judge cannot be used."""


class MissingExtraError(SmeltError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"this needs the package {module!r}", fix=f"pip install 'smelt[{extra}]'")


class VerificationError(SmeltError):
    """An output on disk is not what its plan says."""

    exit_code = 1


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The nearest known word as advice, or all known words when none is near.

    >>> did_you_mean("tise", ["ties", "linear"])
    "did you mean 'ties'?"
    >>> did_you_mean("zzz", ["ties", "linear"])
    'known: linear, ties'
    """
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(known))
