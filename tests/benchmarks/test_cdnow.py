"""The CDNOW benchmark: BG/NBD as published, metrics by hand, a small run, and the whole one."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hawker.benchmarks.cdnow import (
    HOLDOUT_WEEKS,
    BgNbd,
    Purchases,
    cdnow_figures,
    cdnow_purchases,
    forecast_bgnbd,
)
from hawker.simulators.returning import ReturnConfig
from hawker.simulators.scoring import score

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def purchases() -> Purchases:
    return cdnow_purchases()


def test_the_sample_is_the_published_one(purchases: Purchases) -> None:
    known, days, bought = purchases
    assert known.count.shape == (2357, 39)
    assert days.count.shape == (2357, 273)
    assert known.shoppers.tolist() == days.shoppers.tolist()
    assert bought.sum() == 1882
    assert (bought > 0).mean() == pytest.approx(0.29019940602460753)
    repeats = days.count.sum(1) - 1
    assert (repeats > 0).mean() == pytest.approx(0.4013576580398812)
    counted = [int((repeats == k).sum()) for k in range(7)] + [int((repeats >= 7).sum())]
    assert counted == [1411, 439, 214, 100, 62, 38, 29, 64]


def test_bgnbd_reproduces_the_published_reference(purchases: Purchases) -> None:
    """Numbers of Lifetimes 0.11.3 with its own fit, whose parameters are given to six decimals."""
    expected, chance = forecast_bgnbd(purchases.days, HOLDOUT_WEEKS)
    found = score(expected, chance, purchases.bought)
    assert found["rmse"] == pytest.approx(1.6079820122764057, abs=2e-6)
    assert found["auc"] == pytest.approx(0.756919757552878, abs=2e-6)
    assert found["ece"] == pytest.approx(0.055580812785845965, abs=2e-6)
    assert found["bias"] == pytest.approx(-0.12146188938368885, abs=2e-6)
    assert expected.sum() == pytest.approx(1653.4087241798975, rel=2e-6)
    assert chance.mean() == pytest.approx(0.26178790499708093, abs=1e-6)
    assert spearmanr(expected, purchases.bought).statistic == pytest.approx(0.4492874191607326, abs=1e-5)


def test_bgnbd_agrees_with_a_simulation_of_its_own_story() -> None:
    """Customers who have just come, so that nothing is known of them: 200,000 lives, lived out."""
    generator = np.random.default_rng(1)
    model = BgNbd(r=0.8, alpha=5.0, a=1.5, b=3.0)
    rate = generator.gamma(model.r, 1 / model.alpha, 200_000)
    leave = generator.beta(model.a, model.b, len(rate))
    count, clock, alive = np.zeros(len(rate)), np.zeros(len(rate)), np.ones(len(rate), bool)
    while alive.any():
        clock[alive] += generator.exponential(1 / rate[alive])
        alive &= clock <= 20
        count[alive] += 1
        alive[alive] = generator.random(int(alive.sum())) >= leave[alive]
    expected, chance = model.forecast(np.zeros(1), np.zeros(1), np.zeros(1), 20.0)
    assert count.mean() == pytest.approx(expected[0], rel=0.01)
    assert (count > 0).mean() == pytest.approx(chance[0], rel=0.01)


def test_figures_hold_together() -> None:
    config = ReturnConfig(of_each=1, hidden=4, classes=2, steps=2)
    told: list[str] = []
    figures, details = cdnow_figures((1, 2), config, CPU, told.append, draws=2, replicates=20)
    assert set(figures) == {
        f"cdnow.{name}"
        for metric in ("rmse", "auc", "ece", "bias")
        for name in (metric, f"bgnbd.{metric}", f"{metric}_minus_bgnbd")
    }
    for metric in ("rmse", "auc", "ece", "bias"):
        ours, theirs = figures[f"cdnow.{metric}"]["value"], figures[f"cdnow.bgnbd.{metric}"]["value"]
        assert ours is not None
        assert theirs is not None
        assert figures[f"cdnow.{metric}_minus_bgnbd"]["value"] == pytest.approx(ours - theirs)
        assert ours == pytest.approx(np.mean([one[metric] for one in details["seeds"]]))
    assert all(one["low"] is not None and one["low"] < one["high"] for one in figures.values())
    assert all(one["n"] == 2357 for one in figures.values())
    assert [one["seed"] for one in details["seeds"]] == [1, 2]
    assert sum(line.startswith("CDNOW, seed") for line in told) == 2


@pytest.mark.slow
def test_the_learned_model_meets_its_bar() -> None:
    figures, _ = cdnow_figures((1, 2, 3), ReturnConfig(), CPU, lambda line: None)
    value = {name: one["value"] for name, one in figures.items()}
    assert value["cdnow.rmse"] <= 1.64
    assert value["cdnow.auc"] >= 0.775
    assert value["cdnow.ece"] <= 0.040
    assert abs(value["cdnow.bias"]) <= 0.10
