"""A saved blend is one ordinary model: in transformers' pipeline and in lm-evaluation-harness, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from smelt.latent.serving import Served

WORDS = ["abcd", "hgfe", "ddaa", "cafe", "beef", "fade", "gaga", "hhab"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks over local data: pick the right answer, and write it."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for place, word in enumerate(WORDS):
        skill = "rs"[place % 2]
        moved = "".join(chr(97 + (ord(letter) - 96) % 8) for letter in word)
        right = word[::-1] if skill == "r" else moved
        wrong = moved if skill == "r" else word[::-1]
        rows.append({"question": f"{skill}:{word}>", "choices": [wrong, right], "answer": right, "gold": 1})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    common += 'doc_to_text: "{{question}}"\ntarget_delimiter: ""\nmetadata: {version: 1.0}\n'
    (folder / "pick.yaml").write_text(
        f"task: tiny_pick\n{common}output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc}]\n"
    )
    (folder / "write.yaml").write_text(
        f"task: tiny_write\n{common}output_type: generate_until\ndoc_to_target: answer\n"
        "generation_kwargs: {until: ['</s>', '|'], max_gen_toks: 4, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    return folder


def evaluated(model: Any, tasks: Path) -> tuple[dict[str, float], dict[str, list[Any]]]:
    """Scores, and what the model said to every sample."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=str(model), backend="causal", device="cpu", batch_size=4)
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=["tiny_pick", "tiny_write"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    scores = {name: next(v for k, v in row.items() if k.startswith(("acc,", "exact_match,")))
              for name, row in results["results"].items()}  # fmt: skip
    said = {
        name: [sample["filtered_resps"] for sample in samples] for name, samples in results["samples"].items()
    }
    return scores, said


@pytest.mark.slow
def test_lm_evaluation_harness(
    served: Served, pair_dir: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratio 0 is the base sample by sample, likelihoods included; ratio 0.5 has both skills and is another model."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    site = served.wrapper.settings.sites[0].to_dict()
    for beta in (0.0, 0.5):
        with_sites = [{**site, "weights": [beta]}]
        before = served.wrapper.settings
        try:
            served.wrapper.set_sites(with_sites)
            served.wrapper.save_pretrained(tmp_path / f"beta-{beta}")
        finally:
            served.wrapper.set_sites(before.sites)
    base_scores, base = evaluated(pair_dir / "reverser", tasks)
    same_scores, same = evaluated(tmp_path / "beta-0.0", tasks)
    assert same == base and same_scores == base_scores
    scores, said = evaluated(tmp_path / "beta-0.5", tasks)
    for task in ("tiny_pick", "tiny_write"):
        assert said[task] != base[task] and scores[task] > base_scores[task]
    assert scores["tiny_pick"] == 1.0


def test_pipeline(merged_dir: Path, served: Served) -> None:
    """From the directory alone: text, batches, chat messages."""
    from transformers import pipeline

    pipe = pipeline("text-generation", model=str(merged_dir))
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    assert pipe("r:abcd>", **options)[0]["generated_text"] == "dcba"
    batch = pipe(["r:abcd>", "s:abcd>", "r:gfab>"], batch_size=3, **options)
    assert [row[0]["generated_text"] for row in batch] == ["dcba", "bcde", "bafg"]
    chat = pipe([{"role": "user", "content": "s:abcd>"}], **options)
    assert chat[0]["generated_text"] == "bcde"


@pytest.mark.slow
def test_a_fresh_process_needs_no_import_of_ours(merged_dir: Path) -> None:
    """With trust_remote_code, where nobody imported smelt."""
    import subprocess
    import sys

    code = (
        "import sys, torch; torch.set_num_threads(1); from transformers import pipeline\n"
        f"pipe = pipeline('text-generation', model={str(merged_dir)!r}, trust_remote_code=True)\n"
        "print(pipe('r:abcd>', max_new_tokens=5, do_sample=False, return_full_text=False)[0]['generated_text'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "dcba", done.stderr
