"""Every figure of the fidelity report against a second way to compute it."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.simulators.appeal import Recorded
from hawker.simulators.fidelity import (
    auc_figure,
    batches,
    calibration_figure,
    heads,
    logistic_baseline,
    mean_figure,
    measure_fidelity,
    predict,
)
from hawker.simulators.likelihood import predict_rows
from hawker.simulators.rows import EncodedLog, encode_log
from hawker.simulators.shopper import calibrated
from hawker.simulators.split import PARTS, three_way
from hawker.simulators.store import FittedShoppers
from hawker.simulators.taste_rows import believing

Z = 1.959964


def encoded(shoppers: FittedShoppers, impressions: pd.DataFrame, parts: np.ndarray) -> dict[str, EncodedLog]:
    """Return the parts of a log, encoded."""
    rows = {name: impressions[parts == i].reset_index(drop=True) for i, name in enumerate(PARTS)}
    return {name: encode_log(part, shoppers.builder, None, torch.device("cpu")) for name, part in rows.items()}


def test_auc_is_the_share_of_pairs_in_order():
    score, clicked = np.array([0.9, 0.4, 0.4, 0.3, 0.2, 0.1]), np.array([1.0, 0, 1, 0, 1, 0])
    pairs = [(p > q) + 0.5 * (p == q) for p in score[clicked == 1] for q in score[clicked == 0]]
    auc = sum(pairs) / 9
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    half = Z * math.sqrt((auc * (1 - auc) + 2 * (q1 - auc**2) + 2 * (q2 - auc**2)) / 9)
    got = auc_figure(score, clicked)
    assert (got["value"], got["low"], got["n"]) == (pytest.approx(auc), pytest.approx(auc - half), 6)
    assert got["high"] == min(1.0, auc + half) == 1.0


@pytest.mark.parametrize("clicked", [[0.0, 0, 0], [1.0, 1, 1]])
def test_auc_of_one_class_is_not_defined(clicked):
    got = auc_figure(np.array([0.1, 0.2, 0.3]), np.array(clicked))
    assert (got["value"], got["low"], got["high"]) == (None, None, None)


def test_a_faultless_auc_claims_no_interval():
    got = auc_figure(np.array([0.1, 0.2, 0.3]), np.array([0.0, 0, 1]))
    assert (got["value"], got["low"], got["high"]) == (1.0, None, None)


def test_calibration_is_expected_over_observed_with_the_interval_of_the_count():
    clicked = np.arange(100) < 10  # exact 95% interval of a Poisson mean, 10 events: 4.7954 to 18.3904 (Garwood)
    got = calibration_figure(np.full(100, 0.12), clicked.astype(float))
    assert got["value"] == pytest.approx(12 / 10)
    assert got["low"] == pytest.approx(12 / 18.3904, abs=1e-4)
    assert got["high"] == pytest.approx(12 / 4.7954, abs=1e-4)
    assert calibration_figure(np.full(100, 0.12), np.zeros(100))["value"] is None


def test_mean_of_rows_has_the_usual_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    got = mean_figure(values, None, "nats")
    half = Z * values.std(ddof=1) / 20
    assert (got["low"], got["high"]) == (pytest.approx(values.mean() - half), pytest.approx(values.mean() + half))
    one_each = mean_figure(values, np.array([f"s{i}" for i in range(400)], dtype=object), "nats")
    assert one_each == pytest.approx(got)


def test_mean_of_shoppers_has_an_interval_between_shoppers():
    generator = np.random.default_rng(1)
    shopper = np.array([f"s{i}" for i in generator.integers(0, 12, 200)], dtype=object)
    values = generator.normal(size=200) + 3.0 * np.array([int(name[1:]) for name in shopper])
    got = mean_figure(values, shopper, "nats")
    total = 0.0
    for name in set(shopper):
        residual = 0.0
        for value, owner in zip(values, shopper, strict=True):
            residual += (value - values.mean()) if owner == name else 0.0
        total += residual**2
    half = Z * math.sqrt(12 / 11 * total) / 200
    assert got["high"] - got["value"] == pytest.approx(half)
    assert half > 2 * Z * values.std(ddof=1) / math.sqrt(200), "rows of a shopper are alike"


@pytest.mark.parametrize(
    ("values", "cluster"), [([0.1, 0.1, 0.1], None), ([0.1, 0.7, 0.4], ["a", "a", "a"]), ([0.3], None)]
)
def test_without_variation_there_is_no_interval(values, cluster):
    got = mean_figure(np.array(values), None if cluster is None else np.array(cluster), "nats")
    assert (got["value"], got["low"], got["high"]) == (pytest.approx(np.mean(values)), None, None)


@pytest.mark.parametrize(
    ("recorded", "head", "answer"),
    [
        (Recorded(), "conversion", "absent: the log records no conversions"),
        (Recorded(conversions=True), "conversion", "learned"),
        (Recorded(conversions=True), "revenue", "absent: the log records no revenue"),
        (Recorded(conversions=True, revenue=True), "revenue", "learned"),
        (Recorded(), "leave", "absent: the log shows nobody on more than one page"),
        (Recorded(timeline=True), "leave", "learned"),
        (
            Recorded(timeline=True),
            "return",
            "absent: the log does not know its shoppers or none came back, so no return can be seen",
        ),
        (Recorded(timeline=True, returns=True), "return", "learned"),
        (Recorded(), "click", "learned"),
        (Recorded(), "examination", "learned"),
    ],
)
def test_heads_say_why_they_are_absent(shoppers, monkeypatch, recorded, head, answer):
    monkeypatch.setattr(shoppers.ensembles["train"].models[0], "recorded", recorded)
    assert heads(shoppers)[head] == answer


def test_every_head_is_learned_where_the_log_records_everything(regulars):
    _, shoppers, report = regulars
    assert set(heads(shoppers).values()) == {"learned"}
    assert report["heads"] == heads(shoppers)
    assert report["split"]["unit"] == "shopper"


def test_predictions_know_what_a_shopper_did_before(journeys, regulars):
    """Shopper by shopper, in batches or all at once: the same."""
    _, shoppers, _ = regulars
    rows = encode_log(journeys[0], shoppers.builder, shoppers.lines, torch.device("cpu")).rows
    ensemble = shoppers.ensembles["judge"]
    whole, rows = predict(ensemble, rows), believing(ensemble.tastes, rows)
    assert len(list(batches(rows, 100))) > 5
    with torch.no_grad():
        raw = torch.stack([predict_rows(model, rows).click.exp() for model in ensemble.models])
        expected = calibrated(raw, ensemble.calibration[0]).mean(0)
        new = dataclasses.replace(rows, time=None)
        strangers = torch.stack([predict_rows(model, new).click.exp() for model in ensemble.models])
    assert whole == pytest.approx(expected.double().numpy(), rel=1e-4)
    assert not torch.isclose(raw, strangers).all()
    parts = torch.cat([batch.item for batch in batches(rows, 100)])
    assert torch.equal(parts, rows.item), "in the order of the log"


def test_predictions_are_what_the_ensemble_expects_at_the_position(tables, shoppers):
    rows = encode_log(tables[0].iloc[:50], shoppers.builder, None, torch.device("cpu")).rows
    slate = torch.full((50, shoppers.size), -1).scatter(1, rows.position[:, None], rows.item[:, None])
    with torch.no_grad():
        page = shoppers.ensembles["judge"](rows.shopper, slate, rows.affinity[:, None].expand(slate.shape)).mean(0)
    expected = page.gather(1, rows.position[:, None]).squeeze(1)
    assert predict(shoppers.ensembles["judge"], rows) == pytest.approx(expected.double().numpy(), rel=1e-5)


def test_logistic_baseline_finds_what_positions_and_items_do(tables, shoppers):
    impressions = tables[0].copy()
    liked = impressions["item_id"].isin(["item-1", "item-2", "item-3"]) & (impressions["position"] == 0)
    impressions["clicked"] = liked.astype(np.int8)
    cpu = torch.device("cpu")
    train, test = (encode_log(impressions[i::2], shoppers.builder, None, cpu).rows for i in (0, 1))
    assert auc_figure(logistic_baseline(train, test, shoppers), test.clicked.numpy())["value"] > 0.9
    nobody = dataclasses.replace(train, clicked=torch.zeros(len(train)))
    assert logistic_baseline(nobody, test, shoppers) == pytest.approx(np.full(len(test), 0.5 / (len(train) + 1)))


def test_everything_is_judged_on_the_estimate_part(tables, shoppers, fitted):
    impressions = tables[0]
    parts, unit = three_way(impressions, shoppers.config.shares, shoppers.config.seed)
    report = measure_fidelity(shoppers, encoded(shoppers, impressions, parts), fitted[2]["split"])
    assert report == fitted[2]
    assert report["split"]["unit"] == unit
    clicked = impressions["clicked"].to_numpy(float)
    held_out, rate = clicked[parts == 2], (clicked[parts == 0].sum() + 0.5) / ((parts == 0).sum() + 1)
    constant = -np.log(np.where(held_out == 1, rate, 1 - rate)).mean()
    figures = report["figures"]
    assert figures["log_loss.constant"]["value"] == pytest.approx(constant, rel=1e-6)
    assert figures["calibration.constant"]["value"] == pytest.approx(rate * len(held_out) / held_out.sum())
    assert {figure["n"] for figure in figures.values()} == {len(held_out)}
    for name in ("train", "judge"):
        for baseline in ("constant", "logistic"):
            one, other = figures[f"log_loss.{name}"]["value"], figures[f"log_loss.{baseline}"]["value"]
            assert figures[f"log_loss.{name}_minus_{baseline}"]["value"] == pytest.approx(one - other)


def test_shoppers_widen_the_interval_where_they_were_split(tables, shoppers):
    impressions = tables[0].assign(shopper_id=[f"s{i // 20}" for i in range(len(tables[0]))])
    clicked = pd.Series(np.arange(len(impressions)) // 20 % 5 == 0).astype(np.int8)  # every fifth shopper, always
    impressions = impressions.assign(clicked=clicked)
    parts, unit = three_way(impressions, (0.3, 0.3, 0.4), 0)
    assert unit == "shopper"
    strangers = impressions.assign(shopper_id=pd.Series([None] * len(impressions), dtype="str"))
    logs = (encoded(shoppers, log, parts) for log in (impressions, strangers))
    by_shopper, by_row = (measure_fidelity(shoppers, log, {})["figures"] for log in logs)
    one, other = by_shopper["log_loss.constant"], by_row["log_loss.constant"]
    assert one["value"] == other["value"]
    assert one["high"] - one["low"] == pytest.approx(math.sqrt(20) * (other["high"] - other["low"]), rel=0.1)
