"""Scores to numbers, a calibration's file and what it is checked for. Runs on models: tests/e2e/test_calibration.py."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alarm.common.errors import UserError
from alarm.common.identity import difference, hash_file, model_identity
from alarm.diagnostics import Scale
from alarm.tasks.find import find_task
from alarm.training.calibrate import describe_samples, main, parse_args
from alarm.training.calibration import (
    KIND,
    THRESHOLDS,
    VERSION,
    Calibration,
    constants_of,
    describe,
    quantile,
    read_calibration,
    use_calibration,
)
from helpers import CHECKPOINTS, load_script

TASKS = {name: find_task(name) for name in ("qa", "mt")}

# --- scores -> numbers -----------------------------------------------------------------------------------------------


def test_describe_by_hand():
    found = describe([1.0, 2.0, 3.0, 4.0, 5.0], thresholds=(0.0, 0.5, 2.0))
    assert (found["n"], found["mean"], found["std"], found["ddof"]) == (5, 3.0, pytest.approx(math.sqrt(2)), 0)
    percentiles = found["percentiles"]
    assert (len(percentiles), percentiles["0"], percentiles["50"], percentiles["100"]) == (101, 1.0, 3.0, 5.0)
    assert percentiles["10"] == pytest.approx(1.4)  # 4 gaps: 0.4 of the first
    # z = -1.41, -.71, 0, .71, 1.41; a score at the threshold reaches it, as in the gate
    assert found["share_above"] == {"0": 0.6, "0.5": 0.4, "2": 0.0}
    # of the mean: std / sqrt(n) = 0.632
    assert found["standard_error"]["mean"] == pytest.approx(0.632, rel=0.1)
    assert describe([1.0, 2.0, 3.0, 4.0, 5.0], thresholds=(0.0, 0.5, 2.0)) == found


def test_standard_errors_of_a_normal_sample():
    x = np.random.default_rng(1).normal(-4.9, 3.0, 400)
    errors = describe(x)["standard_error"]
    assert errors["mean"] == pytest.approx(3 / 20, rel=0.15)
    assert errors["std"] == pytest.approx(3 / math.sqrt(800), rel=0.25)
    assert errors["median"] == pytest.approx(1.2533 * 3 / 20, rel=0.4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=30), st.floats(0.1, 10), st.floats(-5, 5))
def test_shares_do_not_depend_on_scale_and_place(scores, scale, place):
    assume(len(set(scores)) > 1)
    one, other = describe(scores), describe([scale * score + place for score in scores])
    assert other["mean"] == pytest.approx(scale * one["mean"] + place, abs=1e-6)
    assert other["std"] == pytest.approx(scale * one["std"])
    shares = list(one["share_above"].values())
    assert shares == sorted(shares, reverse=True) and list(one["share_above"]) == [f"{z:g}" for z in THRESHOLDS]
    for q in (0.0, 0.123, 0.5, 1.0):
        assert quantile(other["percentiles"], q) == pytest.approx(
            scale * quantile(one["percentiles"], q) + place, abs=1e-6
        )


@pytest.mark.parametrize("value", [-5.0, 0.0, 1 / 3])
def test_a_constant_has_no_deviation_and_no_shares(value):
    found = describe([value] * 7)
    assert found["std"] == 0.0 and found["share_above"] == {}


@pytest.mark.parametrize(("scores", "says"), [([], "no scores"), ([1.0, math.nan, math.inf], "2 of 3")])
def test_scores_that_cannot_be_described(scores, says):
    with pytest.raises(UserError, match=says):
        describe(scores)


def test_quantile_by_hand():
    percentiles = {str(k): k / 10 for k in range(101)}
    assert quantile(percentiles, 0.5) == 5.0
    assert quantile(percentiles, 0.505) == pytest.approx(5.05)
    assert (quantile(percentiles, 0.0), quantile(percentiles, 1.0)) == (0.0, 10.0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=101, max_size=150), st.sampled_from([0.1, 0.25, 0.5, 0.9]))
def test_a_quantile_gate_lets_through_what_it_says(scores, q):
    assume(max(scores) - min(scores) > 1e-3)
    found = Calibration("x", TASKS["qa"], {"holistic": describe(scores)}, {}, {})
    h = (np.array(scores) - found.constants["ultra_mean"]) / found.constants["ultra_std"]
    gate = found.threshold(q)
    assert (h >= gate - 1e-9).mean() >= 1 - q - 0.01 and (h > gate + 1e-9).mean() <= 1 - q + 0.01


def sample(text: str = "an answer", **scores) -> dict:
    return {"generation": text, **scores}


def test_responses_without_text_take_no_part():
    rows = [sample(holistic=1.0), sample(holistic=3.0), sample(" \n", holistic=99.0)]
    assert describe_samples(rows, {"holistic": "raw"}, set())["holistic"]["mean"] == 2.0
    with pytest.raises(UserError, match="1 of 2 responses have text"):
        describe_samples(rows[1:], {"holistic": "raw"}, set())


def test_an_answer_that_an_aspect_does_not_apply_to_takes_no_part():
    rows = [sample(brevity=1.0), sample(brevity=None), sample(brevity=2.0)]
    found = describe_samples(rows, {"brevity": "words"}, set())["brevity"]
    assert (found["n"], found["mean"]) == (2, 1.5)


def test_a_constant_reward_is_refused_where_training_would_divide_by_it():
    rows = [sample(holistic=2.5, length=7)] * 30
    assert describe_samples(rows, {"length": "tokens"}, {"holistic"})["length"]["std"] == 0
    with pytest.raises(UserError, match=r"holistic: all 30 responses have the score 2\.5"):
        describe_samples(rows, {"holistic": "raw"}, {"holistic"})


# --- which model -----------------------------------------------------------------------------------------------------


def test_identity_of_a_folder():
    found = model_identity(CHECKPOINTS / "tiny-ultrarm")
    assert found["files"]["model.safetensors"] == hash_file(CHECKPOINTS / "tiny-ultrarm" / "model.safetensors")
    assert "config.json" in found["files"] and difference(found, found) is None


def test_other_weights_are_named_and_a_copy_is_not(tmp_path):
    first = model_identity(CHECKPOINTS / "tiny-ultrarm")
    copy = shutil.copytree(CHECKPOINTS / "tiny-ultrarm", tmp_path / "copy")
    (copy / "README.md").write_text("notes")
    assert difference(first, model_identity(copy)) is None
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert difference(first, model_identity(copy)) == "model.safetensors is another one"
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pytorch_model.bin" in difference(first, model_identity(copy))


def test_an_adapter_is_told_apart_by_its_base(tmp_path):
    def adapter(base: str) -> dict:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
        return model_identity(tmp_path) | {"files": {"adapter_model.safetensors": "same"}}

    first, second = adapter(str(CHECKPOINTS / "tiny-t5")), adapter(str(CHECKPOINTS / "tiny-mt5"))
    assert difference(first, first) is None and difference(first, second) is not None
    assert adapter("/nowhere/at/all")["base"]["files"] == {}


def test_hub_names_are_known_by_their_commit_in_the_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants

    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    unknown = model_identity("someone/model")
    assert unknown == {"name": "someone/model", "commit": None, "files": {}}
    snapshot = hub / "models--someone--model" / "snapshots" / ("a" * 40)
    shutil.copytree(CHECKPOINTS / "tiny-ultrarm", snapshot)
    (hub / "models--someone--model" / "refs").mkdir()
    (hub / "models--someone--model" / "refs" / "main").write_text("a" * 40)
    known = model_identity("someone/model")
    assert known["commit"] == "a" * 40

    # as the hub's own cache has it: a large file is a link to one that is named by its hash, and is not read
    weights = snapshot / "model.safetensors"
    blob = hub / "models--someone--model" / "blobs" / known["files"]["model.safetensors"]
    blob.parent.mkdir()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert model_identity("someone/model") == known
    blob.write_bytes(b"")
    assert model_identity("someone/model") == known
    assert difference(known, model_identity(CHECKPOINTS / "tiny-ultrarm")) is None  # the same files
    assert difference(unknown, known) is None  # by name, before it is downloaded
    assert "someone/model" in difference(unknown, model_identity("someone/other"))


# --- the file --------------------------------------------------------------------------------------------------------

SCORES = [float(k) for k in range(40)]


def content(task: str = "qa", **changes) -> dict:
    rewards = {"holistic": describe(SCORES), "length": describe([10.0 + k % 4 for k in range(40)])}
    rewards |= {"completeness": describe(SCORES)} if task == "qa" else {"readability": describe(SCORES)}
    whole = {"kind": KIND, "version": VERSION, "task": task, "rewards": rewards, "models": {}, "settings": {}}
    return whole | changes


def write(path, value) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


@pytest.mark.parametrize("task", ["qa", "mt"])
def test_numbers_take_the_place_of_constants(tmp_path, task):
    file = write(tmp_path / "c.json", content(task))
    script = {"qa": "long-form-QA/train_ppo.py", "mt": "MT/train_ppo.py"}[task]
    args = vars(load_script(script).parse_args(["--save_dir", "x", "--calibration", file]))
    expected = {"ultra_mean": 19.5, "ultra_std": np.std(SCORES), "length_mean": 11.5}
    other = {"qa": "completeness_reward", "mt": "readability"}[task]
    expected |= {f"{other}_mean": 19.5, f"{other}_std": np.std(SCORES)}
    assert set(expected) == set(constants_of(TASKS[task])) - {"holistic_level"}
    assert {name: args[name] for name in expected} == pytest.approx(expected)
    before = vars(load_script(script).parse_args(["--save_dir", "x"]))
    changed = {name for name in args if args[name] != before[name]}
    assert changed == {*expected, "calibration"}


def test_what_the_file_lacks_keeps_its_default(tmp_path):
    value = content()
    value["rewards"] = {"length": value["rewards"]["length"]}
    file = write(tmp_path / "c.json", value)
    args = load_script("long-form-QA/train_ppo.py").parse_args(["--save_dir", "x", "--calibration", file])
    assert (args.length_mean, args.ultra_mean) == (11.5, -4.896130742253484)


def test_the_gate_by_quantile(tmp_path):
    file = write(tmp_path / "c.json", content("mt"))
    flags = ["--save_dir", "x", "--calibration", file, "--threshold_quantile"]
    parse = load_script("MT/train_ppo.py").parse_args
    assert parse([*flags, "0.5"]).hierarchical_threshold == pytest.approx(0)  # the median is the mean here
    # 0.9 of the way from 0 to 39 is 35.1
    assert parse([*flags, "0.9"]).hierarchical_threshold == pytest.approx((35.1 - 19.5) / np.std(SCORES))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ultra_mean", "1"], r"--ultra_mean and --calibration .*c\.json both"),
        # given as its own default, it is given all the same
        (["--completeness_reward_std", "8.301160619054132"], "--completeness_reward_std and"),
        (["--threshold_quantile", "0.5", "--hierarchical_threshold", "0.6"], "both set the gate"),
    ],
)
def test_flags_that_contradict_a_calibration(tmp_path, flags, says):
    file = write(tmp_path / "c.json", content())
    with pytest.raises(UserError, match=says):
        load_script("long-form-QA/train_ppo.py").parse_args(["--save_dir", "x", "--calibration", file, *flags])


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "nan", "half"])
def test_a_quantile_lies_between_0_and_1(value, capsys):
    with pytest.raises(SystemExit):
        load_script("MT/train_ppo.py").parse_args(["--save_dir", "x", "--threshold_quantile", value])
    assert "--threshold_quantile" in capsys.readouterr().err


def test_a_quantile_needs_a_calibration():
    with pytest.raises(UserError, match="--threshold_quantile needs --calibration"):
        load_script("MT/train_ppo.py").parse_args(["--save_dir", "x", "--threshold_quantile", "0.5"])


def with_holistic(**changes) -> dict:
    value = content()
    value["rewards"]["holistic"] |= changes
    return value


def with_errors(**changes) -> dict:
    return with_holistic(standard_error=describe(SCORES)["standard_error"] | changes)


def with_percentile(k: int, value: float) -> dict:
    return with_holistic(percentiles=describe(SCORES)["percentiles"] | {str(k): value})


def without(*path: str) -> dict:
    value = content()
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is not JSON"),
        ('{"kind": ' + "9" * 5000 + "}", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a calibration"),
        ({"rewards": {}}, "is not a calibration"),
        (content(version=99), "has version 99"),
        (content("mt"), "one of task mt, not of qa"),
        (without("settings"), "lacks a part"),
        (without("rewards", "holistic", "percentiles"), "lacks a part"),
        (without("rewards", "holistic", "percentiles", "37"), "lacks a part"),
        (with_holistic(mean="much"), "lacks a part"),
        (with_holistic(std="1.0"), "holistic/std"),
        (with_holistic(std=True), "holistic/std"),
        (with_holistic(n=[1]), "holistic/n"),
        (with_holistic(n=40.0), "holistic/n"),
        (with_holistic(standard_error=[]), "holistic/standard_error"),
        (content(settings=[]), "settings"),
        (content(models=[]), "models"),
        (content(rewards={"holistic": 3}), "holistic"),
        (content(models={"holistic": {"name": "\ud83d", "files": {}}}), "models/name"),
        (content(models={"holistic": {"name": "x", "files": {"a": 3}}}), "models/files"),
        (with_holistic(n=0), "numbers of holistic cannot be used"),
        (with_holistic(mean=10**400), "numbers of holistic cannot be used"),
        (with_holistic(std=-11.5), "numbers of holistic cannot be used"),
        (with_errors(std=math.nan), "numbers of holistic cannot be used"),
        (with_errors(median=-1.0), "numbers of holistic cannot be used"),
        (with_percentile(50, 1e6), "numbers of holistic cannot be used"),
        # the scores are 0 to 39
        (with_holistic(mean=39.1), "numbers of holistic cannot be used"),
        (with_holistic(mean=-0.1), "numbers of holistic cannot be used"),
        (with_holistic(std=19.6), "numbers of holistic cannot be used"),  # at most half the range
        (with_holistic(std=4.3), "numbers of holistic cannot be used"),  # at least 39 / sqrt(2 * 40) = 4.36
        (with_holistic(std=0.0), "numbers of holistic cannot be used"),
        (with_holistic(mean=math.nan), "numbers of holistic cannot be used"),
        (content(models={"holistic": {}}), "lacks a part"),
    ],
)
def test_files_that_are_no_calibration(tmp_path, value, says):
    file = write(tmp_path / "c.json", value)
    with pytest.raises(UserError, match=says):
        read_calibration(file, TASKS["qa"])
    with pytest.raises(UserError, match="does not exist"):
        read_calibration(tmp_path / "gone.json", TASKS["qa"])


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40),
    st.floats(-1e5, 1e5),
    st.sampled_from([1e-6, 1.0, 1e4]),
)
@settings(deadline=None, max_examples=60)
def test_numbers_that_scores_have_are_never_refused(tmp_path_factory, scores, place, scale):
    """Whatever was measured is read back, scores that hardly differ and outliers among them."""
    described = describe([place + scale * score for score in scores])
    file = tmp_path_factory.mktemp("calibration") / "c.json"
    found = read_calibration(write(file, content(rewards={"relevance": described})), TASKS["qa"])
    assert found.rewards["relevance"] == described


def test_scales_to_watch():
    value = content()
    found = Calibration("x", TASKS["qa"], value["rewards"], {}, {}).scales()
    # the holistic reward is watched after normalisation
    assert (found["holistic_reward"].mean, found["holistic_reward"].std) == (0.0, 1.0)
    length = found["response_length"]
    assert (length.mean, length.std) == (11.5, pytest.approx(math.sqrt(1.25)))
    assert isinstance(length, Scale) and 0.2 < length.std_noise < 0.7  # even values vary less than normal ones
    value["rewards"]["length"] = describe([12.0] * 30)
    assert set(Calibration("x", TASKS["qa"], value["rewards"], {}, {}).scales()) == {"holistic_reward"}


def use(tmp_path, capsys, value: dict, **flags) -> tuple[dict, str]:
    file = write(tmp_path / "c.json", value)
    words = ["--save_dir", "x", "--calibration", file, "--holistic_model", str(CHECKPOINTS / "tiny-ultrarm")]
    args = load_script("MT/train_ppo.py").parse_args(words + [w for k, v in flags.items() for w in (f"--{k}", v)])
    scales = use_calibration(args, TASKS["mt"], str(CHECKPOINTS / "tiny-mt5"), (128, 128))
    return scales, capsys.readouterr().out


def models(**changes) -> dict:
    names = {"policy": "tiny-mt5", "holistic": "tiny-ultrarm"} | changes
    return {role: model_identity(CHECKPOINTS / name) for role, name in names.items()}


SETTINGS = {"max_input_len": 128, "max_generated_len": 128}


def test_a_calibration_of_these_models_is_used_and_said(tmp_path, capsys):
    value = content("mt", models=models(), settings=SETTINGS)
    scales, out = use(tmp_path, capsys, value, threshold_quantile="0.75")
    assert set(scales) == {"holistic_reward", "response_length"}
    assert "ultra_mean 19.5" in out and "about 25%" in out and "note" not in out


def test_another_policy_and_other_limits_are_noted_and_what_is_kept_is_said(tmp_path, capsys):
    value = content("mt", models=models(policy="tiny-t5"), settings=SETTINGS | {"max_generated_len": 64})
    del value["rewards"]["readability"]
    _, out = use(tmp_path, capsys, value)
    assert "another policy" in out and "(128, 64)" in out
    assert "as before: readability_mean 11.1991, readability_std 6.04406" in out


def test_another_holistic_model_is_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="another holistic reward model than"):
        use(tmp_path, capsys, content("mt", models=models(holistic="tiny-t5"), settings=SETTINGS))
    with pytest.raises(UserError, match="which holistic model"):
        use(tmp_path, capsys, content("mt", models={"policy": models()["policy"]}, settings=SETTINGS))


# --- the script, before any model loads ------------------------------------------------------------------------------


def flags_of(tmp_path, **changes) -> list[str]:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"text": f"question: {k}?", "question": f"{k}?"} for k in range(3)]))
    values = {
        "task": "qa",
        "policy_ckpt": CHECKPOINTS / "tiny-t5",
        "prompts": prompts,
        "holistic_model": CHECKPOINTS / "tiny-ultrarm",
        "rewards": "holistic,length",
        "save_path": tmp_path / "c.json",
    } | changes
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rewards": "holistic,beauty"}, "'beauty' is none of qa's"),
        ({"rewards": ""}, "'' is none of"),
        ({"rewards": "grammar"}, "'grammar' is none of qa's"),
        ({"prompts": "gone.json"}, "gone.json is no file"),
        ({"policy_ckpt": "./gone"}, "no folder ./gone"),
        ({"holistic_model": "./gone"}, "no folder ./gone"),
        ({"rewards": "completeness", "reward_model_dir": "gone"}, "gone/comp_rm does not exist"),
        ({"rewards": "factuality", "reward_model_dir": CHECKPOINTS}, "fact_rm does not exist"),
        ({"limit": "1"}, "no deviation"),
        ({"task": "mt"}, "'es' or 'en'"),
        ({"save_path": CHECKPOINTS}, "is a folder"),
        ({"save_path": CHECKPOINTS / "tiny-t5" / "config.json" / "c.json"}, "cannot be written"),
    ],
)
def test_bad_flags_end_in_one_line(tmp_path, capsys, monkeypatch, changes, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(flags_of(tmp_path, **changes))
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and says in error
    assert not (tmp_path / "c.json").exists()


def test_a_file_is_not_replaced_unasked(tmp_path, capsys):
    (tmp_path / "c.json").write_text("mine")
    with pytest.raises(SystemExit):
        main(flags_of(tmp_path))
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "c.json").read_text() == "mine"


def test_defaults_are_those_of_training():
    for name, script in {"qa": "long-form-QA/train_ppo.py", "mt": "MT/train_ppo.py"}.items():
        theirs = load_script(script).parse_args(["--save_dir", "x"])
        task = TASKS[name] if TASKS[name].configure is None else TASKS[name].configure(TASKS[name], theirs)
        ours = parse_args(["--task", name, "--policy_ckpt", "p", "--prompts", "f", "--save_path", "s"])
        shared = {"holistic_model", "dtype", "seed", "max_input_len", "max_generated_len"}
        shared |= {flag.name for flag in task.flags if flag.used_by != "ppo"}
        shared |= {flag.name for aspect in task.aspects for flag in aspect.flags}
        assert {flag: getattr(ours, flag) for flag in shared} == {flag: getattr(theirs, flag) for flag in shared}


@pytest.mark.parametrize("module", ["alarm.calibrate", "alarm.plot_run"])
def test_help_loads_nothing_heavy(module):
    code = (
        "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_module(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'spacy', 'matplotlib', 'numpy', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, module], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--save_" in done.stdout
