"""A shopper model's heads against arithmetic done by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.appeal import ARCHITECTURES, Architecture, Recorded
from hawker.simulators.memory import CLASSES
from hawker.simulators.rows import Rows, encode_log
from hawker.simulators.shopper import HEADS, IDENTITY, Ensemble, ShopperModel, calibrated, log_odds, slate_rows
from hawker.simulators.small import small_tables

SIZE = 3
SMALL = Architecture(hidden=2, depth=1)


@pytest.fixture
def builder() -> ContextBuilder:
    return ContextBuilder.fit(*small_tables(n_items=6))


def model_of(builder: ContextBuilder, architecture: Architecture = SMALL, filled: bool = True):
    """Return a member with first weights, or with every weight filled at random."""
    generator = torch.Generator().manual_seed(3)
    model = ShopperModel(builder, SIZE, architecture, 0.1, generator)
    if filled:
        for parameter in model.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
    return model.requires_grad_(False)


def odds_of(model: ShopperModel, shopper, slate, affinity, keep_own=None) -> torch.Tensor:
    """Return the log-odds of a click given examination at each position of some slates."""
    rows = slate_rows(shopper, slate, affinity)
    return model.log_odds(model.person(shopper, None), rows, keep_own).reshape(slate.shape)


def pages(builder: ContextBuilder, n: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return shopper features, slates with an empty slot, and affinities."""
    generator = torch.Generator().manual_seed(4)
    shopper = torch.randn(n, builder.shopper.width, generator=generator)
    slate = torch.rand(n, 6, generator=generator).argsort(1)[:, :SIZE]
    slate[0, 1] = EMPTY
    return shopper, slate, torch.rand(n, SIZE, generator=generator)


def test_probability_is_examination_times_attraction(builder):
    model, (shopper, slate, affinity) = model_of(builder), pages(builder)
    got = model(shopper, slate, affinity)
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    items = (builder.catalog.vectors - builder.catalog.features.centre) / builder.catalog.features.spread
    people = (shopper.double().numpy() - builder.shopper.centre) / builder.shopper.spread
    for b in range(len(slate)):
        for k in range(SIZE):
            i = int(slate[b, k])
            if i == EMPTY:
                assert got[b, k] == 0
                continue
            odds = w["click.base"] + w["click.affinity_effect"] * float(affinity[b, k])
            odds += w["click.shopper_effect.weight"][0] @ people[b]
            odds += w["click.item_effect.weight"][0] @ items[i] + w["click.own_effect.weight"][i, 0]
            taste = w["click.item_taste.weight"] @ items[i] + w["click.own_taste.weight"][i]
            odds += (w["click.shopper_taste.weight"] @ people[b]) @ taste
            examined = np.exp(w["position"][k] - w["position"].max())
            assert float(got[b, k]) == pytest.approx(examined / (1 + np.exp(-odds)), rel=1e-5)


