"""The quickstart on a small world, where the true quality of every answer is known: its stages, and its last screen."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alarm.common.console import Table
from alarm.common.errors import UserError
from alarm.common.files import read_json, write_json
from alarm.training.run import read_log
from miniature import agreement, results
from miniature.settings import WORLDS, World, scoring
from miniature.stages import ROOT, Stage, flag_words, printable, short

from .grammar import grammar_backend

THREE = ("hierarchical", "holistic_only", "weighted_sum")  # the fourth is what best-of-n recommends
SAMPLES = 16  # answers to each dev prompt
TRAIN_PROMPTS = 3000
STAGES = 17
# flags of a run that are settings of a combiner too, beside the weights
RANKING = ("holistic_reward_weight", "hierarchical_threshold", "shaping", "placement", "holistic_baseline")
SHOWN_PROMPTS = 3
COPY = ROOT / "quickstart" / "work" / "results.json"  # the results of the last quickstart without --work_dir


@dataclass(frozen=True)
class Place:
    """What the stages of one quickstart share."""

    world: World
    built: Path
    work: Path
    steps: int  # of each PPO run
    test_prompts: int
    dev_prompts: int
    seed: int
    flags: dict[str, object]  # of train_ppo.py, as every run has them

    def at(self, name: str) -> str:
        return short(self.work / name)

    @property
    def test_file(self) -> str:
        return self.at(f"data/test.{self.world.ending}")


def place_of(args: argparse.Namespace, work: Path) -> Place:
    """Check the built world, and say what it is. Raises UserError if a file of it is missing."""
    world = WORLDS[args.task]
    built = Path(args.built or world.shipped)
    rebuild = f"python -m miniature.build --world {world.name} --seed 0 --save_dir DIR"
    needed = ["built.json", "start/config.json", "holistic/config.json"]
    needed += [f"rm/{name}/config.json" for name in ("rel_rm", "fact_rm", "comp_rm")] if world.name == "qa" else []
    for name in needed:
        if not (built / name).is_file():
            raise UserError(f"{short(built)} has no {name}; make a world with `{rebuild}`, then give --built DIR")
    print(f"Start policy and reward models are read from {short(built)}. They are made by: {rebuild}")
    flags = world.files(built, work / "data") | dict(world.ppo)
    flags |= {"calibration": work / "calibration.json", "seed": args.seed}
    flags = {name: short(value) if isinstance(value, Path) else value for name, value in flags.items()}
    if world.name == "mt":
        flags["grammar_backend"] = grammar_backend(str(flags.get("grammar_backend", "languagetool")))
    steps = min(world.steps, args.steps or world.steps)
    return Place(world, built, work, steps, args.test_prompts or 500, args.dev_prompts or 300, args.seed, flags)


# --- the commands ----------------------------------------------------------------------------------------------------


def stages_of(place: Place) -> Iterator[Stage | list[Stage]]:
    """All stages, STAGES of them. Those in a list can run at once."""
    yield data(place)
    yield calibration(place)
    dev_samples = {"test_file": place.at(f"data/dev.{place.world.ending}"), "num_samples": SAMPLES}
    yield [
        answers(place, f"{SAMPLES} answers to each dev prompt", "dev_samples.json", **dev_samples),
        answers(place, "answers of start", "generations/start.json"),
    ]
    yield [best_of_n(place), rewards_and_truth(place)]
    names = (*THREE, recommended(place.work))
    yield [ppo(place, name) for name in names]
    yield [
        answers(place, f"answers of {name}", f"generations/{name}.json", policy_ckpt=place.at(f"runs/{name}"))
        for name in names
    ]
    yield [comparison(place), inspection(place), curves(place, names)]


def data(place: Place) -> Stage:
    """Of the encyclopedia that the built world was made from: its seed is the built world's."""
    unused = {"mt": ("sft", "sft_dev"), "qa": ("train_feedback", "dev_feedback")}[place.world.name]
    sizes = {"train": TRAIN_PROMPTS, "dev": place.dev_prompts, "test": place.test_prompts} | dict.fromkeys(unused, 1)
    flags = flag_words(save_dir=place.at("data"), seed=read_json(place.built / "built.json")["seed"], **sizes)
    return Stage("data", "data", lambda: ["-m", f"miniature.{place.world.name}.data", *flags])


