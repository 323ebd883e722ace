"""Does a device compute what the CPU computes? Small models with the same weights on both, and one number a comparison.

The reference is float32 on the CPU. All weights are numbers that bfloat16 holds, so that a model of bfloat16 has the
same ones. `python benchmarks/agreement.py FOLDER FILE` writes the reference of the PPO step to FILE, in a process of
its own, because accelerate has one device a process.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

HIDDEN, LAYERS, HEADS, WORDS = 64, 2, 4, 60
POSITIONS = 1200
POLICIES = {"t5": "T5", "llama": "Llama"}
NEW_TOKENS = 24
DRAWS = 1024

# What a comparison may differ by. float32: more than fifty times what float32 and float64 differ by on a CPU.
# bfloat16: three to ten times what it and float32 differ by there. docs/gpu_check.md has these numbers
TOLERANCES = {
    "T5 log-probs": {"float32": 2e-4, "bfloat16": 0.2},
    "T5 values": {"float32": 2e-4, "bfloat16": 0.1},
    "T5 greedy tokens": {"float32": 2e-4, "bfloat16": 0.1},
    "T5 sampled tokens": {"float32": 4.0, "bfloat16": 4.0},
    "Llama log-probs": {"float32": 2e-4, "bfloat16": 0.2},
    "Llama values": {"float32": 2e-4, "bfloat16": 0.2},
    "Llama greedy tokens": {"float32": 2e-4, "bfloat16": 0.1},
    "Llama sampled tokens": {"float32": 4.0, "bfloat16": 4.0},
    "holistic scores": {"float32": 1e-4, "bfloat16": 0.05},
    "Longformer units": {"float32": 1e-4, "bfloat16": 0.05},
    "Longformer texts": {"float32": 1e-4, "bfloat16": 0.02},
    "PPO statistics": {"float32": 1e-4, "bfloat16": 0.01},
    "PPO weights": {"float32": 1e-3, "bfloat16": 0.5},  # a step in an unrelated direction differs by 1.4
}


@dataclass(frozen=True)
class Line:
    """One comparison."""

    what: str
    dtype: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # NaN is not

    def __str__(self) -> str:
        verdict = ("ok" if self.ok else "FAILED") + (f": {self.note}" if self.note else "")
        return f"{self.what:<36}{self.dtype:<10}{self.difference:>12.3g}{self.tolerance:>12.3g}  {verdict}"


def line(what: str, dtype: str, difference: float) -> Line:
    return Line(what, dtype, difference, TOLERANCES[what][dtype])


def failed(what: str, dtype: str, error: Exception) -> Line:
    """A comparison that could not be made."""
    return Line(what, dtype, math.nan, math.nan, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


# --- the models ------------------------------------------------------------------------------------------------------


def words() -> list[str]:
    return [".", *(f"w{number}" for number in range(WORDS))]


def texts(count: int, longest: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    lengths = [rng.randint(longest // 4, longest) for _ in range(count - 1)] + [longest]
    return [" ".join(rng.choices(words(), k=length)) for length in lengths]


def write_models(folder: Path) -> None:
    """Write a T5 and a Llama with value heads, a fresh adapter on the T5, a preference model and two Longformers."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LongformerConfig,
        LongformerForSequenceClassification,
        LongformerForTokenClassification,
        T5Config,
        T5ForConditionalGeneration,
    )

    from alarm.models.classifiers import LABELS
    from alarm.models.holistic import LlamaRewardModel
    from miniature.models import policy_tokenizer, reader_tokenizer
    from trl import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

    torch.manual_seed(0)
    tokenizer, reader = policy_tokenizer(words()), reader_tokenizer(words(), POSITIONS, both_ends=True)
    shape = {
        "vocab_size": len(reader), "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "initializer_range": HIDDEN**-0.5,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    t5 = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer), d_model=HIDDEN, d_kv=HIDDEN // HEADS, num_heads=HEADS, d_ff=2 * HIDDEN,
            num_layers=LAYERS, num_decoder_layers=LAYERS, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            initializer_factor=1.0,
        )
    )  # fmt: skip
    llama = LlamaForCausalLM(LlamaConfig(max_position_embeddings=POSITIONS, **shape))
    holistic = LlamaRewardModel(LlamaConfig(max_position_embeddings=POSITIONS, **shape))
    holistic.config.architectures = ["LlamaRewardModel"]
    long = shape | {"attention_window": 64, "max_position_embeddings": POSITIONS + 2}
    units = LongformerForTokenClassification(LongformerConfig(id2label=dict(enumerate(LABELS)), **long))
    whole = LongformerForSequenceClassification(LongformerConfig(num_labels=1, **long))
    for model in (t5, llama, holistic, units, whole):
        for weight in model.parameters():
            weight.data = weight.data.bfloat16().float()
    head = {"v_head_init_strategy": "normal", "v_head_initializer_range": 0.2}
    AutoModelForSeq2SeqLMWithValueHead(t5, **head).save_pretrained(folder / "t5")
    AutoModelForCausalLMWithValueHead(llama, **head).save_pretrained(folder / "llama")
    for place, model in (("holistic", holistic), ("units", units), ("texts", whole)):
        model.save_pretrained(folder / place)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, bias="none", task_type=TaskType.SEQ_2_SEQ_LM)
    base = T5ForConditionalGeneration.from_pretrained(folder / "t5")
    AutoModelForSeq2SeqLMWithValueHead(get_peft_model(base, lora), **head).save_pretrained(folder / "t5_lora")
    for place in ("t5", "t5_lora"):
        tokenizer.save_pretrained(folder / place)
    for place in ("llama", "holistic", "units", "texts"):
        reader.save_pretrained(folder / place)


