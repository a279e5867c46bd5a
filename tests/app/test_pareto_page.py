"""The page of the Pareto front: every weighting in every chart, and every note as text."""

from pathlib import Path

import pytest

from hawker.app.pareto_page import front_chart, write_page
from hawker.benchmarks.signal import over_seeds


def report() -> dict:
    def arm(front: bool, *values: float) -> dict:
        figures = {
            name: over_seeds([value - 0.01, value + 0.01], "probability")
            for name, value in zip(("ctr", "cvr", "d7"), values, strict=True)
        }
        return {"front": front, "front_seeds": 2 * front, "front_by_judge": front, "judge": figures, "gold": figures}

    arms = {
        "logging": arm(False, 0.1, 0.1, 0.3),
        "clicks": arm(True, 0.2, 0.1, 0.3),
        "a <b>": arm(False, 0.1, 0.1, 0.2),
    }
    return {"arms": arms, "notes": ["one < two"], "seeds": [1, 2], "figures": {}}


def test_the_page_needs_nothing_else_and_says_what_the_report_says(tmp_path: Path):
    write_page(report(), tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert page.count('class="plotly-graph-div"') == 3
    assert "one &lt; two" in page
    assert "a &lt;b&gt;" in page
    assert "20.000%" in page


def test_a_chart_holds_every_strategy_once_in_each_world():
    chart = front_chart(report(), "ctr", "d7")
    drawn = {trace.name: list(trace.text) for trace in chart.data}
    assert drawn == {
        "on the front": ["clicks"],
        "dominated": ["a <b>"],
        "logging": ["logging"],
        "as the judge sees it": ["clicks", "a <b>"],
    }
    front = chart.data[0]
    assert (list(front.x), list(front.y)) == ([pytest.approx(0.2)], [pytest.approx(0.3)])
    assert front.error_x.array[0] > 0.01
