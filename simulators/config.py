"""How shoppers are learned and effects are planted; kept apart from torch, so that the command line can show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FitConfig:
    """How shoppers are learned.

    Attributes:
        members: Models in an ensemble.
        shares: Shares of the log for training strategies, for the judge, and for off-policy estimates.
        calibration_share: Last share of a part's rows, in order of time, that calibrates.
        epochs: Most passes over the data; a member stops early when the rows its bootstrap left out stop improving.
        patience: Epochs without improvement before it stops.
        batch: Rows of a step.
        learning_rate: Adam's step size.
        effect_scale: Prior standard deviation of an effect on the log-odds: small where clicks are few. Logs whose
            shoppers have a history take the scales of `hawker.simulators.training`, and at most 8 passes.
        taste_scale: Prior standard deviation of an entry of the taste vectors' weights; likewise.
        encoder: What reads the items' titles and descriptions and the lines of copy: "hashed", which needs nothing
            else, the name, path or hub id of a language model, or "none", which leaves texts out.
        id_dropout: Probability that an item's own vectors are left out of a step.
        seed: Decides splits, bootstraps, first weights and the order of rows.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    members: int = 5
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    calibration_share: float = 0.3
    epochs: int = 60
    patience: int = 6
    batch: int = 2048
    learning_rate: float = 0.01
    effect_scale: float = 0.5
    taste_scale: float = 0.15
    encoder: str = "hashed"
    id_dropout: float = 0.1
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class PlantedEffects:
    """Sizes of the planted effects, as standard deviations on the scale of log-odds.

    Attributes:
        ctr: Mean click probability of an impression under the uniform strategy.
        item: Effects of the items, half of their variance explained by item features.
        shopper: Effects of the shoppers' features, the same for every item.
        taste: Interactions of shopper features with item features (a matrix of rank 3).
        affinity: Effect of one unit of recorded affinity.
        examination: Share of shoppers who look at a position, relative to the one above it.
    """

    ctr: float = 0.02
    item: float = 0.9
    shopper: float = 0.4
    taste: float = 0.2
    affinity: float = 0.5
    examination: float = 0.8
