import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hawker.app import demo as demos
from hawker.app.cli import main
from hawker.app.demo import LATENCY_REQUESTS, example_request, latency, verdict
from hawker.policies.bundle import Bundle
from hawker.shop.context import ContextBuilder
from hawker.shop.figures import figure

Evidence = dict[str, Any]


def ope(low: float, high: float) -> Evidence:
    difference = figure((low + high) / 2, low, high, 2_000, "clicks per impression")
    return {"figures": {"dr.trained_minus_random": difference}, "refused": {}}


def no_ope(who: str) -> Evidence:
    return {"figures": {}, "refused": {who: "the effective sample size is 12.0 of 2000 rows, under 100"}}


def ab(lift: float | None, distinguishable: bool) -> Evidence:
    low, high = (None, None) if lift is None else (lift - 0.1, lift + 0.1)
    clone = {"treatment": "bts-clone", "distinguishable": True, "verdict": "the clone does better"}
    pair = {"treatment": "trained", "distinguishable": distinguishable, "verdict": "what the test says"}
    return {
        "deciding_metric": "clicks",
        "pairs": [clone, pair],
        "figures": {
            "pair.bts-clone.clicks_lift": figure(0.4, 0.3, 0.5, 9, "ratio"),
            "pair.trained.clicks_lift": figure(lift, low, high, 9, "ratio"),
            "pair.trained.model_lift": figure(lift, low, high, 5, "ratio"),
        },
    }


BETTER = "trained is better than random: logged clicks and simulated shoppers agree"
WORSE = "trained is worse than random: logged clicks and simulated shoppers agree"
UNTOLD = "trained and random are not distinguishable on these logs"


@pytest.mark.parametrize(
    ("off_policy", "simulated", "text"),
    [
        (ope(0.001, 0.003), ab(0.2, True), BETTER),
        (ope(-0.003, -0.001), ab(-0.2, True), WORSE),
        # one is undecided
        (ope(-0.001, 0.003), ab(0.2, True), UNTOLD),
        (ope(0.0, 0.003), ab(0.2, True), UNTOLD),
        (ope(0.001, 0.003), ab(0.2, False), UNTOLD),
        (ope(-0.003, -0.001), ab(-0.2, False), UNTOLD),
        # both are
        (ope(-0.001, 0.003), ab(0.05, False), UNTOLD),
        # they contradict each other
        (ope(0.001, 0.003), ab(-0.2, True), UNTOLD),
        (ope(-0.003, -0.001), ab(0.2, True), UNTOLD),
        # no estimate, no clicks
        (no_ope("trained"), ab(0.2, True), UNTOLD),
        (no_ope("random"), ab(0.2, True), UNTOLD),
        (ope(0.001, 0.003), ab(None, False), UNTOLD),
    ],
)
def test_verdict_follows_from_the_intervals(off_policy: Evidence, simulated: Evidence, text: str):
    found = verdict(off_policy, simulated)
    assert found["text"] == text
    assert found["distinguishable"] == (text != UNTOLD)
    assert found["because"][1] == "simulated: what the test says"
    assert {"pair.trained.clicks_lift", "pair.trained.model_lift"} <= set(found["figures"])
    assert ("dr.trained_minus_random" in found["figures"]) == bool(off_policy["figures"])


def test_verdict_says_what_it_stands_on():
    because = verdict(ope(0.001, 0.003), ab(0.2, True))["because"]
    assert because[0] == ("off-policy: trained minus random is +0.0020 clicks per impression [+0.0010, +0.0030]")
    because = verdict(no_ope("random"), ab(0.2, True))["because"]
    assert because[0] == ("off-policy: no estimate: the effective sample size is 12.0 of 2000 rows, under 100")


@pytest.mark.parametrize("row", [0, 7, 123])
def test_an_example_is_the_logged_context(tables: tuple[pd.DataFrame, pd.DataFrame], row: int):
    impressions, items = tables
    builder = ContextBuilder.fit(impressions, items)
    request = json.loads(json.dumps(example_request(impressions.iloc[row], builder.shopper.columns)))
    assert set(request) == {"timestamp", "shopper", "affinity"}
    assert set(request["shopper"]) == {"age", "segment"}
    served, logged = builder.from_request(request, "request"), builder.from_impressions(impressions.iloc[[row]])
    for name in ("shopper", "candidates", "mask", "affinity"):
        np.testing.assert_array_equal(getattr(served, name), getattr(logged, name), name)


