"""A shopper's page as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hawker.envs.storefront import Storefront
from hawker.shop.decision import EMPTY


def describe(storefront: Storefront, i: int, titles: Sequence[str] = ()) -> str:
    """Return what place ``i`` of a batch has to show: the shopper and the candidates, and the page answered last.

    Args:
        storefront: The batch, after a reset.
        i: Which shopper; where an episode has just ended, the page answered is that of who was there before.
        titles: What to call the items, in the catalog's order; by default their ids.
    """
    builder, context = storefront.world.builder, storefront.shoppers.context.map(lambda array: array[i].cpu().numpy())
    names = [*builder.shopper.numeric]
    names += [f"{column}={value}" for column, values in builder.shopper.categories.items() for value in values]
    shopper = ", ".join(f"{name} {value:.3g}" for name, value in zip(names, context.shopper, strict=True) if value)
    liked = [builder.catalog.item_ids[item] for item in context.candidates[context.affinity > 0]]
    return "\n".join(
        (
            f"shopper: {shopper}",
            f"candidates: {int(context.mask.sum())} of {len(builder.catalog)} items",
            f"affinity with: {', '.join(liked) or 'none'}",
            *_answered(storefront, i, titles or builder.catalog.item_ids),
        )
    )


def _answered(storefront: Storefront, i: int, titles: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the page that was answered last: offer, items with ad and copy, what came of them."""
    if storefront.shown is None:
        return
    _, decision, outcome = storefront.shown
    offer = 0 if decision.offer is None else int(decision.offer[i])
    ad = EMPTY if decision.ad is None else int(decision.ad[i])
    yield f"page answered, offer {offer}:" if offer else "page answered:"
    for k, item in enumerate(decision.slate[i].tolist()):
        if item == EMPTY:
            yield f"  {k}. (empty)"
            continue
        line = EMPTY if decision.copy is None else int(decision.copy[i, k])
        text = f"  {k}. {titles[item]}" + (" [ad]" if k == ad else "")
        if line != EMPTY:
            text += f': "{storefront.world.lines[line]}"'
        if outcome.clicked[i, k] > 0:
            bought = outcome.converted is not None and bool(outcome.converted[i, k] > 0)
            text += " <- clicked, bought" if bought else " <- clicked"
        yield text
    if bool(outcome.gone[i]):
        yield "gone for good"
    elif outcome.leave is not None and outcome.days is not None and bool(outcome.leave[i]):
        yield f"left, and came back after {float(outcome.days[i]):g} days"
