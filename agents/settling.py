"""Limits that are held exactly: what training under prices leaves over is settled with one number for each limit.

Under prices (`hawker.agents.constraints`) PPO learns on which pages ads are left out and to whom a provider is shown;
where it ends, prices and policy still swing around the limits by some points. Then a number is added to the log-odds
that a page has no ad, and one for each provider to the logits of its organic items, until simulated shoppers, followed
over whole horizons, see what was promised. The numbers go into biases that the actor has anyway: log-probabilities stay
exact, what is saved or exported carries them, and new items of a provider get them too. It is the strategy that draws
its pages which holds the limits; its likeliest pages alone are another strategy.

More of a number always keeps its limit better, though what it does to the other limits, and to who stays, is not known
beforehand. Each moves by the secant rule on the scale of the measured log-odds, all together; whole horizons are
simulated anew each time, with the same draws.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hawker.agents.constraints import Prices
from hawker.envs.follow import Followed, follow
from hawker.envs.page import Rules
from hawker.policies.page_actor import PageActor, PageStrategy
from hawker.shop.decision import Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.world import World

ROUNDS = 24
"""Most simulations."""

FIRST, STEP = 0.5, 4.0
"""Least change of a number to begin with, so that it tells what a change does, and the largest at a time."""

FARTHEST = 40.0
"""Numbers lie within this, the bound of an actor's logits: what is not done there cannot be done."""

INSIDE, NEAR = 2.0, 1.5
"""Standard errors by which it is aimed at the inner side of a limit, so that chance does not break it, and by which the
aim may be missed."""

SLOPES = (0.03, 1.5)
"""Range of what one unit more does to the measured log-odds; 1 where all pages are alike, less where they differ."""

TELLING = 0.1
"""Change of a number from which on such a slope is measured anew: below it is mostly chance and the other numbers."""

ANY = RewardSpec()
"""What is earned is not looked at here."""


class Settled(NamedTuple):
    """What settling came to, each by the limit's name.

    Attributes:
        numbers: What was added; above 0 keeps the limit better, below 0 uses up what training left.
        excess: By how much the limit is broken in the last simulation, as a share of 1; below 0 it is held.
        errors: Standard errors of that over shoppers.
        rounds: Simulations.
    """

    numbers: dict[str, float]
    excess: dict[str, float]
    errors: dict[str, float]
    rounds: int


@torch.no_grad()
def settle(strategy: PageStrategy, world: World, prices: Prices, rules: Rules, shoppers: int, seed: int) -> Settled:
    """Add to a trained strategy's biases what makes it hold its limits; a limit that cannot be held comes closest.

    A limit that cost nothing at the end of the training may be kept better than asked for; others are used up.

    Args:
        strategy: What was trained; its actor is changed.
        world: What it was trained in.
        prices: Of its training.
        rules: Likewise.
        shoppers: How many are followed over the horizon.
        seed: Of their draws.
    """
    limits, sign, actor = prices.limits.double().cpu(), prices.sign.double().cpu(), strategy.actor
    lowest = torch.where(prices.integral.cpu() > 0, -FARTHEST, 0.0).double()
    number, slope = torch.zeros_like(limits), torch.ones_like(limits)
    before: tuple[Tensor, Tensor] | None = None
    for rounds in range(1, ROUNDS + 1):
        ratio, error, _ = measure(strategy, world, prices, ANY, rules, shoppers, seed)
        excess = sign * (ratio - limits)
        aim = (limits - sign * INSIDE * error).clamp(1e-4, 1 - 1e-4)
        held = -sign * ratio.clamp(1e-5, 1 - 1e-5).logit()
        missing = -sign * aim.logit() - held
        done = ((ratio - aim).abs() <= NEAR * error) | ((number == lowest) & (excess <= 0)) | (number == FARTHEST)
        if done.all() or rounds == ROUNDS:
            break
        if before is not None:
            moved = number - before[0]
            found = ((held - before[1]) / moved).clamp(*SLOPES)
            slope = torch.where(moved.abs() > TELLING, found, slope)
        before = number, held
        step = missing / slope
        step = torch.where(done, 0.0, step.sign() * step.abs().clamp(0.0 if rounds > 1 else FIRST, STEP))
        after = (number + step).clamp(lowest, torch.full_like(lowest, FARTHEST))
        shift(actor, prices, after - number)
        number = after
    numbers, broken, errors = (dict(zip(prices.names, part.tolist(), strict=True)) for part in (number, excess, error))
    return Settled(numbers, broken, errors, rounds)


def measure(
    strategy: PageStrategy, world: World, prices: Prices, reward: RewardSpec, rules: Rules, shoppers: int, seed: int
) -> tuple[Tensor, Tensor, Followed]:
    """Return the ratios that are limited, over new shoppers' whole horizons.

    With their standard errors over shoppers, both (m,), and what came of the shoppers, N of them.
    """
    counts = torch.zeros(2, len(prices.names), shoppers, device=world.device)

    def watch(who: Tensor, decision: Decision[Tensor]) -> None:
        counts.index_add_(2, who, prices.counts(decision))

    generator = torch.Generator(world.device).manual_seed(seed)
    found = follow(world, strategy, world.arrive(shoppers, generator), reward, rules, generator, watch)
    return *ratios(counts), found


def ratios(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return ratios of sums over shoppers, counts (2, m, N), and their standard errors, shape (m,) each."""
    amounts, bases = counts.double().cpu()
    ratio = amounts.sum(1) / bases.sum(1).clamp(min=1e-9)
    spread = (amounts - ratio[:, None] * bases).std(1)
    return ratio, spread / bases.mean(1).clamp(min=1e-9) / counts.shape[2] ** 0.5


def shift(actor: PageActor, prices: Prices, amounts: Tensor) -> None:
    """Add amounts (m,) to the log-odds of no ad and to the organic logits of providers' items."""
    for column, amount in zip(prices.columns, amounts.tolist(), strict=True):
        if column is None:
            actor.no_ad.bias.add_(amount)
        else:  # the entry is 0 for all other items
            actor.slate.item_bias.weight[0, column].add_(amount)
