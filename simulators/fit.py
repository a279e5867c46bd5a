"""``hawker fit``: from a log to fitted shoppers on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hawker.shop.artefacts import refuse_others, write_directory, write_json
from hawker.shop.config import save_config
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.shop.logs import read_logs
from hawker.shop.models import home
from hawker.simulators.config import FitConfig
from hawker.simulators.fidelity import measure_fidelity
from hawker.simulators.fitting import Progress, fit_ensemble
from hawker.simulators.split import shopper_codes, three_way
from hawker.simulators.store import (
    FIRST_ARCHITECTURE,
    FittedShoppers,
    load_shoppers,
    require_impressions,
    whole_catalog,
)
from hawker.simulators.support import Support
from hawker.simulators.taste_fit import find_tastes

BOUNDS = {
    "members": (1, 100),
    "calibration_share": (0, 1),
    "epochs": (1, 10_000),
    "patience": (1, 10_000),
    "batch": (1, 10_000_000),
    "learning_rate": (1e-9, 1),
    "effect_scale": (1e-3, 1e3),
    "taste_scale": (1e-3, 1e3),
    "id_dropout": (0, 1),
    "seed": (0, 2**63 - 1),
}
"""What a ``FitConfig`` may hold, from and to."""

LARGEST = {"position": 1_000, "offer": 100}
"""What a log may number: every position and every discount tier, from 0, has parameters of its own."""

MAX_ARRIVALS = 100_000
"""Contexts kept per part to draw arriving shoppers from; a longer log is thinned at random."""


def fit(logs_path: Path, out: Path, config: FitConfig, progress: Progress) -> tuple[FittedShoppers, dict[str, Any]]:
    """Learn shoppers from a log and write them, whole or not at all.

    Args:
        logs_path: A logs directory with impressions.
        out: Directory to write; a previous one is replaced.
        config: How to fit.
        progress: Called with a line now and then.

    Returns:
        The shoppers as read back from ``out``, and their fidelity report (``fidelity.json``).

    Raises:
        InputError: The logs or the config cannot be used.
    """
    check_config(config)
    refuse_others(out, "shoppers")
    device = resolve_device(config.device)
    encoder = load_encoder(config.encoder, device, home() / "vectors")
    logs = read_logs(logs_path)
    impressions = require_impressions(logs)
    assert logs.items is not None
    parts, unit = three_way(impressions, config.shares, config.seed)
    size, offers = (_count(impressions, name) for name in ("position", "offer"))
    builder = ContextBuilder.fit(impressions[parts == 0], logs.items, encoder)
    lines = None if encoder is None else Lines.from_impressions(impressions, encoder)
    ensembles, arrivals = {}, {}
    for part, (role, first) in enumerate(FIRST_ARCHITECTURE.items()):
        rows = impressions[parts == part].reset_index(drop=True)
        progress(f"{role}: {len(rows):,} impressions, {int(rows['clicked'].sum()):,} clicks")
        generator = np.random.default_rng([config.seed, part])
        ensembles[role] = fit_ensemble(rows, builder, size, config, first, generator, device, progress, lines, offers)
        if role == "train" and ensembles[role].models[0].memory is not None:
            progress("classes of taste")
            ensembles[role].tastes = find_tastes(
                rows, builder, size, ensembles[role].models[0].recorded, lines, config.seed, device
            )
        arrivals[role] = find_arrivals(rows, logs.pages, builder, generator, device)
    support = Support.from_impressions(impressions[parts == 0], builder.catalog, lines, offers)
    shoppers = FittedShoppers(builder, size, config, ensembles, arrivals, Path(logs_path), logs.digest, support, lines)
    progress("measuring fidelity on rows that no model has seen")
    report = measure_fidelity(shoppers, impressions, parts, unit)
    with write_directory(out, "shoppers") as scratch:
        shoppers.save(scratch)
        save_config(config, scratch / "config.yaml")
        write_json(scratch / "fidelity.json", report)
    return load_shoppers(out, device), report


def check_config(config: FitConfig) -> None:
    """Refuse a config that cannot be used.

    Raises:
        InputError: A number is out of its bounds.
    """
    for name, (low, high) in BOUNDS.items():
        value = getattr(config, name)
        if not low <= value <= high:  # NaN too
            raise InputError("bad config", where=f"fit.{name}", got=value, expected=f"a number from {low} to {high}")


def _count(impressions: pd.DataFrame, name: str) -> int:
    """Return how many positions or tiers a log numbers."""
    largest = int(impressions[name].max()) if name in impressions else 0
    if largest > LARGEST[name]:
        where, expected = f"impressions column {name}", f"numbers from 0 to {LARGEST[name]}"
        raise InputError("too large a number", where=where, got=largest, expected=expected, remedy="number them anew")
    return largest + 1


def find_arrivals(
    rows: pd.DataFrame,
    pages: pd.DataFrame | None,
    builder: ContextBuilder,
    generator: np.random.Generator,
    device: torch.device,
) -> Context[torch.Tensor]:
    """Return the contexts in which the shoppers of a log first appear.

    Args:
        rows: Impressions in order of time.
        pages: The log's pages; their candidates, where known, are those of the contexts. Else all items are.
        builder: The shop's contexts and catalog.
        generator: Thins a long log.
        device: Where to put them.
    """
    # The first row of each shopper; rows that stand alone are all first.
    rows = rows.iloc[np.sort(np.unique(shopper_codes(rows), return_index=True)[1])]
    if len(rows) > MAX_ARRIVALS:
        rows = rows.iloc[np.sort(generator.choice(len(rows), MAX_ARRIVALS, replace=False))]
    context = builder.from_impressions(rows)
    known = None
    if pages is not None and "candidates" in pages:
        keys = ["visit_id", "page"]
        known = rows[keys].merge(pages[[*keys, "candidates"]], on=keys, how="left")["candidates"]
    if known is None or known.isna().any():
        return whole_catalog(*(torch.from_numpy(array).to(device) for array in (context.shopper, context.affinity)))
    lists = known.tolist()
    count = np.array([len(ids) for ids in lists])
    mask = np.arange(count.max()) < count[:, None]
    candidates = np.zeros(mask.shape, np.int64)
    candidates[mask] = builder.catalog.index([item for ids in lists for item in ids], "pages column candidates")
    affinity = np.take_along_axis(context.affinity, candidates, axis=1)
    arrays = (context.shopper, candidates, mask, affinity)
    return Context(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))
