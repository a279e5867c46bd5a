"""Pages: every page of a tiny shop is counted, and what is drawn obeys every mask."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hawker.policies.page import PARTS, LineLogits, OrganicSlate, PageChoice, PageDistribution, PageLayout, PageLogits
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY

LAYOUTS = [
    PageLayout(2),
    PageLayout(2, ad=True),
    PageLayout(2, ad=True, offers=2, lines=2),
    PageLayout(2, slate=False, ad=True),
    PageLayout(2, slate=False, lines=3),
    PageLayout(2, slate=False, ad=True, offers=3, lines=1),
    PageLayout(2, offers=3),
    PageLayout(1, ad=True, lines=0),
    PageLayout(3, ad=True, offers=1, lines=1),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(layout: PageLayout, n: int, choices: int, seed: int = 0, dtype=torch.float64) -> PageLogits:
    source = generator(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, dtype=dtype)

    line = None
    if layout.lines is not None:
        rows = layout.lines + 1
        line = LineLogits(draw(n, 3), draw(rows, 3), draw(rows), draw(layout.offers, 3) if layout.offers else None)
    return PageLogits(
        draw(n, choices) if layout.slate else None,
        draw(n, choices + 1) if layout.ad else None,
        draw(n, layout.size) if layout.ad else None,
        draw(n, layout.offers) if layout.offers else None,
        line,
    )


def repeated(logits: PageLogits, n: int) -> PageLogits:
    """The same page n times; what a tier adds to lines belongs to no page."""
    rows = [None if part is None else part.expand(n, -1) for part in logits[:-1]]
    return PageLogits(*rows, logits.line and logits.line._replace(query=logits.line.query.expand(n, -1)))


def leaves_of(logits: PageLogits) -> tuple[PageLogits, list[Tensor]]:
    """The same logits to be differentiated, and each of their tensors."""
    parts = [part if part is None else part.clone().requires_grad_() for part in logits[:-1]]
    line = logits.line and LineLogits(*(x if x is None else x.clone().requires_grad_() for x in logits.line))
    tensors = [part for part in [*parts, *(line or ())] if part is not None]
    return PageLogits(*parts, line), tensors


def softmax(values: dict) -> dict:
    total = sum(math.exp(value) for value in values.values())
    return {key: math.exp(value) / total for key, value in values.items()}


def every_page(layout: PageLayout, logits: PageLogits, mask, ad_mask) -> Iterator[tuple[tuple, float, float]]:
    """Each page with its probability and the sum of its choices' conditional entropies, from the definition."""
    choices = range(len(mask))

    def row(part: Tensor) -> list[float]:
        return part[0].tolist()

    def entropy(odds: dict) -> float:
        return -sum(p * math.log(p) for p in odds.values())

    ads = {(EMPTY, EMPTY): 1.0}
    ad_entropy = {EMPTY: 0.0}
    if layout.ad:
        places = [place for place in choices if mask[place] and ad_mask[place]]
        items = softmax({place: row(logits.ad)[place] for place in places} | {EMPTY: row(logits.ad)[-1]})
        slots = softmax(dict(enumerate(row(logits.slot))))
        ads = {(EMPTY, EMPTY): items[EMPTY]}
        ads |= {(place, slot): items[place] * p for place in places for slot, p in slots.items()}
        ad_entropy = {place: entropy(items) + (entropy(slots) if place != EMPTY else 0.0) for place in items}
    for (ad, slot), ad_p in ads.items():
        for slate, slate_p, slate_h in every_slate(layout, logits, mask, ad, slot):
            offers = softmax(dict(enumerate(row(logits.offer)))) if layout.offers else {None: 1.0}
            for offer, offer_p in offers.items():
                offer_h = entropy(offers)
                if layout.lines is None:
                    yield (slate, ad, slot, offer, None), ad_p * slate_p * offer_p, ad_entropy[ad] + slate_h + offer_h
                    continue
                query = logits.line.query[0] + (0 if offer is None else logits.line.by_tier[offer])
                said = [(query @ key + bias).item() for key, bias in zip(*logits.line[1:3], strict=True)]
                lines = softmax({line if line < layout.lines else EMPTY: value for line, value in enumerate(said)})
                filled = [slate is None or slate[k] != EMPTY for k in range(layout.size)]
                for copy in itertools.product(*(lines if f else [EMPTY] for f in filled)):
                    copy_p = math.prod(lines[line] for line, f in zip(copy, filled, strict=True) if f)
                    page = (slate, ad, slot, offer, copy)
                    together = ad_entropy[ad] + slate_h + offer_h + sum(filled) * entropy(lines)
                    yield page, ad_p * slate_p * offer_p * copy_p, together


