"""The gold world `bazaar`: a shop whose truth is known. Nothing is trained on it, only on logs drawn from it.

Shoppers have a hidden taste segment that drifts, a visit class, a satisfaction and a fatigue by category. Satisfaction
moves leaving and coming back, so that the strategy that is greedy on clicks is not the best one. The parameters stand
in ``data/bazaar.yaml``; given the segments a shopper had and what can be observed, satisfaction is known exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hawker.shop.catalog import Catalog
from hawker.shop.context import TIME, Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.features import FeatureSchema
from hawker.shop.language import Encoder
from hawker.shop.reward import RETURN_DAYS
from hawker.simulators.bazaar_parameters import BazaarParameters
from hawker.simulators.bazaar_reading import read_lines
from hawker.simulators.bazaar_shop import CopyBank, make_bank, make_items
from hawker.simulators.world import Shoppers

DAY = 86_400
OPENS, CLOSES = 7, 22
"""Hours of the day (UTC) between which visits begin."""

State = dict[str, Tensor]
"""What the world knows of N shoppers.

``segment``, ``visit_class``, ``page`` (of the visit, from 0), ``habit`` (minute of the day): (N,) int64; ``clock``:
seconds since midnight of the day the shopper first came, (N,) int64; ``satisfaction``: (N,) float32; ``fatigue``:
(N, categories) float32; ``clicked``: whether the last page was, (N,) bool; ``features``: numbers of the observable
features' values, (N, features) int64.
"""


class BazaarWorld:
    """A shop and its shoppers; see `hawker.simulators.world.World`.

    Attributes:
        builder: The shop's contexts and catalog.
        size: Slots of a page, K.
        device: Where its tensors live.
        parameters: What it was made from.
        digest: Their SHA-256.
        items: The items, with what only the world knows of them.
        bank: The lines of copy, with what only the world knows of them.
        lines: Their texts, which everyone may read.
        offers: Discount tiers, none included.
        bids: What a click on each item's ad earns, in currency, shape (I,); 0 where the item has no ad.
        logged_lines: True for lines that may occur in logs, shape (L,).
        launched: False for items that come after the logs, shape (I,).
    """

    _has_search_box = False

    def __init__(self, parameters: BazaarParameters, device: torch.device, encoder: Encoder | None = None) -> None:
        """Open the shop.

        Args:
            parameters: What ``load_bazaar`` returned.
            device: Where to keep tensors.
            encoder: Turns the items' texts into catalog vectors; without one the catalog has no texts.

        Raises:
            InputError: No item is launched and in stock, or the parameters have a search box that is ignored here.
        """
        p = self.parameters = parameters
        if p.search is not None and not self._has_search_box:
            remedy = "try it with `hawker bench search`"
            raise InputError("a bazaar with a search box", where=p.name, expected="one without", remedy=remedy)
        self.digest, self.device, self.size = p.digest, device, p.shop.size
        self.items = make_items(p)
        self.builder = ContextBuilder(_schema(p), Catalog.from_items(self.items.table, encoder))
        self.launched = torch.from_numpy(self.items.launched).to(device)
        self._eligible = (self.launched & self._tensor(self.items.table["stock"] > 0).bool()).nonzero().squeeze(1)
        if not len(self._eligible):
            raise InputError("no item is launched and in stock", where=p.name, remedy="more items, or a smaller share")
        self.choices = min(p.shop.candidates, len(self._eligible))
        self.offers, self.bids = len(p.discounts), self._tensor(self.items.table["bid"])
        self.category = torch.from_numpy(self.items.category).to(device)
        self._appeal = self._tensor(self.items.appeal)
        self._quality = self._tensor(self.items.quality)
        self._reliability = self._tensor(self.items.reliability)
        self._price = self._tensor(self.items.table["price"])
        self._say(make_bank(p.lexicon))
        self._offer_taste = self._tensor([s.offer for s in p.segments])
        self._ad_aversion = self._tensor([s.ad_aversion for s in p.segments])
        self._ad_annoyance = self._tensor([s.ad_annoyance for s in p.segments])
        self._segment_share = self._tensor([s.share for s in p.segments])
        self._class_share = self._tensor([c.share for c in p.visit_classes])
        self._class_base = self._tensor([c.base for c in p.visit_classes])
        self._click_offer, self._conversion_offer = self._tensor(p.click.offer), self._tensor(p.conversion.offer)
        self._discount = self._tensor(p.discounts)
        self._positions = self._tensor(p.look.positions)
        self._feature_weights = [self._tensor(feature.weights) for feature in p.features]
        self._encoded = _encoded_features(self.builder.shopper, p).to(device)

    def _tensor(self, values: object) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)

    def _say(self, bank: CopyBank) -> None:
        """Take a bank of lines."""
        p, self.bank, self.lines = self.parameters, bank, bank.texts
        self.logged_lines = torch.from_numpy(bank.logged).to(self.device)
        cues = torch.nn.functional.pad(self._tensor(bank.cues), (0, 0, 0, 1))  # the last row: no line
        self._line_click = self._tensor([s.cue_click for s in p.segments]) @ cues.T
        self._line_convert = self._tensor([s.cue_convert for s in p.segments]) @ cues.T
        self.spam = torch.nn.functional.pad(self._tensor(bank.spam), (0, 1))
        self._claims = torch.nn.functional.pad(self._tensor(bank.claims_offer), (0, 1))

    def with_lines(self, texts: Sequence[str]) -> BazaarWorld:
        """Return the same shop with other lines in place of its bank, any texts: see `simulators.bazaar_reading`.

        A line that is in the bank does what it does there. ``spam`` says how much of a line of spam each one annoys.
        """
        world, read = copy.copy(self), read_lines(self.parameters, texts)
        world._say(read.bank)
        dislike = torch.nn.functional.pad(self._tensor(read.dislikes.sum(1)), (0, 1))
        world._line_click = world._line_click - dislike
        world.spam = torch.nn.functional.pad(self._tensor(read.annoys), (0, 1))
        return world

    # Who comes

    def beliefs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return P(first segment | features) and P(visit class | features), (N, ...), of feature numbers (N, F)."""
        logs = {"segment": self._segment_share.log(), "visit_class": self._class_share.log()}
        for feature, weights, value in zip(
            self.parameters.features, self._feature_weights, features.unbind(1), strict=True
        ):
            logs[feature.by] = logs[feature.by] + (weights / weights.sum(1, keepdim=True)).log().T[value]
        n = len(features)
        segment, visit_class = (logs[name].expand(n, -1).softmax(1) for name in ("segment", "visit_class"))
        return segment, visit_class

    def arrive(self, n: int, generator: torch.Generator) -> Shoppers:
        """Return n new shoppers at the first page of their first visit, on day 0 of their clock."""
        segment, visit_class = (
            _draw(share.expand(n, -1), generator) for share in (self._segment_share, self._class_share)
        )
        groups = {"segment": segment, "visit_class": visit_class}
        features = [
            _draw(weights[groups[feature.by]], generator)[:, None]
            for feature, weights in zip(self.parameters.features, self._feature_weights, strict=True)
        ]
        minutes = torch.rand(n, generator=generator, device=self.device) * (CLOSES - OPENS) * 60 + OPENS * 60
        zeros = torch.zeros(n, dtype=torch.int64, device=self.device)
        state = {
            "segment": segment,
            "visit_class": visit_class,
            "satisfaction": torch.zeros(n, device=self.device),
            "fatigue": torch.zeros(n, len(self.parameters.categories), device=self.device),
            "page": zeros,
            "clicked": zeros.bool(),
            "features": torch.cat(features, 1) if features else zeros[:, None][:, :0],
            "habit": minutes.long(),
        }
        state["clock"] = self._opening(state["habit"], generator)
        return Shoppers(self._context(state, self._candidates(n, generator)), zeros, state)

    def _candidates(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw candidates for n visits without replacement, (n, C)."""
        keys = torch.rand(n, len(self._eligible), generator=generator, device=self.device)
        return self._eligible[keys.topk(self.choices, 1, sorted=False).indices]

    def _opening(self, habit: Tensor, generator: torch.Generator) -> Tensor:
        """Return the second of the day at which visits of shoppers with these habits begin, (n,)."""
        wander = 3_600 * torch.randn(habit.shape, generator=generator, device=self.device)
        return (habit * 60 + wander.long()).clamp(OPENS * 3_600, CLOSES * 3_600)

    def _context(self, state: State, candidates: Tensor) -> Context[Tensor]:
        angle = (state["clock"] % DAY // 60).float() * (2 * math.pi / 1_440)
        known = [table[state["features"][:, i]] for i, table in enumerate(self._encoded.unbind(0))]
        shopper = torch.stack([angle.sin(), angle.cos()], 1)
        if known:
            shopper = torch.cat([shopper, torch.stack(known).sum(0)], 1)
        mask = torch.ones_like(candidates, dtype=torch.bool)
        return Context(shopper, candidates, mask, torch.zeros(candidates.shape, device=self.device))

    # What a page does

    def attraction(self, state: State, decision: Decision[Tensor]) -> Tensor:
        """Return P(click | looked at), shape (N, K); 0 in empty slots."""
        p, segment, slate = self.parameters.click, state["segment"], decision.slate
        item, row = slate.clamp(min=0), segment[:, None]
        shown = slate != EMPTY
        category = self.category[item].masked_fill(~shown, -1)
        above = torch.stack(
            [(category[:, :k] == category[:, k : k + 1]).sum(1) for k in range(slate.shape[1])], 1
        )  # of the same category, (N, K)
        logit = (
            p.base
            + self._appeal[row, item]
            + self._line_click[row, self._copy(decision)]
            + (self._click_offer[self._offer(decision)] * self._offer_taste[segment])[:, None]
            - p.fatigue * state["fatigue"].gather(1, self.category[item])
            - p.same_category * above
            - p.ad * self._ad_aversion[row] * self._is_ad(decision)
        )
        return logit.sigmoid().masked_fill(~shown, 0.0)

    def looked_at(self, attraction: Tensor) -> Tensor:
        """Return P(a position is looked at), shape (N, K), before anything is known of the page's clicks."""
        look = self.parameters.look
        if look.law == "position":
            return self._positions.expand_as(attraction)
        on = look.passed + (look.clicked - look.passed) * attraction
        return torch.cat([torch.ones_like(on[:, :1]), on[:, :-1].cumprod(1)], 1)

    def click_probabilities(self, state: State, decision: Decision[Tensor]) -> Tensor:
        """Return P(click) before anything is known of the page's clicks, shape (N, K), whatever the law of looking."""
        attraction = self.attraction(state, decision)
        return attraction * self.looked_at(attraction)

    def click_log_likelihood(self, attraction: Tensor, clicked: Tensor) -> Tensor:
        """Return log P(the page's clicks (N, K)), shape (N,), from ``attraction`` (N, K)."""
        look = self.parameters.look
        clicks = clicked.to(attraction.dtype)
        if look.law == "position":
            probability = attraction * self._positions
            each = torch.where(clicks > 0, probability, 1 - probability)
            return each.clamp(min=1e-30).log().sum(1)
        # P(the clicks down to here and still looking), P(the clicks down to here and no longer looking)
        looking = torch.ones_like(attraction[:, 0])
        stopped = torch.zeros_like(looking)
        for a, click in zip(attraction.unbind(1), clicks.unbind(1), strict=True):
            seen = looking * torch.where(click > 0, a, 1 - a)
            on = torch.where(click > 0, look.clicked, look.passed)
            stopped = stopped * (1 - click) + seen * (1 - on)
            looking = seen * on
        return (looking + stopped).clamp(min=1e-30).log()

    def conversion_probabilities(self, state: State, decision: Decision[Tensor]) -> Tensor:
        """Return P(purchase | click), shape (N, K)."""
        p, segment, item = self.parameters.conversion, state["segment"], decision.slate.clamp(min=0)
        row = segment[:, None]
        logit = (
            p.base
            + p.match * self._appeal[row, item]
            + self._line_convert[row, self._copy(decision)]
            + (self._conversion_offer[self._offer(decision)] * self._offer_taste[segment])[:, None]
            - p.price * (self._price[item] / 50).log()
        )
        return logit.sigmoid().masked_fill(decision.slate == EMPTY, 0.0)

    def price_shown(self, decision: Decision[Tensor]) -> Tensor:
        """Return the price of each item after the page's offer, in currency, shape (N, K)."""
        kept = 1 - self._discount[self._offer(decision)]
        return self._price[decision.slate.clamp(min=0)] * kept[:, None]

    def satisfaction_change(
        self, state: State, decision: Decision[Tensor], clicked: Tensor, converted: Tensor
    ) -> Tensor:
        """Return what a page with these clicks and purchases (N, K) adds to satisfaction, shape (N,)."""
        p, segment, item = self.parameters.satisfaction, state["segment"], decision.slate.clamp(min=0)
        shown = (decision.slate != EMPTY).float()
        quality, copy = self._quality[item], self._copy(decision)
        clicks, purchases = clicked.float() * shown, converted.float() * shown
        lies = self._claims[copy] * (self._offer(decision) == 0)[:, None]
        enjoyed = self._appeal[segment[:, None], item].tanh() + 2 * quality - 1 - p.expected
        fatigue = (state["fatigue"].gather(1, self.category[item]) * shown).sum(1) / shown.sum(1).clamp(min=1.0)
        return (
            p.page
            + p.click * (clicks * enjoyed).sum(1) / clicks.sum(1).clamp(min=1.0)
            + p.purchase * (purchases * (quality + self._reliability[item] - 1)).sum(1)
            - p.spam * (1 - 0.5 ** (self.spam[copy] * shown).sum(1))
            - p.lie * (clicks * lies).sum(1)
            - p.ad * self._ad_annoyance[segment] * self._is_ad(decision).any(1)
            - p.dull * fatigue
        )

    def after_page(self, state: State, decision: Decision[Tensor], clicked: Tensor, converted: Tensor) -> State:
        """Return the state after a page with these clicks and purchases (N, K); nothing is drawn."""
        limit, shown = self.parameters.satisfaction.limit, (decision.slate != EMPTY).float()
        moved = state["satisfaction"] + self.satisfaction_change(state, decision, clicked, converted)
        category = self.category[decision.slate.clamp(min=0)]
        share = torch.zeros_like(state["fatigue"]).scatter_add(1, category, shown) / shown.sum(1, True).clamp(min=1.0)
        return state | {
            "satisfaction": moved.clamp(-limit, limit),
            "fatigue": state["fatigue"] * self.parameters.fatigue.page + share,
            "clicked": clicked.bool().any(1),
        }

    def leave_probability(self, state: State) -> Tensor:
        """Return P(the visit ends with this page), shape (N,), from the state after the page."""
        p = self.parameters.leave
        logit = p.base - p.satisfaction * state["satisfaction"] + p.page * state["page"] - p.click * state["clicked"]
        return logit.sigmoid()

    def return_hazard(self, state: State, days: int) -> Tensor:
        """Return P(next visit on day d | not before) for d = 1..days after a visit, shape (N, days)."""
        p = self.parameters.come_back
        day = torch.arange(1, days + 1, device=self.device, dtype=torch.float32)
        lasting = p.satisfaction * self.parameters.satisfaction.relax**day
        logit = self._class_base[state["visit_class"]][:, None] + state["satisfaction"][:, None] * lasting
        if p.law == "daily":
            return logit.sigmoid()
        return -torch.expm1(-logit.exp() * (day**p.shape - (day - 1) ** p.shape))

    def return_probability(self, state: State) -> Tensor:
        """Return P(next visit within 7 days | the visit ends now), shape (N,), from the state after the page."""
        hazard = self.return_hazard(state, min(RETURN_DAYS, self.parameters.come_back.max_days))
        return 1 - (1 - hazard).prod(1)

    def rest(self, state: State, days: Tensor, generator: torch.Generator) -> State:
        """Return the state at the next visit, ``days`` (N,) after one ended; only the segment's drift is drawn."""
        p = self.parameters
        n = len(state["segment"])
        drifts = torch.rand(n, generator=generator, device=self.device) < p.come_back.drift
        fresh = _draw(self._segment_share.expand(n, -1), generator)
        return state | {
            "segment": torch.where(drifts, fresh, state["segment"]),
            "satisfaction": state["satisfaction"] * p.satisfaction.relax ** days.float(),
            "fatigue": state["fatigue"] * p.fatigue.visit,
            "page": torch.zeros_like(state["page"]),
            "clicked": torch.zeros_like(state["clicked"]),
        }

    # One page

    def respond(
        self, shoppers: Shoppers, decision: Decision[Tensor], generator: torch.Generator
    ) -> tuple[Shoppers, Outcome[Tensor]]:
        """Answer one page per shopper; every field of the outcome is filled."""
        state, n = shoppers.state, len(shoppers.member)
        attraction = self.attraction(state, decision)
        clicked = self._draw_clicks(attraction, generator)
        conversion = self.conversion_probabilities(state, decision)
        converted = clicked & (torch.rand(conversion.shape, generator=generator, device=self.device) < conversion)
        probability = attraction * self.looked_at(attraction)
        state = self.after_page(state, decision, clicked, converted)
        ends = self.leave_probability(state)
        leave = torch.rand(n, generator=generator, device=self.device) < ends
        leavers = leave.nonzero().squeeze(1)
        days = torch.zeros(n, device=self.device)
        days[leavers] = self._draw_days({name: value[leavers] for name, value in state.items()}, generator)
        gone = days.isinf()
        outcome = Outcome(
            clicked.float(),
            probability,
            gone,
            converted=converted.float(),
            revenue=self.price_shown(decision) * converted,
            conversion_probability=conversion,
            leave=leave,
            days=days,
            return_probability=self.return_probability(state),
            leave_probability=ends,
        )
        pause = torch.randint(20, 91, (n,), generator=generator, device=self.device)
        state = state | {"page": state["page"] + 1, "clock": state["clock"] + pause}
        ended = {name: value[leavers] for name, value in state.items()}
        slept = days[leavers].masked_fill(gone[leavers], 0.0)
        rested = self.rest(ended, slept, generator)
        rested["clock"] = (ended["clock"] // DAY + slept.long()) * DAY + self._opening(ended["habit"], generator)
        state = {name: value.index_copy(0, leavers, rested[name]) for name, value in state.items()}
        fresh = self._candidates(len(leavers), generator)
        candidates = shoppers.context.candidates.index_copy(0, leavers, fresh)
        return Shoppers(self._context(state, candidates), shoppers.member, state), outcome

    def _draw_clicks(self, attraction: Tensor, generator: torch.Generator) -> Tensor:
        look = self.parameters.look
        draws = torch.rand(attraction.shape, generator=generator, device=self.device)
        if look.law == "position":
            return draws < attraction * self._positions
        going = torch.rand(attraction.shape, generator=generator, device=self.device)
        looking = torch.ones_like(attraction[:, 0], dtype=torch.bool)
        clicks = []
        for k in range(attraction.shape[1]):
            clicks.append(looking & (draws[:, k] < attraction[:, k]))
            looking = looking & (going[:, k] < torch.where(clicks[-1], look.clicked, look.passed))
        return torch.stack(clicks, 1)

    def _draw_days(self, state: State, generator: torch.Generator) -> Tensor:
        """Draw the days until the next visit, (n,); inf where there is none."""
        last = self.parameters.come_back.max_days
        staying_away = torch.log1p(-self.return_hazard(state, last).clamp(max=1 - 1e-7)).cumsum(1).exp()
        draw = torch.rand(len(staying_away), 1, generator=generator, device=self.device)
        days = (staying_away > draw).sum(1) + 1
        return days.float().masked_fill(days > last, torch.inf)

    # What a decision holds

    def _copy(self, decision: Decision[Tensor]) -> Tensor:
        """Return the line with each item, (N, K); the number after the last line where there is none."""
        none = len(self.lines)
        if decision.copy is None:
            return torch.full_like(decision.slate, none)
        return decision.copy.masked_fill(decision.copy == EMPTY, none)

    def _offer(self, decision: Decision[Tensor]) -> Tensor:
        return torch.zeros_like(decision.slate[:, 0]) if decision.offer is None else decision.offer

    def _is_ad(self, decision: Decision[Tensor]) -> Tensor:
        """Return True where the item is an ad, (N, K)."""
        if decision.ad is None:
            return torch.zeros_like(decision.slate, dtype=torch.bool)
        return torch.arange(decision.slate.shape[1], device=self.device) == decision.ad[:, None]


def _draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a place in proportion to each row of weights (n, m), shape (n,)."""
    edges = weights.cumsum(1)
    draw = torch.rand(len(weights), 1, generator=generator, device=weights.device) * edges[:, -1:]
    return (edges[:, :-1] <= draw).sum(1)


def _schema(p: BazaarParameters) -> FeatureSchema:
    """The schema of time and features, as one learned from logs with every value would have it."""
    minutes = torch.arange(OPENS * 60, CLOSES * 60 + 1, dtype=torch.float64)
    points = torch.stack([f(2 * math.pi * minutes / 1_440) for f in (torch.sin, torch.cos)])
    return FeatureSchema(
        tuple(TIME),
        tuple(points.mean(1).tolist()),
        tuple(points.std(1, correction=0).tolist()),
        {feature.name: tuple(sorted(feature.values)) for feature in p.features},
    )


def _encoded_features(schema: FeatureSchema, p: BazaarParameters) -> Tensor:
    """Return each feature value's entries in an encoded row, time left out: (features, values, D - time)."""
    width = schema.width - len(schema.numeric)
    most = max((len(feature.values) for feature in p.features), default=0)
    table = torch.zeros(len(p.features), most, width)
    start = 0
    for i, feature in enumerate(p.features):
        known = schema.categories[feature.name]
        for j, value in enumerate(feature.values):
            table[i, j, start + known.index(value)] = 1.0
        start += len(known)
    return table
