"""Bandits fitted on a log: honest baselines with the contexts and candidates that a learned strategy gets.

`LinUCB` ranks by an upper bound of the logit, `LinearThompson` by draws from its posterior; both learn from
the log once and are not updated by what they show. The bound also ranks in a `Shopkeeper` with other habits, that
places ads, makes offers and shows copy: ``Shopkeeper(name, size, LinUCB(model, size).bound, habits, bids, lines)``.
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from hawker.policies.clicks import ClickModel, ClickRows
from hawker.policies.protocol import Strategy
from hawker.policies.shopkeeper import ExploringSlate, Habits, Shopkeeper
from hawker.policies.slate import Marginals
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY

DRAWS = 64
"""Draws from the posterior that `LinearThompson` chooses among."""

_CHUNK = 8_192  # pages and models at once: the working set stays near the cache


class LinUCB(Shopkeeper):
    """Ranks by an upper confidence bound of the click's logit: posterior mean + alpha standard deviations.

    It draws nothing, so every slate has probability 0 or 1 unless ``exploration`` is above 0; propensities are exact.

    References:
        Li, Chu, Langford and Schapire (2010), A Contextual-Bandit Approach to Personalized News Article Recommendation,
        arXiv 1003.0146, the hybrid model of section 3.2; for clicks with a logistic link, so that the bound is on the
        logit.
    """

    def __init__(self, model: ClickModel, size: int, alpha: float = 1.0, exploration: float = 0.0) -> None:
        """Set up the strategy.

        Args:
            model: The clicks' posterior.
            size: Slots of a slate, K.
            alpha: Standard deviations added; 0 is greedy, and less is pessimistic.
            exploration: Probability that a slot's item is drawn uniformly from what is left, in 0..1.
        """
        self.model, self.alpha = model, alpha
        super().__init__("linucb", size, self.bound, Habits(exploration))

    @classmethod
    def fit(
        cls,
        impressions: pd.DataFrame,
        builder: ContextBuilder,
        size: int,
        alpha: float = 1.0,
        exploration: float = 0.0,
    ) -> LinUCB:
        """Fit the posterior on a log, with the prior that `tune` finds."""
        rows = ClickRows.from_impressions(impressions, builder)
        return cls(ClickModel.fit(rows, builder), size, alpha, exploration)

    def bound(self, context: Context[Tensor]) -> Tensor:
        """Return the upper bound of each candidate's logit, shape (B, C)."""
        score = self.model.logit(context)
        if self.alpha:
            score = score + self.alpha * self.model.variance(context).sqrt()
        return score.float()