def calibration(place: Place) -> Stage:
    lengths = {name: place.flags[name] for name in ("max_input_len", "max_generated_len") if name in place.flags}
    flags = flag_words(
        task=place.world.task, policy_ckpt=place.flags["policy_ckpt"], holistic_model=place.flags["holistic_model"],
        prompts=place.flags["dev_file"], rewards="holistic", samples_per_prompt=4,
        holistic_baseline=place.flags["holistic_baseline"], **lengths, batch_size=256, rm_max_batch_size=64,
        dtype="float32", seed=place.seed, save_path=place.at("calibration.json"),
    )  # fmt: skip
    return Stage("scale of the holistic score", "calibration.json", lambda: ["-m", "alarm.calibrate", *flags])


def answers(place: Place, name: str, output: str, **others: object) -> Stage:
    flags = scoring(place.flags) | {
        "policy_ckpt": place.flags["policy_ckpt"],
        "test": True,
        "test_do_sample": True,
        "test_file": place.test_file,
        "batch_size": 256,
        "seed": place.seed,
    }
    words = ["-m", "alarm.train_ppo", *flag_words(**flags | others, save_dir=place.at(output))]
    return Stage(name, output, lambda: words)


def best_of_n(place: Place) -> Stage:
    """Every combiner, with the settings of the runs."""
    settings = {name: value for name, value in place.flags.items() if name in RANKING or name.startswith("w_")}
    flags = flag_words(
        generations=place.at("dev_samples.json"), task=place.world.task, quality="oracle", combine="all", **settings,
        save_path=place.at("best_of_n.json"), overwrite=True,
    )  # fmt: skip
    return Stage("best of 16 by every combiner", "best_of_n.json", lambda: ["-m", "alarm.best_of_n", *flags])


def rewards_and_truth(place: Place) -> Stage:
    flags = flag_words(
        task=place.world.task, samples=place.at("dev_samples.json"), output=place.at("agreement.json"), overwrite=True
    )
    return Stage("rewards against the truth", "agreement.json", lambda: ["-m", "miniature.agreement", *flags])


