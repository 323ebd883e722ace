"""The quickstart on a small world: PPO with four combinations, each answer judged by the truth."""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.common.console import Table
from alarm.common.errors import UserError
from alarm.common.files import read_json, write_json
from miniature import agreement
from miniature.grid import PAPER
from miniature.results import (
    answers_before_and_after,
    collapses,
    last_kl,
    read_runs,
    results_table,
    sentences,
    summarise,
)
from miniature.settings import World, scoring
from miniature.stages import ROOT, Stage, Together, flag_words, short

SAMPLES = 16  # answers to each dev prompt for best-of-n
START, RECOMMENDED = "start", "recommended"
RUNS = ("hierarchical", "holistic_only", "weighted_sum", RECOMMENDED)
CALIBRATED = ("ultra_mean", "ultra_std", "holistic_level")  # --calibration gives these
DATA = {  # sizes of what the quickstart does not train
    "mt": {"sft": 1, "sft_dev": 1},
    "qa": {"train_feedback": 1, "dev_feedback": 1},
}
RANKED = {  # settings that best-of-n tries for each combiner
    "mt": ["--w_grammar", "0.1", "0.3", "1", "--shaping", "sigmoid", "centred"],
    "qa": ["--w_rel", "0.3", "1", "3", "--w_fact", "0.3", "1", "3", "--w_comp", "0", "--shaping", "sigmoid", "centred"],
}


def built_world(world: World, args: argparse.Namespace) -> Path:
    """The folder of the start and the reward models. UserError if something is missing."""
    built = Path(args.built or world.shipped)
    for name in ("start", "holistic", "built.json", *(["rm"] if world.name == "qa" else [])):
        if not (built / name).exists():
            raise UserError(
                f"{built} has no {name}; make it with `python -m miniature.build --world {world.name} --save_dir DIR`, "
                "and name DIR by --built"
            )
    made = read_json(built / "built.json")
    if not isinstance(made, dict) or made.get("world") != world.name or not isinstance(made.get("seed"), int):
        raise UserError(f"{built / 'built.json'} is of no world {world.name}; give --built a world of this task")
    return built


def ranked(bench: Path) -> dict[str, float]:
    """Combiner -> true quality of the best of SAMPLES on the prompts that chose its settings, the best one first."""
    found = read_json(bench)
    quality = {name: found["settings"][i]["dev"][-1] for name, i in found["chosen_settings"].items()}
    return dict(sorted(quality.items(), key=lambda item: -item[1]))


def recommended(bench: Path) -> tuple[str, dict]:
    """The combiner that ranks dev prompts best, of those that are not run anyway, and its flags."""
    found = read_json(bench)
    best = next(name for name in ranked(bench) if name not in PAPER)
    flags = found["settings"][found["chosen_settings"][best]]["flags"]
    return best, {name: value for name, value in flags.items() if name not in ("reward_type", *CALIBRATED)}


