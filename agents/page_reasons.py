"""What `hawker.policies.page_reasons` needs of a page strategy and of the reader that its contexts come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hawker.agents.page_graphs import ActorGraph
from hawker.policies.page_actor import HEADS, PageActor, PageStrategy
from hawker.policies.page_draw import LineTable, PageScores
from hawker.policies.page_reasons import ITEM, SHOPPER, PageReasons, Pages
from hawker.shop.catalog import Catalog
from hawker.shop.context import TIME, ContextBuilder
from hawker.shop.features import EFFECT_LINE, EFFECT_OFFER
from hawker.simulators.memory import CLASSES, CLOCK, COUNTS, MOODS
from hawker.simulators.reader import TOP, ReadWorld
from hawker.simulators.taste_classes import CLASSES as TASTES
from hawker.simulators.taste_classes import ClassHead, TasteClasses
from hawker.simulators.world import World

USUAL, USUAL_PAGES = 16, 16
"""Shoppers of whom a page says what is usual, and from how many of their first pages it is drawn."""

Array = npt.NDArray[Any]


def reasons_of(strategy: PageStrategy, world: World, seed: int = 0) -> PageReasons:
    """Return what explains a strategy's pages in a world like the one that it was trained in.

    Args:
        strategy: The strategy.
        world: Where it was trained; what is usual are the pages that it meets there.
        seed: Of the shoppers who say what is usual.
    """
    arrays = reason_arrays(strategy, world, usual_pages(strategy, world, seed))
    table = None
    if strategy.actor.layout.lines is not None:
        lines = ActorGraph(strategy.actor).line_table()
        table = LineTable(lines["keys"], lines["bias"], lines.get("by_tier"))
    return PageReasons(arrays, strategy.builder.catalog, table)


@torch.no_grad()
def usual_pages(strategy: PageStrategy, world: World, seed: int) -> npt.NDArray[np.float64]:
    """Return what a world tells of a shopper on pages that a strategy shows there, each another one's: (M, D)."""
    generator, kept = torch.Generator(world.device).manual_seed(seed), []
    here = world.arrive(USUAL, generator)
    for _ in range(USUAL_PAGES):
        kept.append(here.context.shopper.double())
        here, _ = world.respond(here, strategy.propose(here.context, generator), generator)
    when = torch.randperm(USUAL, generator=generator) % USUAL_PAGES
    found: npt.NDArray[np.float64] = torch.stack(kept)[when, torch.arange(USUAL)].cpu().numpy()
    return found


def compare_reasons(reasons: PageReasons, scores: PageScores, pages: Pages) -> float:
    """Return the largest difference of a score that is explained from that of the logits that decide, in log-odds.

    Args:
        reasons: Explain the pages.
        scores: What a bundle's graph makes of them.
        pages: The pages.
    """
    logits = {"slate": np.where(scores.mask, scores.slate, -np.inf), "ad": scores.ad, "slot": scores.slot}
    logits |= {"offer": scores.offer, "copy": scores.line(pages.picks.offer)}
    apart = 0.0
    for part, there in reasons.there(pages).items():
        found, values = reasons.score(pages, part), logits[part]
        chosen = pages.picks.lines if part == "copy" else getattr(pages.picks, part)
        assert values is not None
        assert chosen is not None
        place = chosen.reshape(there.shape) % values.shape[1]  # of none, the last one
        if part == "slate" and pages.picks.ad is not None:
            values = np.where(np.arange(values.shape[1]) == pages.picks.ad[:, None], -np.inf, values)
        could = np.isfinite(values)
        own = np.take_along_axis(values, place, 1)
        total = np.where(could, values, 0.0).sum(1, keepdims=True)
        expected = own - (total - own) / np.maximum(could.sum(1, keepdims=True) - 1, 1)
        apart = max(apart, float(np.abs(found - expected)[there].max(initial=0.0)))
    return apart


@torch.no_grad()
def reason_arrays(strategy: PageStrategy, world: World, usual: Array) -> dict[str, Array]:
    """Return weights, groups and what is usual, (M, D), by the names that ``PageReasons`` knows them by."""
    actor, builder = strategy.actor, strategy.builder
    found = {
        "usual": usual,
        "column_group": _column_groups(builder, world),
        "item_group": _item_groups(builder.catalog),
    }
    slate, h = actor.slate, actor.hidden
    key, bias = (_double(layer) for layer in (slate.item_key, slate.item_bias))
    weight = [key[0] * h**-0.5, bias[0], np.zeros_like(bias[0])]  # what ads have of their own is not in features
    own = [(slate.own_key.double().cpu().numpy() + key[1]) * h**-0.5, slate.own_bias.double().cpu().numpy() + bias[1]]
    n_items, bidder = len(builder.catalog), np.zeros(len(builder.catalog), bool)
    ads = np.zeros((n_items, 1))
    if actor.layout.ad:
        bidder[actor.bidders.cpu().numpy()] = True
        ads = actor.ad_bias.double().cpu().numpy()[:, None]
    own.append(ads)
    found |= {"bidder": bidder, "centre": _array(slate.shopper_centre), "spread": _array(slate.shopper_spread)}
    for i, layer in enumerate((slate.query[0], slate.query[2])):
        found[f"query.{i}.weight"], found[f"query.{i}.bias"] = _double(layer)
    for name in (*HEADS, "affinity_weight"):
        head = getattr(slate if name == "affinity_weight" else actor, name, None)
        if head is not None:
            found[f"head.{name}.weight"], found[f"head.{name}.bias"] = _double(head)
    if isinstance(world, ReadWorld):
        more, alone = _tastes(world.tastes)
        weight, own = [*weight, *more], [*own, *alone]
        found |= _worth(world, builder)
    else:
        found |= _told_effects(actor)
    return found | {"item.weight": np.concatenate(weight), "item.own": np.concatenate(own, 1)}


