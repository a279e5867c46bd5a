import numpy as np
import pytest
import torch
from torch import Tensor

from hawker.policies.laplace import BROAD, Design, Prior, Weights, find_mode, likelihood

PRIOR = Prior(main=0.4, product=0.1, own=0.25)


def problem(n: int = 70, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows (1, u, two effects), outcomes, their items, and z = (1, z) of four items, of which the last has no row."""
    g = torch.Generator().manual_seed(seed)
    features = torch.cat([torch.ones(n, 1), torch.randn(n, 3, generator=g)], 1)
    item = torch.randint(3, (n,), generator=g)
    y = (torch.rand(n, generator=g) < (features[:, 1] * (item - 1) - 0.5).sigmoid()).float()
    items = torch.tensor([[1.0, -1.0], [1.0, 0.5], [1.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    return features, y, item, items


def test_mode_and_covariance_are_those_of_one_long_vector():
    """Weights in the order W (2 x 2), effects (2), items' own (4), by a dense Newton iteration in NumPy."""
    features, y, item, items = problem()
    mode, curvature = find_mode(Design.lay_out(features, y, item, items, 2), PRIOR, None)
    u, rest, z = features[:, :2].double().numpy(), features[:, 2:].double().numpy(), items.numpy()[item]
    x = np.hstack([u[:, :1] * z, u[:, 1:] * z, rest, np.eye(4)[item]])
    prior = 1 / np.array([BROAD, PRIOR.main, PRIOR.main, PRIOR.product, BROAD, BROAD, *[PRIOR.own] * 4])
    mean = np.zeros(10)
    for _ in range(20):
        p = 1 / (1 + np.exp(-x @ mean))
        precision = x.T @ (x * (p * (1 - p))[:, None]) + np.diag(prior)
        mean = mean + np.linalg.solve(precision, x.T @ (y.numpy() - p) - prior * mean)
    covariance = np.linalg.inv(precision)
    assert [*mode.weights.flatten(), *mode.effects, *mode.own] == pytest.approx(mean, abs=1e-4)
    shared = torch.cholesky_inverse(curvature.root)
    assert shared.numpy() == pytest.approx(covariance[:6, :6], abs=1e-4)
    for i in range(4):
        drag = torch.cat([torch.outer(curvature.mean_row[i, :2], items[i]).flatten(), curvature.mean_row[i, 2:]])
        assert (-shared @ drag).tolist() == pytest.approx(covariance[:6, 6 + i], abs=1e-4)
        own = drag @ shared @ drag + 1 / curvature.precision[i]
        assert float(own) == pytest.approx(covariance[6 + i, 6 + i], abs=1e-4)


def test_the_order_of_rows_and_the_start_do_not_matter():
    features, y, item, items = problem(200)
    mode, _ = find_mode(Design.lay_out(features, y, item, items, 2), PRIOR, None)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    far = Weights(mode.weights + 9.0, mode.effects - 9.0, mode.own + 9.0)
    again, _ = find_mode(Design.lay_out(features[order], y[order], item[order], items, 2), PRIOR, far)
    for name in ("weights", "effects", "own"):
        assert torch.allclose(getattr(mode, name), getattr(again, name), atol=2e-4)


def test_the_likelihood_by_hand():
    """One row of item 1 with u = (1, 2), rest 3: logit = 0.1 + 0.2 * 2 + 0.5 * 3 = 2, missed."""
    design = Design.lay_out(
        torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1), torch.tensor([1]), torch.ones(2, 1, dtype=torch.float64), 2
    )
    coefficients = torch.tensor([[9.0, 9.0, 9.0], [0.1, 0.2, 0.5]], dtype=torch.float64)
    loss, slope, information = likelihood(design, coefficients, True)
    p = 1 / (1 + np.exp(-2.0))
    assert float(loss) == pytest.approx(-np.log(1 - p))
    assert slope.tolist() == [[0.0] * 3, pytest.approx([-p, -2 * p, -3 * p])]
    row = np.array([1.0, 2.0, 3.0])
    assert information[1].numpy() == pytest.approx(p * (1 - p) * np.outer(row, row), rel=1e-5)
    assert not information[0].any()
    assert float(likelihood(design, coefficients, False)[0]) == pytest.approx(float(loss))


def test_outcomes_that_a_row_tells_apart_have_a_mode():
    """Without a prior the weights would grow without bound."""
    features, _, item, items = problem()
    y = (features[:, 1] > 0).float()
    features[:, 1:] *= 30.0
    wide = Prior(main=100.0, product=100.0, own=100.0)
    design = Design.lay_out(features, y, item, items, 2)
    mode, _ = find_mode(design, wide, None)
    assert all(torch.isfinite(part).all() for part in (mode.weights, mode.effects, mode.own))
    assert float(likelihood(design, mode.coefficients(items), False)[0]) < 1.0
