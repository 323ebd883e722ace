"""The grammar service against a stub: offsets, cache, requests in flight, and every way a server fails."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from email.utils import formatdate

import psutil
import pytest
from tasks.mt.languagetool_stub import group_members, java_of, members

from alarm.common.errors import UserError
from alarm.common.threads import beside
from alarm.tasks.mt.grammar import GrammarServiceError, Match, make_checker
from alarm.tasks.mt.grammar.checker import LanguageToolChecker
from alarm.tasks.mt.grammar.protocol import ServerFailure, parse_matches
from alarm.tasks.mt.grammar.server import (
    FOLDERS,
    LocalServer,
    RemoteServer,
    find_installation,
    free_port,
    machine_folder,
)
from helpers import ROOT

TEXTS = [f"text {i} is {'wrong' if i % 3 == 0 else 'right'}" for i in range(30)]
UNDISTURBED = [
    [Match(text.index("wrong"), text.index("wrong") + 5, "STUB", "a wrong word")] if "wrong" in text else []
    for text in TEXTS
]


def remote(stub, **kwargs) -> LanguageToolChecker:
    return LanguageToolChecker(RemoteServer(stub.url), **{"pause": 0.01, "timeout": 0.3, **kwargs})


@pytest.fixture
def local(fake_java):
    checker = LanguageToolChecker(LocalServer(fake_java, start_timeout=20), timeout=0.5, pause=0.01)
    yield checker
    checker.close()


def gone(processes, within: float = 5.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_utf16_offsets_become_characters():
    text = "😀a😀 wrong 😀"  # units: 😀 0-1, a 2, 😀 3-4, space 5, wrong 6-10
    rule = {"id": "R"}
    matches = [
        {"offset": 6, "length": 5, "rule": rule, "message": ""},
        {"offset": 2, "length": 2, "rule": rule, "message": ""},  # ends inside the second emoji
        {"offset": 4, "length": 1, "rule": rule, "message": ""},  # the second half of an emoji
        {"offset": 14, "length": 0, "rule": rule, "message": ""},  # at the very end
    ]
    spans = [(m.start, m.end) for m in parse_matches(text, {"matches": matches})]
    assert spans == [(4, 9), (1, 3), (2, 3), (11, 11)]
    assert text[4:9] == "wrong"


def test_a_match_may_end_behind_the_text_by_its_last_white_space():
    """LanguageTool can count the end of a paragraph twice; more than that is a match of another text."""
    text = "😀 Ortograph\n\n"  # 14 units, of which 2 of white space at the end

    def match(offset: int, length: int) -> dict:
        return {"matches": [{"offset": offset, "length": length, "rule": {"id": "R"}, "message": ""}]}

    for length, end in [(9, 11), (11, 13), (12, 13), (13, 13)]:
        (found,) = parse_matches(text, match(3, length))
        assert (found.start, found.end) == (2, end)
    for offset, length in [(3, 14), (15, 1), (16, 0)]:
        with pytest.raises(ServerFailure):
            parse_matches(text, match(offset, length))


@pytest.mark.parametrize(
    "answer",
    [
        [],
        None,
        "text",
        {},
        {"matches": None},
        {"matches": [{}]},
        {"matches": [{"offset": 0, "length": 9, "rule": {"id": "R"}, "message": ""}]},
        {"matches": [{"offset": -1, "length": 1, "rule": {"id": "R"}, "message": ""}]},
        {"matches": [], "warnings": {"incompleteResults": True}},
    ],
)
def test_an_answer_of_another_form_is_a_failure(answer):
    with pytest.raises(ServerFailure):
        parse_matches("short", answer)


def test_answers_are_those_of_the_texts_in_order_and_each_text_is_asked_once(stub):
    checker = remote(stub)
    assert checker.check(TEXTS + TEXTS[:5]) == UNDISTURBED + UNDISTURBED[:5]
    assert checker.check(TEXTS) == UNDISTURBED
    assert sorted(stub.texts) == sorted(TEXTS)
    assert 2 <= stub.most_at_once <= 8
    expected = {"texts": 65, "empty": 0, "cached": 35, "checked": 30, "failures": 0, "restarts": 0}
    assert checker.counts == expected


def test_one_request_at_a_time_where_asked(stub):
    assert remote(stub, in_flight=1).check(TEXTS) == UNDISTURBED
    assert stub.most_at_once == 1


def test_the_cache_forgets_the_least_recently_used(stub):
    checker = remote(stub, cache_size=2)
    checker.check(["a b", "c d"])
    checker.check(["a b"])
    checker.check(["e f"])  # pushes "c d" out
    checker.check(["a b", "e f", "c d"])
    assert stub.texts.count("a b") == 1
    assert stub.texts.count("c d") == 2


def test_what_the_caller_does_to_a_result_does_not_reach_the_cache(stub):
    checker = remote(stub)
    checker.check([TEXTS[0]])[0].clear()
    assert checker.check([TEXTS[0]]) == [UNDISTURBED[0]]


def test_texts_without_text_are_counted_and_not_sent(stub):
    checker = remote(stub)
    assert checker.check(["", "  \n", "\u2003"]) == [[], [], []]
    assert stub.texts == []
    assert checker.counts["empty"] == 3


def test_odd_characters_arrive_as_they_are(stub):
    texts = ["\x00\x07 control wrong", "😀 wrong", "e\u0301 wrong", "a&b=c+d%20 wrong", "line\r\nwrong", "x" * 10_000]
    checker = remote(stub)
    found = checker.check([*texts, "lone \ud800 wrong"])
    assert [[text[m.start : m.end] for m in ms] for text, ms in zip(texts, found, strict=False)] == [["wrong"]] * 5 + [
        []
    ]
    assert found[-1][0].start == 7
    assert set(texts) < set(stub.texts)


# --- failures of a server that somebody else runs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("500", "answered 500"),
        ("nonsense", "no list of matches"),
        ("html", "not JSON"),
        ("part", "only in part"),
        ("hang", "no answer within"),
    ],
)
def test_a_failure_is_counted_named_and_the_texts_are_checked_again(stub, caplog, what, named):
    stub.plan = ["answer"] * 4 + [what, what]
    checker = remote(stub)
    assert checker.check(TEXTS) == UNDISTURBED
    assert 1 <= checker.counts["failures"] <= 2
    assert checker.counts["checked"] == 30
    assert named in caplog.text
    assert "checked again" in caplog.text


@pytest.mark.parametrize("what", ["500", "nonsense", "html", "hang"])
def test_a_server_that_keeps_failing_ends_the_run_with_one_line(stub, what):
    stub.always = what
    checker = remote(stub, max_failures=3)
    with pytest.raises(GrammarServiceError, match="3 times") as error:
        checker.check(TEXTS)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError)
    assert checker.counts["failures"] == 3
    stub.always = None  # and goes on once the server is mended
    assert checker.check(TEXTS) == UNDISTURBED


@pytest.mark.parametrize("what", ["429", "503"])
@pytest.mark.parametrize("asked", [lambda: "1.5", lambda: formatdate(time.time() + 3, usegmt=True)])
def test_a_server_that_asks_to_wait_is_waited_for(stub, caplog, what, asked):
    """Without counting as a failure; a date of whole seconds, 3 from now, is 2 to 3 seconds away."""
    stub.plan, stub.retry_after = ["answer"] * 4 + [what], asked()
    checker = remote(stub, in_flight=1, max_failures=1)
    assert checker.check(TEXTS) == UNDISTURBED
    assert stub.times[5] - stub.times[4] >= 1.5
    assert checker.counts["failures"] == 0
    assert f"answered {what}" in caplog.text


def test_languagetools_own_limit_names_no_time_and_is_waited_for_all_the_same(stub):
    stub.plan = ["429"] * 5
    checker = remote(stub, in_flight=1, max_failures=2)
    assert checker.check(TEXTS) == UNDISTURBED
    assert checker.counts["failures"] == 0


@pytest.mark.parametrize(("asked", "requests"), [("3600", 1), ("inf", 1), ("0.2", 3), ("0", 7)])
def test_patience_ends_in_one_line_that_names_the_wait(stub, asked, requests):
    """0.5 s in all. Two waits of 0.2 s fit; of doubled pauses 0.01 + ... + 0.16 = 0.31 fit and 0.32 more does not,
    nor does it where the server asks for no time: 6 waits at most."""
    stub.always, stub.retry_after = "429", asked
    checker = remote(stub, in_flight=1, longest_wait=0.5)
    with pytest.raises(GrammarServiceError, match="429") as error:
        checker.check(TEXTS[:1])
    assert "--resume" in str(error.value) and "--grammar_server" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(stub.times) == requests if asked != "0" else len(stub.times) <= requests


def test_503_without_a_time_is_a_failure_like_any_other(stub):
    stub.always = "503"
    with pytest.raises(GrammarServiceError, match="2 times"):
        remote(stub, max_failures=2).check(TEXTS)


def test_a_server_that_asks_to_wait_at_the_start_is_waited_for(stub):
    stub.plan, stub.retry_after = ["429"], "1"
    checker = make_checker(server=stub.url)
    assert stub.times[1] - stub.times[0] >= 1
    assert checker.check(TEXTS) == UNDISTURBED


def test_what_was_answered_before_the_failure_is_not_asked_again(stub):
    stub.plan = ["answer"] * 10 + ["500"]
    checker = remote(stub, in_flight=1)
    assert checker.check(TEXTS) == UNDISTURBED
    assert len(stub.texts) == 31


def test_a_server_that_is_not_there(fake_java):
    with pytest.raises(UserError, match=r"--grammar_server http://127\.0\.0\.1.*--grammar_backend rules"):
        make_checker(server=f"127.0.0.1:{free_port()}")


def test_a_server_that_is_no_languagetool(stub):
    stub.always = "html"
    with pytest.raises(UserError, match="not JSON"):
        make_checker(server=stub.url)


@pytest.mark.parametrize("ending", ["", "/", "/v2", "/v2/", "/v2/check"])
def test_the_url_of_a_server_may_end_in_the_api_path(stub, ending):
    assert make_checker(server=stub.url + ending).check(TEXTS) == UNDISTURBED


@pytest.mark.parametrize("url", ["", "http://", "ftp://host", "host:notaport", "http://host:99999", "http://[::1"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UserError, match="--grammar_server"):
        RemoteServer(url)


# --- our own server --------------------------------------------------------------------------------------------------


def test_nothing_starts_before_the_first_text(local):
    local.check(["", " "])
    assert local.server.folder is None


def test_started_bound_to_loopback_and_stopped_with_the_run(local):
    assert local.check(TEXTS) == UNDISTURBED
    processes = group_members(local.server)
    assert any("java" in " ".join(p.cmdline()) for p in processes)
    listening = [c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    folder = local.server.folder
    local.close()
    assert gone(processes)
    assert not folder.exists()


def test_killed_twice_results_equal_those_of_an_undisturbed_run(local, caplog):
    results = []
    for start in range(0, 30, 10):
        results += local.check(TEXTS[start : start + 10])
        os.kill(java_of(local.server).pid, signal.SIGKILL)
    results += local.check(["one more"])
    assert results == [*UNDISTURBED, []]
    assert local.counts["restarts"] == 3
    assert local.counts["failures"] == 3
    assert "no answer (Connection refused)" in caplog.text
    assert "checked again" in caplog.text


def test_killed_with_requests_in_flight(local):
    import threading

    local.cache_size = 0
    local.check(["warm"])
    texts = [f"wrong {i}" for i in range(300)]
    killer = threading.Timer(0.1, lambda: os.kill(java_of(local.server).pid, signal.SIGKILL))
    killer.start()
    while killer.is_alive() or local.counts["restarts"] == 0:
        found = local.check(texts)
        assert [len(matches) for matches in found] == [1] * 300
    assert local.counts["restarts"] == 1


def test_a_server_that_hangs_is_replaced(local, caplog):
    local.check(["warm"])
    hanging = java_of(local.server)
    os.kill(hanging.pid, signal.SIGSTOP)
    assert local.check(TEXTS) == UNDISTURBED
    assert "no answer within" in caplog.text
    assert gone([hanging])


def test_a_busy_port_is_named_and_another_one_taken(fake_java, caplog):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        ports = [taken, taken]
        server = LocalServer(fake_java, choose_port=lambda: ports.pop() if ports else free_port())
        checker = LanguageToolChecker(server, pause=0.01)
        assert checker.check(TEXTS) == UNDISTURBED
        assert checker.counts["failures"] == 2
        assert f"port {taken} is busy" in caplog.text
        checker.close()


def test_a_server_that_dies_at_start_ends_the_run_with_its_own_words(fake_java, monkeypatch):
    monkeypatch.setenv("FAKE_JAVA_DIES", "1")
    checker = LanguageToolChecker(LocalServer(fake_java), max_failures=3, pause=0.01)
    with pytest.raises(GrammarServiceError, match=r"3 times.*out of luck.*--resume.*--grammar_backend rules"):
        checker.check(TEXTS)
    checker.close()
    assert not checker.server.folder.exists()


RANK = """
import os, sys, time
from pathlib import Path
from alarm.tasks.mt.grammar.checker import LanguageToolChecker
from alarm.tasks.mt.grammar.server import LocalServer
checker = LanguageToolChecker(LocalServer(Path(sys.argv[1])), pause=0.01)
assert len(checker.check(["something wrong"])[0]) == 1
print(checker.server._state["group"], checker.server._state["port"], flush=True)
sys.stdin.readline()
print(len(checker.check(["wrong once more"])[0]), checker.counts["restarts"], flush=True)
sys.stdin.readline()
"""


def start_rank(jar, **env) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(jar)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def test_no_orphan_after_kill_9(fake_java):
    rank = start_rank(fake_java)
    group = int(rank.stdout.readline().split()[0])
    processes = members(group)
    assert processes
    rank.kill()
    rank.wait()
    assert gone(processes)


CHECK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script inherits it ignored
from alarm.common.errors import report_user_errors
from alarm.tasks.mt.grammar.checker import LanguageToolChecker
from alarm.tasks.mt.grammar.server import RemoteServer

texts = [f"text {i}" for i in range(30)]

@report_user_errors
def main():
    checker = LanguageToolChecker(RemoteServer(sys.argv[1]), timeout=3600)
    if sys.argv[2] == "beside":
        from alarm.tasks.mt.aspects import Grammar
        from alarm.types import Rollout

        grammar = Grammar(checker, 0.0, -1.0)
        try:
            grammar.start(Rollout([], None, texts, texts, [{}] * 30, None))()
        finally:
            grammar.close()
    checker.check(texts)

main()
"""


