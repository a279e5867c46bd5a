"""What a reader tells of a world's shoppers: the memory of what they were seen to do, and nothing else."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from hawker.shop.decision import Decision
from hawker.shop.features import FeatureSchema
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.memory import CLASSES, MOOD_SCALE, MOODS, clock_of
from hawker.simulators.pages import shown_rows
from hawker.simulators.reader import ReadWorld, _columns, _with_history
from hawker.simulators.store import load_shoppers
from hawker.simulators.taste_rows import believed

REWARD = RewardSpec(conversion=5.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def lasting(regulars) -> LearnedWorld:
    return regulars[1].world("train")


@pytest.fixture(scope="module")
def read(lasting) -> ReadWorld:
    return ReadWorld(lasting, lasting.builder, lasting.ensemble, REWARD)


def decided(context, seed: int) -> Decision[torch.Tensor]:
    """Three random candidates, a line, an offer and perhaps an ad for everybody."""
    generator, n = seeded(seed), len(context.mask)
    picks = torch.rand(context.mask.shape, generator=generator).masked_fill(~context.mask, -1.0).topk(3, 1).indices
    return Decision(
        context.candidates.gather(1, picks),
        torch.zeros(n),
        ad=torch.randint(-1, 3, (n,), generator=generator),
        offer=torch.randint(0, 3, (n,), generator=generator),
        copy=torch.randint(-1, 3, (n, 3), generator=generator),
    )


def test_reading_changes_nothing_that_happens(lasting, read):
    bare, seen = lasting.arrive(60, seeded(1)), read.arrive(60, seeded(1))
    draws = [seeded(2), seeded(2)]
    for page in range(5):
        decision = decided(bare.context, page)
        bare, one = lasting.respond(bare, decision, draws[0])
        seen, other = read.respond(seen, decision, draws[1])
        for name in ("clicked", "click_probability", "converted", "revenue", "leave", "days"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(bare.context.candidates, seen.context.candidates)
        assert all(torch.equal(bare.state[name], seen.state[name]) for name in bare.state)


def test_the_memory_is_of_what_was_seen(lasting, read):
    """Followed by hand: the first member's memory of every shopper, whoever of the members they live in."""
    model = lasting.ensemble.models[0]
    here = read.arrive(40, seeded(3))
    numbers, history = len(lasting.builder.shopper.numeric), read.builder.shopper.width - lasting.builder.shopper.width
    features = torch.cat([here.context.shopper[:, :numbers], here.context.shopper[:, numbers + history :]], 1)
    carried = model.memory.start(model.scaled(features))
    gap = number = torch.zeros(40)
    tastes, state = read.tastes, read.tastes.begin(model.scaled(features))
    for page in range(5):
        told = model.memory.before(carried, clock_of(gap, number))
        width = told.shape[1]
        torch.testing.assert_close(here.context.shopper[:, numbers : numbers + width], told)
        torch.testing.assert_close(
            read.person(here.context.shopper), torch.cat([model.scaled(features), told], 1), atol=1e-5, rtol=1e-4
        )
        decision = decided(here.context, page)
        rows = shown_rows(model, dataclasses.replace(here.context, shopper=features), decision)
        rows = dataclasses.replace(rows, affinity=torch.zeros_like(rows.affinity))
        rows = dataclasses.replace(rows, believed=believed(tastes, tastes.beliefs(state), rows))
        here, outcome = read.respond(here, decision, seeded(page))
        odds = tastes.page_odds(tastes.utilities(), model.scaled(features), decision)
        state = tastes.after(state, odds, decision.slate, outcome.clicked, outcome.converted, outcome.leave)
        rows = dataclasses.replace(
            rows,
            clicked=outcome.clicked.flatten(),
            converted=outcome.converted.flatten(),
            revenue=outcome.revenue.flatten(),
        )
        carried = model.memory.after(carried, gap, number, model.summary(rows))
        gap = outcome.days.clamp(max=365.0)
        number = torch.where(outcome.leave, 0.0, number + 1)


def by_class(read, context, items, offer=None, line=None):
    """What items (B, C) are worth by the classes, which are told in the context: the mixture of their worths."""
    tastes, tables = read.tastes, read.tastes.utilities()
    names = read.builder.shopper.numeric
    last = names.index("effect.offer.0")
    told = context.shopper[:, last - tastes.width : last]
    belief, state = told[:, : tastes.share.numel()], told
    n, count = items.shape
    scaled = tastes.scaled(read._features_of(context.shopper))
    person = scaled[:, None].expand(-1, count, -1).reshape(n * count, -1)
    parts = tuple(None if part is None else torch.full((n * count,), part) for part in (line, offer))
    odds = tastes.log_odds(tables, person, (items.reshape(-1), *parts, None))
    seen = tastes.seen(state, items).reshape(-1, 1)
    odds = odds[0] + seen, odds[1] + tastes.match * seen
    worth = odds[0].sigmoid() * (1 + 5 * odds[1].sigmoid())
    return (worth.reshape(n, count, -1) * belief[:, None]).sum(2)


