"""A strategy by rules: rank by a score, explore a little, place an ad, an offer and lines of copy by chance.

Every choice has its exact propensity, so that it can write logs, and stand beside learned strategies as an arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hawker.policies.protocol import Strategy, picks_of, slate_of
from hawker.policies.slate import Marginals
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision

Scores = Tensor | Callable[[Context[Tensor]], Tensor]
"""A score per catalog item, shape (I,), or a function that gives a score per candidate, shape (B, C)."""


@dataclass(frozen=True)
class Habits:
    """What a shopkeeper leaves to chance.

    Attributes:
        exploration: Probability that a slot's item is drawn uniformly from what is left, in 0..1.
        ad_share: Probability that a page has an ad where a candidate has a bid, in 0..1.
        offers: Probability of each discount tier, adding up to 1.
        copy_share: Probability that an item has a line of copy, in 0..1.
    """

    exploration: float = 0.1
    ad_share: float = 0.0
    offers: tuple[float, ...] = (1.0,)
    copy_share: float = 0.0


class Shopkeeper(Strategy):
    """Slot by slot the best candidate that is left, or with the probability of exploration any that is left.

    A page first gets its ad or none, then its other items, then its offer and its lines. Propensities are of what
    stands at a position given what stands above it and given the page's ad; that of the ad is its own.
    """

    def __init__(
        self,
        name: str,
        size: int,
        scores: Scores,
        habits: Habits,
        bids: Tensor | None = None,
        lines: Tensor | None = None,
    ) -> None:
        """Set up the shop.

        Args:
            name: How reports call it.
            size: Slots of a slate, K.
            scores: What to rank by.
            habits: What to leave to chance.
            bids: Bid of each catalog item, shape (I,), 0 where it has none; an ad is drawn in proportion.
            lines: Numbers of the lines that may be shown, shape (L,).

        Raises:
            ValueError: Ads without bids, or copy without lines.
        """
        if (habits.ad_share > 0 and bids is None) or (habits.copy_share > 0 and (lines is None or not len(lines))):
            raise ValueError("ads need bids and copy needs lines")
        self.name, self.size, self.habits = name, size, habits
        self._scores, self._bids, self._lines = scores, bids, lines

    def distribution(self, context: Context[Tensor]) -> ExploringSlate:
        """Return the distribution over slates without an ad."""
        return ExploringSlate(self._score(context), context.mask, self.size, self.habits.exploration)

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        """Draw one decision per page; every part, log-probability and propensity is filled."""
        n, device = len(context.mask), context.mask.device
        ad, ad_pick, ad_log_prob = self._draw_ads(context, generator)
        organic = ExploringSlate(
            self._score(context), _without(context.mask, ad_pick), self.size, self.habits.exploration, ad
        )
        picks, steps = organic.draw(generator)
        log_prob = steps.log().sum(1)
        place = ad.clamp(min=0)[:, None]
        has_ad = (ad != EMPTY)[:, None]
        picks = torch.where(has_ad, picks.scatter(1, place, ad_pick[:, None]), picks)
        propensity = torch.where(has_ad, steps.scatter(1, place, ad_log_prob.exp()[:, None]), steps)
        offers = torch.tensor(self.habits.offers, device=device)
        offer = torch.multinomial(offers, n, replacement=True, generator=generator)
        copy = self._draw_copy(picks, generator)
        decision = Decision(
            slate_of(context, picks), log_prob, ad, offer, copy, propensity=propensity.masked_fill(picks == EMPTY, 1.0)
        )
        log_probs = {"ad": ad_log_prob, "offer": offers.log()[offer], "copy": self._copy_log_prob(decision)}
        return Decision(decision.slate, log_prob, ad, offer, copy, log_probs, decision.propensity)

    def log_prob(self, context: Context[Tensor], decision: Decision[Tensor]) -> Tensor:
        """Return the log-probability of each page's organic slate given its ad, shape (B,)."""
        picks = picks_of(context, decision.slate)
        if decision.ad is None:
            return self.distribution(context).log_prob(picks)
        ad = decision.ad
        ad_pick = picks.gather(1, ad.clamp(min=0)[:, None]).squeeze(1).masked_fill(ad == EMPTY, EMPTY)
        mask = _without(context.mask, ad_pick)
        return ExploringSlate(self._score(context), mask, self.size, self.habits.exploration, ad).log_prob(picks)

    def _score(self, context: Context[Tensor]) -> Tensor:
        if callable(self._scores):
            return self._scores(context)
        return self._scores.to(context.mask.device)[context.candidates]

    def _draw_ads(self, context: Context[Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return slot, pick and log-probability of each page's ad, (B,) each; ``EMPTY`` where it has none."""
        n, device = len(context.mask), context.mask.device
        none = torch.full((n,), EMPTY, device=device)
        if self._bids is None or self.habits.ad_share == 0:
            return none, none, torch.zeros(n, device=device)
        bids = self._bids.to(device)[context.candidates] * context.mask
        possible = bids.sum(1) > 0
        share = self.habits.ad_share * possible
        placed = torch.rand(n, generator=generator, device=device) < share
        weight = bids + (~possible)[:, None]  # where nobody bids nothing is placed, but something must be drawn
        pick = torch.multinomial(weight, 1, generator=generator)
        slots = context.mask.sum(1).clamp(min=1, max=self.size)
        slot = (torch.rand(n, generator=generator, device=device) * slots).long().clamp(max=slots - 1)
        chosen = (weight.gather(1, pick) / weight.sum(1, keepdim=True)).squeeze(1)
        probability = torch.where(placed, share * chosen / slots, 1 - share)
        return torch.where(placed, slot, none), torch.where(placed, pick.squeeze(1), none), probability.log()

    def _draw_copy(self, picks: Tensor, generator: torch.Generator) -> Tensor:
        """Return the number of each item's line, (B, K); ``EMPTY`` is none."""
        if self._lines is None or self.habits.copy_share == 0:
            return torch.full_like(picks, EMPTY)
        lines = self._lines.to(picks.device)
        line = lines[torch.randint(len(lines), picks.shape, generator=generator, device=picks.device)]
        shown = torch.rand(picks.shape, generator=generator, device=picks.device) < self.habits.copy_share
        return line.masked_fill(~shown | (picks == EMPTY), EMPTY)

    def _copy_log_prob(self, decision: Decision[Tensor]) -> Tensor:
        """Return the log-probability of each page's lines, (B,), from a decision with copy (B, K)."""
        share = self.habits.copy_share
        if self._lines is None or share == 0 or decision.copy is None:
            return torch.zeros_like(decision.log_prob)
        some = math.log(share / len(self._lines))
        none = math.log1p(-share) if share < 1 else 0.0  # never drawn
        each = torch.where(decision.copy != EMPTY, some, none)
        return each.masked_fill(decision.slate == EMPTY, 0.0).sum(1)


class ExploringSlate:
    """Slates drawn slot by slot: with probability 1 - e the best candidate that is left, else any that is left."""

    def __init__(
        self, scores: Tensor, mask: Tensor, size: int, exploration: float, taken: Tensor | None = None
    ) -> None:
        """Set up the distribution.

        Args:
            scores: Finite scores, shape (B, C); among equal ones the first is the best.
            mask: True where a candidate is eligible, shape (B, C).
            size: Slots, K.
            exploration: The probability e, in 0..1.
            taken: A slot of each page that is not filled here, shape (B,); ``EMPTY`` is none.
        """
        self.scores = scores.masked_fill(~mask, -torch.inf)
        self.size, self.exploration = size, exploration
        self._taken = torch.full_like(mask[:, 0], EMPTY, dtype=torch.int64) if taken is None else taken

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw picks and return them with the probability of each given those above, both (B, K)."""
        return self._fill(generator)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw picks of shape (B, K)."""
        return self._fill(generator)[0]

    def mode(self) -> Tensor:
        """Return the best picks slot by slot, shape (B, K)."""
        return self._fill(None)[0]

    def _fill(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        n, device = len(self.scores), self.scores.device
        left = self.scores.clone()
        picks, steps = [], []
        explores = torch.zeros(n, self.size, dtype=torch.bool, device=device)
        if generator is not None:
            explores = torch.rand(n, self.size, generator=generator, device=device) < self.exploration
        for slot in range(self.size):
            pick = left.max(1).indices
            if generator is not None:
                rows = explores[:, slot].nonzero().squeeze(1)
                keys = torch.rand(len(rows), left.shape[1], generator=generator, device=device)
                pick = pick.index_copy(0, rows, keys.masked_fill(left[rows].isneginf(), -1.0).max(1).indices)
            pick, step = self._close(left, pick, slot)
            picks.append(pick)
            steps.append(step)
        return torch.stack(picks, 1), torch.stack(steps, 1)

    def _close(self, left: Tensor, pick: Tensor, slot: int) -> tuple[Tensor, Tensor]:
        """Put ``pick`` (B,) into a slot: strike it from ``left`` (B, C), return it and its probability, (B,) each."""
        count = (~left.isneginf()).sum(1)
        best = left.max(1).indices == pick
        step = self.exploration / count.clamp(min=1) + (1 - self.exploration) * best
        idle = (count == 0) | (self._taken == slot)
        kept = left.gather(1, pick[:, None])
        left.scatter_(1, pick[:, None], torch.where(idle[:, None], kept, -torch.inf))
        return pick.masked_fill(idle, EMPTY), step.masked_fill(idle, 1.0)

    def log_prob(self, picks: Tensor) -> Tensor:
        """Return the log-probability of whole slates (B, K), shape (B,); what stands in a taken slot is passed over."""
        left = self.scores.clone()
        total = torch.zeros_like(left[:, 0])
        for slot in range(self.size):
            pick, here = picks[:, slot], self._taken == slot
            possible = ~left.gather(1, pick.clamp(min=0)[:, None]).squeeze(1).isneginf() & (pick != EMPTY)
            over = left.isneginf().all(1) & (pick == EMPTY)
            _, step = self._close(left, pick.clamp(min=0), slot)
            total = total + torch.where(here | over, 0.0, torch.where(possible, step.log(), -torch.inf))
        return total

    def marginals(self, draws: int, generator: torch.Generator) -> Marginals:
        """Estimate the marginal probability of each candidate at each position from ``draws`` slates of each page."""
        n, c = self.scores.shape
        counts = torch.zeros(n, self.size, c, device=self.scores.device)
        for _ in range(draws):
            picks = self.sample(generator)
            counts.scatter_add_(2, picks.clamp(min=0)[:, :, None], (picks != EMPTY)[:, :, None].float())
        mean = counts / draws
        return Marginals(mean, float((mean * (1 - mean) / draws).sqrt().max()))


def _without(mask: Tensor, pick: Tensor) -> Tensor:
    """Return the mask (B, C) without the pick (B,) of each page; ``EMPTY`` is none."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return mask & (places != pick[:, None])
