"""Every member's likelihood and forecast against enumeration by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from hawker.simulators.hazards import (
    DormantClasses,
    EventGru,
    Record,
    Truncations,
    hazard_log_likelihood,
    horizon_grid,
    negative_binomial,
    repeat_share,
)

COUNTS = [[1, 0, 2, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 3], [1, 1, 1, 1, 1], [2, 0, 0, 0, 1]]


def record(counts: list[list[int]]) -> Record:
    count = torch.tensor(counts, dtype=torch.float32)
    value = torch.where(count > 0, 0.3 * torch.sin(7 * count + torch.arange(count.shape[1])), 0.0)
    return Record(count, value, (count > 0).int().argmax(1))


def shaken(member: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter away from its start, so that nothing agrees by symmetry."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return member.eval().requires_grad_(False)


def members(repeat: float = 0.0) -> list[torch.nn.Module]:
    draw = torch.Generator().manual_seed(3)
    kinds = (EventGru(4, repeat, draw), DormantClasses(2, repeat, draw), Truncations(4, repeat, draw))
    return [shaken(member) for member in kinds]


BY_PERIOD = pytest.mark.parametrize("member", members()[:2], ids=lambda member: type(member).__name__)
ALL = pytest.mark.parametrize("member", members(0.2), ids=lambda member: type(member).__name__)


def test_hazard_log_likelihood_is_that_of_bernoulli_periods() -> None:
    rate = torch.tensor([0.1, 0.1, 0.0, 50.0])
    found = hazard_log_likelihood(rate, torch.tensor([0.0, 3.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, [-0.1, math.log(1 - math.exp(-0.1)), 0.0, 0.0], atol=1e-6)
    assert torch.isfinite(hazard_log_likelihood(torch.zeros(1), torch.ones(1))).all()


def test_repeat_share_is_one_minus_the_share_of_first_events() -> None:
    assert repeat_share(torch.tensor([0.0, 1, 2, 1, 0])) == pytest.approx(0.25)
    assert repeat_share(torch.zeros(3)) == 0.0


def path_probability(member: DormantClasses, one: Record, kind: int, path: tuple[int, ...]) -> float:
    """P(this class, this path of awake (0) and dormant (1), the events seen), multiplied out."""
    with torch.no_grad():
        rates = torch.nn.functional.softplus(member.rate)
        rate = [float(rates[kind]), float(rates[kind] * torch.sigmoid(member.doze[kind]))]
        sleep, wake = torch.sigmoid(member.sleep[:, kind]).tolist(), float(torch.sigmoid(member.wake[kind]))
        birth = int(one.birth[0])
        first = torch.stack([torch.log2(one.events[0, birth]), one.value[0, birth]])
        chance = float(torch.softmax(member.first(first), 0)[kind]) * (sleep[1] if path[0] else 1 - sleep[1])
    for period in range(birth + 1, one.events.shape[1]):
        before, after = path[period - birth - 1], path[period - birth]
        event = bool(one.events[0, period] > 0)
        chance *= 1 - math.exp(-rate[before]) if event else math.exp(-rate[before])
        dormant = wake if before and not event else 1 - sleep[int(event)]
        chance *= 1 - dormant if after else dormant
    return chance


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_likelihood_of_dormant_classes_is_the_sum_over_all_paths(counts: list[int]) -> None:
    member, one = members()[1], record([counts])
    assert isinstance(member, DormantClasses)
    steps = one.events.shape[1] - int(one.birth[0])
    paths = itertools.product(range(2), itertools.product((0, 1), repeat=steps))
    total = sum(path_probability(member, one, kind, path) for kind, path in paths)
    assert float(member.log_likelihood(one)[0]) == pytest.approx(math.log(total), abs=1e-5)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_likelihood_of_the_recurrent_member_is_the_product_over_periods(counts: list[int]) -> None:
    member, one = members()[0], record([counts])
    assert isinstance(member, EventGru)
    birth, total, state, last = int(one.birth[0]), 0.0, torch.zeros(1, 4), int(one.birth[0])
    with torch.no_grad():
        for period in range(birth, len(counts)):
            if period > birth:
                clock = [[math.log(period - last) - 1, math.log(period - birth) - 2]]
                raw = float(member.out(torch.tanh(member.inside(torch.cat([state, torch.tensor(clock)], 1)))))
                rate = math.log1p(math.exp(raw))
                total += math.log(1 - math.exp(-rate)) if counts[period] else -rate
            if counts[period]:
                inputs = [math.log1p(period - last) - 1, math.log1p(period - birth) - 1, math.log2(counts[period])]
                state = member.cell(torch.tensor([[*inputs, float(one.value[0, period])]]), state)
                last = period
    assert float(member.log_likelihood(one)[0]) == pytest.approx(total, abs=1e-5)


@BY_PERIOD
def test_futures_have_probabilities_that_sum_to_one_and_give_the_forecast(member: EventGru | DormantClasses) -> None:
    past = record(COUNTS)
    futures = list(itertools.product((0, 1), repeat=3))
    mean = past.value.sum(1) / (past.events > 0).sum(1)
    chances = []
    with torch.no_grad():
        for future in futures:
            later = torch.tensor(future, dtype=torch.float32).expand(len(COUNTS), 3)
            value = torch.cat([past.value, later * mean[:, None]], 1)
            whole = Record(torch.cat([past.events, later], 1), value, past.birth)
            chances.append(torch.exp(member.log_likelihood(whole) - member.log_likelihood(past)))
        events, active = member.forecast(past, 3, 20_000, torch.Generator().manual_seed(1))
    chance = torch.stack(chances)
    torch.testing.assert_close(chance.sum(0), torch.ones(len(COUNTS)), atol=1e-5, rtol=0)
    torch.testing.assert_close(active, 1 - chance[0], atol=1e-5, rtol=0)
    expected = sum(sum(future) * chance[i] for i, future in enumerate(futures))
    tolerance = 0.01 if isinstance(member, EventGru) else 1e-5  # the recurrent member simulates
    torch.testing.assert_close(events, expected, atol=tolerance, rtol=0)


@BY_PERIOD
def test_silence_is_censored(member: EventGru | DormantClasses) -> None:
    """A further period without events costs the log-probability of no event in it, and nothing else."""
    past = record(COUNTS)
    longer = Record(*(torch.nn.functional.pad(field, (0, 1)) for field in past[:2]), past.birth)
    with torch.no_grad():
        cost = member.log_likelihood(longer) - member.log_likelihood(past)
        active = member.forecast(past, 1, 1, torch.Generator()).active
    torch.testing.assert_close(torch.exp(cost), 1 - active, atol=1e-5, rtol=0)


def test_several_events_in_a_period_raise_the_expected_count_alone() -> None:
    past = record(COUNTS)
    for plain, repeating in zip(members(0.0)[:2], members(0.5)[:2], strict=True):
        with torch.no_grad():
            one, two = (member.forecast(past, 1, 1, torch.Generator()) for member in (plain, repeating))
        torch.testing.assert_close(two.events, 2 * one.events)
        torch.testing.assert_close(two.active, one.active)


def test_negative_binomial_agrees_with_scipy() -> None:
    count, mean, size = (torch.tensor(x) for x in ([0.0, 1, 7, 0], [0.5, 2.0, 3.0, 1e-7], [0.3, 4.0, 1e3, 1.0]))
    expected = nbinom.logpmf(count, size, size / (size + mean))
    np.testing.assert_allclose(negative_binomial(count, mean, size), expected, rtol=2e-3, atol=1e-5)


def test_horizons_stay_within_the_record() -> None:
    for periods in range(2, 60):
        grid = horizon_grid(periods)
        assert all(1 <= horizon < periods for horizon in grid)
        assert grid == sorted(set(grid))


def test_truncations_hold_each_cut_against_what_followed() -> None:
    counts = [0, 1, 0, 2, 0, 1]
    member, one = members()[2], record([counts])
    assert isinstance(member, Truncations)
    member.standardise(record([*[[0, *row] for row in COUNTS], counts]))
    total = 0.0
    with torch.no_grad():
        decay, scale = math.log1p(math.exp(float(member.decay[0]))), math.exp(float(member.decay[1]))
        for horizon in horizon_grid(6):
            for cut in range(1, 6 - horizon):  # the first event is in period 1
                known = Record(one.events[:, : cut + 1], one.value[:, : cut + 1], one.birth)
                features = member._features(known)[:, -1]
                features = ((features - member.center) / member.spread).clamp(-5, 5)
                level, spread = (member.straight(features) + member.bent(torch.tanh(member.inside(features))))[
                    0
                ].tolist()
                growth = sum((1 + k / (scale + cut - 1)) ** -decay for k in range(1, horizon + 1))
                mean, size = math.exp(level) * growth, math.log1p(math.exp(spread + 2)) + 1e-3
                followed = sum(counts[cut + 1 : cut + 1 + horizon])
                total += nbinom.logpmf(followed, size, size / (size + mean)) / horizon
                events, active = member.forecast(known, horizon, 1, torch.Generator())
                assert float(events) == pytest.approx(mean, rel=1e-4)
                assert float(active) == pytest.approx(1 - nbinom.pmf(0, size, size / (size + mean)), rel=1e-4)
        assert float(member.log_likelihood(one)[0]) == pytest.approx(total, rel=1e-4)


@ALL
def test_shoppers_do_not_touch_each_other(member: torch.nn.Module) -> None:
    whole = record(COUNTS)
    with torch.no_grad():
        together = member.log_likelihood(whole)
        apart = torch.cat([member.log_likelihood(Record(*(field[i : i + 1] for field in whole))) for i in range(5)])
    torch.testing.assert_close(together, apart)


@ALL
def test_gradients_are_finite_for_extreme_histories(member: torch.nn.Module) -> None:
    extreme = record([[7] * 40, [0] * 39 + [1], [1] + [0] * 39])
    member.requires_grad_(True)
    member.log_likelihood(extreme).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in member.parameters() if parameter.grad is not None)
    member.requires_grad_(False)
