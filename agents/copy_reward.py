"""What learned shoppers would make of a line of copy: the reward that a writer is trained with.

A line stands with an item on the first slot of pages that the log shows, before shoppers of its audience whose history
each member of the ensemble has read. Nothing is drawn: clicks and purchases are their probabilities, and what a line
does to coming back is read from the memory, carried one page on with the line clicked and with it passed over, each as
likely as it is. Other slots keep what came of them in the log. The answer to a line does not depend on what else is
asked in the same call, and the lines of one item and audience meet the same shoppers.

Nobody in the log has answered to words that it does not show: models take them for the average of the lines they know,
and a writer finds that out. The reward is for what is known: a line counts as far as it is familiar
(``Lines.familiar``), and for the rest as no line.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hawker.shop.audiences import Audiences
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.language import load_encoder
from hawker.shop.models import home
from hawker.shop.reward import RewardSpec
from hawker.simulators.learned import WEEK
from hawker.simulators.likelihood import recall
from hawker.simulators.rows import Rows, Timeline, encode_log
from hawker.simulators.shopper import ShopperModel, calibrated
from hawker.simulators.split import shopper_codes
from hawker.simulators.store import FittedShoppers, Role
from hawker.simulators.taste_classes import TasteClasses
from hawker.simulators.taste_rows import beliefs_before, believed

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SHOPPERS = 800
"""Shoppers of the log whose histories are read, at most."""

POOL = 64
"""Pages kept of an audience, at most."""

COMPONENTS = ("click", "conversion", "return_visit", "total", "spread")
"""What is answered of each line; see ``CopyReward.by_member``."""


class CopyReward:
    """The expected reward of lines of copy; see the module.

    Attributes:
        audiences: How the log's shoppers are told apart.
        labels: The audiences that the log's pages have, which may be asked about; "" stands for anybody.
        spec: The reward, its response expected.
        last: Share of the log's pages that are the last of their visit.
    """

    def __init__(
        self,
        shoppers: FittedShoppers,
        impressions: pd.DataFrame,
        items: pd.DataFrame,
        spec: RewardSpec,
        *,
        discounts: Sequence[float] = (0.0,),
        role: Role = "train",
        contexts: int = 32,
        seed: int = 0,
    ) -> None:
        """Read the histories.

        Args:
            shoppers: The fitted shoppers.
            impressions: Of the log's part that belongs to the role: ``shoppers.read_part(role)``.
            items: The log's items.
            spec: Its weights of clicks, purchases, revenue and returns, its cost of offers, and its pessimism count.
            discounts: Share of the price taken off by each of the log's tiers of offers, none included.
            role: Whether the ensemble to train against answers, or the judge.
            contexts: Pages that each line is put on.
            seed: Decides which pages are kept, and which a line is put on.

        Raises:
            InputError: The shoppers know no lines, or lack what the reward pays for.
        """
        if shoppers.lines is None:
            raise InputError(
                "these shoppers have seen no lines of copy",
                where=shoppers.logs,
                remedy="fit them to logs that show copy",
            )
        if contexts < 1:
            raise InputError("no contexts", where="contexts", got=contexts, expected="at least 1")
        self.spec, self._contexts, self._shoppers = replace(spec, response="expected"), contexts, shoppers
        ensemble = shoppers.ensembles[role].requires_grad_(False).eval()
        self._device = shoppers.arrivals[role].shopper.device
        self._discounts = np.asarray(discounts, np.float64)
        self._encoder = load_encoder(shoppers.config.encoder, self._device, home() / "vectors")
        recorded = self._recorded = ensemble.models[0].recorded
        for name, there in (
            ("conversion", recorded.conversions),
            ("revenue", recorded.revenue),
            ("return_visit", recorded.returns),
        ):
            if getattr(spec, name) and not there:
                raise InputError(
                    f"the shoppers have no {name} head",
                    where=f"reward.{name}",
                    got=getattr(spec, name),
                    expected="0",
                    remedy=f"their logs recorded no {name}",
                )
        generator = np.random.default_rng(seed)
        sample = _some_shoppers(impressions, generator)
        log = encode_log(sample, shoppers.builder, shoppers.lines, self._device)
        heads = np.flatnonzero(np.diff(log.rows.page.cpu().numpy(), prepend=-1))  # the first row of each page
        self.last = sample["visit_id"].nunique() / len(heads)
        self.audiences = Audiences.fit(impressions, items)
        label = self.audiences.label(sample, items).codes[log.order[heads]]
        pages, pools = _pools(label.astype(np.int64), generator)
        self._pool = {self.audiences.labels[code]: places for code, places in pools.items()}
        self.labels = tuple(self._pool)
        self._pool[""] = np.arange(len(pages))
        self._salt = int(generator.integers(2**31))
        with torch.inference_mode():
            kept = self._tensor(pages)
            self._believes, rows = _Believes.read(ensemble.tastes, log.rows, kept)
            self._shopper = rows.shopper[kept]
            self._members = [_Member.read(model, rows, kept, self._believes) for model in ensemble.models]
            self._calibration = ensemble.calibration

    def __call__(
        self,
        item_ids: Sequence[str],
        audiences: Sequence[str],
        discounts: Sequence[float],
        lines: Sequence[str],
    ) -> dict[str, Floats]:
        """Return the means over members and contexts of what ``by_member`` answers, each of shape (n,)."""
        found = self.by_member(item_ids, audiences, discounts, lines)
        return {name: values.mean(0) for name, values in found.items()}

    @torch.inference_mode()
    def by_member(
        self,
        item_ids: Sequence[str],
        audiences: Sequence[str],
        discounts: Sequence[float],
        lines: Sequence[str],
    ) -> dict[str, Floats]:
        """Return what each of M members expects of n lines, by name of ``COMPONENTS``, each of shape (M, n).

        ``click`` is P(click on the item) at the page's first slot; ``conversion`` P(click and purchase);
        ``return_visit`` P(the next visit begins within 7 days, if this one ends with the page), 0 where the log knows
        no returns; ``spread`` by how much the member and the next one differ over what the page earns, in units of
        reward; ``total`` the reward: what the environment pays for the slot, with ``RewardSpec``'s own pessimism, and
        for the return what it pays a page on average. Both take what is not familiar of a line for no line. A return is
        paid on a visit's last page, and pages are that as often as in the log, whatever the line: else lines would earn
        by sending shoppers away.

        Args:
            item_ids: The item that each line is about.
            audiences: For whom, of ``labels``, or "" for anybody.
            discounts: Share of the price taken off; the nearest of the shop's discounts counts.
            lines: The lines; a blank one is no line.

        Raises:
            InputError: The lists differ in length, or an item or an audience is not known.
        """
        if len({len(item_ids), len(audiences), len(discounts), len(lines)}) > 1:
            got = f"{len(item_ids)} items, {len(audiences)} audiences, {len(discounts)} discounts, {len(lines)} lines"
            raise InputError("lists of different lengths", where="copy reward", got=got)
        members, n = len(self._members), len(lines)
        if not n:
            return {name: np.zeros((members, 0)) for name in COMPONENTS}
        item = self._shoppers.builder.catalog.index(item_ids, "copy reward")
        places = self._tensor(self._places(item, audiences))  # (n, C)
        tier = np.abs(np.asarray(discounts, np.float64)[:, None] - self._discounts).argmin(1)
        said, vectors, counted, familiar = self._encoded(lines)
        asked = _Asked(self._tensor(item), self._tensor(tier), self._tensor(said), self._tensor(vectors), places)
        answers = self._answers(asked)
        click, conversion, _, back = answers
        if (familiar < 1).any():
            whom = np.unique(np.asarray(audiences, dtype=object).astype(str), return_inverse=True)[1]
            _, first, of = np.unique(np.stack([item, tier, whom]), axis=1, return_index=True, return_inverse=True)
            plain, weight = self._answers(asked.unsaid(self._tensor(first))), self._tensor(familiar)[:, None]
            answers = tuple(no[:, self._tensor(of)].lerp(yes, weight) for yes, no in zip(answers, plain, strict=True))
        found = {"click": click, "conversion": click * conversion, "return_visit": back}
        found |= self._paid(asked, self._tensor(counted), *answers)
        return {name: found[name].mean(2).double().cpu().numpy() for name in COMPONENTS}

    def _tensor(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _places(self, item: Ints, audiences: Sequence[str]) -> Ints:
        """Return the contexts that each line is put on, shape (n, C): those of its item and audience alone."""
        names, number = np.unique(np.asarray(audiences, dtype=object).astype(str), return_inverse=True)
        found = np.empty((len(item), self._contexts), np.int64)
        for i, name in enumerate(names):
            if name not in self._pool:
                remedy = did_you_mean(name, self.labels)
                raise InputError("no page of the log has this audience", where="copy reward", got=name, remedy=remedy)
            own = number == i
            # A pool is in random order: any stretch of it, begun where the item says, is a random sample.
            start = (item[own] * 2_654_435_761 + self._salt) % len(self._pool[name])
            found[own] = self._pool[name][(start[:, None] + np.arange(self._contexts)) % len(self._pool[name])]
        return found

    def _answers(self, asked: _Asked) -> tuple[Tensor, ...]:
        """Return the chance of a click, of a purchase after it, its worth and the chance of coming back: (M, n, C)."""
        rows = self._rows(asked)
        answers = [member.answer(rows, asked, self._calibration) for member in self._members]
        return tuple(map(torch.stack, zip(*answers, strict=True)))

    def _encoded(self, lines: Sequence[str]) -> tuple[Ints, npt.NDArray[np.float32], Ints, npt.NDArray[np.float32]]:
        """Return each line's number among vectors, these scaled, its number in the log's bank, and how familiar it is.

        ``EMPTY`` is no line in both; in the bank, a line that the log does not show has the number after the last.
        """
        bank = self._shoppers.lines
        assert bank is not None
        texts = tuple(dict.fromkeys(line for line in lines if line.strip()))
        place = {text: i for i, text in enumerate(texts)}
        known = {text: i for i, text in enumerate(bank.texts)}
        vectors = np.zeros((1 + len(texts), bank.vectors.shape[1]), np.float32)  # the last is nobody's
        familiar = np.ones(1 + len(texts), np.float32)
        if texts:
            vectors[:-1] = bank.with_texts(texts, self._encoder).scaled
            familiar[:-1] = bank.familiar(texts, self._encoder)
        said = np.array([place.get(line, EMPTY) for line in lines], np.int64)
        counted = np.array([known.get(line, len(bank)) if line.strip() else EMPTY for line in lines], np.int64)
        return said, vectors, counted, familiar[said]

    def _rows(self, asked: _Asked) -> Rows:
        """Return what is asked as pages of one slot, each line in each of its contexts, (n C) of them."""
        place, contexts, recorded = asked.places.reshape(-1), asked.places.shape[1], self._recorded
        item, tier, said = (part.repeat_interleave(contexts) for part in (asked.item, asked.tier, asked.said))
        none = torch.zeros(len(place), device=place.device)
        rows = Rows(
            self._shopper[place],
            page=torch.arange(len(place), device=place.device),
            item=item,
            position=torch.zeros_like(item),
            affinity=none,
            clicked=none,
            line=said,
            offer=tier.clamp(max=recorded.offers - 1) if recorded.offers > 1 else None,
            ad=none if recorded.ads else None,
        )
        self._believes.hear(asked.vectors)
        return self._believes.of(rows, place)

    def _paid(
        self, asked: _Asked, counted: Tensor, click: Tensor, conversion: Tensor, worth: Tensor, back: Tensor
    ) -> dict[str, Tensor]:
        """Return the reward and the spread of the pages, both (M, n, C), by ``RewardSpec`` itself."""
        shape, recorded = click.shape, self._recorded
        flat = [part.reshape(-1, 1) for part in (click, conversion, worth)]
        slate, tier, line = (part[:, None].expand(shape).reshape(-1) for part in (asked.item, asked.tier, counted))
        decision = Decision(slate[:, None], torch.zeros_like(flat[0][:, 0]), offer=tier)
        said = replace(decision, copy=line[:, None])
        outcome = Outcome(
            clicked=torch.zeros_like(flat[0]),
            click_probability=flat[0],
            gone=torch.zeros_like(slate, dtype=torch.bool),
            revenue=flat[0] * flat[1] * flat[2] if recorded.revenue else None,
            conversion_probability=flat[1] if recorded.conversions else None,
            leave=torch.full_like(flat[0][:, 0], self.last),
            return_probability=back.reshape(-1) if recorded.returns else None,
            unsupported=self._shoppers.support.missing(said),
        )
        # The next member is the second opinion, as in the world that strategies are trained in.
        other = [part.roll(-1, 0).reshape(-1, 1) for part in (click, conversion)]
        second = replace(outcome, click_probability=other[0])
        if recorded.conversions:
            second = replace(second, conversion_probability=other[1])
        outcome = replace(outcome, second=second)
        bids = torch.zeros(len(self._shoppers.builder.catalog), device=self._device)
        parts = self.spec.components(outcome, decision, bids)
        earns = replace(self.spec, revenue=0.0)
        one, two = (earns.slots(opinion, decision, bids).sum(1) for opinion in (outcome, second))
        total = torch.stack(list(parts.values())).sum(0)
        return {"total": total.reshape(shape), "spread": (one - two).abs().reshape(shape)}


@dataclass(frozen=True)
class _Asked:
    """n lines: item, tier and number of the line's vector (``EMPTY`` for none), each (n,); vectors; contexts (n, C)."""

    item: Tensor
    tier: Tensor
    said: Tensor
    vectors: Tensor
    places: Tensor

    def unsaid(self, which: Tensor) -> _Asked:
        """Return some of what is asked, with no line."""
        said = torch.full_like(which, EMPTY)
        return replace(self, item=self.item[which], tier=self.tier[which], said=said, places=self.places[which])


