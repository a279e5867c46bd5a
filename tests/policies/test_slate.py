import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hawker.policies.slate import LOGIT_BOUND, PlackettLuce, SlateActor, position_marginals
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.simulators.small import small_tables


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_softmax(logits: dict[int, float]) -> dict[int, float]:
    top = max(logits.values())
    total = top + math.log(sum(math.exp(logit - top) for logit in logits.values()))
    return {place: logit - total for place, logit in logits.items()}


def slow_log_prob(logits: Sequence[float], mask: Sequence[bool], picks: Sequence[int]) -> float:
    """Slot by slot: the softmax over what is left."""
    left = {place: logit for place, logit in enumerate(logits) if mask[place]}
    total = 0.0
    for pick in picks:
        if left:
            total += log_softmax(left)[pick]
            del left[pick]
        else:
            assert pick == EMPTY
    return total


def slow_entropy(logits: Sequence[float], mask: Sequence[bool], picks: Sequence[int]) -> float:
    """Slot by slot: the entropy of the softmax over what is left."""
    left = {place: logit for place, logit in enumerate(logits) if mask[place]}
    total = 0.0
    for pick in picks:
        if left:
            total -= sum(math.exp(log_p) * log_p for log_p in log_softmax(left).values())
            del left[pick]
    return total


@st.composite
def pages(draw: st.DrawFn) -> tuple[list[float], list[bool], list[int]]:
    """Logits, mask and a slate that can be drawn from them, likely or not."""
    n_candidates, size = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    logits = draw(st.lists(st.floats(-20, 20, width=32), min_size=n_candidates, max_size=n_candidates))
    mask = draw(st.lists(st.booleans(), min_size=n_candidates, max_size=n_candidates))
    picks = draw(st.permutations([place for place in range(n_candidates) if mask[place]]))[:size]
    return logits, mask, picks + [EMPTY] * (size - len(picks))


def distribution_of(logits: list[float], mask: list[bool], size: int, dtype: torch.dtype) -> PlackettLuce:
    return PlackettLuce(torch.tensor([logits], dtype=dtype), torch.tensor([mask]), size)


@given(pages())
def test_log_prob_and_entropy_agree_with_a_loop(page: tuple[list[float], list[bool], list[int]]):
    logits, mask, picks = page
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        distribution = distribution_of(logits, mask, len(picks), dtype)
        log_prob, entropy = distribution.log_prob(torch.tensor([picks])), distribution.entropy(torch.tensor([picks]))
        assert log_prob.dtype == entropy.dtype == dtype
        exact = slow_log_prob(logits, mask, picks)
        assert float(log_prob) == pytest.approx(exact, rel=tolerance, abs=10 * tolerance)
        # the entropy is a difference of numbers as large as the logits
        assert float(entropy) == pytest.approx(slow_entropy(logits, mask, picks), abs=50 * tolerance)


@given(pages())
@settings(max_examples=30)
def test_gradients_agree_with_finite_differences(page: tuple[list[float], list[bool], list[int]]):
    logits, mask, picks = page
    start = torch.tensor([logits], dtype=torch.float64).requires_grad_()
    for part in ("log_prob", "entropy"):

        def value(x: Tensor, part: str = part) -> Tensor:
            result: Tensor = getattr(PlackettLuce(x, torch.tensor([mask]), len(picks)), part)(torch.tensor([picks]))
            return result

        assert torch.autograd.gradcheck(value, start)


@given(pages())
def test_no_gradient_is_nan_and_none_reaches_what_is_not_eligible(page: tuple[list[float], list[bool], list[int]]):
    logits, mask, picks = page
    start = torch.tensor([logits]).requires_grad_()
    distribution = PlackettLuce(start, torch.tensor([mask]), len(picks))
    loss = distribution.log_prob(torch.tensor([picks])) + distribution.entropy(torch.tensor([picks]))
    loss.sum().backward()
    assert start.grad is not None
    assert torch.isfinite(start.grad).all()
    assert not start.grad[~torch.tensor([mask])].any()