def small_stages(world: World, args: argparse.Namespace, work: Path) -> list[Stage | Together]:
    """`args`: built, grammar_backend, steps, seed, train_prompts, dev_prompts, test_prompts."""
    built, data = built_world(world, args), work / "data"
    seed = read_json(built / "built.json")["seed"]
    flags = world.files(built, data) | dict(world.ppo) | {"calibration": work / "calibration.json", "seed": args.seed}
    if "grammar_backend" in flags:
        flags["grammar_backend"] = args.grammar_backend
    steps = min(world.steps, args.steps or world.steps)
    test_file, dev_file = (short(data / f"{split}.{world.ending}") for split in ("test", "dev"))
    print(f"start and reward models: {short(built)}, made by")
    print(f"    python -m miniature.build --world {world.name} --seed {seed} --save_dir DIR")
    if flags.get("grammar_backend") == "rules":
        print("grammar errors are found by --grammar_backend rules, the offline stand-in for LanguageTool; the checker")
        print("    itself agrees with the truth more often and takes longer: make quickstart GRAMMAR=languagetool")

    def at(name: str) -> str:
        return short(work / name)

    def words(command: list[str], **own) -> list[str]:
        return [*command, *flag_words(**{name: short(v) if isinstance(v, Path) else v for name, v in own.items()})]

    def prompts() -> list[str]:
        sizes = DATA[world.name] | {name: getattr(args, f"{name}_prompts") for name in ("train", "dev", "test")}
        return words(["-m", f"miniature.{world.name}.data"], save_dir=data, seed=seed, **sizes)

    def calibration() -> list[str]:
        return words(
            ["-m", "alarm.calibrate"], task=world.task, policy_ckpt=flags["policy_ckpt"], prompts=dev_file,
            rewards="holistic", holistic_model=flags["holistic_model"], dtype="float32", limit=150, batch_size=200,
            samples_per_prompt=flags["samples_per_prompt"], holistic_baseline=flags["holistic_baseline"],
            rm_max_batch_size=64, seed=args.seed, save_path=work / "calibration.json", **lengths,
        )  # fmt: skip

    def samples() -> list[str]:
        return words(
            ["-m", "alarm.train_ppo"], **scoring(flags), test=True, test_do_sample=True, num_samples=SAMPLES,
            policy_ckpt=flags["policy_ckpt"], test_file=dev_file, batch_size=256, seed=args.seed,
            save_dir=work / "samples.json",
        )  # fmt: skip

    def best_of_n() -> list[str]:
        return [
            *words(
                ["-m", "alarm.best_of_n"], task=world.task, generations=work / "samples.json", quality="oracle",
                dev_share=0.5, save_path=work / "best_of_n.json", overwrite=True,
                holistic_baseline=flags["holistic_baseline"],
                holistic_reward_weight=flags["holistic_reward_weight"],
            ),
            *RANKED[world.name],
        ]  # fmt: skip

    def ppo(name: str) -> Stage:
        def command() -> list[str]:
            own = {"reward_type": name}
            if name == RECOMMENDED:
                combiner, chosen = recommended(work / "best_of_n.json")
                own = {"reward_type": combiner} | chosen
            # the same dev prompts again and again, so that they can be followed in rollouts.html
            own |= {"eval_interval": 10, "eval_batch_size": 200}
            return words(
                ["-m", "alarm.train_ppo"], **flags | own, max_steps=steps, checkpoint_interval=10, resume=True,
                save_dir=work / "runs" / name,
            )  # fmt: skip

        return Stage(f"PPO, {name}", f"runs/{name}", command, resumable=True, steps=steps)

    def test(name: str) -> Stage:
        def command() -> list[str]:
            policy = flags["policy_ckpt"] if name == START else work / "runs" / name
            return words(
                ["-m", "alarm.train_ppo"], **scoring(flags), test=True, test_do_sample=True, policy_ckpt=policy,
                test_file=test_file, batch_size=250, seed=args.seed, save_dir=work / "generations" / f"{name}.json",
            )  # fmt: skip

        return Stage(f"answers of {name}", f"generations/{name}.json", command)

    def curves() -> list[str]:
        runs = [word for name in RUNS for word in ("--run_dir", at(f"runs/{name}"))]
        return ["-m", "alarm.plot_run", *runs, "--save_dir", at("plots")]

    def rollouts() -> list[str]:
        runs = [at(f"runs/{name}") for name in RUNS]
        return ["eval/browse_rollouts.py", *runs, "--save_path", at("rollouts.html")]

    def truth() -> list[str]:
        return words(
            ["-m", "miniature.agreement"], task=world.task, samples=work / "samples.json",
            output=work / "agreement.json", overwrite=True,
        )  # fmt: skip

    def inspect() -> list[str]:
        own = {name: value for name, value in flags.items() if name != "task" and not name.endswith("_file")}
        return words(
            ["eval/inspect_rewards.py"], task_type=world.task, generations=work / "generations" / "hierarchical.json",
            examples=test_file, limit=5, html=work / "inspection.html", reward_type="hierarchical", **own,
        )  # fmt: skip

    def compare() -> list[str]:
        return words(["eval/eval_compare.py"], generations_dir=work / "generations", task_type=world.task)

    lengths = {name: flags[name] for name in ("max_input_len", "max_generated_len") if name in flags}
    return [
        Stage("prompts", "data", prompts),
        Stage("scale of the holistic score", "calibration.json", calibration),
        Stage(f"{SAMPLES} answers of the start to each dev prompt", "samples.json", samples),
        Stage("do the rewards agree with the truth", "agreement.json", truth),
        Stage("which combination ranks them best", "best_of_n.json", best_of_n),
        Together("four runs of PPO", tuple(ppo(name) for name in RUNS)),
        Together("answers to the test prompts", tuple(test(name) for name in (START, *RUNS))),
        Together(
            "pages and figures",
            (
                Stage("comparison", "generations_results/eval-results.json", compare),
                Stage("rewards token by token", "inspection.html", inspect),
                Stage("curves of the PPO runs", "plots", curves),
                Stage("answers through training", "rollouts.html", rollouts),
            ),
        ),
    ]


def small_summary(world: World, work: Path) -> list[Table | str]:
    """Tables and paragraphs; writes results.json, and a copy beside the default work folders."""
    names = (START, *RUNS)
    runs = read_runs([str(work / "generations" / f"{name}.json") for name in names])
    found = summarise(runs, {name: last_kl(work / "runs" / name) for name in RUNS}, world.limit)
    found[RECOMMENDED]["combiner"], _ = recommended(work / "best_of_n.json")
    default = ROOT / "quickstart" / "work"
    for folder in (work, *([default] if work.resolve().parent == default else [])):
        write_json(folder / "results.json", found)
    looked_at = {
        "the report, a page": "generations_results/eval-report/index.html",
        "rewards token by token, a page": "inspection.html",
        "answers through training, a page": "rollouts.html",
        "combiners by best of n": "best_of_n.png",
        "curves of the PPO runs": "plots/training.png",
        "these numbers": "results.json",
    }
    return [
        "Rewards against the truth, dev prompts: share of answers to a prompt that are ordered rightly, rank\n"
        "correlation across prompts, and what a token more earns at the same quality\n"
        + agreement.table(read_json(work / "agreement.json")["rewards"]),
        results_table(found, len(runs[START])),
        *(["\n".join(fallen)] if (fallen := collapses(found)) else []),
        recommendation(work / "best_of_n.json"),
        "\n".join(["95% intervals, each on its own, of one seed of training:", *sentences(runs)]),
        answers_before_and_after(runs, START, "hierarchical"),
        "\n".join(f"{what:<34}{short(work / file)}" for what, file in looked_at.items()),
    ]


def recommendation(bench: Path) -> str:
    """What best-of-n says, and what was trained for it."""
    quality, (combiner, chosen) = ranked(bench), recommended(bench)
    shown = {name: value for name, value in chosen.items() if value or not name.startswith("w_")}
    ranking = ", ".join(f"{name} {value:.3f}" for name, value in quality.items())
    best = next(iter(quality))
    instead = f" ({best} comes first, and is known from the paper)" if best != combiner else ""
    return (
        f"Best of {SAMPLES} on dev prompts, true quality: {ranking}\n"
        f"recommended: {combiner}{instead}, with {' '.join(flag_words(**shown))}\n"
        "These settings were chosen on dev prompts, for best of n. The three other runs have those of the world."
    )
