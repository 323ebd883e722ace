"""A whole task in one file: headlines that are short, keep to the text, and do not shout.

    T="--task examples/headlines.py"
    D="--train_file examples/data/train.json --dev_file examples/data/dev.json"
    python -m alarm.train_sft $T $D --model_path MODEL --save_dir work/sft
    python -m alarm.train_ppo $T $D --policy_ckpt work/sft --w_brevity 1 --w_shouting 1 --save_dir work/run
    python -m alarm.train_ppo $T --test --policy_ckpt work/run --test_file TEST_FILE --save_dir OUT.json

MODEL is an encoder-decoder or a decoder-only model: a folder or a hub name.
"""

import re

from alarm import Aspect, Metric, Task


def brevity(prompts, answers, rows):
    """One number an answer: it is paid on the last token."""
    return [-len(answer.split()) / 20 for answer in answers]


def shouting(prompts, answers, rows):
    """Spans of characters, each with a value: with pay="tokens" it is paid on each token that the span touches."""
    return [[(m.start(), m.end(), -1.0) for m in re.finditer(r"\b[A-Z]{3,}\b", answer)] for answer in answers]


def on_topic(prompts, answers, rows):
    """Stands for a preference model, so that the example runs without one: the share of the letters of the reference.

    Give a real one by --holistic_model.
    """
    letters = [(set(answer.lower()), set(row["headline"].lower())) for answer, row in zip(answers, rows, strict=True)]
    return [len(own & wanted) / len(wanted) for own, wanted in letters]


TASK = Task(
    name="headlines",
    prompt=lambda row: "headline: " + row["text"],
    answer=lambda row: row["headline"],
    aspects=[
        Aspect("brevity", brevity),
        Aspect("shouting", shouting, pay="tokens", metrics=[Metric("shouted_words", lower_wins=True)]),
    ],
    holistic=on_topic,
    defaults={"ultra_mean": 0.5, "ultra_std": 0.2},
    max_input_len=64,
    max_generated_len=16,
)
