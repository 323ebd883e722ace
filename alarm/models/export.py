"""Write a holistic model as vLLM serves it: a model in the UltraRM layout becomes a sequence classifier with one label.

The scores stay the same: the read-out gets another name. Give the folder to `vllm serve` and to --holistic_model.
"""

from __future__ import annotations

import argparse

from ..common.errors import UserError, report_user_errors
from ..common.files import check_new_folder, whole_folder
from ..common.flags import check_model_name, parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__)
    flags.add_argument("--holistic_model", required=True, help="the model: a folder or a hub name")
    flags.add_argument("--save_dir", required=True, help="new folder to write")
    flags.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of the weights")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_model_name(args.holistic_model, "--holistic_model")
    check_new_folder(args.save_dir, "--save_dir")

    from .holistic import HolisticModel, LlamaRewardModel, as_classifier
    from .load import position_limit

    loaded = HolisticModel.load(args.holistic_model, dtype=args.dtype)
    if not isinstance(loaded.model, LlamaRewardModel):
        raise UserError(
            f"--holistic_model {args.holistic_model} is a {type(loaded.model).__name__} already; serve it as it is"
        )
    with whole_folder(args.save_dir) as folder:
        as_classifier(loaded.model, loaded.pad_id).save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
    print(f"wrote {args.save_dir}; it reads {position_limit(loaded.config, loaded.tokenizer)} tokens")
    print(f"vllm serve {args.save_dir} --runner pooling --dtype {args.dtype}")
