"""How strategies are trained; kept apart from torch, so that the command line can show it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from hawker.agents.writer_config import GrpoConfig
from hawker.shop.artefacts import find_directory, read_json
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec


@dataclass(frozen=True)
class ProviderShare:
    """What a provider is promised.

    Attributes:
        provider: Its name in the items' column ``provider``.
        least: Least share of all impressions that its items have, ads among them, above 0 and at most 1.
    """

    provider: str
    least: float


@dataclass(frozen=True)
class Constraints:
    """What has to hold over all pages together; what must hold on every page is for `hawker.envs.page.Rules`.

    Attributes:
        ad_load: Largest share of pages with an ad, 0 to 1; None is no limit.
        shares: What providers are promised.
    """

    ad_load: float | None = None
    shares: tuple[ProviderShare, ...] = ()

    def __post_init__(self) -> None:
        """Refuse limits that cannot be meant, or cannot all be held."""
        if self.ad_load is not None and not 0 <= self.ad_load <= 1:  # NaN too
            raise InputError(
                "not a share", where="constraints.ad_load", got=self.ad_load, expected="a number from 0 to 1"
            )
        where, named = "constraints.shares", [share.provider for share in self.shares]
        for share in self.shares:
            if not 0 < share.least <= 1:
                expected = "a number above 0 and at most 1"
                raise InputError("not a share", where=f"{where} {share.provider!r}", got=share.least, expected=expected)
            if named.count(share.provider) > 1:
                raise InputError("a provider is named twice", where=where, got=share.provider)
        total = sum(share.least for share in self.shares)
        if total > 1 + 1e-9:
            raise InputError("more is promised than there is", where=where, got=total, expected="at most 1 in all")


@dataclass(frozen=True)
class PageTrainConfig:
    """How whole pages are learned in a storefront; the defaults suit shops of about a thousand items.

    Rewards are learned in units of the returns' root mean square: nothing here depends on the scale of the reward.

    Attributes:
        steps: Pages to learn from, rounded up to whole rollouts.
        shoppers: Shoppers simulated at once.
        pages: Pages of each shopper in a rollout.
        batch: Pages of a gradient step.
        epochs: Passes over each rollout.
        learning_rate: Adam's step size.
        final_rate: Share of it that is left at the end, 0 to 1; it falls evenly. Limits are held as exactly as the
            last steps are small.
        clip: PPO's clipping range of the probability ratio of each part of a page, lines slot by slot.
        entropy: Weight of the page's entropy (nats, tens of them for a full slate) beside the advantages.
        discount: Discount from one page to the next, beside the reward's own discount per day.
        trace: Lambda of the generalised advantage estimate, 0 to 1.
        normalise: Whether advantages are brought to spread 1 in every rollout. Otherwise they are in units of the
            returns' root mean square in the first rollout: where shoppers hardly tell pages apart they are small.
        critic_first: First pages, which teach the critic alone.
        greedy: Weight of affinities, and of what offers and lines pay at once where contexts tell it, that the actor
            begins with; 0 begins with every page alike.
        hidden: Width of the actor and the critic.
        constraints: What has to hold over all pages together.
        seed: Decides first weights, shoppers, pages and minibatches.
    """

    steps: int = 2_000_000
    shoppers: int = 1024
    pages: int = 4
    batch: int = 2048
    epochs: int = 2
    learning_rate: float = 3e-3
    final_rate: float = 1.0
    clip: float = 0.2
    entropy: float = 5e-4
    discount: float = 1.0
    trace: float = 0.9
    normalise: bool = True
    critic_first: int = 0
    greedy: float = 0.0
    hidden: int = 64
    constraints: Constraints = field(default_factory=Constraints)
    seed: int = 0


@dataclass(frozen=True)
class TrainConfig(PageTrainConfig):
    """How ``hawker train`` learns; defaults are those of the run that is given, or of slates where none is.

    Attributes:
        steps: Pages to learn from, rounded up to whole rollouts.
        pages: Pages of each shopper in a rollout.
        batch: Pages of a gradient step.
        epochs: Passes over each rollout.
        entropy: Weight of the page's entropy (nats) beside the advantages: where shoppers hardly tell slates apart the
            strategy goes on exploring, and off-policy estimates stay possible.
        discount: Discount from one page to the next, beside the reward's own discount per day.
        normalise: Whether advantages are brought to spread 1 in every rollout, which makes the most of the smallest
            differences. Otherwise they are in units of what the untrained actor's slates earn.
        horizon: Whole pages: days that a shopper is followed for; no visit begins later.
        ad_gap: Whole pages: pages in a row of which at most one has an ad, counted over a shopper's visits.
        ad_cap: Whole pages: largest share of a shopper's pages so far that may have an ad, at every page.
        checkpoint_every: Rollouts between two checkpoints.
        reward: What the shop wants.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    steps: int = 400_000
    pages: int = 8
    batch: int = 2048
    epochs: int = 4
    entropy: float = 0.045
    discount: float = 0.99
    normalise: bool = False
    horizon: float = 28.0
    ad_gap: int = 1
    ad_cap: float = 1.0
    checkpoint_every: int = 10
    reward: RewardSpec = field(default_factory=RewardSpec)
    device: str = "auto"


