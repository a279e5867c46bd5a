import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from hawker.policies.shopkeeper import ExploringSlate, Habits, Shopkeeper
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision

SCORES = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])
BIDS = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0])
LINES = torch.tensor([4, 7, 9])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(n: int, mask: list[int] | None = None) -> Context[Tensor]:
    candidates = torch.tensor([3, 1, 4, 0]).expand(n, -1)
    allowed = torch.ones(4) if mask is None else torch.tensor(mask)
    return Context(torch.zeros(n, 1), candidates, allowed.bool().expand(n, -1), torch.zeros(n, 4))


def keeper(size: int = 2, copy_share: float = 0.7) -> Shopkeeper:
    return Shopkeeper("keeper", size, SCORES, Habits(0.3, 0.5, (0.6, 0.4), copy_share), BIDS, LINES)


def test_propensities_by_hand():
    """Candidates 3, 1, 4, 0 with scores .7, .9, .3, .1: first 1, then 3."""
    slates = torch.tensor([[1, 3], [1, 0], [4, 1], [0, 4]])
    decision = Decision(slates, torch.zeros(4))
    best, other = [0.7 + 0.3 / 4, 0.7 + 0.3 / 3], [0.3 / 4, 0.3 / 3]
    by_hand = [best[0] * best[1], best[0] * other[1], other[0] * best[1], other[0] * other[1]]
    assert keeper().log_prob(context(4), decision).exp().tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
@pytest.mark.parametrize("exploration", [0.0, 0.3, 1.0])
def test_slates_sum_to_one_and_agree_with_frequencies(mask: list[int], exploration: float, every_slate):
    n = 20_000
    scores = torch.tensor([[0.7, 0.9, 0.3, 0.1]])
    eligible = torch.tensor([mask]).bool()
    slates = every_slate(eligible[0], 3)
    exact = ExploringSlate(scores.expand(len(slates), -1), eligible.expand(len(slates), -1), 3, exploration)
    probability = exact.log_prob(slates).exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-5)
    many = ExploringSlate(scores.expand(n, -1), eligible.expand(n, -1), 3, exploration)
    picks, steps = many.draw(generator())
    assert torch.allclose(steps.log().sum(1), many.log_prob(picks), atol=1e-5)
    counts = Counter(map(tuple, picks.tolist()))
    for slate, p in zip(slates.tolist(), probability.tolist(), strict=True):
        assert counts[tuple(slate)] / n == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / n) + 1e-9)


def test_impossible_slates_have_no_probability():
    distribution = keeper().distribution(context(4, [1, 0, 1, 1]))
    picks = torch.tensor([[1, 0], [0, 0], [0, EMPTY], [EMPTY, 0]])
    assert distribution.log_prob(picks).isneginf().all()


def test_mode_and_marginals():
    distribution = keeper().distribution(context(3))
    assert distribution.mode().tolist() == [[1, 0]] * 3
    found = distribution.marginals(1500, generator())
    first = [0.075, 0.775, 0.075, 0.075]
    assert found.probability[0, 0].tolist() == pytest.approx(first, abs=0.05)
    assert found.probability.sum(2).allclose(torch.ones(3, 2))
    assert 0 < found.error < 0.03


def test_whole_pages_agree_with_their_probabilities():
    """Slate, ad and offer together: what is stated adds up to 1 over all that is drawn, and to the frequencies."""
    n = 60_000
    decision = keeper(copy_share=0.0).propose(context(n), generator(1))
    assert decision.log_probs is not None
    assert decision.ad is not None
    assert decision.offer is not None
    total = decision.log_prob + decision.log_probs["ad"] + decision.log_probs["offer"]
    pages = list(map(tuple, torch.cat([decision.slate, decision.ad[:, None], decision.offer[:, None]], 1).tolist()))
    counts, stated = Counter(pages), dict(zip(pages, total.exp().tolist(), strict=True))
    assert len(counts) == 2 * (12 + 2 * 2 * 3)  # offers x (no ad: 4 x 3 slates; ad: 2 items x 2 slots x 3 others)
    assert sum(stated.values()) == pytest.approx(1, abs=1e-5)
    for page, p in stated.items():
        assert counts[page] / n == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / n))


