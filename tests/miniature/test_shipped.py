"""The shipped world is what `miniature.build` makes: the same commands, and models that are as good as recorded."""

from __future__ import annotations

import numpy as np
import pytest

from alarm.common.files import read_json, read_rows
from helpers import ROOT
from miniature import build
from miniature.agreement import within
from miniature.mt import data
from miniature.settings import WORLDS

SHIPPED = [world for world in WORLDS.values() if world.shipped.exists()]


@pytest.mark.parametrize("world", SHIPPED, ids=lambda world: world.name)
def test_the_shipped_world_was_made_by_the_commands_of_today(world, tmp_path):
    built = read_json(world.shipped / "built.json")
    made = build.Build(world, build.parse_args(["--world", world.name, "--save_dir", str(tmp_path)]))
    {"mt": build.mt_stages, "qa": build.qa_stages}[world.name](made)
    assert (built["world"], built["seed"], built["scale"]) == (world.name, 0, 1)
    recorded = [stage["words"] for stage in built["stages"]]
    recorded = [[word.replace(build.PLACE, str(tmp_path)) for word in words] for words in recorded]
    for stage in made.stages:
        assert stage.words() in recorded, stage.name


def test_the_shipped_models_are_as_good_as_recorded(tmp_path, capsys, fresh_accelerate):
    """Answers of the shipped start, anew: their quality and what the preference model orders rightly."""
    from alarm import train_ppo

    world = WORLDS["mt"]
    sizes = ["--sft", "1", "--sft_dev", "1", "--train", "1", "--test", "1", "--dev", "150"]
    data.main(["--save_dir", str(tmp_path / "data"), "--seed", "0", *sizes])
    samples = tmp_path / "samples.json"
    train_ppo.main([
        "--task", str(ROOT / world.task), "--policy_ckpt", str(world.shipped / "start"), "--dtype", "float32",
        "--holistic_model", str(world.shipped / "holistic"), "--grammar_backend", "rules", "--test", "--test_do_sample",
        "--num_samples", "4", "--test_file", str(tmp_path / "data/dev.jsonl"), "--batch_size", "200",
        "--rm_max_batch_size", "64", "--save_dir", str(samples), "--seed", "5",
    ])  # fmt: skip
    rows = read_rows(samples)
    truth, raw = (np.array([row[name] for row in rows]).reshape(-1, 4) for name in ("oracle", "raw_holistic"))
    agreement = read_json(world.shipped / "agreement.json")
    right, pairs = within(raw, truth)
    # 150 prompts: standard errors of about .02
    assert truth.mean() == pytest.approx(agreement["true_quality"], abs=0.07)
    assert right.sum() / pairs.sum() == pytest.approx(agreement["rewards"]["holistic"]["within"], abs=0.07)


@pytest.mark.parametrize("world", SHIPPED, ids=lambda world: world.name)
def test_nothing_shipped_names_a_folder_of_a_machine(world):
    for file in world.shipped.rglob("*.json"):
        assert "/tmp/" not in file.read_text() and "/home/" not in file.read_text(), file
