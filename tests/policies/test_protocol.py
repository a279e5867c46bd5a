"""The contract of a strategy. A new one is a line in STRATEGIES and has to pass everything here."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from hawker.policies.baselines import LoggingClone, Popularity, RandomStrategy
from hawker.policies.briefs import Brief
from hawker.policies.choice_prompts import item_words
from hawker.policies.copy_bank import Candidate, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import PageActor, PageStrategy
from hawker.policies.protocol import SlateDistribution, Strategy, picks_of, slate_of
from hawker.policies.slate import SlateActor
from hawker.policies.small_writer import small_model
from hawker.policies.strategist import BankTable, Strategist
from hawker.policies.trained import TrainedStrategy
from hawker.policies.word_choice import WordChoice
from hawker.policies.writer import load_causal, load_tokenizer
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.small import small_tables

SIZE, N_ITEMS = 3, 6


def _log() -> tuple[pd.DataFrame, ContextBuilder]:
    """A log whose items differ in clicks and in how often they stood at a position."""
    impressions, items = small_tables(N_ITEMS, SIZE, n_rows=400)
    item = impressions["item_id"].str.removeprefix("item-").astype(int)
    clicked = np.random.default_rng(1).random(len(impressions)) < 0.1 + 0.05 * item
    impressions = impressions.assign(clicked=clicked.astype(np.int8))
    seldom = (item < 2) & (impressions["position"] == 0)
    return impressions[~seldom | (impressions.index % 3 == 0)], ContextBuilder.fit(impressions, items)


LOG, BUILDER = _log()
SHOPPERS = torch.from_numpy(BUILDER.from_impressions(LOG).shopper)


def _trained() -> TrainedStrategy:
    generator = torch.Generator().manual_seed(7)
    actor = SlateActor(BUILDER, SIZE, 8, generator)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return TrainedStrategy(actor, BUILDER, {})


class _Spoken(Strategy):
    """A strategist whose shoppers are of two audiences, for which it has one line for each item."""

    def __init__(self) -> None:
        layout, source = PageLayout(SIZE, lines=2), torch.Generator().manual_seed(7)
        actor = PageActor(layout, BUILDER, 8, source, line_vectors=np.eye(2, dtype=np.float32))
        with torch.no_grad():
            for parameter in actor.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=source))
        said = [
            Candidate(item, Brief("headline", audience=audience), f"{word} to {chr(97 + i)} pot")
            for i, item in enumerate(BUILDER.catalog.item_ids)
            for audience, word in (("", "Something close"), ("new", "Something new"))
        ]
        bank = build_bank(said, lambda items, *_: np.zeros((1, len(items))), Guardrails.load(), "a writer")
        assert len(bank) == 2 * N_ITEMS
        told = (bank, BUILDER.catalog.item_ids, ("new", "returning"), (0.0,), "headline", bank.texts("headline"))
        self._own = Strategist(PageStrategy(actor, BUILDER, ("a", "b"), {}), BankTable.of(*told, torch.device("cpu")))
        self.name, self.size = self._own.name, self._own.size

    def distribution(self, context: Context[Tensor]) -> SlateDistribution:
        return self._own.distribution(_told(context))

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        return self._own.propose(_told(context), generator)

    def log_prob(self, context: Context[Tensor], decision: Decision[Tensor]) -> Tensor:
        if decision.copy is None:
            audience = _told(context).shopper[:, -1].long()
            only = self._own.table.choose(decision.slate, audience, None, torch.Generator())[0]
            decision = dataclasses.replace(decision, copy=only)
        return self._own.log_prob(_told(context), decision)


def _words() -> WordChoice:
    texts = [" A B C D E F", *[f"{item} < shoes >, < hats >" for item in BUILDER.catalog.item_ids]] * 9
    with tempfile.TemporaryDirectory() as scratch:
        path = small_model(Path(scratch) / "model", texts, seed=3)
        model, tokenizer = load_causal(path, torch.float32).requires_grad_(False).eval(), load_tokenizer(path)
    with torch.no_grad():  # or a random model says the same of everything
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim == 2 else 1)
    return WordChoice(model, tokenizer, BUILDER, item_words(small_tables(N_ITEMS)[1], BUILDER.catalog), SIZE)


def _told(context: Context[Tensor]) -> Context[Tensor]:
    """The context with an audience in its last column."""
    audience = (context.shopper[:, :1] > SHOPPERS[:, :1].median()).float()
    return dataclasses.replace(context, shopper=torch.cat([context.shopper, audience], 1))


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "random": lambda: RandomStrategy(SIZE),
    "popularity": lambda: Popularity.fit(LOG, BUILDER.catalog, SIZE),
    "clone": lambda: LoggingClone.fit(LOG, BUILDER.catalog, SIZE),
    "trained": _trained,
    "strategist": _Spoken,
    "words": _words,
}


@pytest.fixture(scope="module", params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> Strategy:
    return STRATEGIES[request.param]()


@st.composite
def contexts(draw: st.DrawFn) -> Context[Tensor]:
    """Pages whose candidates are some of the items in any order, any of them not eligible."""
    pages, n_candidates = draw(st.integers(1, 4)), draw(st.integers(1, N_ITEMS))
    rows = draw(st.lists(st.integers(0, len(LOG) - 1), min_size=pages, max_size=pages))
    mask = draw(st.lists(st.booleans(), min_size=pages * n_candidates, max_size=pages * n_candidates))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    candidates = [random.permutation(N_ITEMS)[:n_candidates] for _ in range(pages)]
    affinity = random.normal(size=(pages, n_candidates))
    return Context(
        SHOPPERS[rows],
        torch.from_numpy(np.array(candidates)),
        torch.tensor(mask).reshape(pages, n_candidates),
        torch.from_numpy(affinity.astype(np.float32)),
    )


def one_page(eligible: list[bool], pages: int = 1) -> Context[Tensor]:
    """The same page ``pages`` times: candidates out of order, one item of the catalog not among them."""
    rows = (SHOPPERS[:1], [[4, 0, 5, 1, 2]], [eligible], [[0.0, 1.0, 0.0, -1.0, 0.5]])
    context = Context(*(torch.as_tensor(row) for row in rows))
    return context.map(lambda array: array.expand(pages, -1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


few_examples = settings(max_examples=25)
ALL, SOME, TWO = [True] * 5, [True, False, True, True, True], [False, True, False, False, True]


@few_examples
@given(context=contexts(), seed=st.integers(0, 2**31))
def test_a_proposal_is_a_slate(strategy: Strategy, context: Context[Tensor], seed: int):
    decision = strategy.propose(context, generator(seed))
    assert decision.slate.shape == (len(context.mask), SIZE)
    for page in range(len(context.mask)):
        slate = decision.slate[page].tolist()
        eligible = context.candidates[page][context.mask[page]].tolist()
        shown = [item for item in slate if item != EMPTY]
        assert len(set(shown)) == len(shown)
        assert set(shown) <= set(eligible)
        assert slate == shown + [EMPTY] * (SIZE - min(SIZE, len(eligible)))


@few_examples
@given(context=contexts(), seed=st.integers(0, 2**31))
def test_a_proposal_says_its_own_log_probability(strategy: Strategy, context: Context[Tensor], seed: int):
    decision = strategy.propose(context, generator(seed))
    assert decision.log_prob.shape == (len(context.mask),)
    assert torch.equal(decision.log_prob, strategy.log_prob(context, decision))
    assert torch.isfinite(decision.log_prob).all()
    assert (decision.log_prob <= 1e-5).all()


@few_examples
@given(context=contexts(), seed=st.integers(0, 2**31))
def test_the_generator_alone_decides(strategy: Strategy, context: Context[Tensor], seed: int):
    before = torch.get_rng_state()
    first, second = (strategy.propose(context, generator(seed)) for _ in range(2))
    assert torch.equal(first.slate, second.slate)
    assert torch.equal(first.log_prob, second.log_prob)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_decision(strategy: Strategy):
    context = one_page(ALL, pages=50)
    one, other = (strategy.propose(context, generator(seed)) for seed in (0, 1))
    assert not torch.equal(one.slate, other.slate)


@few_examples
@given(context=contexts(), seed=st.integers(0, 2**31))
def test_pages_and_the_order_of_candidates_do_not_matter(strategy: Strategy, context: Context[Tensor], seed: int):
    decision = strategy.propose(context, generator(seed))
    for page in range(len(context.mask)):
        alone = context.map(lambda array, page=page: array[page : page + 1])
        order = torch.randperm(context.mask.shape[1], generator=generator(seed))
        turned = Context(alone.shopper, *(a[:, order] for a in (alone.candidates, alone.mask, alone.affinity)))
        one = Decision(decision.slate[page : page + 1], decision.log_prob[page : page + 1])
        for same in (alone, turned):
            assert float(strategy.log_prob(same, one)) == pytest.approx(float(one.log_prob), abs=1e-5)


@few_examples
@given(context=contexts())
def test_all_slates_together_are_certain(strategy: Strategy, every_slate, context: Context[Tensor]):
    for page in range(len(context.mask)):
        picks = every_slate(context.mask[page], SIZE)
        pages = context.map(lambda array, page=page, picks=picks: array[page].expand(len(picks), -1))
        slates = slate_of(pages, picks)
        log_prob = strategy.log_prob(pages, Decision(slates, torch.zeros(len(picks))))
        assert float(log_prob.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("eligible", [ALL, SOME, TWO], ids=["all eligible", "one not", "fewer than slots"])
def test_frequencies_of_100_000_slates_agree_with_their_probabilities(
    strategy: Strategy, every_slate, eligible: list[bool]
):
    n = 100_000
    context = one_page(eligible, n)
    decision = strategy.propose(context, generator(3))
    base = N_ITEMS + 1
    digits = base ** torch.arange(SIZE)
    picks = every_slate(context.mask[0], SIZE)
    few = one_page(eligible, len(picks))
    slates = slate_of(few, picks)
    expected = n * strategy.log_prob(few, Decision(slates, torch.zeros(len(picks)))).double().exp().numpy()
    drawn = torch.bincount(((decision.slate + 1) * digits).sum(1), minlength=base**SIZE)
    observed = drawn[((slates + 1) * digits).sum(1)].numpy()
    assert observed.sum() == n, "a slate was drawn that is none"
    rare = expected < 5  # too few for a chi-square: one cell of them all
    cells = [np.append(counts[~rare], counts[rare].sum()) for counts in (observed, expected)]
    kept = cells[1] > 0
    observed, expected = cells[0][kept], cells[1][kept]
    assert len(expected) > 1
    assert chisquare(observed, expected * n / expected.sum()).pvalue > 0.001


@few_examples
@given(context=contexts())
def test_marginals_are_probabilities_of_eligible_candidates(strategy: Strategy, context: Context[Tensor]):
    marginals = strategy.distribution(context).marginals(20, generator())
    filled = torch.arange(SIZE) < context.mask.sum(1, keepdim=True)
    assert marginals.probability.shape == (len(context.mask), SIZE, context.mask.shape[1])
    assert torch.allclose(marginals.probability.sum(2), filled.float(), atol=1e-5)
    assert not marginals.probability[~context.mask[:, None].expand_as(marginals.probability)].any()
    assert marginals.probability.sum(1).amax() <= 1 + 20 * marginals.error + 1e-5, "an item is shown at most once"


@pytest.mark.parametrize("eligible", [ALL, SOME, TWO], ids=["all eligible", "one not", "fewer than slots"])
def test_marginals_agree_with_sampled_frequencies(strategy: Strategy, eligible: list[bool]):
    n = 20_000
    distribution = strategy.distribution(one_page(eligible, n))
    picks = distribution.sample(generator(5))
    frequency = torch.stack([(picks == place).double().mean(0) for place in range(len(eligible))], 1)
    marginals = strategy.distribution(one_page(eligible)).marginals(1000, generator(6))
    probability = marginals.probability[0].double()
    error = (probability * (1 - probability) / n + marginals.error**2).clamp(min=0).sqrt()
    assert ((frequency - probability).abs() <= 5 * error + 1e-6).all()
    assert marginals.error < 0.01


@few_examples
@given(context=contexts())
def test_the_mode_is_the_greedy_slate(strategy: Strategy, context: Context[Tensor]):
    distribution = strategy.distribution(context)
    mode = distribution.mode()
    assert torch.isfinite(distribution.log_prob(mode)).all()
    first = distribution.marginals(2, generator()).probability[:, 0]
    for page in range(len(mode)):
        if context.mask[page].any():
            assert float(first[page, mode[page, 0]]) == pytest.approx(float(first[page].max()), rel=1e-5)


@pytest.mark.parametrize(
    ("eligible", "slate"),
    [
        (ALL, [4, 4, 0]),
        (ALL, [4, 0, 4]),
        (SOME, [0, 4, 5]),
        (SOME, [4, 5, 0]),
        (ALL, [4, 0, EMPTY]),
        (ALL, [EMPTY, 4, 0]),
        (TWO, [0, EMPTY, 2]),
        (TWO, [0, EMPTY, EMPTY]),
        (TWO, [0, 2, 2]),
        ([False] * 5, [4, EMPTY, EMPTY]),
    ],
)
def test_slates_that_cannot_be_drawn(strategy: Strategy, eligible: list[bool], slate: list[int]):
    decision = Decision(torch.tensor([slate]), torch.zeros(1))
    assert strategy.log_prob(one_page(eligible), decision).tolist() == [-torch.inf]


def test_nothing_to_show(strategy: Strategy):
    decision = strategy.propose(one_page([False] * 5), generator())
    assert decision.slate.tolist() == [[EMPTY] * SIZE]
    assert decision.log_prob.tolist() == [0.0]


def test_an_item_that_is_no_candidate(strategy: Strategy):
    with pytest.raises(ValueError, match="not among its page's candidates"):
        strategy.log_prob(one_page(ALL), Decision(torch.tensor([[4, 0, 3]]), torch.zeros(1)))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_candidates_may_be_small_integers(strategy: Strategy, dtype: torch.dtype):
    wide = one_page(SOME, 20)
    narrow = Context(wide.shopper, wide.candidates.to(dtype), wide.mask, wide.affinity)
    one, other = (strategy.propose(context, generator()) for context in (wide, narrow))
    assert one.slate.tolist() == other.slate.tolist()
    assert torch.equal(one.log_prob, strategy.log_prob(narrow, other))


def test_a_strategy_has_a_name_for_reports_and_its_size(strategy: Strategy):
    assert strategy.name
    assert strategy.size == SIZE


@few_examples
@given(context=contexts(), seed=st.integers(0, 2**31))
def test_picks_and_slates_say_the_same(context: Context[Tensor], seed: int):
    picks = RandomStrategy(SIZE).distribution(context).sample(generator(seed))
    slate = slate_of(context, picks)
    assert torch.equal(picks_of(context, slate), picks)
    for page, pick in zip(slate.tolist(), picks.tolist(), strict=True):
        assert [item == EMPTY for item in page] == [place == EMPTY for place in pick]


def test_the_strategies_here_tell_candidates_apart():
    """Or the battery would hold little: all but the random one must be far from uniform on the test page."""
    for name, make in STRATEGIES.items():
        first = make().distribution(one_page(ALL)).marginals(2, generator()).probability[0, 0]
        assert (float(first.max() / first.min()) > 1.5) == (name != "random"), name