def load_small_policy(folder: Path, kind: str, device: str, dtype: str):
    """The policy and its tokenizer."""
    from transformers import AutoTokenizer

    from alarm.training.policy import load_policy

    tokenizer = AutoTokenizer.from_pretrained(folder / kind)
    return load_policy(str(folder / kind), tokenizer, dtype, value_head=True).to(device), tokenizer


def prompts(tokenizer: Any, count: int = 6, longest: int = 40) -> list[Tensor]:
    """Ids (Q_i,) of prompts of different lengths."""
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in texts(count, longest, seed=1)]


# --- comparisons -----------------------------------------------------------------------------------------------------


def largest_difference(reference: Iterable[Tensor], found: Iterable[Tensor]) -> float:
    """Over all elements; infinite if shapes differ, NaN if one is not finite."""
    largest = 0.0
    for one, other in zip(reference, found, strict=True):
        if one.shape != other.shape:
            return math.inf
        if one.numel():
            difference = (one.double().cpu() - other.double().cpu()).abs().max().item()
            largest = difference if math.isnan(difference) else max(largest, difference)
        if math.isnan(largest):
            break
    return largest


@torch.no_grad()
def scored(policy: Any, queries: Sequence[Tensor], responses: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """All log-probabilities (T_i, V) and values (T_i,) of each response, float32 on the CPU."""
    device = next(policy.parameters()).device

    def padded(rows: Sequence[Tensor], side: str) -> tuple[Tensor, Tensor]:
        how = {"padding_side": side, "batch_first": True}
        ids = pad_sequence(list(rows), **how)
        return ids.to(device), pad_sequence([torch.ones_like(row) for row in rows], **how).to(device)

    inputs = policy.response_inputs(*padded(queries, policy.query_padding), *padded(responses, "right"))
    logits, _, values = policy(**inputs)
    logprobs = logits.float().log_softmax(-1).cpu()
    return [
        (row[: len(ids)], value[: len(ids)]) for row, value, ids in zip(logprobs, values.cpu(), responses, strict=True)
    ]


def regret(policy: Any, queries: Sequence[Tensor], answers: Sequence[Tensor], limit: int, ends: Sequence[int]) -> float:
    """By how many nats a token of the answers is less likely than the likeliest, at most; 0: all are greedy.

    Infinite if an answer stops before its end token and before the limit.
    """
    if any(len(answer) < limit and int(answer[-1]) not in ends for answer in answers):
        return math.inf
    return max(
        (logprobs.max(-1).values - logprobs.gather(-1, answer[:, None]).squeeze(-1)).max().item()
        for (logprobs, _), answer in zip(scored(policy, queries, answers), answers, strict=True)
    )


def improbability(counts: Tensor, probabilities: Tensor) -> float:
    """-log10 of the probability that draws from `probabilities` (V,) differ as much as `counts` (V,): a chi-square.

    Tokens that are expected fewer than five times are one.
    """
    expected = probabilities.double() * counts.sum()
    rare = expected < 5
    together = [torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts.double(), expected)]
    seen, wanted = (x[together[1] > 0] for x in together)
    if counts[probabilities == 0].any():
        return math.inf
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    chance = torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64), statistic / 2)
    return -math.log10(max(chance.item(), 1e-300))


