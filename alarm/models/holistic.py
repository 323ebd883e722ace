"""Holistic preference reward models: the UltraRM layout, and any sequence classifier with one output."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..common.distinct import distinct
from ..common.errors import UserError
from .load import load_config, load_model, load_tokenizer, padded_batches, position_limit

ROLE = "the holistic reward model"
PROMPT_PART = "Human: {prompt}"
ANSWER_PART = "\nAssistant: {answer}"

# prompts with answers of very different quality, each a few words long
PROBE = (
    ("Why is the sky blue?", "Air scatters the short waves of sunlight, which are blue, more than the long ones."),
    ("Why is the sky blue?", "I will not tell you that."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does a spider have?", "Six six six six six six six six"),
    ("Name three fruits.", "Apples, pears and plums."),
    ("Name three fruits.", ""),
    ("Translate to English: Guten Morgen!", "Good morning!"),
    ("Translate to English: Guten Morgen!", "xq zzv 81 ;;; blue"),
)
PROBE_SHARE, PROBE_FLOOR = 0.05, 1e-3  # see `probe_difference`


def at_last_token(values: Tensor, attention_mask: Tensor) -> Tensor:
    """values (B, T, C) at the last real token of each row, mask (B, T), padded on either side -> (B, C)."""
    last = (attention_mask * torch.arange(values.shape[1], device=values.device)).argmax(dim=1)
    return values[torch.arange(len(values), device=values.device), last]


def read_by_mask(model: PreTrainedModel, pad_id: int) -> None:
    """Let a decoder-only sequence classifier read the last real token by the attention mask, which it must be given.

    By itself it reads the last token that is not the padding id, and so too early if texts end in that id.
    Changes `model` in place, but no weight; other classifiers stay as they are. `pad_id` goes into its config, without
    which it refuses batches.
    """
    labels = model.config.num_labels
    heads = [
        name for name, part in model.named_children() if isinstance(part, nn.Linear) and part.out_features == labels
    ]

    def keep(head: nn.Module, _args, logits: Tensor) -> None:
        head.kept = logits  # on the module, because nn.DataParallel runs copies of it side by side

    def choose(whole: nn.Module, _args, kwargs: dict, output):
        logits = whole.get_submodule(heads[0]).__dict__.pop("kept", None)
        # a head that gives (B, T, C), of which the model picks one token, is of the decoder-only kind
        if logits is not None and logits.dim() == 3:
            output.logits = at_last_token(logits, kwargs["attention_mask"])
        return output

    model.config.pad_token_id = pad_id
    if heads:
        model.get_submodule(heads[0]).register_forward_hook(keep)
        model.register_forward_hook(choose, with_kwargs=True)


class LlamaRewardModel(PreTrainedModel):
    """UltraRM's layout: a Llama body `model.*` and a linear read-out `regression_head.weight` (1, H), no bias."""

    config_class = LlamaConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """ids and mask (B, T), padded on either side -> rewards (B,) float32, read at the last real token."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last_hidden = at_last_token(hidden, attention_mask)
        # the read-out in float32, also if the body runs in another type: a bfloat16 score near -5 has steps of 1/32
        return last_hidden.float() @ self.regression_head.weight[0].float()


def as_classifier(model: LlamaRewardModel, pad_id: int) -> LlamaForSequenceClassification:
    """A classifier of the same weights and scores, as vLLM and transformers know it: `score.weight` is the read-out."""
    config = copy.deepcopy(model.config)
    config.num_labels, config.pad_token_id = 1, pad_id
    with torch.device("meta"):  # all its weights are replaced
        found = LlamaForSequenceClassification(config)
    found.model, found.score = model.model, model.regression_head
    return found


def in_eight_bits() -> dict:
    """What `from_pretrained` takes to load weights in 8 bits. bitsandbytes must be installed."""
    # it says at each product that the inputs become float16
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}


def probe_difference(one: Sequence[float], other: Sequence[float]) -> str | None:
    """What tells the model of one list of PROBE's scores from that of another, in words; None if nothing does.

    Scores of one model may differ by PROBE_SHARE of the standard deviation of `one`, and by PROBE_FLOOR: bfloat16 and
    other kernels move them by less, and rewards are scores divided by such a deviation.
    """
    if len(one) != len(other):
        return f"they are of {len(one)} and {len(other)} texts"
    allowed = max(PROBE_SHARE * float(np.std(one)), PROBE_FLOOR)
    gaps = np.abs(np.subtract(one, other))
    worst = int(np.nanargmax(gaps)) if np.isfinite(gaps).all() else int(np.argmin(np.isfinite(gaps)))
    if gaps[worst] <= allowed:
        return None
    return f"{one[worst]:.6g} and {other[worst]:.6g} for one text, where {allowed:.2g} may lie between them"


class HolisticReader(ABC):
    """Reads prompts and answers as token ids, as a holistic model was taught, and scores them somewhere.

    `truncated` counts the inputs that did not fit so far.
    """

    def __init__(self, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase):
        self.config = config
        self.tokenizer = tokenizer
        self.truncated = 0

    @abstractmethod
    def score_rows(self, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
        """Raw scores of N different rows of token ids. -> (N,) float32 on the CPU."""

    def score(self, prompts: list[str], answers: list[str], max_length: int, batch_size: int) -> Tensor:
        """Raw scores of answers, in the order given. -> (N,) float32 on the CPU.

        An input reads "Human: {prompt}\\nAssistant: {answer}" and has at most `max_length` tokens, special ones
        included: if it is longer the prompt loses its tail, and the answer only what exceeds the limit by itself.
        Equal inputs go through the model once, so that their scores are equal; `truncated` counts each of them.
        """
        rows, places = distinct(map(tuple, self.encode(prompts, answers, max_length)))
        return self.score_rows(rows, batch_size)[places]

    def probe(self) -> list[float]:
        """Raw scores of PROBE, by which two copies of a model are known to be one."""
        return self.score_rows(self.probe_rows(), len(PROBE)).tolist()

    def probe_rows(self) -> list[list[int]]:
        """PROBE as token ids; `truncated` does not count them."""
        truncated = self.truncated
        prompts, answers = map(list, zip(*PROBE, strict=True))
        rows = self.encode(prompts, answers, position_limit(self.config, self.tokenizer))
        self.truncated = truncated
        return rows

    def encode(self, prompts: list[str], answers: list[str], max_length: int) -> list[list[int]]:
        """Token ids of each input, cut to `max_length`; see `score`."""
        if not prompts:
            return []
        limit = min(max_length, position_limit(self.config, self.tokenizer))
        heads = [PROMPT_PART.format(prompt=prompt) for prompt in prompts]
        texts = [head + ANSWER_PART.format(answer=answer) for head, answer in zip(heads, answers, strict=True)]
        encoded = self.tokenizer(texts, truncation=False, return_offsets_mapping=True, verbose=False)
        rows = encoded["input_ids"]
        for i, ids in enumerate(rows):
            if len(ids) > limit:
                self.truncated += 1
                special = self.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
                starts = [start for start, _ in encoded["offset_mapping"][i]]
                rows[i] = _cut(ids, starts, special, len("Human: "), len(heads[i]), limit)
        return rows


class HolisticModel(HolisticReader):
    """A holistic model in this process."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__(model.config, tokenizer)
        self.model = model
        self.pad_id = next(
            (
                id
                for id in (tokenizer.pad_token_id, model.config.pad_token_id, tokenizer.eos_token_id)
                if id is not None and 0 <= id < model.config.vocab_size
            ),
            0,
        )
        read_by_mask(model, self.pad_id)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
        eight_bit: bool = False,
    ) -> HolisticModel:
        """Load a folder or hub name: the UltraRM layout, or a sequence classifier with one label.

        eight_bit: the weights of its layers in 8 bits (LLM.int8, by bitsandbytes); the read-out keeps `dtype`.
        Raises UserError for what is neither, and for missing weights, by name.
        """
        config = load_config(name_or_path, ROLE)
        architecture = (config.architectures or [""])[0]
        if config.model_type == "llama" and not architecture.endswith("ForSequenceClassification"):
            model_class = LlamaRewardModel
        else:
            model_class = AutoModelForSequenceClassification
            if config.num_labels != 1:
                raise UserError(
                    f"{ROLE} {name_or_path} has {config.num_labels} labels; give a sequence classifier with one, "
                    "or a checkpoint in the UltraRM layout"
                )
        tokenizer = load_tokenizer(name_or_path, ROLE)
        quantised = in_eight_bits() if eight_bit else {}
        return cls(load_model(model_class, name_or_path, ROLE, device, dtype, **quantised), tokenizer)

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[Sequence[int]], batch_size: int) -> Tensor:
        scores = torch.zeros(len(rows))
        for indices, ids, mask in padded_batches(rows, self.pad_id, batch_size, self.model.device):
            scores[indices] = self.score_batch(ids, mask)
        return scores

    def score_batch(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw scores of rows of token ids and their attention mask, (b, T) each. -> (b,) float32 on the CPU."""
        output = self.model(input_ids=ids, attention_mask=mask)
        values = output if isinstance(output, Tensor) else output.logits[:, 0]
        return values.float().cpu()


def _cut(
    ids: list[int], starts: list[int], special: list[int], label_end: int, answer_at: int, limit: int
) -> list[int]:
    """Shorten `ids` to `limit`: first the end of the prompt goes, then the end of the answer.

    starts: the character at which each token starts; special: 1 for tokens that the tokenizer added around the text;
    label_end, answer_at: the characters at which the prompt and the answer's part start.
    """
    text = [k for k, added in enumerate(special) if not added]
    tail = len(ids) - 1 - text[-1]  # special tokens behind the text
    answer = next((k for k in text if starts[k] >= answer_at), text[-1])
    prompt = next((k for k in text if starts[k] >= label_end), answer)
    keep = max(prompt, answer - (len(ids) - limit))
    body_end = len(ids) - tail
    body = ids[:keep] + ids[answer:body_end]
    return body[: limit - tail] + ids[body_end:]
