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
        placed: Whether the places of the batch are dealt out to the models by a rule of the world's, and all who come
            after a shopper live in the model of their place. That is how a world knows each model's own shoppers
            without a look at ``member``, for which the host would have to wait for the device.
    """

    context: Context[Tensor]
    member: Tensor
    state: dict[str, Tensor] = field(default_factory=dict)
    placed: bool = False

    def take(self, rows: Tensor) -> Shoppers:
        """Return the shoppers of those numbers, shape (m,), or those where a mask (N,) is True."""

        def taken(array: Tensor) -> Tensor:
            if rows.dtype == torch.bool:
                return array[rows]
            # One row that all share stays one.
            shared = array.stride(0) == 0
            return array[:1].expand(len(rows), *array.shape[1:]) if shared else array.index_select(0, rows)

        state = {name: taken(value) for name, value in self.state.items()}
        return Shoppers(self.context.map(taken), taken(self.member), state)

    def replaced(self, where: Tensor, fresh: Shoppers) -> Shoppers:
        """Return the batch with ``fresh`` shoppers in the places where ``where`` (N,) is True.

        Where the places are dealt out, they live in the model of their place, whichever ``fresh`` names: a world that
        deals them out keeps nothing of arriving shoppers that depends on it.
        """
        old, new = self.context, fresh.context
        context = Context(
            merged(where, old.shopper, new.shopper),
            merged(where, old.candidates, new.candidates),
            merged(where, old.mask, new.mask),
            merged(where, old.affinity, new.affinity),
        )
        state = {name: merged(where, self.state[name], fresh.state[name]) for name in self.state}
        member = self.member if self.placed else merged(where, self.member, fresh.member)
        return Shoppers(context, member, state, self.placed)


def merged(where: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return rows (N, ...) with new ones in the places where ``where`` (N,) is True."""
    return old if same(old, new) else torch.where(where.reshape(-1, *[1] * (old.ndim - 1)), new, old)


def same(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are one and the same memory, without a look into it."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.dtype == other.dtype
        and one.device == other.device
    )


class World(Protocol):
    """Shoppers arrive, see a page and answer it. Worlds hold no state of their own; whoever steps one keeps it.

    Attributes:
        builder: The shop's contexts and catalog.
        size: Slots of a page, K.
        choices: Candidates of a page, C.
        device: Where its tensors live.
        offers: Discount tiers of a page, the tier 0 (none) included; 1 where the shop makes no offers.
        lines: The bank of copy that a decision's lines are numbers in; () where the shop shows none.
        bids: What a click on an item's ad earns the shop, in currency, shape (I,) float32 on ``device``, in the
            catalog's order; 0 where the item has no ad.
    """

    builder: ContextBuilder
    size: int
    choices: int
    device: torch.device
    offers: int
    lines: tuple[str, ...]
    bids: Tensor

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
