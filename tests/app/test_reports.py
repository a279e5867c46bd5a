from typing import Any

import pytest

from hawker.app.reports import chosen, print_ab, print_fidelity, print_ope, progress_bar
from hawker.benchmarks.ope import ESTIMATORS
from hawker.shop.figures import figure


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_fidelity(capsys: pytest.CaptureFixture[str]):
    part = {"impressions": 6_000, "clicks": 25, "from": "2019-11-24", "to": "2019-11-28"}
    print_fidelity(
        {
            "figures": {
                "log_loss.judge": figure(0.0205, 0.0072, 0.0338, 2_000, "nats"),
                "auc.judge": figure(None, None, None, 2_000, "probability"),
            },
            "split": {"unit": "time", "parts": {"train": part, "estimate": {**part, "impressions": 2_000}}},
            "heads": {"click": "learned", "return": "absent: the log does not know its shoppers"},
        }
    )
    assert printed(capsys) == [
        "The log, split by time",
        "part      impressions  clicks",
        "train           6,000      25",
        "estimate        2,000      25",
        "Predictions of clicks that no model has seen",
        "figure           value      95% interval      n  unit",
        "log_loss.judge  0.0205  [0.0072, 0.0338]  2,000  nats",
        "auc.judge            -                 -  2,000  probability",
        "- click: learned",
        "- return: absent: the log does not know its shoppers",
    ]


def ope_report(**changes: Any) -> dict[str, Any]:
    seen = {
        "n": 2_000,
        "ess": 476.4,
        "largest_weight_share": 0.0049,
        "mean_weight": 0.991,
        "mean_weight_error": 0.04,
        "unsupported_mass": 0.012,
        "marginal_error": 0.0012,
    }
    return {
        "figures": {
            "logged": figure(0.003, 0.001, 0.007, 2_000, "clicks per impression"),
            "dr.trained": figure(0.0023, 0.0007, 0.0083, 2_000, "clicks per impression"),
        },
        "diagnostics": {"trained": seen, "pages": {**seen, "unsupported_mass": None, "marginal_error": 0.0}},
        "refused": {},
        "forced": False,
        "notes": ["positions are assumed to add up"],
        "seeds": [0],
        **changes,
    }


def test_ope(capsys: pytest.CaptureFixture[str]):
    print_ope(ope_report())
    assert printed(capsys) == [
        "Can the log tell?",
        "strategy  effective rows  largest weight    mean weight  no support  error of marginals",
        "trained     476 of 2,000            0.5%  0.991 ± 0.040        1.2%               0.001",
        "pages       476 of 2,000            0.5%  0.991 ± 0.040           -                   0",
        "What strategies would have earned (off-policy)",
        "figure       value      95% interval      n  unit",
        "logged      0.300%  [0.100%, 0.700%]  2,000  clicks per impression",
        "dr.trained  0.230%  [0.070%, 0.830%]  2,000  clicks per impression",
        "- positions are assumed to add up",
    ]


@pytest.mark.parametrize(("forced", "word"), [(False, "no estimate"), (True, "FORCED")])
def test_ope_says_who_is_refused(forced: bool, word: str, capsys: pytest.CaptureFixture[str]):
    print_ope(ope_report(refused={"trained": "the effective sample size is 12.0 of 2000 rows"}, forced=forced))
    assert f"trained: {word}: the effective sample size is 12.0 of 2000 rows" in printed(capsys)


def test_people_are_shown_three_estimators_and_the_differences():
    names = ["logged", "dr.b_minus_a", *(f"{e}.{s}" for e in ESTIMATORS for s in ("a", "dr.b"))]
    shown = chosen(dict.fromkeys(names, figure(0, None, None, 1, "ratio")))
    assert set(shown) == {
        *("logged", "dr.b_minus_a"),
        *(f"{e}.{s}" for e in ("dm", "snips", "dr") for s in ("a", "dr.b")),
    }


