"""The maths of alarm/evaluation/compare.py: published numbers, hand arithmetic, properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm.common.bootstrap import controlled, resample
from alarm.common.errors import UserError
from alarm.evaluation.compare import (
    average,
    comparable_metrics,
    compare,
    describe_conflicts,
    inconsistency,
    metric_verdicts,
    win_rate,
)
from alarm.evaluation.generations import Generations
from alarm.evaluation.judge.judge import Judgement
from alarm.evaluation.runs import draw_prompts, read_folder
from alarm.tasks.find import find_task

TASKS = {name: find_task(name) for name in ("qa", "mt")}
QA, MT = TASKS["qa"], TASKS["mt"]


def comparison(*seeds, task=QA, **settings) -> dict:
    """The published form."""
    return compare(*seeds, task=task, **settings).published()


GOLDEN = Path(__file__).parents[1] / "fixtures" / "eval"


def published(task: str, sampled: bool) -> dict:
    return json.loads((GOLDEN / task / f"gens{'_sample' if sampled else ''}-results.json").read_text())


def compare_golden(task: str, sampled: bool) -> dict:
    return comparison(
        draw_prompts(read_folder(GOLDEN / task / "gens", TASKS[task]), 15 if sampled else None, seed=42),
        task=TASKS[task],
    )


def numbers(results: dict, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], float]:
    """{("alpha", "beta", "readability", "win_rate"): 50.0, ...}"""
    flat = {}
    for key, value in results.items():
        flat |= numbers(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value}
    return flat


PAIR_KEYS = {
    "win_rate",
    "win_rate_interval",
    "win_rate_ties_half",
    "win_rate_ties_half_interval",
    "holistic_reward_inconsistent",
    "wins",
    "ties",
    "losses",
    "length_controlled",
}


@pytest.mark.parametrize("sampled", [False, True])
def test_qa_agrees_with_the_published_results(sampled):
    golden, ours = numbers(published("qa", sampled)), numbers(compare_golden("qa", sampled))
    assert len(golden) == 3 * (5 + 1 + 2 * 5 * 2 + 5)
    assert {key: ours[key] for key in golden} == pytest.approx(golden, abs=1e-9)
    # what ours has beyond the published keys, a run's own and a pair's
    extra = ours.keys() - golden.keys()
    assert {key[1] for key in extra if len(key) == 2} == {
        f"{m}-{s}" for m in QA.columns_in_order for s in ("Min", "Max")
    }
    assert {key[1] for key in extra if len(key) == 3} == {"Avg.-Interval"}
    assert {key[3] for key in extra if len(key) > 3} == PAIR_KEYS - {"win_rate", "holistic_reward_inconsistent"}


@pytest.mark.parametrize("sampled", [False, True])
def test_mt_agrees_but_for_the_published_direction_of_the_error_metrics(sampled):
    """Defect: more grammar errors counted as a win. Exactly those win rates are mirrored; all else agrees."""
    golden, ours = numbers(published("mt", sampled)), numbers(compare_golden("mt", sampled))
    mirrored = {
        key
        for key in golden
        if (key[-1] == "win_rate" and key[-2] in MT.lower_wins) or (key[1] == "Avg." and key[2] in MT.lower_wins)
    }
    assert sorted(MT.lower_wins) == ["error_rate", "grammar_errors"]
    assert len(mirrored) == 3 * 2 * 2 + 3 * 2
    expected = {key: 100 - value if key in mirrored else value for key, value in golden.items()}
    assert {key: ours[key] for key in golden} == pytest.approx(expected, abs=1e-9)
    # the mirror is no empty claim
    assert sum(abs(golden[key] - ours[key]) > 1 for key in mirrored) >= len(mirrored) - 4


def make_run(name: str, **metrics: list[float]) -> Generations:
    count = len(next(iter(metrics.values())))
    return Generations(
        name,
        [f"q{row}" for row in range(count)],
        [f"answer of {name} to {row}" for row in range(count)],
        {key: np.array(value, float) for key, value in metrics.items()},
    )


def counts(rates: dict) -> tuple[int, int, int]:
    return rates["wins"], rates["ties"], rates["losses"]


def test_four_rows_by_hand():
    #                                     a wins  b wins  tie  a wins
    a = make_run("a", holistic_reward=[2.0, 0.0, 1.0, 3.0], error_rate=[0.1, 0.2, 0.3, 0.4])
    b = make_run("b", holistic_reward=[1.0, 1.0, 1.0, 1.0], error_rate=[0.5, 0.3, 0.1, 0.4])
    #                     error rate, lower wins: a       a       b    tie
    results = comparison([a, b], task=MT)
    pair = results["a"]["b"]
    assert pair.keys() == {"holistic_reward", "error_rate"}
    assert pair["holistic_reward"].keys() == pair["error_rate"].keys() == PAIR_KEYS
    assert counts(pair["holistic_reward"]) == (2, 1, 1)
    assert pair["holistic_reward"]["win_rate"] == pytest.approx(100 * 2 / 3)
    assert pair["holistic_reward"]["win_rate_ties_half"] == pytest.approx(100 * 2.5 / 4)
    assert pair["holistic_reward"]["holistic_reward_inconsistent"] == 0
    assert counts(pair["error_rate"]) == (2, 1, 1)
    # of the three prompts with a holistic winner, the second contradicts, the fourth is a tie
    assert pair["error_rate"]["holistic_reward_inconsistent"] == pytest.approx(100 / 3)
    assert results["b"]["a"]["error_rate"]["win_rate"] == pytest.approx(100 / 3)
    assert results["a"]["a"] == "*"
    assert results["a"]["Avg."] == {"holistic_reward": pytest.approx(200 / 3), "error_rate": pytest.approx(200 / 3)}
    assert (results["a"]["error_rate-Mean"], results["a"]["error_rate-Min"], results["a"]["error_rate-Max"]) == (
        pytest.approx(0.25),
        0.1,
        0.4,
    )


def test_no_decided_prompt_gives_none_and_is_left_out_of_the_average():
    a = make_run("a", holistic_reward=[1.0, 2.0])
    same = make_run("same", holistic_reward=[1.0, 2.0])
    worse = make_run("worse", holistic_reward=[0.0, 1.0])
    results = comparison([a, same, worse])
    tied = results["a"]["same"]["holistic_reward"]
    assert (tied["win_rate"], tied["win_rate_interval"], tied["holistic_reward_inconsistent"]) == (None, None, None)
    assert (tied["win_rate_ties_half"], tied["win_rate_ties_half_interval"]) == (50.0, None)
    assert results["a"]["Avg."] == {"holistic_reward": 100.0}
    # two of two: certain is what it is not
    assert results["a"]["worse"]["holistic_reward"]["win_rate_interval"] == pytest.approx([15.81, 100], abs=0.01)
    assert results["a"]["Avg.-Interval"]["holistic_reward"] == pytest.approx([15.81, 100], abs=0.01)
    assert comparison([a, same])["a"]["Avg."] == {"holistic_reward": None}
    assert comparison([a, same])["a"]["Avg.-Interval"] == {"holistic_reward": None}
    assert average([]) is None


def test_one_run_has_means_and_no_pairs():
    results = comparison([make_run("a", holistic_reward=[1.0, 2.0])])
    assert results == {
        "a": {
            "holistic_reward-Mean": 1.5,
            "holistic_reward-Min": 1.0,
            "holistic_reward-Max": 2.0,
            "a": "*",
            "Avg.": {"holistic_reward": None},
            "Avg.-Interval": {"holistic_reward": None},
        }
    }


values = st.lists(st.tuples(*[st.integers(-3, 3)] * 4), min_size=1, max_size=30)


@given(values, st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_verdict_properties(rows, lower_wins, rng):
    def rates(rows):
        a, b, holistic_a, holistic_b = np.array(rows, float).T
        holistic = metric_verdicts(holistic_a, holistic_b)
        forth, back = metric_verdicts(a, b, lower_wins), metric_verdicts(b, a, lower_wins)
        return win_rate(forth), win_rate(back), inconsistency(forth, holistic), inconsistency(back, -holistic)

    forth, back, inconsistent, inconsistent_back = rates(rows)
    assert (forth is None) == (back is None) == all(a == b for a, b, *_ in rows)
    if forth is not None:
        assert forth + back == pytest.approx(100)
        assert 0 <= forth <= 100
    assert inconsistent == inconsistent_back
    assert inconsistent is None or 0 <= inconsistent <= 100
    shuffled = rng.sample(rows, len(rows))
    assert rates(shuffled) == (forth, back, inconsistent, inconsistent_back)


def write_runs(folder: Path, rows_by_name: dict[str, list[dict]]) -> Path:
    folder.mkdir(parents=True)
    for name, rows in rows_by_name.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


@given(st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_order_of_rows_changes_nothing(tmp_path_factory, rng):
    """Runs are matched by query: each file shuffled on its own, sampling included."""
    names = ("alpha", "beta", "gamma")
    rows = {name: json.loads((GOLDEN / "qa" / "gens" / f"{name}.json").read_text()) for name in names}
    shuffled = {name: rng.sample(list_, len(list_)) for name, list_ in rows.items()}
    folder = write_runs(tmp_path_factory.mktemp("shuffled") / "gens", shuffled)
    for max_compare in (None, 15):
        ours = comparison(draw_prompts(read_folder(folder, QA), max_compare, seed=42))
        assert ours == compare_golden("qa", sampled=max_compare is not None)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_by_hand():
    #                                            seed 42: 3 of 4      seed 43: 1 of 3, a tie
    a = [make_run("a", holistic_reward=[1, 1, 1, -1]), make_run("a", holistic_reward=[1, -1, -1, 0])]
    b = [make_run("b", holistic_reward=[0, 0, 0, 0]), make_run("b", holistic_reward=[0, 0, 0, 0])]
    results = comparison([a[0], b[0]], [a[1], b[1]])
    rates = results["a"]["b"]["holistic_reward"]
    assert counts(rates) == (4, 1, 3)
    assert rates["win_rate_seeds"] == pytest.approx([75, 100 / 3])
    assert rates["win_rate"] == pytest.approx((75 + 100 / 3) / 2)
    assert rates["win_rate_std"] == pytest.approx(np.std([75, 100 / 3], ddof=1))
    assert rates["win_rate_ties_half"] == pytest.approx((75 + 37.5) / 2)
    assert results["b"]["a"]["holistic_reward"]["win_rate_seeds"] == pytest.approx([25, 200 / 3])
    assert results["b"]["a"]["holistic_reward"]["win_rate_std"] == rates["win_rate_std"]
    assert results["a"]["holistic_reward-Mean"] == pytest.approx((0.5 - 0.25) / 2)
    assert results["a"]["holistic_reward-Std"] == pytest.approx(np.std([0.5, -0.25], ddof=1))
    assert results["a"]["holistic_reward-Min"] == -1
    assert results["a"]["Avg."]["holistic_reward"] == pytest.approx(rates["win_rate"])
    assert results["a"]["Avg.-Seeds"]["holistic_reward"] == pytest.approx([75, 100 / 3])
    assert results["a"]["Avg.-Std"]["holistic_reward"] == pytest.approx(rates["win_rate_std"])


def test_seeds_that_agree_change_nothing_but_the_counts():
    runs = read_folder(GOLDEN / "qa" / "gens", QA)
    one, three = comparison(runs), comparison(runs, runs, runs)
    rates, again = one["alpha"]["beta"]["factuality_rate"], three["alpha"]["beta"]["factuality_rate"]
    assert counts(again) == tuple(3 * count for count in counts(rates))
    assert again["win_rate"] == pytest.approx(rates["win_rate"])
    assert again["win_rate_std"] == pytest.approx(0)
    # a copy of a seed is no new evidence: the prompts are the same
    width, again_width = (r["win_rate_interval"][1] - r["win_rate_interval"][0] for r in (rates, again))
    assert again_width == pytest.approx(width, rel=0.1)


# --- equal answers ---------------------------------------------------------------------------------------------------


def run_of(name: str, answers: list[str | None], **metrics: list[float]) -> Generations:
    values = {key: np.array(value, float) for key, value in metrics.items()}
    return Generations(name, [f"q{row}" for row in range(len(answers))], answers, values)


def test_equal_answers_tie_by_hand():
    """Five prompts, the first three with equal answers whose scores differ in the last bits or by a token."""
    bits = 1e-7
    a = run_of("a", ["x", "y", "", "a wins", "b wins"], holistic_reward=[1 + bits, 2, 0, 3, 1],
               error_rate=[0.1, 0.2, 0.0, 0.3, 0.1], response_length=[5, 6, 1, 9, 3])  # fmt: skip
    b = run_of("b", ["x", "y", "", "than b", "over a"], holistic_reward=[1, 2 + bits, bits, 1, 3],
               error_rate=[0.1 + bits, 0.2 - bits, 0.0, 0.2, 0.2], response_length=[6, 6, 0, 4, 4])  # fmt: skip
    pair = comparison([a, b], task=MT)["a"]["b"]
    assert counts(pair["holistic_reward"]) == (1, 3, 1)
    assert counts(pair["error_rate"]) == (1, 3, 1)
    assert counts(pair["response_length"]) == (1, 3, 1)
    assert pair["holistic_reward"]["win_rate"] == 50
    # error_rate (lower wins) names b on the prompt that a wins, and a on the other: both of the two decided ones
    assert pair["error_rate"]["holistic_reward_inconsistent"] == 100
    # the files' own values stay what they are
    assert comparison([a, b])["b"]["holistic_reward-Min"] == bits


def test_equal_is_the_text_character_by_character():
    answers = ["same", "same ", "Same", "cafe\u0301", None, "\ud800"]
    others = ["same", "same", "same", "caf\u00e9", None, "\ud800"]
    a = run_of("a", answers, holistic_reward=[1] * 6)
    b = run_of("b", others, holistic_reward=[0] * 6)
    # white space, case, another form of a character and a row without an answer: not equal
    assert metric_verdicts(*comparable_metrics([a, b])["holistic_reward"]).tolist() == [0, 1, 1, 1, 1, 0]


def test_equal_answers_tie_in_each_seed():
    a = [run_of("a", ["x", "y"], holistic_reward=[1, 1]), run_of("a", ["z", "y"], holistic_reward=[1, 1])]
    b = [run_of("b", ["x", "v"], holistic_reward=[0, 0]), run_of("b", ["w", "y"], holistic_reward=[0, 0])]
    assert counts(comparison([a[0], b[0]], [a[1], b[1]])["a"]["b"]["holistic_reward"]) == (2, 2, 0)


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 2, *[st.integers(-3, 3)] * 4), min_size=1, max_size=25))
@settings(max_examples=100, deadline=None)
def test_last_bits_of_equal_answers_change_nothing(rows):
    """Every rate, count, interval and length control is that of the runs whose equal answers have equal values."""

    def runs(noise: float) -> list[Generations]:
        found = []
        for which, name in enumerate("ab"):
            answers = [f"answer {row[which]}" for row in rows]
            # the value of a text, a little off in the second run
            score = [row[2 + row[which]] + noise * which * (i + 1) for i, row in enumerate(rows)]
            length = [float(row[which]) for row in rows]
            found.append(run_of(name, answers, holistic_reward=score, error_rate=score, response_length=length))
        return found

    exact, noisy = (comparison(runs(noise), draws=50)["a"]["b"] for noise in (0.0, 1e-9))
    equal = sum(row[0] == row[1] for row in rows)
    # different texts of equal value are told apart by the noise: leave those cases out
    if all(row[0] == row[1] or row[2 + row[0]] != row[2 + row[1]] for row in rows):
        assert noisy == exact
    assert noisy["holistic_reward"]["ties"] >= equal


def test_clearly_different_scores_of_equal_answers_are_named():
    texts = [f"answer {i}" for i in range(40)]
    zeros = np.zeros(40)
    base = {"holistic_reward": zeros - 8, "factuality_rate": zeros + 0.5, "response_length": zeros + 9}
    a = run_of("a", texts, **base)

    def lines(**changes):
        return describe_conflicts(QA, [a, run_of("b", texts, **{**base, **changes})])

    one = np.eye(40)[3]
    assert lines() == []
    assert lines(holistic_reward=zeros - 8 + 0.2, factuality_rate=zeros + 0.5 + one / 3) == []  # bfloat16; one unit
    assert lines(response_length=zeros + 10) == []  # other tokens, or cut off at the limit
    (line,) = lines(holistic_reward=zeros - 8 + 2.5 * one)
    assert all(part in line for part in ("holistic_reward", "1 of 40", "2.5", "a and b"))
    (line,) = lines(factuality_rate=zeros + 0.25)
    assert "factuality_rate" in line
    assert "40 of 40" in line
    # different answers may differ
    others = run_of("b", [f"other {i}" for i in range(40)], **{**base, "holistic_reward": zeros})
    assert describe_conflicts(QA, [a, others]) == []
    # over all pairs and seeds
    c = run_of("c", texts, **{**base, "holistic_reward": zeros - 4})
    (line,) = describe_conflicts(QA, [a, a, c], [a, a, c])
    assert "160 of 240" in line


# --- the judge -------------------------------------------------------------------------------------------------------


def test_judge_by_hand():
    a, b = make_run("a", holistic_reward=[1, 1, 1, 1, 1, 0]), make_run("b", holistic_reward=[0, 0, 0, 0, 0, 0])
    judged = [
        Judgement(1, 1, False),  # a wins
        Judgement(-1, -1, False),  # b wins, against the holistic reward
        Judgement(1, -1, False),  # whoever is first: a flip, so a tie
        Judgement(1, None, False),  # one order failed
        Judgement(None, None, True),  # the same text: a tie, never asked
        Judgement(1, 1, False),
    ]
    results = comparison([a, b], judgements=[{("a", "b"): judged}])
    rates = results["a"]["b"]["judge"]
    assert counts(rates) == (2, 2, 1)
    assert (rates["failures"], rates["identical"]) == (1, 1)
    assert rates["win_rate"] == pytest.approx(100 * 2 / 3)
    assert rates["win_rate_ties_half"] == pytest.approx(100 * 3 / 5)
    assert rates["flip_rate"] == 25
    # answers for the one shown first: 1 of 2, 1 of 2, 2 of 2, 1 of 1, -, 1 of 2
    assert rates["first_position_rate"] == pytest.approx(100 * 6 / 9)
    assert rates["holistic_reward_inconsistent"] == 25  # of the four with a verdict and a holistic winner
    back = results["b"]["a"]["judge"]
    assert counts(back) == (1, 2, 2)
    assert (back["failures"], back["flip_rate"]) == (1, 25)
    assert back["first_position_rate"] == rates["first_position_rate"]
    assert results["a"]["Avg."]["judge"] == pytest.approx(100 * 2 / 3)


def test_a_judge_that_always_fails_gives_no_rate():
    a, b = make_run("a", holistic_reward=[1, 0]), make_run("b", holistic_reward=[0, 1])
    rates = comparison([a, b], judgements=[{("a", "b"): [Judgement(None, None, False)] * 2}])["a"]["b"]["judge"]
    assert counts(rates) == (0, 0, 0)
    assert {key for key, value in rates.items() if value is None} == {
        "win_rate",
        "win_rate_interval",
        "win_rate_ties_half",
        "win_rate_ties_half_interval",
        "holistic_reward_inconsistent",
        "flip_rate",
        "first_position_rate",
    }


# --- control of features -------------------------------------------------------------------------------------------


def texts_run(name: str, answers: list[str], scores: list[float]) -> Generations:
    metrics = {"holistic_reward": scores, "factuality_rate": scores, "response_length": range(len(scores))}
    columns = {key: np.array(list(value), float) for key, value in metrics.items()}
    return Generations(name, [f"the prompt number {i} of many" for i in range(len(answers))], answers, columns)


def test_control_gives_a_rate_at_equal_features_and_changes_nothing_else():
    random = np.random.default_rng(5)
    counts = random.integers(1, 9, size=(2, 60))
    runs = [
        texts_run(
            name,
            [" ".join([name, *map(str, range(n))]) for n in counts[k]],
            list(counts[k] + 3 * random.normal(size=60)),
        )
        for k, name in enumerate("ab")
    ]
    plain, with_words = comparison(runs), comparison(runs, control=("words",))
    pair = with_words["a"]["b"]["factuality_rate"]
    found = pair.pop("controlled")
    assert found["features"] == ["words"]
    # the same regression on the same numbers of words
    resamples = resample(60)
    verdicts = metric_verdicts(runs[0].metrics["factuality_rate"], runs[1].metrics["factuality_rate"])[None]
    expected = controlled(verdicts, {"words": (counts[0] - counts[1]).astype(float)[None]}, resamples)
    assert {key: found[key] for key in expected} == expected
    assert pair == plain["a"]["b"]["factuality_rate"]
    back = with_words["b"]["a"]["factuality_rate"]["controlled"]
    assert back["win_rate"] == pytest.approx(100 - found["win_rate"])
    assert back["interval"] == pytest.approx([100 - found["interval"][1], 100 - found["interval"][0]])


def test_control_of_the_length_and_more_refuses_for_the_length():
    runs = [texts_run(name, [f"{name} {i}" for i in range(30)], list(range(30))) for name in "ab"]
    pair = comparison(runs, control=("length", "words"))["a"]["b"]
    assert pair["response_length"]["controlled"]["refused"] == "it is the length"
    assert "controlled" not in comparison(runs, control=("length",))["a"]["b"]["response_length"]


def test_control_of_the_length_needs_lengths():
    runs = [make_run(name, holistic_reward=[1.0, 2.0], factuality_rate=[1.0, 2.0]) for name in "ab"]
    with pytest.raises(UserError, match="response_length"):
        comparison(runs, control=("length", "words"))
