import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hawker.policies.bandits import LinearThompson, LinUCB, ThompsonSlate
from hawker.policies.clicks import ClickModel, ClickRows
from hawker.policies.laplace import BROAD, Prior
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError

PRIOR = Prior(main=0.5, product=0.2, own=0.3)
ITEMS = pd.DataFrame({"item_id": ["a", "b", "c", "d"], "size": [1.0, 2.0, 4.0, 3.0]})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log(pages: int = 60, seed: int = 0, affinity: bool = True) -> pd.DataFrame:
    """Pages of two items out of a, b, c (d is never shown); the taller the shopper, the larger the item clicked."""
    rng = np.random.default_rng(seed)
    rows = []
    for page in range(pages):
        tall = float(rng.normal())
        likes = {f"affinity.{item}": float(rng.normal()) if affinity else 0.0 for item in "abcd"}
        for position, item in enumerate(rng.choice(3, 2, replace=False)):
            logit = -0.5 + 0.8 * tall * (item - 1) - 0.7 * position + 0.5 * likes[f"affinity.{'abc'[item]}"]
            rows.append(
                {
                    "visit_id": page // 2,
                    "page": page % 2,
                    "position": position,
                    "shopper_id": f"s{page // 2}",
                    "timestamp": pd.Timestamp("2026-01-01T12:00Z"),
                    "item_id": "abc"[item],
                    "placement": "ad" if page % 5 == 0 and position else "organic",
                    "clicked": int(rng.random() < 1 / (1 + math.exp(-logit))),
                    "tall": tall,
                    **likes,
                }
            )
    return pd.DataFrame(rows)


def fitted(impressions: pd.DataFrame, items: pd.DataFrame = ITEMS) -> tuple[ContextBuilder, ClickRows, ClickModel]:
    builder = ContextBuilder.fit(impressions, items)
    rows = ClickRows.from_impressions(impressions, builder)
    return builder, rows, ClickModel.fit(rows, builder, PRIOR)


def pages(builder: ContextBuilder, n: int, seed: int = 1, repeat: bool = False) -> Context[Tensor]:
    """Contexts of n shoppers, or of one n times, with the whole catalog as candidates."""
    g = generator(seed)
    few, n_items = 1 if repeat else n, len(builder.catalog)
    shopper = torch.randn(few, builder.shopper.width, generator=g).expand(n, -1)
    affinity = torch.randn(few, n_items, generator=g).expand(n, -1)
    candidates = torch.arange(n_items).expand(n, -1)
    return Context(shopper, candidates, torch.ones(n, n_items, dtype=torch.bool), affinity)


def test_thompson_shows_what_is_best_as_often_as_it_is_best():
    """Items without features: a constant and each item's own weight, whose posterior NumPy finds and draws from."""
    counts = {"a": (40, 12), "b": (30, 12), "c": (6, 1)}
    rows = [(item, 0, int(i < clicks)) for item, (n, clicks) in counts.items() for i in range(n)]
    builder, _, model = fitted(plain(*rows), pd.DataFrame({"item_id": list(counts)}))
    x = np.hstack([np.ones((3, 1)), np.eye(3)])
    n, clicks = np.array(list(counts.values())).T
    prior, mean = 1 / np.array([BROAD, *[PRIOR.own] * 3]), np.zeros(4)
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ mean))
        precision = x.T @ (x * (n * p * (1 - p))[:, None]) + np.diag(prior)
        mean = mean + np.linalg.solve(precision, x.T @ (clicks - n * p) - prior * mean)
    worlds = np.random.default_rng(0).multivariate_normal(mean, np.linalg.inv(precision), 200_000) @ x.T
    best = np.bincount(worlds.argmax(1), minlength=3) / len(worlds)
    assert best.min() > 0.1
    slates = LinearThompson(model, 2, draws=10_000).distribution(pages(builder, 20_000, repeat=True))
    shown = slates.sample(generator())[:, 0].bincount(minlength=3) / 20_000
    assert shown.tolist() == pytest.approx(best, abs=0.025)
    marginals = LinearThompson(model, 2, draws=2_000, seed=1).distribution(pages(builder, 1)).marginals(1, generator())
    assert marginals.probability[0, 0].tolist() == pytest.approx(best, abs=0.045)
    assert marginals.error == 0


