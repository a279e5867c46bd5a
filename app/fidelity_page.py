"""The fidelity report as one HTML file that needs nothing else."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hawker.app.tables import interval, number
from hawker.shop.artefacts import write_text
from hawker.simulators.shopper import HEADS

BLUE, ORANGE, GREY = "#1f77b4", "#ff7f0e", "#888888"
TERCILES = ("least satisfied third", "middle third", "most satisfied third")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .9rem .2rem 0; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr { border-bottom: 1px solid #ddd }
.charts { display: flex; flex-wrap: wrap }
"""


def write_page(report: dict[str, Any], path: Path) -> None:
    """Write the report of ``bench_fidelity`` as HTML, its scripts within it.

    Raises:
        InputError: The file cannot be written.
    """
    sections = {
        "Predicted against true probabilities": [reliability_chart(report, head) for head in HEADS],
        "Days until the next visit": [return_chart(report, tercile) for tercile in range(3)],
        "Visits": [visit_chart(report, what) for what in ("pages", "clicks")],
        "Strategies that never logged, against the logging one": [value_chart(report)],
    }
    charts, first = [], True
    for title, figures in sections.items():
        parts = []
        for figure in figures:
            # The scripts stand once, before the first chart.
            parts.append(figure.to_html(full_html=False, include_plotlyjs=first, default_width="460px"))
            first = False
        charts.append(f"<h2>{title}</h2><div class=charts>{''.join(parts)}</div>")
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td class=n>{number(f['value'], f['unit'])}<td class=n>{interval(f)}"
        f"<td class=n>{f['n']:,}<td>{html.escape(f['unit'])}"
        for name, f in report["figures"].items()
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report["notes"])
    world = report["world"]
    head = f"World {world['variant']} ({world['parameters'][:12]}), seeds {', '.join(map(str, report['seeds']))}"
    write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Fidelity</title><style>{STYLE}</style>"
        f"<h1>How far the learned shoppers can be believed</h1><p>{html.escape(head)}</p>{notes}"
        f"<table><tr><th>figure<th class=n>value<th class=n>95% interval<th class=n>n<th>unit{rows}</table>"
        f"{''.join(charts)}</html>\n",
    )


def reliability_chart(report: dict[str, Any], head: str) -> go.Figure:
    """Return mean predicted against mean true probability: deciles, and tenths of 0..1 that hold 1% of the data."""
    figure = go.Figure()
    largest = 0.0
    for kind, name, colour in (("count", "deciles", BLUE), ("width", "tenths of 0..1", ORANGE)):
        bins = [
            entry
            for detail in report["details"]
            for entry in detail["probe"]["train"]["calibration"][head]["bins"]
            if entry["kind"] == kind
        ]
        said, true = [entry["predicted"] for entry in bins], [entry["true"] for entry in bins]
        largest = max([largest, *said, *true])
        figure.add_scatter(x=said, y=true, mode="markers", name=name, marker={"color": colour})
    line = {"color": GREY, "dash": "dot"}
    figure.add_scatter(x=[0, largest], y=[0, largest], mode="lines", name="exact", line=line)
    name = "return within a week" if head == "return" else head
    return _laid_out(figure, name, "predicted", "true")


def return_chart(report: dict[str, Any], tercile: int) -> go.Figure:
    """Return P(return by day d), predicted and true, for a tercile of true satisfaction."""
    figure = go.Figure()
    for which, colour in (("true", GREY), ("predicted", BLUE)):
        for i, detail in enumerate(report["details"]):
            curve = detail["probe"]["train"]["return_curves"][which][tercile]
            days = list(range(1, len(curve) + 1))
            line = {"color": colour}
            figure.add_scatter(x=days, y=curve, mode="lines", name=which, line=line, showlegend=i == 0)
    return _laid_out(figure, TERCILES[tercile], "days", "share that has returned")


def visit_chart(report: dict[str, Any], what: str) -> go.Figure:
    """Return the shares of visits by their pages or clicks, of the first seed."""
    figure = go.Figure()
    for which, name, colour in (("gold", "true", GREY), ("learned", "learned", BLUE)):
        shares = report["details"][0]["visit_counts"][which][what]
        figure.add_bar(x=list(range(len(shares))), y=shares, name=name, marker={"color": colour})
    return _laid_out(figure, f"{what} of a visit (the last bar: or more)", what, "share of visits")


def value_chart(report: dict[str, Any]) -> go.Figure:
    """Return the judge's differences from logging against gold's, with 95% intervals of their Monte Carlo errors."""
    arms = [arm for detail in report["details"] for arm in detail["strategies"]]
    figure = go.Figure()
    figure.add_scatter(
        x=[arm["gold"] for arm in arms],
        y=[arm["judge"] for arm in arms],
        text=[arm["strategy"] for arm in arms],
        error_x={"array": [1.96 * arm["gold_error"] for arm in arms], "thickness": 1},
        error_y={"array": [1.96 * arm["judge_error"] for arm in arms], "thickness": 1},
        mode="markers",
        name="a strategy",
        marker={"color": BLUE},
    )
    ends = [min(arm["gold"] for arm in arms), max(arm["gold"] for arm in arms)]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="exact", line={"color": GREY, "dash": "dot"})
    return _laid_out(figure, "relative difference in reward", "in truth", "as the judge sees it")


def _laid_out(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y, template="plotly_white", height=380, width=460)
    return figure
