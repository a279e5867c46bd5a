"""Tables for people: figures with their intervals, on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hawker.shop.figures import Figure

RATES = ("probability", "clicks per impression")
"""Units that people read in percent."""

WIDTH = 120
"""Columns where the output is no terminal and ``COLUMNS`` is not set: a table in a file is not to be cut at 80."""


def console() -> Console:
    """Return where tables go: standard output, in plain text where it is no terminal; [brackets] mean themselves."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)


def say(line: str) -> None:
    """Print a line as it is: one with a path in it is not to be broken."""
    console().print(line, soft_wrap=True)


def heading(what: str, about: str) -> None:
    """Print the heading of a part of a longer report."""
    console().print(Text.assemble("\n", (what, "bold"), f": {about}"))


def number(value: float | None, unit: str) -> str:
    """Return a number as people read it: rates in percent, others with four digits; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.3%}" if unit in RATES else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def interval(figure: Figure) -> str:
    """Return a figure's 95% interval as text, "-" where it has none."""
    if figure["low"] is None or figure["high"] is None:
        return "-"
    return f"[{number(figure['low'], figure['unit'])}, {number(figure['high'], figure['unit'])}]"


def figure_table(title: str, figures: Mapping[str, Figure]) -> Table:
    """Return a table of figures, a row each."""
    rows = [(name, number(f["value"], f["unit"]), interval(f), f"{f['n']:,}", f["unit"]) for name, f in figures.items()]
    return text_table(title, ("figure", "value", "95% interval", "n", "unit"), rows, right=(1, 2, 3))


def arms_table(title: str, arms: Mapping[str, Mapping[str, float]]) -> Table:
    """Return a table of strategies, a row each, with a column for every metric."""
    metrics = list(next(iter(arms.values())))
    rows = [(name, *(number(arm[metric], "") for metric in metrics)) for name, arm in arms.items()]
    return text_table(title, ("strategy", *metrics), rows, right=tuple(range(1, len(metrics) + 1)))


def front_table(title: str, arms: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of weightings, a row each: the metrics of a Pareto front in gold, and whether they are on it."""
    metrics = list(next(iter(arms.values()))["gold"])
    rows = [
        (
            name,
            "yes" if arm["front"] else "",
            arm["front_seeds"],
            *(f"{number(f['value'], f['unit'])} {interval(f)}" for f in arm["gold"].values()),
        )
        for name, arm in arms.items()
    ]
    return text_table(
        title, ("weighting", "front", "in seeds", *metrics), rows, right=tuple(range(2, 3 + len(metrics)))
    )


def text_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], right: tuple[int, ...] = ()) -> Table:
    """Return a table of texts; columns whose place is in ``right`` are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in right else "left", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table
