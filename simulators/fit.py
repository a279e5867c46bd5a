"""``hawker fit``: from a log to fitted shoppers on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hawker.shop.artefacts import refuse_others, scratch_directory, write_directory, write_json
from hawker.shop.config import save_config
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.language import load_encoder
from hawker.shop.models import home
from hawker.shop.stream import open_stream
from hawker.simulators.arrivals import find_arrivals, logged_candidates
from hawker.simulators.config import FitConfig
from hawker.simulators.fidelity import measure_fidelity
from hawker.simulators.fitting import Progress, fit_ensemble
from hawker.simulators.store import FIRST_ARCHITECTURE, FittedShoppers, load_shoppers
from hawker.simulators.streaming import encode_parts

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
    stream = open_stream(logs_path)
    with scratch_directory(home() / "log") as scratch:
        parts = encode_parts(stream, config.shares, config.seed, encoder, scratch)
        builder, lines = parts.builder, parts.lines
        size, offers = (parts.largest[name] + 1 for name in ("position", "offer"))
        firsts = {role: parts.arrivals[role] for role in FIRST_ARCHITECTURE}
        logged = logged_candidates(stream.pages(scratch), list(firsts.values()), builder.catalog)
        arrivals = {role: find_arrivals(rows, logged, builder, device) for role, rows in firsts.items()}
        ensembles = {}
        for part, (role, first) in enumerate(FIRST_ARCHITECTURE.items()):
            summary = parts.summaries[role]
            progress(f"{role}: {summary.rows:,} impressions, {summary.clicks:,} clicks")
            log, generator = parts.logs[role], np.random.default_rng([config.seed, part])
            ensembles[role] = fit_ensemble(
                log, builder, size, config, first, generator, device, progress, lines, offers
            )
        origin = (Path(logs_path), stream.digest)
        shoppers = FittedShoppers(
            builder, size, config, ensembles, arrivals, *origin, parts.support, lines, asked=parts.asked
        )
        progress("measuring fidelity on rows that no model has seen")
        split = {"unit": parts.unit, "parts": {name: part.to_dict() for name, part in parts.summaries.items()}}
        report = measure_fidelity(shoppers, parts.logs, split)
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
