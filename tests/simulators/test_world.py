"""What every world promises. A new world joins by a line in ``WORLDS``."""

import pytest
import torch

from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers, World

WORLDS = {
    "planted": lambda shoppers: small_world(),
    "learned": lambda shoppers: shoppers.world("train"),
    "judge": lambda shoppers: shoppers.world("judge"),
}


@pytest.fixture(params=WORLDS)
def world(request, shoppers) -> World:
    return WORLDS[request.param](shoppers)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slates(world: World, n: int, empty: float = 0.0) -> torch.Tensor:
    """Return random slates without repeats, some of their slots empty: shape (n, K)."""
    generator = seeded(99)
    items = torch.rand(n, len(world.builder.catalog), generator=generator).argsort(1)[:, : world.size]
    return items.masked_fill(torch.rand(n, world.size, generator=generator) < empty, EMPTY)


def same(one: Context | Shoppers, other: Context | Shoppers) -> bool:
    return all(
        same(a, b) if isinstance(a, Context) else torch.equal(a, b)
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("n", [1, 5000])
def test_shapes_and_types(world, n):
    shoppers = world.arrive(n, seeded(0))
    n_items = len(world.builder.catalog)
    shapes = {name: (tuple(array.shape), array.dtype) for name, array in vars(shoppers.context).items()}
    assert shapes == {
        "shopper": ((n, world.builder.shopper.width), torch.float32),
        "candidates": ((n, n_items), torch.int64),
        "mask": ((n, n_items), torch.bool),
        "affinity": ((n, n_items), torch.float32),
    }
    assert (shoppers.member.shape, shoppers.member.dtype) == ((n,), torch.int64)
    outcome = world.respond(shoppers, slates(world, n), seeded(0))
    assert outcome.clicked.shape == outcome.click_probability.shape == (n, world.size)
    assert outcome.clicked.dtype == outcome.click_probability.dtype == torch.float32
    assert (outcome.gone.shape, outcome.gone.dtype) == ((n,), torch.bool)
    assert outcome.clicked.device == shoppers.member.device == world.device


def test_same_seed_same_shoppers_and_clicks(world):
    first, again, other = (world.arrive(300, seeded(seed)) for seed in (5, 5, 6))
    assert same(first, again)
    assert not same(first, other)
    one, two, three = (world.respond(first, slates(world, 300), seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(one.clicked, two.clicked)
    assert not torch.equal(one.clicked, three.clicked)
    assert torch.equal(one.click_probability, three.click_probability), "only the draws depend on the generator"


def test_clicks_are_zero_or_one_and_never_in_an_empty_slot(world):
    slate = slates(world, 5000, empty=0.3)
    outcome = world.respond(world.arrive(5000, seeded(0)), slate, seeded(1))
    assert set(outcome.clicked.unique().tolist()) == {0.0, 1.0}
    assert not outcome.clicked[slate == EMPTY].any()
    assert (outcome.click_probability[slate == EMPTY] == 0).all()
    shown = outcome.click_probability[slate != EMPTY]
    assert ((shown > 0) & (shown < 1)).all()


def test_clicks_come_as_often_as_their_probability_says(world):
    shoppers, slate, repeats = world.arrive(200, seeded(0)), slates(world, 200), 500
    generator = seeded(1)
    outcomes = [world.respond(shoppers, slate, generator) for _ in range(repeats)]
    clicks = torch.stack([outcome.clicked for outcome in outcomes]).sum(0).double()
    probability = outcomes[0].click_probability.double()
    z = (clicks - repeats * probability) / (repeats * probability * (1 - probability)).sqrt()
    chi_square, cells = float(z.square().sum()), z.numel()
    assert abs(chi_square - cells) < 4 * (2 * cells) ** 0.5
    assert (z.mean(0).abs() < 4 / len(z) ** 0.5).all(), "at every position"


def test_a_shopper_is_answered_alone_as_in_a_crowd(world):
    crowd, slate = world.arrive(50, seeded(0)), slates(world, 50, empty=0.2)
    together = world.respond(crowd, slate, seeded(1)).click_probability
    for i in (0, 17, 49):
        alone = Shoppers(crowd.context.map(lambda array, i=i: array[i : i + 1]), crowd.member[i : i + 1])
        probability = world.respond(alone, slate[i : i + 1], seeded(1)).click_probability
        torch.testing.assert_close(probability, together[i : i + 1])


def test_who_is_gone_makes_room_for_the_next(world):
    shoppers, fresh = world.arrive(100, seeded(0)), world.arrive(100, seeded(1))
    gone = world.respond(shoppers, slates(world, 100), seeded(2)).gone
    after = shoppers.replaced(gone, fresh)
    for i in range(100):
        assert torch.equal(after.context.shopper[i], (fresh if gone[i] else shoppers).context.shopper[i])


@pytest.mark.usefixtures("nothing_global")
def test_nothing_global_and_nothing_given_is_changed(world):
    shoppers, slate = world.arrive(20, seeded(0)), slates(world, 20, empty=0.2)
    context, shown = shoppers.context.map(torch.clone), slate.clone()
    world.respond(shoppers, slate, seeded(1))
    assert same(shoppers.context, context)
    assert torch.equal(slate, shown)


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
