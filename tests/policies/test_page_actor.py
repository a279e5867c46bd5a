"""The page actor's logits, and a trained one as a strategy that can be kept."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hawker.policies import page_actor
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import LikeliestPages, PageActor, PageStrategy
from hawker.policies.slate import LOGIT_BOUND, SlateActor
from hawker.policies.trained import POLICY, WEIGHTS
from hawker.shop.artefacts import write_directory
from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.features import FeatureSchema
from hawker.simulators.small import small_tables

CPU = torch.device("cpu")
IMPRESSIONS, ITEMS = small_tables(n_items=7, n_rows=60)
BUILDER = ContextBuilder.fit(IMPRESSIONS, ITEMS)
BIDS = np.array([0.0, 0.3, 0.0, 0.0, 1.2, 0.0, 0.1])
VECTORS = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
LINES = ("one", "two", "three", "four")
LAYOUT = PageLayout(3, ad=True, offers=2, lines=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def actor_of(layout: PageLayout = LAYOUT, moved: bool = True, bids=BIDS, vectors=VECTORS) -> PageActor:
    actor, source = PageActor(layout, BUILDER, 8, generator(3), bids, vectors), generator(4)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(moved * torch.randn(parameter.shape, generator=source))
    return actor


def contexts():
    return BUILDER.from_impressions(IMPRESSIONS).map(lambda array: torch.from_numpy(np.array(array)))


@pytest.fixture
def strategy() -> PageStrategy:
    return PageStrategy(actor_of(), BUILDER, LINES, {"seed": 3})


@pytest.fixture
def saved(strategy: PageStrategy, tmp_path: Path) -> Path:
    with write_directory(tmp_path / "policy", "policy") as scratch:
        strategy.save(scratch)
    return tmp_path / "policy"


def test_the_slate_is_scored_as_the_slate_actor_does(monkeypatch: pytest.MonkeyPatch):
    actor, context = actor_of(), contexts()
    alone = SlateActor(BUILDER, 3, 8, generator())
    alone.load_state_dict(actor.slate.state_dict())
    dense = actor(context, actor.bidder(context)).slate
    torch.testing.assert_close(dense, alone(context))
    monkeypatch.setattr(page_actor, "DENSE", 0)  # as in large catalogs
    torch.testing.assert_close(actor(context, actor.bidder(context)).slate, dense)


def test_first_every_value_of_the_other_parts_is_as_likely():
    actor, context = actor_of(moved=False), contexts()
    page = actor.distribution(context).sample(generator())
    log_probs = actor.distribution(context).log_probs(page)
    assert log_probs["offer"].tolist() == pytest.approx([np.log(1 / 2)] * 60)
    has_ad = page.ad != EMPTY
    expected = torch.where(has_ad, np.log(1 / 2 / 3 / 3), np.log(1 / 2))  # half the pages; three bidders, three slots
    torch.testing.assert_close(log_probs["ad"], expected.float())
    logits = actor(context, actor.bidder(context)).line.given(page.offer)
    assert logits.std(1).min() >= 0
    assert torch.isfinite(logits).all()


def test_logits_have_the_shapes_and_bounds_they_should():
    actor, context = actor_of(), contexts()
    logits = actor(context, actor.bidder(context))
    assert (logits.slate.shape, logits.ad.shape, logits.slot.shape) == ((60, 7), (60, 8), (60, 3))
    assert (logits.offer.shape, logits.line.given(torch.zeros(60).long()).shape) == ((60, 2), (60, 5))
    for part in (logits.slate, logits.ad[:, :-1], logits.slot, logits.offer):
        assert part.abs().max() <= LOGIT_BOUND


def telling() -> tuple[ContextBuilder, torch.Tensor]:
    """A shop whose contexts tell what two offers and four lines make of a page's worth, and what they tell."""
    schema, told = BUILDER.shopper, torch.randn(len(IMPRESSIONS), 6, generator=generator(7))
    names = tuple(f"effect.offer.{i}" for i in range(2)) + tuple(f"effect.line.{i}" for i in range(4))
    numbers = schema.numeric + names, schema.mean + (0.0,) * 6, schema.scale + (1.0,) * 6
    return ContextBuilder(FeatureSchema(*numbers, schema.categories), BUILDER.catalog), told


