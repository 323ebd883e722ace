"""The quickstart on a small world: its stages, and what its last screen says."""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.common.console import Table
from alarm.common.errors import UserError
from alarm.common.files import read_json, read_rows, write_json
from alarm.training.run import read_log
from miniature.results import collapse, result_table, sentences, summarise
from miniature.settings import WORLDS, World, scoring
from miniature.stages import ROOT, Stage, Together, flag_words, short

from .real import what_to_look_at
from .real_mt import grammar_backend

REWARD_TYPES = ("hierarchical", "holistic_only", "weighted_sum")
RECOMMENDED = "recommended"  # the folder of the run with the combiner that best-of-n recommends
RUNS = (*REWARD_TYPES, RECOMMENDED)
SAMPLES = 16  # answers to a dev prompt that the combiners rank
RANKING = ("holistic_reward_weight", "hierarchical_threshold", "shaping", "placement", "holistic_baseline")
LAST = ROOT / "quickstart" / "work" / "results.json"  # results of the last quickstart in a default folder
BUILT = {"mt": ("start", "holistic", "built.json"), "qa": ("start", "holistic", "rm", "built.json")}


def check_built(world: World, built: Path) -> None:
    """UserError for a folder that is no built world."""
    rebuild = f"python -m miniature.build --world {world.name} --seed 0 --save_dir {short(built)}"
    for name in BUILT[world.name]:
        if not (built / name).exists():
            raise UserError(f"{short(built / name)} is missing; make the world with `{rebuild}`, or name one: --built")
    found = read_json(built / "built.json")
    if not isinstance(found, dict) or found.get("world") != world.name or not isinstance(found.get("seed"), int):
        raise UserError(f"{short(built / 'built.json')} is not of the world {world.name}; give --built of this world")


def small_stages(args: argparse.Namespace, work: Path) -> list[Stage | Together]:
    """`args`: task, built (None: the shipped one), train_prompts, dev_prompts, test_prompts, steps, seed."""
    world = WORLDS[args.task]
    built = Path(args.built or world.shipped)
    check_built(world, built)
    made = read_json(built / "built.json")["seed"]
    print(f"Start policy and reward models: {short(built)}, trained before. To make them yourself (many minutes):")
    print(f"    python -m miniature.build --world {world.name} --seed {made} --save_dir DIR     # then --built DIR")
    data, calibration = work / "data", work / "calibration.json"
    test_file = data / f"test.{world.ending}"
    flags = world.files(built, data) | dict(world.ppo) | {"calibration": calibration, "seed": args.seed}
    if flags.get("grammar_backend") == "languagetool":
        flags["grammar_backend"] = grammar_backend()
    steps = min(world.steps, args.steps or world.steps)

    def script(file: str, **own) -> list[str]:
        return [file, *flag_words(**{name: short(x) if isinstance(x, Path) else x for name, x in own.items()})]

    def words(module: str, **own) -> list[str]:
        return ["-m", *script(module, **own)]

    def command(name: str, output: str, module: str, **own) -> Stage:
        return Stage(name, output, lambda: words(module, **own))

    def make_data() -> Stage:
        """Only the prompts: what the models were made from is in the built world. Another seed is another world."""
        unused = {"mt": ("sft", "sft_dev"), "qa": ("train_feedback", "dev_feedback")}[world.name]
        sizes = {"train": args.train_prompts, "dev": args.dev_prompts, "test": args.test_prompts}
        sizes |= dict.fromkeys(unused, 1)
        return command("prompts", "data", f"miniature.{world.name}.data", save_dir=data, seed=made, **sizes)

    def calibrate() -> Stage:
        taken = ("task", "policy_ckpt", "holistic_model", "max_input_len", "max_generated_len", "dtype", "seed")
        taken += ("holistic_baseline", "samples_per_prompt", "rm_max_batch_size")
        own = {name: flags[name] for name in taken if name in flags}
        return command(
            "scale of the holistic reward", "calibration.json", "alarm.calibrate", **own, prompts=flags["dev_file"],
            rewards="holistic", batch_size=256, save_path=calibration,
        )  # fmt: skip

    def answers(name: str, output: str, policy: Path, file: Path, **own) -> Stage:
        own = scoring(flags) | {"seed": args.seed, "policy_ckpt": policy, "test_file": file} | own
        return command(
            name, output, "alarm.train_ppo", test=True, test_do_sample=True, **own, batch_size=256,
            save_dir=work / output,
        )  # fmt: skip

    def best_of_n() -> Stage:
        own = {name: value for name, value in flags.items() if _ranks(name)}
        return command(
            "every combiner re-ranks them", "best_of_n", "alarm.best_of_n", task=world.task,
            generations=work / "dev_samples.json", quality="oracle", combine="all", **own,
            save_path=work / "best_of_n/bench.json",
        )  # fmt: skip

    def ppo(name: str) -> Stage:
        def of_run() -> list[str]:
            combiner = recommended(work)[0] if name == RECOMMENDED else name
            own = {"reward_type": combiner, "max_steps": steps, "checkpoint_interval": 5, "resume": True}
            return words("alarm.train_ppo", **flags, **own, save_dir=work / "runs" / name)

        return Stage(f"PPO, {name}", f"runs/{name}", of_run, resumable=True, steps=steps)

    def inspect() -> Stage:
        def of_answers() -> list[str]:
            own = scoring(flags) | {name: value for name, value in flags.items() if _ranks(name)}
            # a single answer has no group: what --test subtracts from it is one number, which is a mean
            own = {
                name: value for name, value in own.items() if name not in ("task", "calibration", "holistic_baseline")
            }
            scale = read_json(calibration)["rewards"]
            level = scale["holistic_level"]["mean"] if "holistic_level" in scale else 0.0
            own |= {"ultra_mean": scale["holistic"]["mean"] + level, "ultra_std": scale["holistic"]["std"]}
            own |= {"policy_ckpt": built / "start", "reward_type": "hierarchical"}
            shown = {"task_type": world.task, "generations": work / "answers/hierarchical.json", "examples": test_file}
            shown |= {"limit": 5, "html": work / "inspection.html"}
            return script("eval/inspect_rewards.py", **shown, **own)

        return Stage("rewards token by token", "inspection.html", of_answers)

    def compare() -> Stage:
        line = script("eval/eval_compare.py", generations_dir=work / "answers", task_type=world.task)
        return Stage("comparison", "answers_results/eval-results.json", lambda: line)

    def curves() -> Stage:
        folders = [word for name in RUNS for word in ("--run_dir", short(work / "runs" / name))]
        line = ["-m", "alarm.plot_run", *folders, *flag_words(task=world.task, save_dir=short(work / "plots"))]
        return Stage("curves of the PPO runs", "plots", lambda: line)

    policies = {"start": built / "start"} | {name: work / "runs" / name for name in RUNS}
    return [
        make_data(),
        calibrate(),
        answers(
            f"{SAMPLES} answers to each dev prompt", "dev_samples.json", built / "start", flags["dev_file"],
            num_samples=SAMPLES,
        ),
        best_of_n(),
        Together("PPO, four runs", tuple(map(ppo, RUNS))),
        Together(
            "answers to the test prompts",
            tuple(
                answers(f"answers of {name}", f"answers/{name}.json", policy, test_file)
                for name, policy in policies.items()
            ),
        ),
        Together("comparison, rewards, curves", (compare(), inspect(), curves())),
    ]  # fmt: skip


