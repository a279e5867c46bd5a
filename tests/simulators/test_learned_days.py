"""Days until the return, drawn as the hazard of the fitted models says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.simulators.learned import NEVER, draw_days
from hawker.simulators.memory import EDGES, days_at_risk


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def hazards(seed: int) -> torch.Tensor:
    return torch.rand(1, len(EDGES), generator=seeded(seed)) * 0.3


def chance(hazard: torch.Tensor, day: int) -> float:
    """Return P(back on a day) by the likelihood that models are fitted with."""
    passed, came = days_at_risk(torch.tensor([float(day)]), torch.tensor([1.0]))
    return math.exp(float((passed * torch.log1p(-hazard) + came * hazard.log()).sum()))


@pytest.mark.parametrize("seed", range(3))
def test_days_are_drawn_as_the_hazard_says(seed):
    hazard, n = hazards(seed), 200_000
    days = draw_days(hazard.expand(n, -1), torch.rand(n, generator=seeded(seed)))
    for day in (0, 1, 2, 5, 9, 10, 11, 12, 13, 14, 16):
        p = chance(hazard, day)
        assert float((days == day).float().mean()) == pytest.approx(p, abs=4 * math.sqrt(p / n) + 1e-5), day


@given(seed=st.integers(0, 50), uniform=st.floats(0, 1 - 2**-20))
def test_a_draw_is_the_inverse_of_the_distribution(seed, uniform):
    hazard = hazards(seed)
    day = float(draw_days(hazard, torch.tensor([uniform])))
    below = sum(chance(hazard, d) for d in range(int(min(day, 400))))
    assert below <= uniform + 1e-5
    if day < math.inf:
        assert uniform <= below + chance(hazard, int(day)) + 1e-5


@pytest.mark.parametrize(
    ("hazard", "uniform", "day"),
    [
        (1.0, 0.0, 0),
        (1.0, 0.999, 0),
        (0.5, 0.0, 0),
        (0.5, 0.49, 0),
        (0.5, 0.51, 1),
        (0.5, 0.76, 2),
        (0.0, 0.5, math.inf),
        (0.0, 0.999999, math.inf),
        (1e-4, 0.5, math.inf),  # half have not come back after 6,931 days
        (1e-4, 0.01, 100),
        (0.01, 0.99, math.inf),  # the hundredth that comes after 458 days
    ],
)
def test_days_by_hand(hazard, uniform, day):
    assert float(draw_days(torch.full((1, len(EDGES)), hazard), torch.tensor([uniform]))) == day


def test_beyond_a_year_nobody_is_waited_for():
    hazard = torch.full((1, len(EDGES)), 0.004)
    uniform = torch.linspace(0, 0.999, 2000)
    days = draw_days(hazard.expand(2000, -1), uniform)
    assert days[~days.isinf()].max() == NEVER
    assert (days.isinf() == (uniform > 1 - 0.996 ** (NEVER + 1))).float().mean() > 0.999