WHOLE_PAGES = TrainConfig(
    steps=1_200_000,
    shoppers=1024,
    pages=32,
    batch=1024,
    epochs=2,
    learning_rate=1.5e-3,
    final_rate=0.1,
    entropy=5e-4,
    discount=1.0,
    trace=0.95,
    normalise=True,
    critic_first=300_000,
    greedy=4.0,
    reward=RewardSpec(conversion=5.0),
)
"""How whole pages are learned against shoppers with a memory unless told otherwise: ``hawker bench leaderboard``'s."""


def defaults_for(shoppers: Path) -> TrainConfig:
    """Return how ``hawker train`` learns against fitted shoppers unless told otherwise.

    Nothing but what their logs record is looked at: purchases are paid where there are any. Where there are no
    shoppers, or damaged ones, the defaults are those of slates: who reads them will say so.

    Args:
        shoppers: The directory of the shoppers.
    """
    try:
        recorded = read_json(find_directory(shoppers) / "shoppers.json")["recorded"]["train"]
        whole, bought = bool(recorded["timeline"]), bool(recorded["conversions"])
    except (InputError, KeyError, TypeError):
        return TrainConfig()
    if not whole:
        return TrainConfig()
    return WHOLE_PAGES if bought else replace(WHOLE_PAGES, reward=RewardSpec())


@dataclass(frozen=True)
class RoundsConfig:
    """How pages and the words on them are learned in turn.

    Attributes:
        writer: The language model that the writer begins as: a fetched name, a directory or a hub id; RUN/writer/sft,
            say.
        rounds: How often the strategy, the writer and the bank are made one after the other.
        places: Items, audiences and discounts that a bank holds lines for, at most; half of them are for anybody.
        count: Lines drawn for each of them.
        voice: Lines in the shop's voice, which the writer is shown.
        writing: How the writer is optimised; its reward is that of the pages.
    """

    writer: str
    rounds: int = 1
    places: int = 400
    count: int = 8
    voice: tuple[str, ...] = ()
    writing: GrpoConfig = field(default_factory=GrpoConfig)

    def __post_init__(self) -> None:
        """Refuse what makes nothing, and a reward that would not count."""
        for name in ("rounds", "places", "count"):
            if getattr(self, name) < 1:
                raise InputError("bad config", where=f"train.{name}", got=getattr(self, name), expected="at least 1")
        if self.writing.reward != RewardSpec():
            remedy = "leave it out here, and give it with --reward"
            raise InputError("the writer is rewarded as the pages are", where="writing.reward", remedy=remedy)