@pytest.mark.parametrize("mask", [[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
def test_thompsons_probabilities_are_its_frequencies(mask: list[int], every_slate):
    n = 8_000
    builder, _, model = fitted(log(30))
    context = replace(pages(builder, n, repeat=True), mask=torch.tensor(mask).bool().expand(n, -1))
    strategy = LinearThompson(model, 3, draws=40)
    slates = every_slate(torch.tensor(mask), 3)
    exact = strategy.log_prob(
        context.map(lambda array: array[: len(slates)]), Decision(slates, torch.zeros(len(slates)))
    ).exp()
    assert float(exact.sum()) == pytest.approx(1, abs=1e-5)
    decision = strategy.propose(context, generator())
    counts = Counter(map(tuple, decision.slate.tolist()))
    for slate, p in zip(slates.tolist(), exact.tolist(), strict=True):
        assert counts[tuple(slate)] / n == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / n) + 1e-9)
    assert torch.equal(strategy.log_prob(context, decision), decision.log_prob)
    marginals = strategy.distribution(context.map(lambda array: array[:1])).marginals(1, generator()).probability[0]
    for slot in range(3):
        expected = torch.zeros(5).index_add(0, slates[:, slot] % 5, exact)[:4]
        assert marginals[slot].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 129, 1_000])
def test_what_thompson_draws_has_a_probability_whatever_the_batch(n: int):
    builder, _, model = fitted(log(30))
    strategy = LinearThompson(model, 4, draws=16)
    context = pages(builder, 1_000)
    decision = strategy.propose(context, generator())
    assert float(decision.log_prob.min()) >= math.log(1 / 16) - 1e-6
    part = Decision(decision.slate[:n], decision.log_prob[:n])
    assert torch.equal(strategy.log_prob(context.map(lambda array: array[:n]), part), decision.log_prob[:n])


def test_impossible_slates_have_no_probability():
    builder, _, model = fitted(log(30))
    context = replace(pages(builder, 5, repeat=True), mask=torch.tensor([[True, False, True, True]] * 5))
    picks = torch.tensor([[1, 0], [0, 0], [0, EMPTY], [EMPTY, 0], [EMPTY, EMPTY]])
    for strategy in (LinearThompson(model, 2), LinUCB(model, 2, exploration=0.2)):
        assert strategy.distribution(context).log_prob(picks).isneginf().all()


def strategies(model: ClickModel, size: int) -> list[LinUCB | LinearThompson]:
    return [
        LinUCB(model, size),
        LinUCB(model, size, alpha=0.0, exploration=0.3),
        LinearThompson(model, size),
    ]


def test_masks_are_kept_slots_stay_empty_and_seeds_decide():
    builder, _, model = fitted(log())
    context = pages(builder, 500)
    context = replace(context, mask=torch.rand(context.mask.shape, generator=generator(5)) < 0.5)
    for strategy in strategies(model, 3):
        decision = strategy.propose(context, generator(7))
        filled = decision.slate != EMPTY
        assert torch.equal(filled.sum(1), context.mask.sum(1).clamp(max=3)), strategy.name
        assert bool((context.mask.gather(1, decision.slate.clamp(min=0)) | ~filled).all())
        assert all(
            len(set(slate)) == len(slate) for slate in ([i for i in s if i >= 0] for s in decision.slate.tolist())
        )
        assert torch.isfinite(decision.log_prob).all()
        assert torch.allclose(strategy.log_prob(context, decision), decision.log_prob, atol=1e-6)
        again = strategy.propose(context, generator(7))
        assert torch.equal(again.slate, decision.slate)
        assert torch.equal(again.log_prob, decision.log_prob)


