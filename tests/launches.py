"""Launches of several processes by the files of configs/accelerate, on CPU."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers import ROOT

CONFIGS = ROOT / "configs" / "accelerate"
DEEPSPEED = ROOT / "build" / "deepspeed"
LAUNCHES = {"ddp": "multi_gpu", "ZeRO-2": "deepspeed_zero2", "ZeRO-3": "deepspeed_zero3", "FSDP2": "fsdp2"}


def launch(
    kind: str, folder: Path, script: Path, *arguments: str, persist: int | None = None
) -> subprocess.CompletedProcess:
    """`accelerate launch` with the repository's file of this kind, in two processes on CPU.

    persist: ZeRO-3 leaves weights of so few numbers whole. Its default is more than those of a tiny model.
    """
    if kind.startswith("ZeRO") and not (DEEPSPEED / "deepspeed").is_dir():
        pytest.skip("build/deepspeed is not here; `make test` installs it")
    settings = yaml.safe_load((CONFIGS / f"{LAUNCHES[kind]}.yaml").read_text()) | {"num_processes": 2}
    if persist is not None:
        parts = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": persist}}
        parts |= dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), "auto")
        (folder / "deepspeed.json").write_text(json.dumps(parts))
        file = {"deepspeed_config_file": str(folder / "deepspeed.json"), "zero3_init_flag": False}
        settings["deepspeed_config"] = file
        del settings["mixed_precision"]  # accelerate wants it in the other file then
    changed = folder / f"{LAUNCHES[kind]}.yaml"
    changed.write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT / 'trl'}:{ROOT}",
    }  # fmt: skip
    # accelerate's launch of several GPUs does not hand use_cpu of its file on
    environment["ACCELERATE_USE_CPU"] = str(not kind.startswith("ZeRO")).lower()
    if kind.startswith("ZeRO"):
        del environment["ACCELERATE_USE_CPU"]
        environment["PYTHONPATH"] += f":{DEEPSPEED}"
        environment["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(changed)]
    command += ["--main_process_port", str(port), str(script), *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=800)
