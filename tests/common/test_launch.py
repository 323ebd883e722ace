"""Launches that would train something else than was asked for: known by their environment alone."""

from __future__ import annotations

import pytest

from alarm.common.errors import UserError
from alarm.common.launch import check_launch, is_main_process, process_timeout

VARIABLES = (
    "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU", "ALARM_PROCESS_TIMEOUT"
)  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    def set_environment(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"ACCELERATE_USE_CPU": "true"},
        {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        # one process on each of 64 machines, started without a launcher
        {"WORLD_SIZE": "64", "RANK": "63", "LOCAL_RANK": "0"},
    ],
)
def test_launches_that_work_pass(launched, variables):
    launched(**variables)
    check_launch()


def test_several_processes_on_cpu_that_are_one_are_refused(launched):
    launched(ACCELERATE_USE_CPU="true", MASTER_ADDR="127.0.0.1")
    with pytest.raises(UserError, match="torchrun"):
        check_launch()


@pytest.mark.parametrize("local", [{"LOCAL_WORLD_SIZE": "64"}, {"LOCAL_RANK": "63"}, {}])
def test_more_processes_than_gpus_are_refused(launched, local):
    launched(WORLD_SIZE="64", RANK="63", **local)
    with pytest.raises(UserError, match=r"64 processes.*--num_processes"):
        check_launch()


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_the_process_that_speaks(launched, rank, speaks):
    launched(**({} if rank is None else {"RANK": rank}))
    assert is_main_process() is speaks


@pytest.mark.parametrize(("given", "seconds"), [(None, 600), ("2.5", 2.5), ("3600", 3600)])
def test_how_long_processes_wait_for_each_other(launched, given, seconds):
    launched(**({} if given is None else {"ALARM_PROCESS_TIMEOUT": given}))
    assert process_timeout().total_seconds() == seconds


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(launched, given):
    launched(ALARM_PROCESS_TIMEOUT=given)
    with pytest.raises(UserError, match="ALARM_PROCESS_TIMEOUT"):
        process_timeout()