@dataclass(frozen=True)
class _Believes:
    """What is believed of the shoppers of the Q contexts: classes of one's own, or None, and beliefs (Q, CLASSES)."""

    tastes: TasteClasses | None
    beliefs: Tensor

    @classmethod
    def read(cls, tastes: TasteClasses | None, rows: Rows, pages: Tensor) -> tuple[_Believes, Rows]:
        """Read a log up to some of its ``pages`` (Q,); return its rows with what was expected of them, too."""
        if tastes is None:
            return cls(None, rows.shopper.new_zeros(len(pages), 0)), rows
        beliefs = beliefs_before(tastes, rows)
        return cls(copy.deepcopy(tastes), beliefs[pages]), replace(rows, believed=believed(tastes, beliefs, rows))

    def hear(self, vectors: Tensor) -> None:
        """Take the lines of a call, shape (L, v), in place of those of the log."""
        if self.tastes is not None:
            self.tastes.line_vectors = vectors

    def of(self, rows: Rows, place: Tensor) -> Rows:
        """Return rows with what is expected of them in contexts ``place`` (P,), one for each of their pages."""
        if self.tastes is None:
            return rows
        return replace(rows, believed=believed(self.tastes, self.beliefs[place], rows))


@dataclass(frozen=True)
class _Member:
    """One member's view of the Q contexts that are kept.

    Attributes:
        model: The member, of one's own: its lines are those of the last call, and its pages have one slot.
        person: What its heads see before each page, shape (Q, D + TOLD + wishes).
        view: What a slot's item is known by to the others of its page, shape (I, V); None where pages have one slot.
        below: What the other slots add to the log-odds of the first one, as weights on ``view``, shape (Q, V) or None.
        carried: What the memory brings to each page, shape (Q, H); None without a memory.
        rest: What the memory reads of the other slots, by tier of the page, shape (tiers, Q, width); None likewise.
        gap, number: Days since the page before, and the page's number within its visit, shape (Q,).
    """

    model: ShopperModel
    person: Tensor
    view: Tensor | None
    below: Tensor | None
    carried: Tensor | None
    rest: Tensor | None
    gap: Tensor
    number: Tensor

    @classmethod
    def read(cls, model: ShopperModel, rows: Rows, pages: Tensor, believes: _Believes) -> _Member:
        """Read a log, and keep what is known before some of its ``pages`` (Q,)."""
        model = copy.deepcopy(model)
        person, after = recall(model, rows)
        others = rows.take(pages)
        others = others.only((others.position > 0).nonzero().squeeze(1))
        view = below = carried = rest = None
        if model.in_view is not None:
            view, widths = model.in_view.vectors, torch.tensor(model.in_view._widths, device=person.device)
            lying = view[others.item]
            below = lying.new_zeros(len(pages), lying.shape[1]).index_add(0, others.page, lying)
            below = below * model.in_view.below.repeat_interleave(widths)
            model.in_view = None
        gap = number = person.new_zeros(len(pages))
        if model.memory is not None:
            carried = model.memory.start(model.scaled(rows.shopper))
            if after is not None and rows.time is not None:
                carried[1:] = torch.where(_begins(rows.time)[1:, None], carried[1:], after[:-1])
                gap, number = rows.time.gap[pages], rows.time.number[pages]
            carried = carried[pages]
            tiers = range(model.recorded.offers)
            others_by_tier = [others]
            if len(tiers) > 1:
                every = torch.arange(len(gap), device=gap.device)
                offered = [replace(others, offer=torch.full_like(others.item, tier)) for tier in tiers]
                others_by_tier = [believes.of(page, every) for page in offered]
            rest = torch.stack([model.summary(page) for page in others_by_tier])
        return cls(model, person[pages], view, below, carried, rest, gap, number)

    def answer(self, rows: Rows, asked: _Asked, calibration: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return P(click), P(purchase | click), a purchase's worth and P(return within 7 days), each (n, C).

        What the log does not record is 0; ``rows`` are ``CopyReward._rows`` of what is ``asked``.
        """
        model, place = self.model, asked.places.reshape(-1)
        model.line_vectors = asked.vectors
        none, tier = rows.clicked, torch.zeros_like(rows.item) if rows.offer is None else rows.offer
        person = self.person[place]
        odds = model.log_odds(person, rows)
        if self.view is not None and self.below is not None:
            odds = odds + (self.view[rows.item] * self.below[place]).sum(1)
        click = calibrated(model.log_click(odds, rows).exp(), calibration[0])
        bought = worth = back = none
        if model.conversion is not None:
            bought = calibrated(model.conversion_odds(person, rows, odds).sigmoid(), calibration[1])
        if model.recorded.revenue:
            # The mean of a log-normal worth.
            worth = (model.log_amount(rows) + (2 * model.amount_spread).exp() / 2).exp()
        if model.back is not None:
            passed = self._back(rows, place, tier, calibration)
            taken = replace(rows, clicked=none + 1.0, converted=bought, revenue=bought * worth)
            back = torch.lerp(passed, self._back(taken, place, tier, calibration), click)
        click, bought, worth, back = (part.reshape(asked.places.shape) for part in (click, bought, worth, back))
        return click, bought, worth, back

    def _back(self, rows: Rows, place: Tensor, tier: Tensor, calibration: Tensor) -> Tensor:
        """Return P(the next visit begins within 7 days, if this one ends now) after answered slots, shape (n C,)."""
        model = self.model
        assert model.memory is not None
        assert self.carried is not None
        assert self.rest is not None
        summary = model.summary(rows) + self.rest[tier, place]
        after = model.memory.after(self.carried[place], self.gap[place], self.number[place], summary)
        hazard = calibrated(model.return_odds(after)[:, :WEEK].sigmoid(), calibration[3])
        return -torch.expm1(torch.log1p(-hazard).sum(1))


def _begins(time: Timeline) -> Tensor:
    """Return True for the first page of each shopper, shape (P,)."""
    found = torch.zeros(len(time.gap), dtype=torch.bool, device=time.gap.device)
    return found.index_fill(0, time.first[:-1], True)


def _some_shoppers(impressions: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """Return all rows of some shoppers, ``SHOPPERS`` of them at most, in order of time."""
    code = shopper_codes(impressions)
    n = int(code.max(initial=-1)) + 1
    chosen = np.zeros(n, bool)
    chosen[generator.permutation(n)[:SHOPPERS]] = True
    rows: pd.DataFrame = impressions[chosen[code]].reset_index(drop=True)
    return rows


def _pools(audience: Ints, generator: np.random.Generator) -> tuple[Ints, dict[int, Ints]]:
    """Return which pages are kept, in random order, and the places of each audience's among them.

    Args:
        audience: Number of each page's audience, shape (P,).
        generator: Draws them, ``POOL`` of an audience at most.
    """
    order = generator.permutation(len(audience))
    rank = pd.Series(audience[order]).groupby(audience[order]).cumcount().to_numpy()
    kept = order[rank < POOL]
    return kept, {int(name): np.flatnonzero(audience[kept] == name) for name in np.unique(audience[kept])}
