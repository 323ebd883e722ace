"""The reward without a trainer, by hand."""

from __future__ import annotations

import copy
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoTokenizer

from alarm import Aspect, Flag, HierarchicalReward, Task
from alarm.combiners import COMBINERS
from alarm.common.errors import UserError
from alarm.common.identity import model_identity
from alarm.models.holistic import HolisticModel
from alarm.training.calibration import KIND, VERSION, describe
from helpers import CHECKPOINTS, ROOT


def shouting(prompts, answers, rows):
    spans = [[(answer.index(word), answer.index(word) + len(word)) for word in answer.split()] for answer in answers]
    return [
        [(start, end, -1.0) for start, end in of if answer[start:end].isupper()]
        for answer, of in zip(answers, spans, strict=True)
    ]


def length(prompts, answers, rows):
    return [float(len(answer.split())) for answer in answers]


def holistic(prompts, answers, rows):
    return [row["good"] for row in rows]


ASPECTS = [Aspect("shouting", shouting, pay="tokens"), Aspect("length", length)]
ANSWERS = ["it is SO loud", "I see", "OH NO"]
ROWS = [{"good": 3.0}, {"good": 0.0}, {"good": 1.0}]


def reward(**changes) -> HierarchicalReward:
    values = {"weights": {"shouting": 2.0}, "holistic_weight": 10, "holistic_mean": 1.0, "holistic_std": 2.0}
    return HierarchicalReward(holistic, ASPECTS, **values | changes)


def test_a_hierarchical_reward_by_hand():
    parts = reward().score(["q"] * 3, ANSWERS, ROWS)
    assert parts.holistic.tolist() == [1.0, -0.5, 0.0]
    assert parts.gate.tolist() == [1.0, 0.0, 1.0]
    assert {name: values.tolist() for name, values in parts.aspects.items()} == {
        "shouting": [-1.0, -1.0, -2.0],
        "length": [4.0, 2.0, 2.0],
    }
    assert parts.total.tolist() == [10 - 2, -5.0, 0 - 4]  # the second answer shouts too, behind a closed gate
    assert parts.tokens is None


def test_tokens_add_up_to_the_total():
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")
    ids = [torch.tensor(row) for row in tokenizer(ANSWERS).input_ids]
    parts = reward().score(["q"] * 3, ANSWERS, ROWS, tokenizer, ids)
    assert [len(row) for row in parts.tokens] == [len(row) for row in ids]
    assert [row.double().sum().item() for row in parts.tokens] == parts.total.tolist()
    assert [row[-1].item() for row in parts.tokens] == [10.0, -5.0, 0.0]  # the holistic part


def test_other_combinations():
    flat = reward(combine="weighted_sum").score(["q"] * 3, ANSWERS, ROWS)
    assert flat.total.tolist() == [8.0, -7.0, -4.0]
    alone = reward(combine="aspect_only", weights={"length": 1.0}).score(["q"] * 3, ANSWERS, ROWS)
    assert alone.total.tolist() == [4.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: reward(combine="sum"), "'sum'.*hierarchical"),
        (lambda: reward(shaping="log"), "shaping.*centred"),
        (lambda: reward(placement="first"), "placement.*uniform"),
        (lambda: reward(gate_temprature=1.0), "'gate_temprature'.*gate_temperature"),
        (lambda: reward(targets={"shouts": 1.0}), "targets.*'shouts'"),
        (lambda: reward(targets={"holistic": 1.0}), "targets.*'holistic'"),
        (lambda: reward(holistic_std=0.0), "holistic_std"),
        (lambda: reward(weights={"shouting": float("nan")}), "weights.*nan"),
        (lambda: reward(weights={}, holistic_weight=0), "pays nothing"),
        (lambda: reward(combine="aspect_only", weights={"shouting": 0.0}), "pays nothing"),
        (lambda: reward(combine="lagrangian", weights={}), "pays nothing"),
        (lambda: HierarchicalReward(3, ASPECTS), "holistic is int"),
        (lambda: HierarchicalReward(None, ASPECTS, weights={"length": 1.0}), "holistic is None.*aspect_only"),
        (lambda: HierarchicalReward(holistic, [*ASPECTS, Aspect("length", length)]), "two aspects are named length"),
        (lambda: reward(threshold_quantile=0.5), "threshold_quantile needs a calibration"),
        (lambda: HierarchicalReward(holistic, ASPECTS, baseline="group"), "scale.*holistic_mean"),
        (lambda: reward(baseline="greedy"), "baseline is 'greedy'"),
        (lambda: reward().score([], []), "no answers"),
        (lambda: reward().score("q", ["a"]), "prompts is str"),
        (lambda: reward().score(["q"], [3]), "an answer is 3"),
        (lambda: reward().score(["q"], [[{"role": "user", "content": 3}]]), "content that is text"),
        (lambda: reward().score(["q"] * 2, ["a", "b"], groups=[1]), "2 prompts and 1 groups"),
        (lambda: reward(weights={"shouts": 1.0}), "'shouts'.*shouting, length"),
        (lambda: reward().score(["q"], ANSWERS, ROWS), "1 prompts, 3 answers"),
        (lambda: reward().score(["q"] * 3, ANSWERS, ROWS, tokenizer="t5"), "response_ids"),
    ],
)
def test_mistakes_are_named(make, named):
    with pytest.raises(UserError, match=named):
        make()


