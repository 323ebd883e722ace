"""Which combiner picks the better answer? Best-of-n with several answers to each prompt, scored once.

Every combiner, with each of its settings, ranks the answers that `train_ppo.py --test --num_samples N` wrote. --quality
says how good they are by something that no reward has seen: an oracle, a judge, a human score. Settings are chosen on
dev prompts and reported on others. Lists are given with spaces: --hierarchical_threshold -0.5 0 0.5.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...api import HOLISTIC, LENGTH, Task
from ...common.bootstrap import DRAWS, MIN_PROMPTS, Resamples, resample
from ...common.console import plain_table, print_table, say_counts
from ...common.errors import UserError, report_user_errors
from ...common.files import check_new_file, read_text, write_json
from ...common.flags import finite_float, named_numbers, open_share, parser, positive_float, seed_value
from ...common.identity import hash_file
from ...common.texts import question_key
from ...recipe import BASELINES, PLACEMENTS, SHAPINGS, RewardRecipe
from ...tasks.find import BUILT_IN, find_task
from ...training.flags import DEFAULTS, add_combiner_flags
from ..provenance import read_sidecar, scoring_differences
from .ranking import Ranking, kl_of_best, mean_with_interval
from .samples import Samples, greatest_n, quality_of, read_samples, usable
from .settings import NO_RANKING, PLAIN, Payer, Scale, Setting, grid, level_of, listed, scale_of

KIND, VERSION = "alarm best of n", 1
REFERENCE = "holistic_only"  # what every setting is compared with
CELLS = 2_000_000  # rewards at a time: some 16 MB an array
OUTSIDE = {HOLISTIC: "the holistic reward", "raw_holistic": "the holistic reward"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command, and the weights of the task's aspects. `args.task` is that Task, or None."""
    task = _task(argv)
    flags = parser(__doc__.replace("\n\n", "\n"))
    add = flags.add_argument
    add("--generations", required=True, help="samples, as train_ppo.py --test --test_do_sample --num_samples N writes")
    add("--task", help=f"{', '.join(BUILT_IN)}, or the .py file of a task (default: what the file's .meta.json names)")
    add("--quality", required=True, help="column that says how good an answer is: of the samples, or of --quality_file")
    add("--quality_file", help="JSON, JSON lines or CSV with index, sample and the --quality column")
    add("--lower_is_better", action="store_true", help="the lower --quality is the better (known of a task's metrics)")
    add("--combine", default="all", help="all, or combiners with commas between")
    add("--dev_share", type=open_share, help="share of the prompts on which settings are chosen; others are reported")
    add("--dev_generations", help="samples of other prompts, on which settings are chosen")
    add("--dev_quality_file", help="--quality_file of --dev_generations")
    add("--save_path", required=True, help="JSON file to write; the figure is beside it, as .png")
    add("--overwrite", action="store_true", help="replace the file at --save_path, and the figure, if they exist")
    add("--seed", type=seed_value, default=42, help="seed of --dev_share")
    add("--ultra_mean", type=finite_float, help="mean of the raw holistic scores (default: as the samples were made)")
    add("--ultra_std", type=positive_float, help="their standard deviation (default: likewise)")

    defaults = DEFAULTS | dict(task.defaults if task else {})

    def several(name: str, help: str, kind: Callable = str, default=None, to=flags, **kwargs) -> None:
        if name not in NO_RANKING:
            to.add_argument(f"--{name}", type=kind, nargs="+", default=[default], help=f"list: {help}", **kwargs)

    def switch(name: str, help: str) -> None:
        if name not in NO_RANKING:
            add(f"--{name}", type=_on, nargs="+", default=[False], metavar="on|off", help=f"list: {help}")

    several("holistic_reward_weight", "weight of the holistic reward", finite_float, defaults["holistic_reward_weight"])
    threshold = flags.add_mutually_exclusive_group()
    several(
        "hierarchical_threshold",
        "z-normalised score from which aspects count",
        finite_float,
        defaults["hierarchical_threshold"],
        to=threshold,
    )
    threshold.add_argument(
        "--threshold_quantile",
        type=open_share,
        nargs="+",
        help="list, instead: quantiles of the holistic rewards of the answers on which settings are chosen",
    )
    several("shaping", "of the values of an aspect", default=SHAPINGS[0], choices=SHAPINGS)
    several("placement", "spans: an aspect's values add up; mean_over_spans: their mean", default=PLACEMENTS[0],
            choices=PLACEMENTS[:2])  # fmt: skip
    several("holistic_baseline", "subtracted from a raw holistic score", default=BASELINES[0], choices=BASELINES)
    add_combiner_flags(several, switch)
    add("--multipliers", type=named_numbers, default={}, help="lagrangian: as ASPECT=0.5,... (default: 0 each)")
    for aspect in task.aspects if task else ():
        several(aspect.flag, f"weight of the {aspect.name} reward", finite_float, aspect.weight)
    args = flags.parse_args(argv)
    if task is None:
        read_text(args.generations)  # a file that is not there is said so
        raise UserError(f"{args.generations} has no .meta.json that names its task; give --task")
    args.task = task
    return args