def test_a_batch_is_its_pages_one_by_one():
    logits, mask = torch.randn(50, 7, generator=generator()), torch.rand(50, 7, generator=generator(1)) < 0.6
    batch = PlackettLuce(logits, mask, 4)
    picks = batch.sample(generator(2))
    for i in range(50):
        page = PlackettLuce(logits[i : i + 1], mask[i : i + 1], 4)
        assert float(page.log_prob(picks[i : i + 1])) == pytest.approx(float(batch.log_prob(picks)[i]), abs=1e-6)
        assert float(page.entropy(picks[i : i + 1])) == pytest.approx(float(batch.entropy(picks)[i]), abs=1e-6)


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0]])
def test_entropy_along_the_drawn_slates_is_the_entropy_of_the_slate(every_slate, mask: list[int]):
    eligible = torch.tensor(mask).bool()
    picks = every_slate(eligible, 3)
    logits = torch.tensor([0.3, -2.0, 1.5, 4.0, 0.0], dtype=torch.float64)
    distribution = PlackettLuce(logits.expand(len(picks), -1), eligible.expand(len(picks), -1), 3)
    log_prob = distribution.log_prob(picks)
    exact = -(log_prob.exp() * log_prob).sum()
    along = (log_prob.exp() * distribution.entropy(picks)).sum()
    assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(along) == pytest.approx(float(exact), abs=1e-12)


def test_gradient_of_the_entropy_of_one_slot_is_exact():
    logits = torch.tensor([[1.0, -0.5, 0.25, 0.0]], requires_grad=True)
    page = PlackettLuce(logits, torch.ones(1, 4, dtype=torch.bool), 1)
    page.entropy(torch.tensor([[2]])).sum().backward()
    p = logits.detach().softmax(1)
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(logits.grad, -p * (p.log() + entropy))


def test_entropy_pulls_the_likeliest_item_down_where_log_prob_pulls_nowhere():
    """The gradient of -log_prob has mean 0, so that PPO's stand-in for an entropy would not explore."""
    n = 20_000
    logits = torch.tensor([2.0, 0.0, 0.0, -1.0], requires_grad=True)
    pages = PlackettLuce(logits.expand(n, 4), torch.ones(n, 4, dtype=torch.bool), 2)
    picks = pages.sample(torch.Generator().manual_seed(0))
    pages.entropy(picks).mean().backward(retain_graph=True)
    assert logits.grad is not None
    useful, logits.grad = logits.grad.clone(), None
    (-pages.log_prob(picks)).mean().backward()
    assert useful[0] < -0.1
    assert (useful[1:] > 0).all()
    assert logits.grad.abs().max() < 0.02


@pytest.mark.parametrize(
    ("mask", "picks"),
    [
        ([1, 1, 1, 1], [0, 0, 1]),  # repeated
        ([1, 1, 1, 1], [2, 1, 2]),
        ([1, 0, 1, 1], [0, 1, 2]),  # not eligible
        ([1, 0, 1, 1], [1, 0, 2]),
        ([1, 1, 1, 1], [0, 1, EMPTY]),  # empty although a candidate is left
        ([1, 1, 1, 1], [EMPTY, 0, 1]),
        ([1, 1, 0, 0], [0, EMPTY, 1]),
        ([1, 1, 0, 0], [0, EMPTY, EMPTY]),
        ([1, 1, 0, 0], [0, 1, 1]),
        ([1, 1, 0, 0], [0, 1, 2]),
        ([0, 0, 0, 0], [0, EMPTY, EMPTY]),
    ],
)
def test_slates_that_cannot_be_drawn(mask: list[int], picks: list[int]):
    for logits in ([0.0, 0.0, 0.0, 0.0], [20.0, -20.0, 3.0, 0.0]):
        distribution = distribution_of(logits, list(map(bool, mask)), 3, torch.float32)
        assert distribution.log_prob(torch.tensor([picks])).tolist() == [-math.inf]


def test_the_mode_falls_by_logit():
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.0], [0.5, 3.0, -1.0, 2.0]])
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    assert PlackettLuce(logits, mask, 3).mode().tolist() == [[1, 3, 0], [0, 2, EMPTY]]
    assert PlackettLuce(logits, mask, 6).mode().tolist() == [[1, 3, 0, 2, -1, -1], [0, 2, -1, -1, -1, -1]]


def exact_marginals(logits: Tensor) -> Tensor:
    """P(candidate at slot), shape (K, C), by enumeration, from a logit row for each slot, shape (K, C)."""
    size, n_candidates = logits.shape
    marginals = torch.zeros(size, n_candidates, dtype=torch.float64)
    eligible = [place for place in range(n_candidates) if logits[0, place] > -math.inf]
    for picks in itertools.permutations(eligible, min(size, len(eligible))):
        probability, left = 1.0, set(eligible)
        for slot, pick in enumerate(picks):
            weights = {place: math.exp(float(logits[slot, place])) for place in left}
            probability *= weights[pick] / sum(weights.values())
            left.remove(pick)
        for slot, pick in enumerate(picks):
            marginals[slot, pick] += probability
    return marginals