def every_slate(layout, logits, mask, ad, slot):
    """Each slate around an ad with its probability and conditional entropies."""
    if not layout.slate:
        yield None, 1.0, 0.0
        return
    eligible = [place for place in range(len(mask)) if mask[place] and place != ad]
    room = layout.size - (ad != EMPTY)
    for organic in itertools.permutations(eligible, min(room, len(eligible))):
        p, h, left = 1.0, 0.0, list(eligible)
        for place in organic:
            odds = softmax({other: logits.slate[0, other].item() for other in left})
            p, h = p * odds[place], h - sum(q * math.log(q) for q in odds.values())
            left.remove(place)
        slate = [*organic, *[EMPTY] * (room - len(organic))]
        if ad != EMPTY:
            slate.insert(slot, ad)
        yield tuple(slate), p, h


def stacked(layout: PageLayout, pages: list[tuple]) -> PageChoice:
    slate, ad, slot, offer, copy = zip(*pages, strict=True)
    return PageChoice(
        torch.tensor(slate) if layout.slate else None,
        torch.tensor(ad) if layout.ad else None,
        torch.tensor(slot) if layout.ad else None,
        torch.tensor(offer) if layout.offers else None,
        torch.tensor(copy).reshape(len(pages), layout.size) if layout.lines is not None else None,
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
@pytest.mark.parametrize(
    "masks", [([1, 1, 1], [1, 0, 1]), ([0, 1, 1], [1, 0, 1]), ([0, 0, 1], [0, 0, 1]), ([0] * 3,) * 2]
)
def test_every_page_of_a_tiny_shop(layout: PageLayout, masks):
    """Probabilities are the definition's and add up to 1; entropies along the pages have the entropy as mean."""
    logits = logits_of(layout, 1, 3)
    pages, odds, along = zip(*every_page(layout, logits, *masks), strict=True)
    n = len(pages)
    mask, ad_mask = (torch.tensor([values], dtype=torch.bool).expand(n, -1) for values in masks)
    distribution = PageDistribution(layout, repeated(logits, n), mask, ad_mask)
    choice = stacked(layout, pages)
    p = distribution.log_prob(choice).exp()
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-12)
    assert p.tolist() == pytest.approx(odds, abs=1e-12)
    entropies = distribution.entropy(choice)
    assert entropies.tolist() == pytest.approx(along, abs=1e-12)
    assert float((p * entropies).sum()) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-12)
    assert set(distribution.log_probs(choice)) == set(layout.parts) <= set(PARTS)
    actions = layout.actions(choice, 3)
    assert actions.shape == (n, layout.width)
    assert len({tuple(action) for action in actions.tolist()}) == n, "no two pages share an action"
    for part, again in zip(choice, layout.page(actions.float(), 3), strict=True):
        assert (part is None and again is None) or torch.equal(part, again)
    assert (actions < torch.tensor(layout.nvec(3))).all()


@pytest.mark.parametrize("layout", [LAYOUTS[2], LAYOUTS[5], LAYOUTS[8]], ids=repr)
def test_sampled_frequencies_are_the_probabilities(layout: PageLayout):
    logits, n = logits_of(layout, 1, 3), 200_000
    mask, ad_mask = torch.tensor([1, 1, 1]).bool(), torch.tensor([1, 0, 1]).bool()
    distribution = PageDistribution(layout, repeated(logits, n), mask.expand(n, -1), ad_mask.expand(n, -1))
    drawn = layout.actions(distribution.sample(generator(1)), 3)
    pages, odds, _ = zip(*every_page(layout, logits, mask.tolist(), ad_mask.tolist()), strict=True)
    known = {tuple(a): p for a, p in zip(layout.actions(stacked(layout, pages), 3).tolist(), odds, strict=True)}
    seen, counts = torch.unique(drawn, dim=0, return_counts=True)
    counted = {tuple(action): count for action, count in zip(seen.tolist(), counts.tolist(), strict=True)}
    assert set(counted) <= set(known), "nothing is drawn that cannot be"
    often = {action: p for action, p in known.items() if n * p >= 20}
    chi = sum((counted.get(action, 0) - n * p) ** 2 / (n * p) for action, p in often.items())
    assert chi < len(often) + 4 * math.sqrt(2 * len(often)), "chi-square within 4 sigma"


@st.composite
def shops(draw: st.DrawFn):
    size, choices = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    layout = PageLayout(
        size, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 3)), draw(st.none() | st.integers(0, 3))
    )
    bits = st.lists(st.booleans(), min_size=choices, max_size=choices)
    return layout, choices, draw(bits), draw(bits), draw(st.integers(0, 1000))


