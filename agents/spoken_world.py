"""A world in which the copy bank says what stands with every item, so that pages are learned with its lines on them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hawker.policies.strategist import BankTable, audience_of
from hawker.shop.decision import Decision, Outcome
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.support import Support
from hawker.simulators.world import Shoppers

SPOKEN_TO = "spoken.audience"
"""In the state: the last column of the inner world's contexts, shape (N,)."""


class SpokenWorld:
    """A world that says the bank's lines; see `hawker.simulators.world.World`.

    Decisions leave copy out; each slot's line is drawn from the bank for the shopper's audience and the page's offer,
    as `hawker.policies.strategist.Strategist` does it. Contexts are those of the world without audiences: what is
    trained here sees what a page strategy sees everywhere, and its actor fits there. Where doubts are told, they are
    of what the decision holds: that no log has shown the bank's lines is not the page's doing.

    Attributes:
        world: What answers, and tells audiences.
        table: What is said.
        support: What the log shows how often.
    """

    def __init__(self, world: AudienceWorld, table: BankTable, support: Support) -> None:
        self.world, self.table, self.support, self.builder = world, table, support, world.world.builder
        self.size, self.choices, self.device = world.size, world.choices, world.device
        self.offers, self.bids = world.offers, world.bids
        self.lines: tuple[str, ...] = ()

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers."""
        return _hidden(self.world.arrive(n, generator))

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper, with lines from the bank."""
        state = dict(shoppers.state)
        audience = state.pop(SPOKEN_TO)
        shopper = torch.cat([shoppers.context.shopper, audience[:, None]], 1)
        lines, _ = self.table.choose(decision.slate, audience.long(), decision.offer, generator)
        told = replace(shoppers, context=replace(shoppers.context, shopper=shopper), state=state)
        after, outcome = self.world.respond(told, replace(decision, copy=lines), generator)
        if outcome.unsupported is not None:
            outcome = replace(outcome, unsupported=self.support.missing(decision))
        return _hidden(after), outcome


def _hidden(here: Shoppers) -> Shoppers:
    """Return shoppers whose audience stands in the state instead of the contexts."""
    context, _ = audience_of(here.context)
    return replace(here, context=context, state=here.state | {SPOKEN_TO: here.context.shopper[:, -1]})
