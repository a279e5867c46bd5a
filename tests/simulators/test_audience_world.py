"""Audiences as they are observed page by page: the labels that the log of the same pages would have."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.audiences import AWAY, STAGES, Audiences, History
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.audience_world import AUDIENCE, AudienceWorld
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.reader import ReadWorld
from hawker.simulators.small import small_world
from hawker.simulators.store import FittedShoppers
from hawker.simulators.world import Shoppers, World

START = pd.Timestamp("2026-01-01", tz="UTC")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def learned(regulars) -> AudienceWorld:
    shoppers: FittedShoppers = regulars[1]
    world = ReadWorld(shoppers.world("train"), shoppers.builder, shoppers.ensembles["train"], RewardSpec())
    return AudienceWorld(world, Audiences(("shoes", "hats")))


@pytest.fixture(scope="module")
def bazaar() -> BazaarWorld:
    return BazaarWorld(load_bazaar(None), torch.device("cpu"))


def pages_of(world: World, context, generator: torch.Generator) -> Decision[torch.Tensor]:
    """Random eligible candidates, of which a few categories come often: shoppers are then soon known to like one."""
    score = torch.rand(context.mask.shape, generator=generator).masked_fill(~context.mask, -1.0)
    slate = context.candidates.gather(1, score.topk(world.size, 1).indices)
    return Decision(slate, torch.zeros(len(slate)))


def lived(
    world: AudienceWorld, n: int, steps: int, moment: Callable[[Shoppers, torch.Tensor], torch.Tensor]
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the log of n shoppers over some pages each, and the column as it stood at each row's page.

    ``moment`` tells when a page is seen in days, from the shoppers and from a diary of theirs: so many days between
    visits as the world says, and a 1,024th of a day, which is an exact number, between pages.
    """
    here, generator = world.arrive(n, seeded(1)), seeded(2)
    day, visit, page = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    alive, rows, column = torch.ones(n, dtype=torch.bool), [], []
    ids = np.array(world.builder.catalog.item_ids, dtype=object)
    for _ in range(steps):
        decision = pages_of(world, here.context, generator)
        then, outcome = world.respond(here, decision, generator)
        for i in alive.nonzero().squeeze(1).tolist():
            for k in range(world.size):
                row = {"shopper_id": f"s{i}", "visit_id": f"s{i}-{int(visit[i])}", "page": int(page[i]), "position": k}
                row |= {"item_id": ids[decision.slate[i, k]], "clicked": int(outcome.clicked[i, k])}
                row |= {"converted": float(outcome.converted[i, k]), "day": float(moment(here, day)[i])}
                rows.append(row)
                column.append(float(here.context.shopper[i, -1]))
        visit, page = visit + outcome.leave, (page + 1).masked_fill(outcome.leave, 0.0)
        day = day + torch.where(outcome.leave, outcome.days.double(), 1 / 1024)
        alive &= ~outcome.gone
        here = then
    frame = pd.DataFrame(rows)
    frame["timestamp"] = START + pd.to_timedelta(frame.pop("day"), unit="D")
    return frame, np.array(column)


def test_the_column_is_the_label_of_the_log(learned, journeys):
    log, column = lived(learned, 150, 14, lambda here, day: day)
    label = learned.audiences.label(log, journeys[1])
    assert (label.codes == column).all()
    assert len(set(label)) >= 8
    assert {name.split(", likes")[0] for name in label} == set(STAGES)


def test_so_it_is_in_a_gold_world(bazaar):
    """Whose log counts hours, too: days away agree up to one."""
    liked = tuple(category.name for category in bazaar.parameters.categories[:3])
    world = AudienceWorld(bazaar, Audiences(liked))
    log, column = lived(world, 150, 14, lambda here, day: here.state["clock"].double() / 86_400)
    label = world.audiences.label(log, bazaar.items.table)
    start = log.groupby("visit_id", sort=False)["timestamp"].transform("min")
    ends = log.groupby(["shopper_id", "visit_id"], sort=False)["timestamp"].max().groupby("shopper_id").shift()
    away = (start - pd.MultiIndex.from_frame(log[["shopper_id", "visit_id"]]).map(ends)).dt.total_seconds() / 86_400
    sure = ~((away - AWAY).abs() < 1)
    assert (label.codes == column)[sure].all()
    assert sure.mean() > 0.95
    assert len(set(label)) >= 10


