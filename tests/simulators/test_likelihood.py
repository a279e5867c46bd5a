"""The likelihood of every head, by hand."""

import dataclasses
import math

import pandas as pd
import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.appeal import Architecture, Recorded
from hawker.simulators.calibration import calibrate
from hawker.simulators.fitting import calibrate_ensemble
from hawker.simulators.likelihood import log_loss, negative_log_likelihood, predict_rows
from hawker.simulators.memory import EDGES, MOOD_SCALE
from hawker.simulators.rows import Rows, encode_log
from hawker.simulators.shopper import HEADS, IDENTITY, ShopperModel
from hawker.simulators.small import small_tables

CPU = torch.device("cpu")


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
        parameter.data.normal_(std=0.25, generator=generator)
    assert model.memory is not None
    model.memory.mood.weight.data /= 3 * MOOD_SCALE  # or everything is certain
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


def test_every_head_is_calibrated_on_the_late_events_of_shoppers_not_seen(journeys):
    impressions, items, _ = journeys
    model, _ = remembered(journeys)
    builder = ContextBuilder.fit(impressions, items)
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", CPU))
    log = encode_log(impressions, builder, lines, CPU)
    rows, time = log.rows, log.rows.time
    late_pages = log.late_pages(0.4)
    fresh = torch.arange(0, len(time), 2)
    got = calibrate_ensemble([model], log, [fresh], late_pages)
    assert got.shape == (len(HEADS), 4)
    said, pages = predict_rows(model, rows), torch.zeros(len(rows.shopper), dtype=torch.bool)
    pages[time.pages(fresh)] = True
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
        expected = calibrate(raw[None], happened, torch.ones(1, len(raw)), bend=head == "leave")
        torch.testing.assert_close(got[i], expected, atol=2e-3, rtol=2e-3, msg=head)
        assert (got[i, 2] != 0) == (head == "leave")
        assert not torch.equal(got[i], IDENTITY[i]), head
