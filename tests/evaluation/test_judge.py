"""The judge against a stub endpoint: verdicts, faults, limits, the cache, kills, and a key that shows up nowhere."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm.common.errors import UserError
from alarm.common.retry_after import retry_after
from alarm.evaluation.judge.judge import (
    DEFAULT_TEMPLATE,
    Comparison,
    Judge,
    Judgement,
    add_judge_flags,
    judge_from_flags,
)
from alarm.evaluation.judge.replies import (
    MalformedReply,
    build_prompt,
    parse_template,
    read_answer,
    read_verdict,
    request_key,
)
from alarm.evaluation.judge.sender import NO_KEY, UNREACHABLE_AFTER, JudgeSettings, check_endpoint
from helpers import ROOT, load_script

stub = load_script("tests/evaluation/judge_stub.py")
KEY = "SECRET-0123456789abcdef"  # not of a form that is known for a key
TEMPLATE = "Q $query (first) $output_a (second) $output_b"


def settings(server, tmp_path: Path, **changes) -> JudgeSettings:
    url = server if isinstance(server, str) else server.url
    values = {"base_url": url, "timeout": 5.0, "backoff": 0.01, **changes}
    return JudgeSettings(TEMPLATE, tmp_path / "cache.jsonl", **values)


def pairs(n: int) -> list[Comparison]:
    """Qualities 0..6 against 0..4: most pairs have a better text, some are told apart by place alone."""
    return [Comparison(f"q{i}", f"a{i} quality={i % 7}", f"b{i} quality={i * 3 % 5}") for i in range(n)]


def expected(pair: Comparison) -> int:
    a, b = (int(text.split("=")[1]) for text in (pair.a, pair.b))
    return (a > b) - (a < b)


def prompt(query: str, first: str, second: str) -> str:
    return build_prompt(parse_template(TEMPLATE), query, first, second)


# --- pure parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ("Output (a)", "a"),
        ("output (B).", "b"),
        ("**Output (a)**\n", "a"),
        ("The better one is output(b)", "b"),
        ("(A)", "a"),
        ("Output **(b)**", "b"),
        ("Output (a)\n\nOutput (a) is more complete.", "a"),
        ("b", "b"),
        ("Output A", "a"),
        ("Output: [b]", "b"),
        ("Output (c)", None),
        ("", None),
        ("Output (a) rather than Output (b)", None),
        ("Output (a), not (c)", None),
        ("Neither is better.", None),
        ("I would output a better answer", None),  # "a" is an article here
        ("Answer(s): f(a)", None),
        ("ab", None),
    ],
)
def test_verdict_of_a_reply(reply, named):
    assert read_verdict(reply) == named


def test_answer_of_a_body():
    def body(content, **more):
        return json.loads(stub.completion(content, **more)[2])

    answer = read_answer(body("Output (b)"))
    assert (answer.preferred, answer.failure, answer.prompt_tokens, answer.completion_tokens) == ("b", None, 100, 4)
    assert read_answer({"choices": [{"message": {"content": "(a)"}}]}).preferred == "a"  # what small servers leave out
    assert read_answer(body(None, refusal="no")).failure == "refused"
    assert read_answer(body("Output (a)", finish="content_filter")).failure == "refused"
    for content in ("", None, "Output (c)"):
        answer = read_answer(body(content))
        assert (answer.preferred, answer.failure, answer.reply) == (None, "unreadable", content or "")
    # cut off at max_tokens: what the unfinished line would have said is not known
    assert read_answer(body("Output (a) is worse than", finish="length")).failure == "unreadable"
    assert read_answer(body("Output (a)\n\nIt is the one", finish="length")).preferred == "a"
    assert read_answer(body("Output (a)\n\nNo, wait: Output", finish="length")).failure == "unreadable"
    assert read_answer(body("Output (a)", finish="length")).failure == "unreadable"
    for malformed in ("text", None, [], {}, {"choices": []}, {"choices": None}, {"error": {"message": "busy"}},
                      {"choices": [{"message": None}]}, {"choices": [{"message": {"content": ["(a)"]}}]}):  # fmt: skip
        with pytest.raises(MalformedReply):
            read_answer(malformed)


@hypothesis.settings(max_examples=30)
@given(st.text(), st.text(), st.text())
def test_texts_enter_the_prompt_literally(query, first, second):
    template = parse_template("<$query|${output_a}|$output_b> for $$1")
    assert build_prompt(template, query, first, second) == f"<{query}|{first}|{second}> for $1"


def test_texts_that_look_like_placeholders_and_half_a_surrogate_pair():
    assert prompt("$output_b $$ ${", "$query", "x") == "Q $output_b $$ ${ (first) $query (second) x"
    prompt("\ud83d", "a", "b").encode("utf-8")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("$query $output_a", "lacks $output_b"),
        ("$query $output_a $output_b $model", "unknown $model"),
        ("$query $output_a $output_b costs $5", "write $$"),
        ("", "lacks $output_a, lacks $output_b, lacks $query"),
    ],
)
def test_bad_template(template, says, tmp_path):
    with pytest.raises(UserError) as caught:
        Judge(JudgeSettings(template, tmp_path / "c.jsonl"), KEY)
    assert says in str(caught.value)


def test_own_template():
    text = build_prompt(parse_template(DEFAULT_TEMPLATE.read_text()), "QQ", "AA", "BB")
    assert text.index("QQ") < text.index("Output (a):\nAA") < text.index("Output (b):\nBB")


@hypothesis.settings(max_examples=30)
@given(st.lists(st.text(max_size=5), min_size=6, max_size=6), st.lists(st.text(max_size=5), min_size=6, max_size=6))
def test_request_key_tells_requests_apart(one, other):
    assert (request_key(*one) == request_key(*other)) == (one == other)


def test_request_key_keeps_its_parts_apart():
    keys = {request_key("e", "m", "t", *texts) for texts in (("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd"))}
    assert len(keys) == 3
    assert request_key("e", "m", "t", "q", "1", "2") != request_key("e", "m", "t", "q", "2", "1")


def test_judgement():
    cases = {  # a first, b first: verdict, flipped, failed
        (1, 1): (1, False, False),
        (-1, -1): (-1, False, False),
        (1, -1): (0, True, False),
        (-1, 1): (0, True, False),
        (1, None): (None, False, True),
        (None, -1): (None, False, True),
        (None, None): (None, False, True),
    }
    for orders, wanted in cases.items():
        judgement = Judgement(*orders)
        assert (judgement.verdict, judgement.flipped, judgement.failed) == wanted
    same = Judgement(None, None, identical=True)
    assert (same.verdict, same.flipped, same.failed) == (0, False, False)


def test_retry_after():
    now = 1_700_000_000.0
    cases = [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "3600"}, 120.0),
        ({"retry-after": "inf"}, 120.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": formatdate(now + 7, usegmt=True)}, 7.0),
        ({"retry-after": formatdate(now - 7, usegmt=True)}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "junk", "retry-after": "9"}, 9.0),
    ]
    for headers, seconds in cases:
        assert retry_after(headers, now) == (None if seconds is None else pytest.approx(seconds)), headers


# --- against the stub ------------------------------------------------------------------------------------------------


def test_500_pairs_with_a_fifth_of_faults(tmp_path, capfd):
    comparisons = pairs(500)
    orders = [[prompt(item.query, item.a, item.b), prompt(item.query, item.b, item.a)] for item in comparisons]
    faults = {text: stub.planned_fault(text, 0.2) for both in orders for text in both}
    planned = Counter(fault for fault in faults.values() if fault)
    assert set(planned) == set(stub.FAULTS)  # each kind takes part
    assert 0.15 < planned.total() / len(faults) < 0.25

    with stub.JudgeStub(faults=0.2, hang=3) as server:
        judge = Judge(settings(server, tmp_path, timeout=0.8), KEY)
        estimate = judge.estimate(comparisons)
        assert (estimate.comparisons, estimate.identical, estimate.cached, estimate.calls) == (500, 0, 0, 1000)
        assert estimate.prompt_tokens == sum(-(-len(text) // 4) for text in faults)
        assert server.log == []

        judgements = judge.judge(comparisons)
        lasting = {text for text, fault in faults.items() if fault in stub.LASTING}
        for item, both, judgement in zip(comparisons, orders, judgements, strict=True):
            assert (judgement.a_first is None, judgement.b_first is None) == tuple(text in lasting for text in both)
            assert judgement.verdict == (None if lasting & set(both) else expected(item))
            # a pair told apart by place alone flips
            assert judgement.flipped == (judgement.verdict == 0)
        # no prompt was answered twice, and what cannot get better was asked once
        assert max(Counter(server.answered()).values()) == 1
        assert set(server.answered()) == set(faults)
        passing = sum(planned[kind] for kind in stub.PASSING)
        assert len(server.log) == 1000 + passing == judge.usage.calls
        assert judge.usage.retries == passing
        assert judge.usage.failures == {"refused": planned["refusal"], "unreadable": planned["output (c)"]}
        assert judge.usage.prompt_tokens == 100 * 1000
        assert server.most_in_flight <= judge.settings.concurrency
        sent = server.log[0]["request"]
        assert (sent["temperature"], sent["model"]) == (0, "gpt-3.5-turbo")
        assert server.log[0]["path"] == "/v1/chat/completions"

        # again, by this judge: nothing is sent; by a later one: what failed, alone
        calls = len(server.log)
        assert judge.judge(comparisons) == judgements
        assert len(server.log) == calls
        later = Judge(settings(server, tmp_path), KEY)
        assert later.estimate(comparisons).calls == len(lasting)
        assert later.judge(comparisons) == judgements
        assert Counter(entry["prompt"] for entry in server.log[calls:]) == Counter(lasting)

    screen = capfd.readouterr()
    assert "1,000 calls to make" in screen.err
    assert "1000/1000" in screen.err  # the bar
    everything = screen.out + screen.err + repr(judge.settings) + (tmp_path / "cache.jsonl").read_text()
    assert KEY not in everything
    assert {entry["authorization"] for entry in server.log} == {f"Bearer {KEY}"}


def test_the_same_request_and_identical_texts_are_sent_once_and_never(tmp_path):
    one, two = "one quality=1", "two quality=2"
    comparisons = [Comparison("q", one, two)] * 3 + [Comparison("q", two, one), Comparison("q", one, one)]
    with stub.JudgeStub() as server:
        judge = Judge(settings(server, tmp_path), KEY)
        assert [judgement.verdict for judgement in judge.judge(comparisons)] == [-1, -1, -1, 1, 0]
        assert len(server.log) == 2
        assert judge.judge(comparisons[-1:]) == [Judgement(None, None, identical=True)]
        # another model, endpoint or template is another judge
        for changes in ({"model": "other"}, {"base_url": f"{server.url}/"}, {"template": TEMPLATE + "!"}):
            values = {**vars(settings(server, tmp_path)), **changes}
            calls = Judge(JudgeSettings(**values), KEY).estimate(comparisons[:1]).calls
            assert calls == (0 if "base_url" in changes else 2)


def test_retry_after_holds_everybody_back(tmp_path):
    asked = {}

    def respond(text: str, attempt: int):
        if text.startswith("Q q5 ") and attempt == 0:
            asked.setdefault("at", time.monotonic())
            return stub.error(429, "slow down", Retry_After="1.0")
        return None

    with stub.JudgeStub(respond=respond, latency=0.02) as server:
        judge = Judge(settings(server, tmp_path, concurrency=4), KEY)
        judgements = judge.judge(pairs(20))
    assert not any(judgement.failed for judgement in judgements)
    times = [entry["at"] - asked["at"] for entry in server.log]
    # some were in flight when q5 was told to wait, and its other order is told the same
    assert sum(at > 0.95 for at in times) > 20


def test_requests_per_minute(tmp_path):
    with stub.JudgeStub() as server:
        Judge(settings(server, tmp_path, requests_per_minute=1200), KEY).judge(pairs(8))
    times = sorted(entry["at"] for entry in server.log)
    assert times[-1] - times[0] >= 0.5  # 15 times 0.05 s, less what the first was late


def test_what_stops_a_run_at_once(tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    cases = [
        (stub.error(401, f"Incorrect API key provided: {KEY}"), "refuses the judge's key (error 401)"),
        (stub.error(403, f"{KEY} may not"), "403"),
        (stub.error(404, "no such model", "model_not_found"), "--judge_model gpt-3.5-turbo"),
        ((404, {}, "<html>nothing here</html>"), "should --base_url end in /v1"),
        (stub.error(400, "Unsupported parameter: 'max_tokens'", "unsupported_parameter"), "give another --judge_model"),
        ((422, {"Content-Type": "application/json"}, '{"detail": "no field messages"}'), "no field messages"),
        (stub.error(429, "You exceeded your current quota", "insufficient_quota"), "has no quota left"),
    ]  # fmt: skip
    for number, (response, says) in enumerate(cases):
        folder = tmp_path / str(number)
        good = pairs(4)
        with stub.JudgeStub(respond=lambda text, _: None if text[:4] in ("Q q0", "Q q1") else response) as server:  # noqa: B023
            with pytest.raises(UserError) as caught:
                Judge(settings(server, folder, concurrency=1), KEY).judge(good)
            assert len(server.log) == 5
            message = str(caught.value)
            assert says in message
            assert server.url in message
            assert KEY not in message
            assert "\n" not in message
            # what was answered is kept
            assert Judge(settings(server, folder), KEY).estimate(good).calls == 4
        assert KEY not in (folder / "cache.jsonl").read_text()
    assert "HTTP Response" in caplog.text
    assert KEY not in caplog.text + str(capfd.readouterr())


def test_a_key_in_a_reply_or_an_error_is_kept_nowhere(tmp_path):
    def respond(text: str, attempt: int):
        if "Q q0" in text:
            return stub.completion(f"your key is {KEY}")
        return stub.error(500, f"crashed with {KEY} and sk-abc***wxyz1234")

    with stub.JudgeStub(respond=respond) as server:
        judge = Judge(settings(server, tmp_path, attempts=2), KEY)
        assert all(judgement.failed for judgement in judge.judge(pairs(2)))
    kept = (tmp_path / "cache.jsonl").read_text()
    assert "your key is [key]" in kept
    assert "crashed with [key] and [key]" in kept
    assert KEY not in kept


def test_texts_too_long_or_filtered_fail_alone(tmp_path):
    bodies = [
        stub.error(400, "reduce the length", "context_length_exceeded"),
        stub.error(400, "This model's maximum context length is 10 tokens. However, you requested 12 tokens"),  # vLLM
        (400, {}, '{"error": {"code": 400, "message": "too big", "type": "exceed_context_size_error"}}'),  # llama.cpp
        stub.error(400, "filtered", "content_filter"),
    ]
    with stub.JudgeStub(respond=lambda text, _: bodies[int(text[3])] if int(text[3]) < 4 else None) as server:
        judge = Judge(settings(server, tmp_path), KEY)
        verdicts = [judgement.verdict for judgement in judge.judge(pairs(7))]
    assert verdicts == [None] * 4 + [expected(pair) for pair in pairs(7)[4:]]
    assert judge.usage.failures == {"too long": 6, "refused": 2}
    assert len(server.log) == 14


def test_unanswered(tmp_path):
    def respond(text: str, attempt: int):
        return stub.error(503, "busy") if text.startswith("Q q1 ") else None

    with stub.JudgeStub(respond=respond) as server:
        judge = Judge(settings(server, tmp_path, attempts=3), KEY)
        judgements = judge.judge(pairs(6))
        assert [judgement.failed for judgement in judgements] == [False, True, False, False, False, False]
        assert judge.usage.failures == {"unanswered": 2}
        assert (judge.usage.calls, judge.usage.retries) == (16, 4)
        server.respond = None
        assert Judge(settings(server, tmp_path), KEY).judge(pairs(6))[1].verdict == expected(pairs(6)[1])

    with stub.JudgeStub(respond=lambda *_: (502, {}, "bad gateway")) as server:
        judge = Judge(settings(server, tmp_path / "all", attempts=2), KEY)
        with pytest.raises(UserError, match="10 requests in a row unanswered"):
            judge.judge(pairs(100))
        assert len(server.log) < 40


def test_unreachable(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    judge = Judge(settings(url, tmp_path, concurrency=1), KEY)
    with pytest.raises(UserError, match="cannot be reached"):
        judge.judge(pairs(3))
    assert judge.usage.calls == UNREACHABLE_AFTER


def test_an_endpoint_that_never_answers(tmp_path):
    with stub.JudgeStub(latency=5.0) as server:
        judge = Judge(settings(server, tmp_path, timeout=0.2, concurrency=2), KEY)
        with pytest.raises(UserError, match="takes requests and answers none"):
            judge.judge(pairs(8))
        assert len(server.log) < 8


def test_max_calls(tmp_path):
    with stub.JudgeStub() as server:
        with pytest.raises(UserError, match="would make 20 calls, and --max_calls leaves 19"):
            Judge(settings(server, tmp_path, max_calls=19), KEY).judge(pairs(10))
        assert server.log == []

        # the cap holds over retries, and what was answered is kept
        server.respond = lambda text, attempt: stub.error(500, "oops") if attempt == 0 and text[3] in "12" else None
        judge = Judge(settings(server, tmp_path, max_calls=20), KEY)
        with pytest.raises(UserError, match="--max_calls 20 are used up"):
            judge.judge(pairs(10))
        assert len(server.log) == 20 == judge.usage.calls
        answered = len(server.answered())
        later = Judge(settings(server, tmp_path, max_calls=20), KEY)
        assert later.estimate(pairs(10)).calls == 20 - answered
        assert [judgement.verdict for judgement in later.judge(pairs(10))] == [expected(pair) for pair in pairs(10)]
        # the cap is for the judge's life
        with pytest.raises(UserError, match=f"--max_calls leaves {20 - later.usage.calls}"):
            later.judge(pairs(30))


# --- the cache -------------------------------------------------------------------------------------------------------


def test_torn_line_is_mended(tmp_path):
    cache = tmp_path / "cache.jsonl"
    with stub.JudgeStub() as server:
        judgements = Judge(settings(server, tmp_path), KEY).judge(pairs(5))
        content = cache.read_bytes()
        for cut in (1, 5, len(content.split(b"\n")[-2]) - 1):
            cache.write_bytes(content[:-cut])
            before = len(server.log)
            judge = Judge(settings(server, tmp_path), KEY)
            assert judge.estimate(pairs(5)).calls == 1
            assert judge.judge(pairs(5)) == judgements
            assert len(server.log) == before + 1
            assert sorted(cache.read_bytes().split(b"\n")) == sorted(content.split(b"\n"))


def test_a_strangers_file_is_left_alone(tmp_path):
    cache = tmp_path / "cache.jsonl"
    for content in ("notes of mine", '{"query": 1}\n', '[\n{"key": "x"}\n]', "\n"):
        cache.write_text(content)
        judge = Judge(settings("http://127.0.0.1:9/v1", tmp_path), KEY)
        for use in (judge.estimate, judge.judge):
            with pytest.raises(UserError, match="another --judge_cache"):
                use(pairs(2))
        assert cache.read_text() == content
    cache.unlink()
    cache.mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        judge.judge(pairs(2))


def test_cached_replies_are_read_again(tmp_path):
    """A cache of an earlier version: what its parser turned round or took for certain is not used as it stands."""
    [pair] = pairs(1)
    orders = [(pair.query, pair.a, pair.b), (pair.query, pair.b, pair.a)]

    def write(*records):
        with (tmp_path / "cache.jsonl").open("w") as file:
            for texts, preferred, reply in records:
                key = request_key(server.url, "gpt-3.5-turbo", TEMPLATE, *texts)
                file.write(json.dumps({"key": key, "preferred": preferred, "failure": None, "reply": reply}) + "\n")

    with stub.JudgeStub() as server:
        write((orders[0], "a", "B is better than (a)"), (orders[1], "a", "Output (a)"))
        judge = Judge(settings(server, tmp_path), KEY)
        assert judge.judge([pair]) == [Judgement(-1, -1)]  # b is better, in either place: it was read as "a"
        write((orders[0], "a", "(a) is not better."), (orders[1], "a", "Output (a)"))
        judge = Judge(settings(server, tmp_path), KEY)
        assert judge.estimate([pair]).calls == 1
        assert judge.judge([pair])[0].b_first == -1
        assert [entry["prompt"] for entry in server.log] == [prompt(*orders[0])]
        # what is asked again is kept and not asked a third time
        assert Judge(settings(server, tmp_path), KEY).estimate([pair]).calls == 0


def test_one_writer(tmp_path):
    other, said = Judge(settings("http://127.0.0.1:9/v1", tmp_path), KEY), []

    def respond(*_) -> None:  # while the first run waits for an answer
        with pytest.raises(UserError) as caught:
            other.judge(pairs(2))
        said.append(str(caught.value))

    with stub.JudgeStub(respond=respond) as server:
        Judge(settings(server, tmp_path), KEY).judge(pairs(1))
    assert len(said) == 2
    assert all("another run is using it" in text for text in said)


# `make test &` in a script starts it with SIGINT ignored, and a child inherits that: here it is as in the foreground
RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {paths!r}
from pathlib import Path
from alarm.common.errors import report_user_errors
from alarm.evaluation.judge.judge import Comparison, Judge
from alarm.common.retry_after import retry_after
from alarm.evaluation.judge.sender import JudgeSettings
import json, os

@report_user_errors
def main():
    pairs = [Comparison(*texts) for texts in json.loads(Path(sys.argv[1]).read_text())]
    settings = JudgeSettings({template!r}, Path(sys.argv[2]), base_url=sys.argv[3], timeout=600, backoff=0.01)
    {before}
    judge = Judge(settings, os.environ["OPENAI_API_KEY"])
    print(json.dumps([judgement.verdict for judgement in judge.judge(pairs)]))

main()
"""


