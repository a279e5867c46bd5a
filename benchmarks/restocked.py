"""The gold world with other items among its candidates, and what strategies' pages are worth there, page by page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hawker.shop.decision import Decision, Outcome
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.diary import Proposer
from hawker.simulators.world import Shoppers, World


class Restocked:
    """A bazaar in which every visit has so many candidates of each group of items; see `World`.

    They are drawn without replacement, evenly from a group, whether the log knows them or not. Nothing else differs.
    """

    def __init__(self, world: BazaarWorld, groups: Sequence[tuple[Tensor, int]]) -> None:
        """Restock a shop.

        Args:
            world: The shop.
            groups: Catalog indices of the items of each group, (m,), and how many of them are candidates of a visit.

        Raises:
            ValueError: A group has too few items, or there are not as many candidates as before.
        """
        if sum(count for _, count in groups) != world.choices or any(len(items) < count for items, count in groups):
            raise ValueError("a visit needs as many candidates as before")
        self.world, self.groups = world, groups
        self.builder, self.size, self.choices, self.device = world.builder, world.size, world.choices, world.device
        self.offers, self.lines, self.bids = world.offers, world.lines, world.bids

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers at the first page of their first visit."""
        here = self.world.arrive(n, generator)
        return replace(here, context=replace(here.context, candidates=self._candidates(n, generator)))

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper; who begins a visit gets new candidates."""
        after, outcome = self.world.respond(shoppers, decision, generator)
        assert outcome.leave is not None
        begins = outcome.leave.nonzero().squeeze(1)
        fresh = self._candidates(len(begins), generator)
        candidates = after.context.candidates.index_copy(0, begins, fresh)
        return replace(after, context=replace(after.context, candidates=candidates)), outcome

    def _candidates(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw candidates for n visits, (n, C), in an order that tells nothing of their groups."""
        drawn = []
        for items, count in self.groups:
            keys = torch.rand(n, len(items), generator=generator, device=self.device)
            drawn.append(items[keys.topk(count, 1, sorted=False).indices])
        mixed = torch.rand(n, self.choices, generator=generator, device=self.device).argsort(1)
        return torch.cat(drawn, 1).gather(1, mixed)


@torch.no_grad()
def page_worth(
    world: World,
    serving: Proposer,
    asked: Mapping[str, Proposer],
    reward: RewardSpec,
    shoppers: int,
    pages: int,
    seed: int,
) -> dict[str, float]:
    """Return the mean reward at once of pages that strategies would show, where another one serves.

    All are asked about the same pages, those of shoppers with a history in which none of them had a hand; whose turn it
    is to be asked changes nothing of what happens. Rewards are expected ones: nothing is drawn of them.

    Args:
        world: Where; contexts are as the strategies see them.
        serving: What is shown.
        asked: Strategies, by name.
        reward: Its weights of clicks and purchases count.
        shoppers: How many come.
        pages: How many pages of each are asked about, at most.
        seed: Decides everything that is drawn.
    """
    generator, aside = (torch.Generator(world.device).manual_seed(seed + i) for i in range(2))
    here, seen = world.arrive(shoppers, generator), 0
    total = dict.fromkeys(asked, 0.0)
    for _ in range(pages):
        for name, strategy in asked.items():
            _, outcome = world.respond(here, strategy.propose(here.context, aside), aside)
            total[name] += float(_worth(outcome, reward).sum())
        seen += len(here.member)
        here, outcome = world.respond(here, serving.propose(here.context, generator), generator)
        here = here.take(~outcome.gone)
        if not len(here.member):
            break
    return {name: value / seen for name, value in total.items()}


def _worth(outcome: Outcome[Tensor], reward: RewardSpec) -> Tensor:
    """Return what pages are expected to be worth at once, shape (N,)."""
    click, purchase = outcome.click_probability, outcome.conversion_probability
    worth = reward.click * click
    return (worth if purchase is None else worth + reward.conversion * click * purchase).sum(1)