@st.composite
def slot_logits(draw: st.DrawFn) -> Tensor:
    """A logit row for each of up to three slots, (K, C), minus infinity in every row where not eligible."""
    size, n_candidates = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    values = st.floats(-20, 20, width=32) | st.sampled_from([-20.0, 0.0, 20.0])
    rows = draw(st.lists(values, min_size=size * n_candidates, max_size=size * n_candidates))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=n_candidates, max_size=n_candidates)))
    return torch.tensor(rows).reshape(size, n_candidates).masked_fill(~mask, -math.inf)


SLOT_LOGITS = torch.tensor(
    [
        [0.5, 2.0, -1.0, 0.0, 1.0],
        [3.0, 0.0, 0.0, -2.0, 1.0],
        [0.0, 1.0, 0.5, 2.5, -1.0],
        [1.0, 0.0, 1.0, 0.0, 2.0],
    ],
    dtype=torch.float64,
)


@given(slot_logits())
def test_marginals_of_three_slots_are_those_of_enumeration(logits: Tensor):
    marginals = position_marginals(logits.double()[None], 0, generator())
    assert marginals.error == 0.0
    torch.testing.assert_close(marginals.probability[0], exact_marginals(logits), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("enumerable", "exact_slots"), [(5, 3), (4, 2)])
def test_sampled_marginals_agree_with_enumeration_within_their_error(
    monkeypatch: pytest.MonkeyPatch, enumerable: int, exact_slots: int
):
    monkeypatch.setattr("hawker.policies.slate.ENUMERABLE", enumerable)
    exact = exact_marginals(SLOT_LOGITS)
    marginals = position_marginals(SLOT_LOGITS[None], 500, generator())
    distance = (marginals.probability[0] - exact).abs()
    assert distance[:exact_slots].max() < 1e-12
    assert 1e-12 < distance[exact_slots:].max() <= 5 * marginals.error
    assert marginals.error < 0.04
    plain = PlackettLuce(SLOT_LOGITS[:1], torch.ones(1, 5, dtype=torch.bool), 4).marginals(500, generator(1))
    exact = exact_marginals(SLOT_LOGITS[:1].expand(4, -1))
    assert (plain.probability[0] - exact).abs().max() <= 5 * plain.error


@pytest.mark.parametrize("enumerable", [5, 4])
def test_the_error_of_marginals_is_that_of_repeating_them(monkeypatch: pytest.MonkeyPatch, enumerable: int):
    monkeypatch.setattr("hawker.policies.slate.ENUMERABLE", enumerable)
    estimates = position_marginals(SLOT_LOGITS.expand(400, -1, -1), 100, generator()).probability
    scatter = float(estimates.std(0).max())
    stated = np.mean([position_marginals(SLOT_LOGITS[None], 100, generator(seed)).error for seed in range(8)])
    assert stated == pytest.approx(scatter, rel=0.15)


IMPRESSIONS, ITEMS = small_tables(n_items=8, n_rows=50)
BUILDER = ContextBuilder.fit(IMPRESSIONS, ITEMS)


def random_actor(builder: ContextBuilder = BUILDER, seed: int = 0, scale: float = 1.0) -> SlateActor:
    """An actor none of whose weights is zero."""
    source = generator(seed)
    actor = SlateActor(builder, 3, 16, source)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=source))
    return actor


def log_context(builder: ContextBuilder = BUILDER) -> Context[Tensor]:
    context: Context[Tensor] = builder.from_impressions(IMPRESSIONS).map(lambda array: torch.from_numpy(array.copy()))
    return context


def rows_of(actor: SlateActor, context: Context[Tensor]) -> Tensor:
    """Return the exported form's candidates, shape (B, C, d + h + 2)."""
    table = torch.from_numpy(actor.item_table())
    return torch.cat([table[context.candidates], context.affinity[:, :, None]], dim=2)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_exported_form_scores_alike(scale: float):
    actor, whole = random_actor(scale=scale), log_context()
    order = torch.stack([torch.randperm(8, generator=generator(i))[:5] for i in range(50)])
    mask = torch.rand(50, 5, generator=generator(2)) < 0.7
    affinity = torch.randn(50, 5, generator=generator(1))
    for candidates in (order, order.to(torch.int16)):
        context = Context(whole.shopper, candidates, mask, affinity)
        logits = actor(context)
        exported = actor.score_candidates(
            context.shopper, rows_of(actor, Context(whole.shopper, order, mask, affinity)), mask
        )
        assert logits.shape == (50, 5)
        assert (logits - exported)[mask].abs().max() <= 1e-5
        assert torch.isneginf(exported[~mask]).all()
        assert logits.abs().max() <= LOGIT_BOUND


