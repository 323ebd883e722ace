"""Seconds by the clock of measuring a rollout, with and without work that goes on beside the models.

Two worlds with the models and texts of benchmarks/iteration.py: `mt` asks a real LanguageTool (`make languagetool`),
`qa` splits sentences with spaCy. Aspects that begin before the models (`start`) and the same aspects without `start`
take turns. Each run has answers of its own, because LanguageTool remembers sentences. Then the other kind scores the
same answers, untimed, and must give the same bits.

    python benchmarks/overlap.py --repeats 5
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "trl"), str(ROOT / "benchmarks")]

# English words, so that a grammar checker finds what it does in a translation
WORDS = """the of and to in that is was for it with as his on be at by this had not are but from or have an they which
one you were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man me even most
made after also did many off before must well back through years much where your way down should because long each just
state people too mr. good president commission report countries european parliament agreement member question policy
""".split()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = flags.add_argument
    add("--world", nargs="+", choices=("qa", "mt"), default=["qa", "mt"], help="what is timed")
    add("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    add("--prompts", type=int, default=8, help="of a batch; mt: 4 times as many")
    add("--threads", type=int, default=1, help="CPU threads")
    return flags.parse_args(argv)


class WithoutStart:
    """A loaded aspect that is computed when it is called."""

    def __init__(self, loaded) -> None:
        self.call = loaded

    def __call__(self, rollout):
        return self.call(rollout)


def answers_of(seed: int, like: list[str]) -> list[str]:
    """English-looking answers of as many words as `like`."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        sentences = [rng.choices(WORDS, k=12) for _ in range(length // 12 + 1)]
        return " ".join(" ".join(words).capitalize() + "." for words in sentences)

    return [text(len(answer.split())) for answer in like]


def same(first, second) -> bool:
    """Whether two Measured hold the same bits."""
    import torch

    if not torch.equal(first.holistic, second.holistic) or list(first.aspects) != list(second.aspects):
        return False
    pairs = zip(first.aspects.values(), second.aspects.values(), strict=True)
    return all(
        a.metrics == b.metrics and all(map(torch.equal, a.tokens + a.values, b.tokens + b.values)) for a, b in pairs
    )


def measure_world(name: str, folder: Path, args: argparse.Namespace) -> None:
    import iteration
    import stages

    from alarm.scoring import measure

    sized = iteration.parse_args(["--prompts", str(args.prompts)])
    world = iteration.make_files(name, folder, sized)
    words = world["argv"]
    words += ["--mini_batch_size", "1", "--gradient_accumulation_steps", "1"]  # any batch size
    # the real services instead of their stand-ins
    swap = {"qa": ("sentencizer", "en_core_web_sm"), "mt": ("rules", "languagetool")}[name]
    words[words.index(swap[0])] = swap[1]
    _, loaded = stages.load_stages(world, "cpu")
    loaded["use"](None)
    rollout, scorer = loaded["found"]["rollout"], loaded["scorer"]
    names = list(scorer.aspects)
    plain = replace(scorer, aspects={key: WithoutStart(loaded) for key, loaded in scorer.aspects.items()})
    kinds = {"in turn": plain, "beside": scorer}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    parts: dict[str, list[float]] = {key: [] for key in (*names, "holistic")}

    def fresh(seed: int):
        texts = answers_of(seed, world["answers"])
        return replace(rollout, responses=texts, response_ids=None)  # the policy's vocabulary has no English

    def timed(call) -> tuple[float, object]:
        started = time.perf_counter()
        result = call()
        return time.perf_counter() - started, result

    if "grammar" in scorer.aspects:
        scorer.aspects["grammar"].checker.cache_size = 0

    def forget() -> None:
        """Both kinds score the same answers; neither may find the sentences of the other."""
        for aspect in scorer.aspects.values():
            if hasattr(aspect, "splitter"):
                aspect.splitter([])

    seed = 0
    for repeat in range(args.repeats + 1):
        for kind, other in (("in turn", "beside"), ("beside", "in turn")):
            seed, answers = seed + 1, fresh(seed)
            took, result = timed(lambda kind=kind, answers=answers: measure(answers, kinds[kind], names))
            seconds[kind] += [took] if repeat else []
            forget()
            if not same(result, measure(answers, kinds[other], names)):
                sys.exit(f"{name}: the scores differ")
            forget()
        seed, answers = seed + 1, fresh(seed)
        for key in parts:
            call = scorer.holistic if key == "holistic" else plain.aspects[key]
            took, _ = timed(lambda call=call, answers=answers: call(answers))
            parts[key] += [took] if repeat else []
            forget()
    scorer.close()
    print(f"\n{name}: {len(world['answers'])} answers, seconds by the clock, median (least-most) of {args.repeats}")
    for kind, times in (seconds | parts).items():
        print(f"{kind:<14}{statistics.median(times):>8.3f} ({min(times):.3f}-{max(times):.3f})", flush=True)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.world:
            (Path(folder) / name).mkdir()
            measure_world(name, Path(folder) / name, args)


if __name__ == "__main__":
    main()
