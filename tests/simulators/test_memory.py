"""The state over pages and visits, one page at a time against all at once; the days until the next visit by hand."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.context import ContextBuilder
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.appeal import Architecture, Recorded
from hawker.simulators.likelihood import predict_rows
from hawker.simulators.memory import EDGES, clock_of, days_at_risk, leaky_sums
from hawker.simulators.rows import Rows, encode_log
from hawker.simulators.shopper import ShopperModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def seen(journeys) -> tuple[ShopperModel, Rows]:
    """A member with every head and random weights, and the pages of 80 shoppers."""
    impressions, items, _ = journeys
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", CPU))
    builder = ContextBuilder.fit(impressions, items)
    rows = encode_log(impressions, builder, lines, CPU).rows
    generator = torch.Generator().manual_seed(1)
    model = ShopperModel(builder, 3, Architecture(2, 1, 6), 0.2, generator, Recorded.of(rows), lines)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.4, generator=generator)
    return model.requires_grad_(False).eval(), rows


def states(model: ShopperModel, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the heads see before every page and what is carried on from it."""
    return model.memory.run(model.scaled(rows.shopper), model.summary(rows), rows.time)


def some(rows: Rows, who: list[int]) -> Rows:
    """Return the rows of these shoppers."""
    units = torch.tensor(who)
    return rows.take(rows.time.pages(units), rows.time.take(units))


def test_all_pages_at_once_as_page_by_page(seen):
    model, rows = seen
    memory, time = model.memory, rows.time
    before, after = states(model, rows)
    assert len(before) == len(after) == len(rows.shopper)
    assert after.shape[1] == memory.hidden
    summary, clock, shopper = model.summary(rows), clock_of(time.gap, time.number), model.scaled(rows.shopper)
    lengths = (time.first[1:] - time.first[:-1]).tolist()
    assert len(set(lengths)) > 3, "shoppers of unlike length share a batch"
    for first, last in zip(time.first[:-1].tolist(), time.first[1:].tolist(), strict=True):
        state = memory.start(shopper[first : first + 1])
        for page in range(first, last):
            own = slice(page, page + 1)
            torch.testing.assert_close(before[own], memory.before(state, clock[own]), atol=1e-4, rtol=1e-4)
            state = memory.after(state, time.gap[own], time.number[own], summary[own])
            torch.testing.assert_close(after[own], state, atol=1e-4, rtol=1e-4)


def test_a_shopper_is_the_same_in_any_company(seen):
    """What a short history is padded with never shows."""
    model, rows = seen
    longest = int((rows.time.first[1:] - rows.time.first[:-1]).argmax())
    together = predict_rows(model, rows)
    close = {"atol": 1e-4, "rtol": 1e-5}
    for who in (0, 17, longest):
        pages = rows.time.pages(torch.tensor([who]))
        own = torch.isin(rows.page, pages)
        for company in ([who], [longest, who], [who, who, 3]):
            found = predict_rows(model, some(rows, company))
            at = some(rows, company).time.pages(torch.tensor([company.index(who)]))
            inside = torch.isin(some(rows, company).page, at)
            torch.testing.assert_close(found.click[inside], together.click[own], **close)
            torch.testing.assert_close(found.conversion[inside], together.conversion[own], **close)
            torch.testing.assert_close(found.leave[at], together.leave[pages], **close)
            torch.testing.assert_close(found.back[at], together.back[pages], **close)


@pytest.mark.parametrize("field", ["item", "clicked", "converted", "revenue", "line", "offer", "ad", "gap", "number"])
def test_what_comes_later_changes_nothing_before(seen, field):
    model, rows = seen
    time = rows.time
    who = int((time.first[1:] - time.first[:-1]).argmax())
    first, last = int(time.first[who]), int(time.first[who + 1])
    page = (first + last) // 2
    assert first < page < last - 1
    if field in ("gap", "number"):
        value = getattr(time, field).clone()
        value[page] += 3.0
        changed = dataclasses.replace(rows, time=dataclasses.replace(time, **{field: value}))
    else:
        value = getattr(rows, field).clone()
        there = rows.page == page
        value[there] = (value[there] + 1) % 2 if field != "item" else (value[there] + 1) % 20
        changed = dataclasses.replace(rows, **{field: value})
    before, after = states(model, rows)
    before_now, after_now = states(model, changed)
    rest = torch.ones(len(before), dtype=torch.bool)
    rest[page:last] = False
    assert torch.equal(before[rest], before_now[rest])
    assert torch.equal(after[rest], after_now[rest])
    assert (after[page:last] != after_now[page:last]).any(1).all(), "it is remembered"
    if field not in ("gap", "number"):
        assert torch.equal(before[page], before_now[page]), "what comes of a page is not known before"


