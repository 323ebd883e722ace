"""long-form-QA/train_ppo.py as a user runs it, on tiny real models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from alarm.tasks.qa.spec import TASK
from helpers import ROOT, forget_accelerate
from processes import run_together

SCRIPT = str(ROOT / "long-form-QA" / "train_ppo.py")
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def policy_weights(folder) -> dict[str, torch.Tensor]:
    """All tensors of a saved policy: adapters and value head."""
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 2, files
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_weights(a, b) -> None:
    a, b = policy_weights(a), policy_weights(b)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def log_rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def numbers(row: dict) -> dict:
    return {name: value for name, value in row.items() if not isinstance(value, str)}


def texts(row: dict) -> dict:
    return {name: value for name, value in row.items() if isinstance(value, str)}


def untimed(rows: list[dict]) -> list[dict]:
    return [
        {
            part: {k: v for k, v in values.items() if not k.startswith("time/")}
            for part, values in row.items()
            if part != "step"
        }
        for row in rows
    ]


@pytest.mark.parametrize("reward_type", ["hierarchical", "holistic_only", "aspect_only", "weighted_sum"])
def test_trains_tests_and_leaves_a_readable_run(world, train_ppo, tmp_path, capfd, reward_type):
    run = tmp_path / "run"
    train_ppo(
        [
            *world.flags,
            "--save_dir",
            str(run),
            "--reward_type",
            reward_type,
            "--sigmoid_shaping",
            "--max_steps",
            "3",
            "--eval_interval",
            "2",
            "--checkpoint_interval",
            "1",
            "--keep_checkpoints",
            "2",
        ]
    )
    rows = log_rows(run)
    assert [(row["step"], "dev" in row) for row in rows] == [
        (0, True),
        (1, False),
        (2, False),
        (2, True),
        (3, False),
        (3, True),
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "3"]
    assert {path.name for path in run.iterdir()} == {
        "run.json", "log.jsonl", "rollouts.jsonl", "checkpoints", "best", "policy",
    }  # fmt: skip
    # three steps of training moved the adapters: B starts at zero
    assert any(tensor.abs().max() > 0 for name, tensor in policy_weights(run / "policy").items() if "lora_B" in name)
    assert "total_reward" in capfd.readouterr().out


def test_bfloat16_and_the_default_tracker(world, train_ppo, tmp_path):
    run = tmp_path / "run"
    flags = ["--dtype", "bfloat16", "--report_to", "tensorboard", "--run_name", "mine", "--max_steps", "1"]
    train_ppo([*world.flags, *flags, "--save_dir", str(run), "--eval_interval", "0"])
    (events,) = (run / "tracker" / "mine").glob("events*")
    assert b"objective/kl" in events.read_bytes() and b"env/gate_rate" in events.read_bytes()
    weights = policy_weights(run / "policy")
    assert {tensor.dtype for name, tensor in weights.items() if "lora" in name} == {torch.float32}


def test_length_reward_needs_no_aspect_model_pass(world, train_ppo, tmp_path):
    run = tmp_path / "run"
    flags = ["--length_reward", "--reward_type", "aspect_only", "--length_mean", "4", "--max_steps", "1"]
    train_ppo([*world.flags, *flags, "--save_dir", str(run), "--eval_interval", "0"])
    (row,) = log_rows(run)
    assert row["train"]["reward"] == pytest.approx(row["train"]["response_length"] / 4)
    assert "factuality_rate" not in row["train"]


def test_generation_file_has_the_published_form(world, train_ppo, tmp_path, capfd):
    out = tmp_path / "generations" / "sft.json"
    train_ppo([*world.flags, "--test", "--save_dir", str(out)])
    rows = json.loads(out.read_text())
    assert [row["query"] for row in rows] == sorted(row["text"] for row in world.rows("test"))
    assert list(rows[0]) == [
        "query",
        "generation",
        "holistic_reward",
        "response_length",
        "verbosity_rate",
        "factuality_rate",
        "completeness_reward",
    ]
    assert all(0 <= row["factuality_rate"] <= 1 for row in rows)
    assert "10 prompts" in capfd.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        train_ppo([*world.flags, "--test", "--save_dir", str(out)])
    assert stopped.value.code == 2
    assert "--overwrite" in capfd.readouterr().err
    assert json.loads(out.read_text()) == rows


def run_script(flags, processes: int = 1, **kwargs) -> subprocess.CompletedProcess:
    start = TWO_PROCESSES if processes == 2 else [sys.executable]
    return subprocess.run([*start, SCRIPT, *flags], capture_output=True, text=True, timeout=300, cwd=ROOT, **kwargs)


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bits(world, train_ppo, tmp_path, capfd):
    flags = [*world.flags, "--reward_type", "hierarchical", "--sigmoid_shaping", "--max_steps", "5"]
    flags += ["--eval_interval", "2", "--checkpoint_interval", "2"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    log = broken / "log.jsonl"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    victim = subprocess.Popen([sys.executable, SCRIPT, *flags, "--save_dir", str(broken)], cwd=ROOT, **silent)
    for _ in range(100_000):
        if log.exists() and '"step": 3' in log.read_text():
            break
        if victim.poll() is not None:
            pytest.fail("ended before it could be killed")
        time.sleep(0.01)
    else:
        victim.kill()
        pytest.fail("did not log step 3")
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (broken / "policy").exists()
    assert "--resume" in refused(train_ppo, [*flags, "--save_dir", str(broken)], capfd)
    assert "--lr" in refused(train_ppo, [*flags, "--save_dir", str(broken), "--resume", "--lr", "0.5"], capfd)

    train_ppo([*flags, "--save_dir", str(broken), "--resume"])
    forget_accelerate()
    train_ppo([*flags, "--save_dir", str(whole)])
    assert_same_weights(whole / "policy", broken / "policy")
    assert_same_weights(whole / "best", broken / "best")
    assert untimed(log_rows(whole)) == untimed(log_rows(broken))


@pytest.mark.slow
def test_several_processes_agree_with_one(world, train_ppo, tmp_path):
    """Sampled answers, their scores and their order do not depend on the number of processes.

    Ten prompts are three batches: of four processes, one has none.
    """
    flags = [*world.flags, "--test", "--test_do_sample", "--batch_size", "4"]
    train_ppo([*flags, "--save_dir", str(tmp_path / "1.json")])
    rows = json.loads((tmp_path / "1.json").read_text())
    assert len(rows) == 10 and len({row["generation"] for row in rows}) > 5
    for count in (2, 4):
        ended = run_together(count, SCRIPT, *flags, "--save_dir", str(tmp_path / f"{count}.json"))
        assert [one.code for one in ended] == [0] * count, ended
        others = json.loads((tmp_path / f"{count}.json").read_text())
        # the last bits of CPU arithmetic differ between a single process and one of several
        assert [pytest.approx(row, abs=1e-6) for row in map(numbers, rows)] == [*map(numbers, others)]
        assert [*map(texts, rows)] == [*map(texts, others)]


@pytest.mark.slow
def test_four_processes_train_resume_and_start_where_one_does(world, train_ppo, tmp_path, capfd):
    flags = [*world.flags, "--reward_type", "weighted_sum", "--eval_interval", "1", "--checkpoint_interval", "1"]
    whole, parts, alone = tmp_path / "whole", tmp_path / "parts", tmp_path / "alone"
    for folder, steps in ((whole, 3), (parts, 2), (parts, 3)):
        ours = [*flags, "--batch_size", "2", "--max_steps", str(steps), "--save_dir", str(folder), "--resume"]
        ended = run_together(4, SCRIPT, *ours)
        assert [one.code for one in ended] == [0] * 4, ended
        if (folder, steps) == (parts, 2):
            # only the last process reads this file: all go on from the checkpoint before it
            (parts / "checkpoints" / "2" / "random_states_3.pkl").write_bytes(b"cut")
    assert "2.damaged" in ended[0].output and (parts / "checkpoints" / "2.damaged").is_dir()
    # DDP arranges gradients anew after the first backward pass of a process, and a sum of four depends on its order
    expected = policy_weights(whole / "policy")
    for name, weight in policy_weights(parts / "policy").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
    for row, other in zip(untimed(log_rows(whole)), untimed(log_rows(parts)), strict=True):
        assert {part: pytest.approx(values, abs=1e-5) for part, values in row.items()} == other
    # the first evaluation is of the same policy
    train_ppo([*flags, "--max_steps", "1", "--save_dir", str(alone)])
    assert untimed(log_rows(alone))[0]["dev"] == pytest.approx(untimed(log_rows(whole))[0]["dev"], abs=1e-6)
    forget_accelerate()
    resumed = [*flags, "--batch_size", "2", "--max_steps", "4", "--save_dir", str(whole), "--resume"]
    assert "4 processes" in refused(train_ppo, resumed, capfd)


# --- bad input -------------------------------------------------------------------------------------------------------


def refused(main, flags, capfd) -> str:
    """The one line that a refused call prints."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--train_file", "nowhere.json"], "nowhere.json does not exist"),
        (["--policy_ckpt", "./nowhere"], "no folder ./nowhere"),
        (["--holistic_model", "./nowhere"], "no folder ./nowhere"),
        (["--reward_model_dir", "./nowhere"], "nowhere"),
        (["--batch_size", "6", "--mini_batch_size", "4"], "multiple"),
        (["--batch_size", "16", "--mini_batch_size", "4"], "16"),
        (["--test_do_sample"], "--test"),
        (["--resume", "--test"], "--resume"),
    ],
)
def test_bad_flags_end_in_one_line(world, train_ppo, tmp_path, capfd, change, says):
    assert says in refused(train_ppo, [*world.flags, "--save_dir", str(tmp_path / "run"), *change], capfd)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no rows"),
        ("[]", "no rows"),
        ("[{]", "not JSON"),
        ('{"text": "question: a"}\n{"text": ', "line 2"),
        ('[{"question": "a"}]', "'text'"),
        ('["a"]', "row 1"),
    ],
)
def test_bad_data_ends_in_one_line(world, train_ppo, tmp_path, capfd, content, says):
    file = tmp_path / "train.json"
    file.write_text(content)
    flags = [*world.flags, "--save_dir", str(tmp_path / "run"), "--train_file", str(file)]
    line = refused(train_ppo, flags, capfd)
    assert says in line and str(file) in line


