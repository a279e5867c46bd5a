"""Unlike models of when shoppers come back, learned from purchases over time; `hawker.simulators.returning` joins them.

All count the same things. Time is cut into periods; a period holds 0 or more days with an event. The first event of a
shopper is given; from the period after it on, every period up to the end of the record is an observation, with or
without an event, so that the silence after the last event is censored, never read as leaving.

A rate r >= 0 gives the probability 1 - exp(-r) of a period with events (a discrete-time hazard); a period with events
has on average ``1 / (1 - repeat)`` of them (geometric). The members differ by construction: a recurrent state that
moves at events (`EventGru`), hidden classes of shoppers who fall dormant and wake again (`DormantClasses`), and a
forecast of whole horizons (`Truncations`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import pad, softplus
from torch.nn.utils import skip_init

FEWEST = 1e-6
"""Smallest rate and probability, so that logarithms stay finite."""


class Record(NamedTuple):
    """Purchases of n shoppers over T periods, on one device.

    Attributes:
        events: Days with an event in each period, (n, T) float32, zero before ``birth``.
        value: Standardised log of the mean revenue of an event in each period, (n, T) float32; 0 where unknown.
        birth: Period of the first event, (n,) int64, 0 .. T - 1.
    """

    events: torch.Tensor
    value: torch.Tensor
    birth: torch.Tensor


class Forecast(NamedTuple):
    """What is expected of n shoppers over the next periods.

    Attributes:
        events: Expected events, (n,), 0 or more.
        active: Probability of at least one event, (n,).
    """

    events: torch.Tensor
    active: torch.Tensor


def repeat_share(count: torch.Tensor) -> float:
    """Return the geometric parameter of the events of a period: 1 - 1 / (mean count of periods with events)."""
    busy = count[count > 0]
    return float(1.0 - busy.numel() / busy.sum()) if busy.numel() else 0.0


def hazard_log_likelihood(rate: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return log P(events or none) of each period: -rate without events, log(1 - exp(-rate)) with; same shape."""
    return torch.where(count > 0, torch.log(-torch.expm1(-rate.clamp_min(FEWEST))), -rate)


def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of a model's layers as torch does, but from a generator of their own."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            nn.init.uniform_(layer.bias, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
        elif isinstance(layer, nn.GRUCell):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -(layer.hidden_size**-0.5), layer.hidden_size**-0.5, generator=generator)


