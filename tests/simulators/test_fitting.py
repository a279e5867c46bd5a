"""Fitting: the likelihood by hand, batches of whole shoppers, early stopping, seeds."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.simulators.calibration import calibrate
from hawker.simulators.config import FitConfig
from hawker.simulators.fitting import fit_ensemble
from hawker.simulators.likelihood import log_loss, predict_rows
from hawker.simulators.rows import encode_log
from hawker.simulators.shopper import IDENTITY, Ensemble
from hawker.simulators.small import small_tables
from hawker.simulators.split import bootstrap_shoppers, shopper_codes

CPU = torch.device("cpu")


def fit(impressions: pd.DataFrame, items: pd.DataFrame, config: FitConfig, seed: int = 0) -> tuple[Ensemble, list[str]]:
    """Return an ensemble fitted to all rows, and what was told meanwhile."""
    told: list[str] = []
    builder = ContextBuilder.fit(impressions, items)
    size = int(impressions["position"].max()) + 1
    log = encode_log(impressions, builder, None, CPU)
    ensemble = fit_ensemble(log, builder, size, config, 0, np.random.default_rng(seed), CPU, told.append)
    return ensemble, told


def test_stopping_keeps_the_weights_of_the_best_epoch(tables, fast):
    impressions, items = tables
    loose = dataclasses.replace(fast, members=1, epochs=30, patience=30, effect_scale=100.0, taste_scale=100.0)
    ensemble, told = fit(impressions, items, loose)
    found = re.fullmatch(r"member 1 of 1: (\d+) epochs, log loss (\d\.\d+) on rows left out", told[0])
    assert 1 <= int(found[1]) < 15, "without priors it overfits early"
    _, left_out = bootstrap_shoppers(shopper_codes(impressions), np.random.default_rng(0))
    rows = encode_log(impressions.iloc[left_out], ContextBuilder.fit(impressions, items), None, CPU).rows
    with torch.no_grad():
        loss = log_loss(predict_rows(ensemble.members[0], rows).click, rows.clicked)
    assert float(loss) == pytest.approx(float(found[2]), abs=1e-5)
    impatient = dataclasses.replace(loose, patience=int(found[1]))  # stops once the best epoch has long passed
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
    # The last 300 rows, and the one that was shown at the moment of the first of them.
    generator, late, unseen = np.random.default_rng(0), np.arange(699, 1000), []
    for _ in range(2):
        _, left_out = bootstrap_shoppers(shopper_codes(impressions), generator)
        generator.integers(2**62)  # the member's own seed
        unseen.append(np.isin(late, left_out))
    rows = encode_log(impressions.iloc[late], ContextBuilder.fit(impressions, items), None, CPU).rows
    with torch.no_grad():
        raw = torch.stack([predict_rows(member, rows).click.exp() for member in ensemble.models])
    expected = calibrate(raw, rows.clicked, torch.from_numpy(np.stack(unseen)))
    torch.testing.assert_close(ensemble.calibration[0], expected)
    assert torch.equal(ensemble.calibration[1:], IDENTITY[1:]), "heads that are absent"


@pytest.mark.usefixtures("nothing_global")
def test_same_seed_same_weights_with_every_head(journeys, fast):
    impressions, items, _ = journeys
    one, two = (fit(impressions, items, dataclasses.replace(fast, epochs=1))[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_members_differ_in_data_and_architecture(tables, fast):
    one, two = fit(*tables, fast)[0].models
    assert type(one.click.item_taste) is not type(two.click.item_taste)
    assert not torch.equal(one.click.own_effect.weight, two.click.own_effect.weight)


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