def test_tokens_need_tokens():
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")
    with pytest.raises(UserError, match="no token"):
        reward().score(["q"], [""], [{"good": 1.0}], tokenizer, [[]])
    with pytest.raises(UserError, match="1 answers and 2 response_ids"):
        reward().score(["q"], ["a"], [{"good": 1.0}], tokenizer, [[3], [4]])


# --- parts that fail -------------------------------------------------------------------------------------------------


def of(function) -> list[Aspect]:
    return [Aspect("odd", function)]


def nothing(prompts, answers, rows):
    """The mistake of a function that forgets `return`."""


def broken(prompts, answers, rows):
    raise KeyError("good")


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (nothing, "'odd' returned NoneType for 2 answers"),
        (broken, "'odd' raised KeyError"),
        (lambda prompts, answers, rows: [1.0], "'odd' returned 1 scores for 2 answers"),
        (lambda prompts, answers, rows: ["high"] * 2, "'odd' returned 'high'"),
        (lambda prompts, answers, rows: [float("nan")] * 2, "'odd' returned nan"),
    ],
)
def test_an_aspect_that_fails_is_never_a_zero(function, named):
    with pytest.raises(UserError, match=named) as caught:
        HierarchicalReward(holistic, of(function), weights={"odd": 1.0}).score(["q"] * 2, ["a", "b"], ROWS[:2])
    assert (type(caught.value.__cause__) is KeyError) == (function is broken)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (nothing, "returned NoneType for 2 answers"),
        (broken, "raised KeyError"),
        (lambda prompts, answers, rows: ["4.5", "3"], "returned '4.5'"),
        (lambda prompts, answers, rows: "ab", "returned str"),
        (lambda prompts, answers, rows: [1.0], "returned 1 numbers for 2 answers"),
        (lambda prompts, answers, rows: [1.0, None], "returned None"),
    ],
)
def test_a_holistic_function_that_fails_is_never_a_zero(function, named):
    with pytest.raises(UserError, match=f"holistic.*{named}") as caught:
        HierarchicalReward(function, ASPECTS).score(["q"] * 2, ["a", "b"], ROWS[:2])
    assert (type(caught.value.__cause__) is KeyError) == (function is broken)


def test_nan_of_a_holistic_function_stays_nan():
    parts = HierarchicalReward(lambda p, a, r: torch.tensor([math.nan, 1.0]), ASPECTS).score(["q"] * 2, ["a", "b"])
    assert parts.total.isnan().tolist() == parts.gate.isnan().tolist() == [True, False]


