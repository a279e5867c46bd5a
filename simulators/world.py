"""What a world is: anything that answers decisions with outcomes, for a batch of shoppers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import Decision, Outcome


@dataclass(frozen=True)
class Shoppers:
    """A batch of N simulated shoppers at their current page, as tensors on the world's device.

    Attributes:
        context: What a strategy may see of them.
        member: Which of the world's behaviour models each shopper lives in, shape (N,).
        state: What only the world knows of them, by name, each (N, ...); strategies must not look.
    """

    context: Context[Tensor]
    member: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> Shoppers:
        """Return the shoppers of those numbers, shape (m,), or those where a mask (N,) is True."""
        state = {name: value[rows] for name, value in self.state.items()}
        return Shoppers(self.context.map(lambda array: array[rows]), self.member[rows], state)

    def replaced(self, where: Tensor, fresh: Shoppers) -> Shoppers:
        """Return the batch with ``fresh`` shoppers in the places where ``where`` (N,) is True."""

        def merge(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        old, new = self.context, fresh.context
        context = Context(
            merge(old.shopper, new.shopper),
            merge(old.candidates, new.candidates),
            merge(old.mask, new.mask),
            merge(old.affinity, new.affinity),
        )
        state = {name: merge(self.state[name], fresh.state[name]) for name in self.state}
        return Shoppers(context, merge(self.member, fresh.member), state)


class World(Protocol):
    """Shoppers arrive, see a page and answer it. Worlds hold no state of their own; whoever steps one keeps it.

    Attributes:
        builder: The shop's contexts and catalog.
        size: Slots of a page, K.
        choices: Candidates of a page, C.
        device: Where its tensors live.
    """

    builder: ContextBuilder
    size: int
    choices: int
    device: torch.device

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers at the first page of their visit."""
        ...

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper.

        Returns:
            The shoppers at their next page, of this visit or of their next one, and what came of this page. A shopper
            whose outcome says ``gone`` is to be replaced by a new arrival.
        """
        ...
