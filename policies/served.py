"""A bundle as a strategy, so that what will be served can be tried against shoppers like any other arm."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hawker.policies.bundle import Bundle
from hawker.policies.protocol import Strategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context


class ServedStrategy(Strategy):
    """The decisions of a bundle, computed by onnxruntime on the CPU wherever the contexts live.

    Attributes:
        bundle: The bundle.
    """

    name = "bundle"

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.size = bundle, bundle.size

    def distribution(self, context: Context[Tensor]) -> PlackettLuce:
        """Return the bundle's distribution over slates, in double precision."""
        arrays = context.map(lambda array: array.cpu().numpy())
        logits = np.where(arrays.mask, self.bundle.logits(arrays), 0.0)
        return PlackettLuce(torch.from_numpy(logits).to(context.mask.device), context.mask, self.size)
