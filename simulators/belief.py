"""What the truth of a bazaar expects, given what can be observed: the best that any model of its logs could do.

A particle filter over each shopper's path of segments. Given that path, satisfaction and fatigue follow from what was
observed; the visit class, which never changes, is summed over exactly within each particle (Rao-Blackwellisation).

References:
    Doucet, de Freitas, Murphy and Russell (2000), Rao-Blackwellised Particle Filtering for Dynamic Bayesian Networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hawker.shop.decision import Decision
from hawker.simulators.bazaar import BazaarWorld, State
from hawker.simulators.bazaar_pages import Pages

Floats = npt.NDArray[np.float32]

SHOPPERS = 512
"""Shoppers filtered at once: they bound the memory."""


class Belief:
    """What is known of N shoppers of a bazaar. Methods take the numbers of some of them, ``who`` (n,), in any order.

    For each page in turn: ``page`` says what to expect of it; ``see_page`` learns from its clicks and purchases;
    ``leaving`` says whether the visit ends with it; ``see_leaving`` learns that. After a visit ``staying_away`` says
    when to expect the next one, and ``see_return`` learns it.
    """

    def __init__(self, world: BazaarWorld, features: Tensor, particles: int, generator: torch.Generator) -> None:
        """Meet the shoppers at the start of their first visit.

        Args:
            world: The bazaar.
            features: Numbers of their feature values, shape (N, features).
            particles: Paths of segments per shopper, P.
            generator: Of the paths.
        """
        self._world, self._generator = world, generator
        n, device = len(features), world.device
        first, visit_class = world.beliefs(features.to(device))
        spread = torch.arange(particles, device=device) + torch.rand(n, 1, generator=generator, device=device)
        at_most = first.shape[1] - 1
        self.segment = torch.searchsorted(first.cumsum(1), spread / particles).clamp(max=at_most)
        self.satisfaction = torch.zeros(n, particles, device=device)
        self._fatigue = torch.zeros(n, len(world.parameters.categories), device=device)
        self._page = torch.zeros(n, dtype=torch.int64, device=device)
        self._clicked = torch.zeros(n, dtype=torch.bool, device=device)
        self._log_weight = visit_class.log()[:, None] + torch.zeros(n, particles, 1, device=device)  # (N, P, classes)

    @property
    def weight(self) -> Tensor:
        """P(path and visit class | what was seen), shape (N, P, classes)."""
        return self._weight(torch.arange(len(self.segment), device=self._world.device))

    def expected_satisfaction(self, who: Tensor) -> Tensor:
        """Return the expected satisfaction after what was seen, (n,)."""
        return (self._weight(who).sum(2) * self.satisfaction[who]).sum(1)

    def page(self, who: Tensor, decision: Decision[Tensor]) -> tuple[Tensor, Tensor]:
        """Return P(click) and P(purchase | click) of each position of a page (n, K), before anything of it is seen."""
        weight = self._segment_weight(who)[:, :, None]
        click, conversion = self._by_segment(who, decision)
        expected = (weight * click).sum(1)
        both = (weight * click * conversion).sum(1)
        return expected, both / expected.clamp(min=1e-12)

    def see_page(self, who: Tensor, decision: Decision[Tensor], clicked: Tensor, converted: Tensor) -> None:
        """Learn from the clicks and purchases (n, K) of a page."""
        world, (state, every) = self._world, self._segment_states(who, decision)
        seen, bought = (self._repeated(array).bool() for array in (clicked, converted))
        attraction = world.attraction(state, every)
        conversion = world.conversion_probabilities(state, every)
        purchase = torch.where(bought, conversion, 1 - conversion).clamp(min=1e-30).log().masked_fill(~seen, 0.0)
        likelihood = (world.click_log_likelihood(attraction, seen) + purchase.sum(1)).view(len(who), -1)
        change = world.satisfaction_change(state, every, seen, bought).view(len(who), -1)
        segment, limit = self.segment[who], world.parameters.satisfaction.limit
        self._log_weight[who] += likelihood.gather(1, segment)[:, :, None]
        self.satisfaction[who] = (self.satisfaction[who] + change.gather(1, segment)).clamp(-limit, limit)
        one = state["segment"] == 0  # fatigue and clicks are the same whatever the segment
        own = {name: value[one] for name, value in state.items()}
        after = world.after_page(own, decision, clicked, converted)
        self._fatigue[who], self._clicked[who] = after["fatigue"], after["clicked"]

    def leaving(self, who: Tensor) -> Tensor:
        """Return P(the visit ends with the page just seen), (n,)."""
        return (self._weight(who).sum(2) * self._leaves(who)).sum(1)

    def see_leaving(self, who: Tensor, left: Tensor) -> None:
        """Learn whether the visit ended (n,); where it did not, the next page follows."""
        leaves = self._leaves(who)
        chance = torch.where(left[:, None], leaves, 1 - leaves)
        self._log_weight[who] += chance.clamp(min=1e-30).log()[:, :, None]
        self._page[who] += ~left
        self._resample(who)

    def staying_away(self, who: Tensor, days: int) -> Tensor:
        """Return P(no visit within d days), d = 1..days, after a visit, shape (n, days)."""
        return (self._weight(who)[..., None] * self._away(who, days)).sum((1, 2))

    def see_return(self, who: Tensor, days: Tensor) -> None:
        """Learn after how many ``days`` (n,), whole and at least 1, the next visit began, and follow there."""
        if not len(who):
            return
        away = self._away(who, int(days.max()))
        before = torch.nn.functional.pad(away, (1, 0), value=1.0)
        day = days.long()[:, None, None, None].expand(*away.shape[:3], 1)
        chance = (before.gather(3, day - 1) - before.gather(3, day)).squeeze(3)
        self._log_weight[who] += chance.clamp(min=1e-30).log()
        self._resample(who)
        n, particles = len(who), self.segment.shape[1]
        state = self._particles(who) | {"fatigue": torch.zeros(n * particles, 0, device=self._world.device)}
        rested = self._world.rest(state, days.repeat_interleave(particles), self._generator)
        self.segment[who] = rested["segment"].view(n, particles)
        self.satisfaction[who] = rested["satisfaction"].view(n, particles)
        self._fatigue[who] *= self._world.parameters.fatigue.visit
        self._page[who], self._clicked[who] = 0, False

    def _weight(self, who: Tensor) -> Tensor:
        """Return the weights of some shoppers' particles and classes, (n, P, classes)."""
        return self._log_weight[who].flatten(1).softmax(1).view(len(who), *self._log_weight.shape[1:])

    def _segment_weight(self, who: Tensor) -> Tensor:
        """Return P(segment | what was seen), (n, segments)."""
        weight = self._weight(who).sum(2)
        segments = len(self._world.parameters.segments)
        return weight.new_zeros(len(who), segments).scatter_add(1, self.segment[who], weight)

    def _segment_states(self, who: Tensor, decision: Decision[Tensor]) -> tuple[State, Decision[Tensor]]:
        """Return each shopper once in every segment, with its page: what a page does depends on nothing else hidden."""
        segments = len(self._world.parameters.segments)
        state = {
            "segment": torch.arange(segments, device=self._world.device).repeat(len(who)),
            "fatigue": self._repeated(self._fatigue[who]),
            "satisfaction": torch.zeros(len(who) * segments, device=self._world.device),
        }
        ad, offer, copy = (
            None if part is None else self._repeated(part) for part in (decision.ad, decision.offer, decision.copy)
        )
        every = Decision(self._repeated(decision.slate), self._repeated(decision.log_prob), ad, offer, copy)
        return state, every

    def _repeated(self, array: Tensor) -> Tensor:
        return array.repeat_interleave(len(self._world.parameters.segments), 0)

    def _by_segment(self, who: Tensor, decision: Decision[Tensor]) -> tuple[Tensor, Tensor]:
        """Return P(click) and P(purchase | click) if the shopper were of each segment, (n, segments, K)."""
        state, every = self._segment_states(who, decision)
        click = self._world.click_probabilities(state, every)
        conversion = self._world.conversion_probabilities(state, every)
        shape = (len(who), -1, decision.slate.shape[1])
        return click.view(shape), conversion.view(shape)

    def _particles(self, who: Tensor) -> State:
        """Return the particles of some shoppers as states, (n x P, ...), without fatigue."""
        particles = self.segment.shape[1]
        return {
            "segment": self.segment[who].flatten(),
            "satisfaction": self.satisfaction[who].flatten(),
            "page": self._page[who].repeat_interleave(particles),
            "clicked": self._clicked[who].repeat_interleave(particles),
        }

    def _leaves(self, who: Tensor) -> Tensor:
        return self._world.leave_probability(self._particles(who)).view_as(self.segment[who])

    def _away(self, who: Tensor, days: int) -> Tensor:
        """Return P(no visit within d days) for each particle and class, (n, P, classes, days)."""
        state, each = self._particles(who), []
        for number in range(self._log_weight.shape[2]):
            visit_class = torch.full_like(state["segment"], number)
            hazard = self._world.return_hazard(state | {"visit_class": visit_class}, days)
            each.append((1 - hazard).cumprod(1).view(*self.segment[who].shape, days))
        return torch.stack(each, 2)

    def _resample(self, who: Tensor) -> None:
        """Draw particles anew where half of the effective sample is lost, by systematic resampling."""
        weight = self._weight(who).sum(2)
        particles = weight.shape[1]
        poor = 1 / weight.square().sum(1) < particles / 2
        who, weight = who[poor], weight[poor]
        if not len(who):
            return
        start = torch.rand(len(who), 1, generator=self._generator, device=weight.device)
        spread = (torch.arange(particles, device=weight.device) + start) / particles
        chosen = torch.searchsorted(weight.cumsum(1), spread).clamp(max=particles - 1)
        self.segment[who] = self.segment[who].gather(1, chosen)
        self.satisfaction[who] = self.satisfaction[who].gather(1, chosen)
        of_class = self._log_weight[who].log_softmax(2)  # P(class | path); the paths weigh the same from here on
        self._log_weight[who] = of_class.gather(1, chosen[:, :, None].expand_as(of_class))


