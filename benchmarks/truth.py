"""The gold world `bazaar` with nothing hidden: what a strategy could do that knew its shoppers."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.features import EFFECT_LINE, EFFECT_OFFER, FeatureSchema
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld, State
from hawker.simulators.world import Shoppers

FEATURES = "truth.shopper"
"""Where the world's own features wait, in the shoppers' state, for its next page."""


class TruthWorld:
    """The gold world with contexts that tell its hidden state; for strategies that nobody could train on logs.

    ``shopper`` holds the world's features and its state (columns ``truth.*``); ``affinity`` the logarithm of what each
    candidate is worth at once at the best position, by a reward's weights of clicks and purchases. Columns ``effect.*``
    say by what factor each offer and each line change the worth of the best candidate, as logarithms.
    """

    def __init__(self, world: BazaarWorld, reward: RewardSpec, lines: tuple[str, ...]) -> None:
        """Args: the ``world``, whose ``reward`` tells a candidate's worth, and which of its ``lines`` may be shown."""
        self.world, self.size, self.choices, self.device = world, world.size, world.choices, world.device
        self.offers, self.lines, self.bids = world.offers, lines, world.bids
        self._line = torch.tensor([*(world.lines.index(text) for text in lines), EMPTY], device=world.device)
        self._reward, schema = reward, world.builder.shopper
        p = world.parameters
        self._widths = (len(p.segments), len(p.visit_classes), len(p.categories))
        names = tuple(f"truth.{i}" for i in range(sum(self._widths) + 3))
        names += tuple(f"{EFFECT_OFFER}{i}" for i in range(world.offers))
        names += tuple(f"{EFFECT_LINE}{i}" for i in range(len(lines)))
        none, one = (0.0,) * len(names), (1.0,) * len(names)
        self._numbers = len(schema.numeric)
        told = FeatureSchema(schema.numeric + names, schema.mean + none, schema.scale + one, schema.categories)
        self.builder = ContextBuilder(told, world.builder.catalog)

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers, of whom everything is known."""
        return self._told(self.world.arrive(n, generator))

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper."""
        state = {name: value for name, value in shoppers.state.items() if name != FEATURES}
        context = replace(
            shoppers.context,
            shopper=shoppers.state[FEATURES],
            affinity=torch.zeros_like(shoppers.context.affinity),
        )
        said = decision
        if decision.copy is not None:
            said = replace(decision, copy=self._line[decision.copy])  # that of -1 is the last one
        after, outcome = self.world.respond(Shoppers(context, shoppers.member, state), said, generator)
        return self._told(after), outcome

    def _told(self, here: Shoppers) -> Shoppers:
        state, context = here.state, here.context
        segments, classes, _ = self._widths
        page, worth = state["page"].float()[:, None], self._worth(state, context.candidates)
        truth = torch.cat(
            [
                nn.functional.one_hot(state["segment"], segments).float(),
                nn.functional.one_hot(state["visit_class"], classes).float(),
                state["fatigue"],
                state["satisfaction"][:, None],
                page.log1p(),
                (page == 0).float(),
                self._effects(state, context.candidates.gather(1, worth.argmax(1, keepdim=True))),
            ],
            1,
        )
        features = context.shopper
        shopper = torch.cat([features[:, : self._numbers], truth, features[:, self._numbers :]], 1)
        told = replace(context, shopper=shopper, affinity=worth)
        return Shoppers(told, here.member, state | {FEATURES: features})

    def _effects(self, state: State, item: Tensor) -> Tensor:
        """Return by what factor each offer and each line change what items (N, 1) are worth at once: (N, T + L)."""
        n, count = len(item), self.offers + len(self.lines)
        offer, copy = (
            torch.zeros(count, dtype=torch.long, device=self.device),
            torch.full((count,), EMPTY, device=self.device),
        )
        offer[: self.offers], copy[self.offers :] = torch.arange(self.offers), self._line[:-1]
        each = self._worth(state, item.expand(n, count), offer.expand(n, count), copy.expand(n, count))
        return each - each[:, :1]  # tier 0 without a line is the plain page

    def _worth(self, state: State, items: Tensor, offer: Tensor | None = None, copy: Tensor | None = None) -> Tensor:
        """Return the logarithm of what each item (N, C) is worth at once, with its offer and line, shape (N, C)."""
        # Every item as a page of its own: what is above an item does not count here.
        n, count = items.shape
        alone = {name: value.repeat_interleave(count, 0) for name, value in state.items()}
        pages = Decision(
            items.reshape(-1, 1),
            torch.zeros(n * count, device=self.device),
            offer=None if offer is None else offer.reshape(-1),
            copy=None if copy is None else copy.reshape(-1, 1),
        )
        value = self.world.attraction(alone, pages).reshape(n, count)
        bought = self.world.conversion_probabilities(alone, pages).reshape(n, count)
        worth = value * (self._reward.click + self._reward.conversion * bought)
        return worth.clamp(min=math.exp(-14)).log()
