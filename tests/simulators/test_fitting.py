"""Fitting: the likelihood by hand, calibration, early stopping, seeds."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.simulators.config import FitConfig
from hawker.simulators.fitting import Rows, calibrate, click_log_probability, fit_ensemble, log_loss
from hawker.simulators.shopper import Architecture, Ensemble, ShopperModel
from hawker.simulators.small import small_tables
from hawker.simulators.split import bootstrap_rows

CPU = torch.device("cpu")


def fit(impressions: pd.DataFrame, items: pd.DataFrame, config: FitConfig, seed: int = 0) -> tuple[Ensemble, list[str]]:
    """Return an ensemble fitted to all rows, and what was told meanwhile."""
    told: list[str] = []
    builder = ContextBuilder.fit(impressions, items)
    size = int(impressions["position"].max()) + 1
    ensemble = fit_ensemble(impressions, builder, size, config, 0, np.random.default_rng(seed), CPU, told.append)
    return ensemble, told


@pytest.mark.parametrize(
    ("probability", "clicked", "nats"),
    [
        ([0.5], [1], math.log(2)),
        ([0.5], [0], math.log(2)),
        ([0.1, 0.1], [1, 0], -(math.log(0.1) + math.log(0.9)) / 2),
        ([0.9, 0.2, 0.2, 0.2], [1, 0, 0, 1], -(math.log(0.9) + 2 * math.log(0.8) + math.log(0.2)) / 4),
        ([1.0], [1], 0.0),
        ([1.0], [0], -math.log(1e-6)),  # bounded: a certain prediction may be wrong
    ],
)
def test_log_loss(probability, clicked, nats):
    loss = log_loss(torch.tensor(probability, dtype=torch.float64).log(), torch.tensor(clicked, dtype=torch.float64))
    assert float(loss) == pytest.approx(nats, rel=1e-5, abs=1e-5)


def test_rows_hold_the_affinity_with_the_item_shown():
    impressions, items = small_tables(n_items=4, n_rows=50)
    impressions["affinity.item-2"] = np.arange(50.0)
    rows = Rows.from_impressions(impressions, ContextBuilder.fit(impressions, items), CPU)
    for i in range(50):
        item = impressions["item_id"][i]
        known = impressions[f"affinity.{item}"][i] if item in ("item-0", "item-2") else 0.0
        assert (rows.item[i], rows.position[i]) == (int(item[5:]), impressions["position"][i])
        assert rows.affinity[i] == known
    taken = rows.take(torch.tensor([7, 3]))
    assert (len(taken), taken.item.tolist()) == (2, rows.item[[7, 3]].tolist())


def test_click_log_probability_is_that_of_the_logged_position():
    impressions, items = small_tables(n_items=4, n_rows=60)
    builder = ContextBuilder.fit(impressions, items)
    rows = Rows.from_impressions(impressions, builder, CPU)
    model = ShopperModel(builder, 3, Architecture(2, 2), 0.2, torch.Generator().manual_seed(0)).requires_grad_(False)
    model.position[:] = torch.tensor([0.0, -1.0, -3.0])
    got = click_log_probability(model, rows).exp()
    slate = torch.full((60, 3), -1).scatter(1, rows.position[:, None], rows.item[:, None])
    shown = model(rows.shopper, slate, rows.affinity[:, None].expand(-1, 3))
    torch.testing.assert_close(got, shown.gather(1, rows.position[:, None]).squeeze(1))
    bottom = rows.take((rows.position == 2).nonzero().squeeze(1))
    attraction = model.log_odds(bottom.shopper, bottom.item[:, None], bottom.affinity[:, None]).sigmoid().squeeze(1)
    torch.testing.assert_close(click_log_probability(model, bottom).exp(), attraction * math.exp(-3))


def simple_model(base: float, effect: float) -> tuple[ShopperModel, ContextBuilder]:
    """Return a model without positions in which two items differ: log-odds ``base`` -/+ ``effect``."""
    impressions, items = small_tables(n_items=2, size=1)
    builder = ContextBuilder.fit(impressions, items)
    model = ShopperModel(builder, 1, Architecture(1, 1), 0.5, torch.Generator()).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.base.fill_(base)
    model.own_effect.weight[:] = torch.tensor([[-effect], [effect]])
    return model, builder


def rows_of(builder: ContextBuilder, item: torch.Tensor, clicked: torch.Tensor) -> Rows:
    n = len(item)
    return Rows(torch.zeros(n, builder.shopper.width), item, torch.zeros_like(item), torch.zeros(n), clicked.float())


def drawn_rows(builder: ContextBuilder, n: int, odds: tuple[float, float]) -> Rows:
    """Return n rows in which the two items are clicked with these log-odds."""
    generator = torch.Generator().manual_seed(0)
    item = torch.randint(2, (n,), generator=generator)
    probability = torch.tensor(odds).sigmoid()[item]
    return rows_of(builder, item, torch.rand(n, generator=generator) < probability)


def test_members_that_exaggerate_are_calibrated():
    model, builder = simple_model(base=0.0, effect=2.0)  # where the truth is -1.5 -/+ 1: slope 0.5, intercept -1.5
    rows = drawn_rows(builder, 100_000, (-2.5, -0.5))
    calibration = calibrate([model], rows, torch.ones(1, len(rows), dtype=torch.bool))
    assert calibration.tolist() == pytest.approx([-1.5, 0.5], abs=0.04)
    assert calibration.dtype == torch.float32


def test_only_members_that_have_not_seen_a_row_calibrate_on_it():
    honest, builder = simple_model(base=-1.0, effect=1.0)
    sure, _ = simple_model(base=-6.0, effect=0.0)
    rows = drawn_rows(builder, 20_000, (-2.0, 0.0))
    unseen = torch.stack([torch.ones(len(rows)), torch.zeros(len(rows))]).bool()
    both = calibrate([honest, sure], rows, unseen)
    assert both.tolist() == pytest.approx([0.0, 1.0], abs=0.06)
    half = torch.arange(len(rows)) < 10_000  # the rows that nobody may judge do not count
    some = calibrate([honest], rows, half[None])
    torch.testing.assert_close(some, calibrate([honest], rows.take(half.nonzero().squeeze(1)), torch.ones(1, 10_000)))


@pytest.mark.parametrize(("contrary", "least", "most"), [(3, 0.9, 1.05), (10, 0.5, 0.7)])
def test_ten_clicks_hardly_move_a_calibration(contrary, least, most):
    """Of ten clicks the item thought worse should get three; even if it gets all, the ranking stands."""
    model, builder = simple_model(base=math.log(0.01 / 0.99), effect=0.5)
    item = torch.arange(1000) % 2
    clicked = torch.zeros(1000)
    clicked[0 : 2 * contrary : 2] = clicked[1 : 2 * (10 - contrary) : 2] = 1.0
    assert clicked.sum() == 10
    intercept, slope = calibrate([model], rows_of(builder, item, clicked), torch.ones(1, 1000)).tolist()
    assert least < slope < most
    rate = float((intercept + slope * torch.tensor([model.base - 0.5, model.base + 0.5])).sigmoid().mean())
    assert rate == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize(
    ("base", "effect", "clicked"),
    [(0.0, 200.0, [1, 0]), (0.0, 200.0, [0, 1]), (-300.0, 0.0, [1, 1]), (300.0, 0.0, [0, 0])],
)
def test_calibration_of_certain_predictions_stays_finite(base, effect, clicked):
    model, builder = simple_model(base, effect)
    rows = rows_of(builder, torch.tensor([0, 1] * 50), torch.tensor(clicked * 50))
    assert torch.isfinite(calibrate([model], rows, torch.ones(1, 100))).all()


def test_without_rows_to_calibrate_on_nothing_changes():
    model, builder = simple_model(0.0, 1.0)
    rows = drawn_rows(builder, 10, (0.0, 0.0))
    assert calibrate([model], rows, torch.zeros(1, 10)).tolist() == [0.0, 1.0]
    none = rows.take(torch.zeros(0, dtype=torch.long))
    assert calibrate([model], none, torch.zeros(1, 0)).tolist() == [0.0, 1.0]


def test_stopping_keeps_the_weights_of_the_best_epoch(tables, fast):
    impressions, items = tables
    loose = dataclasses.replace(fast, members=1, epochs=30, patience=30, effect_scale=100.0, taste_scale=100.0)
    ensemble, told = fit(impressions, items, loose)
    found = re.fullmatch(r"member 1 of 1: (\d+) epochs, log loss (\d\.\d+) on rows left out", told[0])
    assert 1 <= int(found[1]) < 15, "without priors it overfits early"
    _, left_out = bootstrap_rows(impressions, np.random.default_rng(0))
    rows = Rows.from_impressions(impressions.iloc[left_out], ContextBuilder.fit(impressions, items), CPU)
    with torch.no_grad():
        loss = log_loss(click_log_probability(ensemble.members[0], rows), rows.clicked)
    assert float(loss) == pytest.approx(float(found[2]), abs=1e-5)
    impatient = dataclasses.replace(loose, epochs=int(found[1]), patience=1000)
    shorter, _ = fit(impressions, items, impatient)
    for name, value in shorter.members[0].state_dict().items():
        assert torch.equal(value, ensemble.members[0].state_dict()[name])


@pytest.mark.usefixtures("nothing_global")
def test_same_seed_same_weights(tables, fast):
    one, two, other = (fit(*tables, fast, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["calibration"], other["calibration"])


def test_the_last_rows_calibrate_by_the_members_that_have_not_seen_them(tables, fast):
    impressions, items = tables
    ensemble, _ = fit(impressions, items, fast)
    generator, late, unseen = np.random.default_rng(0), np.arange(700, 1000), []
    for _ in range(2):
        _, left_out = bootstrap_rows(impressions, generator)
        generator.integers(2**62)  # the member's own seed
        unseen.append(np.isin(late, left_out))
    rows = Rows.from_impressions(impressions.iloc[late], ContextBuilder.fit(impressions, items), CPU)
    expected = calibrate(list(ensemble.members), rows, torch.from_numpy(np.stack(unseen)))
    assert torch.equal(ensemble.calibration, expected)


def test_members_differ_in_data_and_architecture(tables, fast):
    one, two = fit(*tables, fast)[0].members
    assert type(one.item_taste) is not type(two.item_taste)
    assert not torch.equal(one.own_effect.weight, two.own_effect.weight)


def test_a_new_item_is_judged_by_its_features_and_positions_are_learned():
    """Shoes are clicked four times as often as the rest, the second position half as often as the first."""
    impressions, items = small_tables(n_items=30, size=2, n_rows=6000, seed=2)
    generator = np.random.default_rng(0)
    category = items.set_index("item_id")["category"]
    new = [category.index[category == name][0] for name in ("shoes", "hats")]
    impressions = impressions[~impressions["item_id"].isin(new)].reset_index(drop=True)
    probability = np.where(impressions["item_id"].map(category) == "shoes", 0.6, 0.15)
    probability = probability * np.where(impressions["position"] == 1, 0.5, 1.0)
    impressions["clicked"] = (generator.random(len(impressions)) < probability).astype(np.int8)
    ensemble, _ = fit(impressions, items, FitConfig(members=2, epochs=15, batch=256))
    context = ContextBuilder.fit(impressions, items).from_impressions(impressions.iloc[:200])
    index = torch.tensor([int(name[5:]) for name in new])
    slate = index.expand(200, 2)
    shopper, affinity = torch.from_numpy(context.shopper), torch.zeros(200, 2)
    with torch.no_grad():
        shoes, _ = ensemble(shopper, slate, affinity).mean((0, 1)).tolist()
        hats, shoes_below = ensemble(shopper, slate.flip(1), affinity).mean((0, 1)).tolist()
    assert shoes == pytest.approx(0.6, abs=0.12)
    assert hats == pytest.approx(0.15, abs=0.06)
    assert shoes_below / shoes == pytest.approx(0.5, abs=0.08)