@dataclass(frozen=True, eq=False)
class Forecasts:
    """What the truth expected of n pages of a log, each before it happened.

    Attributes:
        click, conversion: P(click) and P(purchase | click) by position, shape (n, K).
        leave: P(the visit ends with this page) once its clicks and purchases are known, shape (n,).
        staying_away: P(no visit within d days), d = 1..days, after each page that ended a visit, shape (visits, days).
        satisfaction: Expected satisfaction after each page, shape (n,).
    """

    click: Floats
    conversion: Floats
    leave: Floats
    staying_away: Floats
    satisfaction: Floats


def forecast(
    world: BazaarWorld, pages: Pages, days: int, generator: torch.Generator, particles: int = 128
) -> Forecasts:
    """Run the filter along a log.

    Args:
        world: The bazaar that wrote it.
        pages: Its pages.
        days: How far to look ahead after a visit.
        generator: Of the particles.
        particles: Paths per shopper.
    """
    n, k = pages.slate.shape
    click, conversion = np.zeros((n, k), np.float32), np.zeros((n, k), np.float32)
    leave, satisfaction = np.zeros(n, np.float32), np.zeros(n, np.float32)
    last, gaps = pages.last, pages.days
    away = np.zeros((int(last.sum()), days), np.float32)
    visit = np.cumsum(last) - 1
    starts = np.searchsorted(pages.shopper, np.arange(len(pages.features) + 1))
    for block in range(0, len(pages.features), SHOPPERS):
        begin = starts[:-1][block : block + SHOPPERS]
        length = np.diff(starts)[block : block + SHOPPERS]
        features = torch.from_numpy(pages.features[block : block + SHOPPERS])
        belief = Belief(world, features, particles, generator)
        for step in range(int(length.max(initial=0))):
            some = np.flatnonzero(length > step)
            rows, who = begin[some] + step, torch.from_numpy(some)
            decision, clicked, converted = _seen(pages, rows)
            click[rows], conversion[rows] = (value.numpy() for value in belief.page(who, decision))
            belief.see_page(who, decision, clicked, converted)
            leave[rows] = belief.leaving(who).numpy()
            satisfaction[rows] = belief.expected_satisfaction(who).numpy()
            belief.see_leaving(who, torch.from_numpy(last[rows]))
            ended = last[rows]
            away[visit[rows[ended]]] = belief.staying_away(who[ended], days).numpy()
            back = gaps[rows] >= 1  # not so where the log ends first
            belief.see_return(who[back], torch.from_numpy(gaps[rows[back]]))
    return Forecasts(click, conversion, leave, away, satisfaction)


def _seen(pages: Pages, rows: npt.NDArray[np.int64]) -> tuple[Decision[Tensor], Tensor, Tensor]:
    slate, copy, ad, offer, clicked, converted = (
        torch.from_numpy(array[rows])
        for array in (pages.slate, pages.copy, pages.ad, pages.offer, pages.clicked, pages.converted)
    )
    nothing = torch.zeros(len(rows))
    return Decision(slate, nothing, ad=ad, offer=offer, copy=copy), clicked, converted