def test_an_answer_without_any_part_is_no_zero():
    def sometimes(prompts, answers, rows):
        return [None if answer == "none" else 2.0 for answer in answers]

    alone = HierarchicalReward(None, of(sometimes), "aspect_only", weights={"odd": 3.0})
    parts = alone.score(["q"] * 2, ["none", "some"])
    assert parts.total.isnan().tolist() == [True, False] and parts.total[1] == 6.0
    assert parts.aspects["odd"].isnan().tolist() == [True, False] and parts.metrics["odd"] == [None, 2.0]
    assert parts.holistic.isnan().all() and parts.gate.isnan().all() and "holistic_reward" not in parts.metrics
    with pytest.raises(UserError, match=r"no part .* odd returned None for all"):
        alone.score(["q"], ["none"])
    # beside a holistic reward the aspect adds nothing
    both = HierarchicalReward(holistic, of(sometimes), weights={"odd": 3.0})
    assert both.score(["q"], ["none"], ROWS[:1]).total.tolist() == [3.0]


# --- what is scored, and how often -----------------------------------------------------------------------------------


def test_equal_answers_are_scored_once():
    seen = []

    def counting(prompts, answers, rows):
        seen.extend(zip(prompts, answers, [row.get("good") for row in rows], strict=True))
        return [float(len(answer)) for answer in answers]

    one = HierarchicalReward(counting, [], holistic_weight=2.0)
    rows = [{"good": 1}, {"good": 1}, {"good": 2}, {"good": 1}]
    parts = one.score(["p", "p", "p", "q"], ["ab", "ab", "ab", "a"], rows)
    assert seen == [("p", "ab", 1), ("p", "ab", 2), ("q", "a", 1)]  # another row may mean another score
    assert parts.total.tolist() == [4.0, 4.0, 4.0, 2.0]


def test_equal_texts_of_other_tokens_keep_their_tokens():
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")
    whole = tokenizer("OH NO").input_ids
    ids = [whole, whole[:-1], whole]  # with and without its end
    parts = reward().score(["q"] * 3, ["OH NO"] * 3, [ROWS[2]] * 3, tokenizer, ids)
    assert [len(row) for row in parts.tokens] == [len(row) for row in ids]
    assert torch.equal(parts.tokens[0], parts.tokens[2])
    assert parts.metrics["response_length"] == [len(row) for row in ids]
    assert "response_length" not in reward().score(["q"], ["OH NO"], ROWS[2:]).metrics


def test_conversations_are_texts():
    asked = [{"role": "user", "content": "q"}]
    answered = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]
    texts, turns = reward().score(["q"] * 3, ANSWERS, ROWS), reward().score([asked] * 3, answered, ROWS)
    assert torch.equal(texts.total, turns.total) and texts.metrics == turns.metrics


def test_many_threads_get_what_one_gets():
    model = CHECKPOINTS / "tiny-ultrarm"
    one = HierarchicalReward(model, ASPECTS, weights={"shouting": 1.0})
    inside, most = 0, 0
    guard = threading.Lock()

    def busy(prompts, answers, rows):
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.005)
        with guard:
            inside -= 1
        return [0.0] * len(answers)

    many = HierarchicalReward(model, [*ASPECTS, Aspect("busy", busy)], weights={"shouting": 1.0})
    batches = [([f"prompt {k}"] * 2, [f"answer {k}", f"OTHER {k}"]) for k in range(12)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda batch: many.score(*batch), batches))
    assert most == 1
    for batch, parts in zip(batches, found, strict=True):
        assert torch.equal(parts.total, one.score(*batch).total)


def test_a_copy_loads_its_own_models(monkeypatch):
    from alarm.models.holistic import HolisticModel

    loads, load = [], HolisticModel.load
    monkeypatch.setattr(HolisticModel, "load", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs))
    first = HierarchicalReward(CHECKPOINTS / "tiny-ultrarm", ASPECTS)
    total = first.score(["q"], ["a"]).total
    other = copy.deepcopy(first)
    assert torch.equal(other.score(["q"], ["a"]).total, total)
    assert len(loads) == 2
    first.close()
    assert torch.equal(first.score(["q"], ["a"]).total, total)


# --- answers that are compared ---------------------------------------------------------------------------------------


