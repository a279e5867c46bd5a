from typing import Any

import pytest
from rich.console import Console

from hawker.app.tables import WIDTH, console, figure_table, interval, number, say, text_table
from hawker.shop.figures import Figure, figure


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00381, "probability", "0.381%"),
        (0.5, "clicks per impression", "50.000%"),
        (-0.0007, "clicks per impression", "-0.070%"),
        (0.0, "probability", "0.000%"),
        (0.012345, "clicks", "0.01235"),
        (1.0, "ratio", "1"),
        (999.96, "nats", "1,000"),
        (1234.5, "rows", "1,234"),
        (-20_000, "rows", "-20,000"),
        (2.665e-15, "nats", "2.665e-15"),
        (None, "probability", "-"),
        (None, "rows", "-"),
    ],
)
def test_number(value: float | None, unit: str, text: str):
    assert number(value, unit) == text


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (figure(0.5, 0.25, 0.75, 10, "probability"), "[25.000%, 75.000%]"),
        (figure(1.5, -1, 4.25, 10, "ratio"), "[-1, 4.25]"),
        (figure(1.5, None, None, 10, "ratio"), "-"),
        (figure(1.5, 1.0, float("nan"), 10, "ratio"), "-"),
        (figure(None, None, None, 0, "ratio"), "-"),
    ],
)
def test_interval(seen: Figure, text: str):
    assert interval(seen) == text


def lines(table: Any, width: int = 100) -> list[str]:
    screen = Console(width=width, highlight=False, markup=False, emoji=False)
    with screen.capture() as captured:
        screen.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def test_figure_table():
    figures = {
        "auc": figure(0.7, 0.6, 0.8, 2_000, "probability"),
        "bytes": figure(66_434, None, None, 1, "bytes"),
        "unknown": figure(None, None, None, 0, "ratio"),
    }
    assert lines(figure_table("What was found", figures)) == [
        "What was found",
        "figure     value        95% interval      n  unit",
        "auc      70.000%  [60.000%, 80.000%]  2,000  probability",
        "bytes     66,434                   -      1  bytes",
        "unknown        -                   -      0  ratio",
    ]


def test_text_table_aligns_and_keeps_brackets():
    table = text_table("[t]", ("name", "n"), [("[red]plain[/red]", 5), (":smile:", "1,000")], right=(1,))
    assert lines(table) == [
        "[t]",
        "name                  n",
        "[red]plain[/red]      5",
        ":smile:           1,000",
    ]


def test_the_first_column_is_never_wrapped():
    table = text_table("", ("name", "text"), [("a name of some length", "word " * 30)])
    assert lines(table, width=60)[1].startswith("a name of some length  word word")


def test_what_is_no_terminal_is_wide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == WIDTH
    monkeypatch.setenv("COLUMNS", "90")
    assert console().width == 90
    console().print("[bold]:smile:[/bold] 12 'text'")
    assert capsys.readouterr().out == "[bold]:smile:[/bold] 12 'text'\n"


def test_a_said_line_is_never_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "40")
    line = f"shoppers: {'/a long path[red]' * 20}"
    say(line)
    assert capsys.readouterr().out == line + "\n"
