"""Browse the answers that training kept: one page with a step slider, search, filters, and rewards on tokens.

python ./eval/browse_rollouts.py runs/hierarchical runs/aspect_only
"""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm.common.errors import UserError, report_user_errors
from alarm.common.files import check_writable
from alarm.common.flags import parser

NAME = "rollouts.html"


def port_number(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 65535")
    return value


port_number.__name__ = "int"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    flags = parser(__doc__.split("\n\n")[0])
    add = flags.add_argument
    add("run_dir", nargs="+", help="the --save_dir of a train_ppo.py; several are shown side by side, 6 at most")
    add("--save_path", type=Path, help=f"the page to write (default: {NAME} in the first RUN_DIR)")
    add("--serve", action="store_true", help="serve the page on 127.0.0.1; it is read anew at each reload")
    add("--port", type=port_number, help="port of --serve (default: a free one)")
    return flags.parse_args(argv)


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.port and not args.serve:
        raise UserError("--port is for --serve; add --serve, or leave --port out")

    from alarm.common.files import write_text
    from alarm.evaluation.rollouts.page import MOST_RUNS, is_rollouts_page, rollouts_page
    from alarm.evaluation.rollouts.read import read_rollouts
    from alarm.evaluation.rollouts.serve import make_server
    from alarm.training.plot import run_names

    if len(args.run_dir) > MOST_RUNS:
        raise UserError(f"{len(args.run_dir)} runs cannot be told apart on one page; give at most {MOST_RUNS}")
    names = run_names(args.run_dir)
    if len(set(names)) < len(names):
        raise UserError("a RUN_DIR is given twice; give each run once")

    def page() -> str:
        return rollouts_page([read_rollouts(*run) for run in zip(args.run_dir, names, strict=True)])

    target = None
    if args.save_path or not args.serve:
        target = args.save_path or Path(args.run_dir[0]) / NAME
        check_writable(target, "--save_path")
        if target.is_dir():
            raise UserError(f"--save_path {target} is a folder; give the path of a file")
        if target.exists() and not is_rollouts_page(target):
            raise UserError(f"--save_path {target} exists and is no page of this script; give another one")
    server = make_server(page, args.port or 0) if args.serve else None
    text = page()
    if target is not None:
        write_text(target, text)
        print(f"wrote {target} ({len(text.encode()) / 1e6:.1f} MB); open it in a browser", flush=True)
    if server is not None:
        print(f"serving http://127.0.0.1:{server.server_address[1]}/ (stop with ^C)", flush=True)
        with server:
            server.serve_forever()


if __name__ == "__main__":
    main()
