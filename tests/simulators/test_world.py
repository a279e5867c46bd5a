"""What every world promises. A new world joins by a line in ``WORLDS``."""

import copy

import pytest
import torch

from hawker.shop.audiences import Audiences
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.reader import ReadWorld
from hawker.simulators.retrieval import RetrievingWorld
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers, World

WORLDS = {
    "planted": lambda fixture: small_world(),
    "learned": lambda fixture: fixture("shoppers").world("train"),
    "judge": lambda fixture: fixture("shoppers").world("judge"),
    "lasting": lambda fixture: fixture("regulars")[1].world("train"),
    "lasting judge": lambda fixture: fixture("regulars")[1].world("judge"),
    "read": lambda fixture: read(fixture("regulars")[1].world("train")),
    "retrieving": lambda fixture: RetrievingWorld(fixture("regulars")[1].world("train")),
    "audiences": lambda fixture: AudienceWorld(
        read(fixture("regulars")[1].world("judge")), Audiences(("hats", "shoes"))
    ),
    "reading and retrieving": lambda fixture: RetrievingWorld(read(fixture("regulars")[1].world("judge"))),
}


def read(world: LearnedWorld) -> ReadWorld:
    return ReadWorld(world, world.builder, world.ensemble, RewardSpec())


@pytest.fixture(params=WORLDS)
def world(request) -> World:
    return WORLDS[request.param](request.getfixturevalue)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slates(world: World, n: int, empty: float = 0.0) -> Decision[torch.Tensor]:
    """Return random slates without repeats, some of their slots empty: shape (n, K)."""
    generator = seeded(99)
    items = torch.rand(n, len(world.builder.catalog), generator=generator).argsort(1)[:, : world.size]
    slate = items.masked_fill(torch.rand(n, world.size, generator=generator) < empty, EMPTY)
    return Decision(slate, torch.zeros(n))


def arrays(value: Context | Shoppers) -> dict[str, torch.Tensor]:
    """Return every array of some shoppers, or of their contexts, by name."""
    if isinstance(value, Context):
        return vars(value)
    state = {f"state.{name}": array for name, array in value.state.items()}
    return {**vars(value.context), "member": value.member, **state}


def same(one: Context | Shoppers, other: Context | Shoppers) -> bool:
    one, other = arrays(one), arrays(other)
    return one.keys() == other.keys() and all(torch.equal(array, other[name]) for name, array in one.items())


def taken(shoppers: Shoppers, i: int) -> Shoppers:
    """Return a batch of shopper i alone."""
    state = {name: array[i : i + 1] for name, array in shoppers.state.items()}
    return Shoppers(shoppers.context.map(lambda array: array[i : i + 1]), shoppers.member[i : i + 1], state)


@pytest.mark.parametrize("n", [1, 5000])
def test_shapes_and_types(world, n):
    shoppers = world.arrive(n, seeded(0))
    n_candidates = shoppers.context.candidates.shape[1]
    assert 0 < n_candidates <= len(world.builder.catalog)
    shapes = {name: (tuple(array.shape), array.dtype) for name, array in vars(shoppers.context).items()}
    assert shapes == {
        "shopper": ((n, world.builder.shopper.width), torch.float32),
        "candidates": ((n, n_candidates), torch.int64),
        "mask": ((n, n_candidates), torch.bool),
        "affinity": ((n, n_candidates), torch.float32),
    }
    assert (shoppers.member.shape, shoppers.member.dtype) == ((n,), torch.int64)
    after, outcome = world.respond(shoppers, slates(world, n), seeded(0))
    assert outcome.clicked.shape == outcome.click_probability.shape == (n, world.size)
    assert outcome.clicked.dtype == outcome.click_probability.dtype == torch.float32
    assert (outcome.gone.shape, outcome.gone.dtype) == ((n,), torch.bool)
    assert outcome.clicked.device == shoppers.member.device == world.device
    for batch in (shoppers, after):
        assert {len(array) for array in arrays(batch).values()} == {n}
    before, now = ({k: (v.shape, v.dtype) for k, v in arrays(batch).items()} for batch in (shoppers, after))
    assert before == now


def test_same_seed_same_shoppers_and_clicks(world):
    first, again, other = (world.arrive(300, seeded(seed)) for seed in (5, 5, 6))
    assert same(first, again)
    assert not same(first, other)
    (next_one, one), (next_two, two), (_, three) = (
        world.respond(first, slates(world, 300), seeded(seed)) for seed in (7, 7, 8)
    )
    assert same(next_one, next_two)
    assert torch.equal(one.clicked, two.clicked)
    assert not torch.equal(one.clicked, three.clicked)
    assert torch.equal(one.click_probability, three.click_probability), "only the draws depend on the generator"