def ab_report(*, model: bool, caution: bool) -> dict[str, Any]:
    figures = {
        **{f"arm.{arm}.ctr": figure(0.00413, 0.00374, 0.00453, 33_469, "probability") for arm in ("random", "trained")},
        **{f"arm.{arm}.clicks": figure(0.0124, 0.01, 0.02, 33_469, "clicks") for arm in ("random", "trained")},
        "pair.trained.clicks_lift": figure(0.125, -0.01, 0.26, 66_938, "ratio"),
    }
    if model:
        figures["pair.trained.model_lift"] = figure(-0.041, -0.123, 0.042, 5, "ratio")
    pair = {
        "treatment": "trained",
        "control": "random",
        "distinguishable": False,
        "verdict": "trained is not distinguishable from random [at all]",
    }
    return {
        "deciding_metric": "clicks",
        "arms": ["random", "trained"],
        "figures": figures,
        "pairs": [pair],
        "cautions": ["too good"] if caution else [],
    }


def test_ab(capsys: pytest.CaptureFixture[str]):
    print_ab(ab_report(model=True, caution=True))
    assert printed(capsys) == [
        "Simulated A/B test",
        "arm           n     CTR      95% interval  clicks a visit",
        "random   33,469  0.413%  [0.374%, 0.453%]          0.0124",
        "trained  33,469  0.413%  [0.374%, 0.453%]          0.0124",
        "pair                lift    over shoppers  models' lift      over models  told apart",
        "trained / random  +12.5%  [-1.0%, +26.0%]         -4.1%  [-12.3%, +4.2%]  no",
        "- trained is not distinguishable from random [at all]",
        "- caution: too good",
    ]


def test_ab_of_whole_pages(capsys: pytest.CaptureFixture[str]):
    report = ab_report(model=True, caution=False) | {"days": 28.0, "control": "random"}
    for arm in ("random", "trained"):
        report["figures"][f"arm.{arm}.clicks"] = figure(41.5, 40.0, 43.0, 20_000, "reward")
        report["figures"][f"arm.{arm}.d7"] = figure(0.5, 0.49, 0.51, 20_000, "probability")
    report["figures"]["pair.trained.ctr_lift"] = figure(0.02, -0.01, 0.05, 40_000, "ratio")
    report["figures"]["pair.trained.d7_lift"] = figure(None, None, None, 40_000, "ratio")
    print_ab(report)
    assert printed(capsys) == [
        "Simulated A/B test: n shoppers, each followed for 28 days",
        "arm           n  reward  95% interval     CTR  CVR       D7  visits  ads a page",
        "random   20,000    41.5      [40, 43]  0.413%    -  50.000%       -           -",
        "trained  20,000    41.5      [40, 43]  0.413%    -  50.000%       -           -",
        "pair                lift    over shoppers  models' lift      over models  told apart",
        "trained / random  +12.5%  [-1.0%, +26.0%]         -4.1%  [-12.3%, +4.2%]  no",
        "Other lifts",
        "pair                CTR   over shoppers  D7  over shoppers",
        "trained / random  +2.0%  [-1.0%, +5.0%]   -              -",
        "- trained is not distinguishable from random [at all]",
    ]


def test_ab_where_the_truth_is_known(capsys: pytest.CaptureFixture[str]):
    print_ab(ab_report(model=False, caution=False))
    lines = printed(capsys)
    assert "trained / random  +12.5%  [-1.0%, +26.0%]             -  truth known  no" in lines
    assert not [line for line in lines if "caution" in line]


def test_ab_without_a_click(capsys: pytest.CaptureFixture[str]):
    report = ab_report(model=True, caution=False)
    for name, seen in report["figures"].items():
        report["figures"][name] = figure(None, None, None, seen["n"], seen["unit"])
    print_ab(report)
    lines = printed(capsys)
    assert "random   33,469    -             -               -" in lines
    assert "trained / random     -              -             -            -  no" in lines


def test_a_progress_bar_writes_nothing_to_a_file(capsys: pytest.CaptureFixture[str]):
    with progress_bar("pages") as update:
        update(10, 100, 0.5)
        update(100, 100, 0.6)
    assert capsys.readouterr().out == ""


def test_a_progress_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("pages") as update:
        update(40, 100, 0.1234567)
    shown = capsys.readouterr().out
    assert "40/100" in shown
    assert "reward a page 0.1235" in shown
