"""The storefront: a batch of simulated shoppers, one page each per step, as tensors on one device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from hawker.envs.page import RECOMMEND, Layout, Parts, Rules, decide, ranking
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.world import Shoppers, World

Array: TypeAlias = npt.NDArray[Any]
Observation: TypeAlias = dict[str, Array]

LIMIT = 1e30
"""Bound of a feature in the observation space: features are in the units of the logs, and Gymnasium wants a bound."""

REFILL = 8
"""Steps after which all shoppers who wait to arrive are drawn anew."""

FAR = 10**9
"""Pages since the last ad of a shopper who has seen none."""

START = {"day": 0.0, "gap": 0.0, "page": 0, "pages": 0, "ads": 0, "since": FAR, "previous": EMPTY}
"""What is kept of a shopper beside the world: day of the episode; days since the page before; number of the page in the
visit; pages and pages with an ad so far; pages since the last ad; the visit's previous slate."""


def observation_space(world: World, parts: Parts = RECOMMEND) -> spaces.Space[Any]:
    """Return the space of what is seen of one shopper; see the environments' docstrings."""
    n_items, choices, width = len(world.builder.catalog), world.choices, world.builder.shopper.width
    seen: dict[str, spaces.Space[Any]] = {
        "shopper": spaces.Box(-LIMIT, LIMIT, (width,), np.float32),
        "candidates": spaces.Box(0, max(n_items - 1, 1), (choices,), np.int64),  # Gymnasium wants two values or more
        "mask": spaces.MultiBinary(choices),
        "affinity": spaces.Box(-LIMIT, LIMIT, (choices,), np.float32),
    }
    if parts != RECOMMEND:
        seen["page"] = spaces.Box(0, FAR, (1,), np.int64)
        seen["gap"] = spaces.Box(0, LIMIT, (1,), np.float32)
    if parts.ad:
        seen["ad_mask"] = spaces.MultiBinary(choices)
    if not parts.slate:
        seen["given"] = spaces.Box(EMPTY, max(choices - 1, 0), (world.size,), np.int64)
    return spaces.Dict(seen)


def action_space(world: World, parts: Parts = RECOMMEND) -> spaces.MultiDiscrete:
    """Return the space of one page's decisions; see the environments' docstrings."""
    return spaces.MultiDiscrete(Layout.of(world, parts).values)


@dataclass(frozen=True)
class Step:
    """What a step brought, as tensors on the world's device.

    Attributes:
        observation: The next page of every shopper, with new shoppers in the places of those whose episode ended.
        reward: Shape (N,).
        terminated: True where the shopper is gone, shape (N,).
        truncated: True where the horizon has been reached instead, shape (N,).
        happened: By name, each (N,): the reward's parts (``reward_*``), ``clicks``, ``empty_slots``, ``refused``
            choices, ``ads`` shown, the ``day`` of the episode on which the page was seen, and ``discount``, the factor
            on what comes after it.
    """

    observation: dict[str, Tensor]
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    happened: dict[str, Tensor]