def test_an_actor_begins_as_what_pays_at_once():
    """By hand: worth to the power of 3 for items, offers and lines; an ad in one page of e^3 + 1."""
    builder, told = telling()
    plain, count = contexts(), len(BUILDER.shopper.numeric)
    shopper = torch.cat([plain.shopper[:, :count], told, plain.shopper[:, count:]], 1)
    context = dataclasses.replace(plain, shopper=shopper, affinity=torch.randn(plain.mask.shape, generator=generator()))
    actor = PageActor(LAYOUT, builder, 8, generator(3), BIDS, VECTORS)
    actor.begin_greedy(3.0)
    logits = actor(context, actor.bidder(context))
    torch.testing.assert_close(logits.slate, LOGIT_BOUND * (3.0 * context.affinity / LOGIT_BOUND).tanh())
    torch.testing.assert_close(logits.offer, LOGIT_BOUND * (3.0 * told[:, :2] / LOGIT_BOUND).tanh())
    tiers = torch.zeros(len(told), dtype=torch.long)
    expected = torch.nn.functional.pad(3.0 * told[:, 2:], (0, 1))
    torch.testing.assert_close(logits.line.given(tiers), expected)
    pages = actor.distribution(context)
    torch.testing.assert_close(
        pages._ad.softmax(1)[:, -1], torch.full((len(told),), 1 / (1 + np.exp(-3.0))), atol=2e-3, rtol=0
    )


def test_what_offers_and_lines_are_worth_enters_by_its_weights_alone():
    builder, told = telling()
    plain, count = contexts(), len(BUILDER.shopper.numeric)
    actor, source = PageActor(LAYOUT, builder, 8, generator(3), BIDS, VECTORS), generator(4)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source))
    shoppers = [torch.cat([plain.shopper[:, :count], part, plain.shopper[:, count:]], 1) for part in (told, -told)]
    one, other = (actor(dataclasses.replace(plain, shopper=shopper), actor.bidder(plain)) for shopper in shoppers)
    assert torch.equal(one.slate, other.slate)
    assert torch.equal(one.line.query, other.line.query)
    assert not torch.allclose(one.offer, other.offer)
    torch.testing.assert_close(one.line.effects, -other.line.effects)
    strategy = PageStrategy(actor, builder, LINES, {})
    assert strategy.actor.slate.shopper_spread.isinf().sum() == 6


def test_only_bidders_are_ads_and_a_mask_narrows_them(strategy: PageStrategy):
    context = contexts()
    ads = strategy.pages(context).sample(generator()).ad
    assert set(ads.tolist()) <= {EMPTY, 1, 4, 6}
    narrow = torch.zeros(60, 7, dtype=torch.bool)
    narrow[:, [4, 5]] = True
    for source in range(5):
        assert set(strategy.pages(context, narrow).sample(generator(source)).ad.tolist()) <= {EMPTY, 4}
    nobody = actor_of(bids=np.zeros(7))
    assert (nobody.distribution(context).sample(generator()).ad == EMPTY).all()


def test_an_offer_changes_what_is_said():
    actor, context = actor_of(), contexts()
    line = actor(context, actor.bidder(context)).line
    none, tier = (line.given(torch.full((60,), t)) for t in (0, 1))
    assert (none - tier).abs().min() > 0
    torch.testing.assert_close((none - tier).std(0), torch.zeros(5), atol=1e-4, rtol=0)


def test_what_is_proposed_has_the_probability_it_says(strategy: PageStrategy):
    context = contexts()
    decision = strategy.propose(context, generator())
    torch.testing.assert_close(strategy.log_prob(context, decision), decision.log_prob)
    assert set(decision.log_probs) == {"slate", "ad", "offer", "copy"}
    torch.testing.assert_close(sum(decision.log_probs.values()), decision.log_prob)
    assert decision.propensity is None
    assert not decision.log_prob.requires_grad
    ad_item = decision.slate.gather(1, decision.ad.clamp(min=0)[:, None]).squeeze(1)
    assert set(ad_item[decision.ad != EMPTY].tolist()) <= {1, 4, 6}
    assert strategy.distribution(context).mode().shape == (60, 3)
    again = strategy.propose(context, generator())
    assert torch.equal(again.slate, decision.slate)
    assert torch.equal(again.copy, decision.copy)