def test_an_example_leaves_out_what_is_not_known(tables: tuple[pd.DataFrame, pd.DataFrame]):
    impressions, items = tables
    sparse = impressions.assign(segment=impressions["segment"].where(impressions.index > 0))
    sparse.loc[0, ["age", "affinity.item-0"]] = np.nan
    builder = ContextBuilder.fit(sparse, items)
    request = example_request(sparse.iloc[0], builder.shopper.columns)
    assert request["shopper"] == {}
    assert request["affinity"] == {}
    json.dumps(request, allow_nan=False)
    served, logged = builder.from_request(request, "request"), builder.from_impressions(sparse.iloc[[0]])
    np.testing.assert_array_equal(served.shopper, logged.shopper)
    np.testing.assert_array_equal(served.affinity, logged.affinity)


def test_latency_is_a_mean_with_its_interval(finished: Path):
    found = latency(Bundle.load(finished / "bundle"), json.loads((finished / "context.json").read_text()), seed=0)
    assert (found["n"], found["unit"]) == (LATENCY_REQUESTS, "milliseconds")
    assert found["low"] is not None
    assert 0 < found["low"] < found["value"] < found["high"]


def test_both_parts_stand_in_one_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seen: list[Any] = []

    def second(run: Any, seed: int, writer: Any, clock: Any, config: Any) -> Evidence:
        seen.append((run.path, seed, writer, config))
        with clock.stage("bazaar: logs"):
            return {"verdict": {"text": "what gold says"}}

    monkeypatch.setattr(demos, "open_bandit", lambda logs, campaign, run, seed: {"verdict": {"text": UNTOLD}})
    monkeypatch.setattr(demos, "bazaar_demo", second)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seed", "3", "--writer", "none"]) == 0
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    assert summary["verdict"]["text"] == UNTOLD
    assert summary["bazaar"]["verdict"]["text"] == "what gold says"
    assert (summary["seed"], list(summary["stages"])) == (3, ["open bandit", "bazaar: logs"])
    assert seen == [(tmp_path / "demo" / "bazaar", 3, (None, "none was asked for"), None)]
    printed = capsys.readouterr().out
    assert "What took how long" in printed
    assert f"{tmp_path / 'demo/summary.json'}, " in printed


def test_a_writer_that_cannot_be_had_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--writer", "smolm2"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no such language model; got 'smolm2'" in said
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """On the shipped sample, and in the bazaar's shop, as `make demo` does where there is no writer."""
    run = tmp_path / "demo"
    assert main(["demo", "--out", str(run), "--writer", "none", "--json", str(tmp_path / "demo.json")]) == 0
    summary = json.loads((run / "summary.json").read_text(), parse_constant=pytest.fail)
    assert json.loads((tmp_path / "demo.json").read_text()) == summary
    first = {part: summary[part] for part in ("data", "fidelity", "train", "ope", "ab", "bundle", "decide", "verdict")}
    second = {part: summary["bazaar"][part] for part in ("fidelity", "train", "gold", "bundle", "verdict")}
    for part, found in [*first.items(), *second.items()]:
        figures = found["figures"]
        assert figures, part
        assert any(seen["low"] is not None for seen in figures.values()), part
        for name, seen in figures.items():
            assert set(seen) == {"value", "low", "high", "n", "unit"}, name
            assert all(edge is None or math.isfinite(edge) for edge in (seen["value"], seen["low"], seen["high"])), name
    assert summary["data"]["figures"]["random.clicks"]["value"] == 38
    assert summary["data"]["figures"]["bts.clicks"]["value"] == 42
    assert (
        summary["verdict"]["figures"]["dr.trained_minus_random"] == summary["ope"]["figures"]["dr.trained_minus_random"]
    )
    assert {"dr.random", "dr.bts-clone", "dr.trained"} <= set(summary["ope"]["figures"])
    assert not summary["verdict"]["distinguishable"]  # six held-out clicks can prove nothing
    gain = summary["bazaar"]["gold"]["figures"]["pair.likeliest - logging.reward"]
    assert gain["low"] > 0  # the log's own strategy looks at nobody
    assert summary["seconds"] < 600
    printed = capsys.readouterr().out
    headings = ["1. Logs", "2. Shoppers", "3. Strategy", "4. Off-policy", "5. Simulated A/B", "6. Bundle", "Verdict"]
    headings += ["7. A shop whose truth is known", "8. Shoppers", "9. Pages", "11. A/B in gold", "12. Bundle"]
    places = [printed.index(f"\n{heading}: ") for heading in headings]
    assert all(a < b for a, b in pairwise(places))
    assert UNTOLD in printed
    # What it says one could do by hand gives the same decision.
    words = next(line for line in printed.splitlines() if line.startswith("hawker decide ")).split()[1:]
    assert main(words) == 0
    decided = json.loads(capsys.readouterr().out)
    assert decided == {name: value for name, value in summary["decide"].items() if name != "figures"}