def _column_groups(builder: ContextBuilder, world: World) -> npt.NDArray[np.int64]:
    """Return which of ``SHOPPER`` each column of contexts is in, -1 where it is computed anew, shape (D,)."""
    schema = builder.shopper
    found = np.full(schema.width, SHOPPER.index("shopper"))
    numeric = schema.numeric
    for name in TIME:
        if name in numeric:
            found[numeric.index(name)] = SHOPPER.index("visits")
    if isinstance(world, ReadWorld):
        start, seen = world._numbers, world.tastes.width - TASTES
        widths = (world._told + CLASSES + MOODS, COUNTS + CLOCK, TASTES, seen)
        for group, width in zip(("history", "visits", "history", "seen"), widths, strict=True):
            found[start : start + width] = SHOPPER.index(group)
            start += width
    for i, name in enumerate(numeric):
        if name.startswith((EFFECT_OFFER, EFFECT_LINE)):
            found[i] = -1 if isinstance(world, ReadWorld) else SHOPPER.index("effects")
    return found


def _item_groups(catalog: Catalog) -> npt.NDArray[np.int64]:
    """Return which of ``ITEM`` each entry of an item's vector is in, shape (d,)."""
    features = catalog.features
    names = [*features.numeric, *(name for name, known in features.categories.items() for _ in known)]
    found = [name if name in ("category", "price") else "features" for name in names]
    found += ["text"] * (0 if catalog.text is None else catalog.text.width) + ["picture"] * catalog.image_width
    return np.array([ITEM.index(name) for name in found], np.int64)


def _tastes(tastes: TasteClasses) -> tuple[list[Array], list[Array]]:
    """Return how the log-odds of each class come from items' features, and what is each item's own.

    As ``TasteClasses.utilities`` has them: what is clicked is bought.
    """

    def parts(head: ClassHead) -> tuple[Array, Array]:
        weight = head.item.weight + head.item_class.weight
        return _array(weight), _array(head.level + head.own)

    weights, own = parts(tastes.click)
    found = [weights], [own + float(tastes.click.base)]
    if tastes.purchase is not None:
        match, (sold, alone) = float(tastes.match), parts(tastes.purchase)
        found[0].append(sold + match * weights)
        found[1].append(alone + float(tastes.purchase.base) + match * own)
    return found


def _worth(world: ReadWorld, builder: ContextBuilder) -> dict[str, Array]:
    """Return what else says what items, offers and lines are worth."""
    catalog, tastes = builder.catalog, world.tastes
    blocks = [name if name == "category" else "features" for name in catalog.features.categories]
    numbers, known = world._numbers, len(world.model.shopper_centre)
    columns = np.r_[0:numbers, builder.shopper.width - (known - numbers) : builder.shopper.width]
    heads = [tastes.click] if tastes.purchase is None else [tastes.click, tastes.purchase]
    level, constant = np.zeros((len(heads), builder.shopper.width)), np.zeros(len(heads))
    for i, head in enumerate(heads):
        weight = _array(head.shopper.weight)[0] / _array(world.model.shopper_spread)
        level[i, columns], constant[i] = weight, -float(weight @ _array(world.model.shopper_centre))
    tables = [table for table in tastes.utilities() if table is not None]
    return {
        "believed": np.array([world._believed, TASTES, tastes.values]),
        "kinds": tastes.kinds.cpu().numpy(),
        "kind_group": np.array([ITEM.index(name) for name in blocks], np.int64),
        "kinds_seen": _array(tastes.kinds_seen),
        "level.weight": level,
        "level.bias": constant,
        "match": _array(tastes.match)[None],
        "reward": np.array([world._reward.click, world._reward.conversion]),
        "top": np.array([TOP]),
        "effect_offer": np.stack([_array(table.offer) for table in tables]),
        "effect_line": np.stack([_array(table.line[:-1]) for table in tables]),
        **({"searches": np.ones(1)} if world._searches else {}),
    }


def _told_effects(actor: PageActor) -> dict[str, Array]:
    """Return where contexts tell of offers and lines: first column and how many."""
    columns = {"effect_offer": actor._offer_effects, "effect_line": actor._line_effects}
    return {name: np.array([part.start, part.stop - part.start]) for name, part in columns.items() if part is not None}


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().double().cpu().numpy()
    return found


def _double(layer: nn.Module) -> tuple[Array, Array]:
    """Return weight and bias of a linear layer in double precision."""
    assert isinstance(layer, nn.Linear)
    return _array(layer.weight), _array(layer.bias)