def test_the_likeliest_page_is_shown_for_certain(strategy: PageStrategy):
    context, always = contexts(), LikeliestPages(strategy)
    decision, again = (always.propose(context, generator(seed)) for seed in (1, 2))
    pages = strategy.pages(context)
    expected = pages.mode().decision(context, torch.zeros(len(context.mask)))
    for part in ("slate", "ad", "offer", "copy", "log_prob"):
        assert torch.equal(getattr(decision, part), getattr(expected, part)), part
        assert torch.equal(getattr(decision, part), getattr(again, part)), part
    chances = strategy.log_prob(context, decision)
    drawn = torch.stack([strategy.propose(context, generator(seed)).log_prob for seed in range(20)])
    assert (chances > drawn.mean(0)).all()
    closed = torch.zeros_like(context.mask)
    assert (always.propose(context, generator(), closed).ad == EMPTY).all()
    slates = always.distribution(context)
    torch.testing.assert_close(slates.mode(), strategy.distribution(context).mode())
    assert (decision.ad != EMPTY).any()
    assert (always.log_prob(context, decision) == 0).all()
    for part in ("slate", "ad", "offer", "copy"):
        other = strategy.propose(context, generator(3))
        changed = dataclasses.replace(decision, **{part: getattr(other, part)})
        differs = (getattr(changed, part) != getattr(decision, part)).reshape(len(context.mask), -1).any(1)
        assert (always.log_prob(context, changed)[differs] == -torch.inf).all(), part


@pytest.mark.parametrize("layout", [LAYOUT, PageLayout(3), PageLayout(3, ad=True), PageLayout(2, lines=4)], ids=repr)
def test_a_strategy_comes_back_as_it_was(layout: PageLayout, tmp_path: Path):
    copy = layout.lines is not None
    strategy = PageStrategy(actor_of(layout), BUILDER, LINES if copy else (), {"seed": 3})
    with write_directory(tmp_path / "policy", "policy") as scratch:
        strategy.save(scratch)
    again = PageStrategy.load(tmp_path / "policy", CPU)
    assert (again.actor.layout, again.lines, again.trained_on) == (layout, strategy.lines, {"seed": 3})
    context = again.builder.from_impressions(IMPRESSIONS).map(lambda array: torch.from_numpy(np.array(array)))
    one, other = (s.propose(context, generator()) for s in (strategy, again))
    assert torch.equal(one.slate, other.slate)
    assert torch.equal(one.log_prob, other.log_prob)


@pytest.mark.parametrize("broken", ["page", "lines", "weights"])
def test_a_policy_of_another_form_is_refused(saved: Path, broken: str, strategy: PageStrategy, tmp_path: Path):
    values = json.loads((saved / POLICY).read_text())
    with write_directory(tmp_path / "other", "policy") as scratch:
        strategy.save(scratch)
        if broken == "weights":
            (scratch / WEIGHTS).write_bytes(b"nothing")
        else:
            del values[broken]
            (scratch / POLICY).write_text(json.dumps(values))
    with pytest.raises(InputError, match="not a policy of this version"):
        PageStrategy.load(tmp_path / "other", CPU)


@pytest.mark.parametrize(
    ("layout", "bids", "vectors", "message"),
    [
        (PageLayout(3, ad=True), None, None, "ads need a bid for every item"),
        (PageLayout(3, ad=True), BIDS[:5], None, "ads need a bid for every item"),
        (PageLayout(3, lines=4), None, None, "copy needs a vector for every line"),
        (PageLayout(3, lines=3), None, VECTORS, "copy needs a vector for every line"),
    ],
)
def test_what_a_part_needs(layout: PageLayout, bids, vectors, message: str):
    with pytest.raises(ValueError, match=message):
        PageActor(layout, BUILDER, 8, generator(), bids, vectors)


def test_a_strategy_chooses_the_slate():
    with pytest.raises(ValueError, match="chooses the slate"):
        PageStrategy(actor_of(PageLayout(3, slate=False, ad=True)), BUILDER, (), {})
