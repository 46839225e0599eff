"""What `make demo` shows: tiny models, a TIES merge from a recipe, verification, a line of text from the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent.parent
OUT = HERE / "demo-out"


def run(*words: str) -> None:
    """Show a command, then run it."""
    print(f"\n$ {' '.join(words)}")
    command = (
        [str(Path(sys.executable).parent / "smelt"), *words[1:]]
        if words[0] == "smelt"
        else [sys.executable, *words[1:]]
    )
    subprocess.run(command, check=True, cwd=OUT, env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"})


def say() -> None:
    """Let every model continue lines of both skills, and count how many it gets right."""
    import random

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    sys.path.insert(0, str(HERE / "examples"))
    from make_models import add_digits, reverse_letters

    disable_progress_bar()
    torch.set_num_threads(1)
    print(f"\n{'what the models say':<17}{'of 50 lines right: add':>24}{'turn':>7}")
    for name in ("models/base", "models/math", "models/letters", "merged"):
        tokenizer = AutoTokenizer.from_pretrained(OUT / name, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(OUT / name, dtype=torch.float32).eval()
        right, shown = [], []
        for skill in (add_digits, reverse_letters):
            draw = random.Random(99)
            lines = [skill(draw) for _ in range(50)]
            asked = tokenizer(
                [line[: line.index(" is ") + 3] for line in lines], return_tensors="pt", padding=True
            )
            answers = model.generate(**asked, max_new_tokens=8, do_sample=False)
            texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
            right.append(sum(text == line for text, line in zip(texts, lines, strict=True)))
            shown.append(texts[0])
        print(f"{name:<17}{right[0]:>24}{right[1]:>7}   {'   '.join(shown)}")


def main() -> None:
    """The whole demonstration."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    shutil.copy(HERE / "examples" / "ties.yml", OUT)
    run("python", str(HERE / "examples" / "make_models.py"), "models")
    print(f"\nrecipe {OUT / 'ties.yml'}:\n" + (OUT / "ties.yml").read_text())
    run("smelt", "plan", "ties.yml")
    run("smelt", "merge", "ties.yml", "merged")
    run("smelt", "verify", "merged")
    say()
    print(
        f"\nThe merged model is in {OUT / 'merged'}; `smelt inspect` shows it, `smelt rerun` proves how it was made."
    )


if __name__ == "__main__":
    main()
