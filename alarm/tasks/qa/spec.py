"""Long-form QA as a task: the paper's aspects, flags, constants and numbers."""

from __future__ import annotations

import os
from pathlib import Path

from ...api import Aspect, Flag, Metric, Task
from ...common.flags import positive_float
from ...models.classifiers import F_ERR, NF_ERR
from .aspects import Completeness, UnitAspect, factuality_context, relevance_context, sentences, subsentences
from .data import load_answered, load_examples, references

HERE = Path(os.path.relpath(Path(__file__).parents[3] / "long-form-QA"))

RELEVANCE = Aspect(
    "relevance",
    UnitAspect(
        "relevance",
        NF_ERR,
        context=lambda rollout: [relevance_context(row["question"]) for row in rollout.examples],
        units=subsentences,
    ),
    metrics=[
        Metric(
            "relevance_rate",
            published="verbosity_rate",
            title="relevance rate",
            ends=(0, 1),
            differs_by="units",
            depends_on="--reward_model_dir, --splitter, --dtype",
        )
    ],
    flag="w_rel",
    weight=1.0,
    flags=[
        Flag("relevance_positive_reward", 0.3, "reward of a relevant sub-sentence, on its last token"),
        Flag("relevance_negative_reward", -0.3, "reward of an irrelevant sub-sentence, on its last token"),
    ],
    calibrated="relevant sub-sentences / all, 0.5 without any",
)

FACTUALITY = Aspect(
    "factuality",
    UnitAspect(
        "factuality",
        F_ERR,
        context=lambda rollout: [factuality_context(query) for query in rollout.queries],
        units=sentences,
    ),
    metrics=[
        Metric(
            "factuality_rate",
            title="factuality rate",
            ends=(0, 1),
            differs_by="units",
            depends_on="--reward_model_dir, --splitter, --dtype",
        )
    ],
    flag="w_fact",
    weight=1.0,
    flags=[
        Flag("factuality_positive_reward", 0.5, "reward of a factual sentence, on its last token"),
        Flag("factuality_negative_reward", -0.5, "reward of a sentence with a factual error, on its last token"),
    ],
    calibrated="factual sentences / all, 0.5 without any",
)

COMPLETENESS = Aspect(
    "completeness",
    Completeness(),
    metrics=[
        Metric(
            "completeness_reward",
            title="completeness (normalised)",
            depends_on="--reward_model_dir, --completeness_reward_mean, _std, _bias, _scale, --dtype",
        )
    ],
    flag="w_comp",
    weight=1.0,
    flags=[
        Flag(
            "completeness_reward_mean",
            -0.44677690555995353,
            "mean of the completeness model's raw scores",
            statistic="mean",
        ),
        Flag(
            "completeness_reward_std",
            8.301160619054132,
            "standard deviation of the completeness model's raw scores",
            positive_float,
            statistic="std",
        ),
        Flag("completeness_reward_bias", 0.0, "added to the normalised, scaled score"),
        Flag("completeness_reward_scale", 0.3, "multiplies the normalised score"),
    ],
    calibrated="raw score of the completeness model",
)

TASK = Task(
    name="qa",
    prompt=lambda row: row["text"],
    aspects=[RELEVANCE, FACTUALITY, COMPLETENESS],
    max_input_len=1024,
    max_generated_len=200,
    load=load_examples,
    answer=references,
    load_answered=load_answered,
    sft={
        "model_path": "t5-large",
        "train_file": str(HERE / "qa_feedback" / "train.json"),
        "dev_file": str(HERE / "qa_feedback" / "dev.json"),
        "num_epochs": 10,
        "batch_size": 8,
        "lr": 1e-4,
    },
    flags=[
        Flag(
            "reward_model_dir",
            str(HERE / "model_ckpts"),
            "folder of the aspect reward models rel_rm, fact_rm and comp_rm",
            str,
            used_by="score",
        ),
        Flag(
            "splitter",
            "en_core_web_sm",
            "sentence splitter: a spaCy pipeline's name, pysbd, or sentencizer",
            str,
            used_by="score",
        ),
    ],
    defaults={
        "policy_ckpt": str(HERE / "model_ckpts" / "t5-large-1k-train"),
        "train_file": str(HERE / "qa_feedback" / "train.json"),
        "dev_file": str(HERE / "qa_feedback" / "dev.json"),
        "test_file": str(HERE / "qa_feedback" / "test.json"),
        "hierarchical_threshold": 0.6,
        "holistic_reward_weight": 5.0,
        "ultra_mean": -4.896130742253484,
        "ultra_std": 3.0595760500526468,
        "length_mean": 96.78820166320166,
        "lr": 2e-4,
        "outer_epoch": 2,
        "batch_size": 8,
        "mini_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "eval_interval": 10,
        "eval_batch_size": 32,
        "rm_max_batch_size": 8,
        "max_grad_norm": None,
    },
    holistic_max_tokens=1230,
    columns=("holistic_reward", "factuality_rate", "verbosity_rate", "completeness_reward", "response_length"),
    # arXiv 2403.06754: inconsistency in percent, read off the figure; win rates are averages over the three other runs
    paper={
        "inconsistency": {
            "factuality_rate": 22.0,
            "verbosity_rate": 40.0,
            "completeness_reward": 45.0,
            "response_length": 54.0,
        },
        "headings": [
            "holistic reward",
            "gpt-3.5-turbo",
            "mean holistic reward",
            "mean factuality rate",
            "mean length",
        ],
        "rows": [
            ("Holistic reward", "51.76 ± 1.66", "43.07", "0.608", "0.736", "87.8"),
            ("Factuality", "43.97 ± 3.92", "53.40", "0.538", "0.752", "116.8"),
            ("Weighted sum", "51.05 ± 0.67", "49.44", "0.598", "0.738", "98.5"),
            ("ALaRM", "53.22 ± 1.76", "54.08", "0.617", "0.752", "97.6"),
        ],
    },
)
