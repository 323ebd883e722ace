"""Every file of configs/accelerate that does not shard, launched for real on CPU; two nodes, one of which dies.

A node is a network namespace: it has its own addresses, and reaches the other through a cable (a veth pair) alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import FIXTURES, ROOT
from processes import run_together

CONFIGS = ROOT / "configs" / "accelerate"
# those of DeepSpeed and FSDP have tests of their own
CONFIG_FILES = sorted(
    path.name
    for path in CONFIGS.glob("*.yaml")
    if yaml.safe_load(path.read_text())["distributed_type"] not in ("DEEPSPEED", "FSDP")
)
# file -> processes, and what the test machine needs otherwise than the file says
LAUNCHES = {
    "one_gpu.yaml": (1, ["--cpu"]),
    "multi_gpu.yaml": (2, ["--num_processes", "2", "--main_process_port", "0"]),
    "cpu.yaml": (2, ["--main_process_port", "0"]),
}
TWO_NODES = "two_nodes.yaml"
HUNG = 300  # seconds
STEPS = 6

DATA = ROOT / "examples" / "data"
FLAGS = [
    "--task", str(ROOT / "examples" / "headlines.py"), "--train_file", str(DATA / "train.json"),
    "--dev_file", str(DATA / "dev.json"), "--policy_ckpt", str(FIXTURES / "golden" / "checkpoints" / "tiny-t5"),
    "--dtype", "float32", "--report_to", "none", "--w_brevity", "1", "--w_shouting", "0.5", "--batch_size", "2",
    "--mini_batch_size", "2", "--gradient_accumulation_steps", "1", "--n_ppo_epoch_per_rollout", "2",
    "--max_generated_len", "8", "--eval_interval", "3", "--checkpoint_interval", "1", "--lr", "0.003",
]  # fmt: skip
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def launch_words(config: str, *words: str) -> list[str]:
    """`accelerate launch` of train_ppo with a file of configs/accelerate; words: more of the launcher's."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    return [*launcher, *words, "--module", "alarm.train_ppo", *FLAGS]