def test_fitting_and_drawing_anew_gives_the_same():
    impressions = log()
    builder = ContextBuilder.fit(impressions, ITEMS)
    context = pages(builder, 50)
    for fit in (LinUCB.fit, LinearThompson.fit):
        one, two = (fit(impressions, builder, 2).propose(context, generator()) for _ in range(2))
        assert torch.equal(one.slate, two.slate)
    other = LinearThompson.fit(impressions, builder, 2, seed=1).propose(context, generator())
    assert not torch.equal(one.slate, other.slate)


def test_the_bound_falls_with_data():
    impressions = log(100)
    builder, _, _ = fitted(impressions)
    context = pages(builder, 20)
    widths = []
    for times in (1, 4, 16):
        more = pd.concat([impressions.assign(visit_id=impressions["visit_id"] + 1_000 * i) for i in range(times)])
        model = ClickModel.fit(ClickRows.from_impressions(more, builder), builder, PRIOR)
        widths.append(LinUCB(model, 2, alpha=2.0).bound(context) - LinUCB(model, 2, alpha=0.0).bound(context))
        assert torch.allclose(widths[-1], 2 * model.variance(context).sqrt().float(), atol=1e-5)
    for before, after in itertools.pairwise(widths):
        assert bool((after < before).all()), "of items shown and not shown, as they share weights"
        assert bool((after[:, :3].mean(0) < 0.65 * before[:, :3].mean(0)).all()), "four times the rows: half the width"
    assert bool((widths[2][:, 3] > widths[2][:, :3].amax(1)).all()), "what was never shown stays the most uncertain"


def test_alpha_decides_between_what_is_known_and_what_is_not():
    """a is clicked at 0.5 in 400 rows, d was never shown."""
    rows = [
        (item, clicked)
        for item, p in (("a", 0.5), ("b", 0.2))
        for clicked in [1] * int(400 * p) + [0] * int(400 * (1 - p))
    ]
    impressions = plain(*((item, 0, clicked) for item, clicked in rows))
    items = pd.DataFrame({"item_id": ["a", "b", "d"]})
    builder, _, model = fitted(impressions, items)
    context = pages(builder, 1)
    assert LinUCB(model, 3, alpha=0.0).propose(context, generator()).slate.tolist() == [[0, 2, 1]]
    assert LinUCB(model, 3, alpha=3.0).propose(context, generator()).slate.tolist() == [[2, 0, 1]]
    assert LinUCB(model, 3, alpha=-3.0).propose(context, generator()).slate.tolist() == [[0, 1, 2]]


def plain(*rows: tuple[str, int, int], **columns: object) -> pd.DataFrame:
    """Impressions from rows of (item_id, position, clicked), each on a page of its own by an unknown shopper."""
    frame = pd.DataFrame(rows, columns=["item_id", "position", "clicked"])
    return frame.assign(
        visit_id=range(len(rows)), page=0, shopper_id=None, timestamp=pd.Timestamp("2026-01-01T12:00Z"), **columns
    )


@pytest.mark.parametrize(
    ("impressions", "message"),
    [
        (plain(("a", 0, 1)).iloc[:0], "no impressions to learn from"),
        (plain(("z", 0, 1)), "item not in the catalog; got 'z'"),
    ],
)
def test_logs_that_bandits_cannot_learn_from(impressions: pd.DataFrame, message: str):
    builder = ContextBuilder.fit(plain(("a", 0, 1)), ITEMS)
    with pytest.raises(InputError, match=message):
        LinUCB.fit(impressions, builder, 2)