def test_clicks_are_zero_or_one_and_never_in_an_empty_slot(world):
    decision = slates(world, 5000, empty=0.3)
    slate = decision.slate
    _, outcome = world.respond(world.arrive(5000, seeded(0)), decision, seeded(1))
    assert set(outcome.clicked.unique().tolist()) == {0.0, 1.0}
    assert not outcome.clicked[slate == EMPTY].any()
    assert (outcome.click_probability[slate == EMPTY] == 0).all()
    shown = outcome.click_probability[slate != EMPTY]
    assert ((shown > 0) & (shown < 1)).all()


def test_clicks_come_as_often_as_their_probability_says(world):
    shoppers, decision, repeats = world.arrive(200, seeded(0)), slates(world, 200), 300
    generator = seeded(1)
    outcomes = [world.respond(shoppers, decision, generator)[1] for _ in range(repeats)]
    clicks = torch.stack([outcome.clicked for outcome in outcomes]).sum(0).double()
    probability = outcomes[0].click_probability.double()
    z = (clicks - repeats * probability) / (repeats * probability * (1 - probability)).sqrt()
    chi_square, cells = float(z.square().sum()), z.numel()
    assert abs(chi_square - cells) < 4 * (2 * cells) ** 0.5
    assert (z.mean(0).abs() < 4 / len(z) ** 0.5).all(), "at every position"


def test_a_shopper_is_answered_alone_as_in_a_crowd(world):
    crowd, decision = world.arrive(50, seeded(0)), slates(world, 50, empty=0.2)
    together = world.respond(crowd, decision, seeded(1))[1].click_probability
    for i in (0, 17, 49):
        page = Decision(decision.slate[i : i + 1], decision.log_prob[i : i + 1])
        probability = world.respond(taken(crowd, i), page, seeded(1))[1].click_probability
        torch.testing.assert_close(probability, together[i : i + 1])


def test_who_is_gone_makes_room_for_the_next(world):
    shoppers, fresh = world.arrive(100, seeded(0)), world.arrive(100, seeded(1))
    following, outcome = world.respond(shoppers, slates(world, 100), seeded(2))
    after = following.replaced(outcome.gone, fresh)
    for i in range(100):
        assert same(taken(after, i), taken(fresh if outcome.gone[i] else following, i))


@pytest.mark.usefixtures("nothing_global")
def test_nothing_global_and_nothing_given_is_changed(world):
    shoppers, decision = world.arrive(20, seeded(0)), slates(world, 20, empty=0.2)
    before, shown = copy.deepcopy(shoppers), decision.slate.clone()
    world.respond(shoppers, decision, seeded(1))
    assert same(shoppers, before)
    assert torch.equal(decision.slate, shown)


def test_replaced_takes_every_array_of_the_chosen_shoppers():
    def batch(value: int) -> Shoppers:
        full = torch.full((3, 2), value)
        return Shoppers(Context(full, full, full > 1, full), torch.full((3,), value))

    where = torch.tensor([True, False, True])
    merged = batch(1).replaced(where, batch(2))
    assert merged.member.tolist() == [2, 1, 2]
    assert merged.context.mask.tolist() == [[True] * 2, [False] * 2, [True] * 2]
    for array in (merged.context.shopper, merged.context.candidates, merged.context.affinity):
        assert array.tolist() == [[2, 2], [1, 1], [2, 2]]
    assert merged.state == {}


def test_replaced_takes_the_state_of_the_chosen_shoppers():
    def batch(value: float) -> Shoppers:
        full = torch.full((3, 2), value)
        state = {"pages": torch.full((3,), int(value)), "memory": torch.full((3, 2, 2), value), "at": full > 1}
        return Shoppers(Context(full, full, full > 1, full), torch.full((3,), int(value)), state)

    old, new, where = batch(1.0), batch(2.0), torch.tensor([False, True, False])
    merged = old.replaced(where, new).state
    assert merged["pages"].tolist() == [1, 2, 1]
    assert merged["memory"].tolist() == [[[1.0] * 2] * 2, [[2.0] * 2] * 2, [[1.0] * 2] * 2]
    assert merged["at"].tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert {name: array.dtype for name, array in merged.items()} == {
        "pages": torch.int64,
        "memory": torch.float32,
        "at": torch.bool,
    }
    assert same(old, batch(1.0))
    assert same(new, batch(2.0)), "neither batch is changed"
    assert same(old.replaced(~where, new).replaced(where, new), new)
