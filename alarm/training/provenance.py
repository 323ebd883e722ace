"""Where numbers come from: the sidecar of a generations file, and the versions of the packages."""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path

from ..api import Task
from ..common.identity import file_identity, hash_file, model_identity

KIND, VERSION = "alarm generations", 1
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "spacy",
    "textstat",
    "lingua-language-detector",
)
# flags that say where something is written or how it is shown
NO_SETTINGS = ("save_dir", "run_name", "overwrite", "report_to", "test", "resume", "resume_anyway")


def versions() -> dict[str, str]:
    """Package -> its version, of those whose version can change a number."""
    return {name: metadata.version(name) for name in PACKAGES}


def sidecar(generations: str | Path) -> Path:
    """The file beside a generations file that says where it comes from: NAME.meta.json beside NAME.json."""
    return Path(generations).with_suffix(".meta.json")


def generations_meta(
    task: Task, args: argparse.Namespace, models: dict[str, str | Path], prompts: str, sampling: dict
) -> dict:
    """What a generations file at args.save_dir depends on, as JSON. Hashes that file, the models and the data.

    models: role -> folder or hub name, the policy among them. prompts: the file they come from, or a data set's name.
    sampling: the generation settings.
    """
    settings = {name: value for name, value in vars(args).items() if name not in NO_SETTINGS}
    data = {"prompts": prompts, "calibration": args.calibration, "task": task.source or None}
    return {
        "kind": KIND,
        "version": VERSION,
        "task": task.name,
        "generations": hash_file(args.save_dir),
        "models": {role: model_identity(name) for role, name in models.items()},
        "data": {role: file_identity(path) for role, path in data.items() if path and Path(path).is_file()},
        "settings": settings | {"sampling": sampling, "holistic_max_tokens": task.holistic_max_tokens},
        "seed": args.seed,
        "versions": versions(),
    }
