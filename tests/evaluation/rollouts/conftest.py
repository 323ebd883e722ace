"""Rollouts of two small runs with everything that can go wrong in a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alarm.common.texts import prompt_id

ODD = {
    "script": "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><!-- ",
    "surrogate": "half \ud83d of a pair",
    "rtl": "مرحبا بالعالم שלום",
    "emoji": "a 😀 face",
    "empty": "",
}


def row(step: int, prompt: str, tokens: list[str], rewards: list | None, split: str = "train", **more) -> dict:
    paid = [value for value in rewards or [] if isinstance(value, float)]
    return {
        "step": step,
        "split": split,
        "prompt_id": prompt_id(prompt),
        "sample": 0,
        "prompt": prompt,
        "generation": "".join(tokens),
        "token_ids": [hash(token) % 1000 for token in tokens],
        "tokens": tokens,
        "token_rewards": rewards,
        "holistic_raw": 1.0 + more.get("holistic", 0.0),
        "holistic": 0.0,
        "aspects": {"brevity": 0.0},
        "paid": {"holistic": 0.0, "brevity": 0.0},
        "gate": True,
        "reward": sum(paid),
        "kl": 0.1,
        "length": len(tokens),
        **more,
    }


def write_run(folder: Path, rows: list[dict], log: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    if log:
        steps = sorted({one["step"] for one in rows})
        lines = [{"step": step, "train": {"reward": step / 10, "holistic_reward": -step / 10}} for step in steps]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def honest_rows() -> list[dict]:
    rows = []
    for step in (0, 4, 8):
        for number in range(4):
            text = ["answer", f" {step}", f" of {number}", ""]
            rows.append(
                row(step, f"dev prompt {number}", text, None, "dev", holistic=step / 8, aspects={"brevity": 1.0})
            )
        rewards = [0.0, 0.05, -0.5, 2.0]
        rows.append(row(step, f"train prompt {step}", ["one", " two", " three", ""], rewards, gate=step < 8))
    return rows


def hacked_rows() -> list[dict]:
    """At step 8 the aspect has risen, h has fallen, and texts repeat themselves."""
    rows = []
    for step in (0, 4, 8):
        for number in range(4):
            hacked = step == 8 and number < 3
            text = ["short"] * 12 if hacked else ["answer", f" {step}", f" of {number}"]
            values = {"holistic": -2.0, "aspects": {"brevity": 3.0}} if hacked else {}
            rows.append(row(step, f"dev prompt {number}", text, None, "dev", **values))
    rows += [row(8, f"odd {name}", [text], [1.0], gate=None) for name, text in ODD.items()]
    rows.append(row(8, "long", ["word "] * 10_000, [0.0] * 9_999 + [1.0]))
    rows.append(row(8, "not finite", ["nan"], [float("nan")], holistic=float("nan"), kl=float("inf")))
    return rows


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("rollouts")
    return write_run(folder / "honest", honest_rows()), write_run(folder / "hacked", hacked_rows(), log=False)