def log_of(run: Path) -> list[dict]:
    """The rows of a run's log, without the times."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    parts = [(row["step"], part, row[part]) for row in rows for part in ("train", "dev") if part in row]
    return [(step, part, {k: v for k, v in row.items() if not k.startswith("time/")}) for step, part, row in parts]


def assert_same_run(run: Path, reference: Path, steps: int) -> None:
    """The same log up to `steps`, and bit for bit the same checkpoint after them, which holds what trains."""
    rows = log_of(run)
    assert rows == log_of(reference)[: len(rows)] and rows[-1][0] == steps
    weights, expected = (
        load_file(one / "checkpoints" / str(steps) / "trainable.safetensors") for one in (run, reference)
    )
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> dict[int, Path]:
    """The same run in one process and in two on this machine, without a launcher."""
    runs = {}
    for count in (1, 2):
        runs[count] = tmp_path_factory.mktemp("reference") / str(count)
        keep = ["--keep_checkpoints", str(STEPS), "--max_steps", str(STEPS)]
        ended = run_together(count, "alarm.train_ppo", *FLAGS, *keep, "--save_dir", str(runs[count]))
        assert [one.code for one in ended] == [0] * count, ended
    return runs


def test_every_config_file_is_launched():
    assert sorted([*LAUNCHES, TWO_NODES]) == CONFIG_FILES


@pytest.mark.slow
@pytest.mark.parametrize("config", LAUNCHES)
def test_the_file_starts_what_it_says(config, references, tmp_path):
    count, words = LAUNCHES[config]
    flags = ["--save_dir", str(tmp_path / "run"), "--max_steps", "3"]
    done = subprocess.run(
        [*launch_words(config, *words), *flags], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=HUNG
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "run", references[count], 3)


@pytest.mark.slow
def test_a_file_for_gpus_where_there_are_none_is_refused(tmp_path):
    """By each process, before a model loads: two processes that know nothing of each other would start."""
    _, words = LAUNCHES["multi_gpu.yaml"]
    env = {k: v for k, v in ENVIRONMENT.items() if k != "ACCELERATE_USE_CPU"} | {"CUDA_VISIBLE_DEVICES": ""}
    command = [*launch_words("multi_gpu.yaml", *words), "--save_dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=HUNG)
    assert done.returncode not in (0, 2) and not (tmp_path / "run").exists()
    # the launcher may stop one process before it says so
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert lines and all("2 processes" in line and "0 GPUs" in line and "ACCELERATE_USE_CPU" in line for line in lines)


# --- two nodes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A network namespace with one end of the cable."""

    name: str
    end: str  # of the cable: a network interface
    address: str
    rank: int

    def start(self, words: list[str], output: Path, **variables: str) -> subprocess.Popen:
        with output.open("w") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words],
                env=ENVIRONMENT | {"GLOO_SOCKET_IFNAME": self.end} | variables,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def kill(self) -> None:
        """End all processes of this node, without a word."""
        for pid in ip("netns", "pids", self.name).split():
            subprocess.run(["kill", "-9", pid], check=False)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def nodes():
    """Two nodes that reach each other. Skips where namespaces cannot be made."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("two nodes are network namespaces, which need root and iproute2")
    mark = os.getpid()
    made = [Node(f"alarm{mark}-{rank}", f"al{mark}-{rank}", f"10.77.0.{rank + 1}", rank) for rank in (0, 1)]
    try:
        try:
            for node in made:
                ip("netns", "add", node.name)
            first, second = made
            ends = ["name", first.end, "netns", first.name, "type", "veth"]
            ip("link", "add", *ends, "peer", "name", second.end, "netns", second.name)
            for node in made:
                ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.end)
                ip("-n", node.name, "link", "set", "lo", "up")
                ip("-n", node.name, "link", "set", node.end, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield made
    finally:
        for node in made:
            if node.name in subprocess.run(["ip", "netns"], capture_output=True, text=True).stdout:
                node.kill()
                subprocess.run(["ip", "netns", "del", node.name], check=False)


def wait_for(file: Path, text: str, processes: list[subprocess.Popen]) -> None:
    """Wait until a file holds a text, HUNG seconds at most. Fails if a process ends before."""
    for _ in range(HUNG * 20):
        if file.exists() and text in file.read_text():
            return
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.05)
    pytest.fail(f"no {text!r} in {file}")


def error_lines(output: Path) -> list[str]:
    return [line for line in output.read_text().splitlines() if line.startswith("error")]


@pytest.mark.slow
def test_two_nodes_train_one_dies_and_the_run_goes_on(nodes, references, tmp_path):
    run, outputs = tmp_path / "run", [tmp_path / "0.txt", tmp_path / "1.txt"]

    def start(*more: str) -> list[subprocess.Popen]:
        flags = ["--save_dir", str(run), "--max_steps", str(STEPS), *more]
        place = ["--num_processes", "2", "--main_process_ip", nodes[0].address, "--machine_rank"]
        return [
            node.start([*launch_words(TWO_NODES, *place, str(node.rank)), *flags], output)
            for node, output in zip(nodes, outputs, strict=True)
        ]

    started = start()
    wait_for(run / "log.jsonl", '"step": 2, "train"', started)
    nodes[1].kill()
    assert started[0].wait(HUNG) not in (0, 2) and started[1].wait(HUNG) == -9
    assert not (run / "policy").exists()
    (line,) = error_lines(outputs[0])
    assert line.startswith("error: another process of this run has ended")
    assert "[rank0]" not in outputs[0].read_text() and error_lines(outputs[1]) == []

    assert [process.wait(HUNG) for process in start("--resume")] == [0, 0], outputs[0].read_text()[-3000:]
    assert_same_run(run, references[2], STEPS)
    assert log_of(run) == log_of(references[2])
    for file in ("adapter_model.safetensors", "v_head.safetensors"):
        weights, expected = (load_file(one / "policy" / file) for one in (run, references[2]))
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


# a thread of torch that still waits for the other node can abort a process that ends, after its error line
ENDED = (1, -signal.SIGABRT)

EXCHANGE = """
from alarm.common.errors import report_user_errors