def test_equal_prompts_make_a_group():
    """`stratified` by hand: m from 0 to 1 among the answers of one prompt on the same side of the gate."""
    one = reward(combine="stratified", weights={"length": 1.0}, holistic_weight=1, threshold=-9.0)
    rows = [{"good": 0.0}] * 4
    answers = ["one", "one two three", "one two", "one two three four"]
    apart = one.score(["p", "q", "p", "q"], answers, rows)
    assert apart.total.tolist() == pytest.approx([0.95, 0.95, 1.05, 1.05])
    named = one.score(["x", "y", "x2", "y2"], answers, rows, groups=["a", "b", "a", "b"])
    assert torch.equal(named.total, apart.total)
    whole = one.score(["p"] * 4, answers, rows)
    assert whole.total.tolist() == pytest.approx([0.95, 0.95 + 0.2 / 3, 0.95 + 0.1 / 3, 1.05])


@pytest.mark.parametrize("changes", [{"combine": "decoupled"}, {"combine": "stratified"}, {"baseline": "group"}])
def test_one_answer_is_no_group(changes):
    with pytest.raises(UserError, match=r"'q3'.*two or more"):
        reward(**changes).score(["q", "q", "q3"], ANSWERS, ROWS)


def test_a_baseline_is_subtracted_before_the_gate():
    # raw 3, 0, 1; the mean of the first two is 1.5; mean 1 and std 2 are of scores less their baseline
    grouped = reward(baseline="group").score(["p", "p", "q", "q"], [*ANSWERS, "so"], [*ROWS, {"good": 5.0}])
    assert grouped.holistic.tolist() == [0.25, -1.25, -1.5, 0.5]
    assert grouped.gate.tolist() == [1.0, 0.0, 0.0, 1.0]

    def by_length(prompts, answers, rows):
        return [float(len(answer)) for answer in answers]

    one = HierarchicalReward(
        by_length, ASPECTS, holistic_mean=0.0, holistic_std=1.0, baseline=lambda prompts, rows: ["abc"] * len(prompts)
    )
    assert one.score(["p", "p"], ["ab", "abcde"]).holistic.tolist() == [-1.0, 2.0]
    short = HierarchicalReward(
        by_length, ASPECTS, holistic_mean=0, holistic_std=1, baseline=lambda prompts, rows: "abc"
    )
    with pytest.raises(UserError, match=r"baseline.*list"):
        short.score(["p"], ["a"])


@pytest.mark.parametrize("name", list(COMBINERS))
def test_every_combiner_by_name_and_as_a_function(name):
    prompts, answers, rows = ["p", "p", "q", "q"], [*ANSWERS, "so"], [*ROWS, {"good": 5.0}]
    by_name = reward(combine=name, targets={"shouting": 1.0}, multipliers={"shouting": 0.5}).score(
        prompts, answers, rows
    )
    as_function = reward(combine=COMBINERS[name], targets={"shouting": 1.0}, multipliers={"shouting": 0.5})
    assert torch.equal(by_name.total, as_function.score(prompts, answers, rows).total)
    assert by_name.total.isfinite().all() and len(set(by_name.total.tolist())) > 1


# --- calibrations and tasks ------------------------------------------------------------------------------------------


def calibration_file(path, rewards: dict, models: dict, task: str = "headlines", **settings):
    content = {"kind": KIND, "version": VERSION, "task": task, "rewards": rewards, "models": models}
    path.write_text(json.dumps(content | {"settings": settings}))
    return path


@pytest.fixture
def calibration(tmp_path):
    model = CHECKPOINTS / "tiny-ultrarm"
    raw = HolisticModel.load(model).score(["q"] * 3, ANSWERS, 1024, 8).tolist()
    return calibration_file(
        tmp_path / "calibration.json", {"holistic": describe(raw)}, {"holistic": model_identity(model)}
    )