@given(shops())
@settings(max_examples=100)
def test_what_is_drawn_obeys_every_mask(shop):
    layout, choices, eligible, advertised, seed = shop
    if not layout.parts:
        return
    n = 40
    mask, ad_mask = torch.tensor(eligible).expand(n, -1), torch.tensor(advertised).expand(n, -1)
    logits = logits_of(layout, n, choices, seed, torch.float32)
    logits = PageLogits(*(None if part is None else 8 * part for part in logits[:-1]), logits.line)
    distribution = PageDistribution(layout, logits, mask, ad_mask)
    for page in (distribution.sample(generator(seed)), distribution.mode()):
        if page.slate is not None:
            filled = page.slate != EMPTY
            for slate in page.slate.tolist():
                shown = [place for place in slate if place != EMPTY]
                assert len(set(shown)) == len(shown), "nothing is shown twice"
                assert all(eligible[place] for place in shown)
                assert len(shown) == min(layout.size, sum(eligible))
            if page.lines is not None:
                assert (page.lines[~filled] == EMPTY).all()
        if page.ad is not None:
            assert all(place == EMPTY or (eligible[place] and advertised[place]) for place in page.ad.tolist())
            assert torch.equal(page.ad == EMPTY, page.slot == EMPTY)
            if page.slate is not None:
                at = page.slate.gather(1, page.slot.clamp(min=0)[:, None]).squeeze(1)
                assert torch.equal(at[page.ad != EMPTY], page.ad[page.ad != EMPTY])
        log_prob, entropy = distribution.log_prob(page), distribution.entropy(page)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(entropy).all()
        for part, again in zip(page, layout.page(layout.actions(page, choices), choices), strict=True):
            assert (part is None and again is None) or torch.equal(part, again)


@given(shops())
def test_gradients_are_finite_and_none_reaches_what_is_masked(shop):
    layout, choices, eligible, advertised, seed = shop
    if not layout.parts:
        return
    logits = logits_of(layout, 5, choices, seed)
    leaves, tensors = leaves_of(logits)
    mask, ad_mask = torch.tensor(eligible).expand(5, -1), torch.tensor(advertised).expand(5, -1)
    distribution = PageDistribution(layout, leaves, mask, ad_mask)
    page = distribution.sample(generator(seed))
    (distribution.log_prob(page) + distribution.entropy(page)).sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in tensors if tensor.grad is not None)
    if layout.slate and leaves.slate.grad is not None:
        assert not leaves.slate.grad[~mask].any()
    if layout.ad:
        assert not leaves.ad.grad[:, :-1][~(mask & ad_mask)].any()


def test_gradient_of_the_entropy_is_exact_on_average():
    """Its mean over drawn pages, with the score function's term, is the gradient of the page's entropy."""
    layout = PageLayout(2, ad=True, offers=2, lines=2)
    logits = logits_of(layout, 1, 3)
    leaves, tensors = leaves_of(logits)
    pages = [page for page, _, _ in every_page(layout, logits, [1, 1, 1], [1, 0, 1])]
    n = len(pages)
    everything = torch.ones(n, 3, dtype=torch.bool), torch.tensor([[1, 0, 1]]).bool().expand(n, -1)
    distribution, choice = PageDistribution(layout, repeated(leaves, n), *everything), stacked(layout, pages)
    log_prob = distribution.log_prob(choice)
    p = log_prob.exp()
    exact = torch.autograd.grad(-(p * log_prob).sum(), tensors, retain_graph=True)
    along = distribution.entropy(choice)
    surrogate = (p.detach() * (along + along.detach() * log_prob)).sum()
    for one, other in zip(exact, torch.autograd.grad(surrogate, tensors), strict=True):
        torch.testing.assert_close(one, other)


def test_entropy_pulls_each_part_towards_evenness_where_log_prob_pulls_nowhere():
    layout, n = PageLayout(2, ad=True, offers=3, lines=2), 20_000
    line = LineLogits(torch.tensor([[2.0, 0.0, 0.0]]), torch.eye(3), torch.zeros(3), torch.zeros(3, 3))
    uneven = [torch.tensor([row]) for row in ([2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0], [2.0, 0.0], [2.0, 0.0, 0.0])]
    leaves, tensors = leaves_of(PageLogits(*uneven, line))
    mask = torch.ones(n, 3, dtype=torch.bool)
    distribution = PageDistribution(layout, repeated(leaves, n), mask, mask)
    page = distribution.sample(generator())
    useful = torch.autograd.grad(distribution.entropy(page).mean(), tensors[:5], retain_graph=True)
    useless = torch.autograd.grad(-distribution.log_prob(page).mean(), tensors[:5])
    for gradient, likeliest in zip(useful, (0, 3, 0, 0, 0), strict=True):
        assert gradient[0, likeliest] < -0.02
        assert gradient.argmin() == likeliest
    assert max(float(gradient.abs().max()) for gradient in useless) < 0.03