class Storefront:
    """N shoppers of a world; the environments put it into their forms. A step moves nothing between host and device.

    Attributes:
        world: What answers.
        n: Shoppers in the batch.
        layout: What is decided, and where it stands in an action.
        rules: What the shop holds to.
        reward: What a page is worth.
        bids: What a click on each item's ad earns, shape (n_items,); None where ads are not decided.
        shoppers: The batch at its current page; there is none before the first ``reset``.
        observation: What is to be seen of it, by name, each (N, ...).
        generator: Source of everything that is drawn.
        shown: The context, decision and outcome of the last page of every shopper; None before the first step.
        repeats: How many arrivals were of someone who had arrived before, see ``_arrivals``: shape ().
    """

    shoppers: Shoppers
    observation: dict[str, Tensor]

    def __init__(
        self,
        world: World,
        n: int,
        reward: RewardSpec,
        parts: Parts = RECOMMEND,
        rules: Rules | None = None,
        popularity: Tensor | None = None,
    ) -> None:
        """Open the shop.

        Args:
            world: What answers.
            n: Shoppers, N.
            reward: What a page is worth.
            parts: What is decided.
            rules: What the shop holds to; by default episodes have no horizon and ads no limits.
            popularity: By what items are ranked where the slate is not decided, shape (I,); by default the catalog's
                ``popularity``, or the candidates' own order where it has none.

        Raises:
            InputError: No shoppers.
        """
        if n < 1:
            raise InputError("no shoppers", where="num_envs", got=n, expected="at least 1")
        self.world, self.n, self.reward, self.rules = world, n, reward, rules or Rules()
        self.layout = Layout.of(world, parts)
        self.generator = torch.Generator(world.device)
        self.shown: tuple[Context[Tensor], Decision[Tensor], Outcome[Tensor]] | None = None
        self._has_ad = world.bids > 0
        self.bids = world.bids if parts.ad and bool(self._has_ad.any()) else None
        self._popularity = _popularity(world) if popularity is None else popularity.to(world.device)
        self._clear()

    def _clear(self) -> None:
        device = self.world.device
        self._diary = {
            name: torch.full((self.n, self.world.size) if name == "previous" else (self.n,), value, device=device)
            for name, value in START.items()
        }
        self._before: tuple[Shoppers, Shoppers, Tensor, dict[str, Tensor], dict[str, Tensor]] | None = None
        self._waiting: Shoppers | None = None
        self._uses = torch.zeros(self.n, dtype=torch.int64, device=device)
        self._head = torch.zeros((), dtype=torch.int64, device=device)
        self._drawn = 0
        self.repeats = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self, seed: int | None) -> Context[Tensor]:
        """Replace all shoppers by new ones, reseeding the generator first where a seed is given."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self._clear()
        self.shown = None
        self.shoppers = self.world.arrive(self.n, self.generator)
        self.observation = self._seen(self.shoppers.context, self._diary)
        return self.shoppers.context

    def step(self, actions: Tensor) -> Step:
        """Show every shopper a page.

        Args:
            actions: The pages asked for, shape (N, A), see ``Layout``; what must not be is left out, see ``decide``.
        """
        here, diary, context = self.shoppers, self._diary, self.shoppers.context
        decision, refused = decide(
            self.layout, actions, context, self.observation.get("ad_mask"), self.observation.get("given")
        )
        after, outcome = self.world.respond(here, decision, self.generator)
        parts = self.reward.components(outcome, decision, self.bids, diary["previous"])
        gone = outcome.gone
        left = gone if outcome.leave is None else gone | outcome.leave
        days = torch.zeros_like(diary["gap"])
        if outcome.days is not None:
            days = outcome.days.to(days.dtype).masked_fill(gone, 0.0)  # who is gone has inf days
        ads = torch.zeros_like(gone) if decision.ad is None else decision.ad != EMPTY
        written = {
            "day": diary["day"] + days,
            "gap": days,
            "page": (diary["page"] + 1).masked_fill(left, 0),
            "pages": diary["pages"] + 1,
            "ads": diary["ads"] + ads,
            "since": (diary["since"] + 1).masked_fill(ads, 1),
            "previous": decision.slate.masked_fill(left[:, None], EMPTY),
        }
        truncated = ~gone & (written["day"] >= self.rules.horizon)
        ended = gone | truncated
        happened = {f"reward_{name}": part for name, part in parts.items()}
        happened |= {
            "clicks": outcome.clicked.sum(1),
            "empty_slots": (decision.slate == EMPTY).sum(1),
            "refused": refused,
            "ads": ads.long(),
            "day": diary["day"],
            "discount": self.reward.discount(days),
        }
        self.shown, self._before = (context, decision, outcome), (here, after, gone, diary, written)
        self.shoppers = after.replaced(ended, self._arrivals(ended, visits=outcome.leave is not None))
        self._diary = {
            name: value.masked_fill(ended.reshape(-1, *[1] * (value.ndim - 1)), START[name])
            for name, value in written.items()
        }
        self.observation = self._seen(self.shoppers.context, self._diary)
        reward = torch.stack(list(parts.values())).sum(0)
        return Step(self.observation, reward, gone, truncated, happened)

    def last_observation(self) -> dict[str, Tensor]:
        """Return what there was to see of every shopper after the last step, before anybody was replaced.

        That is the page that the shopper would have seen next, which a value estimate at a horizon needs; of who is
        gone it is the page answered, as nothing else is left.
        """
        assert self._before is not None, "call step first"
        here, after, gone, diary, written = self._before
        unended = {name: _where(gone, diary[name], value) for name, value in written.items()}
        one, other = vars(here.context), vars(after.context)
        return self._seen(Context(*(_where(gone, one[name], other[name]) for name in one)), unended)

    def unreplaced(self) -> dict[str, Tensor]:
        """Return what ``last_observation`` says of shoppers and clocks, of those alone who are not gone; for nothing.

        Rows of those who are gone mean nothing.
        """
        assert self._before is not None, "call step first"
        _, after, _, _, written = self._before
        seen = {"shopper": after.context.shopper}
        if self.layout.parts != RECOMMEND:
            seen |= {"page": written["page"][:, None], "gap": written["gap"][:, None]}
        return seen

    def _arrivals(self, ended: Tensor, *, visits: bool) -> Shoppers:
        """Return N shoppers, new ones at least in the places where an episode ended.

        How many are needed is known to the device alone, and to ask it would make the host wait in every step. So as
        many shoppers as there are places wait in a ring, all of it is drawn anew every eight steps whatever happens (an
        eighth of it in each step takes several times as long), and who is needed is taken from it in turn. Only if more
        than N episodes end within eight steps does someone arrive for a second time; ``repeats`` counts them. Where
        visits have no end that the world tells of, a page may be all that anybody sees, and the ring is drawn in each
        step.
        """
        if not visits:
            return self.world.arrive(self.n, self.generator)
        if self._waiting is None or self._drawn == REFILL:
            self._waiting, self._drawn = self.world.arrive(self.n, self.generator), 0
            self._uses.zero_()
        self._drawn += 1
        place = (self._head + ended.cumsum(0) - 1) % self.n
        self.repeats = self.repeats + (ended & (self._uses[place] > 0)).sum()
        self._uses.index_add_(0, place, ended.long())
        self._head = (self._head + ended.sum()) % self.n
        return self._waiting.take(place)

    def _seen(self, context: Context[Tensor], diary: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what is to be seen of shoppers, by name."""
        seen = {name: getattr(context, name) for name in ("shopper", "candidates", "mask", "affinity")}
        parts, rules = self.layout.parts, self.rules
        if parts != RECOMMEND:
            seen |= {"page": diary["page"][:, None], "gap": diary["gap"][:, None]}
        if parts.ad:
            # Some slack: rounding must not close what an exact share leaves open.
            load = diary["ads"] + 1 <= rules.ad_load * (diary["pages"] + 1) + 1e-6
            may = load & (diary["since"] >= rules.ad_gap)
            seen["ad_mask"] = _look_up(self._has_ad, context.candidates) & context.mask & may[:, None]
        if not parts.slate:
            score = _look_up(self._popularity, context.candidates)
            seen["given"] = ranking(score, context.mask, self.layout.size)
        return seen

    def actions(self, actions: Array) -> Tensor:
        """Return N actions as ``step`` takes them.

        Raises:
            InputError: They are not N times A integers.
        """
        given, shape = np.asarray(actions), (self.n, len(self.layout.values))
        if given.shape != shape or not np.issubdtype(given.dtype, np.integer):
            got = f"{given.dtype} of shape {given.shape}"
            raise InputError("bad action", where="step", got=got, expected=f"integers of shape {shape}")
        return torch.as_tensor(given, device=self.world.device, dtype=torch.long)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a later step depends on, by name: what a checkpoint has to keep."""
        kept = {f"here.{name}": value for name, value in _tensors(self.shoppers).items()}
        kept |= {f"diary.{name}": value for name, value in self._diary.items()}
        if self._waiting is not None:
            kept |= {f"waiting.{name}": value for name, value in _tensors(self._waiting).items()}
        kept["placed"] = torch.tensor(self.shoppers.placed)
        ring = {"uses": self._uses, "head": self._head, "repeats": self.repeats, "drawn": torch.tensor(self._drawn)}
        return (
            kept | {f"ring.{name}": value for name, value in ring.items()} | {"generator": self.generator.get_state()}
        )

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what ``tensors`` returned.

        Raises:
            KeyError: A name is missing.
        """
        device = self.world.device
        own = {name: value.to(device) for name, value in tensors.items() if name != "generator"}
        self._clear()
        self.shoppers = replace(_shoppers(_under(own, "here.")), placed=bool(tensors["placed"]))
        waiting = _under(own, "waiting.")
        self._waiting = _shoppers(waiting) if waiting else None
        self._diary = {name: own[f"diary.{name}"] for name in START}
        self._uses, self._head, self.repeats = own["ring.uses"].clone(), own["ring.head"], own["ring.repeats"]
        self._drawn = int(tensors["ring.drawn"])
        self.generator.set_state(tensors["generator"].cpu())
        self.observation = self._seen(self.shoppers.context, self._diary)


