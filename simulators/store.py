"""Fitted shoppers on disk: two ensembles, the contexts to draw arrivals from, and where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.shop.logs import Logs, read_logs
from hawker.shop.models import home
from hawker.shop.search import Search
from hawker.simulators.appeal import ARCHITECTURES, Recorded
from hawker.simulators.config import FitConfig
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.query_world import Asked, QueryWorld
from hawker.simulators.retrieval import eligible_items
from hawker.simulators.search_bazaar import SearchBazaar
from hawker.simulators.shopper import IDENTITY, Ensemble, ShopperModel
from hawker.simulators.split import PARTS, three_way
from hawker.simulators.support import Support
from hawker.simulators.taste_classes import TasteClasses
from hawker.simulators.world import World

META = "shoppers.json"
LINES = "lines.safetensors"
SUPPORT = "support.safetensors"
ASKED = "queries.json"
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
        support: What the part of the log to train against shows how often.
        lines: The bank of lines that the log shows, and further ones that are understood; None where it shows none.
        digest: SHA-256 of the artefact's list of checksums; empty before it was written.
        asked: What is asked for in a shop with a search box, see ``builder.search``; None without one.
    """

    builder: ContextBuilder
    size: int
    config: FitConfig
    ensembles: dict[str, Ensemble]
    arrivals: dict[str, Context[torch.Tensor]]
    logs: Path
    logs_digest: str
    support: Support
    lines: Lines | None = None
    digest: str = ""
    asked: Asked | None = None

    def world(self, role: Role, doubts: bool = False) -> LearnedWorld:
        """Return the world to train against, or the judge's; ``doubts``: one that tells what it is not sure of."""
        lines = () if self.lines is None else self.lines.texts
        fitted = (self.builder, self.ensembles[role], self.arrivals[role], self.size, lines)
        return LearnedWorld(*fitted, self.support, doubts)

    def searched(self, world: World) -> World:
        """Return a world of these shoppers, or a gold one, with the queries of its visits read, where it has any."""
        search, candidates = self.builder.search, self.arrivals["train"]
        if search is None or self.asked is None:
            return world
        eligible = eligible_items(candidates, len(self.builder.catalog)).cpu().numpy()
        if isinstance(world, LearnedWorld):
            return QueryWorld(world, search, self.asked.texts, eligible, self.asked.visits, self.asked.silent)
        if isinstance(world, SearchBazaar):
            return QueryWorld(world, search, world.queries, eligible)
        return world

    def with_lines(self, texts: Sequence[str]) -> FittedShoppers:
        """Return the same shoppers, who understand further lines of copy, too, as those who wrote like them.

        ``lines`` then holds the log's lines, numbered as before, and after them those of the ``texts`` that are not
        among them, in their order. What shoppers answer to the log's lines does not change, nor do the columns of what
        `hawker.simulators.reader.ReadWorld` tells; a further line is one that the log does not support. The result is
        for use, not to be saved.

        Raises:
            InputError: The log shows no lines, or a text is blank.
        """
        if self.lines is None:
            raise InputError(
                "these shoppers have seen no lines of copy",
                where=self.logs,
                remedy="fit them to logs that show copy",
            )
        if not all(text.strip() for text in texts):
            raise InputError("a blank line of copy", where="with lines", expected="text")
        known = set(self.lines.texts)
        further = tuple(text for text in dict.fromkeys(texts) if text not in known)
        if not further:
            return self
        encoder = load_encoder(self.config.encoder, self.support.items.device, home() / "vectors")
        told = self.lines.with_texts(further, encoder)
        vectors = np.concatenate([self.lines.vectors, told.vectors])
        lines = replace(self.lines, texts=self.lines.texts + further, vectors=vectors)
        scaled = torch.from_numpy(told.scaled)
        ensembles = {role: ensemble.with_lines(scaled) for role, ensemble in self.ensembles.items()}
        return replace(self, ensembles=ensembles, lines=lines)

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
        """Write the shoppers into a directory that is being written.

        Raises:
            ValueError: They understand more lines than they were fitted with.
        """
        if self.lines is not None and len(self.lines) > self.ensembles["train"].models[0].logged_lines:
            raise ValueError("what is saved is what was fitted, without further lines")
        for role, ensemble in self.ensembles.items():
            weights = {name: value.cpu().contiguous() for name, value in ensemble.state_dict().items()}
            save_file(weights, directory / f"{role}.safetensors")
            context = self.arrivals[role]
            arrays = {"shopper": context.shopper, "affinity": context.affinity}
            if not is_whole_catalog(context, len(self.builder.catalog)):
                arrays |= {"candidates": context.candidates, "mask": context.mask}
            stored = {name: value.cpu().contiguous() for name, value in arrays.items()}
            save_file(stored, directory / f"{role}-arrivals.safetensors")
        save_file(
            {"vectors": torch.from_numpy(np.array(self.builder.catalog.vectors))}, directory / "items.safetensors"
        )
        self.support.save(directory / SUPPORT)
        if self.builder.search is not None and self.asked is not None:
            self.builder.search.save(directory)
            write_json(directory / ASKED, asdict(self.asked))
        if self.lines is not None:
            text = {"vectors": self.lines.vectors, "centre": self.lines.centre, "axes": self.lines.axes}
            save_file({name: torch.from_numpy(np.array(array)) for name, array in text.items()}, directory / LINES)
        meta = {
            "size": self.size,
            "config": to_dict(self.config),
            "logs": str(self.logs.resolve()),
            "logs_digest": self.logs_digest,
            "builder": self.builder.to_dict(),
            "lines": None if self.lines is None else self.lines.to_dict(),
            "recorded": {role: asdict(ensemble.models[0].recorded) for role, ensemble in self.ensembles.items()},
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
        builder, asked = replace(builder, search=Search.load(directory)), None
        if builder.search is not None:
            asked = Asked.from_dict(read_json(directory / ASKED), directory / ASKED)
        config = from_dict(FitConfig, meta["config"], directory / META)
        lines = None
        if meta["lines"] is not None:
            text = {name: value.numpy() for name, value in load_file(directory / LINES).items()}
            lines = Lines(tuple(meta["lines"]["texts"]), **text, scale=meta["lines"]["scale"])
        ensembles, arrivals = {}, {}
        for role, first in FIRST_ARCHITECTURE.items():
            recorded = Recorded(**meta["recorded"][role])
            architectures = [ARCHITECTURES[(first + i) % len(ARCHITECTURES)] for i in range(config.members)]
            members = [
                ShopperModel(builder, meta["size"], architecture, 0.5, torch.Generator(), recorded, lines)
                for architecture in architectures
            ]
            weights, tastes = load_file(directory / f"{role}.safetensors"), None
            if any(name.startswith("tastes.") for name in weights):
                tastes = TasteClasses(builder, meta["size"], recorded, lines, 0.5, 0.5)
            ensemble = Ensemble(members, IDENTITY.clone(), tastes)
            ensemble.load_state_dict(weights)
            ensembles[role] = ensemble.to(device).eval()
            stored = load_file(directory / f"{role}-arrivals.safetensors", device=str(device))
            arrivals[role] = (
                Context(**stored) if "candidates" in stored else whole_catalog(stored["shopper"], stored["affinity"])
            )
        digest, support = sha256(directory / "checksums.json"), Support.load(directory / SUPPORT, device)
        logs = (Path(meta["logs"]), meta["logs_digest"])
        return FittedShoppers(builder, meta["size"], config, ensembles, arrivals, *logs, support, lines, digest, asked)
    except (KeyError, TypeError, RuntimeError, SafetensorError, FileNotFoundError) as error:
        remedy = "fit them anew with `hawker fit`"
        raise InputError(
            "not shoppers of this version", where=directory, got=str(error).splitlines()[-1].strip(), remedy=remedy
        ) from None


def whole_catalog(shopper: torch.Tensor, affinity: torch.Tensor) -> Context[torch.Tensor]:
    """Return contexts with every item as a candidate, from shopper features (n, D) and affinities (n, n_items)."""
    candidates = torch.arange(affinity.shape[1], device=affinity.device).expand(affinity.shape)
    return Context(shopper, candidates, torch.ones_like(affinity, dtype=torch.bool), affinity)


def is_whole_catalog(context: Context[torch.Tensor], n_items: int) -> bool:
    """Say whether every context has every item as a candidate, in order."""
    everything = torch.arange(n_items, device=context.candidates.device)
    if context.candidates.shape[1] != n_items:
        return False
    return bool((context.candidates == everything).all() & context.mask.all())
