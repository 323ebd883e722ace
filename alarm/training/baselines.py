"""What a raw holistic score is compared with: one score for each prompt, measured once and kept in a file.

A preference model learns from pairs of answers to one prompt, so the level of its scores is free from prompt to prompt.
`--holistic_baseline greedy` takes the start policy's greedy answer as zero, `reference` the data's own answer. (`group`
needs no file; see alarm.rewards.) Loads no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..api import HOLISTIC_PROBE, Task
from ..common.errors import UserError
from ..common.files import is_finite_number, read_json, write_json
from ..common.identity import difference, hash_file, model_identity
from ..types import Rollout

if TYPE_CHECKING:
    from ..scoring import Scorer
    from .rollout import Prompt

KIND, VERSION = "alarm baselines", 1
NAME = "baselines.json"  # in a run's folder
MEASURED = ("greedy", "reference")  # the baselines that need an answer to each prompt
# settings on which the scores depend, besides the models
SETTINGS = ("dtype", "max_input_len", "max_generated_len", "chat_template", "source_language", "target_language")


def check_baseline_flags(args: argparse.Namespace, grouped: bool) -> None:
    """Raise UserError for flags of baselines that have no use, and for a file that is none. Loads no model.

    grouped: the command samples groups of answers, which `group` needs.
    """
    if grouped and args.holistic_baseline == "group" and args.samples_per_prompt < 2:
        raise UserError("--holistic_baseline group is a mean over answers; give --samples_per_prompt 2 or more")
    if args.holistic_baseline not in MEASURED and args.baseline_file is not None:
        raise UserError("--baseline_file goes with --holistic_baseline greedy or reference; drop it")
    if args.holistic_baseline != "greedy" and args.baseline_policy is not None:
        raise UserError("--baseline_policy goes with --holistic_baseline greedy; drop it")
    if args.baseline_file is not None:
        read_baselines(args.baseline_file)


def with_baselines(
    prompts: dict[str, list[Prompt]],
    task: Task,
    args: argparse.Namespace,
    policy: str,
    scorer: Scorer,
    batch_size: int,
    path: str | Path | None,
) -> dict[str, list[Prompt]]:
    """The prompts with the baseline that --holistic_baseline asks for. Gathers: every process calls this.

    policy: whose greedy answers count, for `greedy`. Scores that the file at `path` holds are not measured again, and
    what is measured is added to it. Raises UserError if that file is of other models or settings, if a reference is
    missing, and for scores that are not finite.
    """
    from ..common.launch import process_state
    from .processes import on_main

    kind = args.holistic_baseline
    if kind not in MEASURED:
        return prompts
    state = process_state()
    rows = [prompt for split in prompts.values() for prompt in split]
    references = reference_texts(rows, task) if kind == "reference" else [None] * len(rows)
    keys = [key_of(prompt, text) for prompt, text in zip(rows, references, strict=True)]
    made_by, scores = on_main(state, lambda: known_scores(path, made_with(task, args, policy, scorer)))
    missing = list({key: i for i, key in enumerate(keys) if key not in scores}.values())
    if missing:
        wanted, texts = [rows[i] for i in missing], [references[i] for i in missing]
        if kind == "greedy":
            texts = greedy_answers(wanted, task, args, policy, batch_size)
        found = score_answers(wanted, texts, scorer, batch_size, f"{kind} baselines")
        if bad := sum(not math.isfinite(score) for score in found):
            raise UserError(
                f"--holistic_baseline {kind}: {bad} of {len(found)} baseline scores are not finite numbers; look at "
                "the holistic model"
            )
        if empty := sum(not text.strip() for text in texts):
            state.print(f"warning: {empty} of {len(texts)} baseline answers have no text; they are scored as they are")
        scores |= {keys[i]: score for i, score in zip(missing, found, strict=True)}
        if path is not None and state.is_main_process:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"kind": KIND, "version": VERSION, **made_by, "scores": scores})
    mean = sum(scores[key] for key in keys) / len(keys)
    known = len(set(keys)) - len(missing)
    state.print(f"holistic baselines ({kind}): {len(missing)} measured, {known} read from the file, mean {mean:.4g}")
    values = iter([scores[key] for key in keys])
    return {split: [replace(prompt, baseline=next(values)) for prompt in part] for split, part in prompts.items()}


# --- the answers and their scores ------------------------------------------------------------------------------------


def reference_texts(prompts: list[Prompt], task: Task) -> list[str]:
    """The data's answer to each prompt, the first of several. UserError for a row without one."""
    found = []
    for prompt in prompts:
        try:
            answer = task.answer(prompt.row)
        except (KeyError, TypeError, IndexError):
            answer = None
        if isinstance(answer, list | tuple):
            answer = answer[0] if answer else None
        if not isinstance(answer, str):
            raise UserError(
                f"--holistic_baseline reference: the row with the prompt {prompt.query[:60]!r} has no answer; leave it "
                "out, or take another baseline"
            )
        found.append(answer)
    return found


