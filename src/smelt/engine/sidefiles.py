"""Files beside the weights that belong to a model: tokenizer, templates, processors, generation settings."""

from __future__ import annotations

from pathlib import Path

_KEEP = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe", ".merges", ".spm"}
_LEAVE = {"config.json", "smelt.json", "mergekit_config.yml"}
_WEIGHT_INDEX = (".safetensors.index.json", ".bin.index.json")


def side_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Output name -> file, and notes about what is left out."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and _belongs(path):
            found[path.name] = path
        elif (
            path.is_dir() and path.name[:1].isdigit()
        ):  # sentence-transformers modules: 1_Pooling and the like
            for inner in sorted(path.rglob("*")):
                if inner.is_file() and inner.suffix in _KEEP:
                    found[str(inner.relative_to(folder))] = inner
    code = sorted(path.name for path in folder.glob("*.py"))
    notes = (
        [f"code files are not copied ({', '.join(code)}); copy them yourself if you trust them"]
        if code
        else []
    )
    return found, notes


def _belongs(path: Path) -> bool:
    if path.name in _LEAVE or path.name.endswith(_WEIGHT_INDEX) or path.name.startswith("."):
        return False
    return path.suffix in _KEEP
