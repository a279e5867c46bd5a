"""The slate: a Plackett-Luce distribution over ordered lists without repetition, and the actor that scores items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY

LOGIT_BOUND = 20.0
"""Logits lie in (-20, 20): the rarest candidate keeps a probability that float32 can hold next to the likeliest."""


ENUMERABLE = 256
"""Candidates up to which the third slot's marginals are summed over every first item."""


class Marginals(NamedTuple):
    """Probability of each candidate at each position of a slate.

    Attributes:
        probability: Estimate of P(candidate at position), shape (B, K, C); sums to 1 over the candidates wherever the
            slot is filled.
        error: Largest Monte Carlo standard error of an entry; 0 if nothing had to be sampled.
    """

    probability: Tensor
    error: float


class PlackettLuce:
    """Slates drawn item by item without replacement, each with probability proportional to exp(logit).

    A slot stays ``EMPTY`` only when no eligible candidate is left. Picks are places in the candidate list, not catalog
    indices.

    References:
        Plackett (1975), The Analysis of Permutations; sampling by Gumbel top-k as in Kool et al. (2019),
        Stochastic Beams and Where to Find Them, arXiv 1903.06059.
    """

    def __init__(self, logits: Tensor, mask: Tensor, size: int) -> None:
        """Args: ``logits`` (B, C) within 80 of each other, ``mask`` (B, C) of eligible candidates, ``size`` = K."""
        self.logits = logits.masked_fill(~mask, -torch.inf)
        self.mask = mask
        self.size = size

    def _ranked(self, scores: Tensor) -> Tensor:
        """Return the K best eligible places of ``scores``, shape (B, K)."""
        found = min(self.size, scores.shape[1])
        top = scores.topk(found, dim=1)
        picks = top.indices.masked_fill(torch.isneginf(top.values), EMPTY)
        return nn.functional.pad(picks, (0, self.size - found), value=EMPTY)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw a slate for every page: picks of shape (B, K)."""
        return self._ranked(self.logits + gumbel(self.logits, generator))

    def mode(self) -> Tensor:
        """Return the likeliest slates: candidates by falling logit, picks of shape (B, K)."""
        return self._ranked(self.logits)

    def _suffix_sums(self, picks: Tensor, terms: Tensor) -> Tensor:
        """Sum ``terms`` (B, C) over what is still to be picked at each slot: shape (B, K).

        Candidates never picked count at every slot and a pick counts up to its own, so that one cumulative sum from
        the end replaces a pass over the candidates for every slot.
        """
        filled = picks != EMPTY
        places = picks.clamp(min=0)
        chosen = terms.gather(1, places) * filled
        picked = torch.zeros_like(terms).scatter_add(1, places, filled.to(terms.dtype)) > 0
        rest = terms.masked_fill(picked, 0.0).sum(1, keepdim=True)
        return rest + chosen.flip(1).cumsum(1).flip(1)

    def log_prob(self, picks: Tensor) -> Tensor:
        """Return the log-probability of whole slates, shape (B,).

        It is minus infinity for a slate that cannot be drawn: a candidate that is repeated or not eligible, or an empty
        slot while a candidate is left.
        """
        filled = picks != EMPTY
        places = picks.clamp(min=0)
        shifted = self.logits - self.logits.amax(1, keepdim=True).clamp(min=-2 * LOGIT_BOUND)
        weight = shifted.exp()
        left = self._suffix_sums(picks, weight)
        picked_logit = torch.where(filled, shifted.gather(1, places), 0.0)
        log_prob = (picked_logit - torch.where(filled, left, 1.0).log()).sum(1)
        return log_prob.masked_fill(~self._possible(picks), -torch.inf)

    def _possible(self, picks: Tensor) -> Tensor:
        filled = picks != EMPTY
        places = picks.clamp(min=0)
        eligible = (self.mask.gather(1, places) | ~filled).all(1)
        times = torch.zeros_like(self.logits).scatter_add(1, places, filled.to(self.logits.dtype))
        expected = torch.minimum(self.mask.sum(1), torch.tensor(self.size, device=picks.device))
        in_order = filled == (torch.arange(self.size, device=picks.device) < expected[:, None])
        return eligible & (times.amax(1) <= 1) & in_order.all(1)

    def entropy(self, picks: Tensor) -> Tensor:
        """Return the sum of the slots' conditional entropies along the drawn slates in nats, shape (B,).

        Its mean over drawn slates is the entropy of the slate, and unlike -log_prob it has a useful gradient.
        """
        shifted = (self.logits - self.logits.amax(1, keepdim=True).clamp(min=-2 * LOGIT_BOUND)).masked_fill(
            ~self.mask, -4 * LOGIT_BOUND
        )
        weight = shifted.exp() * self.mask
        total = self._suffix_sums(picks, weight)
        energy = self._suffix_sums(picks, weight * shifted)
        filled = picks != EMPTY
        safe = torch.where(filled, total, 1.0)
        return torch.where(filled, safe.log() - energy / safe, 0.0).sum(1)

    def marginals(self, draws: int, generator: torch.Generator) -> Marginals:
        """Estimate the marginal probability of each candidate at each position; see ``position_marginals``."""
        return position_marginals(self.logits[:, None].expand(-1, self.size, -1), draws, generator)


def gumbel(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise in the shape of a tensor.

    From uniform numbers in float64, which reach far enough into either tail: on a CPU ``exponential_`` takes three
    times as long.
    """
    draws = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=like.device)
    return draws.log_().neg_().to(like.dtype).log_().neg_()