def _task(argv: list[str] | None) -> Task | None:
    """The task that --task names, or else the sidecar of --generations; None if neither does."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--task")
    first.add_argument("--generations")
    try:
        known = first.parse_known_args(argv)[0]
    except argparse.ArgumentError:
        return None
    if known.task is not None:
        return find_task(known.task)
    meta = (read_sidecar(Path(known.generations)) if known.generations else None) or {"settings": {}}
    name = meta["settings"].get("task_file") or meta.get("task")
    return find_task(name) if isinstance(name, str) else None


def _on(text: str) -> bool:
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"{text} is neither on nor off")
    return text == "on"


# --- what can be wrong -----------------------------------------------------------------------------------------------


def chosen_combiners(args: argparse.Namespace) -> list[str]:
    """The combiners that --combine names. UserError for an unknown one."""
    known = args.task.all_combiners
    names = list(known) if args.combine == "all" else [name.strip() for name in args.combine.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--combine: {unknown[0]!r} is no combiner; give all, or some of {', '.join(known)}")
    return list(dict.fromkeys(names))


def check_quality(args: argparse.Namespace) -> bool:
    """Whether the lower quality is the better. UserError for a quality that is a part of the reward."""
    task, column = args.task, args.quality
    if column in OUTSIDE:
        raise UserError(f"--quality {column} is {OUTSIDE[column]}, by which answers are ranked; give another column")
    for aspect in task.aspects:
        own = {aspect.name, *(name for metric in aspect.metrics for name in (metric.name, metric.key))}
        if column in own and any(getattr(args, aspect.flag)):
            raise UserError(
                f"--quality {column} measures {aspect.name}, by which answers are ranked; give another column, or "
                f"--{aspect.flag} 0 to hold it out"
            )
    return args.lower_is_better or column in task.lower_wins


def scales_of(args: argparse.Namespace, payer: Payer, meta: dict | None) -> dict[str, Scale]:
    """What normalises the holistic scores, for each baseline that is asked for.

    Of the baseline with which the samples were made: the flags, or what its .meta.json says, or the task's default. Of
    another: measured on the answers.
    """
    settings = (meta or {}).get("settings", {})
    made_with, defaults = settings.get("holistic_baseline", "none"), DEFAULTS | dict(args.task.defaults)
    found = {}
    for baseline in args.holistic_baseline:
        if baseline in ("greedy", "reference") and (payer.samples.baseline is None or baseline != made_with):
            raise UserError(
                f"{payer.samples.path} was not made with --holistic_baseline {baseline}; make it so, or give none or "
                "group"
            )
        if baseline != made_with and args.ultra_mean is None and args.ultra_std is None:
            found[baseline] = scale_of(payer, baseline)
            continue
        given = {name: getattr(args, name) for name in ("ultra_mean", "ultra_std")}
        source = "flags" if None not in given.values() else ".meta.json" if meta else "the task's default"
        mean, std = (settings.get(name, defaults[name]) if value is None else value for name, value in given.items())
        level = settings["holistic_level"] if baseline == made_with == "group" else level_of(payer)
        found[baseline] = Scale(mean, std, source, level)
    return found


def thresholds_of(args: argparse.Namespace, payer: Payer, scales: dict[str, Scale]) -> dict[str, list[float]]:
    """The thresholds for each baseline."""
    if args.threshold_quantile is None:
        return dict.fromkeys(scales, args.hierarchical_threshold)
    found = {}
    for baseline, scale in scales.items():
        level = payer.level(_plain(baseline, scale))[~payer.too_short].numpy()
        found[baseline] = np.quantile((level - scale.mean) / scale.std, args.threshold_quantile).tolist()
    return found


def _plain(baseline: str, scale: Scale) -> RewardRecipe:
    return replace(PLAIN, baseline=baseline, holistic_mean=scale.mean, holistic_std=scale.std)


# --- prompts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """The answers that are ranked, and how good they are."""

    samples: Samples
    quality: np.ndarray  # (B,) float64, finite
    counts: dict[str, int]  # what was left out


def copies_of(pool: Pool, paid: list[str]) -> list[str]:
    """The parts of the reward of which the quality is a copy, up to scale: comparing by it would be circular."""
    parts = {"the holistic score": pool.samples.raw}
    parts |= {f"the aspect {name}": np.array([values.sum() for values in pool.samples.values[name]]) for name in paid}
    spread = {name: part for name, part in parts.items() if part.std() > 0 and pool.quality.std() > 0}
    return [name for name, part in spread.items() if abs(np.corrcoef(part, pool.quality)[0, 1]) > 1 - 1e-9]


def with_enough(pool: Pool, n: int) -> Pool:
    """The prompts with at least n answers."""
    _, number, sizes = np.unique(pool.samples.index, return_inverse=True, return_counts=True)
    keep = (sizes >= n)[number]
    counts = pool.counts | {f"prompts left out, fewer than {n} answers": int((sizes < n).sum())}
    return Pool(pool.samples.taken(keep), pool.quality[keep], counts)


def questions_of(pool: Pool) -> list[str]:
    """What each answer is asked, equal for the same question. -> B."""
    keys = {query: question_key(query) for query in set(pool.samples.queries)}
    return [keys[query] for query in pool.samples.queries]


def split(pool: Pool, share: float, seed: int) -> tuple[Pool, Pool]:
    """The prompts that choose settings, and those that are reported. The same question is on one side.

    UserError if a side is empty.
    """
    keys = questions_of(pool)
    questions = sorted(set(keys))
    count = round(share * len(questions))
    if not 0 < count < len(questions):
        raise UserError(f"--dev_share {share} of {len(questions)} questions leaves one side empty; give more prompts")
    drawn = {questions[i] for i in np.random.default_rng(seed).permutation(len(questions))[:count]}
    return _sides(pool, np.array([key in drawn for key in keys]))


def _sides(pool: Pool, dev: np.ndarray) -> tuple[Pool, Pool]:
    return tuple(Pool(pool.samples.taken(side), pool.quality[side], pool.counts) for side in (dev, ~dev))


def without_reported(dev: Pool, reported: Pool) -> Pool:
    """`dev` without the questions that are reported. UserError if nothing is left."""
    seen = set(questions_of(reported))
    shared = np.array([key in seen for key in questions_of(dev)])
    if shared.all():
        raise UserError(f"{dev.samples.path} asks what is reported; choosing there would be tuning on it")
    counts = {"dev prompts left out, reported as well": len(np.unique(dev.samples.index[shared]))}
    kept, _ = _sides(dev, ~shared)
    return Pool(kept.samples, kept.quality, dev.counts | counts)


# --- quality ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """The quality that S settings reach on P prompts. NaN: a setting pays something that is not finite."""

    mean: np.ndarray  # (S, N), at n = 1..N
    last: np.ndarray  # (S, P): of each prompt at n = N
    keys: list[bytes]  # equal for settings that rank all answers alike


def measure(pool: Pool, payer: Payer, settings: list[Setting], most: int, title: str) -> Curves:
    """The curves of all settings, some at a time."""
    from tqdm.auto import tqdm

    sizes, step = pool.samples.sizes, max(1, CELLS // len(pool.quality))
    mean, last, keys = np.empty((len(settings), most)), np.empty((len(settings), len(sizes))), []
    with tqdm(total=len(settings), desc=title, unit="setting", leave=False) as bar:
        for start in range(0, len(settings), step):
            some = settings[start : start + step]
            rewards = np.stack([payer.pay(setting.recipe) for setting in some])
            finite = np.isfinite(rewards).all(axis=1)
            ranking = Ranking(np.where(finite[:, None], rewards, 0.0), sizes)
            curves = np.where(finite[:, None, None], ranking.expected_best(pool.quality, most), np.nan)
            mean[start : start + step] = curves.mean(axis=1)
            last[start : start + step] = curves[:, :, -1]
            keys += ranking.keys()
            bar.update(len(some))
    return Curves(mean, last, keys)


def choose(settings: list[Setting], dev: Curves | None, sign: int) -> dict[str, int]:
    """Combiner -> the setting that is best at n = N on the dev prompts, the first of several.

    Without dev prompts each combiner must have one setting. UserError otherwise: the best on the reported prompts would
    be tuned on what is reported.
    """
    found: dict[str, list[int]] = {}
    for i, setting in enumerate(settings):
        found.setdefault(setting.recipe.reward_type, []).append(i)
    if dev is None:
        for name, numbers in found.items():
            if len(numbers) > 1:
                raise UserError(
                    f"{name} has {len(numbers)} settings, and the best of them cannot be chosen on prompts that are "
                    "reported; give --dev_share 0.5 or --dev_generations, or shorter lists"
                )
        return {name: numbers[0] for name, numbers in found.items()}
    scores = sign * dev.mean[:, -1]
    known = {name: [i for i in numbers if np.isfinite(scores[i])] for name, numbers in found.items()}
    return {name: max(numbers, key=lambda i: scores[i]) for name, numbers in known.items() if numbers}


def curve(values: np.ndarray, against: np.ndarray, resamples: Resamples) -> dict:
    """The numbers of one line. (P, N) each, of the line and of what it is compared with, prompt by prompt."""
    mean, bounds = mean_with_interval(values, resamples)
    difference, difference_bounds = mean_with_interval(values - against, resamples)
    return {
        "quality": mean.tolist(),
        "intervals": bounds.tolist(),
        "difference": difference.tolist(),
        "difference_intervals": difference_bounds.tolist(),
    }


def report(
    pool: Pool,
    payer: Payer,
    plain: RewardRecipe,
    settings: list[Setting],
    chosen: dict[str, int],
    found: Curves,
    sign: int,
) -> dict:
    """What is reported of the chosen settings, of all of them, and of the ends between which they lie, as JSON.

    plain: the recipe that all are compared with. See docs/best_of_n.md for the keys.
    """
    most = found.mean.shape[1]
    sizes = pool.samples.sizes
    resamples = resample(len(sizes))
    lengths = pool.samples.columns.get(LENGTH)

    def of(rewards: np.ndarray, values: np.ndarray) -> np.ndarray:
        return Ranking(rewards[None], sizes).expected_best(values, most)[0]  # (P, N)

    recipes = {REFERENCE: plain} | {name: settings[i].recipe for name, i in chosen.items() if name != REFERENCE}
    base = of(payer.pay(plain), pool.quality)
    curves = {}
    for name, recipe in recipes.items():
        rewards = payer.pay(recipe)
        curves[name] = curve(of(rewards, pool.quality), base, resamples)
        if lengths is not None and np.isfinite(lengths).all():
            curves[name]["response_length"] = of(rewards, lengths).mean(axis=0).tolist()
    by_quality = of(sign * pool.quality, pool.quality)
    _, bounds = mean_with_interval(found.last.T, resamples)
    difference, difference_bounds = mean_with_interval((found.last - base[:, -1]).T, resamples)
    return {
        "chosen": curves,
        "best_possible": curve(by_quality, base, resamples),
        "at_random": curve(np.repeat(base[:, :1], most, axis=1), base, resamples),
        "settings": [
            {
                "reported": found.mean[i].tolist(),
                "interval": bounds[i].tolist(),
                "difference": difference[i],
                "difference_interval": difference_bounds[i].tolist(),
            }
            for i in range(len(settings))
        ],
    }


# --- the command -----------------------------------------------------------------------------------------------------


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    started = time.perf_counter()
    task, target = args.task, Path(args.save_path)

    # 1. what can be wrong
    if target.suffix != ".json":
        raise UserError(f"--save_path is the JSON file to write; {target} does not end in .json")
    figure = target.with_suffix(".png")
    for path in (target, figure):
        check_new_file(path, "--save_path", args.overwrite)
    if args.dev_share is not None and args.dev_generations is not None:
        raise UserError("--dev_share and --dev_generations both say where settings are chosen; drop one of them")
    if args.dev_quality_file is not None and args.dev_generations is None:
        raise UserError("--dev_quality_file goes with --dev_generations; drop it")
    names = chosen_combiners(args)
    args.lower_is_better = check_quality(args)
    sign = -1 if args.lower_is_better else 1
    paid = [aspect.name for aspect in task.aspects if any(getattr(args, aspect.flag))]
    lists = listed(args, task)

    # 2. the answers, and how good they are
    pool = read_pool(args.generations, args.quality, args.quality_file, paid)
    for part in copies_of(pool, paid):
        print(f"warning: {args.quality} moves exactly as {part} does, by which answers are ranked: this is circular")
    metas = {"the samples": read_sidecar(Path(args.generations))}
    dev = None
    if args.dev_generations is not None:
        dev = without_reported(read_pool(args.dev_generations, args.quality, args.dev_quality_file, paid), pool)
        metas["the dev samples"] = read_sidecar(Path(args.dev_generations))
        for line in scoring_differences(task, metas):
            print(line, flush=True)
    elif args.dev_share is not None:
        dev, pool = split(pool, args.dev_share, args.seed)
    most = min(greatest_n(one.samples.sizes) for one in (pool, dev) if one is not None)
    if most < 2:
        raise UserError(
            f"{args.generations}: nothing to rank, its prompts have one answer that can be ranked; "
            "give --num_samples 2 or more to train_ppo.py --test"
        )
    pool, dev = with_enough(pool, most), None if dev is None else with_enough(dev, most)

    # 3. the settings, on the scale of the prompts that choose them
    payer = Payer(pool.samples)
    dev_payer = payer if dev is None else Payer(dev.samples)
    scales = scales_of(args, dev_payer, metas["the samples"])
    weights = {aspect.name: getattr(args, aspect.flag) for aspect in task.aspects}
    settings = grid(task, names, lists, weights, scales, thresholds_of(args, dev_payer, scales))

    # 4. chosen on some prompts, reported on others
    dev_curves = None if dev is None else measure(dev, dev_payer, settings, most, "dev prompts")
    chosen = choose(settings, dev_curves, sign)
    found = measure(pool, payer, settings, most, "reported prompts")
    chosen = {name: i for name, i in chosen.items() if np.isfinite(found.mean[i, -1])}
    plain = _plain(*next(iter(scales.items())))
    result = report(pool, payer, plain, settings, chosen, found, sign)
    result |= described(args, pool, dev, chosen, found, scales)
    result["settings"] = settings_as_json(settings, found, dev_curves, result["settings"])
    from ...training.run import finite
    from .figure import draw, save

    drawn = draw(result)
    write_json(target, finite(result))
    save(drawn, figure)
    say(result, settings)
    print(f"wrote {target} and {figure.name} in {time.perf_counter() - started:.0f} s")
    say_counts(pool.counts)
    if args.dev_generations is not None:
        print("of the dev samples:")
        say_counts(dev.counts)


def described(
    args: argparse.Namespace,
    pool: Pool,
    dev: Pool | None,
    chosen: dict[str, int],
    found: Curves,
    scales: dict[str, Scale],
) -> dict:
    """What was ranked, by what, and how the settings were chosen, as JSON."""
    n = np.arange(1, found.mean.shape[1] + 1)

    def file_of(path: str | None) -> dict | None:
        return None if path is None else {"path": path, "sha256": hash_file(path)}

    return {
        "kind": KIND,
        "version": VERSION,
        "task": args.task.name,
        "generations": file_of(args.generations),
        "dev_generations": file_of(args.dev_generations),
        "quality": args.quality,
        "quality_file": file_of(args.quality_file),
        "dev_quality_file": file_of(args.dev_quality_file),
        "lower_is_better": args.lower_is_better,
        "dev_share": args.dev_share,
        "seed": args.seed,
        "prompts": len(pool.samples.sizes),
        "answers": len(pool.quality),
        "left_out": pool.counts,
        "dev_prompts": None if dev is None else len(dev.samples.sizes),
        "dev_left_out": None if dev is None else dev.counts,
        "n": n.tolist(),
        "kl": kl_of_best(n).tolist(),
        "compared_with": REFERENCE,
        "draws": DRAWS,
        "multipliers": args.multipliers,
        "scales": {baseline: vars(scale) for baseline, scale in scales.items()},
        "chosen_settings": chosen,
    }


def settings_as_json(
    settings: list[Setting], found: Curves, dev_curves: Curves | None, numbers: list[dict]
) -> list[dict]:
    """Every setting: its flags, its quality at n = 1..N, and the first setting that ranks all answers alike."""
    keys = list(zip(found.keys, found.keys if dev_curves is None else dev_curves.keys, strict=True))
    first: dict[tuple, int] = {}
    ranked = np.isfinite(found.mean[:, -1])
    return [
        {"flags": setting.flags, "ranks_like": first.setdefault(keys[i], i) if ranked[i] else None}
        | {"dev": None if dev_curves is None else dev_curves.mean[i].tolist()}
        | numbers[i]
        for i, setting in enumerate(settings)
    ]


def say(result: dict, settings: list[Setting]) -> None:
    """Print what was chosen and how good it is."""
    most, prompts, chosen = result["n"][-1], result["prompts"], result["chosen_settings"]
    direction = "lower" if result["lower_is_better"] else "higher"
    rankings = len({one["ranks_like"] for one in result["settings"]} - {None})
    print(f"{len(settings)} settings, which rank the answers in {rankings} ways")
    for baseline, scale in result["scales"].items():
        ends = f"mean {scale['mean']:.4g}, standard deviation {scale['std']:.4g}"
        print(f"holistic scores, baseline {baseline}: {ends} ({scale['source']})")

    lines = {"best possible": result["best_possible"], **result["chosen"], "at random": result["at_random"]}
    digits = decimals(result["at_random"]["intervals"][-1])
    on_dev = {name: result["settings"][i]["dev"][-1] for name, i in chosen.items()} if result["dev_prompts"] else {}
    rows = []
    for name, line in lines.items():
        low, high = (f"{bound:z.{digits}f}" for bound in line["difference_intervals"][-1])
        cells = {
            "combiner": name,
            "dev": f"{on_dev[name]:z.{digits}f}" if name in on_dev else "",
            "mean": f"{line['quality'][-1]:z.{digits}f}",
            f"less {REFERENCE}": f"{line['difference'][-1]:z.{digits}f}",
            "95%": f"{low} to {high}",
            "tokens": f"{line['response_length'][-1]:.1f}" if "response_length" in line else "",
        }
        rows.append({key: value for key, value in cells.items() if key != "dev" or on_dev})
    title = f"{result['quality']} of the best of {most}, {direction} is better: {prompts} prompts"
    title += f", settings chosen on {result['dev_prompts']} others" if on_dev else ""
    print_table(plain_table(title, list(rows[0]), [list(row.values()) for row in rows]))
    if prompts < MIN_PROMPTS:
        print(f"warning: {prompts} prompts say little; intervals of fewer than {MIN_PROMPTS} are too narrow")
    for name, i in chosen.items():
        print(f"{name}: {settings[i].command}")
    if lost := {setting.recipe.reward_type for setting in settings} - chosen.keys():
        print(f"not ranked, because some rewards are not finite: {', '.join(sorted(lost))}")


def decimals(bounds: list[float]) -> int:
    """How many decimals give two digits of the width of an interval."""
    width = bounds[1] - bounds[0]
    return min(max(1 - math.floor(math.log10(width)), 0), 8) if width > 0 else 3


def read_pool(path: str, column: str, quality_file: str | None, paid: list[str]) -> Pool:
    """The answers of a file that can be ranked. UserError if it lacks the scores of a paid aspect, and if none can."""
    samples = read_samples(path)
    if lacking := [name for name in paid if name not in samples.values]:
        raise UserError(f"{path} has no scores of the aspect {lacking[0]}; it has {', '.join(samples.values)}")
    quality = quality_of(samples, column, quality_file)
    keep, counts = usable(samples, quality, paid)
    if not keep.any():
        raise UserError(f"{path}: no answer has both finite scores and a finite {column}")
    return Pool(samples.taken(keep), quality[keep], counts)
