"""Servers to check grammar with: a stub to call, a stub to start, and the real LanguageTool."""

from __future__ import annotations

import os

import pytest
from tasks.mt.languagetool_stub import FAKE_JAVA, StubServer

from alarm.common.errors import UserError
from alarm.tasks.mt.grammar.checker import LanguageToolChecker
from alarm.tasks.mt.grammar.server import LocalServer, find_installation


@pytest.fixture
def stub():
    server = StubServer()
    yield server
    server.stop()


@pytest.fixture
def fake_java(tmp_path, monkeypatch):
    """A `java` that starts the stub in a tenth of a second. -> the jar to start it with"""
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(FAKE_JAVA)
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{java.parent}:{os.environ['PATH']}")
    jar = tmp_path / "LanguageTool-6.8" / "languagetool-server.jar"
    jar.parent.mkdir()
    jar.touch()
    return jar


@pytest.fixture(scope="session")
def languagetool(tmp_path_factory, request):
    """The real server, one for all test processes. Skips where Java or LanguageTool is missing."""
    try:
        jar = find_installation()
    except UserError as missing:
        pytest.skip(str(missing))
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "languagetool"
    checker = LanguageToolChecker(LocalServer(jar, folder))
    yield checker
    checker.close()