def test_a_folder_with_other_files_is_left_alone(world, train_ppo, tmp_path, capfd):
    (tmp_path / "thesis.tex").write_text("mine")
    assert "other files" in refused(train_ppo, [*world.flags, "--save_dir", str(tmp_path)], capfd)


def test_long_prompts_are_cut_counted_and_said(world, train_ppo, tmp_path, capfd):
    train_ppo([*world.flags, "--test", "--max_input_len", "20", "--save_dir", str(tmp_path / "out.json")])
    assert "10 of them cut to 20 tokens" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("model", "flag", "weight", "metric"),
    [
        ("holistic", "--holistic_model", "regression_head.weight", "holistic_reward"),
        ("reward_models/rel_rm", "--reward_model_dir", "classifier.weight", "relevance_rate"),
        ("reward_models/comp_rm", "--reward_model_dir", "classifier.out_proj.weight", "completeness_reward"),
    ],
)
def test_nan_rewards_stop_the_run_and_save_the_batch(world, train_ppo, tmp_path, capfd, model, flag, weight, metric):
    import shutil

    from safetensors.torch import save_file

    top = model.split("/")[0]
    shutil.copytree(world.folder / top, tmp_path / top)
    weights = load_file(tmp_path / model / "model.safetensors")
    weights[weight] = weights[weight] * float("nan")
    save_file(weights, tmp_path / model / "model.safetensors", metadata={"format": "pt"})
    run = tmp_path / "run"
    flags = [*world.flags, flag, str(tmp_path / top), "--reward_type", "weighted_sum"]
    training = [*flags, "--save_dir", str(run), "--max_steps", "9", "--eval_interval", "0"]
    assert "3 steps in a row" in refused(train_ppo, training, capfd)
    batch = json.loads((run / "bad_batch.json").read_text())
    assert len(batch) == 4 and all("nan" in row["token_rewards"] for row in batch)
    rows = [row["train"] for row in log_rows(run)]
    assert [row["skipped"] for row in rows] == [1, 1, 1]
    assert [row[metric] for row in rows] == [row["reward"] for row in rows] == [None] * 3

    train_ppo([*flags, "--test", "--test_do_sample", "--save_dir", str(tmp_path / "out.json")])
    published = {one.name: one.key for one in TASK.metrics}.get(metric, metric)
    answers = json.loads((tmp_path / "out.json").read_text())
    assert all(row[published] is None for row in answers if row["generation"].strip())
    assert "not finite" in capfd.readouterr().out


