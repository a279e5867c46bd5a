from pathlib import Path
from typing import Any

import pytest

from hawker.app.fidelity_page import reliability_chart, return_chart, value_chart, visit_chart, write_page
from hawker.shop.errors import InputError
from hawker.shop.figures import figure


@pytest.fixture
def report() -> dict[str, Any]:
    bins = [
        {"kind": "count", "share": 0.1, "predicted": 0.1, "true": 0.12, "observed": 0.11, "error": 0.1},
        {"kind": "width", "share": 0.2, "predicted": 0.3, "true": 0.2, "observed": 0.25, "error": 0.5},
    ]
    heads = ("click", "conversion", "leave", "return")
    curves = {"predicted": [[0.1, 0.2], [0.2, 0.3], [0.3, 0.4]], "true": [[0.1, 0.3]] * 3}
    probe = {"calibration": {head: {"bins": bins} for head in heads}, "return_curves": curves}
    shares = {"pages": [0.0, 0.6, 0.4], "clicks": [0.5, 0.5, 0.0]}
    arms = [
        {"strategy": "<b>bold", "gold": -0.3, "gold_error": 0.01, "judge": -0.2, "judge_error": 0.02},
        {"strategy": "calm", "gold": 0.4, "gold_error": 0.01, "judge": 0.3, "judge_error": 0.02},
    ]
    detail = {"probe": {"train": probe}, "visit_counts": {"gold": shares, "learned": shares}, "strategies": arms}
    return {
        "figures": {"bazaar.<x>": figure(0.5, 0.4, 0.6, 3, "ratio")},
        "notes": ["1 < 2"],
        "seeds": [1, 2],
        "world": {"variant": "base", "parameters": "abc" * 20},
        "details": [detail, detail],
    }


def test_the_page_needs_nothing_else_and_escapes_texts(report: dict[str, Any], tmp_path: Path) -> None:
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="plotly-graph-div"') == 10
    assert "<script src" not in page
    assert "<link" not in page
    assert "1 &lt; 2" in page
    assert "bazaar.&lt;x&gt;<td class=n>0.5<td class=n>[0.4, 0.6]" in page
    with pytest.raises(InputError):
        write_page(report, tmp_path / "page.html" / "other.html")


def test_charts_show_every_seed(report: dict[str, Any]) -> None:
    deciles, tenths, exact = reliability_chart(report, "click").data
    assert (list(deciles.x), list(deciles.y)) == ([0.1, 0.1], [0.12, 0.12])
    assert (list(tenths.x), list(tenths.y)) == ([0.3, 0.3], [0.2, 0.2])
    assert list(exact.x) == list(exact.y) == [0, 0.3]
    lines = return_chart(report, 2).data
    assert [line.name for line in lines] == ["true", "true", "predicted", "predicted"]
    assert list(lines[2].y) == [0.3, 0.4]
    assert list(lines[2].x) == [1, 2]
    points, exact = value_chart(report).data
    assert list(points.x) == [-0.3, 0.4] * 2
    assert list(points.error_y.array) == pytest.approx([0.0392] * 4)
    assert list(exact.y) == [-0.3, 0.4]
    assert [list(bar.y) for bar in visit_chart(report, "clicks").data] == [[0.5, 0.5, 0.0]] * 2