def test_the_best_position_is_always_examined(builder):
    model, (shopper, slate, affinity) = model_of(builder), pages(builder)
    model.position[:] = torch.tensor([-1.0, 5.0, 4.0])
    assert model.log_examination().tolist() == [-6.0, 0.0, -1.0]
    before = model(shopper, slate, affinity)
    model.position += 7.0
    torch.testing.assert_close(model(shopper, slate, affinity), before)
    attraction = odds_of(model, shopper, slate.clamp(min=0), affinity).sigmoid()
    torch.testing.assert_close(before[1:, 1], attraction[1:, 1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_first_guess_is_about_the_click_rate_at_every_position(builder, architecture):
    model = model_of(builder, architecture, filled=False)
    shopper = builder.from_impressions(small_tables(n_items=6)[0]).shopper
    slate = torch.arange(SIZE).expand(len(shopper), -1)
    mean = model(torch.from_numpy(shopper), slate, torch.zeros(slate.shape)).mean(0)
    assert mean.tolist() == pytest.approx([0.1] * SIZE, rel=0.3)


def test_without_its_own_vectors_an_item_is_its_features(builder):
    model, (shopper, _, affinity) = model_of(builder), pages(builder)
    model.item_vectors[4] = model.item_vectors[1]
    pair = torch.tensor([[1, 4]]).expand(len(shopper), -1)
    affinity = affinity[:, :1].expand(-1, 2)
    own = odds_of(model, shopper, pair, affinity)
    assert not torch.isclose(own[:, 0], own[:, 1]).any()
    dropped = odds_of(model, shopper, pair, affinity, torch.tensor([1.0, 0, 1, 1, 0, 1]))
    torch.testing.assert_close(dropped[:, 0], dropped[:, 1])
    for own_vectors in (model.click.own_effect.weight, model.click.own_taste.weight):
        own_vectors[[1, 4]] = 0.0
    torch.testing.assert_close(odds_of(model, shopper, pair, affinity), dropped)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("nothing_global")
def test_first_weights_come_from_the_generator_alone(builder, architecture):
    one, two = (model_of(builder, architecture, filled=False).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_shop_that_records_no_features_still_has_shoppers():
    impressions, items = small_tables(n_items=6)
    builder = ContextBuilder.fit(impressions.drop(columns=["age", "segment"]), items[["item_id"]])
    assert builder.catalog.features.width == 0
    for architecture in ARCHITECTURES:
        shopper, slate, affinity = pages(builder)
        assert torch.isfinite(model_of(builder, architecture)(shopper, slate, affinity)).all()


@pytest.mark.parametrize(
    ("probability", "calibration", "expected"),
    [
        (0.2, (0.0, 1.0, 0.0, 0.0), 0.2),
        (0.5, (1.0, 3.0, 0.0, 0.0), 1 / (1 + np.exp(-1))),
        (0.2, (0.0, 2.0, 0.0, 0.0), 1 / 17),  # odds 1/4 become 1/16
        (0.2, (np.log(2), 1.0, 0.0, 0.0), 1 / 3),  # odds 1/4 become 1/2
        (0.2, (0.0, 1.0, 1.0, 0.0), 0.2),  # below the bend
        (0.8, (0.0, 1.0, 1.0, 0.0), 16 / 17),  # above it: odds 4 become 16
        (0.8, (0.0, 1.0, -1.0, np.log(2)), 2 / 3),  # a flat side: what is above odds of 2 stays there
    ],
)
def test_calibration_acts_on_the_log_odds(probability, calibration, expected):
    assert float(calibrated(torch.tensor(probability), torch.tensor(calibration))) == pytest.approx(expected, rel=1e-5)


def test_log_odds_are_finite_where_probabilities_are_certain():
    odds = log_odds(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.isfinite(odds).all()
    assert odds[0] < -10 < odds[1] == 0 < 10 < odds[2]


def test_ensemble_calibrates_every_member_and_leaves_empty_slots_empty(builder):
    members = [model_of(builder, architecture) for architecture in ARCHITECTURES[:2]]
    calibration = IDENTITY.clone()
    calibration[0] = torch.tensor([-0.5, 0.8, 0.3, -2.0])
    shopper, slate, affinity = pages(builder)
    got = Ensemble(members, calibration)(shopper, slate, affinity)
    assert got.shape == (2, *slate.shape)
    assert (got[:, slate == EMPTY] == 0).all()
    for m, member in enumerate(members):
        expected = calibrated(member(shopper, slate, affinity), calibration[0])
        torch.testing.assert_close(got[m][slate != EMPTY], expected[slate != EMPTY])


@pytest.fixture(scope="module")
def everything(journeys) -> tuple[ShopperModel, Rows, Lines]:
    """A member with every head and random weights, and rows that record everything."""
    impressions, items, _ = journeys
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", torch.device("cpu")))
    builder = ContextBuilder.fit(impressions, items)
    rows = encode_log(impressions[:200], builder, lines, torch.device("cpu")).rows
    generator = torch.Generator().manual_seed(3)
    model = ShopperModel(builder, SIZE, Architecture(2, 1, 6), 0.1, generator, Recorded.of(rows), lines)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    return model.requires_grad_(False).eval(), rows, lines


def test_a_log_tells_which_heads_there_are(everything):
    _, rows, _ = everything
    assert Recorded.of(rows) == Recorded(3, True, True, 3, True, True, True)
    plain = dataclasses.replace(rows, converted=None, revenue=None, offer=None, ad=None, time=None)
    assert Recorded.of(plain) == Recorded(rows=3)
    unbought = dataclasses.replace(rows, converted=torch.zeros_like(rows.converted))
    assert not Recorded.of(unbought).conversions, "purchases that never came teach nothing"
    assert not Recorded.of(unbought).revenue
    free = dataclasses.replace(rows, revenue=torch.zeros_like(rows.revenue))
    assert (Recorded.of(free).conversions, Recorded.of(free).revenue) == (True, False)
    lost = dataclasses.replace(rows.time, returned=torch.zeros_like(rows.time.returned))
    assert (Recorded.of(dataclasses.replace(rows, time=lost)).timeline, Recorded.of(rows).returns) == (True, True)
    assert not Recorded.of(dataclasses.replace(rows, time=lost)).returns


@pytest.mark.parametrize("head", ["click", "conversion"])
def test_copy_offers_and_ads_have_effects_by_hand(everything, head):
    model, rows, lines = everything
    appeal = getattr(model, head)
    person = model.person(rows.shopper, None)[:, : -model.memory.wishes]
    vectors = (model.item_vectors, model.line_vectors, None)
    plain = dataclasses.replace(rows, line=torch.full_like(rows.line, -1), offer=rows.offer * 0, ad=rows.ad * 0)
    bare = appeal(person, plain, *vectors)
    w = dict(appeal.named_parameters())
    page = rows.page
    text = torch.from_numpy(lines.scaled)
    effect = text @ w["line_effect.weight"][0] + w["line_effect.bias"]
    taste = text @ w["line_taste.weight"].T + w["line_taste.bias"]
    said = effect[rows.line] + ((person @ w["shopper_line_taste.weight"].T)[page] * taste[rows.line]).sum(1)
    said = torch.where(rows.line < 0, 0.0, said)
    tier = w["offer_effect"] + person @ w["shopper_offer_taste.weight"].T
    offered = torch.where(rows.offer > 0, tier[page, rows.offer - 1], 0.0)
    placed = rows.ad * (w["ad_effect"] + person[page] @ w["shopper_ad_taste.weight"][0])
    assert all((part != 0).any() and (part == 0).any() for part in (said, offered, placed))
    for changed, part in ({"line": rows.line}, said), ({"offer": rows.offer}, offered), ({"ad": rows.ad}, placed):
        got = appeal(person, dataclasses.replace(plain, **changed), *vectors)
        torch.testing.assert_close(got - bare, part, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(appeal(person, rows, *vectors) - bare, said + offered + placed, atol=1e-5, rtol=1e-4)
    # What a page does not say is as if nothing was said.
    silent = dataclasses.replace(plain, line=None, offer=None, ad=None)
    torch.testing.assert_close(appeal(person, silent, *vectors), bare)


def test_wishes_change_the_tastes_of_clicks(everything):
    model, rows, _ = everything
    memory, vectors = model.memory, (model.item_vectors, model.line_vectors)
    carried = torch.rand(len(rows.shopper), memory.hidden, generator=torch.Generator().manual_seed(2))
    person = model.person(rows.shopper, memory.before(carried, None))
    nobody = person.clone()
    nobody[:, -memory.wishes :] = 0.0
    page, half = rows.page, memory.wishes // 2
    sums, pages = carried[:, memory.width : memory.width + memory.wishes], carried[:, -1:]
    wish = memory.gain * sums / (1 + pages * memory.wane.exp())
    after = memory.width + memory.surprises
    wish = wish + carried[:, after : after + CLASSES].softmax(1) @ memory.class_tastes
    item = model.click.item_taste(vectors[0]) + model.click.own_taste.weight
    line = model.click.line_taste(vectors[1])
    liked = (wish[page, :half] * item[rows.item]).sum(1)
    expected = liked + torch.where(rows.line < 0, 0.0, (wish[page, half:] * line[rows.line]).sum(1))
    odds = [model.log_odds(who, rows) for who in (person, nobody)]
    assert (expected != 0).all()
    torch.testing.assert_close(odds[0] - odds[1], expected, atol=1e-4, rtol=1e-4)
    # Purchases see them through the clicks alone: how much an item is liked, and how much all the rest.
    one, other = (model.conversion_odds(who, rows, odds[0]) for who in (person, nobody))
    torch.testing.assert_close(one - other, (model.match[0] - model.match[1]) * liked, atol=1e-4, rtol=1e-4)


def test_a_line_is_judged_by_its_words(everything):
    """There is nothing that belongs to a line alone: one with the same vector has the same effect."""
    model, rows, _ = everything
    changed = dataclasses.replace(rows, line=torch.where(rows.line == 0, 1, rows.line))
    person, vectors = model.person(rows.shopper, None)[:, : -model.memory.wishes], model.line_vectors.clone()
    vectors[0] = vectors[1]
    one, other = (model.click(person, r, model.item_vectors, vectors, None) for r in (rows, changed))
    assert torch.equal(one, other)


def test_what_stands_above_and_below_by_hand(everything, journeys):
    """Items of the same category, and items whose vectors point the same way."""
    model, rows, _ = everything
    category = journeys[1]["category"]
    weight = {"above": model.in_view.above.tolist(), "below": model.in_view.below.tolist()}
    got = model.in_view(rows, SIZE)
    assert len(got.unique()) > 20
    for i in range(40):
        expected = 0.0
        for j in range(len(rows)):
            if rows.page[j] == rows.page[i] and rows.position[j] != rows.position[i]:
                alike, cosine = weight["above" if rows.position[j] < rows.position[i] else "below"]
                one, other = int(rows.item[i]), int(rows.item[j])
                expected += alike * (category[one] == category[other])
                pair = model.item_vectors[[one, other]]
                expected += cosine * float(torch.cosine_similarity(pair[0], pair[1], dim=0))
        assert float(got[i]) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_an_empty_slot_is_not_in_view(everything):
    model, _, _ = everything
    slate = torch.tensor([[3, EMPTY, 5]])
    shopper, affinity = torch.zeros(1, len(model.shopper_centre)), torch.zeros(1, 3)
    page = slate_rows(shopper, slate, affinity)
    seen = model.in_view(page, 3)
    keep = torch.tensor([0, 2])
    names = ("page", "item", "position", "affinity", "clicked")
    few = dataclasses.replace(page, **{name: getattr(page, name)[keep] for name in names})
    torch.testing.assert_close(seen[keep], model.in_view(few, 3))


def test_pages_of_one_item_have_no_company(builder):
    """A log of single impressions cannot show what a page's items do to each other."""
    assert model_of(builder).in_view is None


def test_the_state_enters_every_head(everything):
    model, rows, _ = everything
    new = model.memory.before(model.memory.start(model.scaled(rows.shopper)), None)
    other = -new.flip(1)
    torch.testing.assert_close(model.person(rows.shopper, None), model.person(rows.shopper, new))
    people = [model.person(rows.shopper, state) for state in (new, other)]
    one, two = (model.log_odds(person, rows) for person in people)
    assert not torch.isclose(one, two).any()
    bought = [model.conversion_odds(person, rows, one) for person in people]
    assert not torch.isclose(*bought).any()
    after = torch.rand(5, model.memory.hidden, generator=torch.Generator().manual_seed(0))
    for number in (0.0, 3.0):
        assert len(model.leave_odds(after, torch.full((5,), number)).unique()) == 5
    assert (model.leave_odds(after, torch.zeros(5)) != model.leave_odds(after, torch.ones(5))).all()
    assert len(model.return_odds(after).unique(dim=0)) == 5


def test_worth_is_a_price_times_an_effect(everything, journeys):
    """The mean logarithm of a purchase's worth: the item's price, what its features say, the offer."""
    model, rows, _ = everything
    price = journeys[1]["price"].to_numpy()
    got = model.log_amount(rows)
    for i in range(30):
        features = model.amount_item(model.item_vectors[rows.item[i]])
        expected = math.log(price[rows.item[i]]) + float(features) + float(model.amount[rows.offer[i]])
        assert float(got[i]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    plain = model.log_amount(dataclasses.replace(rows, offer=None))
    torch.testing.assert_close(plain, model.log_amount(dataclasses.replace(rows, offer=rows.offer * 0)))


def test_a_calibration_for_each_head():
    assert IDENTITY.shape == (len(HEADS), 4)
    probability = torch.rand(7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(calibrated(probability, IDENTITY[0]), probability)
