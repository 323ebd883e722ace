"""The sidecar of a generations file: what it is of, and what it leaves out."""

from __future__ import annotations

import json

from alarm import Task
from alarm.common.identity import hash_file
from alarm.evaluation import provenance as reader
from alarm.tasks.qa.spec import TASK as QA
from alarm.training.main import parse_args
from alarm.training.provenance import PACKAGES, generations_meta, sidecar, versions
from helpers import CHECKPOINTS


def test_a_sidecar_says_what_the_file_depends_on(tmp_path):
    out, prompts = tmp_path / "a.b.json", tmp_path / "prompts.json"
    out.write_text("[]")
    prompts.write_text("[1]")
    args = parse_args(QA, "", ["--test", "--save_dir", str(out), "--w_fact", "2", "--seed", "7"])
    models = {"policy": CHECKPOINTS / "tiny-t5", "holistic": CHECKPOINTS / "tiny-ultrarm"}
    meta = generations_meta(QA, args, models, str(prompts), {"do_sample": True})
    assert json.loads(json.dumps(meta)) == meta
    assert (meta["task"], meta["seed"], meta["generations"]) == ("qa", 7, hash_file(out))
    assert meta["models"]["policy"]["files"]["model.safetensors"]
    assert meta["data"].keys() == {"prompts"} and meta["data"]["prompts"]["files"]["prompts.json"]
    settings = meta["settings"]
    assert (settings["w_fact"], settings["ultra_mean"], settings["holistic_max_tokens"]) == (2.0, args.ultra_mean, 1230)
    assert settings["sampling"] == {"do_sample": True} and "save_dir" not in settings
    assert meta["versions"] == versions() and meta["versions"].keys() == set(PACKAGES)
    # what is written is what a comparison reads
    assert sidecar(out) == reader.sidecar_of(out)
    sidecar(out).write_text(json.dumps(meta))
    assert reader.read_sidecar(out) == meta


def test_a_data_set_by_its_name_has_no_hash(tmp_path):
    out = tmp_path / "a.json"
    out.write_text("[]")
    task = Task("toy", prompt=str, aspects=[], source=str(tmp_path / "toy.py"))
    (tmp_path / "toy.py").write_text("TASK = None")
    args = parse_args(task, "", ["--test", "--save_dir", str(out)])
    meta = generations_meta(task, args, {}, "somebody/data", {})
    assert meta["data"].keys() == {"task"} and meta["models"] == {}
