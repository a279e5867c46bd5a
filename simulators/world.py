"""What a world is: anything that answers decisions with outcomes, for a batch of shoppers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import Outcome


@dataclass(frozen=True)
class Shoppers:
    """A batch of N simulated shoppers at their current page, as tensors on the world's device.

    Attributes:
        context: What a strategy may see of them.
        member: Which of the world's behaviour models each shopper lives in, shape (N,).
    """

    context: Context[Tensor]
    member: Tensor

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
        return Shoppers(context, merge(self.member, fresh.member))


class World(Protocol):
    """Shoppers arrive, see a page and answer it. Worlds hold no state of their own; whoever steps one keeps it.

    Attributes:
        builder: The shop's contexts and catalog.
        size: Slots of a page, K.
        device: Where its tensors live.
    """

    builder: ContextBuilder
    size: int
    device: torch.device

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers at the first page of their visit."""
        ...

    def respond(self, shoppers: Shoppers, slate: Tensor, generator: torch.Generator) -> Outcome[Tensor]:
        """Answer one slate per shopper: catalog indices of shape (N, K), ``EMPTY`` where nothing is shown.

        A shopper whose outcome says ``gone`` is to be replaced by a new arrival.
        """
        ...
