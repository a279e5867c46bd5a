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
from hawker.simulators.shopper import calibrated

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
        here, outcome = read.respond(here, decision, seeded(page))
        rows = dataclasses.replace(
            rows,
            clicked=outcome.clicked.flatten(),
            converted=outcome.converted.flatten(),
            revenue=outcome.revenue.flatten(),
        )
        carried = model.memory.after(carried, gap, number, model.summary(rows))
        gap = outcome.days.clamp(max=365.0)
        number = torch.where(outcome.leave, 0.0, number + 1)


def test_affinity_is_what_a_candidate_is_worth_at_once(read):
    here = read.arrive(30, seeded(4))
    click, purchase = read.model.tables(read.person(here.context.shopper))
    calibration = read.calibration
    worth = calibrated(click.items.sigmoid(), calibration[0])
    worth = worth * (1 + 5 * calibrated(purchase.items.sigmoid(), calibration[1]))
    expected = worth.gather(1, here.context.candidates).log()
    torch.testing.assert_close(here.context.affinity, expected)
    assert here.context.affinity.std() > 0


def test_effects_are_what_offers_and_lines_make_of_it(read):
    """Of an item of the likeliest candidates' average log-odds, from the model's whole tables."""
    here = read.arrive(30, seeded(4))
    click, purchase = read.model.tables(read.person(here.context.shopper))
    top = click.items.gather(1, here.context.candidates).topk(min(10, read.choices), 1)
    liked = top.values.mean(1, keepdim=True)
    bought = purchase.items.gather(1, here.context.candidates).gather(1, top.indices).mean(1, keepdim=True)

    def worth(click_odds, purchase_odds):
        value = calibrated(click_odds.sigmoid(), read.calibration[0])
        return (value * (1 + 5 * calibrated(purchase_odds.sigmoid(), read.calibration[1]))).log()

    names = read.builder.shopper.numeric
    for prefix, clicks, purchases in (
        ("effect.offer.", click.offers, purchase.offers),
        ("effect.line.", click.lines, purchase.lines),
    ):
        columns = [names.index(f"{prefix}{i}") for i in range(clicks.shape[1])]
        assert sum(name.startswith(prefix) for name in names) == len(columns) > 1
        expected = worth(liked + clicks, bought + purchases) - worth(liked, bought)
        torch.testing.assert_close(here.context.shopper[:, columns], expected, atol=1e-5, rtol=1e-4)
        assert expected.std() > 0


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
    plain = _with_history(lasting.builder.shopper, read._told, memory, ())
    assert not plain.centre[moods].any()
    assert (plain.spread[moods] == 1).all()