@pytest.mark.parametrize("how", ["at once", "beside"])
def test_an_interrupt_does_not_wait_for_a_server_that_hangs(how):
    """The limits are those of a hang, not of a slow machine: by itself the run would wait for an hour."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", CHECK, address, how],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "trl")])},
        )
        connection, _ = silent.accept()  # a request is on its way
        with connection:
            assert connection.recv(4)
            process.send_signal(signal.SIGINT)
            try:
                _, err = process.communicate(timeout=120)
            finally:
                process.kill()
    assert (process.returncode, err) == (130, "interrupted\n")


def test_threads_that_check_take_turns_and_a_closed_checker_ends_the_one_that_waits(stub):
    checker = remote(stub)
    waiting = [beside(checker.check, TEXTS[k : k + 20]) for k in (0, 10)]
    assert [wait() for wait in waiting] == [UNDISTURBED[:20], UNDISTURBED[10:]]
    assert checker.counts["checked"] == 30 and sorted(stub.texts) == sorted(TEXTS)  # each text was asked for once
    stub.always = "500"
    asked, wait = len(stub.texts), beside(remote_that_never_gives_up(checker), ["another text"])
    deadline = time.monotonic() + 60
    while len(stub.texts) == asked and time.monotonic() < deadline:
        time.sleep(0.01)
    checker.close()
    with pytest.raises(GrammarServiceError, match="closed"):
        wait()
    stub.always = None
    assert checker.check(TEXTS) == UNDISTURBED


def remote_that_never_gives_up(checker: LanguageToolChecker):
    checker.max_failures = 10**6
    return checker.check


def test_ranks_of_one_machine_share_a_server_which_outlives_all_but_the_last(fake_java):
    ranks = [start_rank(fake_java, LOCAL_WORLD_SIZE="3") for _ in range(3)]
    said = [rank.stdout.readline() for rank in ranks]
    assert len(set(said)) == 1, "each rank has its own server"
    processes = members(int(said[0].split()[0]))
    ranks[0].kill()
    ranks[0].wait()
    time.sleep(0.3)
    assert all(p.is_running() for p in processes)
    # both others find it dead: one replaces it, the other takes the new one
    os.kill(next(p for p in processes if "--port" in p.cmdline() and p.name() != "sh").pid, signal.SIGKILL)
    for rank in ranks[1:]:
        rank.stdin.write("\n")
        rank.stdin.flush()
    answers = [rank.stdout.readline().split() for rank in ranks[1:]]
    assert [answer[0] for answer in answers] == ["1", "1"]
    assert sorted(answer[1] for answer in answers) == ["0", "1"]
    for rank in ranks[1:]:
        rank.communicate("\n")
    assert gone(processes)


def test_the_meeting_place_is_that_of_the_processes_of_one_launch(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert machine_folder() is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert machine_folder() == machine_folder()
    assert str(os.getppid()) in machine_folder().name


# --- what is missing -------------------------------------------------------------------------------------------------


def test_installation_is_found_by_ltp_path(fake_java, monkeypatch):
    for named in (fake_java.parent, fake_java.parents[1]):
        monkeypatch.setenv("LTP_PATH", str(named))
        assert find_installation() == fake_java.resolve()
    newer = fake_java.parents[1] / "LanguageTool-6.10" / fake_java.name
    newer.parent.mkdir()
    newer.touch()
    assert find_installation() == newer.resolve()


def test_without_languagetool_one_line_says_how_to_get_it(fake_java, monkeypatch, tmp_path):
    monkeypatch.delenv("LTP_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folders = (tmp_path / "none", FOLDERS[1])
    with pytest.raises(UserError, match=r"make languagetool.*--grammar_backend rules"):
        find_installation(folders)
    downloaded = tmp_path / "home/.cache/language_tool_python/LanguageTool-6.8/languagetool-server.jar"
    downloaded.parent.mkdir(parents=True)
    downloaded.touch()
    assert find_installation(folders) == downloaded.resolve()
    monkeypatch.setenv("LTP_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"LTP_PATH=.*none"):
        make_checker()


def test_without_java_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"Java 17.*--grammar_backend rules"):
        make_checker()


@pytest.mark.parametrize("version", ["11.0.2", "1.8.0_292"])
def test_an_old_java_is_named(fake_java, monkeypatch, version):
    monkeypatch.setenv("FAKE_JAVA_VERSION", version)
    with pytest.raises(UserError, match=r"Java 17.*Java (11|8)"):
        make_checker()


# --- the stand-in ----------------------------------------------------------------------------------------------------


def test_the_stand_in_says_loudly_what_it_is_and_is_no_default(caplog):
    checker = make_checker("rules")
    assert "STAND-IN" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert [[m.rule for m in ms] for ms in checker.check(["", "He have a a apple,and it work."])] == [
        [],
        ["AGREEMENT", "DOUBLED_WORD", "A_AN", "COMMA_SPACE"],
    ]
    assert checker.counts == {"texts": 2, "empty": 1}


def test_backends_that_contradict_are_refused():
    with pytest.raises(UserError, match="--grammar_server"):
        make_checker("rules", "localhost:8081")
    with pytest.raises(UserError, match=r"magic.*languagetool, rules"):
        make_checker("magic")
