"""Statistics: values by hand, published figures, intervals that cover, ratings that are recovered."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smelt.core.errors import EvaluationError
from smelt.evaluate.bench import bench_outcomes
from smelt.evaluate.comparison import compare_exact, compare_outcomes
from smelt.evaluate.intervals import (
    Resampler,
    binomial_p,
    bootstrap_mean,
    detectable_effect,
    holm,
    questions_needed,
    wilson,
)
from smelt.evaluate.lengths import length_controlled
from smelt.evaluate.outcomes import Outcome, collect, conduct
from smelt.evaluate.panel import judge_panel, kappa
from smelt.evaluate.ratings import Game, fit_ratings
from smelt.evaluate.responses import Pair
from smelt.evaluate.runner import plan_asks
from smelt.evaluate.session import make_judge
from smelt.evaluate.summary import outcome_games


def names(count: int) -> list[str]:
    return [f"q{index}" for index in range(count)]


def outcome(index: int, a_first: float | None, b_first: float | None, **more) -> Outcome:
    state = more.pop("state", "judged" if None not in (a_first, b_first) else "invalid")
    source = more.pop("source", "s")
    return Outcome(f"p{index}", f"q{index}", source, state, a_first, b_first, **more)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(51, 51, 0.93, 1.0), (0.7476 * 270, 270, 0.69, 0.80), (0, 10, 0.0, 0.27753), (5, 10, 0.23659, 0.76341)],
)
def test_wilson_gives_the_published_intervals(successes: float, n: int, low: float, high: float) -> None:
    found = wilson(successes, n)
    digits = 2 if n > 10 else 5
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)


def test_wilson_of_nothing_has_no_value() -> None:
    assert wilson(0, 0).value is None


def test_sign_and_binomial_tests_are_exact() -> None:
    assert binomial_p(2, 10) == 2 * (1 + 10 + 45) / 1024
    assert binomial_p(5, 10) == 1.0 and binomial_p(0, 0) == 1.0
    assert binomial_p(2, 2, 0.3) == pytest.approx(0.09)
    assert binomial_p(0, 2, 0.3) == pytest.approx(1.0)
    # 1000 of 2000 + 100: too many terms for floats, not for integers
    assert binomial_p(1100, 2000) == pytest.approx(
        math.erfc((99.5 / math.sqrt(500)) / math.sqrt(2)), rel=0.02
    )


def test_holm_never_falls_and_never_passes_one() -> None:
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_planning_gives_the_known_numbers() -> None:
    assert round(100 * detectable_effect(270, 0.5), 1) == 8.5
    assert round(100 * detectable_effect(270, 0.32), 1) == 5.5
    assert questions_needed(detectable_effect(270, 0.5) + 1e-9) == 270
    with pytest.raises(ValueError, match="above 0"):
        questions_needed(0.0)


def test_bootstrap_has_the_width_theory_gives_and_is_seeded() -> None:
    rng = np.random.default_rng(3)
    values = (rng.random(400) < 0.6).astype(float)
    found = bootstrap_mean(values, names(400), draws=4000, seed=1)
    error = values.std(ddof=1) / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert found == bootstrap_mean(values, names(400), draws=4000, seed=1)
    assert found != bootstrap_mean(values, names(400), draws=4000, seed=2)


def test_bootstrap_variance_is_unbiased_in_small_strata() -> None:
    values = np.array([0.0, 1.0, 0.5] * 20)
    strata = [f"s{index // 3}" for index in range(60)]
    drawn = Resampler(names(60), strata).means(values, 40_000, 0)
    exact = sum(np.var(values[i : i + 3], ddof=1) / 3 for i in range(0, 60, 3)) / 20**2
    assert drawn.var() == pytest.approx(exact, rel=0.04)  # plain resampling would give two thirds of it


def test_strata_narrow_the_interval_and_clusters_widen_it() -> None:
    values = [1.0] * 50 + [0.0] * 50
    values[0], values[99] = 0.0, 1.0
    plain = bootstrap_mean(values, names(100))
    strata = bootstrap_mean(values, names(100), ["x"] * 50 + ["y"] * 50)
    assert strata.high - strata.low < 0.5 * (plain.high - plain.low)
    mixed = [1.0, 0.0] * 50
    pairs = [f"q{index // 4}" for index in range(100)]
    clustered = bootstrap_mean([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0] * 12 + [1.0] * 4, pairs)
    alone = bootstrap_mean(mixed, names(100))
    assert clustered.high - clustered.low > 1.7 * (alone.high - alone.low)  # four copies: twice as wide


def test_bootstrap_without_any_variation_falls_to_wilson_and_says_so() -> None:
    found = bootstrap_mean([1.0] * 51, names(51))
    assert (found.method, round(found.low, 2), found.high) == ("wilson", 0.93, 1.0)
    one = bootstrap_mean([1.0, 0.0], ["q", "q"])
    assert (one.value, one.low) == (0.5, None)
    assert bootstrap_mean([], []).value is None


def test_single_question_strata_are_pooled() -> None:
    found = bootstrap_mean([1.0, 0.0, 1.0, 0.0, 1.0], names(5), list("abcde"))
    assert found.low < 0.6 < found.high
    lonely = Resampler(names(4), ["x", "x", "x", "y"])
    assert [len(group) for group in lonely.groups] == [4]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    strata = [f"s{index % 6}" for index in range(90)]
    chance = np.array([0.25 + 0.1 * (index % 6) for index in range(90)])
    hits = 0
    for draw in range(300):
        scores = ((rng.random(90) < chance).astype(float) + (rng.random(90) < chance)) / 2
        found = bootstrap_mean(scores, names(90), strata, draws=300, seed=draw)
        hits += found.low <= chance.mean() <= found.high
    assert 0.90 <= hits / 300 <= 0.985


def test_length_control_takes_the_length_out() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(100, 2000, 1500), rng.integers(100, 1000, 1500)
    difference = a - b
    chance = 1 / (1 + np.exp(-1.5 * np.tanh(difference / difference.std())))
    scores = ((rng.random(1500) < chance).astype(float) + (rng.random(1500) < chance)) / 2
    found = length_controlled(scores, a, b, names(1500))
    assert scores.mean() > 0.6 and found.low < 0.5 < found.high and abs(found.value - 0.5) < 0.03


def test_length_control_at_equal_lengths_is_the_win_rate() -> None:
    scores = [1.0, 1.0, 0.5, 0.0, 1.0]
    found = length_controlled(scores, [9] * 5, [9] * 5, names(5))
    assert found.value == pytest.approx(0.7)
    assert length_controlled([1.0] * 5, [1, 2, 3, 4, 5], [9] * 5, names(5)).value is None


def test_length_control_survives_perfect_separation() -> None:
    scores, a = [1.0] * 10 + [0.0] * 10, [200] * 10 + [100] * 10
    found = length_controlled(scores, a, [150] * 20, names(20))
    assert found.value == pytest.approx(0.5, abs=1e-6) and math.isfinite(found.low)


def test_the_length_controlled_interval_covers_with_clusters_of_two() -> None:
    rng = np.random.default_rng(17)
    hits = 0
    for _ in range(200):
        a, b = np.repeat(rng.normal(0, 1, (2, 60)), 2, axis=1)
        chance = 1 / (1 + np.exp(-0.3 - np.tanh((a - b) / (a - b).std())))
        won = np.repeat(rng.random(60), 2) < chance  # both questions of a cluster share their luck
        found = length_controlled(won.astype(float), a, b, [str(i // 2) for i in range(120)])
        hits += found.low <= 1 / (1 + math.exp(-0.3)) <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def journal_record(value: float | None, grade: int | None, **more: object) -> dict[str, object]:
    return {"value": value, "grade": grade, "invalid": "" if grade is not None else "no verdict", **more}


def test_outcomes_turn_the_second_order_round_and_grade_on_request() -> None:
    judge = make_judge("m", template="arena")
    pairs = [Pair("1", "Q?", "left", "right", "s"), Pair("2", "R?", "left", "right")]
    keys = [ask.key for ask in plan_asks(pairs, judge)]
    finished = {
        keys[0]: journal_record(1.0, 1),  # A shown first: slightly better
        keys[1]: journal_record(0.0, -2),  # B shown first: far worse
        keys[2]: journal_record(None, None),
    }
    win = collect(pairs, judge, finished)
    assert (win[0].a_first, win[0].b_first, win[0].score, win[0].state) == (1.0, 1.0, 1.0, "judged")
    assert (win[1].state, win[1].score, win[1].invalid) == ("waiting", None, ("no verdict",))
    graded = collect(pairs, judge, finished, scoring="graded")
    assert (graded[0].a_first, graded[0].b_first, graded[0].score) == (0.75, 1.0, 0.875)
    failed = collect(pairs, judge, finished, {keys[3]: {"status": "error"}})
    assert failed[1].state == "error"
    done = collect(pairs, judge, finished | {keys[3]: journal_record(0.5, 0)})
    assert (done[1].state, done[1].a_first, done[1].b_first, done[1].score) == ("invalid", None, 0.5, None)


def test_games_name_the_system_that_was_shown_first() -> None:
    games = outcome_games("a", "b", outcome(0, 1.0, 0.0))
    assert [(game.first, game.second, game.value) for game in games] == [("a", "b", 1.0), ("b", "a", 1.0)]
    soft = outcome_games("a", "b", outcome(0, 0.7, 0.5))
    assert [game.value for game in soft] == [1.0, 0.5]
    assert outcome_games("a", "b", outcome(0, 0.5, 0.5, state="identical")) == []
    assert len(outcome_games("a", "b", outcome(0, None, 1.0))) == 1


def test_a_comparison_by_hand() -> None:
    outcomes = [
        outcome(0, 1.0, 1.0, source="x", length_a=30, length_b=10),  # A both times
        outcome(1, 1.0, 0.0, source="x", length_a=10, length_b=10),  # first both times: a tie over orders
        outcome(2, 0.0, 0.0, source="y", length_a=5, length_b=50),  # B both times
        outcome(3, 0.5, 1.0, source="y", length_a=20, length_b=40),  # tie, then A
        outcome(4, 0.5, 0.5, source="y", state="identical"),
        outcome(5, 1.0, None, source="y", invalid=("conflicting",)),
        outcome(6, None, None, source="y", state="unanswered"),
    ]
    found = compare_outcomes(outcomes, draws=200)
    assert found.win_rate.value == pytest.approx((1 + 0.5 + 0 + 0.75 + 0.5) / 5)
    assert found.win_rate_invalid_half.value == pytest.approx((1 + 0.5 + 0 + 0.75 + 0.5 + 0.5) / 6)
    assert (found.wins, found.ties, found.losses) == (2, 2, 1)
    assert found.sign_p == 1.0
    assert found.states == {"judged": 4, "identical": 1, "invalid": 1, "unanswered": 1}
    assert found.complete
    assert found.longer_won.value == pytest.approx(2 / 3) and found.longer_won.n == 3
    assert found.conduct.first_position.n == 8  # decisive judgements
    # A first: A, A, B, tie, A;  B first: A (second), B (first), B (first), A (second)
    assert found.conduct.first_position.value == pytest.approx(5 / 8)
    assert (found.conduct.always_first, found.conduct.always_second) == (1, 0)
    assert found.conduct.consistency.value == pytest.approx(2 / 4)
    assert (found.conduct.ties, found.conduct.invalid, found.conduct.judgements) == (1, 1, 10)
    assert found.single_order["A_first"] == {
        "pairs_total": 6, "valid_pairs": 4, "invalid": 1, "A_wins": 3, "B_wins": 1, "Ties": 1,
        "A_win_rate_%": 75.0, "B_win_rate_%": 25.0,
    }  # fmt: skip
    assert [(row.source, row.wins, row.ties, row.losses) for row in found.sources] == [
        ("x", 1, 1, 0),
        ("y", 1, 1, 1),
    ]


def test_a_judge_that_always_takes_the_first_is_seen_and_moves_nothing() -> None:
    outcomes = [outcome(index, 1.0, 0.0) for index in range(40)]
    found = compare_outcomes(outcomes, draws=200)
    assert found.win_rate.value == 0.5
    assert found.single_order["A_first"]["A_win_rate_%"] == 100.0
    assert found.conduct.first_position.value == 1.0 and found.conduct.flip_p < 1e-10
    assert found.conduct.consistency.value == 0.0


def test_soft_scores_keep_their_probability() -> None:
    found = compare_outcomes([outcome(0, 0.9, 0.7), outcome(1, 0.2, 0.4)], draws=200)
    assert found.win_rate.value == pytest.approx(0.55)
    assert found.conduct.consistency.value == 1.0


def test_an_unfinished_comparison_says_so() -> None:
    assert not compare_outcomes([outcome(0, 1.0, 1.0), outcome(1, None, None, state="waiting")]).complete
    assert not compare_outcomes([outcome(0, 1.0, 1.0), outcome(1, None, None, state="error")]).complete
    empty = compare_outcomes([])
    assert empty.win_rate.value is None and empty.sources == ()


def test_exact_answers_are_compared_on_the_same_questions() -> None:
    found = compare_exact([True, True, True, False], [True, False, False, False])
    assert (found.only_a, found.only_b, found.p) == (2, 0, 0.5)
    assert found.accuracy_a.value == 0.75 and found.accuracy_b.value == 0.25


def test_a_judge_against_labels_by_hand() -> None:
    outcomes = [
        outcome(0, 1.0, 1.0, label="A", source="mmlu-pro-law"),  # right twice
        outcome(1, 1.0, 1.0, label="B", source="mmlu-pro-law"),  # wrong twice
        outcome(2, 1.0, 0.0, label="A", source="livebench-math"),  # cancels
        outcome(3, 1.0, 0.5, label="A", source="livebench-math"),  # right and tie: right
        outcome(4, 1.0, None, label="A", source="livecodebench", invalid=("no verdict",)),  # one vote, right
        outcome(5, 0.5, 0.5, label="B", source="livecodebench"),
    ]
    found = bench_outcomes(outcomes, draws=200)
    assert (found.right, found.wrong, found.undecided) == (3, 1, 2)
    assert found.accuracy.value == 0.5 and found.both_right.value == pytest.approx(1 / 6)
    assert found.single_order == {"A_first": pytest.approx(4 / 6), "B_first": pytest.approx(1 / 6)}
    assert {row.name: row.accuracy.value for row in found.skills} == {
        "knowledge": 0.5,
        "math": 0.5,
        "coding": 0.5,
    }
    assert found.complete
    with pytest.raises(EvaluationError, match="1 of 1 pairs have no label"):
        bench_outcomes([outcome(0, 1.0, 1.0)])


def test_position_bias_of_conduct_leaves_identical_answers_out() -> None:
    found = conduct([outcome(0, 0.5, 0.5, state="identical"), outcome(1, 1.0, 1.0)])
    assert found.judgements == 2 and found.ties == 0


def test_a_panel_votes_and_shows_who_disagrees() -> None:
    verdicts = {"x": [1.0, 1.0, 0.0, 1.0], "y": [1.0, 0.0, 0.0, 0.5], "z": [1.0, 1.0, 1.0, 0.0]}
    group = {name: [outcome(i, v, v) for i, v in enumerate(values)] for name, values in verdicts.items()}
    found = judge_panel(group, draws=200)
    assert (found.majority.wins, found.majority.ties, found.majority.losses) == (2, 1, 1)
    assert found.majority.split == 1 and found.majority.win_rate.value == pytest.approx(0.625)
    agreement = {one.judges: one.same.value for one in found.agreement}
    assert agreement == {("x", "y"): 0.5, ("x", "z"): 0.5, ("y", "z"): 0.25}
    assert found.judges["x"].win_rate.value == 0.75
    assert judge_panel({"x": group["x"], "z": group["z"]}, draws=200).majority.split == 2
    with pytest.raises(EvaluationError, match="y: judged other pairs"):
        judge_panel({"x": group["x"], "y": group["y"][:2]})


def test_kappa_by_hand() -> None:
    assert kappa([(1, 1), (0, 0), (-1, -1)]) == pytest.approx(1.0)
    assert kappa([(1, 1), (1, 1)]) is None and kappa([]) is None


def simulate(ratings: list[float], position: float, tie: float, games: int, seed: int) -> list[Game]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(games):
        i, j = rng.choice(len(ratings), 2, replace=False)
        first, second = ratings[i] + position, ratings[j]
        weights = np.array([math.exp(first), tie * math.exp((first + second) / 2), math.exp(second)])
        value = (1.0, 0.5, 0.0)[rng.choice(3, p=weights / weights.sum())]
        found.append(Game(f"s{i}", f"s{j}", value, f"q{number // 4}", "xyz"[number % 3]))
    return found


def test_ratings_position_and_ties_are_recovered_from_simulated_games() -> None:
    truth = [0.8, 0.2, -0.3, -0.7]
    found = fit_ratings(simulate(truth, 0.5, 0.6, 4000, seed=1), draws=400)
    assert found.systems == ("s0", "s1", "s2", "s3")
    for estimate, value in zip(found.rating, truth, strict=True):
        assert estimate.value == pytest.approx(value, abs=0.12) and estimate.low < value < estimate.high
    assert found.position.value == pytest.approx(0.5, abs=0.1)
    assert found.tie.value == pytest.approx(0.6, abs=0.1)
    assert found.rank_range[0] == (1, 1)
    assert sum(estimate.value for estimate in found.rating) == pytest.approx(0, abs=1e-9)


def test_two_systems_without_ties_have_the_closed_form() -> None:
    games = [Game("a", "b", float(i < 30), f"q{i}") for i in range(40)]
    games += [Game("b", "a", float(i >= 30), f"q{i}") for i in range(40)]
    found = fit_ratings(games, ridge=1e-9, draws=200)
    assert found.rating[0].value - found.rating[1].value == pytest.approx(math.log(3), abs=1e-6)
    assert found.tie.value == 0.0 and found.position.value == pytest.approx(0.0, abs=1e-6)
    assert found.expected(0, 1) == pytest.approx(0.75, abs=1e-6)


def test_a_system_that_wins_always_keeps_a_finite_rating() -> None:
    found = fit_ratings([Game("a", "b", 1.0, f"q{i}") for i in range(20)], ridge=0.01, draws=100)
    rating = found.rating[0].value
    assert found.position.value == pytest.approx(rating) and found.rating[1].value == pytest.approx(-rating)
    assert 20 / (1 + math.exp(3 * rating)) == pytest.approx(
        0.01 * rating
    )  # the penalised likelihood's gradient


def test_systems_that_never_met_are_refused() -> None:
    games = [Game("a", "b", 1.0, "q"), Game("c", "d", 0.0, "q")]
    with pytest.raises(EvaluationError, match="c, d never met a"):
        fit_ratings(games)
    with pytest.raises(EvaluationError, match="expected at least two"):
        fit_ratings([])


def test_rating_intervals_cover() -> None:
    hits = 0
    for seed in range(40):
        found = fit_ratings(simulate([0.5, -0.5], 0.4, 0.3, 300, seed), draws=200)
        hits += found.rating[0].low <= 0.5 <= found.rating[0].high
    assert 34 <= hits <= 40


def test_equal_values_that_are_no_shares_have_a_point_for_an_interval() -> None:
    found = bootstrap_mean([3.5, 3.5, 3.5], ["a", "b", "c"])
    assert (found.value, found.low, found.high) == (3.5, 3.5, 3.5)
