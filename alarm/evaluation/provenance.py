"""Were the runs of a comparison scored alike? What the sidecars of their generations files say. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..api import Task
from ..common.errors import UserError
from ..common.files import read_json
from ..common.identity import difference, hash_file

KIND = "alarm generations"
SIDECAR = ".meta.json"
PARTIAL = "partial"  # set: the sidecar tells of scores that were added later alone
# settings of every task on which scores depend
SCORING = ("ultra_mean", "ultra_std", "holistic_level", "holistic_baseline", "dtype", "holistic_max_tokens")
SCORING += ("holistic_8bit",)
# of files that were written before the setting existed
BEFORE = {"holistic_level": 0.0, "holistic_baseline": "none", "holistic_8bit": False}


def sidecar_of(generations: Path) -> Path:
    """NAME.meta.json beside NAME.json, as train_ppo.py --test writes it."""
    return generations.with_name(generations.name.removesuffix(".json") + SIDECAR)


def read_sidecar(generations: Path) -> dict | None:
    """What a generations file depends on; None if it has no sidecar.

    Raises UserError for a sidecar that is none, and for one of another generations file.
    """
    path = sidecar_of(generations)
    if not path.is_file():
        return None
    content = read_json(path)
    parts = ("models", "settings") if isinstance(content, dict) and content.get("kind") == KIND else ()
    if not parts or not all(isinstance(content.get(part), dict) for part in parts):
        raise UserError(f"{path} is no sidecar of generations; remove it, or write both again with train_ppo.py --test")
    if content.get("generations") != hash_file(generations):
        raise UserError(f"{path} is of other generations than {generations.name}; remove it, or write both again")
    return content


def scoring_differences(task: Task, runs: Mapping[str, dict | None]) -> list[str]:
    """A line for each thing in which the runs were scored differently. runs: name -> sidecar, or None without one.

    Reward models are compared by their files, the policy is not: it is what a comparison is about.
    """
    known = {name: meta for name, meta in runs.items() if meta is not None}
    lines = []
    if known and len(known) < len(runs):
        without = ", ".join(name for name in runs if name not in known)
        lines.append(f"note: {without} has no .meta.json, so how it was scored is not compared")
    if len(known) < 2:
        return lines
    (first, meta), *others = known.items()
    if later := [name for name, one in known.items() if one.get(PARTIAL)]:
        lines.append(f"note: the .meta.json of {', '.join(later)} tells of scores that were added later alone")
    own = [flag for flag in task.flags if flag.used_by == "score"]
    own += [flag for aspect in task.aspects for flag in aspect.flags]
    scored_by = [*SCORING, *(flag.name for flag in own)]
    for name, other in others:
        partial = meta.get(PARTIAL) or other.get(PARTIAL)
        for role in sorted((meta["models"].keys() | other["models"].keys()) - {"policy"}):
            one, two = meta["models"].get(role), other["models"].get(role)
            if partial and not (one and two):
                continue
            found = difference(one, two) if one and two else f"only {first if one else name} has one"
            if found:
                lines.append(f"warning: {first} and {name} were scored by different {role} models ({found})")
        for setting in scored_by:
            one, two = (run["settings"].get(setting, BEFORE.get(setting)) for run in (meta, other))
            if partial and setting not in meta["settings"].keys() & other["settings"].keys():
                continue
            # a path is no content: the models behind it are compared above
            if one != two and setting != "reward_model_dir":
                lines.append(f"warning: {first} was scored with {setting} {one}, {name} with {two}")
    return lines
