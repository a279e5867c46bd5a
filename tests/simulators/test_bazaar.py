import dataclasses
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import Tensor

from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder
from hawker.simulators.bazaar import CLOSES, DAY, OPENS, BazaarWorld, State
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.world import Shoppers

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world() -> BazaarWorld:
    return BazaarWorld(load_bazaar(), CPU)


@pytest.fixture(scope="module")
def cascade() -> BazaarWorld:
    return BazaarWorld(load_bazaar("cascade"), CPU)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def shown(shoppers: Shoppers, size: int = 8) -> Decision[Tensor]:
    """The first candidates, with an ad on the first slot and an offer."""
    n = len(shoppers.member)
    slate = shoppers.context.candidates[:, :size]
    number = torch.arange(n)
    copy = (number[:, None] + torch.arange(size) * 7) % 188
    return Decision(
        slate,
        torch.zeros(n),
        ad=torch.where(number % 3 == 0, 0, EMPTY),
        offer=number % 4,
        copy=copy.masked_fill(copy % 5 == 0, EMPTY),
    )


def one(world: BazaarWorld, **known: float) -> State:
    """One shopper of the second segment and the third visit class."""
    state = {name: value[:1].clone() for name, value in world.arrive(1, generator()).state.items()}
    state["segment"][:], state["visit_class"][:] = 1, 2
    for name, value in known.items():
        state[name] = torch.full_like(state[name], value)
    return state


def test_a_page_by_hand(world: BazaarWorld):
    p = world.parameters
    segment, items = p.segments[1], world.items
    saving = world.lines.index("a real bargain")
    hand = world.lines.index("made by hand - have a look")
    category = int(items.category[3])
    twin = next(i for i in range(4, 500) if items.category[i] == category)
    other = next(i for i in range(500) if items.category[i] != category)
    slate = torch.tensor([[3, other, twin, EMPTY]])
    decision = Decision(
        slate,
        torch.zeros(1),
        ad=torch.tensor([1]),
        offer=torch.tensor([2]),
        copy=torch.tensor([[saving, EMPTY, hand, EMPTY]]),
    )
    state = one(world)
    state["fatigue"][0, category] = 0.7
    offer = 0.3 * segment.offer
    base = [p.click.base + items.appeal[1, i] + offer for i in (3, other, twin)]
    logits = [
        base[0] + segment.cue_click[2] - 0.35 * 0.7,
        base[1] - segment.ad_aversion,
        base[2] + segment.cue_click[4] - 0.35 * 0.7 - 0.2,
    ]
    looked = p.look.positions
    expected = [looked[k] * sigmoid(logit) for k, logit in enumerate(logits)]
    narrow = BazaarWorld(replace(p, shop=replace(p.shop, size=4), look=replace(p.look, positions=looked[:4])), CPU)
    assert narrow.click_probabilities(state, decision)[0].tolist() == pytest.approx([*expected, 0.0], rel=1e-5)

    price = items.table["price"]
    conversion = [
        p.conversion.base + 0.7 * items.appeal[1, i] + effect + 0.5 * segment.offer - 0.3 * math.log(price[i] / 50)
        for i, effect in ((3, segment.cue_convert[2]), (other, 0.0), (twin, segment.cue_convert[4]))
    ]
    found = narrow.conversion_probabilities(state, decision)[0].tolist()
    assert found == pytest.approx([*map(sigmoid, conversion), 0.0], rel=1e-5)
    assert narrow.price_shown(decision)[0, :3].tolist() == pytest.approx([0.9 * price[i] for i in (3, other, twin)])


