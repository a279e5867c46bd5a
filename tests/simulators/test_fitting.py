"""Fitting: the likelihood by hand, batches of whole shoppers, early stopping, seeds."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.context import ContextBuilder
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.calibration import calibrate
from hawker.simulators.config import FitConfig
from hawker.simulators.fitting import calibrate_ensemble, fit_ensemble
from hawker.simulators.likelihood import log_loss, negative_log_likelihood, predict_rows
from hawker.simulators.memory import EDGES
from hawker.simulators.rows import Rows, Timeline, encode_log
from hawker.simulators.shopper import HEADS, Architecture, Ensemble, Recorded, ShopperModel
from hawker.simulators.small import small_tables
from hawker.simulators.split import bootstrap_shoppers, later_rows, shopper_codes
from hawker.simulators.training import shopper_batches

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


def test_a_click_is_predicted_at_the_logged_position():
    impressions, items = small_tables(n_items=4, n_rows=60)
    builder = ContextBuilder.fit(impressions, items)
    rows = encode_log(impressions, builder, None, CPU).rows
    model = ShopperModel(builder, 3, Architecture(2, 2), 0.2, torch.Generator().manual_seed(0)).requires_grad_(False)
    model.position[:] = torch.tensor([0.0, -1.0, -3.0])
    got = predict_rows(model, rows).click.exp()
    slate = torch.full((60, 3), -1).scatter(1, rows.position[:, None], rows.item[:, None])
    shown = model(rows.shopper, slate, rows.affinity[:, None].expand(-1, 3))
    torch.testing.assert_close(got, shown.gather(1, rows.position[:, None]).squeeze(1))
    bottom = rows.take((rows.position == 2).nonzero().squeeze(1))
    attraction = model.log_odds(model.person(bottom.shopper, None), bottom).sigmoid()
    torch.testing.assert_close(predict_rows(model, bottom).click.exp(), attraction * math.exp(-3))


def remembered(journeys: tuple[pd.DataFrame, ...], n: int = 150) -> tuple[ShopperModel, Rows]:
    """Return a member with every head and random weights, and the first n impressions of the journeys as rows."""
    impressions, items, _ = journeys
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", CPU))
    builder = ContextBuilder.fit(impressions, items)
    everything = Recorded.of(encode_log(impressions, builder, lines, CPU).rows)
    generator = torch.Generator().manual_seed(1)
    model = ShopperModel(builder, 3, Architecture(2, 1, 6), 0.2, generator, everything, lines)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3, generator=generator)
    return model.requires_grad_(False).eval(), encode_log(impressions[:n], builder, lines, CPU).rows


def sigmoid(odds: torch.Tensor) -> float:
    return 1.0 / (1.0 + math.exp(-float(odds)))


def hazard_on(back: torch.Tensor, day: int) -> float:
    """Return P(back on a day, if not before) from the log-odds of its intervals."""
    return sigmoid(back[sum(edge <= day for edge in EDGES) - 1])


def nats_by_hand(model: ShopperModel, rows: Rows) -> dict[str, float]:
    """Return the negative log-likelihood of each head, event by event."""
    said, time = predict_rows(model, rows), rows.time
    nats = dict.fromkeys((*HEADS, "revenue"), 0.0)
    spread = math.exp(max(float(model.amount_log_spread), -4.0))
    for i in range(len(rows)):
        p = math.exp(float(said.click[i]))
        clicked, bought = bool(rows.clicked[i]), float(rows.converted[i])
        nats["click"] -= math.log(p if clicked else 1 - p)
        if clicked and not math.isnan(bought):
            p = sigmoid(said.conversion[i])
            nats["conversion"] -= math.log(p if bought else 1 - p)
        if rows.revenue[i] > 0:  # the logarithm of a worth is normal; the constant part is left out
            z = (math.log(rows.revenue[i]) - float(said.amount[i])) / spread
            nats["revenue"] += z * z / 2 + math.log(spread)
    for page in range(len(rows.shopper)):
        closes, returned = float(time.closes[page]), float(time.returned[page])
        if not math.isnan(closes):
            p = sigmoid(said.leave[page])
            nats["leave"] -= math.log(p if closes else 1 - p)
        if not math.isnan(returned):
            for day in range(int(time.wait[page])):
                nats["return"] -= math.log(1 - hazard_on(said.back[page], day))
            if returned:
                nats["return"] -= math.log(hazard_on(said.back[page], int(time.wait[page])))
    return nats


def test_the_likelihood_of_every_head_by_hand(journeys):
    model, rows = remembered(journeys)
    by_hand = nats_by_hand(model, rows)
    assert min(abs(nats) for nats in by_hand.values()) > 1, "something came of every head"
    said = predict_rows(model, rows)
    assert float(negative_log_likelihood(model, rows, said)) == pytest.approx(sum(by_hand.values()), rel=1e-4)
    for head, part in {"conversion": "conversion", "revenue": "amount", "leave": "leave", "return": "back"}.items():
        without = dataclasses.replace(said, **{part: None})
        rest = sum(by_hand.values()) - by_hand[head]
        assert float(negative_log_likelihood(model, rows, without)) == pytest.approx(rest, rel=1e-4), head


def test_what_is_not_known_does_not_count(journeys):
    """Immature conversions are NaN; so are ends that a log cannot know."""
    model, rows = remembered(journeys)
    said = predict_rows(model, rows)
    converted = rows.converted.clone()
    hidden = ((rows.clicked > 0) & (rows.converted == 0)).nonzero().flatten()[:5]
    converted[hidden] = math.nan
    unknown = dataclasses.replace(rows, converted=converted)
    missing = sum(-math.log(1 - sigmoid(said.conversion[i])) for i in hidden)
    whole, part = (float(negative_log_likelihood(model, r, said)) for r in (rows, unknown))
    assert whole - part == pytest.approx(missing, rel=1e-2)
    assert part == pytest.approx(sum(nats_by_hand(model, unknown).values()), rel=1e-4)


def test_nothing_known_leaves_no_gradient(journeys):
    """A head of which a batch knows nothing must not turn it into NaN."""
    model, rows = remembered(journeys)
    nothing = torch.full_like(rows.time.closes, math.nan)
    rows = dataclasses.replace(
        rows,
        converted=torch.full_like(rows.clicked, math.nan),
        revenue=torch.full_like(rows.clicked, math.nan),
        time=dataclasses.replace(rows.time, closes=nothing, returned=nothing),
    )
    model.requires_grad_(True)
    negative_log_likelihood(model, rows, predict_rows(model, rows)).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def numbered(lengths: list[int]) -> Rows:
    """Return rows of shoppers with so many pages, of one to three rows each; an item is the number of its row."""
    first = torch.tensor([0, *lengths]).cumsum(0)
    n = int(first[-1])
    page = torch.repeat_interleave(torch.arange(n), torch.arange(n) % 3 + 1)
    row = torch.arange(len(page))
    time = Timeline(first, *[torch.arange(n).float() for _ in range(5)])
    return Rows(torch.zeros(n, 1), page, row, row, row.float(), row.float(), time=time)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    size=st.integers(1, 300),
    seed=st.one_of(st.none(), st.integers(0, 9)),
    data=st.data(),
)
def test_batches_hold_every_drawn_shopper_once_and_whole(lengths, size, seed, data):
    rows = numbered(lengths)
    units = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=60))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found: list[tuple[int, ...]] = []
    for batch in shopper_batches(rows, torch.tensor(units, dtype=torch.long), size, generator):
        ends = torch.searchsorted(batch.page, batch.time.first)
        assert len(ends) == len(batch.time) + 1 > 1
        # A page's gap is its number in the log: the timeline went along with the rows.
        assert batch.time.gap[batch.page].tolist() == rows.page[batch.item].tolist()
        found += [tuple(own.tolist()) for own in batch.item.tensor_split(ends[1:-1])]
    ends = torch.searchsorted(rows.page, rows.time.first).tolist()
    assert sorted(found) == sorted(tuple(range(ends[unit], ends[unit + 1])) for unit in units)


def test_batches_are_of_about_the_size_asked_for():
    rows = numbered([1 + i % 7 for i in range(400)])
    sizes = [len(batch) for batch in shopper_batches(rows, torch.arange(400), 200, torch.Generator().manual_seed(0))]
    assert max(sizes) < 400
    assert np.mean(sizes) > 100
    assert len(set(sizes)) > 3


def test_one_long_shopper_is_not_padded_to_by_all():
    """The padding of a batch stays within a few times its rows."""
    rows = numbered([5000, *([2] * 3000)])
    for generator in (None, torch.Generator().manual_seed(0)):
        for batch in shopper_batches(rows, torch.arange(3001), 1000, generator):
            count = batch.time.first[1:] - batch.time.first[:-1]
            assert len(count) * int(count.max()) <= max(4 * len(batch), 5000)


def test_batches_come_in_an_order_of_the_generator():
    rows = numbered([1 + i % 7 for i in range(100)])

    def order(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [batch.item.tolist() for batch in shopper_batches(rows, torch.arange(100), 30, generator)]

    assert order(0) == order(0) != order(1)


def test_pages_of_nobody_in_particular_come_in_batches_too():
    rows = dataclasses.replace(numbered([1] * 20), time=None)
    units = torch.tensor([3, 3, 7, 19])
    batches = list(shopper_batches(rows, units, 3, torch.Generator().manual_seed(0)))
    assert [len(batch.shopper) for batch in batches] == [3, 1]
    pages = sorted(rows.page[item].item() for batch in batches for item in batch.item)
    assert pages == sorted(page for page in units.tolist() for _ in range(page % 3 + 1))


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
    generator, late, unseen = np.random.default_rng(0), np.arange(700, 1000), []
    for _ in range(2):
        _, left_out = bootstrap_shoppers(shopper_codes(impressions), generator)
        generator.integers(2**62)  # the member's own seed
        unseen.append(np.isin(late, left_out))
    rows = encode_log(impressions.iloc[late], ContextBuilder.fit(impressions, items), None, CPU).rows
    with torch.no_grad():
        raw = torch.stack([predict_rows(member, rows).click.exp() for member in ensemble.models])
    expected = calibrate(raw, rows.clicked, torch.from_numpy(np.stack(unseen)))
    torch.testing.assert_close(ensemble.calibration[0], expected)
    assert ensemble.calibration[1:].tolist() == [[0.0, 1.0]] * 3, "heads that are absent"


def test_every_head_is_calibrated_on_the_late_events_of_shoppers_not_seen(journeys):
    impressions, items, _ = journeys
    model, _ = remembered(journeys)
    builder = ContextBuilder.fit(impressions, items)
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", CPU))
    log = encode_log(impressions, builder, lines, CPU)
    rows, time = log.rows, log.rows.time
    late = torch.from_numpy(later_rows(impressions, 0.4)[log.order])
    fresh = torch.arange(0, len(time), 2)
    got = calibrate_ensemble([model], log, [fresh], late)
    assert got.shape == (len(HEADS), 2)
    said, pages = predict_rows(model, rows), torch.zeros(len(rows.shopper), dtype=torch.bool)
    pages[time.pages(fresh)] = True
    late_pages = torch.zeros_like(pages)
    late_pages[rows.page[late]] = True
    row, page = (pages & late_pages)[rows.page], pages & late_pages
    sold = row & (rows.clicked > 0)
    ends = page & ~time.closes.isnan()
    chosen = {
        "click": (said.click.exp()[row], rows.clicked[row]),
        "conversion": (said.conversion.sigmoid()[sold], rows.converted[sold]),
        "leave": (said.leave.sigmoid()[ends], time.closes[ends]),
    }
    days = [
        (hazard_on(said.back[p], day), float(day == int(time.wait[p])))
        for p in (page & ~time.returned.isnan()).nonzero().flatten().tolist()
        for day in range(int(time.wait[p] + time.returned[p]))
    ]
    chosen["return"] = tuple(torch.tensor(column) for column in zip(*days, strict=True))
    for i, head in enumerate(HEADS):
        raw, happened = chosen[head]
        expected = calibrate(raw[None], happened, torch.ones(1, len(raw)))
        torch.testing.assert_close(got[i], expected, atol=2e-3, rtol=2e-3, msg=head)
        assert not torch.equal(got[i], torch.tensor([0.0, 1.0])), head


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