class EventGru(nn.Module):
    """A recurrent state that moves at events; the hazard between them falls or rises with the time since.

    Args:
        hidden: Size of the state.
        repeat: As in `repeat_share`.
        generator: Draws the first weights.
    """

    def __init__(self, hidden: int, repeat: float, generator: torch.Generator) -> None:
        super().__init__()
        self.repeat = repeat
        self.cell = skip_init(nn.GRUCell, 4, hidden)
        self.out = skip_init(nn.Linear, hidden, 1)
        self.inside = skip_init(nn.Linear, hidden + 2, hidden)
        draw_weights(self, generator)
        nn.init.constant_(self.out.bias, -3.0)

    def _inputs(self, gap: torch.Tensor, age: torch.Tensor, count: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.log1p(gap) - 1, torch.log1p(age) - 1, torch.log2(count.clamp_min(1)), value], -1)

    def _rate(self, state: torch.Tensor, since: torch.Tensor, age: torch.Tensor) -> torch.Tensor:
        clock = torch.stack([torch.log(since.clamp_min(1)) - 1, torch.log(age.clamp_min(1)) - 2], -1)
        inside = torch.tanh(self.inside(torch.cat([state, clock], -1)))
        return softplus(self.out(inside).squeeze(-1))

    def _states(self, record: Record) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the states after each event (n, E, H), the event last seen by each period's end (n, T), its time."""
        count, value, birth = record
        n, periods = count.shape
        busy = count > 0
        order = busy.long().cumsum(1)  # events seen by the end of each period
        most = int(order[:, -1].max())
        time = torch.arange(periods, device=count.device).expand(n, periods)
        slot = torch.where(busy, order - 1, most)  # empty periods are written to a slot that is cut off
        at = torch.zeros(n, most + 1, dtype=torch.long, device=count.device).scatter_(1, slot, time)[:, :most]
        gap = torch.diff(at, dim=1, prepend=at[:, :1]).clamp_min(0)
        age = (at - birth[:, None]).clamp_min(0).float()
        inputs = self._inputs(gap.float(), age, count.gather(1, at), value.gather(1, at))
        state = torch.zeros(n, self.cell.hidden_size, device=count.device)
        states = []
        for event in range(most):
            state = self.cell(inputs[:, event], state)
            states.append(state)
        last = (order - 1).clamp_min(0)
        return torch.stack(states, 1), last, at.gather(1, last)

    def log_likelihood(self, record: Record) -> torch.Tensor:
        """Return the log-likelihood of each shopper's periods after the first event, (n,)."""
        states, last, time_of = self._states(record)
        periods = record.events.shape[1]
        now = torch.arange(1, periods, device=record.events.device)
        seen = states.gather(1, last[:, :-1, None].expand(-1, -1, states.shape[2]))  # by the end of the period before
        rate = self._rate(seen, (now - time_of[:, :-1]).float(), (now - record.birth[:, None]).float())
        return (hazard_log_likelihood(rate, record.events[:, 1:]) * (now > record.birth[:, None])).sum(1)

    def forecast(self, record: Record, periods: int, draws: int, generator: torch.Generator) -> Forecast:
        """Simulate ``draws`` futures a shopper; P(at least one) is exact, from the future without events."""
        states, last, time_of = self._states(record)
        n, past = record.events.shape
        state = states[torch.arange(n, device=states.device), last[:, -1]]
        since, age = (past - time_of[:, -1]).float(), (past - record.birth).float()
        ahead = torch.arange(periods, device=states.device)
        still = self._rate(state[:, None].expand(-1, periods, -1), since[:, None] + ahead, age[:, None] + ahead)
        value = record.value.sum(1) / (record.events > 0).sum(1).clamp_min(1)
        state, since, age, value = (x.repeat_interleave(draws, 0) for x in (state, since, age, value))
        total = torch.zeros_like(since)
        for _ in range(periods):
            chance = -torch.expm1(-self._rate(state, since, age))
            total += chance / (1 - self.repeat)
            bought = torch.rand(chance.shape, generator=generator, device=chance.device) < chance
            moved = torch.nonzero(bought).squeeze(1)
            many = torch.ones_like(moved, dtype=torch.float32)
            if self.repeat > 0:
                many.geometric_(1 - self.repeat, generator=generator)
            inputs = self._inputs(since[moved], age[moved], many, value[moved])
            state = state.index_copy(0, moved, self.cell(inputs, state[moved]))
            since = torch.where(bought, 1.0, since + 1)
            age = age + 1
        return Forecast(total.view(n, draws).mean(1), -torch.expm1(-still.sum(1)))


