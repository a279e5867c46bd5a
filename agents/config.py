"""How strategies are trained; kept apart from torch, so that the command line can show it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hawker.shop.reward import RewardSpec


@dataclass(frozen=True)
class TrainConfig:
    """How a strategy is trained; the defaults suit shops of tens to hundreds of items.

    Attributes:
        steps: Pages to learn from, rounded up to whole rollouts.
        shoppers: Shoppers simulated at once.
        pages: Pages of each shopper in a rollout.
        batch: Pages of a gradient step.
        epochs: Passes over each rollout.
        learning_rate: Adam's step size.
        clip: PPO's clipping range of the probability ratio of a whole slate.
        entropy: Weight of the slate's entropy (nats) beside rewards scaled so that the random strategy earns 1: where
            shoppers hardly tell slates apart the strategy goes on exploring, and off-policy estimates stay possible.
        discount: Discount from one page to the next.
        hidden: Width of the actor and the critic.
        checkpoint_every: Rollouts between two checkpoints.
        reward: What the shop wants.
        seed: Decides first weights, shoppers, slates and minibatches.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    steps: int = 400_000
    shoppers: int = 1024
    pages: int = 8
    batch: int = 2048
    epochs: int = 4
    learning_rate: float = 3e-3
    clip: float = 0.2
    entropy: float = 0.05
    discount: float = 0.99
    hidden: int = 64
    checkpoint_every: int = 10
    reward: RewardSpec = field(default_factory=RewardSpec)
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class PageTrainConfig:
    """How whole pages are learned in a storefront; the defaults suit shops of about a thousand items.

    Advantages have mean 0 and spread 1 in every rollout, whatever the reward's unit, and the critic learns rewards in
    units of the returns' root mean square: nothing here depends on the scale of the reward.

    Attributes:
        steps: Pages to learn from, rounded up to whole rollouts.
        shoppers: Shoppers simulated at once.
        pages: Pages of each shopper in a rollout.
        batch: Pages of a gradient step.
        epochs: Passes over each rollout.
        learning_rate: Adam's step size.
        clip: PPO's clipping range of the probability ratio of a whole page.
        entropy: Weight of the page's entropy (nats, tens of them for a full slate) beside advantages of spread 1.
        discount: Discount from one page to the next, beside the reward's own discount per day.
        trace: Lambda of the generalised advantage estimate, 0 to 1.
        hidden: Width of the actor and the critic.
        seed: Decides first weights, shoppers, pages and minibatches.
    """

    steps: int = 2_000_000
    shoppers: int = 1024
    pages: int = 16
    batch: int = 4096
    epochs: int = 2
    learning_rate: float = 3e-3
    clip: float = 0.2
    entropy: float = 5e-4
    discount: float = 1.0
    trace: float = 0.95
    hidden: int = 64
    seed: int = 0
