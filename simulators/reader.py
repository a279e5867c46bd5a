"""A world whose contexts also tell what a learned memory makes of each shopper's history.

Strategies see pages, not histories. What a shop has observed of a shopper (pages shown, clicks, purchases, days between
visits) is read here by the memory of one learned shopper model, the same way in learned and in gold worlds; nothing
hidden is looked at.
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
from hawker.simulators.learned import NEVER
from hawker.simulators.memory import CLASSES, CLOCK, COUNTS, MOOD_SCALE, MOODS, TOLD, Memory, clock_of
from hawker.simulators.pages import shown_rows
from hawker.simulators.shopper import Ensemble, ShopperModel, calibrated
from hawker.simulators.world import Shoppers, World

TOP = 10
"""Effects are those of an item of average log-odds among so many candidates, the likeliest to be clicked."""

OWN = "reader."
"""What begins the names of the reader's part of the shoppers' state."""


class ReadWorld:
    """A world seen through a reader; see `hawker.simulators.world.World`.

    Contexts are those of the reader's shop: ``shopper`` holds the features that the logs know, and what the
    reader's memory says (columns ``history.*``); ``affinity`` the logarithm of what each candidate is expected to be
    worth at once, at a page's best position, by the weights of a reward for clicks and purchases. Columns ``effect.*``
    of ``shopper`` say by what factor each offer tier and each line change that, as logarithms.
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
        if model.memory is None:
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
        self.model, self._memory = model.requires_grad_(False).eval(), model.memory
        self.calibration, self._reward, self._items = ensemble.calibration, reward, model.item_parts()
        self._numbers, self._told = len(builder.shopper.numeric), TOLD + self._memory.wishes
        effects = _effect_names(model)
        self._history = self._told + CLASSES + MOODS + COUNTS + CLOCK + len(effects)
        self.builder = ContextBuilder(
            _with_history(builder.shopper, self._told, self._memory, effects), builder.catalog
        )
        self._columns, self._known = (
            torch.from_numpy(part).to(world.device) for part in _columns(world.builder.shopper, builder.shopper)
        )
        self._rest = torch.from_numpy(np.array(builder.shopper.centre)).to(world.device) * ~self._known

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers, of whom nothing is known but their features."""
        here = self.world.arrive(n, generator)
        features = self._features(here.context)
        zero = torch.zeros(n, device=self.device)
        own = {"memory": self._memory.start(self.model.scaled(features)), "gap": zero, "number": zero.clone()}
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
        rows = shown_rows(self.model, replace(context, shopper=self._features(context)), decision)
        converted, revenue = (
            None if part is None else part.float().flatten() for part in (outcome.converted, outcome.revenue)
        )
        rows = replace(rows, clicked=outcome.clicked.float().flatten(), converted=converted, revenue=revenue)
        memory = self._memory.after(own["memory"], own["gap"], own["number"], self.model.summary(rows))
        leave = torch.zeros_like(outcome.gone) if outcome.leave is None else outcome.leave
        days = torch.zeros_like(own["gap"]) if outcome.days is None else outcome.days.clamp(max=NEVER).to(torch.float32)
        number = torch.where(leave, 0.0, own["number"] + 1.0)
        return self._seen(after, {"memory": memory, "gap": days, "number": number}), outcome

    def _features(self, context: Context[Tensor]) -> Tensor:
        """Return the shoppers' features as the logs have them, shape (N, D)."""
        return torch.where(self._known, context.shopper[:, self._columns], self._rest)

    def _seen(self, here: Shoppers, own: dict[str, Tensor]) -> Shoppers:
        """Return the world's shoppers with contexts that tell what was read."""
        model, memory, context = self.model, self._memory, here.context
        features, clock = self._features(context), clock_of(own["gap"], own["number"])
        told = memory.before(own["memory"], clock)
        readable = memory.readable(own["memory"])[:, -CLASSES - MOODS - COUNTS :]
        numbers, categories = features[:, : self._numbers], features[:, self._numbers :]
        person = torch.cat([model.scaled(features), told], 1)
        odds = model.item_odds(person, self._items[context.candidates.long()])
        affinity, effects = self._worth(*odds), self._effects(person, *odds)
        shopper = torch.cat([numbers, told, readable, clock, *effects, categories], 1)
        kept = own | {"shopper": context.shopper, "affinity": context.affinity}
        state_of = here.state | {OWN + name: value for name, value in kept.items()}
        return replace(here, context=replace(context, shopper=shopper, affinity=affinity), state=state_of)

    def person(self, shopper: Tensor) -> Tensor:
        """Return what the heads of the reader's model see of shoppers, from its contexts' ``shopper`` (B, D + history).

        Shape (B, D + TOLD + wishes), as ``ShopperModel.person`` returns it.
        """
        start, end = self._numbers, self._numbers + self._history
        features = torch.cat([shopper[:, :start], shopper[:, end:]], 1)
        return torch.cat([self.model.scaled(features), shopper[:, start : start + self._told]], 1)

    def affinity(self, shopper: Tensor, candidates: Tensor) -> Tensor:
        """Return what other candidates (B, C) are worth to shoppers, as ``person`` takes them, shape (B, C)."""
        return self._worth(*self.model.item_odds(self.person(shopper), self._items[candidates.long()]))

    def _effects(self, person: Tensor, click: Tensor, purchase: Tensor | None) -> list[Tensor]:
        """Return by what factors offers and lines change what candidates with these log-odds (N, C) are worth.

        As logarithms, (N, T) and (N, L), of which there may be neither.
        """
        likeliest = click.topk(min(TOP, click.shape[1]), 1)
        click, added_by = likeliest.values.mean(1, keepdim=True), self.model.effects(person)
        if purchase is not None:
            purchase = purchase.gather(1, likeliest.indices).mean(1, keepdim=True)
        plain, found = self._worth(click, purchase), []
        for name in ("offers", "lines"):
            added, bought = (None if part is None else getattr(part, name) for part in added_by)
            if added is not None:
                both = None if purchase is None or bought is None else purchase + bought
                found.append(self._worth(click + added, both) - plain)
        return found

    def _worth(self, click: Tensor, purchase: Tensor | None) -> Tensor:
        """Return the logarithm of what answers with these log-odds are worth at once, in their shape."""
        value = calibrated(click.sigmoid(), self.calibration[0])
        worth = torch.full_like(value, self._reward.click)
        if purchase is not None:
            worth = worth + self._reward.conversion * calibrated(purchase.sigmoid(), self.calibration[1])
        return (value * worth).clamp(min=1e-6).log()


def _effect_names(model: ShopperModel) -> tuple[str, ...]:
    """Return the columns that ``ReadWorld._effects`` fills."""
    tiers = model.recorded.offers if model.recorded.offers > 1 else 0
    lines = 0 if model.line_vectors is None else len(model.line_vectors)
    return tuple(f"{EFFECT_OFFER}{i}" for i in range(tiers)) + tuple(f"{EFFECT_LINE}{i}" for i in range(lines))


def _with_history(schema: FeatureSchema, told: int, memory: Memory, effects: tuple[str, ...]) -> FeatureSchema:
    """Return the schema with the reader's columns after the logs' numbers, those of effects last.

    They are near unit scale as they are, but moods: these are brought there by their range over the log.
    """
    width = told + CLASSES + MOODS + COUNTS + CLOCK
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