def test_after_a_page_by_hand(world: BazaarWorld):
    p, items = world.parameters, world.items
    segment, s = p.segments[1], p.satisfaction
    spam, saving = world.lines.index("UNREAL must see!!!"), world.lines.index("a real bargain")
    slate = torch.arange(8)[None]
    copy = torch.tensor([[spam, spam, saving, EMPTY, EMPTY, EMPTY, EMPTY, EMPTY]])
    clicked = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0]]).bool()
    converted = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0]]).bool()
    decision = Decision(slate, torch.zeros(1), ad=torch.tensor([7]), copy=copy)
    state = one(world, satisfaction=0.1)
    state["fatigue"][:] = 0.5
    after = world.after_page(state, decision, clicked, converted)
    enjoyed = [math.tanh(items.appeal[1, i]) + 2 * items.quality[i] - 1 - s.expected for i in (1, 2)]
    change = (
        s.page
        + s.click * sum(enjoyed) / 2
        + s.purchase * (items.quality[1] + items.reliability[1] - 1)
        - s.spam * 0.75  # two lines of spam
        - s.lie  # one click on a promise without an offer
        - s.ad * segment.ad_annoyance
        - s.dull * 0.5
    )
    assert float(after["satisfaction"]) == pytest.approx(0.1 + change, rel=1e-5)
    counts = torch.bincount(torch.from_numpy(items.category[:8]), minlength=8)
    assert after["fatigue"][0].tolist() == pytest.approx((0.5 * 0.8 + counts / 8).tolist())
    assert bool(after["clicked"])
    truthful = replace(decision, offer=torch.tensor([1]))
    honest = world.after_page(state, truthful, clicked, converted)
    assert float(honest["satisfaction"] - after["satisfaction"]) == pytest.approx(s.lie, rel=1e-5)
    happy = world.after_page(
        state | {"satisfaction": torch.tensor([1.2])}, replace(truthful, ad=None, copy=None), clicked, converted
    )
    assert float(happy["satisfaction"]) <= s.limit


def test_leaving_and_coming_back_by_hand(world: BazaarWorld):
    p = world.parameters
    state = one(world, satisfaction=0.8, page=3, clicked=True)
    logit = p.leave.base - 0.5 * 0.8 + 0.15 * 3 - 0.4
    assert float(world.leave_probability(state)) == pytest.approx(sigmoid(logit), rel=1e-5)
    hazard = world.return_hazard(state, 3)[0].tolist()
    by_hand = [sigmoid(p.visit_classes[2].base + 0.7 * 0.8 * 0.94**day) for day in (1, 2, 3)]
    assert hazard == pytest.approx(by_hand, rel=1e-5)


def test_the_weibull_law_by_hand():
    world = BazaarWorld(load_bazaar("weibull"), CPU)
    state = one(world, satisfaction=0.0)
    away = (1 - world.return_hazard(state, 30)).cumprod(1)[0]
    rate = math.exp(world.parameters.visit_classes[2].base)
    assert away.tolist() == pytest.approx([math.exp(-rate * d**0.7) for d in range(1, 31)], rel=1e-4)


def test_nothing_moves_retention_in_the_inert_variant(world: BazaarWorld):
    inert = BazaarWorld(load_bazaar("inert"), CPU)
    for tested, moves in ((inert, False), (world, True)):
        low, high = one(tested, satisfaction=-1.0), one(tested, satisfaction=1.0, clicked=True)
        assert torch.equal(tested.leave_probability(low), tested.leave_probability(high)) != moves
        assert torch.equal(tested.return_hazard(low, 30), tested.return_hazard(high, 30)) != moves


def test_satisfaction_moves_no_click(world: BazaarWorld):
    shoppers = world.arrive(20, generator())
    decision = shown(shoppers)
    other = shoppers.state | {"satisfaction": torch.ones(20)}
    for heads in (world.click_probabilities, world.conversion_probabilities):
        assert torch.equal(heads(shoppers.state, decision), heads(other, decision))


