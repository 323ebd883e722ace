"""Argument parsers, the types of their flags, flags that several commands share, the check that one names a model."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from .errors import UserError
from .languages import NAMES
from .launch import is_main_process
from .paths import is_local_path
from .prompts import CHAT_TEMPLATE
from .service import is_near, plain_key, plain_url

HOLISTIC_KEY = "ALARM_HOLISTIC_KEY"  # the environment variable


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, except for switches, for which `(default: False)` says nothing."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default is None or action.default is False or action.default is argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser whose --help shows each default; abbreviations of flags are refused."""
    return argparse.ArgumentParser(description=description, formatter_class=_Formatter, allow_abbrev=False)


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def positive_float(text: str) -> float:
    value = finite_float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def seed_value(text: str) -> int:
    """A seed that Python, numpy and torch all take: 0 to 2^32 - 1."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text[:30]} is not from 0 to {2**32 - 1}")
    return value


def open_share(text: str) -> float:
    value = finite_float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie between 0 and 1")
    return value


def nonnegative_float(text: str) -> float:
    value = finite_float(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def unit_share(text: str) -> float:
    value = finite_float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def half_share(text: str) -> float:
    value = finite_float(text)
    if not 0 <= value <= 0.5:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 0.5")
    return value


def named_numbers(text: str) -> dict[str, float]:
    """`a=1,b=0.5` -> {"a": 1.0, "b": 0.5}."""
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, number = part.partition("=")
        if not equals or name.strip() in found:
            raise argparse.ArgumentTypeError(f"{part} is no NAME=NUMBER, or names {name} again")
        found[name.strip()] = finite_float(number)
    return found


def check_names(named: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raise UserError if `what`, such as --targets, names something that is none of `known`."""
    if unknown := set(named) - set(known):
        raise UserError(f"{what} names {min(unknown)!r}, which is none of {', '.join(sorted(known))}")


# argparse names the type in its message: "invalid int value"
positive_int.__name__ = seed_value.__name__ = "int"
positive_float.__name__ = finite_float.__name__ = open_share.__name__ = "float"
nonnegative_float.__name__ = unit_share.__name__ = half_share.__name__ = "float"


def check_model_name(name: str, flag: str, configs: tuple[str, ...] = ("config.json",)) -> None:
    """Raise UserError if `name` is a local path without a model; a hub name passes unchecked."""
    path = Path(name)
    if path.is_dir():
        if not any((path / config).is_file() for config in configs):
            raise UserError(f"{flag} {name} holds no {' or '.join(configs)}; give the folder of a model")
        return
    if is_local_path(name):
        raise UserError(f"{flag}: there is no folder {name}; give the folder of a model or a hub name")


def add_holistic_flags(flags: argparse.ArgumentParser, several: bool = False) -> None:
    """Add where the model of --holistic_model runs. several: the command can be started as several processes."""
    flags.add_argument(
        "--holistic_server",
        help="URL of a vLLM that serves the model at --holistic_model, of which then only config and tokenizer are "
        f"read here; its key, if it wants one, is taken from {HOLISTIC_KEY}",
    )
    flags.add_argument(
        "--holistic_check",
        action="store_true",
        help="with --holistic_server: load the model at --holistic_model once, on the CPU, and compare its scores of a "
        "few texts with the server's",
    )
    flags.add_argument(
        "--holistic_8bit",
        action="store_true",
        help="load the holistic model's weights in 8 bits, for half of the memory of bfloat16 and scores that differ a "
        "little (needs bitsandbytes)",
    )
    if several:
        flags.add_argument(
            "--holistic_shard",
            action="store_true",
            help="with several processes: divide the weights of the holistic model among them, instead of a whole copy "
            "on each; the scores stay the same, and each batch costs the transport of the weights",
        )


def check_holistic(args: argparse.Namespace) -> None:
    """Raise UserError for a holistic model that cannot be there, and for flags of a server that have no use.

    Makes args.holistic_server a plain address. Warns of one that texts reach unencrypted. Loads and sends nothing.
    """
    if args.holistic_server is not None:
        if args.holistic_model is None:
            raise UserError("--holistic_server needs --holistic_model: the folder or hub name of the model it serves")
        url = plain_url(args.holistic_server, "--holistic_server", "http://localhost:8000", HOLISTIC_KEY)
        args.holistic_server = url.removesuffix("/classify").removesuffix("/v1")
        what = "texts" if holistic_key() is None else "texts and the key"
        if url.startswith("http:") and not is_near(urlsplit(url).hostname) and is_main_process():
            print(f"warning: {what} go to {url} unencrypted; prefer https", file=sys.stderr, flush=True)
    elif args.holistic_check:
        raise UserError("--holistic_check goes with --holistic_server; add it or drop --holistic_check")
    if args.holistic_8bit:
        other = {"--holistic_server": args.holistic_server, "--holistic_shard": getattr(args, "holistic_shard", False)}
        if given := [flag for flag, value in other.items() if value]:
            raise UserError(f"--holistic_8bit is for a whole model that is loaded here; drop it or {given[0]}")
        if args.holistic_model is None:
            raise UserError("--holistic_8bit loads the model at --holistic_model; add it or drop --holistic_8bit")
        if find_spec("bitsandbytes") is None:
            raise UserError("--holistic_8bit needs bitsandbytes; `pip install bitsandbytes`, or drop it")
    if getattr(args, "holistic_shard", False):
        if args.holistic_server is not None or args.holistic_model is None:
            other = "a server runs the model" if args.holistic_server is not None else "there is no --holistic_model"
            raise UserError(f"--holistic_shard divides a model that is loaded here, and {other}; drop it")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise UserError(
                "--holistic_shard divides a model among processes, and there is one; start more, or drop it"
            )
    if args.holistic_model is not None:
        check_model_name(args.holistic_model, "--holistic_model")


def holistic_key() -> str | None:
    """The key of the holistic server, from the environment. UserError, without saying it, for one that is none."""
    key = os.environ.get(HOLISTIC_KEY, "")
    return plain_key(key, "the holistic server's", HOLISTIC_KEY) if key.strip() else None


def add_flag(flags: argparse.ArgumentParser, flag) -> None:
    """Add a constant of a task or an aspect (api.Flag)."""
    flags.add_argument(f"--{flag.name}", type=flag.kind, default=flag.default, help=flag.help, choices=flag.choices)


def add_policy_flags(flags: argparse.ArgumentParser) -> None:
    """Add what says how a policy of any kind reads its prompts."""
    flags.add_argument(
        "--chat_template",
        default="auto",
        choices=CHAT_TEMPLATE,
        help="auto: prompts of a decoder-only policy go through its tokenizer's chat template, if it has one",
    )
    add_language_flags(flags)


def add_language_flags(flags: argparse.ArgumentParser) -> None:
    """Add the languages that a policy's tokenizer is set to."""
    flags.add_argument("--source_language", help=f"language of the prompts, {NAMES}")
    flags.add_argument("--target_language", help="language of the answers, likewise")
