"""How choosing by words is trained; kept apart from torch, so that the command line can show it."""

from __future__ import annotations

from dataclasses import dataclass

from hawker.agents.writer_config import TuneConfig, check
from hawker.shop.errors import InputError


@dataclass(frozen=True)
class WordsConfig(TuneConfig):
    """How a language model learns to choose items by their labels.

    Attributes:
        batch: Pages of a step, each of a shopper of its own.
        rows: Pages computed at once, each in about a gigabyte where 30 items are shown to the smallest of models;
            gradients are accumulated over batch / rows of them.
        rank: Rank of the LoRA adapter on every linear layer, scaled by 2, at least 1; merged into the weights at the
            end.
        slates: Slates drawn for each page; each is held against the mean of the others.
        beta: Weight of the KL divergence of the labels' probabilities from those of the untrained model, in the
            standard deviations of reward among the slates that it draws for one page. Without it, and with steps of
            5e-4, SmolLM2 put all of its probability on one label, whatever stood behind it.
    """

    steps: int = 100
    batch: int = 16
    rows: int = 2
    learning_rate: float = 1e-4
    rank: int = 16
    slates: int = 8
    beta: float = 0.3


def check_words(config: WordsConfig) -> None:
    """Refuse a config that nothing can be trained with.

    Raises:
        InputError: A number is out of bounds, or rows do not divide a batch.
    """
    check(config)
    for name, low, high in (("slates", 2, 1024), ("rank", 1, 1024)):
        value = getattr(config, name)
        if not low <= value <= high:
            raise InputError("bad config", where=f"words.{name}", got=value, expected=f"a number from {low} to {high}")