def test_a_calibration_gives_the_constants(calibration):
    one = HierarchicalReward(
        CHECKPOINTS / "tiny-ultrarm", ASPECTS, calibration=calibration, threshold_quantile=0.5, weights={"length": 1.0}
    )
    parts = one.score(["q"] * 3, ANSWERS)
    assert parts.holistic.mean().item() == pytest.approx(0, abs=1e-5)
    assert parts.holistic.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert sorted(parts.gate.tolist()) == [0.0, 1.0, 1.0]  # the median of three is on its own threshold


def test_a_calibration_that_does_not_fit_is_refused(calibration, tmp_path):
    model, other = CHECKPOINTS / "tiny-ultrarm", CHECKPOINTS / "tiny-comp_rm"

    def refused(named, *args, **settings):
        with pytest.raises(UserError, match=named):
            HierarchicalReward(*args, **{"calibration": calibration} | settings)

    refused("another holistic reward model", other, ASPECTS)
    refused("holistic is a function", holistic, ASPECTS)
    refused("holistic_std and the calibration", model, ASPECTS, holistic_std=2.0)
    refused("both set the gate", model, ASPECTS, threshold=0.0, threshold_quantile=0.5)
    refused("baseline none.*baseline group", model, ASPECTS, baseline="group")
    lacking = calibration_file(tmp_path / "lacking.json", {"length": describe([1.0, 2.0])}, {})
    refused("no holistic reward", model, ASPECTS, calibration=lacking)
    refused("nowhere", model, ASPECTS, calibration=tmp_path / "nowhere.json")


def scaled(settings):
    return lambda rollout: [settings.args.scale * len(answer) for answer in rollout.responses]


class Scaled:
    load = staticmethod(scaled)

    @staticmethod
    def check(args):
        if args.unit == "mile":
            raise UserError("a mile is too long")


SCALED = Task(
    "scaled",
    prompt=str,
    aspects=[Aspect("size", Scaled, weight=2.0, flags=[Flag("scale", 0.5, "")]), Aspect("length", length)],
    flags=[Flag("unit", "word", "", str)],
    holistic=holistic,
    defaults={"holistic_reward_weight": 10.0, "hierarchical_threshold": 0.5, "ultra_mean": 1.0, "ultra_std": 2.0},
)


def test_a_reward_has_the_numbers_of_its_task(capsys):
    parts = HierarchicalReward.from_task(SCALED).score(["q"] * 2, ["ab", "abcd"], ROWS[:2])
    assert parts.holistic.tolist() == [1.0, -0.5]
    assert parts.total.tolist() == [10 + 2 * 0.5 * 2, -5.0]
    assert "threshold 0.5" in capsys.readouterr().out  # a default that changes the result is printed
    other = HierarchicalReward.from_task(
        SCALED, weights={"size": 0.0, "length": 1.0}, flags={"scale": 2.0}, threshold=-9
    )
    parts = other.score(["q"], ["ab"], ROWS[1:2])
    assert parts.total.tolist() == [-5.0 + 1.0] and parts.aspects["size"].tolist() == [4.0]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HierarchicalReward.from_task(SCALED, flags={"scales": 1}), "no flag 'scales'.*scale"),
        (lambda: HierarchicalReward.from_task(SCALED, flags={"unit": "mile"}), "too long"),
        (lambda: HierarchicalReward.from_task(Task("bare", str, ASPECTS)), "bare has no holistic"),
        (lambda: HierarchicalReward.from_task("nothing"), "'nothing' is no task"),
        (lambda: HierarchicalReward(holistic, SCALED.aspects), "needs the constant 'unit'.*from_task"),
        (lambda: HierarchicalReward.from_run(ROOT / "docs"), "no run.json"),
    ],
)
def test_mistakes_with_tasks_and_runs_are_named(make, named):
    with pytest.raises(UserError, match=named):
        make()


def test_a_task_by_name():
    one = HierarchicalReward.from_task(str(ROOT / "examples" / "headlines.py"), weights={"brevity": 1.0})
    parts = one.score(["headline: A storm"], ["A storm"], [{"headline": "storm"}])
    assert parts.holistic.tolist() == [pytest.approx(2.5)]  # (1 - 0.5) / 0.2
    assert parts.total.tolist() == [pytest.approx(2.5 - 2 / 20)]
