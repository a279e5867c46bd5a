"""Other candidates in the gold world, and what pages are worth there, against the world's own formulas."""

import pytest
import torch

from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.fidelity_cohort import LOGGED
from hawker.benchmarks.restocked import Restocked, page_worth
from hawker.policies.shopkeeper import Shopkeeper
from hawker.shop.decision import Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld

ODD, EVEN = torch.arange(1, 101, 2), torch.arange(200, 260, 2)
REWARD = RewardSpec(click=2.0, conversion=5.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shop(bazaar: BazaarWorld) -> Restocked:
    return Restocked(bazaar, [(ODD, bazaar.choices - 20), (EVEN, 20)])


@pytest.fixture(scope="module")
def keeper(bazaar: BazaarWorld) -> Shopkeeper:
    return logging_strategy(bazaar, LOGGED)


def test_every_visit_has_so_many_of_each_group(shop: Restocked, keeper: Shopkeeper):
    generator = seeded(1)
    here, changed = shop.arrive(60, generator), 0
    for _ in range(6):
        candidates = here.context.candidates
        assert (torch.isin(candidates, EVEN).sum(1) == 20).all()
        assert (torch.isin(candidates, ODD).sum(1) == shop.choices - 20).all()
        assert all(len(row.unique()) == shop.choices for row in candidates)
        here, outcome = shop.respond(here, keeper.propose(here.context, generator), generator)
        assert outcome.leave is not None
        same = (here.context.candidates == candidates).all(1)
        assert torch.equal(same, ~outcome.leave), "a visit keeps its candidates, and the next one has others"
        changed += int((~same).sum())
    assert changed > 30
    first = shop.arrive(60, seeded(1)).context.candidates[:, :5]
    assert 0 < torch.isin(first, EVEN).float().mean() < 1, "places do not tell groups apart"


def test_all_else_is_the_bazaars(bazaar: BazaarWorld, shop: Restocked, keeper: Shopkeeper):
    here = shop.arrive(40, seeded(2))
    decision = keeper.propose(here.context, seeded(3))
    after, outcome = shop.respond(here, decision, seeded(4))
    plain, expected = bazaar.respond(here, decision, seeded(4))
    assert torch.equal(outcome.clicked, expected.clicked)
    assert all(torch.equal(after.state[name], plain.state[name]) for name in plain.state)


@pytest.mark.parametrize("counts", [(1, 1), (20, 40)])
def test_as_many_candidates_as_before(bazaar: BazaarWorld, counts: tuple[int, int]):
    with pytest.raises(ValueError, match="as many candidates"):
        Restocked(bazaar, list(zip((ODD, EVEN), counts, strict=True)))
    with pytest.raises(ValueError, match="as many candidates"):
        Restocked(bazaar, [(torch.arange(5), 10), (EVEN, bazaar.choices - 10)])


class Firsts:
    """Shows the first or the last candidates and nothing else."""

    name = "firsts"

    def __init__(self, last: bool) -> None:
        self.last = last

    def propose(self, context, generator) -> Decision[torch.Tensor]:
        torch.rand(7, generator=generator)
        slate = context.candidates.flip(1)[:, :8] if self.last else context.candidates[:, :8]
        return Decision(slate, torch.zeros(len(slate)))


def test_page_worth_by_the_worlds_formulas(bazaar: BazaarWorld, shop: Restocked, keeper: Shopkeeper):
    generator, worth, seen = seeded(5), {False: 0.0, True: 0.0}, 0
    here = shop.arrive(30, generator)
    for _ in range(4):
        for last in worth:
            decision = Firsts(last).propose(here.context, seeded(0))
            click = bazaar.click_probabilities(here.state, decision)
            bought = click * bazaar.conversion_probabilities(here.state, decision)
            worth[last] += float((2 * click + 5 * bought).sum())
        seen += len(here.member)
        here, outcome = shop.respond(here, keeper.propose(here.context, generator), generator)
        here = here.take(~outcome.gone)
    found = page_worth(shop, keeper, {"a": Firsts(False), "b": Firsts(True)}, REWARD, 30, 4, 5)
    assert found == pytest.approx({"a": worth[False] / seen, "b": worth[True] / seen}, rel=1e-5)
    alone = page_worth(shop, keeper, {"b": Firsts(True)}, REWARD, 30, 4, 5)
    assert alone["b"] == found["b"], "who else is asked changes nothing"