@report_user_errors
def main():
    import time
    from accelerate.utils import gather_object
    from alarm.common.launch import process_state

    state = process_state()
    for number in range(3000):
        assert gather_object([number]) == [number] * 2
        print("exchanged", number, flush=True)
        time.sleep(0.1)

main()
"""


def start_exchange(nodes: list[Node], folder: Path, **variables: str) -> tuple[list[subprocess.Popen], list[Path]]:
    """One process on each node, without a launcher; they exchange numbers, and wait for each other at most 3 s."""
    (folder / "exchange.py").write_text(EXCHANGE)
    outputs = [folder / "0.txt", folder / "1.txt"]
    launch = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "ALARM_PROCESS_TIMEOUT": "3"}
    launch |= {"MASTER_ADDR": nodes[0].address, "MASTER_PORT": "29500"}
    launch["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "trl")))
    words = [sys.executable, str(folder / "exchange.py")]
    started = [
        node.start(words, output, **launch | variables, RANK=str(node.rank))
        for node, output in zip(nodes, outputs, strict=True)
    ]
    return started, outputs


@pytest.mark.slow
def test_the_node_where_all_meet_dies(nodes, tmp_path):
    started, outputs = start_exchange(nodes, tmp_path)
    wait_for(outputs[0], "exchanged 3", started)
    nodes[0].kill()
    assert started[1].wait(HUNG) in ENDED
    (line,) = error_lines(outputs[1])
    assert line.startswith("error (rank 1): another process of this run has ended")
    assert "Traceback" not in outputs[1].read_text()


@pytest.mark.slow
def test_the_cable_is_cut(nodes, tmp_path):
    """No word comes from the other node, not even that it is gone."""
    started, outputs = start_exchange(nodes, tmp_path)
    wait_for(outputs[0], "exchanged 3", started)
    ip("-n", nodes[1].name, "link", "set", nodes[1].end, "down")
    assert all(process.wait(HUNG) in ENDED for process in started)
    for output in outputs:
        (line,) = error_lines(output)
        assert "has not answered for 3 s" in line and "ALARM_PROCESS_TIMEOUT" in line
        assert "Traceback" not in output.read_text()


@pytest.mark.slow
def test_the_wrong_network_is_named(nodes, tmp_path):
    started, outputs = start_exchange(nodes, tmp_path, GLOO_SOCKET_IFNAME="lo")
    assert [process.wait(HUNG) for process in started] == [2, 2]
    for output in outputs:
        (line,) = error_lines(output)
        assert "GLOO_SOCKET_IFNAME" in line and f"{nodes[0].address}:29500" in line
        assert "Traceback" not in output.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("comes", "start"), [(0, "error: "), (1, "error (rank 1): ")])
def test_a_node_that_never_comes_is_named(comes, start, tmp_path):
    words = [*FLAGS, "--max_steps", "1", "--save_dir", str(tmp_path / "run")]
    (ended,) = run_together(2, "alarm.train_ppo", *words, ranks=[comes], ALARM_PROCESS_TIMEOUT="2")
    assert ended.code == 2
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error")]
    assert line.startswith(start) and "127.0.0.1:" in line and "within 2 s" in line
    assert "Traceback" not in ended.output and not (tmp_path / "run").exists()


# a relative --save_dir in another folder for each process, as on two machines that share no file system
APART = """
import os, sys

os.chdir(f"{sys.argv.pop(1)}/{os.environ['RANK']}")
from alarm.train_ppo import main

main()
"""


@pytest.mark.slow
def test_a_run_without_a_shared_folder_is_refused(tmp_path):
    """It would train to the end and could not be resumed."""
    (tmp_path / "apart.py").write_text(APART)
    for rank in "01":
        (tmp_path / rank).mkdir()
    words = [str(tmp_path), *FLAGS, "--max_steps", "1", "--save_dir", "run"]
    ended = run_together(2, tmp_path / "apart.py", *words)
    assert [one.code for one in ended] == [2, 2]
    for one in ended:
        (line,) = [line for line in one.output.splitlines() if line.startswith("error")]
        assert "rank 1" in line and "share" in line
    assert not (tmp_path / "1" / "run").exists() and list((tmp_path / "0" / "run").iterdir()) == []