def _ranks(flag: str) -> bool:
    """Whether a flag of training says how rewards are combined."""
    return flag in RANKING or flag.startswith("w_")


def recommended(work: Path) -> tuple[str, str, dict[str, float]]:
    """The combiner that best-of-n recommends beside those that are trained anyway; the best of all; all of them.

    The quality that counts is the mean true quality of the best-ranked of all answers to a dev prompt. Of equal ones
    the first is taken.
    """
    chosen = read_json(work / "best_of_n/bench.json")["chosen"]
    found = {name: one["quality"][-1] for name, one in chosen.items()}
    others = [name for name in found if name not in REWARD_TYPES]
    return max(others, key=found.__getitem__), max(found, key=found.__getitem__), found


# --- what came out ---------------------------------------------------------------------------------------------------


def recommended_lines(work: Path) -> str:
    name, best, found = recommended(work)
    lines = [f"best of {SAMPLES} dev answers, by true quality:"]
    lines += [f"  {one:<16}{value:.3f}" for one, value in sorted(found.items(), key=lambda pair: -pair[1])]
    if best != name:
        lines.append(f"The best is {best}, which is trained anyway; the best of the others, {name}, was trained too.")
    else:
        lines.append(f"The best, {name}, is the combiner that was trained beside the three others.")
    return "\n".join(lines)


def read_answers(work: Path) -> dict[str, list[dict]]:
    """Run -> its answers to the test prompts; the recommended combiner's run has its name."""
    names = {name: name for name in ("start", *REWARD_TYPES)} | {RECOMMENDED: recommended(work)[0]}
    return {name: read_rows(work / f"answers/{folder}.json") for folder, name in names.items()}


def last_kl(run: Path) -> float | None:
    """Nats a token from the start, at the end of a run; None if its log does not say."""
    rows = [row["train"] for row in read_log(run / "log.jsonl") if "train" in row]
    return rows[-1].get("running/kl_per_token") if rows else None


def before_and_after(runs: dict[str, list[dict]], most: int = 3) -> str:
    """The first prompts whose answers differ."""
    changed = [
        (before, after)
        for before, after in zip(runs["start"], runs["hierarchical"], strict=True)
        if before["generation"] != after["generation"]
    ]
    lines = [f"The first {most} test prompts that start and hierarchical answer differently (true quality beside):"]
    for before, after in changed[:most]:
        lines.append(f"  {before['query'].split(' context:')[0]}")  # qa: without the passages
        for name, row in (("start", before), ("hierarchical", after)):
            lines.append(f"    {name:<14}{row['oracle']:.2f}  {row['generation']!r}")
    return "\n".join(lines if changed else ["start and hierarchical answer every test prompt alike"])


def small_summary(args: argparse.Namespace, work: Path) -> list[Table | str]:
    """Tables and paragraphs. Writes results.json."""
    world, runs = WORLDS[args.task], read_answers(work)
    prompts = len(runs["start"])
    limit = world.ppo.get("max_generated_len")
    found = summarise(runs, limit)
    folders = dict(zip([*REWARD_TYPES, recommended(work)[0]], RUNS, strict=True))
    broken = []
    for name, folder in folders.items():
        found[name]["collapsed"] = collapse(found[name], found["start"], last_kl(work / "runs" / folder))
        broken += [f"{name} HAS COLLAPSED: {reason}" for reason in found[name]["collapsed"]]
    write_json(work / "results.json", found)
    if work.resolve().parent == LAST.parent:
        write_json(LAST, found)
    says = [
        *sentences(runs),
        f"Each interval is of these {prompts} prompts and of one training seed; another seed may come out otherwise.",
        f"There are {len(runs) * (len(runs) - 1) // 2} comparisons at 95%: one in twenty would show a difference by "
        "chance.",
    ]
    return [
        recommended_lines(work),
        before_and_after(runs),
        result_table(found, prompts),
        *(["\n".join(broken)] if broken else []),
        "\n".join(says),
        what_to_look_at(work, "answers_results") + f"\n{'all numbers':<32}{short(work / 'results.json')}",
    ]