def to_observation(seen: Context[Tensor] | dict[str, Tensor]) -> Observation:
    """Return a context, or what a storefront lets see, in the environments' form: arrays with a leading axis N."""
    if isinstance(seen, Context):
        seen = {name: getattr(seen, name) for name in ("shopper", "candidates", "mask", "affinity")}
    arrays = {name: value.cpu().numpy() for name, value in seen.items()}
    return {name: array.astype(np.int8) if array.dtype == bool else array for name, array in arrays.items()}


def _popularity(world: World) -> Tensor:
    """Return the items' popularity as the catalog has it, 0 where it has none, shape (I,)."""
    catalog = world.builder.catalog
    values = np.zeros(len(catalog), np.float32)
    if "popularity" in catalog.features.numeric:
        values = catalog.vectors[:, catalog.features.numeric.index("popularity")]
    return torch.from_numpy(np.array(values)).to(world.device)


def _look_up(values: Tensor, places: Tensor) -> Tensor:
    """Return the values (I,) at places of any shape, in a fraction of the time that indexing takes."""
    return values.index_select(0, places.reshape(-1)).reshape(places.shape)


def _where(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (one.ndim - 1)), one, other)


def _tensors(shoppers: Shoppers) -> dict[str, Tensor]:
    context = {f"context.{name}": value for name, value in vars(shoppers.context).items()}
    return context | {"member": shoppers.member} | {f"state.{name}": value for name, value in shoppers.state.items()}


def _shoppers(tensors: dict[str, Tensor]) -> Shoppers:
    return Shoppers(Context(**_under(tensors, "context.")), tensors["member"], _under(tensors, "state."))


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
