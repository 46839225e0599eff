"""lm-evaluation-harness runs a saved latent merge like any model, offline, from a local file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from latent_tiny import byte_tokenizer, tiny_causal

from smelt.latent import LatentMergedForCausalLM, Site

TASK = """task: smelt_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{a}}}}"
doc_to_target: "{{{{y}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the harness's own
def test_ratio_zero_scores_as_the_base_and_another_ratio_does_not(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"), raising=False)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    rows = [
        {"q": f"r:{w}>", "a": [w[::-1], w, w + w], "y": 0} for w in ("abc", "fgh", "bad", "cab", "gag", "deb")
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tokenizer = byte_tokenizer()
    base = tiny_causal("llama", 1)
    merged = LatentMergedForCausalLM.from_models(
        base, tiny_causal("llama", 2), [Site(2)], tokenizer=tokenizer
    )
    merged.save_pretrained(tmp_path / "saved", embed_weights=True)

    def scores(model: Any, **options: Any) -> list[list[float]]:
        lm = HFLM(pretrained=model, batch_size=2, device="cpu", **options)
        found = simple_evaluate(lm, tasks=["smelt_words"], task_manager=manager, bootstrap_iters=0)
        return [
            [value[0] for value in sample["filtered_resps"]] for sample in found["samples"]["smelt_words"]
        ]

    alone = scores(base, tokenizer=tokenizer)
    with merged.using(beta=0.0):
        assert scores(merged, tokenizer=tokenizer) == alone
    mixed = scores(merged, tokenizer=tokenizer)
    assert mixed != alone
    assert scores(str(tmp_path / "saved")) == mixed
