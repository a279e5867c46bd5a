"""The page of the writer: its curves by hand, and every line before and after as text."""

from pathlib import Path

import pytest

from hawker.app.writer_page import gain_chart, write_page
from hawker.shop.figures import figure


def report() -> dict:
    def point(at: str | int, kl: float | None, value: float) -> dict:
        names = ("proxy", "proxy_click", "gold", "gold_click")
        return {"at": at, "kl": kl, **{name: value * (i + 1) for i, name in enumerate(names)}}

    return {
        "figures": {"writer.gold_ctr_lift": figure(0.25, None, None, 1, "relative CTR")},
        "seeds": [1, 2],
        "samples": [{"item": "Tea <pot>", "audience": "new", "before": "a & b", "after": "for you"}],
        "details": [
            {"points": [point("sft", 0.0, 0.1), point(4, 0.25, 0.2), point("grpo", 1.0, 0.4)]},
            {"points": [point("sft", 0.0, 0.1), point("grpo", None, 0.3)]},
        ],
    }


def test_the_page_needs_nothing_else_and_says_what_the_report_says(tmp_path: Path):
    write_page(report(), tmp_path / "writer.html")
    page = (tmp_path / "writer.html").read_text()
    assert page.count('class="plotly-graph-div"') == 2
    assert "<td>Tea &lt;pot&gt;<td>new<td>a &amp; b<td>for you" in page
    assert "1 lines before and after" in page
    assert "writer.gold_ctr_lift" in page
    assert "seeds 1, 2" in page


def test_gains_are_over_the_first_writer_and_the_root_of_kl():
    chart = gain_chart(report(), "reward")
    assert [trace.name for trace in chart.data] == ["learned shoppers"] * 2 + ["gold"] * 2
    assert [trace.showlegend for trace in chart.data] == [True, False] * 2
    assert list(chart.data[0].x) == [0.0, 0.5, 1.0]
    assert list(chart.data[0].text) == ["sft", "step 4", "grpo"]
    assert list(chart.data[0].y) == pytest.approx([0.0, 0.1, 0.3])
    assert list(chart.data[2].y) == pytest.approx([0.0, 0.3, 0.9])
    assert list(chart.data[1].x) == [0.0, None]
    assert list(gain_chart(report(), "P(click)").data[0].y) == pytest.approx([0.0, 0.2, 0.6])