def test_affinity_and_worth_are_mixtures_over_the_classes(lasting, read):
    here = read.arrive(30, seeded(4))
    for page in range(3):
        context = here.context
        expected = by_class(read, context, context.candidates)
        torch.testing.assert_close(context.affinity, expected.log(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(read.affinity(context.shopper, context.candidates), context.affinity)
        for tier in (0, 2):
            worth = read.worth(context.shopper, context.candidates, REWARD, tier, torch.tensor([2, 0]))
            for place, line in enumerate((2, 0, -1)):
                expected = by_class(read, context, context.candidates, tier, line)
                torch.testing.assert_close(worth[:, :, place], expected, atol=1e-5, rtol=1e-4)
        here, _ = read.respond(here, decided(context, page), seeded(page))
    assert here.context.affinity.std() > 0


def test_contexts_remember_no_gradients(regulars, lasting):
    """Of shoppers as they come from disk, in a world of another ensemble."""
    shoppers = load_shoppers(regulars[0] / "shoppers", torch.device("cpu"))
    read = ReadWorld(lasting, shoppers.builder, shoppers.ensembles["train"], REWARD)
    here = read.arrive(8, seeded(1))
    for page in range(2):
        assert not here.context.shopper.requires_grad
        assert not here.context.affinity.requires_grad
        here, _ = read.respond(here, decided(here.context, page), seeded(page))


def test_effects_by_the_classes(read):
    """Of an item of the best candidates' average log-odds: where there is one candidate, of that one."""
    here = read.arrive(30, seeded(4))
    names, context = read.builder.shopper.numeric, here.context
    one = dataclasses.replace(context, candidates=context.candidates[:, :1], mask=context.mask[:, :1])
    told = read._seen(
        dataclasses.replace(here, context=dataclasses.replace(one, shopper=here.state["reader.shopper"])),
        {name.removeprefix("reader."): value for name, value in here.state.items() if name.startswith("reader.")},
    ).context
    plain = by_class(read, told, told.candidates).log()
    for prefix, name in (("effect.offer.", "offer"), ("effect.line.", "line")):
        columns = [i for i, column in enumerate(names) if column.startswith(prefix)]
        assert len(columns) > 1
        for number, column in enumerate(columns):
            expected = by_class(read, told, told.candidates, **{name: number}).log() - plain
            torch.testing.assert_close(told.shopper[:, column], expected[:, 0], atol=1e-5, rtol=1e-4)


def test_effects_are_what_offers_and_lines_make_of_it(read):
    """Of an item of the most valuable candidates' average log-odds, in each class."""
    here = read.arrive(30, seeded(4))
    shopper, candidates = here.context.shopper, here.context.candidates
    tastes, (click, purchase) = read.tastes, read.tastes.utilities()
    names, n = read.builder.shopper.numeric, len(shopper)
    first = names.index("effect.offer.0") - tastes.width
    belief = shopper[:, first : first + tastes.share.numel()]
    scaled = tastes.scaled(read._features_of(shopper))
    liked, bought = (
        part.reshape(n, -1, tastes.share.numel())
        for part in tastes.log_odds(
            (click, purchase),
            scaled.repeat_interleave(candidates.shape[1], 0),
            (candidates.reshape(-1), None, None, None),
        )
    )
    top = here.context.affinity.topk(min(10, read.choices), 1).indices[:, :, None].expand(-1, -1, liked.shape[2])
    liked, bought = (part.gather(1, top).mean(1) for part in (liked, bought))

    def worth(click_odds, purchase_odds):
        return (click_odds.sigmoid() * (1 + 5 * purchase_odds.sigmoid()) * belief).sum(1).log()

    for prefix, clicks, purchases in (
        ("effect.offer.", click.offer, purchase.offer),
        ("effect.line.", click.line[:-1], purchase.line[:-1]),
    ):
        columns = [names.index(f"{prefix}{i}") for i in range(len(clicks))]
        assert sum(name.startswith(prefix) for name in names) == len(columns) > 1
        for column, more, sold in zip(columns, clicks, purchases, strict=True):
            expected = worth(liked + more, bought + sold) - worth(liked, bought)
            torch.testing.assert_close(shopper[:, column], expected, atol=1e-5, rtol=1e-4)
        assert shopper[:, columns].std() > 0


def test_a_world_whose_features_stand_in_another_order():
    world = FeatureSchema(("b", "a"), (0.0, 0.0), (1.0, 1.0), {"colour": ("red", "blue")})
    reader = FeatureSchema(("a", "c", "b"), (0.0, 9.0, 0.0), (1.0, 1.0, 1.0), {"colour": ("blue", "green", "red")})
    columns, known = _columns(world, reader)
    assert known.tolist() == [True, False, True, True, False, True]
    encoded = np.array([10.0, 20.0, 1.0, 0.0])
    assert np.where(known, encoded[columns], -1).tolist() == [20.0, -1, 10.0, 0.0, -1, 1.0]


def test_a_reader_needs_a_memory_and_the_same_items(shoppers, lasting):
    flat = shoppers.world("train")
    with pytest.raises(ValueError, match="no memory"):
        ReadWorld(flat, flat.builder, flat.ensemble, REWARD)
    with pytest.raises(ValueError, match="does not sell"):
        ReadWorld(BazaarWorld(load_bazaar(None), torch.device("cpu")), lasting.builder, lasting.ensemble, REWARD)


def test_moods_come_near_unit_scale(lasting, read):
    """Their range over the log becomes -2 to 2; a memory that knows no range leaves them as they are."""
    start = read._numbers + read._told + CLASSES
    moods = slice(start, start + MOODS)
    memory, schema = read.model.memory, read.builder.shopper
    for bound, at in ((memory.lowest, -2.0), (memory.highest, 2.0)):
        scaled = (MOOD_SCALE * bound[-MOODS:].numpy() - schema.centre[moods]) / schema.spread[moods]
        np.testing.assert_allclose(scaled, at, rtol=1e-4)
    memory = copy.deepcopy(memory)
    memory.lowest.fill_(-torch.inf)
    memory.highest.fill_(torch.inf)
    plain = _with_history(lasting.builder.shopper, read._told, memory, 0, ())
    assert not plain.centre[moods].any()
    assert (plain.spread[moods] == 1).all()