class DormantClasses(nn.Module):
    """Latent classes of shoppers, each awake or dormant: a hidden Markov model whose dormant shoppers may wake.

    A shopper belongs to one of ``classes`` classes for good, with probabilities that depend on her first order; awake
    she buys at her class's rate; she may fall dormant after a period with events or without, and wake in any period.
    Dormant is not dead: with absorbing states the model forecasts far too little. Forecasts are exact sums.

    Args:
        classes: Number of classes.
        repeat: As in `repeat_share`.
        generator: Draws the first weights.
    """

    def __init__(self, classes: int, repeat: float, generator: torch.Generator) -> None:
        super().__init__()
        self.repeat = repeat
        self.first = skip_init(nn.Linear, 2, classes)
        draw_weights(self, generator)
        self.rate = nn.Parameter(torch.linspace(-4.0, -0.5, classes))
        self.sleep = nn.Parameter(torch.stack([torch.full((classes,), -3.0), torch.full((classes,), -1.0)]))
        self.wake = nn.Parameter(torch.full((classes,), -4.0))
        self.doze = nn.Parameter(torch.full((classes,), -3.0))  # a dormant shopper's rate, relative to awake

    def _start(self, record: Record) -> torch.Tensor:
        """Return the probabilities of (awake, dormant) by class after the first period, (n, 2, classes)."""
        rows = torch.arange(len(record.birth), device=record.birth.device)
        count, value = record.events[rows, record.birth], record.value[rows, record.birth]
        share = torch.softmax(self.first(torch.stack([torch.log2(count.clamp_min(1)), value], -1)), -1)
        asleep = torch.sigmoid(self.sleep[1])
        return torch.stack([share * (1 - asleep), share * asleep], 1)

    def _rates(self) -> torch.Tensor:
        """Return the rates of the awake and of the dormant, (2, classes)."""
        awake = softplus(self.rate)
        return torch.stack([awake, awake * torch.sigmoid(self.doze)]).clamp_min(FEWEST)

    def _move(self, mass: torch.Tensor, event: int) -> torch.Tensor:
        """Move (n, 2, classes) on by one period that ended without events (0) or with (1)."""
        asleep, wakes = torch.sigmoid(self.sleep[event]), torch.sigmoid(self.wake)
        awake, dormant = mass.unbind(1)
        if event:  # who buys is awake afterwards, unless she falls dormant
            awake, dormant = awake + dormant, torch.zeros_like(dormant)
        return torch.stack([awake * (1 - asleep) + dormant * wakes, awake * asleep + dormant * (1 - wakes)], 1)

    def _filter(self, record: Record) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-likelihood (n,) and the state probabilities at the end (n, 2, classes)."""
        quiet = torch.exp(-self._rates())
        belief = self._start(record)
        total = torch.zeros(len(record.birth), device=record.events.device)
        for period in range(1, record.events.shape[1]):
            busy = (record.events[:, period] > 0)[:, None, None]
            mass = torch.where(busy, self._move(belief * (1 - quiet), 1), self._move(belief * quiet, 0))
            seen = mass.sum((1, 2)).clamp_min(1e-30)
            live = period > record.birth
            total = total + torch.where(live, torch.log(seen), 0.0)
            belief = torch.where(live[:, None, None], mass / seen[:, None, None], belief)
        return total, belief

    def log_likelihood(self, record: Record) -> torch.Tensor:
        """Return the log-likelihood of each shopper's periods after the first event, (n,)."""
        return self._filter(record)[0]

    def forecast(self, record: Record, periods: int, draws: int, generator: torch.Generator) -> Forecast:
        """Sum over the hidden states; exact, so that ``draws`` and ``generator`` go unused."""
        del draws, generator
        quiet = torch.exp(-self._rates())
        belief = silent = self._filter(record)[1]
        events = torch.zeros(len(belief), device=belief.device)
        for _ in range(periods):
            events = events + (belief * (1 - quiet)).sum((1, 2)) / (1 - self.repeat)
            belief = self._move(belief * (1 - quiet), 1) + self._move(belief * quiet, 0)
            silent = self._move(silent * quiet, 0)
        return Forecast(events, 1 - silent.sum((1, 2)))


HALF_LIVES = (2.0, 8.0, 32.0)
"""Periods in which a past event loses half its weight."""

FARTHEST = 5.0
"""Standard deviations from their mean at which features stand still: a level does not run away beyond what was seen."""


