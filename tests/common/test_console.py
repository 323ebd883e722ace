"""What a run prints at its end."""

from __future__ import annotations

from accelerate import Accelerator

from alarm.common.console import say_counts, show


def test_counts_of_zero_are_not_printed(capsys, fresh_accelerate):
    say_counts({"empty answers": 2, "failures": 0})
    say_counts({"cut inputs": 1, "nothing": 0}, Accelerator())
    assert capsys.readouterr().out.splitlines() == ["empty answers: 2", "cut inputs: 1"]


def test_a_table_has_a_row_a_metric_and_no_number_is_an_empty_cell(capsys):
    show("title", {"first": {"a": 1.0, "b": None}, "second": {"a": 2.5, "c": 3.0}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "title"
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [["a", "1.0000", "2.5000"], ["b", "", ""], ["c", "", "3.0000"]]