@pytest.mark.parametrize("name", ["bazaar", "cascade"])
def test_probabilities_agree_with_what_is_drawn(name: str):
    world = BazaarWorld(load_bazaar(name), CPU)
    n = 40_000
    first = world.arrive(1, generator(3))
    same = Shoppers(
        first.context.map(lambda array: array.expand(n, *array.shape[1:])),
        first.member.expand(n),
        {key: value.expand(n, *value.shape[1:]) for key, value in first.state.items()},
    )
    decision = Decision(same.context.candidates[:, :8], torch.zeros(n), offer=torch.full((n,), 3))
    after, outcome = world.respond(same, decision, generator(1))
    assert outcome.converted is not None
    assert outcome.leave is not None
    assert outcome.days is not None
    assert outcome.revenue is not None
    expected = outcome.click_probability[0]
    error = (expected * (1 - expected) / n).sqrt()
    assert ((outcome.clicked.mean(0) - expected).abs() < 4.5 * error).all()
    bought = outcome.converted.sum() / (outcome.clicked * outcome.conversion_probability).sum()
    assert float(bought) == pytest.approx(1, abs=0.1)
    assert not (outcome.converted > outcome.clicked).any()
    assert torch.equal(outcome.revenue, world.price_shown(decision) * outcome.converted)
    ended = world.after_page(same.state, decision, outcome.clicked, outcome.converted)
    assert outcome.leave_probability is not None
    assert torch.equal(outcome.leave_probability, world.leave_probability(ended))
    assert float(outcome.leave.float().mean()) == pytest.approx(float(outcome.leave_probability.mean()), abs=0.01)
    left = {key: value[outcome.leave] for key, value in ended.items()}
    back = 1 - (1 - world.return_hazard(left, 7)).prod(1)
    days = outcome.days[outcome.leave]
    assert float((days <= 7).float().mean()) == pytest.approx(float(back.mean()), abs=0.02)
    assert bool((outcome.days[~outcome.leave] == 0).all())
    assert torch.equal(after.state["page"], torch.where(outcome.leave, 0, 1))


@pytest.mark.parametrize("name", ["bazaar", "cascade"])
def test_the_likelihood_of_clicks_sums_to_one_and_has_the_marginals(name: str):
    world = BazaarWorld(load_bazaar(name), CPU)
    attraction = torch.linspace(0.1, 0.6, 8)[None].double()
    every = torch.tensor([[number >> k & 1 for k in range(8)] for number in range(256)])
    likelihood = world.click_log_likelihood(attraction.expand(256, -1), every).exp()
    assert float(likelihood.sum()) == pytest.approx(1, abs=1e-6)
    marginal = (likelihood[:, None] * every).sum(0)
    assert marginal.tolist() == pytest.approx((attraction * world.looked_at(attraction))[0].tolist(), rel=1e-5)


def test_the_cascade_by_hand(cascade: BazaarWorld):
    look = cascade.parameters.look
    attraction = torch.tensor([[0.3, 0.5]])
    third = 1 - (0.3 * (1 - look.clicked) + 0.7 * (1 - look.passed))
    assert cascade.looked_at(attraction)[0].tolist() == pytest.approx([1.0, third])
    clicks = torch.tensor([[1, 0]])
    by_hand = 0.3 * (look.clicked * 0.5 + (1 - look.clicked))
    assert float(cascade.click_log_likelihood(attraction, clicks).exp()) == pytest.approx(by_hand)


