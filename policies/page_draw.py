"""Whole pages drawn from their logits in NumPy, as `hawker.policies.page` does in torch: for serving."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hawker.policies.bundle import conditional_log_prob
from hawker.shop.decision import EMPTY

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class LineTable(NamedTuple):
    """What the logits of lines need beside a page's own; see `hawker.policies.page.LineLogits`.

    Attributes:
        keys: Of each line, and of none in the last place, shape (L + 1, h).
        bias: Shape (L + 1,).
        by_tier: What a tier adds to the query, shape (T, h); None where offers are off.
    """

    keys: Floats
    bias: Floats
    by_tier: Floats | None


class PageScores(NamedTuple):
    """What a bundle's graph makes of B pages, in double precision; a part that is off is None.

    Attributes:
        mask: Candidates that may be shown, shape (B, C).
        slate: Logits of each candidate as an organic item, shape (B, C).
        ad: Log-probability of each candidate as the ad, and of none in the last place, shape (B, C + 1).
        slot: Log-probability of each slot as the ad's, shape (B, K).
        offer: Log-probability of each tier, shape (B, T).
        line_query: Query of the lines, shape (B, h).
        line_effects: What contexts say of each line, shape (B, L); None where they say nothing.
        lines: The rest of what lines need.
    """

    mask: Bools
    slate: Floats
    ad: Floats | None = None
    slot: Floats | None = None
    offer: Floats | None = None
    line_query: Floats | None = None
    line_effects: Floats | None = None
    lines: LineTable | None = None

    def line(self, offer: Array | None) -> Floats | None:
        """Return the log-probabilities of lines, none in the last place, given tiers (B,): shape (B, L + 1)."""
        if self.line_query is None or self.lines is None:
            return None
        query = self.line_query
        if offer is not None and self.lines.by_tier is not None:
            query = query + self.lines.by_tier[offer]
        logits = query @ self.lines.keys.T + self.lines.bias
        if self.line_effects is not None:
            logits[:, :-1] += self.line_effects
        return log_softmax(logits)


class Picks(NamedTuple):
    """What is chosen for B pages: as `hawker.policies.page.PageChoice`, in NumPy."""

    slate: Array
    ad: Array | None = None
    slot: Array | None = None
    offer: Array | None = None
    lines: Array | None = None


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities of rows of logits (B, n), of which some may be minus infinity."""
    shifted = logits - logits.max(1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def draw(scores: PageScores, size: int, generator: np.random.Generator | None) -> Picks:
    """Draw pages of ``size`` K slots; without a generator take the likeliest value of each part in turn, the ad first.

    The ad, its slot if there is one, the other items around it without it, the offer, and given it a line for each
    filled slot.
    """
    ad = slot = offer = lines = None
    if scores.ad is not None and scores.slot is not None:
        ad, slot = _pick(scores.ad, generator), _pick(scores.slot, generator)
        none = ad == scores.mask.shape[1]
        ad, slot = np.where(none, EMPTY, ad), np.where(none, EMPTY, slot)
    organic = _ranked(_noisy(np.where(_eligible(scores.mask, ad), scores.slate, -np.inf), generator), size)
    slate = organic if ad is None or slot is None else _with_ad(organic, ad, slot)
    if scores.offer is not None:
        offer = _pick(scores.offer, generator)
    line = scores.line(offer)
    if line is not None:
        lines = _pick_lines(line, size, generator)
        lines = np.where((lines == line.shape[1] - 1) | (slate == EMPTY), EMPTY, lines)
    return Picks(slate, ad, slot, offer, lines)


def log_probs(scores: PageScores, picks: Picks) -> dict[str, Floats]:
    """Return the log-probability of each part given those before it, (B,) each; "ad" is the ad with its slot.

    It is minus infinity for what cannot be drawn.
    """
    organic, is_there = _without_ad(picks)
    eligible = _eligible(scores.mask, picks.ad)
    possible = is_there & _can_be_drawn(eligible, organic, picks)
    found = {"slate": np.where(possible, conditional_log_prob(scores.slate, eligible, organic).sum(1), -np.inf)}
    if scores.ad is not None and scores.slot is not None and picks.ad is not None and picks.slot is not None:
        found["ad"] = _ad_log_prob(scores.ad, scores.slot, picks.ad, picks.slot)
    if scores.offer is not None and picks.offer is not None:
        found["offer"] = _at(scores.offer, picks.offer)
    line = scores.line(picks.offer)
    if line is not None and picks.lines is not None:
        none, shown = picks.lines == EMPTY, picks.slate != EMPTY
        each = np.take_along_axis(line, np.where(none, line.shape[1] - 1, picks.lines), 1)
        found["copy"] = np.where(shown, each, np.where(none, 0.0, -np.inf)).sum(1)
    return found


def propensities(scores: PageScores, picks: Picks) -> Floats:
    """Return the probability of each slot's item given the ad and those above it, shape (B, K); 1 in an empty slot.

    Of the ad's slot it is that of the ad and of its slot.
    """
    organic, _ = _without_ad(picks)
    steps = conditional_log_prob(scores.slate, _eligible(scores.mask, picks.ad), organic)
    if scores.ad is not None and scores.slot is not None and picks.ad is not None and picks.slot is not None:
        steps = _with_ad(steps, _ad_log_prob(scores.ad, scores.slot, picks.ad, picks.slot), picks.slot)
    return np.where(picks.slate == EMPTY, 1.0, np.exp(steps))


def _ad_log_prob(of_ad: Floats, of_slot: Floats, ad: Array, slot: Array) -> Floats:
    none = ad == EMPTY
    return _at(of_ad, np.where(none, of_ad.shape[1] - 1, ad)) + np.where(none, 0.0, _at(of_slot, np.maximum(slot, 0)))


def _eligible(mask: Bools, ad: Array | None) -> Bools:
    """Return the candidates (B, C) that stand around an ad (B,)."""
    return mask if ad is None else mask & (np.arange(mask.shape[1]) != ad[:, None])


def _noisy(logits: Floats, generator: np.random.Generator | None) -> Floats:
    return logits if generator is None else logits + generator.gumbel(size=logits.shape)


def _pick(log_prob: Floats, generator: np.random.Generator | None) -> Array:
    picks: Array = _noisy(log_prob, generator).argmax(1)
    return picks


def _ranked(keys: Floats, size: int) -> Array:
    """Return the places of the highest keys (B, C), highest first, shape (B, K); minus infinity has no place."""
    order = np.argsort(-keys, axis=1, kind="stable")[:, :size]
    order = np.where(np.isneginf(np.take_along_axis(keys, order, 1)), EMPTY, order)
    return np.pad(order, ((0, 0), (0, size - order.shape[1])), constant_values=EMPTY)


def _pick_lines(log_prob: Floats, size: int, generator: np.random.Generator | None) -> Array:
    """Draw K columns of each row, with replacement, shape (B, K)."""
    if generator is None:
        return np.repeat(log_prob.argmax(1)[:, None], size, 1)
    edges = np.exp(log_prob).cumsum(1)
    draws = generator.random((len(edges), size)) * edges[:, -1:]
    picks: Array = np.minimum((draws[:, :, None] >= edges[:, None, :]).sum(2), edges.shape[1] - 1)
    return picks


def _at(log_prob: Floats, place: Array) -> Floats:
    found: Floats = np.take_along_axis(log_prob, place[:, None], 1)[:, 0]
    return found


def _with_ad(organic: Array, ad: Array, slot: Array) -> Array:
    """Put what belongs to ads (B,) into their slots (B,), and what belongs to organic items (B, K) around them."""
    place, size = np.arange(organic.shape[1]), organic.shape[1]
    at = np.where(slot == EMPTY, size, slot)[:, None]
    return np.where(place == at, ad[:, None], np.take_along_axis(organic, place - (place > at), 1))


def _without_ad(picks: Picks) -> tuple[Array, Bools]:
    """Take the ads out of slates; return what is left (B, K), and where the ad stood at its slot indeed, (B,)."""
    slate, ad, slot = picks.slate, picks.ad, picks.slot
    if ad is None or slot is None:
        return slate, np.ones(len(slate), bool)
    size, has_ad = slate.shape[1], ad != EMPTY
    place, at = np.arange(size), np.where(has_ad, slot, size)[:, None]
    organic = np.take_along_axis(slate, np.minimum(place + (place >= at), size - 1), 1)
    organic = np.where(has_ad[:, None] & (place == size - 1), EMPTY, organic)
    return organic, ~has_ad | (_at(slate, np.maximum(slot, 0)) == ad)


def _can_be_drawn(eligible: Bools, organic: Array, picks: Picks) -> Bools:
    """Return where organic picks (B, K) are eligible, not repeated, and as many as fit, from the first slot on."""
    filled, row = organic != EMPTY, np.arange(len(organic))[:, None]
    times = np.zeros((len(organic), eligible.shape[1] + 1), np.int64)
    np.add.at(times, (row, np.where(filled, organic, -1)), 1)
    room = organic.shape[1] - (0 if picks.ad is None else (picks.ad != EMPTY))
    expected = np.minimum(eligible.sum(1), room)
    in_order = (filled == (np.arange(organic.shape[1]) < expected[:, None])).all(1)
    found: Bools = in_order & (times[:, :-1] <= eligible).all(1)
    return found