def ranked(work: Path) -> dict[str, float]:
    """Combiner -> mean true quality of the best of 16 on the dev prompts, the best one first."""
    chosen = read_json(work / "best_of_n.json")["chosen"]
    found = {name: curve["quality"][-1] for name, curve in chosen.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def recommended(work: Path) -> str:
    """The best combiner that is not one of the three."""
    return next(name for name in ranked(work) if name not in THREE)


def ppo(place: Place, name: str) -> Stage:
    flags = place.flags | {
        "reward_type": name,
        "max_steps": place.steps,
        "checkpoint_interval": 10,
        "resume": True,
        "save_dir": place.at(f"runs/{name}"),
    }
    log = place.work / "runs" / name / "log.jsonl"

    def steps_done() -> int:
        return sum("train" in row for row in read_log(log)) if log.exists() else 0

    words = ["-m", "alarm.train_ppo", *flag_words(**flags)]
    return Stage(f"PPO, {name}", f"runs/{name}", lambda: words, True, place.steps, steps_done)


def comparison(place: Place) -> Stage:
    flags = flag_words(generations_dir=place.at("generations"), task_type=place.world.task)
    return Stage("comparison", "generations_results", lambda: ["eval/eval_compare.py", *flags])


def inspection(place: Place) -> Stage:
    flags = {name: value for name, value in place.flags.items() if not name.endswith("_file") and name != "task"}
    flags |= {"task_type": place.world.task, "generations": place.at("generations/hierarchical.json"), "limit": 5}
    flags |= {"examples": place.test_file, "html": place.at("inspection.html"), "reward_type": "hierarchical"}
    words = ["eval/inspect_rewards.py", *flag_words(**flags)]
    return Stage("rewards token by token", "inspection.html", lambda: words)


def curves(place: Place, names: tuple[str, ...]) -> Stage:
    runs = [word for name in names for word in ("--run_dir", place.at(f"runs/{name}"))]
    words = ["-m", "alarm.plot_run", "--task", place.world.task, *runs, "--save_dir", place.at("plots")]
    return Stage("curves of the PPO runs", "plots", lambda: words)


# --- the last screen -------------------------------------------------------------------------------------------------


def summary_of(place: Place, copy: Path | None) -> list[Table | str]:
    """Tables and paragraphs. Writes results.json in the work folder, and to `copy`."""
    names = ("start", *THREE, recommended(place.work))
    runs = results.read_runs([str(place.work / "generations" / f"{name}.json") for name in names])
    kl = {name: results.last_kl(place.work / "runs" / name) for name in names}
    found = results.summarise(runs, kl, place.world.limit)
    files = [place.work / "results.json", *([copy] if copy else [])]
    for file in files:
        write_json(file, found)
    prompts = len(runs["start"])
    again = ["-m", "miniature.results", *(place.at(f"generations/{name}.json") for name in names)]
    again += flag_words(runs=place.at("runs"), max_generated_len=place.world.limit)
    blocks = [
        "How well each reward agrees with the truth, on dev prompts: answers to one prompt ordered rightly, rank\n"
        "correlation across prompts, what a word more is worth to it beside quality\n"
        + agreement.table(read_json(place.work / "agreement.json")["rewards"]),
        recommendation(place),
        before_and_after(runs),
        results.table(found),
        "\n".join(results.remarks(found)),
        f"What the intervals of {prompts} prompts say of true quality, 95% each (one seed of training: another may "
        "differ):\n" + "\n".join(f"  {line}" for line in results.verdicts(runs)),
        f"These numbers again: {printable(['python', *again])}",
        what_to_look_at(place, files),
    ]
    return [block for block in blocks if block]


def recommendation(place: Place) -> str:
    quality = ranked(place.work)
    best, name = next(iter(quality)), recommended(place.work)
    said = f"Best of {SAMPLES} by re-ranking, dev prompts, true quality: "
    said += ", ".join(f"{one} {value:.3f}" for one, value in quality.items())
    if best in THREE:
        return f"{said}\nThe best is {best}, which is trained anyway; the best of the others is trained too: {name}"
    return f"{said}\nThe best that is none of {', '.join(THREE)} is trained too: {name}"


def before_and_after(runs: results.Runs) -> str:
    """Prompts by a rule that does not look for good ones."""
    pairs = zip(runs["start"], runs["hierarchical"], strict=True)
    differ = [(before, after) for before, after in pairs if before["generation"] != after["generation"]]
    lines = [f"Sampled answers: the first {SHOWN_PROMPTS} test prompts that start and hierarchical answer differently"]
    for before, after in differ[:SHOWN_PROMPTS]:
        lines.append(f"  {before['query']}")
        for name, row in (("start", before), ("hierarchical", after)):
            lines.append(f"    {name:<13}{row['oracle']:.2f}  {row['generation']}")
    return "\n".join(lines) if differ else "start and hierarchical answer every test prompt alike"


def what_to_look_at(place: Place, files: list[Path]) -> str:
    """The files that are made to be looked at, a line each."""
    shown = {
        "the report, a page": "generations_results/eval-report/index.html",
        "rewards token by token, a page": "inspection.html",
        "curves of the PPO runs": "plots/training.png",
        "combiners by re-ranking": "best_of_n.png",
    }
    lines = [f"{what:<32}{place.at(file)}" for what, file in shown.items()]
    return "\n".join([*lines, f"{'numbers':<32}{', '.join(map(short, files))}"])
