"""``hawker bench``: the figures of the README, made anew."""

from __future__ import annotations

import platform
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hawker.agents.config import TrainConfig
from hawker.benchmarks.signal import SignalConfig, bench_signal
from hawker.shop.devices import choose_threads
from hawker.shop.importers import import_obd, shipped
from hawker.simulators.config import FitConfig, PlantedEffects


def run_signal(
    logs: Path | None,
    impressions: int,
    ctr: float,
    seeds: tuple[int, ...],
    repeats: int,
    quick: bool,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Run ``hawker bench signal``; ``quick`` replaces size, seeds and repeats by small ones."""
    threads = choose_threads()
    config = SignalConfig(impressions, seeds, repeats, PlantedEffects(ctr=ctr))
    if quick:
        config = SignalConfig(
            40_000, seeds[:1], 5, PlantedEffects(ctr=ctr), FitConfig(epochs=15), TrainConfig(steps=100_000)
        )
    with tempfile.TemporaryDirectory() as scratch:
        if logs is None:
            import_obd(shipped("obd"), Path(scratch) / "logs")
        report = bench_signal(logs or Path(scratch) / "logs", config, progress)
    size = ["--quick"] if quick else ["--impressions", config.impressions, "--repeats", config.repeats]
    options = [*size, "--ctr", ctr, "--seeds", *config.seeds, *(["--logs", logs] if logs else [])]
    command = shlex.join(["hawker", "bench", "signal", *map(str, options)])
    return {**report, "machine": machine(threads), "command": command}


def machine(threads: int) -> dict[str, Any]:
    """Describe what figures were measured on."""
    import os

    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"processor": platform.machine(), "cores": os.cpu_count(), "torch_threads": threads, "gpu": gpu}
