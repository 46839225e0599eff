"""Scores with confidence: judges, statistics, response files. A name loads its part when first used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "bench": ("BenchResult", "bench_outcomes"),
    "client": ("Endpoint", "RequestParams"),
    "comparison": ("Comparison", "ExactComparison", "compare_exact", "compare_outcomes"),
    "extract": ("extract_answer", "same_answer", "score_exact"),
    "intervals": (
        "Estimate",
        "binomial_p",
        "bootstrap_mean",
        "detectable_effect",
        "holm",
        "questions_needed",
        "wilson",
    ),
    "journal": ("Journal", "load_records"),
    "judgebench": ("Item", "load_judgebench", "load_questions", "without_overlap"),
    "lengths": ("length_controlled",),
    "outcomes": ("Conduct", "Outcome", "collect", "conduct"),
    "panel": ("Panel", "judge_panel"),
    "pickles": ("convert_pickle", "load_plain_pickle"),
    "prompts": ("TEMPLATES", "Template", "get_template"),
    "ratings": ("Game", "Ratings", "fit_ratings"),
    "responses": ("Pair", "Question", "Response", "join", "read_responses", "write_responses"),
    "runner": ("Judge", "Limits", "Progress", "plan_asks", "run_asks"),
    "session": ("Plan", "load_material", "make_judge", "run"),
    "summary": ("bench_report", "comparison_page", "comparison_report"),
    "verdicts": ("Verdict", "parse_verdict", "probability_verdict"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
