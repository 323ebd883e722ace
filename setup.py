"""The core needs torch, transformers and numpy. What else a command needs is an extra.

requirements.txt has the pins that the tests run with.
"""

from pathlib import Path

from setuptools import find_packages, setup

PINS = dict(
    line.split("==") for line in Path(__file__).with_name("requirements.txt").read_text().splitlines() if "==" in line
)
CORE = ["torch>=2.6", "transformers>=5.0", "numpy>=2.0"]
EXTRAS = {
    "qa": ["spacy", "pysbd"],
    "mt": [
        "datasets",
        "language-tool-python",
        "lingua-language-detector",
        "psutil",
        "requests",
        "sacrebleu",
        "setuptools",
        "textstat",
    ],
    "eval": ["rich", "matplotlib", "openai"],
    # our trainer, in the folder trl/, is a distribution of its own: pip install ./trl
    "train": ["accelerate", "peft", "sentencepiece", "protobuf", "rich", "matplotlib", "tensorboard", "wandb"],
}
# later versions do something else, or lack something
EXACT = {"textstat", "setuptools"}


def bounded(name: str) -> str:
    return f"{name}{'==' if name in EXACT else '>='}{PINS[name]}"


extras = {extra: [bounded(name) for name in names] for extra, names in EXTRAS.items()}

setup(
    name="alarm-rlhf",
    version="0.1.0",
    description="Hierarchical rewards modeling: RLHF with one holistic and several aspect rewards",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["alarm", "alarm.*"]),
    package_data={
        "alarm.evaluation.pages": ["*.css", "*.js", "vendor/*"],
        "alarm.evaluation.report": ["*.html", "*.js"],
        "alarm.evaluation.rollouts": ["*.css", "*.html", "*.js"],
    },
    install_requires=CORE,
    extras_require=extras | {"all": sorted({line for lines in extras.values() for line in lines})},
)