def policy_lines(reference: Path, folder: Path, kind: str, device: str, dtype: str) -> Iterator[Line]:
    """Log-probs, values, greedy and sampled tokens of a policy on the device against that in `reference` on the CPU."""
    from alarm.training.generate import generator
    from trl.generation import GREEDY, SAMPLING, special_tokens

    name = POLICIES[kind]
    on_cpu, tokenizer = load_small_policy(reference, kind, "cpu", "float32")
    policy, _ = load_small_policy(folder, kind, device, dtype)
    queries = prompts(tokenizer)
    rng = random.Random(2)
    answers = [torch.tensor(rng.choices(range(4, WORDS), k=length)) for length in (3, 9, 24, 17, 1, 12)]
    wanted, found = scored(on_cpu, queries, answers), scored(policy, queries, answers)
    yield line(f"{name} log-probs", dtype, largest_difference([p for p, _ in wanted], [p for p, _ in found]))
    yield line(f"{name} values", dtype, largest_difference([v for _, v in wanted], [v for _, v in found]))
    ends = special_tokens(on_cpu.base_model, tokenizer).ends
    greedy = [ids.cpu() for ids in generator(policy, tokenizer, **GREEDY, max_new_tokens=NEW_TOKENS)(queries)]
    yield line(f"{name} greedy tokens", dtype, regret(on_cpu, queries, greedy, NEW_TOKENS, ends))
    # of the probabilities that this device and type compute: those are what PPO takes the draws to come from
    torch.manual_seed(3)
    query = min(queries, key=len)
    drawn = generator(policy, tokenizer, **SAMPLING, max_new_tokens=1)([query] * DRAWS)
    exact = scored(policy, [query], [torch.tensor([4])])[0][0][0].double().exp()
    counts = torch.bincount(torch.cat(drawn).cpu(), minlength=len(exact))
    yield line(f"{name} sampled tokens", dtype, improbability(counts, exact / exact.sum()))


def cache_line(reference: Path, folder: Path, kind: str, device: str, dtype: str, cache: str) -> Line:
    """Greedy tokens of the policy with another cache."""
    from alarm.training.generate import generator
    from trl.config import CACHES
    from trl.generation import GREEDY, special_tokens

    on_cpu, tokenizer = load_small_policy(reference, kind, "cpu", "float32")
    policy, _ = load_small_policy(folder, kind, device, dtype)
    queries = prompts(tokenizer)
    settings = GREEDY | CACHES[cache] | {"max_new_tokens": NEW_TOKENS}
    greedy = [ids.cpu() for ids in generator(policy, tokenizer, **settings)(queries)]
    ends = special_tokens(on_cpu.base_model, tokenizer).ends
    what = f"{POLICIES[kind]} greedy tokens"
    return replace(line(what, dtype, regret(on_cpu, queries, greedy, NEW_TOKENS, ends)), what=f"{what}, {cache} cache")


