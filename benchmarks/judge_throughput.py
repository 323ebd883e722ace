"""How much faster the judge is with several calls in flight than one at a time. Prints a table.

    python benchmarks/judge_throughput.py

The endpoint is the tests' stub, which answers each call after --latency seconds; it shares this machine's processors
with the judge. Every row judges the same pairs, in both orders, with an empty cache; the last one with a full one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from alarm.common.console import plain_table, print_table
from alarm.common.errors import report_user_errors
from alarm.common.flags import parser, positive_float, positive_int
from alarm.evaluation.judge.judge import DEFAULT_TEMPLATE, Comparison, Judge
from alarm.evaluation.judge.sender import JudgeSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
from judge_stub import JudgeStub


def judge_all(comparisons: list[Comparison], concurrency: int, cache: Path, url: str) -> tuple[float, int]:
    """-> seconds, and calls made."""
    settings = JudgeSettings(DEFAULT_TEMPLATE.read_text(), cache, base_url=url, concurrency=concurrency)
    judge = Judge(settings, "no-key")
    started = time.perf_counter()
    judgements = judge.judge(comparisons)
    seconds = time.perf_counter() - started
    if any(judgement.failed for judgement in judgements):
        raise RuntimeError(f"not everything was judged: {judge.usage}")
    return seconds, judge.usage.calls


@report_user_errors
def main(argv: list[str] | None = None) -> None:
    flags = parser(__doc__.split("\n")[0])
    flags.add_argument("--pairs", type=positive_int, default=150, help="pairs of texts; two calls each")
    flags.add_argument("--latency", type=positive_float, default=0.05, help="seconds that the stub takes for a call")
    flags.add_argument(
        "--concurrency", type=positive_int, nargs="+", default=[1, JudgeSettings.concurrency, 32],
        help="calls in flight, a row each; the first is what the others are compared with",
    )  # fmt: skip
    args = flags.parse_args(argv)

    comparisons = [
        Comparison(f"question {i}", f"answer {i} quality={i % 7}", f"reply {i} quality={i * 3 % 5}")
        for i in range(args.pairs)
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder, JudgeStub(latency=args.latency) as stub:
        # the client's import and first connection are nobody's throughput
        judge_all([Comparison("warm", "up quality=1", "down quality=0")], 1, Path(folder) / "warm.jsonl", stub.url)
        for concurrency in args.concurrency:
            cache = Path(folder) / f"{concurrency}.jsonl"
            rows.append((str(concurrency), *judge_all(comparisons, concurrency, cache, stub.url)))
        rows.append(("cached", *judge_all(comparisons, concurrency, cache, stub.url)))

    cells = [
        (name, str(calls), f"{seconds:.2f}", f"{2 * args.pairs / seconds:.1f}", f"{rows[0][1] / seconds:.1f}")
        for name, seconds, calls in rows
    ]
    title = f"{2 * args.pairs} requests, {1000 * args.latency:g} ms each"
    print_table(plain_table(title, ("in flight", "calls", "seconds", "requests/s", "ratio"), cells))


if __name__ == "__main__":
    main()
