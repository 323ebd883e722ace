"""What a run prints at its end."""

from __future__ import annotations

from accelerate import Accelerator

from alarm.common.console import Column, Table, fits, plain_table, print_table, say_counts, screen, show


def test_counts_of_zero_are_not_printed(capsys, fresh_accelerate):
    say_counts({"empty answers": 2, "failures": 0})
    say_counts({"cut inputs": 1, "nothing": 0}, Accelerator())
    assert capsys.readouterr().out.splitlines() == ["empty answers: 2", "cut inputs: 1"]


def test_a_table_has_a_row_a_metric_and_no_number_is_an_empty_cell(capsys):
    show("title", {"first": {"a": 1.0, "b": None}, "second": {"a": 2.5, "c": 3.0}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "title"
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:] if line.strip()}
    assert cells["metric"] == ["first", "second"]
    assert (cells["a"], cells["b"], cells["c"]) == (["1.0000", "2.5000"], [], ["3.0000"])
    (of_c,) = [line for line in lines if line.split()[:1] == ["c"]]
    (of_a,) = [line for line in lines if line.split()[:1] == ["a"]]
    assert of_c.index("3.0000") == of_a.index("2.5000")


def test_a_plain_table_has_text_first_and_numbers_behind():
    table = plain_table("times", ("stage", "seconds"), [("one", "1"), ("two", "22")], "a note")
    assert table.columns == (Column("stage", text=True), Column("seconds"))
    assert table.sections[0].rows == (("one", "1"), ("two", "22"))


def test_columns_that_do_not_fit_go_into_blocks_and_nothing_is_cut(capsys):
    names = [f"column{number}" for number in range(20)]
    table = plain_table("wide", ("row", *names), [("first", *(f"{number}.123456" for number in range(20)))])
    width = screen().width
    assert not fits(table, width)
    print_table(table)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert all(f"{number}.123456" in out for number in range(20))
    assert out.count("first") > 1 and isinstance(table, Table)
