"""Recalibration against truths of which the right answer is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hawker.simulators.calibration import calibrate
from hawker.simulators.shopper import IDENTITY, recalibrated


def two_items(n: int, odds: tuple[float, float], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of two items each of n rows shows and whether it was clicked, with these log-odds."""
    generator = torch.Generator().manual_seed(seed)
    item = torch.randint(2, (n,), generator=generator)
    probability = torch.tensor(odds).sigmoid()[item]
    return item, (torch.rand(n, generator=generator) < probability).float()


def said(item: torch.Tensor, *odds: tuple[float, float]) -> torch.Tensor:
    """Return what members say who give the two items these log-odds, shape (M, n)."""
    return torch.stack([torch.tensor(pair).sigmoid()[item] for pair in odds])


def mapped(calibration: torch.Tensor, *odds: float) -> list[float]:
    """Return what a calibration makes of these log-odds."""
    return recalibrated(torch.tensor(odds), calibration).tolist()


def slope(calibration: torch.Tensor) -> float:
    """Return the mean slope of a calibration on the two sides of its bend."""
    return float(calibration[1] + calibration[2] / 2)


def test_members_that_exaggerate_are_calibrated():
    # They say 0 -/+ 2 where the truth is -1.5 -/+ 1; of a bend two items tell nothing.
    item, clicked = two_items(100_000, (-2.5, -0.5))
    calibration = calibrate(said(item, (-2.0, 2.0)), clicked, torch.ones(1, len(item), dtype=torch.bool))
    assert mapped(calibration, -2.0, 2.0) == pytest.approx([-2.5, -0.5], abs=0.06)
    assert slope(calibration) == pytest.approx(0.5, abs=0.04)
    assert calibration.dtype == torch.float32


@pytest.mark.parametrize("bend", [-0.8, 0.8])
def test_a_tail_said_too_surely_is_bent_back(bend):
    """Right on the whole and wrong at both ends: a line cannot mend it."""
    generator, n = torch.Generator().manual_seed(7), 200_000
    odds = 1.2 * torch.randn(n, generator=generator) - 1.5
    truth = torch.tensor([-1.5 * bend / 2, 1.0 - bend / 2, bend, -1.5])
    clicked = (torch.rand(n, generator=generator) < recalibrated(odds, truth).sigmoid()).float()
    calibration = calibrate(odds.sigmoid()[None], clicked, torch.ones(1, n), bend=True)
    assert float(calibration[2]) == pytest.approx(bend, abs=0.15)
    where = torch.linspace(-4.5, 1.5, 13)  # 99% of the rows
    torch.testing.assert_close(recalibrated(where, calibration), recalibrated(where, truth), atol=0.12, rtol=0)
    straight = calibrate(odds.sigmoid()[None], clicked, torch.ones(1, n))
    assert straight[2] == 0
    assert (recalibrated(where, straight) - recalibrated(where, truth)).abs().max() > 0.3