def start_run(tmp_path: Path, url: str, comparisons: list[Comparison], before: str = "") -> subprocess.Popen:
    """before: a statement for the child to run before it judges."""
    texts = tmp_path / "pairs.json"
    texts.write_text(json.dumps([[item.query, item.a, item.b] for item in comparisons]))
    code = RUN.format(paths=[str(ROOT), str(ROOT / "trl")], template=TEMPLATE, before=before)
    command = [sys.executable, "-c", code, str(texts), str(tmp_path / "cache.jsonl"), url]
    environment = {key: value for key, value in os.environ.items() if key != "RANK"} | {"OPENAI_API_KEY": KEY}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )


def wait_for(server, requests: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120  # of a hang, not of a slow machine
    while len(server.log) < requests:
        assert process.poll() is None, process.stderr.read()
        if time.monotonic() > deadline:
            pytest.fail(f"{len(server.log)} of {requests} requests came")
        time.sleep(0.01)


def test_killed_twice_and_resumed(tmp_path):
    comparisons = pairs(120)
    with stub.JudgeStub(latency=0.04) as server:
        for requests in (60, 130):
            process = start_run(tmp_path, server.url, comparisons)
            wait_for(server, requests, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        kept = {json.loads(line)["key"] for line in (tmp_path / "cache.jsonl").read_text().split("\n")[:-1]}
        before = len(server.log)
        assert 130 - 2 * 8 <= len(kept) < 240

        process = start_run(tmp_path, server.url, comparisons)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out) == [expected(pair) for pair in comparisons]
        # what was kept is not asked again; what is asked twice was in flight at a kill
        assert len(server.log) - before == 240 - len(kept)
        repeated = [count for count in Counter(entry["prompt"] for entry in server.log).values() if count > 1]
        assert len(repeated) <= 2 * 8
        assert KEY not in err + (tmp_path / "cache.jsonl").read_text()


def interrupt(process: subprocess.Popen) -> str:
    """The first ^C ends the run. -> its stderr. The limit is that of a hang, not of a slow machine."""
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    return err


def test_interrupted_by_hand(tmp_path):
    over, count = threading.Event(), itertools.count()

    def respond(*_):
        if next(count) >= 40:  # the endpoint answers no more: the run cannot end by itself
            over.wait(300)

    with stub.JudgeStub(respond=respond) as server:
        process = start_run(tmp_path, server.url, pairs(200))
        wait_for(server, 48, process)
        interrupt(process)
        over.set()
        kept = 400 - Judge(settings(server, tmp_path), KEY).estimate(pairs(200)).calls
        assert kept == 40
        assert len(server.log) == 48


def test_interrupted_while_it_looks_up_the_name_of_the_endpoint(tmp_path):
    hang = "import socket, threading; socket.getaddrinfo = lambda *_, **__: print('asked', flush=True) or "
    hang += "threading.Event().wait()"
    process = start_run(tmp_path, "http://judge.test/v1", pairs(2), before=hang)
    assert process.stdout.readline() == "asked\n"
    interrupt(process)


# --- flags -----------------------------------------------------------------------------------------------------------


def from_flags(tmp_path: Path, *flags: str) -> tuple[Judge | None, argparse.Namespace]:
    parser = argparse.ArgumentParser()
    add_judge_flags(parser)
    args = parser.parse_args(flags)
    return judge_from_flags(args, tmp_path), args


def test_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert from_flags(tmp_path)[0] is None
    judge, _ = from_flags(tmp_path, "--use_gpt")
    assert judge.settings == JudgeSettings(DEFAULT_TEMPLATE.read_text(), tmp_path / "judge-cache.jsonl")
    assert judge.endpoint == "https://api.openai.com/v1"
    assert capsys.readouterr().err == ""

    template = tmp_path / "mine.txt"
    template.write_text(TEMPLATE)
    cache = tmp_path / "c.jsonl"
    with stub.JudgeStub() as server:
        judge, args = from_flags(
            tmp_path, "--use_gpt", "--judge_model", "m", "--base_url", server.url + "/", "--api_key", KEY + "x",
            "--judge_template", str(template), "--judge_cache", str(cache), "--max_calls", "7", "--concurrency", "3",
            "--requests_per_minute", "9000",
        )  # fmt: skip
        assert judge.settings == JudgeSettings(
            TEMPLATE, cache, "m", server.url + "/", max_calls=7, concurrency=3, requests_per_minute=9000.0
        )
        assert judge.endpoint == server.url
        assert args.api_key is None
        judge.judge(pairs(1))
        assert [entry["authorization"] for entry in server.log] == [f"Bearer {KEY}x"] * 2
    warned = capsys.readouterr().err
    assert "prefer the environment variable OPENAI_API_KEY" in warned
    assert KEY not in warned + repr(judge.settings) + repr(args)

    from_flags(tmp_path, "--use_gpt", "--base_url", "http://judge.example/v1")
    assert "unencrypted" in capsys.readouterr().err


def test_flags_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for flags, says in [
        (["--max_calls", "5"], "--max_calls goes with --use_gpt"),
        (["--api_key", KEY], "--api_key goes with --use_gpt"),
        (["--use_gpt"], "needs a key: set OPENAI_API_KEY"),
        (["--use_gpt", "--base_url", "http://judge.example/v1"], "needs a key"),
        (["--use_gpt", "--api_key", f"{KEY}\nx"], "characters that no key has"),
        (["--use_gpt", "--api_key", f"{KEY}é"], "characters that no key has"),
        (["--use_gpt", "--base_url", "localhost:8000/v1"], "no http or https URL"),
        (["--use_gpt", "--base_url", "http://localhost:x/v1"], "no http or https URL"),
        (["--use_gpt", "--base_url", f"https://{KEY}@h/v1"], "holds a user"),
        (["--use_gpt", "--base_url", f"https://h/v1?key={KEY}"], "holds a user, a query"),
        (["--use_gpt", "--api_key", KEY, "--judge_template", "none.txt"], "none.txt cannot be read"),
    ]:
        with pytest.raises(UserError) as caught:
            from_flags(tmp_path, *flags)
        assert says in str(caught.value)
        assert KEY not in str(caught.value)
    for flags in (["--use_gpt", "--max_calls", "0"], ["--use_gpt", "--concurrency", "-1"]):
        with pytest.raises(SystemExit):
            from_flags(tmp_path, *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0", "192.168.1.7"])
def test_a_local_server_needs_no_key(host, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert from_flags(tmp_path, "--use_gpt", "--base_url", f"http://{host}:8000/v1")[0].endpoint.endswith(":8000/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{host}:8000/v1")
    assert from_flags(tmp_path, "--use_gpt")[0].endpoint == f"http://{host}:8000/v1"
    assert check_endpoint("https://api.openai.com/v1/") == "https://api.openai.com/v1"


def test_a_word_stands_for_the_key_that_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with stub.JudgeStub() as server:
        judge, _ = from_flags(tmp_path, "--use_gpt", "--base_url", server.url)
        judge.judge([Comparison("q", "quality=1", "quality=2")])
    assert [entry["authorization"] for entry in server.log] == [f"Bearer {NO_KEY}"] * 2


def test_the_module_imports_no_client():
    code = "import sys, alarm.evaluation.judge.judge; "
    code += "sys.exit(any(name in sys.modules for name in ('openai', 'torch', 'tqdm')))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trl")])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
