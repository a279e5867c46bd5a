"""The report of ``hawker bench pareto`` as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import itertools
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hawker.app.fidelity_page import BLUE, GREY, ORANGE, STYLE
from hawker.app.tables import interval, number
from hawker.benchmarks.pareto import AIMS
from hawker.shop.artefacts import write_text


def write_page(report: dict[str, Any], path: Path) -> None:
    """Write the report of ``bench_pareto`` as HTML, its scripts within it.

    Raises:
        InputError: The file cannot be written.
    """
    charts = [front_chart(report, x, y) for x, y in itertools.combinations(AIMS, 2)]
    # The scripts stand once, before the first chart.
    drawn = "".join(
        chart.to_html(full_html=False, include_plotlyjs=i == 0, default_width="460px") for i, chart in enumerate(charts)
    )
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{'yes' if arm['front'] else ''}<td class=n>{arm['front_seeds']}"
        + "".join(f"<td class=n>{number(f['value'], f['unit'])}<td class=n>{interval(f)}" for f in arm["gold"].values())
        for name, arm in report["arms"].items()
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report["notes"])
    seeds = ", ".join(map(str, report["seeds"]))
    columns = "".join(f"<th class=n>{said}<th class=n>95% interval" for said in AIMS.values())
    write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Pareto front</title><style>{STYLE}</style>"
        f"<h1>What CTR, conversion and retention cost each other</h1><p>In the gold world, seeds {seeds}.</p>{notes}"
        f"<div class=charts>{drawn}</div>"
        f"<table><tr><th>weighting<th>on the front<th class=n>in seeds{columns}{rows}</table></html>\n",
    )


def front_chart(report: dict[str, Any], x: str, y: str) -> go.Figure:
    """Return two aims of every strategy in gold, with 95% intervals over seeds, and in the judge's opinion."""
    chart, arms = go.Figure(), report["arms"]
    groups = (
        ("on the front", "gold", BLUE, "circle", [n for n, arm in arms.items() if arm["front"] and n != "logging"]),
        ("dominated", "gold", GREY, "circle", [n for n, arm in arms.items() if not arm["front"] and n != "logging"]),
        ("logging", "gold", ORANGE, "x", ["logging"]),
        ("as the judge sees it", "judge", BLUE, "circle-open", [n for n in arms if n != "logging"]),
    )
    for name, world, colour, symbol, members in groups:
        found = [(arms[member][world][x], arms[member][world][y]) for member in members]
        chart.add_scatter(
            x=[one["value"] for one, _ in found],
            y=[other["value"] for _, other in found],
            error_x=_bars([one for one, _ in found]),
            error_y=_bars([other for _, other in found]),
            text=members,
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol},
        )
    chart.update_layout(
        title=f"{AIMS[y]} against {AIMS[x]}", xaxis_title=AIMS[x], yaxis_title=AIMS[y], template="plotly_white"
    )
    return chart.update_layout(height=380, width=460, xaxis_tickformat=".1%", yaxis_tickformat=".1%")


def _bars(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return half the widths of intervals, 0 where there are none."""
    return {"array": [0.0 if f["high"] is None else f["high"] - f["value"] for f in figures], "thickness": 1}
