"""Make a small world from its seed: data, supervised start, reward models, their scale, their agreement with the truth.

    python -m miniature.build --world mt --seed 0 --save_dir DIR

Each stage is a command that you could type. Run it again after an interruption: what is done is skipped. DIR then holds
    data/                 train, dev and test files
    start/                the policy that PPO starts from
    holistic/             the preference model; --flips 0 0.25 add holistic_0/ and holistic_25/
    rm/                   qa: the aspect models
    calibration.json      the scale of the holistic score less its group's mean; calibration_*.json of other scores
    agreement.json        how well each reward agrees with the truth
    built.json            what was run, and how long it took
`--ship` copies all but the data into miniature/checkpoints/.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from alarm.common.console import print_table
from alarm.common.errors import report_user_errors
from alarm.common.files import whole_folder, write_json, write_text
from alarm.common.flags import half_share, parser, positive_int, seed_value
from alarm.tasks.mt.grammar import BACKENDS

from .settings import WORLDS, World
from .stages import MARKER, Stage, check_work_dir, flag_words, run_stages, short, time_table

FLIPS = 0.1  # share of the preferences of `holistic/` that are turned round
SHIPPED = ("start", "holistic", "rm", "calibration.json", "agreement.json", "built.json")  # the rest: by --flips
PLACE = "DIR"  # stands for --save_dir in what is shipped: no path of a machine
ASPECT_MODELS = {  # qa: aspect -> folder and flags of its training
    "relevance": ("rel_rm", {"num_epochs": 3, "lr": 1e-3}),
    "factuality": ("fact_rm", {"num_epochs": 5, "lr": 2e-3}),
    "completeness": ("comp_rm", {"num_epochs": 1, "lr": 2e-3, "max_steps": 250}),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("--world", required=True, choices=tuple(WORLDS), help="mt: translation; qa: long-form QA")
    add("--seed", type=seed_value, default=0, help="seed of the data, the weights and every stage")
    add("--save_dir", required=True, help="folder of everything that is written")
    add("--flips", type=half_share, nargs="*", default=[], help="make holistic models of these shares of flips too")
    add("--scale", type=positive_int, default=1, help="divide the sizes and steps by this, for a quick look")
    add("--grammar_backend", default="languagetool", choices=BACKENDS, help="mt: what finds errors of grammar")
    add("--ship", action="store_true", help="replace miniature/checkpoints/WORLD by what was made")
    return flags.parse_args(argv)


class Build:
    """The stages of a world: methods add them in the order in which they run."""

    def __init__(self, world: World, args: argparse.Namespace):
        self.world, self.args, self.work = world, args, Path(args.save_dir)
        self.task = {"task": world.task}
        self.lengths = {name: world.ppo[name] for name in ("max_input_len", "max_generated_len") if name in world.ppo}
        self.stages: list[Stage] = []

    def at(self, name: str) -> str:
        return short(self.work / name)

    def size(self, number: int) -> int:
        return max(8, number // self.args.scale)

    def add(self, name: str, output: str, command: list[str], /, **flags) -> None:
        words = [*command, *flag_words(**flags)]
        self.stages.append(Stage(name, output, lambda: words))

    def data(self, output: str, seed: int, **sizes: int) -> None:
        sizes = {name: self.size(size) if size > 1 else 1 for name, size in sizes.items()}
        command = ["-m", f"miniature.{self.world.name}.data"]
        self.add(f"data: {output}", output, command, save_dir=self.at(output), seed=seed, **sizes)

    def models(self, **sizes: int) -> None:
        command = ["-m", "miniature.models", "--world", self.world.name]
        self.add("untrained models", "base", command, save_dir=self.at("base"), seed=self.args.seed, **sizes)

    def sft(self, name: str, output: str, start: str, train: str, dev: str, steps: int, **flags) -> None:
        self.add(
            name, output, ["-m", "alarm.train_sft"], **self.task, **self.lengths, model_path=self.at(start),
            train_file=self.at(train), dev_file=self.at(dev), save_dir=self.at(output), num_epochs=100,
            max_steps=self.size(steps), seed=self.args.seed, report_to="none", **flags,
        )  # fmt: skip

    def sample(self, split: str, prompts: int, samples: int) -> None:
        self.add(
            f"answers to {split} prompts", f"{split}_samples.jsonl", ["-m", "miniature.sample"], **self.task,
            **self.lengths, policy_ckpt=self.at("start"), prompts=self.at(f"data/{split}.{self.world.ending}"),
            limit=self.size(prompts), samples=samples, batch_size=512, seed=self.args.seed,
            save_path=self.at(f"{split}_samples.jsonl"),
        )  # fmt: skip

    def preferences(self, name: str, split: str, flips: list[float], **flags) -> None:
        self.add(
            f"preferences between {split} answers: {name}", name,
            ["-m", "miniature.preferences", "--flips", *(f"{share:g}" for share in flips)], **self.task,
            samples=self.at(f"{split}_samples.jsonl"), save_dir=self.at(name), seed=self.args.seed, **flags,
        )  # fmt: skip

    def reader(self, train: str, dev: str, steps: int, **flags) -> None:
        """A language model from which the preference models start."""
        self.add(
            "a language model that reads answers", "reader", ["-m", "alarm.train_sft"],
            task=f"miniature/{self.world.name}/reader.py", model_path=self.at("base/llama"), train_file=self.at(train),
            dev_file=self.at(dev), save_dir=self.at("reader"), num_epochs=100, max_steps=self.size(steps),
            seed=self.args.seed, report_to="none", **flags,
        )  # fmt: skip

    def holistic(self, folder: str, pairs: str, steps: int, **flags) -> None:
        self.add(
            f"preference model: {folder}", folder, ["-m", "alarm.train_holistic"], model_path=self.at("reader"),
            train_file=self.at(pairs), dev_file=self.at("pairs_dev/0.jsonl"), save_dir=self.at(folder), num_epochs=100,
            max_steps=self.size(steps), selection_share=0.0, seed=self.args.seed, **flags,
        )  # fmt: skip

    def judges(self, pairs_per_prompt: int, steps: int, **flags) -> None:
        """The preference model, what its scores are worth, and then those of other shares of flips."""
        self.preferences("pairs_train", "train", [FLIPS], pairs_per_prompt=pairs_per_prompt)
        self.preferences("pairs_dev", "dev", [0.0])
        self.holistic("holistic", f"pairs_train/{round(100 * FLIPS)}.jsonl", steps, **flags)
        self.measure()
        if self.args.flips:
            self.preferences("pairs_flipped", "train", self.args.flips, pairs_per_prompt=pairs_per_prompt)
        for percent in (round(100 * share) for share in self.args.flips):
            self.holistic(f"holistic_{percent}", f"pairs_flipped/{percent}.jsonl", steps, **flags)
            holistic = self.at(f"holistic_{percent}")
            self.calibrate(f"calibration_{percent}.json", "group", holistic_model=holistic)

    def calibrate(self, output: str, baseline: str, **flags) -> None:
        self.add(
            f"scale of the holistic score: {output}", output, ["-m", "alarm.calibrate"], **self.task | flags,
            **self.lengths, policy_ckpt=self.at("start"), dtype="float32",
            prompts=self.at(f"data/dev.{self.world.ending}"), rewards="holistic", limit=self.size(300),
            samples_per_prompt=4, holistic_baseline=baseline, batch_size=256, rm_max_batch_size=64,
            save_path=self.at(output), seed=self.args.seed,
        )  # fmt: skip

    def measure(self) -> None:
        """The scale of the holistic score, and the agreement of every reward with the truth."""
        dev = self.at(f"data/dev.{self.world.ending}")
        holistic = {"policy_ckpt": self.at("start"), "holistic_model": self.at("holistic"), "dtype": "float32"}
        self.calibrate("calibration.json", "group", holistic_model=self.at("holistic"))
        self.calibrate("calibration_absolute.json", "none", holistic_model=self.at("holistic"))
        if self.world.exact:
            self.calibrate("calibration_exact.json", "group", task=self.world.exact)
        aspects = {
            "qa": {"reward_model_dir": self.at("rm"), "splitter": "sentencizer"},
            "mt": {"grammar_backend": self.args.grammar_backend},
        }[self.world.name]
        self.add(
            "scored answers to dev prompts", "dev_scored.json", ["-m", "alarm.train_ppo"], **self.task, **holistic,
            **self.lengths, **aspects, test=True, test_do_sample=True, num_samples=4, test_file=dev,
            batch_size=256, rm_max_batch_size=64, save_dir=self.at("dev_scored.json"), seed=self.args.seed,
        )  # fmt: skip
        self.add(
            "agreement with the truth", "agreement.json", ["-m", "miniature.agreement"], **self.task,
            samples=self.at("dev_scored.json"), output=self.at("agreement.json"),
        )  # fmt: skip


def mt_stages(build: Build) -> None:
    build.data("data", build.args.seed, sft=57_600, sft_dev=500, train=20_000, dev=600, test=1000)
    build.models(policy_size=128, reward_size=128, reward_layers=2)
    demonstrations = ("data/sft.jsonl", "data/sft_dev.jsonl")
    build.sft("supervised start", "start", "base/t5", *demonstrations, 900, batch_size=64, lr=3e-3)
    build.reader(*demonstrations, 900, batch_size=64, lr=4e-3)
    build.sample("train", 20_000, 4)
    build.sample("dev", 600, 4)
    build.judges(2, 600, batch_size=64, lr=1e-3, max_length=96)


def qa_stages(build: Build) -> None:
    """A start that can read passages is first trained on clean references of another encyclopedia (TUNING.md)."""
    at, seed = build.at, build.args.seed
    build.data("data", seed, train_feedback=8000)
    build.data("pre", seed + 1000, train=16_000, train_feedback=1, dev_feedback=1, test=1)
    build.models(policy_size=64, reward_size=64)
    build.sft(
        "a policy that reads", "pretrained", "base/t5", "pre/train.json", "pre/dev.json", 2500, batch_size=32, lr=6e-3
    )
    build.sft(
        "supervised start", "start", "pretrained", "data/train_noisy.json", "data/dev_noisy.json", 188, batch_size=32,
        lr=5e-4,
    )  # fmt: skip
    build.sample("train", 8000, 4)
    build.sample("dev", 600, 4)
    for split, planted in (("train", 0.3), ("dev", 0.0)):
        build.add(
            f"feedback on {split} answers", f"{split}_feedback.json", ["-m", "miniature.qa.feedback"],
            samples=at(f"{split}_samples.jsonl"), split=split, planted=planted, seed=seed,
            save_path=at(f"{split}_feedback.json"),
        )  # fmt: skip
    for aspect, (folder, flags) in ASPECT_MODELS.items():
        if "max_steps" in flags:
            flags = flags | {"max_steps": build.size(flags["max_steps"])}
        build.add(
            f"{aspect} model", f"rm/{folder}", ["long-form-QA/train_rm.py"], aspect=aspect,
            model_path=at("base/longformer"), train_file=at("data/train.json"), dev_file=at("data/dev.json"),
            train_feedback_file=at("train_feedback.json"), dev_feedback_file=at("dev_feedback.json"),
            save_dir=at(f"rm/{folder}"), splitter="sentencizer", max_length=256, batch_size=16, seed=seed, **flags,
        )  # fmt: skip
    build.reader("pre/train.json", "pre/dev.json", 4000, batch_size=32, lr=4e-3)
    build.judges(6, 1200, batch_size=32, lr=1e-3, max_length=256)


def ship(world: World, work: Path) -> None:
    """Replace the shipped world by this one."""
    with whole_folder(world.shipped) as folder:
        for name in SHIPPED:
            if (work / name).is_dir():
                shutil.copytree(work / name, folder / name)
            elif (work / name).exists():
                write_text(folder / name, (work / name).read_text().replace(short(work), PLACE))


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    world, work = WORLDS[args.world], Path(args.save_dir)
    check_work_dir(work)
    build = Build(world, args)
    {"mt": mt_stages, "qa": qa_stages}[args.world](build)
    run_stages(build.stages, work)
    took = [json.loads(path.read_text().replace(short(work), PLACE)) for path in sorted((work / MARKER).glob("*.json"))]
    write_json(work / "built.json", {"world": args.world, "seed": args.seed, "scale": args.scale, "stages": took})
    print_table(time_table(work, build.stages))
    if args.ship:
        ship(world, work)
        print(f"replaced {short(world.shipped)}")


if __name__ == "__main__":
    main()