def test_outcomes_that_are_not_known_are_as_if_nothing_came(seen):
    model, rows = seen
    unknown = rows.clicked == 0
    for name in ("converted", "revenue"):
        value = getattr(rows, name).clone()
        value[unknown] = math.nan
        assert torch.equal(model.summary(dataclasses.replace(rows, **{name: value})), model.summary(rows))


@pytest.mark.parametrize("pages", [1, 5, 63, 64, 65, 200])
def test_leaky_sums_one_by_one(pages):
    values = torch.randn(3, pages, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = torch.rand(3, pages, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp(min=1e-3)
    keep[:, :, 3] = 1.0
    start = total = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    got = leaky_sums(values, keep, start)
    assert got.shape == values.shape
    for page in range(pages):
        total = keep[:, page] * total + values[:, page]
        torch.testing.assert_close(got[:, page], total)


def test_the_gradient_of_leaky_sums():
    draws = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 3), (2, 5, 3), (2, 3))
    inputs = [torch.rand(shape, generator=draws, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(leaky_sums, inputs)


def test_a_clock_tells_first_pages_and_gaps_apart():
    clocks = clock_of(torch.tensor([0.0, 0.01, 0.01, 1.0, 30.0]), torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]))
    assert torch.isfinite(clocks).all()
    assert len(clocks.unique(dim=0)) == 5
    assert clocks.abs().max() < 5


@pytest.mark.parametrize(
    ("wait", "returned", "passed", "came"),
    [
        (0, 1, {}, 0),  # back on the same day: no day went by
        (0, 0, {}, None),
        (1, 1, {0: 1}, 1),
        (3, 0, {0: 1, 1: 1, 2: 1}, None),
        (10, 1, dict.fromkeys(range(10), 1), 10),
        (11, 1, {**dict.fromkeys(range(10), 1), 10: 1}, 10),  # the second day of an interval of two: 10 and 11
        (12, 1, {**dict.fromkeys(range(10), 1), 10: 2}, 11),
        (12, 0, {**dict.fromkeys(range(10), 1), 10: 2}, None),
    ],
)
def test_days_at_risk_by_hand(wait, returned, passed, came):
    got_passed, got_came = days_at_risk(torch.tensor([float(wait)]), torch.tensor([float(returned)]))
    assert got_passed.shape == got_came.shape == (1, len(EDGES))
    assert {i: n for i, n in enumerate(got_passed[0].tolist()) if n} == passed
    assert got_came[0].nonzero().flatten().tolist() == ([] if came is None else [came])


def interval_of(day: int) -> int:
    return max(i for i, edge in enumerate(EDGES) if edge <= day)


@given(wait=st.integers(0, 400), returned=st.sampled_from([0.0, 1.0]))
def test_days_at_risk_are_counted_one_by_one(wait, returned):
    passed, came = days_at_risk(torch.tensor([float(wait)]), torch.tensor([returned]))
    counted = [0.0] * len(EDGES)
    for day in range(wait):
        counted[interval_of(day)] += 1
    assert passed[0].tolist() == counted
    assert came[0].tolist() == [returned * (i == interval_of(wait)) for i in range(len(EDGES))]


@pytest.mark.parametrize("wait", [0, 1, 9, 10, 11, 12, 40, 63, 64, 65, 300])
def test_the_hazards_add_up_to_a_likelihood(wait):
    """P(back on day w) is the product of staying away on days 0 .. w - 1 and coming on day w."""
    hazard = torch.linspace(0.02, 0.4, len(EDGES), dtype=torch.float64)
    stayed = math.prod(1.0 - float(hazard[interval_of(day)]) for day in range(wait))
    for returned, expected in ((1.0, stayed * float(hazard[interval_of(wait)])), (0.0, stayed)):
        passed, came = days_at_risk(torch.tensor([float(wait)], dtype=torch.float64), torch.tensor([returned]))
        got = float((passed * torch.log1p(-hazard) + came * hazard.log()).sum())
        assert got == pytest.approx(math.log(expected))