@given(
    centre=st.floats(-6, 3),
    spread=st.floats(0.01, 4),
    power=st.floats(-3, 3),
    n=st.integers(2, 3000),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_no_evidence_turns_one_end_of_a_ranking_around(centre, spread, power, n, seed):
    """Whatever happened, a curve that rises in the middle rises everywhere."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, generator=generator)
    happened = (torch.rand(n, generator=generator) < (centre + power * z.square()).sigmoid()).float()
    calibration = calibrate((centre + spread * z).sigmoid()[None], happened, torch.ones(1, n), bend=True)
    assert torch.isfinite(calibration).all()
    if slope(calibration) > 1e-3:
        assert (recalibrated(torch.linspace(-16, 14, 301), calibration).diff() > 0).all()


def test_only_members_that_have_not_seen_a_row_calibrate_on_it():
    item, clicked = two_items(20_000, (-2.0, 0.0))
    raw, seen = said(item, (-2.0, 0.0)), torch.arange(len(item)) % 2
    unseen = torch.stack([seen, 1 - seen]).float()
    by_heart = torch.where(unseen > 0, raw, 0.01 + 0.98 * clicked)  # what each member has seen it knows
    assert mapped(calibrate(by_heart, clicked, unseen), -2.0, 0.0) == pytest.approx([-2.0, 0.0], abs=0.06)
    half = torch.arange(len(item)) < 10_000  # the rows that nobody may judge do not count
    expected = calibrate(raw[:, half], clicked[half], torch.ones(1, 10_000))
    torch.testing.assert_close(calibrate(raw, clicked, half[None].float()), expected)


def test_the_mean_of_all_members_is_calibrated_not_that_of_the_few_that_judge():
    generator, n = torch.Generator().manual_seed(5), 200_000
    truth = torch.randn(n, generator=generator) - 1.0
    clicked = (torch.rand(n, generator=generator) < truth.sigmoid()).float()
    raw = (truth + 0.8 * torch.randn(5, n, generator=generator)).sigmoid()
    unseen = torch.nn.functional.one_hot(torch.randint(5, (n,), generator=generator), 5).T.float()
    few = calibrate(torch.where(unseen > 0, raw, 0).sum(0, keepdim=True), clicked, torch.ones(1, n))
    best = calibrate(raw.mean(0, keepdim=True), clicked, torch.ones(1, n))
    assert slope(few) < slope(best) - 0.2
    assert slope(calibrate(raw, clicked, unseen)) == pytest.approx(slope(best), abs=0.06)


def test_what_members_know_by_heart_does_not_count_as_what_they_agree_about():
    """Five members, each of which has not learned from 37% of the rows, and says more than it may of the others."""
    generator, n = torch.Generator().manual_seed(6), 200_000
    truth = torch.randn(n, generator=generator) - 1.0
    clicked = (torch.rand(n, generator=generator) < truth.sigmoid()).float()
    honest = truth + 0.8 * torch.randn(5, n, generator=generator)
    unseen = (torch.rand(5, n, generator=generator) < 0.37).float()
    said = torch.where(unseen > 0, honest, honest + 1.5 * (clicked - truth.sigmoid())).sigmoid()
    best = calibrate(honest.sigmoid().mean(0, keepdim=True), clicked, torch.ones(1, n))
    assert slope(calibrate(said, clicked, unseen)) == pytest.approx(slope(best), abs=0.03)


@pytest.mark.parametrize(("contrary", "least", "most"), [(3, 0.9, 1.05), (10, 0.5, 0.7)])
def test_ten_clicks_hardly_move_a_calibration(contrary, least, most):
    """Of ten clicks the item thought worse should get three; even if it gets all, the ranking stands."""
    item = torch.arange(1000) % 2
    base = math.log(0.01 / 0.99)
    clicked = torch.zeros(1000)
    clicked[0 : 2 * contrary : 2] = clicked[1 : 2 * (10 - contrary) : 2] = 1.0
    assert clicked.sum() == 10
    odds = (base - 0.5, base + 0.5)
    calibration = calibrate(said(item, odds), clicked, torch.ones(1, 1000))
    low, high = mapped(calibration, *odds)
    assert least < high - low < most
    rate = float(torch.tensor([low, high]).sigmoid().mean())
    assert rate == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize(
    ("odds", "clicked"),
    [((-200.0, 200.0), [1, 0]), ((-200.0, 200.0), [0, 1]), ((-300.0, -300.0), [1, 1]), ((300.0, 300.0), [0, 0])],
)
def test_calibration_of_certain_predictions_stays_finite(odds, clicked):
    item = torch.tensor([0, 1] * 50)
    happened = torch.tensor(clicked * 50).float()
    assert torch.isfinite(calibrate(said(item, odds), happened, torch.ones(1, 100), bend=True)).all()


def test_without_rows_to_calibrate_on_nothing_changes():
    raw, clicked = torch.full((1, 10), 0.3), torch.ones(10)
    assert torch.equal(calibrate(raw, clicked, torch.zeros(1, 10)), IDENTITY[0])
    assert torch.equal(calibrate(raw, clicked, torch.ones(1, 10), torch.zeros(10)), IDENTITY[0])
    assert torch.equal(calibrate(raw[:, :0], clicked[:0], torch.zeros(1, 0)), IDENTITY[0])


def test_an_event_may_count_several_times():
    """Days that passed without a return come as one event each, with their number."""
    item, clicked = two_items(400, (-2.0, 0.5))
    times = torch.randint(4, (400,), generator=torch.Generator().manual_seed(2))
    raw = said(item, (-1.0, 1.0), (-1.5, 0.0))
    unseen = (torch.rand(2, 400, generator=torch.Generator().manual_seed(3)) < 0.7).float()
    again = torch.repeat_interleave(torch.arange(400), times)
    expected = calibrate(raw[:, again], clicked[again], unseen[:, again])
    torch.testing.assert_close(calibrate(raw, clicked, unseen, times.float()), expected, atol=1e-4, rtol=1e-4)


def test_who_waits_long_is_weighed_by_days():
    """A hazard of 10% a day, seen as 9 days passed for each return, is told from one of 50%."""
    raw = torch.full((1, 200), 0.5)
    happened = torch.tensor([0.0, 1.0]).repeat(100)
    times = torch.tensor([9.0, 1.0]).repeat(100) * 100
    (odds,) = mapped(calibrate(raw, happened, torch.ones(1, 200), times), 0.0)
    assert 1 / (1 + math.exp(-odds)) == pytest.approx(0.1, rel=0.03)
