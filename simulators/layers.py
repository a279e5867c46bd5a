"""Layers whose first weights come from a generator of their own: torch would draw them from its global one."""

from __future__ import annotations

import torch
from torch import nn


class Linear(nn.Linear):
    """A linear layer that waits for its first weights."""

    def reset_parameters(self) -> None:
        """Leave them to ``first_weights``."""


class Gru(nn.GRU):
    """A gated recurrent unit that waits for its first weights."""

    def reset_parameters(self) -> None:
        """Leave them to ``first_weights``."""


def tower(width: int, out: int, depth: int) -> nn.Module:
    """Return a linear layer (depth 1) or one hidden layer of twice the output's width, at least 8 (depth 2)."""
    if depth == 1:
        return Linear(width, out, bias=False)
    hidden = max(2 * out, 8)
    return nn.Sequential(Linear(width, hidden), nn.Tanh(), Linear(hidden, out, bias=False))


def apart(rows: torch.Tensor, first: int) -> tuple[torch.Tensor, ...]:
    """Return the first rows of a table (n, w) and those that follow, if any, to be computed with one after the other.

    A product of more rows may round differently; like this, what follows changes nothing about the first ones.
    """
    return rows.tensor_split([first]) if len(rows) > first else (rows,)


def first_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Draw a model's first weights: effects, biases and everything an item owns start at 0."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 and "bias" not in name:
            continue  # constants that their owner has set
        if "effect" in name or "own" in name or "bias" in name:
            nn.init.zeros_(parameter)
        elif "gru" in name:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
        else:
            nn.init.normal_(parameter, std=0.5 * max(parameter.shape[1], 1) ** -0.5, generator=generator)