def greedy_answers(
    prompts: Sequence[Prompt], task: Task, args: argparse.Namespace, policy: str, batch_size: int
) -> list[str]:
    """The greedy answer of `policy` to each prompt, in their order, on every process.

    The prompts are encoded anew: this policy can have another tokenizer than the one that trains.
    """
    from trl.generation import GREEDY

    from ..common.prompts import uses_chat
    from .generate import answer_all
    from .policy import is_encoder_decoder, load_answering_policy, load_tokenizer
    from .rollout import encode_prompts

    tokenizer = load_tokenizer(policy, args)
    chat = uses_chat(tokenizer, not is_encoder_decoder(policy), args.chat_template)
    encoded, _ = encode_prompts(tokenizer, [prompt.row for prompt in prompts], task, args.max_input_len, chat)
    model = load_answering_policy(policy, tokenizer, args)
    settings = GREEDY | {"max_new_tokens": args.max_generated_len}
    return answer_all(model, tokenizer, encoded, batch_size, "greedy baselines", **settings)


def score_answers(
    prompts: Sequence[Prompt], answers: Sequence[str], scorer: Scorer, batch_size: int, title: str
) -> list[float]:
    """The raw holistic score of one answer to each prompt, in their order, on every process."""
    import torch
    from accelerate.utils import gather_object
    from tqdm.auto import tqdm

    from ..common.launch import process_state
    from ..scoring import equal_calls
    from .processes import failing_together
    from .rollout import deal_batches, most_batches

    state = process_state()
    found = []
    mine = deal_batches(prompts, batch_size, state.process_index, state.num_processes)
    calls = most_batches(len(prompts), batch_size, state.num_processes)
    with failing_together(state), equal_calls(scorer.holistic, calls):
        for _, batch in tqdm(mine, desc=title, unit="batch", leave=False, disable=not state.is_main_process):
            rows = [prompts[i] for i in batch]
            rollout = Rollout(
                query_ids=[prompt.ids for prompt in rows],
                response_ids=None,
                queries=[prompt.prompt for prompt in rows],
                responses=[answers[i] for i in batch],
                examples=[prompt.row for prompt in rows],
                too_short=torch.zeros(len(rows), dtype=torch.bool),
            )
            found += zip(batch, scorer.holistic(rollout).double().tolist(), strict=True)
    return [score for _, score in sorted(gather_object(found))]


# --- the file --------------------------------------------------------------------------------------------------------


def key_of(prompt: Prompt, reference: str | None) -> str:
    """What a prompt's baseline depends on, besides models and settings."""
    return hashlib.sha256(
        json.dumps([prompt.text, prompt.prompt, prompt.row, reference], default=str).encode()
    ).hexdigest()


def made_with(task: Task, args: argparse.Namespace, policy: str, scorer: Scorer) -> dict:
    """The models and settings of baselines, as JSON."""
    models = {"policy": model_identity(policy)} if args.holistic_baseline == "greedy" else {}
    if args.holistic_model is not None:
        models["holistic"] = model_identity(args.holistic_model)
    settings = {"holistic_max_tokens": task.holistic_max_tokens} | {name: getattr(args, name) for name in SETTINGS}
    if getattr(scorer.holistic, "eight_bit", False):
        settings["holistic_8bit"] = True
    if args.holistic_model is None and task.source:
        settings["task file"] = hash_file(task.source)
    found = {"baseline": args.holistic_baseline, "models": models, "settings": settings}
    served = getattr(scorer.holistic, "server", None) is not None
    return found | {HOLISTIC_PROBE: scorer.holistic.probe()} if served else found


def read_baselines(path: str | Path) -> dict | None:
    """The content of a baselines file; None if there is none. UserError if it is something else."""
    if not Path(path).exists():
        return None
    content = read_json(path)
    parts = {"models": dict, "settings": dict, "scores": dict}
    if (
        not isinstance(content, dict)
        or (content.get("kind"), content.get("version")) != (KIND, VERSION)
        or not all(isinstance(content.get(part), kind) for part, kind in parts.items())
        or not all(is_finite_number(score) for score in content["scores"].values())
        or not isinstance(content.get(HOLISTIC_PROBE, []), list)
        or not all(map(is_finite_number, content.get(HOLISTIC_PROBE, [])))
    ):
        raise UserError(f"{path} is no file of baselines; name another --baseline_file")
    return content


def known_scores(path: str | Path | None, made_by: dict) -> tuple[dict, dict[str, float]]:
    """`made_by`, and the scores in the file at `path`. UserError if they were made by other models or settings."""
    content = None if path is None else read_baselines(path)
    if content is None:
        return made_by, {}
    names = [*made_by["settings"], "holistic_8bit"]  # which is there if it is on
    changed = [name for name in names if content["settings"].get(name) != made_by["settings"].get(name)]
    if content["baseline"] != made_by["baseline"]:
        changed.append("kind of baseline")
    for role, identity in made_by["models"].items():
        before = content["models"].get(role)
        if before is None or difference(before, identity):
            changed.append(f"{role} model")
    if HOLISTIC_PROBE in made_by and HOLISTIC_PROBE in content:
        from ..models.holistic import probe_difference

        if probe_difference(content[HOLISTIC_PROBE], made_by[HOLISTIC_PROBE]):
            changed.append("model behind the holistic server")
    if changed:
        raise UserError(f"{path} holds baselines made with another {changed[0]}; name another --baseline_file")
    return made_by, content["scores"]