class Truncations(nn.Module):
    """Forecasts of whole horizons, learned from the log's own earlier truncations.

    The record is cut at every period; what is known at the cut (how many events, how recent, how they have decayed)
    gives the level of the rate ahead and its spread, what followed is the target. The count over a horizon h is
    negative binomial with mean exp(level) sum_k (1 + k / (scale + age))^-decay: interest wanes by a power of age.

    Args:
        hidden: Size of the hidden layer.
        repeat: As in `repeat_share`; unused, since counts are forecast whole.
        generator: Draws the first weights.
    """

    def __init__(self, hidden: int, repeat: float, generator: torch.Generator) -> None:
        super().__init__()
        self.repeat = repeat
        self.inside = skip_init(nn.Linear, 6 + len(HALF_LIVES), hidden)
        self.straight = skip_init(nn.Linear, 6 + len(HALF_LIVES), 2)
        self.bent = skip_init(nn.Linear, hidden, 2)
        draw_weights(self, generator)
        self.decay = nn.Parameter(torch.tensor([-1.0, 2.0]))  # decay and log scale
        self.center: torch.Tensor
        self.spread: torch.Tensor
        self.register_buffer("center", torch.zeros(6 + len(HALF_LIVES)))
        self.register_buffer("spread", torch.ones(6 + len(HALF_LIVES)))
        nn.init.constant_(self.straight.bias, -2.5)

    def _features(self, record: Record) -> torch.Tensor:
        """Return what is known of each shopper at the end of each period, (n, T, D)."""
        count, value, birth = record
        n, periods = count.shape
        time = torch.arange(periods, device=count.device)
        age = (time - birth[:, None]).clamp_min(0).float()
        later = torch.where(time > birth[:, None], count, 0.0)
        total = later.cumsum(1)
        latest = torch.where(count > 0, time, -1).cummax(1).values
        since = (time - latest).clamp_max(periods).float()
        busy = (count > 0).float()
        worth = value.cumsum(1) / busy.cumsum(1).clamp_min(1)
        decayed = []
        for half in HALF_LIVES:
            keep, level, levels = 0.5 ** (1 / half), torch.zeros(n, device=count.device), []
            for period in range(periods):
                level = level * keep + later[:, period]
                levels.append(level)
            decayed.append(torch.log1p(torch.stack(levels, 1)))
        rate = torch.log((total + 0.25) / (age + 4.0))
        clock = [torch.log1p(total), torch.log1p(since) - 1, torch.log1p(age) - 2]
        return torch.stack([*clock, rate + 3, worth, (total == 0).float(), *decayed], -1)

    def standardise(self, record: Record) -> None:
        """Take the features' means and standard deviations over all cuts of a record after a first event."""
        features = self._features(record)
        seen = torch.arange(features.shape[1], device=features.device) >= record.birth[:, None]
        self.center, self.spread = features[seen].mean(0), features[seen].std(0, correction=0).clamp_min(0.1)

    def _level(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = ((features - self.center) / self.spread).clamp(-FARTHEST, FARTHEST)
        out = self.straight(features) + self.bent(torch.tanh(self.inside(features)))
        return out[..., 0], out[..., 1]

    def _growth(self, ages: int, horizon: int) -> torch.Tensor:
        """Return the mean count over 1 .. ``horizon`` periods per unit of rate, by age at the cut, (ages, horizon)."""
        age, ahead = (torch.arange(size, device=self.decay.device) for size in (ages, horizon))
        ratio = (1 + ahead) / (self.decay[1].exp() + age[:, None])
        return torch.exp(-softplus(self.decay[0]) * torch.log1p(ratio)).cumsum(1)

    def log_likelihood(self, record: Record) -> torch.Tensor:
        """Return the mean over cuts and horizons of the log-likelihood of what followed, scaled to periods, (n,)."""
        count, birth = record.events, record.birth
        periods = count.shape[1]
        level, spread = self._level(self._features(record))
        age = (torch.arange(periods, device=count.device) - birth[:, None]).clamp_min(0)
        growth = self._growth(periods, periods)
        total = torch.zeros(len(birth), device=count.device)
        summed = pad(count.cumsum(1), (1, 0))  # events before each period
        horizons = horizon_grid(periods)
        for horizon in horizons:
            cuts = torch.arange(periods - horizon, device=count.device)
            target = summed[:, cuts + 1 + horizon] - summed[:, cuts + 1]
            mean = torch.exp(level[:, cuts]) * growth[age[:, cuts], horizon - 1]
            size = softplus(spread[:, cuts] + 2) + 1e-3
            ll = negative_binomial(target, mean, size)
            total = total + (ll * (cuts >= birth[:, None])).sum(1) / horizon
        return total

    def forecast(self, record: Record, periods: int, draws: int, generator: torch.Generator) -> Forecast:
        """Read the horizon's mean off directly; ``draws`` and ``generator`` go unused."""
        del draws, generator
        level, spread = (x[:, -1] for x in self._level(self._features(record)))
        past = record.events.shape[1]
        growth = self._growth(past, periods)[past - 1 - record.birth, -1]
        mean, size = torch.exp(level) * growth, softplus(spread + 2) + 1e-3
        return Forecast(mean, -torch.expm1(-size * torch.log1p(mean / size)))


def horizon_grid(periods: int) -> list[int]:
    """Return the horizons to learn from: about doubling, up to two thirds of the record."""
    top = max(1, 2 * periods // 3)
    return sorted({max(1, round(top * 0.6**k)) for k in range(5)})


def negative_binomial(count: torch.Tensor, mean: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Return log P(count) with variance mean + mean^2 / size, elementwise."""
    share = torch.log1p(mean / size)
    log_odds = torch.log(mean.clamp_min(1e-12)) - torch.log(mean + size)
    return torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1) - size * share + count * log_odds
