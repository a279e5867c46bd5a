"""The report of ``hawker bench writer`` as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from hawker.app.fidelity_page import BLUE, ORANGE, STYLE
from hawker.app.tables import interval, number
from hawker.shop.artefacts import write_text

CURVES = {
    "reward": ("proxy", "gold", "what the reward pays, over the first writer"),
    "P(click)": ("proxy_click", "gold_click", "P(click), over the first writer"),
}
"""The charts: by title, what the learned shoppers believe, what is true, and what is drawn of both."""


def write_page(report: dict[str, Any], path: Path) -> None:
    """Write the report of ``bench_writer`` as HTML, its scripts within it.

    Raises:
        InputError: The file cannot be written.
    """
    # The scripts stand once, before the first chart.
    drawn = "".join(
        gain_chart(report, title).to_html(full_html=False, include_plotlyjs=i == 0, default_width="460px")
        for i, title in enumerate(CURVES)
    )
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td class=n>{number(f['value'], f['unit'])}<td class=n>{interval(f)}"
        f"<td class=n>{f['n']:,}<td>{html.escape(f['unit'])}"
        for name, f in report["figures"].items()
    )
    lines = "".join(
        "<tr>" + "".join(f"<td>{html.escape(sample[name])}" for name in ("item", "audience", "before", "after"))
        for sample in report["samples"]
    )
    seeds = ", ".join(map(str, report["seeds"]))
    write_text(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><title>The writer</title><style>{STYLE}</style>"
        f"<h1>What the writer learns to say, and what it is worth</h1><p>In the gold world, seeds {seeds}.</p>"
        "<h2>Proxy and gold along the optimisation</h2><p>At the beginning, at quarters of the steps and at the end, on"
        " the same items, audiences and discounts; a line for each seed. The learned shoppers' reward is its lower"
        " bound. Where they rise and gold does not, the writer has found out what is wrong with them.</p>"
        f"<div class=charts>{drawn}</div>"
        f"<table><tr><th>figure<th class=n>value<th class=n>95% interval<th class=n>n<th>unit{rows}</table>"
        f"<h2>{len(report['samples'])} lines before and after, drawn at random, none left out</h2>"
        f"<table><tr><th>item<th>audience<th>before<th>after{lines}</table></html>\n",
    )


def gain_chart(report: dict[str, Any], title: str) -> go.Figure:
    """Return what writers gain over the first one, believed and true, over the square root of their KL from it."""
    chart, (proxy, gold, drawn) = go.Figure(), CURVES[title]
    for name, key, colour in (("learned shoppers", proxy, ORANGE), ("gold", gold, BLUE)):
        for i, detail in enumerate(report["details"]):
            points = detail["points"]
            chart.add_scatter(
                x=[None if point["kl"] is None else math.sqrt(point["kl"]) for point in points],
                y=[point[key] - points[0][key] for point in points],
                text=[f"step {at}" if isinstance(at := point["at"], int) else at for point in points],
                mode="lines+markers",
                name=name,
                marker={"color": colour},
                showlegend=i == 0,
            )
    chart.update_layout(title=title, xaxis_title="square root of the KL divergence, nats a line", yaxis_title=drawn)
    return chart.update_layout(template="plotly_white", height=380, width=460)
