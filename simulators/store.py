"""Fitted shoppers on disk: two ensembles, the contexts to draw arrivals from, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hawker.shop.artefacts import read_json, sha256, verify_directory, write_json
from hawker.shop.config import from_dict, to_dict
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.logs import Logs, read_logs
from hawker.simulators.config import FitConfig
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.shopper import ARCHITECTURES, Ensemble, ShopperModel
from hawker.simulators.split import PARTS, three_way

META = "shoppers.json"
FIRST_ARCHITECTURE = {"train": 0, "judge": 2}
"""Where each ensemble starts in the list of architectures: the judge's members are built differently."""

Role = Literal["train", "judge"]


@dataclass(frozen=True, eq=False)
class FittedShoppers:
    """Shoppers learned from one log.

    Attributes:
        builder: The shop's contexts and catalog.
        size: Positions of a page, K.
        config: How they were fitted.
        ensembles: The click models, by role.
        arrivals: The contexts of each role's own part of the log, shape (n, ...), on the models' device.
        logs: Directory of the log.
        logs_digest: SHA-256 of its tables.
        digest: SHA-256 of the artefact's list of checksums; empty before it was written.
    """

    builder: ContextBuilder
    size: int
    config: FitConfig
    ensembles: dict[str, Ensemble]
    arrivals: dict[str, Context[torch.Tensor]]
    logs: Path
    logs_digest: str
    digest: str = ""

    def world(self, role: Role) -> LearnedWorld:
        """Return the world to train against, or the judge's."""
        return LearnedWorld(self.builder, self.ensembles[role], self.arrivals[role], self.size)

    def read_part(self, part: Literal["train", "judge", "estimate"]) -> pd.DataFrame:
        """Return the impressions of one part of the log, read anew from where it was.

        Raises:
            InputError: The log is not there any more or has changed.
        """
        logs = read_logs(self.logs)
        if logs.digest != self.logs_digest:
            raise InputError(
                "the log has changed since the shoppers were fitted",
                where=self.logs,
                remedy="fit the shoppers anew with `hawker fit`",
            )
        impressions = require_impressions(logs)
        parts, _ = three_way(impressions, self.config.shares, self.config.seed)
        rows: pd.DataFrame = impressions[parts == PARTS.index(part)].reset_index(drop=True)
        return rows

    def save(self, directory: Path) -> None:
        """Write the shoppers into a directory that is being written."""
        for role, ensemble in self.ensembles.items():
            weights = {name: value.cpu().contiguous() for name, value in ensemble.state_dict().items()}
            save_file(weights, directory / f"{role}.safetensors")
            context = self.arrivals[role]
            save_file(
                {"shopper": context.shopper.cpu().contiguous(), "affinity": context.affinity.cpu().contiguous()},
                directory / f"{role}-arrivals.safetensors",
            )
        save_file(
            {"vectors": torch.from_numpy(np.array(self.builder.catalog.vectors))}, directory / "items.safetensors"
        )
        meta = {
            "size": self.size,
            "config": to_dict(self.config),
            "logs": str(self.logs.resolve()),
            "logs_digest": self.logs_digest,
            "builder": self.builder.to_dict(),
        }
        write_json(directory / META, meta)


def require_impressions(logs: Logs) -> pd.DataFrame:
    """Return the impressions of a log.

    Raises:
        InputError: The log has none.
    """
    if logs.impressions is None or logs.items is None:
        raise InputError(
            "the log has no impressions", where=logs.path, remedy="click models learn from the table impressions"
        )
    return logs.impressions


def load_shoppers(directory: Path, device: torch.device) -> FittedShoppers:
    """Read fitted shoppers, verifying their checksums.

    Raises:
        InputError: Files are missing, changed or of another form.
    """
    directory = verify_directory(directory, "shoppers")
    meta: dict[str, Any] = read_json(directory / META)
    try:
        vectors = load_file(directory / "items.safetensors")["vectors"].numpy()
        builder = ContextBuilder.from_dict(meta["builder"], vectors, directory / META)
        config = from_dict(FitConfig, meta["config"], directory / META)
        ensembles, arrivals = {}, {}
        for role, first in FIRST_ARCHITECTURE.items():
            members = [
                ShopperModel(
                    builder, meta["size"], ARCHITECTURES[(first + i) % len(ARCHITECTURES)], 0.5, torch.Generator()
                )
                for i in range(config.members)
            ]
            ensemble = Ensemble(members, torch.zeros(2))
            ensemble.load_state_dict(load_file(directory / f"{role}.safetensors"))
            ensembles[role] = ensemble.to(device).eval()
            stored = load_file(directory / f"{role}-arrivals.safetensors", device=str(device))
            arrivals[role] = whole_catalog(stored["shopper"], stored["affinity"])
        digest = sha256(directory / "checksums.json")
        logs = (Path(meta["logs"]), meta["logs_digest"])
        return FittedShoppers(builder, meta["size"], config, ensembles, arrivals, *logs, digest)
    except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError("not shoppers of this version", where=directory, got=str(error).splitlines()[0]) from None


def whole_catalog(shopper: torch.Tensor, affinity: torch.Tensor) -> Context[torch.Tensor]:
    """Return contexts with every item as a candidate, from shopper features (n, D) and affinities (n, n_items)."""
    candidates = torch.arange(affinity.shape[1], device=affinity.device).expand(affinity.shape)
    return Context(shopper, candidates, torch.ones_like(affinity, dtype=torch.bool), affinity)
