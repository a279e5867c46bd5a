"""The shop that a writer's lines are judged in: learned shoppers, who may be asked, and gold, which knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hawker.agents.copy_reward import CopyReward, Floats
from hawker.agents.writer_data import Assignment
from hawker.benchmarks.copy_judgement import Moments, true_effect
from hawker.policies.guardrails import Guardrails
from hawker.simulators.bazaar import BazaarWorld

Batch = tuple[tuple[Sequence[Any], ...], Floats]
"""What learned shoppers were asked of some lines, and the P(click) of each that they answered."""


class Listened:
    """The learned shoppers as GRPO asks them; keeps every batch, for gold to judge afterwards.

    Args:
        reward: What answers.
        seed: Draws clicks instead of expecting them; None for what is expected.
    """

    def __init__(self, reward: CopyReward, seed: int | None = None) -> None:
        self._reward, self._generator = reward, None if seed is None else np.random.default_rng(seed)
        self.batches: list[Batch] = []

    def __call__(self, *asked: Sequence[Any]) -> dict[str, Floats]:
        """Answer as the shoppers do."""
        answers = self._reward(*asked)
        self.batches.append((asked, answers["click"]))
        if self._generator is None:
            return answers
        drawn = (self._generator.random(len(answers["click"])) < answers["click"]).astype(float)
        gain = drawn - answers["click"]
        return answers | {"total": answers["total"] + self._reward.spec.click * gain}


@dataclass(frozen=True)
class Shop:
    """What a seed's writers are judged with.

    Attributes:
        world: The gold world.
        moments: Its shoppers, before pages of theirs.
        discounts: Share of the price taken off by each tier of offers.
        guardrails: The rules.
        reward: What the learned shoppers make of lines.
    """

    world: BazaarWorld
    moments: Moments
    discounts: tuple[float, ...]
    guardrails: Guardrails
    reward: CopyReward

    def gold(self, given: Sequence[Assignment], lines: Sequence[Sequence[str]]) -> Floats:
        """Return the true P(click) of lines for some assignments, equally many each, shape (n, count)."""
        return self._gold(*asked(given, lines))[0].reshape(len(given), -1)

    def curve(self, batches: Sequence[Batch]) -> list[tuple[float, float]]:
        """Return the mean of the proxy's and of gold's P(click) of each batch."""
        return [(float(proxy.mean()), float(self._gold(*each)[0].mean())) for each, proxy in batches]

    def judged(self, given: Sequence[Assignment], lines: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return what lines are worth to the learned shoppers and in gold, means over all of them.

        Returns:
            ``proxy``: the reward's lower bound, ``CopyReward``'s ``total``; ``proxy_click``: its P(click);
            ``gold_click``: the true one; ``gold``: what the reward pays for true clicks, purchases and returns, with no
            pessimism. What an offer costs stands in ``proxy`` alone: all lines for an assignment cost the same.
        """
        flat = asked(given, lines)
        believed, (click, purchase, back) = self.reward(*flat), self._gold(*flat)
        spec = self.reward.spec
        gold = spec.click * click + spec.conversion * purchase + spec.return_visit * self.reward.last * back
        means = {"proxy": believed["total"], "proxy_click": believed["click"], "gold": gold, "gold_click": click}
        return {name: float(values.mean()) for name, values in means.items()}

    def _gold(
        self, items: Sequence[str], audiences: Sequence[str], discounts: Sequence[float], texts: Sequence[str]
    ) -> tuple[Floats, Floats, Floats]:
        tiers = [int(np.abs(np.array(self.discounts) - discount).argmin()) for discount in discounts]
        found = true_effect(self.world, texts, items, audiences, self.moments, tiers=tiers, contexts=64)
        return found.click, found.purchase, found.back


def asked(
    given: Sequence[Assignment], lines: Sequence[Sequence[str]]
) -> tuple[list[str], list[str], list[float], list[str]]:
    """Return items, audiences, discounts and texts of all lines for some assignments, one after the other."""
    flat = [each for each, some in zip(given, lines, strict=True) for _ in some]
    return (
        [each.item_id for each in flat],
        [each.brief.audience for each in flat],
        [each.brief.discount for each in flat],
        [line for some in lines for line in some],
    )
