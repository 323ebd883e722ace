"""Worlds of random models and texts, and the stages of a training iteration on them as train_ppo.py calls them."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from alarm.models.holistic import HolisticModel


@dataclass(frozen=True)
class Shape:
    """A transformer."""

    hidden: int
    layers: int  # of an encoder-decoder: of each half
    heads: int
    feed_forward: int
    vocabulary: int


@dataclass(frozen=True)
class World:
    """A task of the paper (qa, mt) with models of random weights and texts of random words."""

    task: str
    policy: Shape
    readers: Shape  # qa: the three Longformers
    holistic: Shape | None  # None: `load_stages` is given one
    prompts: int  # of a batch
    prompt_tokens: int  # of the longest prompt
    tokens: int  # of the longest answer
    dtype: str = "float32"
    gated: bool = False  # the policy is an mT5
    flags: tuple[str, ...] = ()  # more ones of train_ppo.py


def random_text(rng: random.Random, words: list[str], count: int) -> str:
    """`count` words; about one in twelve ends a sentence."""
    picked = [rng.choice(words[1:]) if rng.random() > 1 / 12 else "." for _ in range(count - 1)]
    return " ".join([*picked, "."])


def words_of(vocabulary: int, special: int) -> list[str]:
    """The words of a vocabulary that has so many special tokens besides."""
    return [".", *(f"w{number}" for number in range(vocabulary - special - 1))]


def reader_settings(shape: Shape, vocabulary: int) -> dict[str, int]:
    """Fields that the configs of Longformer and Llama share."""
    return {
        "vocab_size": vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def random_policy(shape: Shape, gated: bool):
    """A T5 or mT5 with random weights, and its tokenizer."""
    from transformers import MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

    from miniature.models import policy_tokenizer

    tokenizer = policy_tokenizer(words_of(shape.vocabulary, 3))
    settings = {
        "vocab_size": len(tokenizer), "d_model": shape.hidden, "d_kv": shape.hidden // shape.heads,
        "num_heads": shape.heads, "d_ff": shape.feed_forward, "num_layers": shape.layers,
        "num_decoder_layers": shape.layers, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
        "initializer_factor": 0.05,
    }  # fmt: skip
    if gated:
        return MT5ForConditionalGeneration(MT5Config(**settings)), tokenizer
    return T5ForConditionalGeneration(T5Config(**settings)), tokenizer


def random_holistic(shape: Shape, positions: int):
    """A preference model in UltraRM's layout with random weights, and its tokenizer."""
    from transformers import LlamaConfig

    from alarm.models.holistic import LlamaRewardModel
    from miniature.models import reader_tokenizer

    reader = reader_tokenizer(words_of(shape.vocabulary, 5), positions, both_ends=True)
    model = LlamaRewardModel(LlamaConfig(max_position_embeddings=positions, **reader_settings(shape, len(reader))))
    model.config.architectures = ["LlamaRewardModel"]
    return model, reader


def random_longformers(shape: Shape, positions: int) -> dict[str, tuple[Any, Any]]:
    """The reward models of qa with random weights, and their tokenizer, by the names of their folders."""
    from transformers import LongformerConfig, LongformerForSequenceClassification, LongformerForTokenClassification

    from alarm.models.classifiers import LABELS
    from miniature.models import reader_tokenizer

    reader = reader_tokenizer(words_of(shape.vocabulary, 5), positions, both_ends=True)
    settings = reader_settings(shape, len(reader))
    settings |= {"attention_window": 512, "max_position_embeddings": positions + 2}
    units = LongformerForTokenClassification(LongformerConfig(id2label=dict(enumerate(LABELS)), **settings))
    texts = LongformerForSequenceClassification(LongformerConfig(num_labels=1, **settings))
    return {"rel_rm": (units, reader), "fact_rm": (units, reader), "comp_rm": (texts, reader)}