def test_ads_are_drawn_in_proportion_to_bids():
    decision = keeper().propose(context(40_000), generator(2))
    assert decision.ad is not None
    has = decision.ad != EMPTY
    assert float(has.float().mean()) == pytest.approx(0.5, abs=0.01)
    item = decision.slate[has].gather(1, decision.ad[has][:, None]).squeeze(1)
    assert float((item == 1).float().mean()) == pytest.approx(2 / 3, abs=0.012)
    assert set(item.tolist()) == {1, 3}
    assert float((decision.ad[has] == 0).float().mean()) == pytest.approx(0.5, abs=0.015)
    assert all(len(set(slate)) == 2 for slate in decision.slate[:500].tolist())


def test_propensity_of_each_row():
    decision = keeper().propose(context(2_000), generator(3))
    assert decision.propensity is not None
    assert decision.ad is not None
    assert decision.log_probs is not None
    for i in range(200):
        ad = int(decision.ad[i])
        organic = [k for k in range(2) if k != ad]
        product = math.prod(decision.propensity[i, organic].tolist())
        assert math.log(product) == pytest.approx(float(decision.log_prob[i]), abs=1e-5)
        if ad != EMPTY:
            share = {1: 2 / 3, 3: 1 / 3}[int(decision.slate[i, ad])]
            assert float(decision.propensity[i, ad]) == pytest.approx(0.5 * share / 2)
            assert float(decision.log_probs["ad"][i].exp()) == pytest.approx(0.5 * share / 2)
    again = keeper().log_prob(context(2_000), decision)
    assert torch.allclose(again, decision.log_prob, atol=1e-5)


def test_copy_and_its_probability():
    decision = keeper().propose(context(20_000), generator(4))
    assert decision.copy is not None
    assert decision.log_probs is not None
    shown = decision.copy != EMPTY
    assert float(shown.float().mean()) == pytest.approx(0.7, abs=0.01)
    assert set(decision.copy[shown].tolist()) == {4, 7, 9}
    by_hand = shown.sum(1) * math.log(0.7 / 3) + (~shown).sum(1) * math.log(0.3)
    assert torch.allclose(decision.log_probs["copy"], by_hand, atol=1e-5)


def test_pages_with_too_few_candidates():
    decision = keeper(3).propose(context(500, [1, 1, 0, 0]), generator(5))
    assert decision.ad is not None
    assert decision.copy is not None
    assert decision.propensity is not None
    assert ((decision.slate != EMPTY).sum(1) == 2).all()
    assert (decision.copy[decision.slate == EMPTY] == EMPTY).all()
    assert (decision.propensity[decision.slate == EMPTY] == 1).all()
    assert (decision.ad < 2).all()
    nobody = keeper(3).propose(context(5, [0, 0, 0, 0]), generator())
    assert (nobody.slate == EMPTY).all()
    assert nobody.log_prob.tolist() == [0] * 5


def test_no_ad_where_nobody_bids():
    decision = keeper().propose(context(100, [0, 0, 1, 1]), generator())
    assert decision.ad is not None
    assert decision.log_probs is not None
    assert (decision.ad == EMPTY).all()
    assert (decision.log_probs["ad"] == 0).all()


def test_scores_may_depend_on_the_context():
    by_place = Shopkeeper("last", 2, lambda c: torch.arange(4.0).expand(len(c.mask), -1), Habits(exploration=0.0))
    decision = by_place.propose(context(2), generator())
    assert decision.slate.tolist() == [[0, 4], [0, 4]]
    assert decision.log_prob.tolist() == [0.0, 0.0]
    assert by_place.log_prob(context(2), Decision(decision.slate, decision.log_prob)).tolist() == [0.0, 0.0]


def test_a_seed_decides_everything(nothing_global: None):
    first, second, other = (keeper().propose(context(50), generator(seed)) for seed in (1, 1, 2))
    for name in ("slate", "ad", "offer", "copy"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.slate, other.slate)


@pytest.mark.parametrize(("bids", "lines"), [(None, None), (None, LINES), (BIDS, None)])
def test_ads_need_bids_and_copy_needs_lines(bids: Tensor | None, lines: Tensor | None):
    with pytest.raises(ValueError, match="ads need bids and copy needs lines"):
        Shopkeeper("x", 2, SCORES, Habits(ad_share=0.1, copy_share=0.1), bids, lines)