def test_without_an_ad_the_slate_is_plackett_luce():
    logits, mask = torch.randn(50, 7, generator=generator()), torch.rand(50, 7, generator=generator(1)) < 0.6
    plain, own = PlackettLuce(logits, mask, 4), OrganicSlate(logits, mask, 4)
    picks = plain.sample(generator(2))
    assert torch.equal(own.sample(generator(2)), picks)
    assert torch.equal(own.mode(), plain.mode())
    torch.testing.assert_close(own.log_prob(picks), plain.log_prob(picks))
    torch.testing.assert_close(own.log_prob_and_entropy(picks)[1], plain.entropy(picks))


IMPOSSIBLE = {
    "repeated": {"slate": [[2, 2]]},
    "not eligible": {"slate": [[2, 1]]},
    "empty though something is left": {"slate": [[2, -1]]},
    "the ad is not at its slot": {"slate": [[0, 2]], "ad": [0], "slot": [1]},
    "the ad may not be one": {"slate": [[2, 0]], "ad": [2], "slot": [0]},
    "the ad's item twice": {"slate": [[0, 0]], "ad": [0], "slot": [0]},
    "possible": {"slate": [[0, 2]], "ad": [0], "slot": [0]},
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_cannot_be_drawn_has_no_probability(what: str):
    layout = PageLayout(2, ad=True, lines=1)
    values = {"slate": [[0, 2]], "ad": [EMPTY], "slot": [EMPTY], "lines": [[0, EMPTY]]} | IMPOSSIBLE[what]
    page = PageChoice(**{name: torch.tensor(value) for name, value in values.items()})
    mask, ad_mask = torch.tensor([[True, False, True]]), torch.tensor([[True, False, False]])
    log_prob = PageDistribution(layout, logits_of(layout, 1, 3), mask, ad_mask).log_prob(page)
    assert bool(torch.isfinite(log_prob)) == (what == "possible")


def test_a_line_for_an_empty_slot_cannot_be_drawn():
    layout, mask = PageLayout(2, lines=1), torch.tensor([[True, False]])
    distribution = PageDistribution(layout, logits_of(layout, 1, 2), mask)
    assert distribution.log_prob(PageChoice(torch.tensor([[0, -1]]), lines=torch.tensor([[0, 0]]))) == -torch.inf
    given = PageDistribution(
        PageLayout(2, slate=False, lines=1), logits_of(layout, 1, 2)._replace(slate=None), mask,
        given=torch.tensor([[0, -1]]),
    )  # fmt: skip
    assert (given.sample(generator()).lines[:, 1] == EMPTY).all()
    assert given.log_prob(PageChoice(None, lines=torch.tensor([[0, 0]]))) == -torch.inf
    assert torch.isfinite(given.log_prob(PageChoice(None, lines=torch.tensor([[0, -1]]))))


def test_a_page_is_a_decision_and_back():
    candidates = torch.tensor([[5, 9, 7], [4, 2, 8]])
    context = Context(torch.zeros(2, 1), candidates, torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3))
    page = PageChoice(
        torch.tensor([[2, 0], [1, 2]]), torch.tensor([0, EMPTY]), torch.tensor([1, EMPTY]), torch.tensor([1, 0]),
        torch.tensor([[0, EMPTY], [EMPTY, 1]]),
    )  # fmt: skip
    decision = page.decision(context, torch.zeros(2))
    assert decision.slate.tolist() == [[7, 5], [2, 8]]
    assert decision.ad.tolist() == [1, EMPTY]
    for part, again in zip(page, PageChoice.of(context, decision), strict=True):
        assert torch.equal(part, again)


def test_every_line_has_a_log_probability_of_its_own():
    """Lines of one page are drawn apart, given its offer; ``log_probs`` sums them."""
    layout = PageLayout(3, ad=True, offers=2, lines=2)
    logits = logits_of(layout, 40, 5)
    mask = torch.rand(40, 5, generator=generator(1)) < 0.5  # some slots stay empty
    pages = PageDistribution(layout, logits, mask, mask)
    page = pages.sample(generator(2))
    each, entropies = pages.each(page)
    whole, same = pages.log_probs_and_entropies(page)
    assert each.keys() == whole.keys() == {"slate", "ad", "offer", "copy"}
    by_hand = logits.line.given(page.offer).log_softmax(1).gather(1, page.lines.where(page.lines != EMPTY, 2))
    by_hand = by_hand.where(page.slate != EMPTY, 0.0)
    torch.testing.assert_close(each["copy"], by_hand)
    torch.testing.assert_close(whole["copy"], by_hand.sum(1))
    assert (page.slate == EMPTY).any()
    for name in ("slate", "ad", "offer"):
        assert torch.equal(each[name], whole[name])
    assert all(torch.equal(entropies[name], same[name]) for name in entropies)