def make_world(world: World, folder: Path, device: str = "cpu") -> dict:
    """Write models (made on `device`) and data -> {"task", "argv" of train_ppo.py, "answers": texts to score}."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    rng = random.Random(0)
    torch.manual_seed(0)
    positions = world.prompt_tokens + world.tokens + 32
    with torch.device(device):
        models = {"policy": random_policy(world.policy, world.gated)}
        if world.holistic is not None:
            models["holistic"] = random_holistic(world.holistic, positions)
        if world.task == "qa":
            readers = random_longformers(world.readers, positions)
            models |= {f"rm/{name}": model for name, model in readers.items()}
    for place, (model, own) in models.items():
        model.to(getattr(torch, world.dtype)).save_pretrained(folder / place)
        own.save_pretrained(folder / place)
    words, longest = words_of(world.policy.vocabulary, 3), world.prompt_tokens
    texts = [random_text(rng, words, rng.randint(longest // 2, longest)) for _ in range(2 * world.prompts)]
    rows = [
        {"text": text, "question": "w1 w2 w3", "passages": [], "answer": [text]}
        if world.task == "qa"
        else {"translation": {"es": text, "en": text}}
        for text in texts
    ]
    for name, part in (("train", rows[: world.prompts]), ("dev", rows[world.prompts :])):
        (folder / f"{name}.json").write_text(json.dumps(part))
    flags = [
        "--policy_ckpt", folder / "policy", "--holistic_model", folder / "holistic", "--report_to", "none",
        "--train_file", folder / "train.json", "--dev_file", folder / "dev.json", "--save_dir", folder / "run",
        "--batch_size", world.prompts, "--dtype", world.dtype,
    ]  # fmt: skip
    if world.task == "qa":
        flags += ["--max_generated_len", world.tokens, "--max_input_len", longest, "--splitter", "sentencizer"]
        flags += ["--reward_model_dir", folder / "rm"]
    else:
        flags += ["--max_len", max(world.tokens, longest), "--prompt_prefix", "", "--grammar_backend", "rules"]
    answers = [random_text(rng, words, rng.randint(world.tokens // 2, world.tokens)) for _ in range(world.prompts)]
    return {"task": world.task, "argv": [*map(str, flags), *world.flags], "answers": answers}


def load_stages(
    world: dict, device: str, aspects: Sequence[str] | None = None, holistic: HolisticModel | None = None
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """The stages by name; and "use", which sets what those after generation read ("found"), "answer", "scorer".

    aspects: those that are loaded, with those that are paid among them; None: all
    holistic: instead of the model that the flags name
    """
    import torch

    from alarm.api import Settings
    from alarm.common.launch import process_state
    from alarm.rewards import RewardRecipe, combine
    from alarm.scoring import holistic_of, load_scorer, measure
    from alarm.tasks.find import find_task
    from alarm.training.generate import generator
    from alarm.training.main import load_splits, parse_args
    from alarm.training.policy import build_trainer, encode_splits, load_tokenizer
    from alarm.training.rollout import sample_rollout
    from alarm.types import Rollout
    from trl.generation import GREEDY, SAMPLING

    os.environ["ACCELERATE_USE_CPU"] = str(device == "cpu").lower()
    task = find_task(world["task"])
    args = parse_args(task, "", world["argv"])
    if task.configure is not None:
        task = task.configure(task, args)
    state = process_state()
    tokenizer = load_tokenizer(args.policy_ckpt, args)
    rows = load_splits(task, args)
    prompts = encode_splits(tokenizer, rows, task, args.max_input_len, dict.fromkeys(rows, "a file"))["train"]
    settings = Settings(args, tokenizer, state.device, getattr(torch, args.dtype))
    names = [aspect.name for aspect in task.aspects] if aspects is None else list(aspects)
    recipe = RewardRecipe.from_flags(args, task)

    def score(rollout: Rollout) -> torch.Tensor:
        return holistic.score(rollout.queries, rollout.responses, task.holistic_max_tokens, args.rm_max_batch_size)

    scorer = load_scorer(task, names, settings, holistic_of(task, args, settings) if holistic is None else score)
    ppo = build_trainer(args, args.policy_ckpt, tokenizer, prompts)
    each = args.samples_per_prompt
    batch = [prompt for prompt in prompts[: args.batch_size // each] for _ in range(each)]
    groups = None if each == 1 else torch.arange(len(batch)) // each
    limit = {"max_new_tokens": args.max_generated_len}
    sample, greedy = (generator(ppo.policy, tokenizer, **how | limit) for how in (SAMPLING, GREEDY))
    queries = [prompt.ids for prompt in batch]
    found: dict = {}

    def use(ids: list[list[int]] | None) -> list[list[int]]:
        """Set the rollout: these answers, or sampled ones. -> its ids"""
        if ids is None and world["answers"] is not None:
            ids = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 1] for text in world["answers"]]
        given = None if ids is None else [torch.tensor(row) for row in ids]
        rollout: Rollout = sample_rollout(sample if given is None else lambda _: given, tokenizer, batch)
        found["rollout"], found["measured"] = rollout, measure(rollout, scorer, recipe.paid_aspects)
        return [row.tolist() for row in rollout.response_ids]

    def answer(**how: Any) -> list[torch.Tensor]:
        """Answers to the queries with more settings of generation."""
        return generator(ppo.policy, tokenizer, **SAMPLING | limit | how)(queries)

    stages = {
        "generate": lambda: sample(queries),
        "greedy": lambda: greedy(queries),
        "holistic": lambda: scorer.holistic(found["rollout"]),
        **{name: lambda name=name: scorer.aspects[name](found["rollout"]) for name in names},
        "pay": lambda: combine(found["measured"], recipe, groups),
        "ppo": lambda: ppo.step(
            queries, found["rollout"].response_ids, combine(found["measured"], recipe, groups).rewards
        ),
    }
    return stages, {"use": use, "answer": answer, "found": found, "scorer": scorer}