def position_marginals(logits: Tensor, draws: int, generator: torch.Generator) -> Marginals:
    """Marginal probabilities of slates drawn slot by slot, without replacement, from a logit row for each slot.

    They have no closed form, but the marginals two slots further down than a known prefix do. The first two slots are
    therefore exact, and so is the third, summed over every first item, in catalogs of up to ``ENUMERABLE`` candidates.
    For other slots ``draws`` prefixes are sampled and their conditional marginals averaged (Rao-Blackwell), which has
    far less noise than counting items.

    Args:
        logits: Shape (B, K, C), minus infinity where a candidate is not eligible.
        draws: Sampled prefixes per page, where sampling is needed; at least 2, for their error to be known.
        generator: Source of the draws.
    """
    pages, size, n_candidates = logits.shape
    probability = logits.double().softmax(2).nan_to_num(0.0)  # a page without candidates is NaN
    marginals = torch.zeros_like(probability)
    marginals[:, 0] = probability[:, 0]
    if size > 1:
        marginals[:, 1] = _second(probability[:, 0], probability[:, 1])
    first_sampled = 2
    if size > 2 and n_candidates <= ENUMERABLE:
        first_sampled = 3
        for first in range(n_candidates):
            taken = torch.zeros(pages, n_candidates, dtype=torch.bool, device=logits.device)
            taken[:, first] = True
            then = _second(_without(logits[:, 1], taken), _without(logits[:, 2], taken))
            marginals[:, 2] += probability[:, 0, first, None] * then
    squares = torch.zeros_like(probability)
    for _ in range(draws if size > first_sampled else 0):
        taken = torch.zeros(pages, n_candidates, dtype=torch.bool, device=logits.device)
        for slot in range(size - 2):  # having drawn this slot, the second slot after it is known
            scores = logits[:, slot].masked_fill(taken, -torch.inf)
            noise = torch.empty_like(scores).exponential_(generator=generator).log_()
            taken.scatter_(1, (scores - noise).argmax(1, keepdim=True), True)
            if slot + 2 >= first_sampled:
                then = _second(_without(logits[:, slot + 1], taken), _without(logits[:, slot + 2], taken))
                marginals[:, slot + 2] += then / draws
                squares[:, slot + 2] += then.square() / draws
    sampled = slice(first_sampled, None)
    variance = (squares[:, sampled] - marginals[:, sampled].square()).clamp(min=0.0) / max(draws - 1, 1)
    return Marginals(marginals.to(logits.dtype), float(variance.max().sqrt()) if variance.numel() else 0.0)


def _without(logits: Tensor, taken: Tensor) -> Tensor:
    """Return the probabilities (B, C) of a slot's logits (B, C) among what is not taken (B, C), in float64."""
    return logits.double().masked_fill(taken, -torch.inf).softmax(1).nan_to_num(0.0)


def _second(first: Tensor, second: Tensor) -> Tensor:
    """Return the marginals of the second of two slots: sum over a != c of first[a] second[c] / (1 - second[a]).

    Both arguments are probabilities over the same candidates, shape (B, C). What is near 1 is never subtracted: only
    the likeliest candidate can be, and its rest is summed over the others instead.
    """
    top = torch.zeros_like(second, dtype=torch.bool).scatter_(1, second.argmax(1, keepdim=True), True)
    rest = torch.where(top, second.masked_fill(top, 0.0).sum(1, keepdim=True), 1.0 - second)
    term = torch.where(rest > 0, first / rest, 0.0)
    others = torch.where(top, term.masked_fill(top, 0.0).sum(1, keepdim=True), term.sum(1, keepdim=True) - term)
    return second * others