TWINS = pd.DataFrame({"item_id": [f"t{i}" for i in range(40)], "size": [1.0, 2.0] * 20})
"""Items of two kinds; those of a kind that no log shows are the same to a model."""


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("n", [1, 3, 33, 200])
def test_equal_items_stand_in_the_candidates_order_whatever_the_batch(alpha: float, n: int):
    impressions = plain(*((f"t{i % 4}", 0, int(i % 2 == 0 or i % 5 == 0)) for i in range(60)))
    builder, _, model = fitted(impressions, TWINS)
    shown = replace(pages(builder, 200), affinity=torch.zeros(200, 40))
    order = torch.rand(200, 36, generator=generator()).argsort(1) + 4
    context = replace(shown, candidates=order, mask=order >= 0, affinity=torch.zeros(200, 36))
    strategy = LinUCB(model, 36, alpha)
    decision = strategy.propose(context, generator())
    assert decision.log_prob.tolist() == [0.0] * 200
    part = context.map(lambda array: array[:n])
    assert strategy.log_prob(part, Decision(decision.slate[:n], torch.zeros(n))).tolist() == [0.0] * n
    for slate, candidates in zip(decision.slate.tolist(), order.tolist(), strict=True):
        kinds = [[item for item in candidates if item % 2 == kind] for kind in (0, 1)]
        assert slate in (kinds[0] + kinds[1], kinds[1] + kinds[0])


def test_ties_of_draws_go_to_the_first():
    context = Context(torch.zeros(2, 0), torch.tensor([[3, 1, 2, 0]] * 2), torch.ones(2, 4).bool(), torch.zeros(2, 4))
    table, slope, u = torch.zeros(4, 5, 1), torch.zeros(5), torch.ones(2, 1)
    tied = ThompsonSlate(table, slope, u, context.affinity, context.affinity, context, 2)
    assert tied.sample(generator()).tolist() == [[0, 1]] * 2
    assert tied.mode().tolist() == [[0, 1]] * 2
    assert tied.log_prob(torch.tensor([[0, 1], [1, 0]])).tolist() == [0.0, -math.inf]
    assert tied.log_prob(torch.tensor([[0, 2], [0, 0]])).tolist() == [-math.inf] * 2
    assert tied.marginals(1, generator()).probability[0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]


def test_a_thompson_slate_by_hand():
    """Scores of items 0, 1, 2 by four models: 0 2 1, 0 1 2, 1 0 2 and 0 2 1 again."""
    scores = torch.tensor([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0], [2.0, 3.0, 1.0], [9.0, 7.0, 8.0]])
    context = Context(torch.zeros(4, 0), torch.tensor([[0, 1, 2]] * 4), torch.ones(4, 3).bool(), torch.zeros(4, 3))
    slates = ThompsonSlate(scores.T[:, :, None], torch.zeros(4), torch.ones(4, 1), context.affinity, scores, context, 2)
    picks = torch.tensor([[0, 2], [0, 1], [1, 0], [2, 1]])
    assert slates.log_prob(picks).exp().tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0])
    assert slates.mode().tolist() == [[0, 2], [0, 1], [1, 0], [0, 2]]
    expected = [[0.75, 0.25, 0.0], [0.25, 0.25, 0.5]]
    assert slates.marginals(1, generator()).probability[0].tolist() == expected


def test_a_catalogue_of_one_item():
    """Nothing varies but the clicks; a page shows the item or nothing."""
    impressions = plain(*(("a", i % 2, int(i % 4 == 0)) for i in range(40)))
    builder = ContextBuilder.fit(impressions, pd.DataFrame({"item_id": ["a"]}))
    model = ClickModel.fit(ClickRows.from_impressions(impressions, builder), builder)
    context = replace(pages(builder, 2), mask=torch.tensor([[True], [False]]))
    fits = [
        *strategies(model, 3),
        LinUCB.fit(impressions, builder, 3),
        LinearThompson.fit(impressions, builder, 3),
    ]
    for strategy in fits:
        decision = strategy.propose(context, generator())
        assert decision.slate.tolist() == [[0, EMPTY, EMPTY], [EMPTY] * 3], strategy.name
        assert decision.log_prob.tolist() == [0.0, 0.0]
        assert strategy.log_prob(context, decision).tolist() == [0.0, 0.0]


def test_one_row_is_a_log():
    impressions = plain(("a", 0, 1))
    builder = ContextBuilder.fit(impressions, ITEMS)
    for strategy in (LinUCB.fit(impressions, builder, 2), LinearThompson.fit(impressions, builder, 2)):
        decision = strategy.propose(pages(builder, 3), generator())
        assert bool((decision.slate >= 0).all())
        assert torch.isfinite(decision.log_prob).all()
