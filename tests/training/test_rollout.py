from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from alarm import Task
from alarm.training.rollout import deal_batches, encode_prompts, resample_empty, sample_rollout
from helpers import FIXTURES

PAD, EOS = 0, 1
TASK = Task("toy", prompt=lambda row: row["text"], aspects=[])


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FIXTURES / "golden" / "checkpoints" / "tiny-t5")


def answers(tokenizer, texts: list[str]) -> list[torch.Tensor]:
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]


def test_prompts_over_the_limit_lose_their_tail_and_are_counted(tokenizer):
    rows = [{"text": "a cat"}, {"text": "a cat and a dog and a bird"}]
    prompts, cut = encode_prompts(tokenizer, rows, TASK, max_tokens=8)
    whole = tokenizer("a cat and a dog and a bird")["input_ids"]
    assert len(whole) > 8 and cut == 1
    assert prompts[0].ids.tolist() == tokenizer("a cat")["input_ids"]
    assert prompts[1].ids.tolist() == [*whole[:7], EOS]
    assert prompts[1].text == "a cat and a dog and a bird"
    assert [prompt.row for prompt in prompts] == rows


def test_empty_answers_get_one_more_try_and_are_then_marked(tokenizer):
    prompts, _ = encode_prompts(tokenizer, [{"text": text} for text in "abcd"], TASK, max_tokens=8)
    good = answers(tokenizer, ["first", "again"])
    tries = iter([[good[0], torch.tensor([EOS]), torch.tensor([PAD, EOS]), good[0]], [good[1], torch.tensor([EOS])]])
    asked = []

    def generate(queries):
        asked.append([query.tolist() for query in queries])
        return next(tries)

    rollout = sample_rollout(generate, tokenizer, prompts)
    assert rollout.too_short.tolist() == [False, True, True, False]
    again = resample_empty(rollout, generate, tokenizer)
    # only the empty ones were asked again, once, together
    assert asked[1] == [prompts[1].ids.tolist(), prompts[2].ids.tolist()] and len(asked) == 2
    assert again.responses == ["first", "again", "", "first"]
    assert again.too_short.tolist() == [False, False, True, False]
    assert again.response_ids[1].tolist() == good[1].tolist() and again.response_ids[2].tolist() == [EOS]
    assert rollout.responses[1] == "", "the first rollout was edited in place"


def test_nothing_is_sampled_again_where_nothing_is_empty(tokenizer):
    prompts, _ = encode_prompts(tokenizer, [{"text": "a"}], TASK, max_tokens=8)
    rollout = sample_rollout(lambda queries: answers(tokenizer, ["yes"]), tokenizer, prompts)
    assert resample_empty(rollout, lambda queries: pytest.fail("sampled again"), tokenizer) is rollout


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_prompt_is_dealt_once_and_batches_do_not_depend_on_the_number_of_processes(tokenizer, processes):
    prompts, _ = encode_prompts(tokenizer, [{"text": "a " * n} for n in (3, 1, 9, 9, 2, 5, 4)], TASK, max_tokens=100)
    dealt = [batch for process in range(processes) for batch in deal_batches(prompts, 2, process, processes)]
    assert sorted(dealt) == [(0, [2, 3]), (1, [5, 6]), (2, [0, 4]), (3, [1])]
