"""A trained actor as a strategy, and how it is kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hawker.policies.protocol import Strategy
from hawker.policies.slate import PlackettLuce, SlateActor
from hawker.shop.artefacts import read_json, verify_directory, write_json
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.errors import InputError

POLICY = "policy.json"
WEIGHTS = "actor.safetensors"


class TrainedStrategy(Strategy):
    """Plackett-Luce slates from a slate actor.

    Attributes:
        actor: The actor.
        builder: The shop's contexts and catalog that it was trained with.
        trained_on: What made it, as in the training report: digests, seed, steps.
    """

    name = "trained"

    def __init__(self, actor: SlateActor, builder: ContextBuilder, trained_on: dict[str, Any]) -> None:
        self.actor, self.builder, self.trained_on = actor.requires_grad_(False).eval(), builder, trained_on
        self.size = actor.size

    def distribution(self, context: Context[Tensor]) -> PlackettLuce:
        """Return the actor's distribution over slates."""
        return PlackettLuce(self.actor(context), context.mask, self.size)

    def save(self, directory: Path) -> None:
        """Write weights and schemas into a directory that is being written."""
        save_file({k: v.detach().cpu().contiguous() for k, v in self.actor.state_dict().items()}, directory / WEIGHTS)
        shape = {"size": self.size, "hidden": self.actor.hidden}
        write_json(
            directory / POLICY, {"actor": shape, "builder": self.builder.to_dict(), "trained_on": self.trained_on}
        )

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> TrainedStrategy:
        """Read a strategy that ``save`` wrote, verifying its checksums.

        Raises:
            InputError: Files are missing, changed or of another form.
        """
        directory = verify_directory(directory, "policy")
        values = read_json(directory / POLICY)
        try:
            weights = load_file(directory / WEIGHTS)
            builder = ContextBuilder.from_dict(values["builder"], weights["item_vectors"].numpy(), directory / POLICY)
            actor = SlateActor(builder, values["actor"]["size"], values["actor"]["hidden"], torch.Generator())
            actor.load_state_dict(weights)
            return cls(actor.to(device), builder, values["trained_on"])
        except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
            raise InputError("not a policy of this version", where=directory, got=str(error).splitlines()[0]) from None
