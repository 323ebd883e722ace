"""The real LanguageTool server: what it finds, where, and that nothing is lost when it is killed."""

from __future__ import annotations

import json
import os
import signal
import socket

import psutil
import pytest
import torch
from tasks.mt.languagetool_stub import group_members, java_of

from alarm.scoring import place
from alarm.tasks.mt.aspects import Grammar
from alarm.tasks.mt.grammar.checker import LanguageToolChecker
from alarm.tasks.mt.grammar.server import LocalServer, RemoteServer, free_port
from alarm.tasks.mt.spec import GRAMMAR
from alarm.tasks.spans import token_offsets
from alarm.types import Rollout
from helpers import CHECKPOINTS, FIXTURES

PLANTED = [  # text, rule, what is marked
    ("She go to school every day.", "HE_VERB_AGR", "go"),
    ("It is a apple.", "EN_A_VS_AN", "a"),
    ("He saw the the dog.", "ENGLISH_WORD_REPEAT_RULE", "the the"),
    ("this is a small house.", "UPPERCASE_SENTENCE_START", "this"),
    ("😀😀 It is a apple 😀 here.", "EN_A_VS_AN", "a"),
    ("Cafe\u0301 owners ate an banana.", "EN_A_VS_AN", "an"),
]
RIGHT = ["She goes to school every day.", "It is an apple.", "He saw the dog."]
TEXTS = [text for text, _, _ in PLANTED] + RIGHT


def told(texts: list[str], answers: list) -> list:
    return [[(m.rule, text[m.start : m.end]) for m in ms] for text, ms in zip(texts, answers, strict=True)]


def test_planted_errors_are_found_where_they_are_and_nothing_else(languagetool):
    found = told(TEXTS, languagetool.check(TEXTS))
    for (_, rule, marked), matches in zip(PLANTED, found, strict=False):
        assert (rule, marked) in matches
    assert found[len(PLANTED) :] == [[], [], []]


def test_it_agrees_with_language_tool_python(languagetool):
    """The client that the published code used, on texts without emoji, whose lengths it leaves in UTF-16 units."""
    import language_tool_python

    texts = [text for text in TEXTS if text.isascii()]
    client = language_tool_python.LanguageTool("en-US", remote_server=languagetool.server.url())
    theirs = [[(m.rule_id, m.offset, m.error_length) for m in client.check(text)] for text in texts]
    ours = [[(m.rule, m.start, m.end - m.start) for m in matches] for matches in languagetool.check(texts)]
    assert ours == theirs
    client.close()


def test_several_in_flight_answer_as_one_by_one(languagetool):
    golden = json.loads((FIXTURES / "golden" / "combine_mt.json").read_text())
    texts = [f"{text} It is a {n}apple." for text in golden["texts"] for n in ("", "red ")] + TEXTS
    one = LanguageToolChecker(languagetool.server, in_flight=1)
    several = LanguageToolChecker(languagetool.server, in_flight=8)
    found = several.check(texts)
    assert one.check(texts) == found
    assert [any(m.rule == "EN_A_VS_AN" for m in matches) for matches in found[:16]] == [True, False] * 8


@pytest.mark.parametrize(
    "text",
    [
        "\x00\x07\x1b[31m control \ufffd",
        "\ufffd" * 128,
        "⁇ " * 64,
        "x" * 10_000,
        "It is a apple. " * 700,  # more than 10,000 characters
        "lone \ud800 surrogate",
        "line\r\nof\u2028text\u200b\ufeff and soft\u00adhyphen",
        "<unk> </s> &amp; %20 +",
    ],
    ids=["control", "replacement", "unknown", "one word", "long", "surrogate", "separators", "markup"],
)
def test_odd_texts_are_answered(languagetool, text):
    (matches,) = languagetool.check([text])
    assert all(0 <= match.start <= match.end <= len(text) for match in matches)
    if len(text) > 10_000:
        assert sum(match.rule == "EN_A_VS_AN" for match in matches) == 700


def test_killed_twice_rewards_equal_those_of_an_undisturbed_run(languagetool, tmp_path, caplog):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "small-t5-tokenizer")
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in TEXTS]
    n, decoded = len(ids), [token_offsets(tokenizer, row) for row in ids]
    texts = [text for text, _ in decoded]
    rollout = Rollout(ids, ids, [""] * n, texts, [{}] * n, torch.zeros(n, dtype=torch.bool))

    def rewards(checker):
        return place(GRAMMAR, Grammar(checker, correct=0.0, incorrect=-1.0)(rollout), decoded)

    undisturbed = rewards(languagetool)
    assert sum(undisturbed.metrics["grammar_errors"]) >= len(PLANTED) - 2  # emoji and accents are lost in the ids
    # not the shared one, which other test processes are using
    server = LocalServer(languagetool.server.jar, tmp_path / "own")
    server.url()
    for _ in range(2):
        killed = java_of(server)
        os.kill(killed.pid, signal.SIGKILL)
        checker = LanguageToolChecker(server)  # an empty cache
        found = rewards(checker)
        assert checker.counts["restarts"] == 1
        assert "checked again" in caplog.text
        assert found.metrics == undisturbed.metrics
        assert all(map(torch.equal, found.tokens, undisturbed.tokens))
        assert all(map(torch.equal, found.values, undisturbed.values))
        assert not killed.is_running() or killed.status() == psutil.STATUS_ZOMBIE
    server.close()


def test_a_server_on_a_busy_port_is_not_mistaken_for_ours_and_close_leaves_no_process(languagetool, tmp_path, caplog):
    jar = languagetool.server.jar
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        ports = [busy.getsockname()[1]]
        server = LocalServer(jar, tmp_path / "own", choose_port=lambda: ports.pop() if ports else free_port())
        checker = LanguageToolChecker(server)
        assert len(checker.check(["It is a apple."])[0]) == 1
    assert "is busy" in caplog.text
    processes = group_members(server)
    listening = {c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    # a server that somebody runs already serves as well
    remote = LanguageToolChecker(RemoteServer(server.url()))
    assert len(remote.check(["It is a apple."])[0]) == 1
    checker.close()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    assert not (tmp_path / "own").exists()