class LinearThompson(Strategy):
    """Ranks by one draw from the posterior for each page.

    The draws come from a fixed set of ``draws`` models, made once from the posterior. A slate's probability is then the
    share of models that rank it so: exact, where that under fresh draws has no closed form, and the same in the limit.
    What none of the models would show has probability 0. Of single positions it states none.

    References:
        Agrawal and Goyal (2013), Thompson Sampling for Contextual Bandits with Linear Payoffs, arXiv 1209.3352; a
        finite set of models: Lu and Van Roy (2017), Ensemble Sampling, arXiv 1705.07347.
    """

    name = "thompson"

    def __init__(self, model: ClickModel, size: int, draws: int = DRAWS, seed: int = 0) -> None:
        """Args: the clicks' posterior, slate ``size`` K, number of ``draws`` >= 1 made from it and their ``seed``."""
        self.model, self.size = model, size
        table, self._slope = model.draw(draws, torch.Generator().manual_seed(seed))
        self._table = table.transpose(0, 1).contiguous()  # what is gathered stands together

    @classmethod
    def fit(
        cls,
        impressions: pd.DataFrame,
        builder: ContextBuilder,
        size: int,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> LinearThompson:
        """Fit the posterior on a log, with the prior that `tune` finds."""
        rows = ClickRows.from_impressions(impressions, builder)
        return cls(ClickModel.fit(rows, builder), size, draws, seed)

    def distribution(self, context: Context[Tensor]) -> ThompsonSlate:
        """Return the mixture of the models' rankings."""
        u, affinity = self.model.row(context)
        mean = self.model.logit(context).float()
        drawn = self._table.to(u.device), self._slope.to(u.device)
        return ThompsonSlate(*drawn, u.float(), affinity.float(), mean, context, self.size)


class ThompsonSlate:
    """Each page's slate is the ranking of one of M models, all equally likely."""

    def __init__(
        self,
        table: Tensor,
        slope: Tensor,
        u: Tensor,
        affinity: Tensor,
        mean: Tensor,
        context: Context[Tensor],
        size: int,
    ) -> None:
        """Set up the distribution.

        Args:
            table: Each item's coefficients of u by each model, shape (I, M, P).
            slope: And of affinity, shape (M,).
            u: Of each page, shape (B, P).
            affinity: Of each candidate in the models' unit, shape (B, C).
            mean: Scores that the mode ranks by, shape (B, C).
            context: The pages' candidates and mask.
            size: Slots, K.
        """
        self.size = size
        self._table, self._slope, self._u, self._affinity, self._mean = table, slope, u, affinity, mean
        self._candidates, self._mask = context.candidates.long(), context.mask

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw picks of shape (B, K)."""
        n = len(self._u)
        model = torch.randint(len(self._slope), (n,), generator=generator, device=self._u.device)
        return self._ranked(self._scores(torch.arange(n, device=model.device), model))

    def mode(self) -> Tensor:
        """Return the picks by the posterior mean, shape (B, K): not the likeliest slate, but the greedy one."""
        return self._ranked(self._mean)

    def log_prob(self, picks: Tensor) -> Tensor:
        """Return the log-probability of whole slates (B, K), shape (B,)."""
        count = torch.zeros_like(self._u[:, 0])
        step = max(1, _CHUNK // len(self._slope))
        for start in range(0, len(picks), step):
            row, model = self._in_order(picks, slice(start, start + step))
            for some in range(0, len(row), _CHUNK):
                part = slice(some, some + _CHUNK)
                count.index_add_(0, row[part], self._on_top(picks, row[part], model[part]).to(count))
        expected = self._mask.sum(1).clamp(max=self.size)
        whole = ((picks != EMPTY) == (torch.arange(self.size, device=picks.device) < expected[:, None])).all(1)
        return torch.where(whole, (count / len(self._slope)).log(), -torch.inf)

    def marginals(self, draws: int, generator: torch.Generator) -> Marginals:
        """Return the probability of each candidate at each position: exact, from all models; nothing is drawn."""
        n, c = self._mask.shape
        total = self._u.new_zeros(n, self.size, c)
        for number in range(len(self._slope)):
            row = torch.arange(n, device=self._u.device)
            picks = self._ranked(self._scores(row, torch.full_like(row, number)))
            total.scatter_add_(2, picks.clamp(min=0)[:, :, None], (picks != EMPTY)[:, :, None].to(total))
        return Marginals(total / len(self._slope), 0.0)

    def _ranked(self, scores: Tensor) -> Tensor:
        return ExploringSlate(scores, self._mask, self.size, 0.0).mode()

    def _scores(self, row: Tensor, model: Tensor) -> Tensor:
        """Return the scores of the candidates of those pages by a model for each, shape (len(row), C)."""
        table = self._table[self._candidates[row], model[:, None]]
        return (table * self._u[row, None, :]).sum(-1) + self._slope[model, None] * self._affinity[row]

    def _in_order(self, picks: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Return the pages of a part, and models, (n,) each, by which what is picked is eligible and stands in order.

        Few do, so that only they need be asked of the other candidates.
        """
        picks, u, mask = picks[part], self._u[part], self._mask[part]
        place, filled = picks.clamp(min=0), picks != EMPTY
        item = self._candidates[part].gather(1, place)
        affinity = self._affinity[part].gather(1, place)
        score = (self._table[item] * u[:, None, None, :]).sum(-1) + self._slope * affinity[:, :, None]  # (B, K, M)
        at = place[:, :, None]
        falls = _before(score[:, :-1], at[:, :-1], score[:, 1:], at[:, 1:]) | ~filled[:, 1:, None]
        possible = falls.all(1) & (mask.gather(1, place) | ~filled).all(1, keepdim=True)
        row, model = possible.nonzero(as_tuple=True)
        return row + (part.start or 0), model

    def _on_top(self, picks: Tensor, row: Tensor, model: Tensor) -> Tensor:
        """Return where no other eligible candidate of those pages comes before the last picked, (len(row),)."""
        score, picks = self._scores(row, model), picks[row]
        filled = (picks != EMPTY).sum(1, keepdim=True)
        last = picks.clamp(min=0).gather(1, (filled - 1).clamp(min=0))
        places = torch.arange(score.shape[1], device=score.device)
        first = _before(score, places, score.gather(1, last), last) & self._mask[row]
        # the slate's own items that come before the last are all but one of it
        return (first.sum(1, keepdim=True) == filled - 1).squeeze(1) | (filled.squeeze(1) == 0)


def _before(score: Tensor, place: Tensor, other: Tensor, other_place: Tensor) -> Tensor:
    """Return where a candidate is ranked before another: by score, and among equals by place."""
    return (score > other) | ((score == other) & (place < other_place))
