"""A world whose contexts also tell what a learned memory makes of each shopper's history.

Strategies see pages, not histories. What a shop has observed of a shopper (pages shown, clicks, purchases, days between
visits) is read here by the memory of one learned shopper model and by latent classes of taste, the same way in learned
and in gold worlds; nothing hidden is looked at.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.features import EFFECT_LINE, EFFECT_OFFER, FeatureSchema
from hawker.shop.reward import RewardSpec
from hawker.simulators.frozen import FrozenModel
from hawker.simulators.frozen_memory import Before, shares_of
from hawker.simulators.frozen_pages import Came, Carried
from hawker.simulators.learned import NEVER
from hawker.simulators.memory import CLASSES, CLOCK, COUNTS, MOOD_SCALE, MOODS, TOLD, Memory
from hawker.simulators.pages import affinity_of
from hawker.simulators.shopper import Ensemble, ShopperModel
from hawker.simulators.taste_classes import CLASSES as TASTES
from hawker.simulators.taste_classes import Utilities, rows_of
from hawker.simulators.world import Shoppers, World

TOP = 10
"""Effects are those of an item of average log-odds among so many candidates, the likeliest to be clicked."""

OWN = "reader."
"""What begins the names of the reader's part of the shoppers' state."""


class ReadWorld:
    """A world seen through a reader; see `hawker.simulators.world.World`.

    Contexts are those of the reader's shop: ``shopper`` holds the features that the logs know, and what the
    reader's memory says (columns ``history.*``); ``affinity`` the logarithm of what each candidate is expected to be
    worth at once, at a page's best position, by the weights of a reward for clicks and purchases; in a shop with a
    search box, with the match of the visit's query, which the world's own affinity is. Columns ``effect.*``
    of ``shopper`` say by what factor each offer tier and each line change that, as logarithms; of lines that the
    ensemble understands beside those of its log there are none. What things are worth is said by the ensemble's classes
    of taste.
    """

    def __init__(
        self,
        world: World,
        builder: ContextBuilder,
        ensemble: Ensemble,
        reward: RewardSpec,
        lines: tuple[str, ...] | None = None,
    ) -> None:
        """Put a reader in front of a world.

        Args:
            world: What answers.
            builder: The contexts that the ensemble was fitted with; its items are those of the world, in their order.
            ensemble: Fitted shoppers; the first member reads.
            reward: Its weights of clicks and purchases enter the affinities.
            lines: The bank of lines that the ensemble knows, in its order, where it is not the world's own.

        Raises:
            ValueError: The model has no memory, the shops sell different items, or the world lacks a line.
        """
        model = ensemble.models[0]
        if model.memory is None or ensemble.tastes is None:
            raise ValueError("shoppers without a history have no memory to read with")
        if builder.catalog.item_ids != world.builder.catalog.item_ids:
            raise ValueError("the reader's shop does not sell the world's items")
        self.world, self.size, self.choices, self.device = world, world.size, world.choices, world.device
        self.offers, self.bids = world.offers, world.bids
        self.lines = world.lines if lines is None else lines
        number = {text: i for i, text in enumerate(world.lines)}
        if not set(self.lines) <= set(number):
            raise ValueError("the reader's bank holds a line that the world does not know")
        self._line = torch.tensor([*(number[text] for text in self.lines), EMPTY], device=world.device)
        self.model, self._frozen = model.requires_grad_(False).eval(), FrozenModel(model)
        assert self._frozen.memory is not None
        self._memory = self._frozen.memory
        self._likes_affinity = any(bool(head.affinity_effect != 0) for head in model.heads)
        self._reward, self._searches = reward, builder.search is not None
        self._numbers, self._told = len(builder.shopper.numeric), TOLD + model.memory.wishes
        self.tastes = ensemble.tastes.requires_grad_(False).eval()
        self._tables, effects = self.tastes.utilities(), _effect_names(model)
        self._believed = self._numbers + self._told + CLASSES + MOODS + COUNTS + CLOCK
        self._history = self._believed - self._numbers + self.tastes.width + len(effects)
        schema = _with_history(builder.shopper, self._told, model.memory, self.tastes.width, effects)
        self.builder = ContextBuilder(schema, builder.catalog)
        self._columns, self._known = (
            torch.from_numpy(part).to(world.device) for part in _columns(world.builder.shopper, builder.shopper)
        )
        self._rest = torch.from_numpy(np.array(builder.shopper.centre)).to(world.device) * ~self._known

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers, of whom nothing is known but their features."""
        here = self.world.arrive(n, generator)
        zero = torch.zeros(n, device=self.device)
        # A memory that has seen nothing begins with what features say.
        memory, counts = (torch.zeros(n, width, device=self.device) for width in (self._memory.hidden, COUNTS))
        own = {"memory": memory, "counts": counts, "gap": zero, "number": zero.clone()}
        own["tastes"] = self.tastes.begin(self._frozen.scaled(self._features(here.context)))
        return self._seen(here, own)

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper, and read what came of it."""
        own = {name.removeprefix(OWN): value for name, value in shoppers.state.items() if name.startswith(OWN)}
        inner = {name: value for name, value in shoppers.state.items() if not name.startswith(OWN)}
        context = replace(shoppers.context, shopper=own.pop("shopper"), affinity=own.pop("affinity"))
        said = decision
        if decision.copy is not None:
            said = replace(decision, copy=self._line[decision.copy])  # that of -1 is the last one
        after, outcome = self.world.respond(replace(shoppers, context=context, state=inner), said, generator)
        features = self._features(context)
        affinity = affinity_of(context, decision.slate) if self._likes_affinity else None
        page = self._frozen.page(features, decision, affinity, around=False)
        odds = self.tastes.page_odds(self._tables, page.scaled, decision)
        expected = self.tastes.expected(self.tastes.beliefs(own["tastes"])[:, None], *odds)
        # Clicks count for the member's head of clicks, and for that of clicks of anybody with these features.
        page = replace(page, believed=torch.cat([expected[:, :, :1], expected], 2))
        carried = _carried(own)
        told, wishes = own["told"].split([TOLD, self._told - TOLD], 1)
        read = self._frozen.reading(page, Before(own["memory"], told, wishes, carried))
        clicked = outcome.clicked.to(told.dtype)
        converted = torch.zeros_like(clicked) if outcome.converted is None else outcome.converted.to(told.dtype)
        came = Came.read(page, carried, clicked, converted, outcome.revenue, self.model.recorded.offers)
        leave = torch.zeros_like(outcome.gone) if outcome.leave is None else outcome.leave
        days = torch.zeros_like(own["gap"]) if outcome.days is None else outcome.days.clamp(max=NEVER).to(torch.float32)
        number = torch.where(leave, 0.0, own["number"] + 1.0)
        kept = {"memory": self._memory.remembered(read, came), "counts": came.counts, "gap": days, "number": number}
        kept["tastes"] = self.tastes.after(own["tastes"], odds, decision.slate, clicked, outcome.converted, leave)
        return self._seen(after, kept), outcome

    def _features(self, context: Context[Tensor]) -> Tensor:
        """Return the shoppers' features as the logs have them, shape (N, D)."""
        return torch.where(self._known, context.shopper[:, self._columns], self._rest)

    def _seen(self, here: Shoppers, own: dict[str, Tensor]) -> Shoppers:
        """Return the world's shoppers with contexts that tell what was read."""
        context, carried = here.context, _carried(own)
        features, clock = self._features(context), carried.clock
        scaled = self._frozen.scaled(features)
        before = self._memory.before(scaled, carried)
        told = torch.cat([before.told, before.wishes], 1)
        classes, moods = before.memory[:, -CLASSES - MOODS :].split([CLASSES, MOODS], 1)
        readable = torch.cat([shares_of(classes), MOOD_SCALE * moods, carried.totals], 1)
        numbers, categories = features[:, : self._numbers], features[:, self._numbers :]
        candidates = context.candidates.long()
        believed = torch.cat([self.tastes.beliefs(own["tastes"]), own["tastes"][:, TASTES:]], 1)
        by_class = self._by_class(scaled, believed, candidates)
        belief = believed[:, None, :TASTES]
        worth = torch.bmm(self.tastes.worth(*by_class, self._reward), belief.transpose(1, 2)).squeeze(2)
        effects = self._class_effects(belief, worth, *by_class)
        shopper = torch.cat([numbers, told, readable, clock, believed, *effects, categories], 1)
        affinity = worth.clamp(min=1e-6).log()
        if self._searches:  # what was recorded is a query's match
            affinity = affinity + context.affinity
        kept = own | {"memory": before.memory, "told": told, "shopper": context.shopper, "affinity": context.affinity}
        state_of = here.state | {OWN + name: value for name, value in kept.items()}
        return replace(here, context=replace(context, shopper=shopper, affinity=affinity), state=state_of)

    def person(self, shopper: Tensor) -> Tensor:
        """Return what the heads of the reader's model see of shoppers, from its contexts' ``shopper`` (B, D + history).

        Shape (B, D + TOLD + wishes), as ``ShopperModel.person`` returns it.
        """
        told = shopper[:, self._numbers : self._numbers + self._told]
        return torch.cat([self.model.scaled(self._features_of(shopper)), told], 1)

    def beliefs(self, shopper: Tensor) -> Tensor:
        """Return the probabilities of the classes of taste from contexts' ``shopper`` (B, D + history), (B, K)."""
        return self._believes(shopper)[1][:, :TASTES]

    def _features_of(self, shopper: Tensor) -> Tensor:
        """Return the logs' own features (B, D) from contexts' ``shopper`` (B, D + history)."""
        return torch.cat([shopper[:, : self._numbers], shopper[:, self._numbers + self._history :]], 1)

    def affinity(self, shopper: Tensor, candidates: Tensor) -> Tensor:
        """Return what other candidates (B, C) are worth to shoppers, as ``person`` takes them, shape (B, C)."""
        scaled, believed = self._believes(shopper)
        worth = self.tastes.worth(*self._by_class(scaled, believed, candidates.long()), self._reward)
        return (worth * believed[:, None, :TASTES]).sum(2).clamp(min=1e-6).log()

    def worth(
        self, shopper: Tensor, items: Tensor, reward: RewardSpec, tier: int = 0, lines: Tensor | None = None
    ) -> Tensor:
        """Return what items (B, C) are worth at once at the best position under an offer, shape (B, C, L + 1).

        Args:
            shopper: As contexts have it, shape (B, D + history).
            items: Catalog indices, shape (B, C).
            reward: Its weights of clicks and purchases count.
            tier: The offer.
            lines: Numbers of lines that each item is said with, shape (L,); the last entry is always without one.
        """
        scaled, believed = self._believes(shopper)
        click, purchase = self._by_class(scaled, believed, items)
        value = self.tastes.worth(
            *self._said(click[:, :, None], None if purchase is None else purchase[:, :, None], tier, lines), reward
        )
        return (value * believed[:, None, None, :TASTES]).sum(3)

    def _said(
        self, click: Tensor, purchase: Tensor | None, tier: int, lines: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Add an offer and lines, and none as the last, to log-odds of each class, (..., 1, K) to (..., L + 1, K)."""

        def added(table: Utilities) -> Tensor:
            said = (
                torch.zeros_like(table.line[-1:]) if lines is None else torch.cat([table.line[lines], table.line[-1:]])
            )
            return said if tier == 0 else said + table.offer[min(tier, len(table.offer) - 1)]

        more = added(self._tables[0])
        if purchase is None or self._tables[1] is None:
            return click + more, None
        return click + more, purchase + added(self._tables[1])

    def _believes(self, shopper: Tensor) -> tuple[Tensor, Tensor]:
        """Return scaled features (B, D) and what is believed (B, width) from contexts' ``shopper``."""
        scaled = self.model.scaled(self._features_of(shopper))
        return scaled, shopper[:, self._believed : self._believed + self.tastes.width]

    def _by_class(self, scaled: Tensor, believed: Tensor, items: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the log-odds of clicks and purchases of items (B, C) in each class, both (B, C, K)."""
        click, purchase = self._tables
        alike = self.tastes.click.shopper(scaled) + self.tastes.seen(believed, items)  # for all classes, (B, C)
        odds = rows_of(click.item, items) + alike[:, :, None]
        if purchase is None or self.tastes.purchase is None:
            return odds, None
        alike = self.tastes.purchase.shopper(scaled) + self.tastes.match * alike
        return odds, rows_of(purchase.item, items) + alike[:, :, None]

    def _class_effects(self, belief: Tensor, worth: Tensor, click: Tensor, purchase: Tensor | None) -> list[Tensor]:
        """Return by what factors offers (N, T) and lines (N, L) change what the likeliest candidates are worth.

        As logarithms, of a candidate with their average log-odds; the log knows neither, or one, or both.

        Args:
            belief: Probabilities of the classes, shape (N, 1, K).
            worth: Of the candidates, shape (N, C).
            click: Their log-odds of a click in each class, shape (N, C, K).
            purchase: Of a purchase after it, likewise.
        """
        best = worth.topk(min(TOP, worth.shape[1]), 1).indices[:, :, None].expand(-1, -1, TASTES)
        click = click.gather(1, best).mean(1, keepdim=True)
        purchase = None if purchase is None else purchase.gather(1, best).mean(1, keepdim=True)

        def by(click: Tensor, purchase: Tensor | None) -> Tensor:
            worth = self.tastes.worth(click, purchase, self._reward)
            return torch.bmm(worth, belief.transpose(1, 2)).squeeze(2).clamp(min=1e-6).log()

        plain, found = by(click, purchase), []
        bought = self._tables[1]
        for name in ("offer", "line"):
            more = getattr(self._tables[0], name)
            more = more[: self.tastes.logged_lines] if name == "line" else more
            if len(more) > (name == "offer"):
                both = None
                if purchase is not None and bought is not None:
                    own = getattr(bought, name)
                    both = purchase + own[: len(more)]
                found.append(by(click + more, both) - plain)
        return found


def _carried(own: dict[str, Tensor]) -> Carried:
    """Return what the reader's part of the shoppers' state says that they bring to a page."""
    return Carried.read(own["memory"], own["counts"], own["gap"], own["number"])


def _effect_names(model: ShopperModel) -> tuple[str, ...]:
    """Return the columns that ``ReadWorld._effects`` fills."""
    tiers = model.recorded.offers if model.recorded.offers > 1 else 0
    offers = tuple(f"{EFFECT_OFFER}{i}" for i in range(tiers))
    return offers + tuple(f"{EFFECT_LINE}{i}" for i in range(model.logged_lines))


def _with_history(
    schema: FeatureSchema, told: int, memory: Memory, tastes: int, effects: tuple[str, ...]
) -> FeatureSchema:
    """Return the schema with the reader's columns after the logs' numbers, those of effects last.

    They are near unit scale as they are, but moods: these are brought there by their range over the log.
    """
    width = told + CLASSES + MOODS + COUNTS + CLOCK + tastes
    mean, scale = torch.zeros(width), torch.ones(width)
    low, high = (MOOD_SCALE * bound[-MOODS:].cpu() for bound in (memory.lowest, memory.highest))
    moods = slice(told + CLASSES, told + CLASSES + MOODS)
    known = low.isfinite() & high.isfinite() & (low < high)
    mean[moods] = torch.where(known, (low + high) / 2, 0.0)
    scale[moods] = torch.where(known, (high - low) / 4, 1.0)
    names = tuple(f"history.{i}" for i in range(width)) + effects
    none, one = (0.0,) * len(effects), (1.0,) * len(effects)
    columns = (
        schema.numeric + names,
        schema.mean + tuple(mean.tolist()) + none,
        schema.scale + tuple(scale.tolist()) + one,
    )
    return FeatureSchema(*columns, schema.categories)


def _columns(world: FeatureSchema, reader: FeatureSchema) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return where in the world's encoded features each of the reader's stands, and whether it is there: both (D,)."""
    place = {entry: i for i, entry in enumerate(_entries(world))}
    wanted = _entries(reader)
    return (
        np.array([place.get(entry, 0) for entry in wanted], np.int64),
        np.array([entry in place for entry in wanted], bool),
    )


def _entries(schema: FeatureSchema) -> list[tuple[str, str | None]]:
    """Return what each entry of an encoded row says: a number's name, or a category's name and value."""
    numbers: list[tuple[str, str | None]] = [(name, None) for name in schema.numeric]
    return numbers + [(name, value) for name, known in schema.categories.items() for value in known]