class SlateActor(nn.Module):
    """Scores candidates with shared weights: a query from the shopper, a key from each item.

    logit = tanh-bounded( query . key / sqrt(h) + item bias + affinity * weight(shopper) )

    An item's key is a linear map of its features plus a free vector of its own. A new item starts with a free vector
    of zero and is ranked by its features, so that it needs no retraining.

    Attributes:
        size: Slots of a slate, K.
        item_vectors: Encoded item features, shape (n_items, d).
    """

    item_vectors: Tensor
    shopper_centre: Tensor
    shopper_spread: Tensor
    item_centre: Tensor
    item_spread: Tensor
    _scaled_items: Tensor

    def __init__(self, builder: ContextBuilder, size: int, hidden: int, generator: torch.Generator) -> None:
        """Args: the shop's ``builder``, slate ``size`` K, ``hidden`` width h, ``generator`` of the first weights."""
        super().__init__()
        self.size = size
        self.hidden = hidden
        catalog = builder.catalog
        for name, array in (
            ("item_vectors", catalog.vectors),
            ("shopper_centre", builder.shopper.centre),
            ("shopper_spread", builder.shopper.spread),
            ("item_centre", catalog.centre),
            ("item_spread", catalog.spread),
        ):
            self.register_buffer(name, torch.from_numpy(np.array(array)))
        self.register_buffer("_scaled_items", self._scaled(self.item_vectors), persistent=False)
        self.register_load_state_dict_post_hook(_scale_items)  # type: ignore[no-untyped-call]
        self.query = nn.Sequential(Linear(builder.shopper.width, hidden), nn.Tanh(), Linear(hidden, hidden), nn.Tanh())
        self.affinity_weight = Linear(hidden, 1)
        self.item_key = Linear(catalog.width, hidden)
        self.item_bias = Linear(catalog.width, 1)
        self.own_key = nn.Parameter(torch.zeros(len(catalog), hidden))
        self.own_bias = nn.Parameter(torch.zeros(len(catalog), 1))
        initialise(self, generator)

    def forward(self, context: Context[Tensor]) -> Tensor:
        """Return logits of shape (B, C) for a batch of pages.

        All items are scored in one dense product and the candidates' scores gathered: several times faster than
        gathering the candidates' vectors.
        """
        query = self._query(context.shopper)
        scores = (query @ self.keys().T) * self.hidden**-0.5 + self.biases()
        return self._bound(scores.gather(1, context.candidates.long()), query, context.affinity)

    def scale_items(self) -> None:
        """Scale the items' vectors anew, after these, or their precision, have changed."""
        self._scaled_items = self._scaled(self.item_vectors)

    def keys(self) -> Tensor:
        """Return every item's key, shape (n_items, h)."""
        keys: Tensor = self.item_key(self._scaled_items) + self.own_key
        return keys

    def biases(self) -> Tensor:
        """Return every item's bias, shape (n_items,)."""
        biases: Tensor = self.item_bias(self._scaled_items) + self.own_bias
        return biases.squeeze(-1)

    def score_candidates(self, shopper: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """Return the same logits from candidate vectors: the form that is exported.

        Args:
            shopper: Shape (B, D).
            candidates: Rows of ``item_table`` with the shopper's affinity appended, shape (B, C, d + h + 2).
            mask: Shape (B, C); a candidate that is not eligible gets minus infinity.
        """
        width = self.item_vectors.shape[1]
        features, own_key, own_bias, affinity = candidates.split([width, self.hidden, 1, 1], dim=-1)
        query = self._query(shopper)
        scores = (self._key(features, own_key) @ query[:, :, None] * self.hidden**-0.5).squeeze(-1)
        scores = scores + self._bias(features, own_bias).squeeze(-1)
        return self._bound(scores, query, affinity.squeeze(-1)).masked_fill(~mask, -torch.inf)

    def item_table(self) -> npt.NDArray[np.float32]:
        """Return every item's features, free key and free bias, shape (n_items, d + h + 1)."""
        table = torch.cat([self.item_vectors, self.own_key, self.own_bias], dim=1)
        return np.asarray(table.detach().cpu().numpy(), np.float32)

    def _query(self, shopper: Tensor) -> Tensor:
        query: Tensor = self.query((shopper - self.shopper_centre) / self.shopper_spread)
        return query

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self.item_centre) / self.item_spread

    def _key(self, features: Tensor, own: Tensor) -> Tensor:
        key: Tensor = self.item_key(self._scaled(features)) + own
        return key

    def _bias(self, features: Tensor, own: Tensor) -> Tensor:
        bias: Tensor = self.item_bias(self._scaled(features)) + own
        return bias

    def _bound(self, scores: Tensor, query: Tensor, affinity: Tensor) -> Tensor:
        scores = scores + affinity * self.affinity_weight(query)
        return LOGIT_BOUND * torch.tanh(scores / LOGIT_BOUND)


def _scale_items(actor: nn.Module, _: object) -> None:
    assert isinstance(actor, SlateActor)
    actor.scale_items()


class Linear(nn.Linear):
    """A linear layer that leaves its first weights to ``initialise``, and torch's global generator alone."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Give every linear layer orthogonal weights and zero biases, from ``generator`` alone."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