def reward_lines(reference: Path, folder: Path, device: str, dtype: str) -> Iterator[Line]:
    """Scores of the preference model and of the Longformers."""
    from alarm.models.classifiers import TextScorer, UnitClassifier
    from alarm.models.holistic import HolisticModel

    asked, answered, contexts = texts(6, 60, seed=4), texts(6, 30, seed=5), texts(3, 700, seed=6)
    units = [texts(count, 12, seed=count) for count in (2, 5, 9)]
    numbers = []
    for place, where, kind in ((reference, "cpu", "float32"), (folder, device, dtype)):
        holistic = HolisticModel.load(place / "holistic", where, getattr(torch, kind))
        unit = UnitClassifier(place / "units", "the unit classifier", where, getattr(torch, kind), 8)
        whole = TextScorer(place / "texts", "the text scorer", where, getattr(torch, kind), 8)
        numbers.append(
            {
                "holistic scores": [holistic.score(asked, answered, POSITIONS, 8)],
                "Longformer units": unit(contexts, units),
                "Longformer texts": [torch.tensor(whole(contexts))],
            }
        )
    for what, wanted in numbers[0].items():
        yield line(what, dtype, largest_difference(wanted, numbers[1][what]))


# --- the PPO step ----------------------------------------------------------------------------------------------------


def ppo_step(folder: Path, dtype: str) -> dict:
    """One step from the adapter in `folder` on this process's device -> {"statistics", "start", "weights"}."""
    from transformers import AutoTokenizer

    from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "t5_lora")
    policy = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(str(folder / "t5_lora"), dtype=getattr(torch, dtype))
    config = PPOConfig(
        learning_rate=1e-3,
        batch_size=8,
        mini_batch_size=2,
        gradient_accumulation_steps=2,
        ppo_epochs=3,
        log_with="none",
    )
    ppo = PPOTrainer(config, policy, tokenizer=tokenizer, dataset=[0] * 8)
    trained = {name: weight for name, weight in ppo.policy.named_parameters() if weight.requires_grad}
    start = {name: weight.detach().cpu().clone() for name, weight in trained.items()}
    queries = prompts(tokenizer, 8)
    rng = random.Random(7)
    responses = [torch.tensor(rng.choices(range(4, WORDS), k=rng.randint(2, 20))) for _ in queries]
    scores = [torch.tensor([rng.gauss(0, 1) for _ in ids]) for ids in responses]
    found = ppo.step(queries, responses, scores)
    statistics = {name: value for name, value in found.items() if isinstance(value, float) and "time/" not in name}
    weights = {name: weight.detach().cpu() for name, weight in trained.items()}
    return {"statistics": statistics, "start": start, "weights": weights}


def ppo_lines(reference: dict, found: dict, dtype: str) -> Iterator[Line]:
    """Two results of `ppo_step`.

    Statistics: the largest |a - b| / (1 + |a|). Weights: 2-norm of their difference over that of what the step moved.
    """
    wanted, other = reference["statistics"], found["statistics"]
    same = wanted.keys() == other.keys()
    differences = [abs(wanted[name] - other[name]) / (1 + abs(wanted[name])) for name in wanted if same]
    broken = not same or any(math.isnan(difference) for difference in differences)
    yield line("PPO statistics", dtype, math.nan if broken else max(differences))

    def norm(one: dict, minus: dict) -> float:
        return math.sqrt(
            sum((weight.double() - minus[name].double()).square().sum().item() for name, weight in one.items())
        )

    moved = norm(reference["weights"], reference["start"])
    yield line("PPO weights", dtype, norm(found["weights"], reference["weights"]) / moved)


if __name__ == "__main__":
    torch.save(ppo_step(Path(sys.argv[1]), "float32"), sys.argv[2])