def test_checkpoint_with_missing_weights_is_named(world, train_ppo, tmp_path, capfd):
    import shutil

    from safetensors.torch import save_file

    policy = shutil.copytree(world.folder / "policy", tmp_path / "policy")
    weights = load_file(policy / "model.safetensors")
    lost = "decoder.block.1.layer.0.SelfAttention.q.weight"
    del weights[lost]
    save_file(weights, policy / "model.safetensors", metadata={"format": "pt"})
    line = refused(train_ppo, [*world.flags, "--policy_ckpt", str(policy), "--save_dir", str(tmp_path / "run")], capfd)
    assert lost in line


def test_launches_that_would_not_work_together_are_refused(world, tmp_path):
    flags = [*world.flags, "--save_dir", str(tmp_path / "run"), "--max_steps", "1"]
    no_gpu = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
    done = run_script(
        flags,
        env=no_gpu
        | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2 and "has 0 GPUs" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_script(flags, env=os.environ | {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"})
    assert done.returncode == 2 and "one process" in done.stderr


@pytest.mark.parametrize(
    "script",
    ["long-form-QA/train_ppo.py", "long-form-QA/train_sft.py", "long-form-QA/train_rm.py", "eval/eval_compare.py"],
)
def test_help_loads_nothing_heavy(script):
    code = (
        "import runpy, sys\nsys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'spacy', 'wandb', 'language_tool_python', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT / script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--save_dir" in done.stdout or "--generations_dir" in done.stdout