def test_a_seed_decides_everything(world: BazaarWorld, nothing_global: None):
    def life(seed: int) -> list[Tensor]:
        draws = generator(seed)
        shoppers = world.arrive(50, draws)
        seen = []
        for _ in range(5):
            shoppers, outcome = world.respond(shoppers, shown(shoppers), draws)
            seen += [outcome.clicked, shoppers.state["clock"], shoppers.context.candidates]
        return seen

    assert all(torch.equal(a, b) for a, b in zip(life(1), life(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(life(1), life(2), strict=True))


def test_calendar_and_candidates(world: BazaarWorld):
    draws = generator(4)
    shoppers = world.arrive(500, draws)
    eligible = torch.from_numpy(world.items.launched & (world.items.table["stock"] > 0).to_numpy())
    for _ in range(12):
        before = shoppers
        shoppers, outcome = world.respond(before, shown(before), draws)
        assert outcome.leave is not None
        assert outcome.days is not None
        candidates, left = shoppers.context.candidates, outcome.leave & ~outcome.gone
        assert bool(eligible[candidates].all())
        assert candidates.shape == (500, 30)
        assert bool((candidates.sort(1).values.diff(dim=1) > 0).all())
        stayed = ~outcome.leave
        assert torch.equal(candidates[stayed], before.context.candidates[stayed])
        clock, old = shoppers.state["clock"], before.state["clock"]
        assert bool(((clock - old)[stayed] >= 20).all())
        assert bool(((clock - old)[stayed] <= 90).all())
        assert torch.equal((clock // DAY - old // DAY)[left].float(), outcome.days[left])
        hour = clock[left] % DAY / 3600
        assert bool(((hour >= OPENS) & (hour <= CLOSES)).all())


def test_contexts_are_those_of_the_builder(world: BazaarWorld):
    """What a strategy sees in the world is what it would see in the world's logs."""
    shoppers = world.arrive(30, generator(5))
    rows = pd.DataFrame(
        {"timestamp": pd.Timestamp("2026-01-05", tz="UTC") + pd.to_timedelta(shoppers.state["clock"].numpy(), "s")}
    )
    for i, feature in enumerate(world.parameters.features):
        rows[feature.name] = [feature.values[code] for code in shoppers.state["features"][:, i].tolist()]
    expected = world.builder.encode_shoppers(rows)
    assert torch.allclose(shoppers.context.shopper, torch.from_numpy(expected), atol=1e-6)
    learned = type(world.builder).fit(rows.assign(visit_id=0), world.items.table)
    assert set(learned.shopper.columns) == set(world.builder.shopper.columns)
    with_text = BazaarWorld(world.parameters, CPU, HashedEncoder())
    assert with_text.builder.catalog.vectors.shape[1] == world.builder.catalog.vectors.shape[1] + 64


def test_features_tell_something_of_the_hidden_state(world: BazaarWorld):
    state = world.arrive(20_000, generator(6)).state
    segment, visit_class = world.beliefs(state["features"])
    guessed = float((segment.argmax(1) == state["segment"]).float().mean())
    assert 0.4 < guessed < 0.5
    assert float(segment.sum(1).mean()) == pytest.approx(1)
    sure = segment.gather(1, state["segment"][:, None]).mean()
    assert float(sure) == pytest.approx(float(segment.square().sum(1).mean()), abs=0.01)  # calibrated
    assert float((visit_class.argmax(1) == state["visit_class"]).float().mean()) < 0.55


def test_segments_drift_by_the_share_that_is_stated(world: BazaarWorld):
    state = world.arrive(40_000, generator(7)).state
    rested = world.rest(state, torch.full((40_000,), 5.0), generator(8))
    moved = float((rested["segment"] != state["segment"]).float().mean())
    same = sum(s.share**2 for s in world.parameters.segments)
    assert moved == pytest.approx(0.04 * (1 - same), abs=0.004)
    assert torch.equal(rested["visit_class"], state["visit_class"])


def test_another_shop_of_the_same_form():
    p = load_bazaar()
    features = tuple(replace(f, weights=f.weights[:2]) for f in p.features[:1])
    small = replace(
        p,
        shop=dataclasses.replace(p.shop, items=12, candidates=30, size=8),
        segments=p.segments[:2],
        visit_classes=p.visit_classes[:1],
        features=features,
    )
    world = BazaarWorld(small, CPU)
    shoppers = world.arrive(9, generator())
    count = shoppers.context.candidates.shape[1]
    assert count <= 12
    slate = torch.nn.functional.pad(shoppers.context.candidates[:, :5], (0, 3), value=EMPTY)
    after, outcome = world.respond(shoppers, Decision(slate, torch.zeros(9)), generator())
    assert outcome.clicked.shape == (9, 8)
    assert not outcome.clicked[:, 5:].any()
    assert bool(torch.isfinite(after.context.shopper).all())


def test_a_shop_with_nothing_to_show_is_refused():
    p = load_bazaar()
    with pytest.raises(InputError, match="bazaar: no item is launched and in stock"):
        BazaarWorld(replace(p, shop=replace(p.shop, new_share=1.0)), CPU)