@pytest.mark.parametrize("n", [3, 200])
def test_the_world_answers_as_without_audiences(learned, n):
    bare = learned.world
    one, other, draws = bare.arrive(n, seeded(3)), learned.arrive(n, seeded(3)), [seeded(4), seeded(4)]
    for page in range(4):
        decision = pages_of(bare, one.context, seeded(page))
        one, was = bare.respond(one, decision, draws[0])
        other, now = learned.respond(other, decision, draws[1])
        assert all(torch.equal(getattr(was, name), getattr(now, name)) for name in ("clicked", "converted", "days"))
        assert torch.equal(one.context.shopper, other.context.shopper[:, :-1])
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
        assert one.placed == other.placed


def test_the_builder_has_one_entry_more(learned):
    ours, theirs = learned.builder.shopper, learned.world.builder.shopper
    assert ours.width == theirs.width + 1 == learned.arrive(2, seeded(0)).context.shopper.shape[1]
    assert ours.columns == [*theirs.columns, AUDIENCE]
    assert ours.centre.tolist() == [*theirs.centre.tolist(), 0.0]
    assert ours.spread.tolist() == [*theirs.spread.tolist(), 1.0]
    assert learned.builder.catalog is learned.world.builder.catalog


def test_a_step_waits_for_nothing(regulars, never_waiting):
    world = AudienceWorld(regulars[1].world("train"), Audiences(("hats", "shoes")))
    here, generator = world.arrive(128, seeded(5)), seeded(6)
    decision = pages_of(world, here.context, generator)
    here, _ = world.respond(here, decision, generator)  # what is laid out once may wait
    with never_waiting():
        here, outcome = world.respond(here, decision, generator)
        here.replaced(outcome.gone, here)
        world.respond(here, decision, generator)


def test_who_comes_anew_is_new(learned):
    here, generator = learned.arrive(200, seeded(7)), seeded(8)
    for _ in range(6):
        here, _ = learned.respond(here, pages_of(learned, here.context, generator), generator)
    assert (here.context.shopper[:, -1] > 0).float().mean() > 0.5
    fresh = learned.arrive(200, seeded(9))
    assert (fresh.context.shopper[:, -1] == 0).all()
    where = torch.arange(200) % 2 == 0
    mixed = here.replaced(where, fresh)
    again, _ = learned.respond(mixed, pages_of(learned, mixed.context, seeded(1)), seeded(2))
    assert (again.state["audience.pages"][where] == 1).all()
    assert (again.state["audience.pages"][~where] == 7).all()


def test_empty_slots_and_worlds_without_visits_tell_nothing():
    """Of a world that knows neither purchases nor returns, everybody stays new."""
    world = AudienceWorld(small_world(ctr=0.9), Audiences(("hats",)))
    here, generator = world.arrive(60, seeded(1)), seeded(2)
    for _ in range(3):
        page = pages_of(world, here.context, generator)
        slate = page.slate.clone()
        slate[:, 0] = EMPTY
        here, _ = world.respond(here, dataclasses.replace(page, slate=slate), generator)
    hats = torch.from_numpy(world.audiences.liked_of(world.builder.catalog) == 0)
    assert 0 < hats.sum() < len(hats)
    assert set(here.context.shopper[:, -1].tolist()) == {0.0, 1.0}
    assert torch.equal(here.state["audience.clicks"][:, 0] >= 2, here.context.shopper[:, -1] == 1)


counts = st.integers(0, 3)
people = st.lists(
    st.tuples(
        counts, st.sampled_from([0.0, 20.0, 21.0, 21.5, 300.0]), counts, *[counts] * 3, *[st.integers(-1, 5)] * 3
    ),
    min_size=1,
    max_size=20,
)


@given(people)
def test_numbers_are_those_of_the_shop(seen: list[tuple[float, ...]]):
    table = np.array(seen)
    visits, purchases, clicks, latest = (table[:, part].astype(np.int64) for part in (0, 2, slice(3, 6), slice(6, 9)))
    audiences = Audiences(("hats", "shoes", "shirts"))
    expected = audiences.number(History(visits, table[:, 1], purchases, clicks, latest))
    own = {"visits": visits, "away": table[:, 1], "purchases": purchases, "clicks": clicks, "latest": latest}
    world = AudienceWorld(small_world(), audiences)
    found = world._number({name: torch.from_numpy(value) for name, value in own.items()})
    assert found.tolist() == expected.tolist()
