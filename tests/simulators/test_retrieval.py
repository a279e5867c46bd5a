"""Candidates that are retrieved for each shopper."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hawker.shop.decision import Decision
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.reader import ReadWorld
from hawker.simulators.retrieval import MISSED, RetrievingWorld, eligible_items, unfilled

REWARD = RewardSpec(conversion=5.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(regular, choices: int) -> LearnedWorld:
    arrivals = unfilled(regular.arrivals["train"], choices)
    return LearnedWorld(regular.builder, regular.ensembles["train"], arrivals, regular.size, regular.lines.texts)


def read(regular, choices: int) -> ReadWorld:
    world = learned(regular, choices)
    return ReadWorld(world, world.builder, world.ensemble, REWARD)


@pytest.fixture(scope="module")
def regular(regulars):
    return regulars[1]


@pytest.fixture(scope="module", params=[learned, read], ids=["learned", "read"])
def world(request, regular) -> RetrievingWorld:
    """Eight candidates of twenty items, two of which explore."""
    return RetrievingWorld(request.param(regular, 8), explore=0.25)


def odds(world: RetrievingWorld, people: torch.Tensor) -> torch.Tensor:
    """Return what the first member and the classes make of every item, but for what is the same for all: (n, I)."""
    inner, model, tastes = world.world, world.model, world.tastes
    person = inner.person(people) if isinstance(inner, ReadWorld) else model.person(people, None)
    if isinstance(inner, ReadWorld):
        first = inner.builder.shopper.numeric.index("effect.offer.0") - tastes.width
        beliefs = people[:, first : first + tastes.share.numel()]
    else:
        beliefs = tastes.beliefs(tastes.begin(tastes.scaled(people)))
    own = (model.wish(person)[:, None] * model.click.items(model.item_vectors)).sum(2)
    return own + (beliefs[:, None] * tastes.utilities()[0].item).sum(2)


def shown(context, size: int) -> Decision[torch.Tensor]:
    return Decision(context.candidates[:, :size], torch.zeros(len(context.mask)))


def steps(world, n: int, seed: int, pages: int):
    """Yield shoppers before and after each page, and what came of it."""
    generator = seeded(seed)
    here = world.arrive(n, generator)
    for _ in range(pages):
        after, outcome = world.respond(here, shown(here.context, world.size), generator)
        yield here, after, outcome
        here = after


def check_best_first(world: RetrievingWorld, context) -> None:
    """A list of 30 items holds all 20: what is retrieved is what is best, in the order of numbers."""
    best = odds(world, context.shopper).topk(6, 1).indices.sort(1).values
    assert torch.equal(context.candidates[:, :6], best)


def test_arriving_shoppers_have_what_is_best_for_them_and_others(world):
    assert (world.exploring, world.choices) == (2, 8)
    context = world.arrive(3_000, seeded(0)).context
    check_best_first(world, context)
    assert context.mask.all()
    assert all(len(row.unique()) == 8 for row in context.candidates)
    assert not torch.equal(context.candidates[:1].expand(3_000, -1), context.candidates)


def test_what_explores_is_drawn_evenly_from_the_rest(world):
    context = world.arrive(4_000, seeded(1)).context
    best, drawn = (torch.zeros(4_000, 20) for _ in range(2))
    best.scatter_(1, context.candidates[:, :6], 1.0)
    drawn.scatter_(1, context.candidates[:, 6:], 1.0)
    assert not (best * drawn).any()
    chances = (1 - best).sum(0)  # how often an item was among the 14 others
    z = (drawn.sum(0) - chances * 2 / 14) / (chances * 2 / 14 * 12 / 14).clamp(min=1e-9).sqrt()
    assert (z[chances > 0].abs() < 4).all()


def test_candidates_are_kept_for_the_visit_and_new_in_the_next(world):
    changed = 0
    for here, after, outcome in steps(world, 200, 2, 6):
        before, now = here.context.candidates, after.context.candidates
        assert not after.state[MISSED].any()
        assert torch.equal(before[~outcome.leave], now[~outcome.leave])
        check_best_first(world, after.context.map(lambda array, rows=outcome.leave: array[rows]))
        changed += int((before != now).any(1)[outcome.leave].sum())
    assert changed > 100


def test_affinities_are_those_of_the_candidates(regular):
    world = RetrievingWorld(read(regular, 8))
    for _, after, outcome in steps(world, 100, 3, 3):
        expected = world.world.affinity(after.context.shopper, after.context.candidates)
        torch.testing.assert_close(after.context.affinity, expected)
        assert outcome.leave.any()


@pytest.mark.parametrize("inner", [learned, read])
def test_whom_there_is_no_room_for_is_counted(regular, monkeypatch, inner):
    world = RetrievingWorld(inner(regular, 8), explore=0.25)
    monkeypatch.setattr(world, "_room", 0.05)
    expected, served = torch.zeros(200, dtype=torch.bool), 0
    for here, after, outcome in steps(world, 200, 4, 5):
        missed, same = after.state[MISSED], (here.context.candidates == after.context.candidates).all(1)
        assert int((outcome.leave & ~missed).sum()) == min(10, int(outcome.leave.sum())), "none of the room is wasted"
        expected = torch.where(outcome.leave, missed, expected)
        assert torch.equal(missed, expected), "until the next visit"
        assert same[outcome.leave & missed].all(), "the candidates of the visit before"
        check_best_first(world, after.context.map(lambda array, rows=outcome.leave & ~missed: array[rows]))
        served += int((outcome.leave & ~missed).sum())
    assert served
    assert expected.any()


def test_a_world_that_has_candidates_of_its_own(regular):
    """Who misses a search gets those, with their mask."""
    world = RetrievingWorld(regular.world("train"))
    for _, after, outcome in steps(world, 100, 5, 3):
        assert not after.state[MISSED].any()
        assert after.context.mask.all()
        assert outcome.leave.any()


def test_same_seed_same_candidates(regular):
    one, two = (RetrievingWorld(read(regular, 8), seed=1) for _ in range(2))
    for (_, first, _), (_, second, _) in zip(steps(one, 90, 6, 4), steps(two, 90, 6, 4), strict=True):
        for name in ("candidates", "mask", "affinity"):
            assert torch.equal(getattr(first.context, name), getattr(second.context, name))


def test_what_is_not_eligible_is_no_candidate(regular):
    eligible = torch.arange(20) % 2 == 0
    world = RetrievingWorld(read(regular, 8), explore=0.5, eligible=eligible)
    for _, after, _ in steps(world, 100, 7, 3):
        assert eligible[after.context.candidates].all()
        assert all(len(row.unique()) == 8 for row in after.context.candidates)


@pytest.mark.parametrize(("items", "exploring"), [(1, 0), (3, 1), (5, 2)])
def test_fewer_items_than_candidates_close_the_mask(regular, items, exploring):
    world = RetrievingWorld(read(regular, 8), explore=0.4, eligible=torch.arange(20) < items)
    assert world.exploring == exploring
    for _, after, _ in steps(world, 70, 8, 3):
        context = after.context
        assert (context.mask.sum(1) == items).all()
        assert all(sorted(row[:items].tolist()) == list(range(items)) for row in context.candidates)
        assert context.mask[:, :items].all()


def test_a_visit_of_one_page_has_no_next_one(shoppers):
    arrivals = shoppers.arrivals["train"]
    arrivals = unfilled(dataclasses.replace(arrivals, affinity=torch.zeros_like(arrivals.affinity)), 6)
    world = RetrievingWorld(LearnedWorld(shoppers.builder, shoppers.ensembles["train"], arrivals, 1))
    for here, after, outcome in steps(world, 70, 9, 2):
        assert outcome.gone.all()
        assert torch.equal(here.context.candidates, after.context.candidates)


def test_recall_counts_what_searches_find(world, monkeypatch):
    assert world.recall(50, seeded(0)) == 1.0
    whole = world._lists.search
    monkeypatch.setattr(world._lists, "search", lambda queries: whole(queries)[:, :3])
    assert world.recall(50, seeded(0)) == 0.5


def test_no_item_is_eligible(regular):
    with pytest.raises(InputError, match="no item is eligible"):
        RetrievingWorld(learned(regular, 8), eligible=torch.zeros(20, dtype=torch.bool))


def test_affinities_of_the_log_stay_with_their_candidates(regular):
    arrivals = regular.arrivals["train"]
    arrivals = dataclasses.replace(arrivals, affinity=torch.ones_like(arrivals.affinity))
    with pytest.raises(ValueError, match="belong to the world's own candidates"):
        unfilled(arrivals, 8)
    world = LearnedWorld(regular.builder, regular.ensembles["train"], arrivals, 3, regular.lines.texts)
    for inner in (world, ReadWorld(world, world.builder, world.ensemble, REWARD)):
        with pytest.raises(ValueError, match="belong to the world's own candidates"):
            RetrievingWorld(inner)


def test_eligible_are_candidates_of_the_logs(regular):
    arrivals = regular.arrivals["train"]
    expected = set(arrivals.candidates[arrivals.mask].tolist())
    assert set(eligible_items(arrivals, 20).nonzero().flatten().tolist()) == expected
    few = arrivals.map(lambda array: array[:1])
    assert eligible_items(few, 20).sum() == few.mask.sum()


class _Watch(TorchDispatchMode):
    """Fails where the host asks the device what is in the data."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default")
        assert not any(word in name for word in waits), f"a step waits for the device: {name}"
        return function(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device(regular):
    world, generator = RetrievingWorld(learned(regular, 8)), seeded(0)
    here = world.arrive(100, generator)
    decision = shown(here.context, world.size)
    world.respond(here, decision, generator)
    with _Watch():
        after, outcome = world.respond(here, decision, generator)
        after.replaced(outcome.gone, world.arrive(100, generator))