def test_a_logit_is_query_times_key_and_bias_and_affinity():
    actor, context = random_actor(), log_context()
    with torch.no_grad():
        shopper = (context.shopper[0] - actor.shopper_centre) / actor.shopper_spread
        query = actor.query(shopper)
        features = (actor.item_vectors[5] - actor.item_centre) / actor.item_spread
        key = actor.item_key(features) + actor.own_key[5]
        score = query @ key / math.sqrt(16) + actor.item_bias(features) + actor.own_bias[5]
        score = score + 0.7 * actor.affinity_weight(query)
        affinity = torch.full_like(context.affinity, 0.7)
        logits = actor(Context(context.shopper, context.candidates, context.mask, affinity))
    assert float(logits[0, 5]) == pytest.approx(20 * math.tanh(float(score) / 20), abs=1e-5)


def test_a_new_item_is_ranked_by_its_features():
    """With own vectors of zero: an item gets the logits of one with the same features, dearer ones more or less."""
    actor = random_actor()
    with torch.no_grad():
        actor.own_key[3] = 0.0
        actor.own_bias[3] = 0.0
    context = log_context()
    new = np.zeros((3, actor.item_table().shape[1] + 1), np.float32)
    prices = ITEMS["price"].loc[3] + np.array([0.0, 10.0, 20.0])
    again = ITEMS.loc[[3, 3, 3]].assign(price=prices, item_id=["new 0", "new 1", "new 2"])
    new[:, : BUILDER.catalog.features.width] = BUILDER.catalog.features.encode(again)
    candidates = torch.from_numpy(new).expand(50, -1, -1)
    with torch.no_grad():
        of_old = actor(context)[:, 3] - context.affinity[:, 3]
        of_new = actor.score_candidates(context.shopper, candidates, torch.ones(50, 3, dtype=torch.bool))
    assert not context.affinity[:, 3].any()
    assert torch.allclose(of_new[:, 0], of_old, atol=1e-5)
    steps = of_new.diff(dim=1).sign()
    assert torch.equal(steps[:, 0], steps[:, 1]), "one way for every step of the price"
    assert steps.abs().min() == 1


def test_the_first_weights_depend_on_the_generator_alone():
    before = torch.get_rng_state()
    one = SlateActor(BUILDER, 3, 16, generator(1)).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is left alone"
    torch.rand(3)
    other = SlateActor(BUILDER, 3, 16, generator(1)).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    third = SlateActor(BUILDER, 3, 16, generator(2)).state_dict()
    assert not torch.equal(one["item_key.weight"], third["item_key.weight"])
    assert not one["own_key"].any()
    assert not one["own_bias"].any()


def test_logits_are_bounded_whatever_the_shopper():
    actor, context = random_actor(scale=5.0), log_context()
    extreme = torch.full_like(context.shopper, 1e30)
    logits = actor(Context(extreme, context.candidates, context.mask, 1e6 * torch.ones_like(context.affinity)))
    assert torch.isfinite(logits).all()
    assert logits.abs().max() <= LOGIT_BOUND


def test_a_shop_without_features():
    impressions = IMPRESSIONS.drop(columns=["age", "segment", "affinity.item-0"])
    builder = ContextBuilder.fit(impressions, ITEMS[["item_id"]])
    actor = random_actor(builder)
    context = builder.from_impressions(impressions).map(lambda array: torch.from_numpy(np.array(array)))
    logits = actor(context)
    assert actor.item_table().shape == (8, 17)
    assert (logits - actor.score_candidates(context.shopper, rows_of(actor, context), context.mask)).abs().max() <= 1e-5


def test_the_actor_learns_every_parameter():
    actor, context = random_actor(), log_context()
    affine = Context(context.shopper, context.candidates, context.mask, torch.ones_like(context.affinity))
    distribution = PlackettLuce(actor(affine), affine.mask, 3)
    distribution.log_prob(distribution.sample(generator())).sum().backward()
    silent = [name for name, value in actor.named_parameters() if value.grad is None or not value.grad.any()]
    # Softmax sees differences only: a constant added to every item's score has no gradient but through the bound.
    assert not [name for name in silent if name != "item_bias.bias"]
