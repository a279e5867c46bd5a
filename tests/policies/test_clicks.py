import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from torch import Tensor

import hawker.policies.clicks
from hawker.policies.clicks import Basis, ClickModel, ClickRows, tune
from hawker.policies.laplace import BROAD, Prior
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY

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


def plain(*rows: tuple[str, int, int], **columns: object) -> pd.DataFrame:
    """Impressions from rows of (item_id, position, clicked), each on a page of its own by an unknown shopper."""
    frame = pd.DataFrame(rows, columns=["item_id", "position", "clicked"])
    return frame.assign(
        visit_id=range(len(rows)), page=0, shopper_id=None, timestamp=pd.Timestamp("2026-01-01T12:00Z"), **columns
    )


class Dense:
    """The same posterior with every weight in one vector: a textbook Newton iteration in NumPy."""

    def __init__(self, impressions: pd.DataFrame) -> None:
        rows = impressions
        tall, size = rows["tall"].to_numpy(), ITEMS["size"].to_numpy()
        first = rows.drop_duplicates(["visit_id", "page"])["tall"].to_numpy()
        self.tall, self.size = (first.mean(), first.std()), (size.mean(), size.std())
        item = rows["item_id"].map({"a": 0, "b": 1, "c": 2}).to_numpy()
        likes = rows[[f"affinity.{i}" for i in "abcd"]].to_numpy()[np.arange(len(rows)), item]
        self.unit = 1 / likes.std() if likes.std() else 0.0
        beside = [likes * self.unit, rows["position"] == 1, rows["placement"] == "ad"]
        x = np.array([self.row(t, i, b) for t, i, b in zip(tall, item, np.transpose(beside), strict=True)])
        y = rows["clicked"].to_numpy()
        main, product = PRIOR.main, PRIOR.product
        prior = 1 / np.array([BROAD, main, main, product, BROAD, BROAD, BROAD, *[PRIOR.own] * 4])
        self.mean = np.zeros(x.shape[1])
        for _ in range(30):
            p = 1 / (1 + np.exp(-x @ self.mean))
            precision = x.T @ (x * (p * (1 - p))[:, None]) + np.diag(prior)
            self.mean = self.mean + np.linalg.solve(precision, x.T @ (y - p) - prior * self.mean)
        self.covariance = np.linalg.inv(precision)

    def row(self, tall: float, item: int, beside: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        u = np.array([1.0, (tall - self.tall[0]) / self.tall[1]])
        z = np.array([1.0, (ITEMS["size"][item] - self.size[0]) / self.size[1]])
        return np.array([*np.outer(u, z).ravel(), *beside, *np.eye(4)[item]])

    def candidates(self, tall: float, affinity: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Rows of all items at the first position."""
        return np.array([self.row(tall, i, np.array([affinity[i] * self.unit, 0.0, 0.0])) for i in range(4)])


@pytest.mark.parametrize("affinity", [True, False])
def test_the_posterior_is_that_of_a_textbook(affinity: bool):
    impressions = log(affinity=affinity)
    builder, _, model = fitted(impressions)
    dense, context = Dense(impressions), pages(builder, 5)
    tall = context.shopper[:, builder.shopper.numeric.index("tall")]
    mean, variance = model.logit(context), model.variance(context)
    for page in range(5):
        x = dense.candidates(float(tall[page]), context.affinity[page].double().numpy())
        assert mean[page].tolist() == pytest.approx(x @ dense.mean, abs=2e-4)
        assert variance[page].tolist() == pytest.approx(((x @ dense.covariance) * x).sum(1), rel=2e-3)


def test_draws_have_the_posteriors_mean_and_covariance():
    impressions = log()
    builder, _, model = fitted(impressions)
    dense, context = Dense(impressions), pages(builder, 1)
    x = dense.candidates(
        float(context.shopper[0, builder.shopper.numeric.index("tall")]), context.affinity[0].double().numpy()
    )
    table, slope = model.draw(40_000, generator())
    u, affinity = model.row(context)
    scores = table.double() @ u[0] + slope[:, None].double() * affinity[0]
    assert scores.mean(0).tolist() == pytest.approx(x @ dense.mean, abs=0.02)
    covariance = x @ dense.covariance @ x.T
    assert np.cov(scores.numpy().T) == pytest.approx(covariance, abs=0.03 * float(covariance.max()))


def test_candidates_may_stand_in_any_order_and_scores_do_not_depend_on_the_way(monkeypatch):
    builder, _, model = fitted(log())
    context = pages(builder, 40)
    order = torch.rand(40, 4, generator=generator()).argsort(1)[:, :3]
    shuffled = Context(context.shopper, order, torch.ones(40, 3).bool(), context.affinity.gather(1, order))
    for score in (model.logit, model.variance):
        whole = score(context).gather(1, order)
        assert torch.allclose(score(shuffled), whole, atol=1e-6)
        with monkeypatch.context() as patch:
            patch.setattr(hawker.policies.clicks, "_DENSE", 0)
            assert torch.allclose(score(shuffled), whole, atol=1e-6)


def test_an_item_is_not_paid_for_where_it_stood():
    """a beats b at both positions, and has fewer clicks, because it stood below."""
    counts = {("a", 0): (20, 8), ("a", 1): (400, 40), ("b", 0): (400, 120), ("b", 1): (20, 1)}
    rows = [(*key, int(i < clicks)) for key, (n, clicks) in counts.items() for i in range(n)]
    builder, _, model = fitted(plain(*rows), pd.DataFrame({"item_id": ["a", "b"]}))
    logit = model.logit(pages(builder, 1))[0]
    assert logit[0] > logit[1]


def test_rows_of_a_log_by_hand():
    impressions = log(4).assign(
        converted=[1.0, np.nan] * 4, offer=[0, 2] * 4, copy=["Fresh!", None] * 4, shopper_id=["t", "t", "s", "s"] * 2
    )
    builder = ContextBuilder.fit(impressions, ITEMS)
    rows = ClickRows.from_impressions(impressions.sample(frac=1.0, random_state=0), builder)
    again = ClickRows.from_impressions(impressions.iloc[[2, 3, 6, 7, 0, 1, 4, 5]], builder)
    assert rows.page.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rows.position.tolist() == [0, 1] * 4
    assert rows.shopper.shape == (4, builder.shopper.width)
    assert rows.line is not None
    assert rows.offer is not None
    assert rows.line.tolist() == [0, EMPTY] * 4
    assert rows.offer.tolist() == [0, 2] * 4
    for name in ("item", "clicked", "affinity", "shopper"):
        one, two = getattr(rows, name), getattr(again, name)
        assert sorted(one.flatten().tolist()) == sorted(two.flatten().tolist())
    tall = impressions.groupby(["visit_id", "page"], sort=False)["tall"].first()
    assert sorted(rows.shopper[:, builder.shopper.numeric.index("tall")].tolist()) == pytest.approx(sorted(tall))
    own = [float(row[f"affinity.{row['item_id']}"]) for _, row in impressions.iterrows()]
    assert sorted(rows.affinity.tolist()) == pytest.approx(sorted(own))
    some = rows.only(torch.tensor([0, 3]))
    assert some.page.tolist() == [0, 1]
    assert len(some.shopper) == 4


def test_components_by_hand():
    """Two features of which the second is twice the first: one direction, of variance 1 once scaled."""
    x = torch.tensor([[-1.0, -2.0, 5.0], [0.0, 0.0, 5.0], [1.0, 2.0, 5.0]])
    projected = Basis.fit(x, np.ones(3, np.float32), 3).project(x)
    assert projected[:, 0].tolist() == [1.0] * 3
    assert projected.shape == (3, 2)
    assert projected[:, 1].abs().tolist() == pytest.approx([math.sqrt(1.5), 0, math.sqrt(1.5)], abs=1e-5)
    assert Basis.fit(x, np.ones(3, np.float32), 0).project(x).shape == (3, 1)


def test_tuning_finds_whether_items_differ_beyond_their_features():
    """Items without features: their click rates lie far apart, or not at all."""
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(30)]})
    found = []
    for rate in (rng.uniform(0.05, 0.8, 30), np.full(30, 0.3)):
        item = rng.integers(0, 30, 4_000)
        impressions = plain(*((f"i{i}", 0, int(rng.random() < rate[i])) for i in item))
        builder = ContextBuilder.fit(impressions, items)
        found.append(tune(ClickRows.from_impressions(impressions, builder), builder))
    assert found[0].own >= 0.1
    assert found[1].own <= 0.01


def test_a_log_too_small_to_hold_anything_out_keeps_the_default():
    builder, rows, _ = fitted(plain(("a", 0, 1), ("b", 0, 0)))
    assert tune(rows, builder) == Prior()
    assert ClickModel.fit(rows, builder).prior == Prior()


@pytest.mark.parametrize("clicked", [0, 1])
def test_a_log_with_one_outcome_only(clicked: int):
    builder, _, model = fitted(log().assign(clicked=clicked))
    context = pages(builder, 10)
    assert torch.isfinite(model.logit(context)).all()
    assert torch.isfinite(model.variance(context)).all()


def test_positions_beyond_those_with_an_effect_of_their_own():
    builder, _, model = fitted(plain(*(("ab"[i % 2], i, int(i % 5 == 0)) for i in range(80))))
    assert len(model.effects) == 1 + (hawker.policies.clicks.POSITIONS - 1) + 3
    assert torch.isfinite(model.variance(pages(builder, 2))).all()
