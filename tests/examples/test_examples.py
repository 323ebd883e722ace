"""The files of docs/extending.md, as they stand."""

from __future__ import annotations

import json

import pytest
import torch

from alarm import train_ppo
from alarm.tasks.find import find_task
from helpers import CHECKPOINTS, FIXTURES, ROOT

EXAMPLES = ROOT / "examples"


def words_of(**flags) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def log_rows(run) -> list[dict]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row["train"] for row in rows if "train" in row]


def test_a_new_aspect_of_long_form_qa(tmp_path, fresh_accelerate):
    task = find_task(str(EXAMPLES / "coherence.py"))
    assert [aspect.name for aspect in task.aspects] == ["relevance", "factuality", "completeness", "coherence"]
    found = task.aspect("coherence").score(["q"], ["It is so. It is not. It is so."], [{}])
    assert found == [[(20, 30, -1.0)]]
    rows = json.loads((ROOT / "quickstart" / "data" / "qa" / "test.json").read_text())[:8]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([row | {"text": row["text"][:160]} for row in rows]))
    for name in ("rel_rm", "fact_rm", "comp_rm"):
        (tmp_path / name).symlink_to(CHECKPOINTS / f"tiny-{name}")
    run = tmp_path / "run"
    train_ppo.main(
        words_of(
            task=EXAMPLES / "coherence.py", policy_ckpt=FIXTURES / "golden" / "checkpoints" / "tiny-t5",
            train_file=data, dev_file=data, reward_model_dir=tmp_path, holistic_model=CHECKPOINTS / "tiny-ultrarm",
            splitter="sentencizer", dtype="float32", report_to="none", max_generated_len=12, batch_size=4,
            mini_batch_size=2, gradient_accumulation_steps=1, max_steps=1, eval_interval=1, save_dir=run,
            w_coherence=1, w_rel=0, w_fact=0, w_comp=0, reward_type="weighted_sum",
        )
    )  # fmt: skip
    (row,) = log_rows(run)
    assert "repeated_sentences" in row and "relevance_rate" not in row  # of weight 0: not computed to train


@pytest.mark.parametrize("flags", [{"reward_type": "normalised"}, {"advantage": "rloo"}, {"advantage": "grpo"}])
def test_another_combination_and_another_algorithm(tmp_path, fresh_accelerate, flags):
    run, data = tmp_path / "run", EXAMPLES / "data"
    train_ppo.main(
        words_of(
            task=EXAMPLES / "normalised.py", policy_ckpt=FIXTURES / "golden" / "checkpoints" / "tiny-t5",
            train_file=data / "train.json", dev_file=data / "dev.json", dtype="float32", report_to="none",
            batch_size=8, mini_batch_size=4, samples_per_prompt=4, max_steps=2, eval_interval=0, w_brevity=1,
            save_dir=run, **flags,
        )
    )  # fmt: skip
    rows = log_rows(run)
    assert len(rows) == 2 and all(row["skipped"] == 0 for row in rows)
    assert json.loads((run / "run.json").read_text()).items() >= flags.items()
    assert (run / "policy" / "v_head.safetensors").exists() == ("advantage" not in flags)


def test_normalised_rewards_by_hand():
    from alarm.rewards import RewardRecipe, pay

    task = find_task(str(EXAMPLES / "normalised.py"))
    recipe = RewardRecipe("normalised", 0.5, 2.0, {"a": 3.0}, combiner=task.all_combiners["normalised"])
    h = torch.tensor([1.0, 3.0, -10.0], dtype=torch.float64)
    aspects = {"a": [torch.tensor([0.0, 5.0]), torch.tensor([1.0, 0.0]), torch.tensor([9.0, 9.0])]}
    paid = pay(aspects, [2, 2, 2], h, torch.tensor([False, False, True]), recipe)
    # h is 1 and 3, the aspect 5 and 1: both are -1 and 1, or 1 and -1, after normalising
    assert [row.tolist() for row in paid.rewards] == [
        [0.0, pytest.approx(-2.0 + 3.0)],
        [0.0, pytest.approx(2.0 - 3.0)],
        [0.0, -20.0],  # without text: the penalty alone
    ]


def test_the_tables_of_the_combiners_page(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from five_answers import table

    page = (ROOT / "docs" / "combiners.md").read_text()
    assert table("sigmoid") in page and table("centred") in page


def test_the_combiners_page_names_every_choice():
    from alarm.combiners import COMBINERS
    from alarm.recipe import BASELINES, PLACEMENTS, SHAPINGS

    page = (ROOT / "docs" / "combiners.md").read_text()
    assert [name for name in (*COMBINERS, *SHAPINGS, *PLACEMENTS, *BASELINES) if f"`{name}`" not in page] == []
