"""``hawker bench``: the figures of the README, made anew."""

from __future__ import annotations

import importlib.util
import platform
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hawker.agents.config import TrainConfig
from hawker.benchmarks import constraints, embeddings, exploits, leaderboard, pareto, search, speed, why
from hawker.benchmarks.fidelity import QUICK, FidelityConfig, bench_fidelity
from hawker.benchmarks.signal import SignalConfig, bench_signal
from hawker.shop.devices import choose_threads
from hawker.shop.errors import InputError
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


def run_fidelity(
    variant: str | None, seeds: tuple[int, ...], quick: bool, page: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run ``hawker bench fidelity``; ``quick`` replaces sizes and all seeds but the first.

    ``page`` is where its charts are to go, looked at before anything is run.

    Raises:
        InputError: The variant or the seeds cannot be used, or there is no plotly for the page.
    """
    _require_charts(page)
    threads = choose_threads()
    config = replace(QUICK, variant=variant, seeds=seeds[:1]) if quick else FidelityConfig(variant, seeds)
    report = bench_fidelity(config, progress)
    options = ["--quick"] if quick else []
    options += ["--variant", variant] if variant else []
    command = shlex.join(["hawker", "bench", "fidelity", *options, "--seeds", *map(str, config.seeds)])
    return {**report, "machine": machine(threads), "command": command}


def run_speed(shoppers: Path | None, quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``hawker bench speed``; ``shoppers`` is a directory of fitted shoppers instead of those of the benchmark.

    Raises:
        InputError: The shoppers cannot be used.
    """
    threads = choose_threads()
    report = speed.bench_speed(replace(speed.QUICK if quick else speed.SpeedConfig(), shoppers=shoppers), progress)
    options = [*(["--quick"] if quick else []), *(["--shoppers", str(shoppers)] if shoppers else [])]
    return {**report, "machine": machine(threads), "command": shlex.join(["hawker", "bench", "speed", *options])}


def run_leaderboard(
    variants: tuple[str, ...], seeds: tuple[int, ...], steps: int | None, quick: bool, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run ``hawker bench leaderboard``; ``quick`` replaces sizes, worlds and all seeds but the first.

    Without ``steps`` PPO learns from as many pages as the benchmark's config says.

    Raises:
        InputError: A variant, the seeds or the steps cannot be used.
    """
    threads = choose_threads()
    if steps is not None and steps < 1:
        raise InputError("no pages to learn from", where="--steps", got=steps, expected="at least 1")
    worlds = tuple(None if variant == "base" else variant for variant in variants)
    config = leaderboard.LeaderboardConfig(seeds=seeds, variants=worlds)
    if steps is not None:
        config = replace(config, train=replace(config.train, steps=steps))
    if quick:
        config = replace(leaderboard.QUICK, seeds=seeds[:1])
    report = leaderboard.bench_leaderboard(config, progress)
    size = ["--quick"] if quick else ["--variants", *variants, "--steps", str(config.train.steps)]
    command = shlex.join(["hawker", "bench", "leaderboard", *size, "--seeds", *map(str, config.seeds)])
    return {**report, "machine": machine(threads), "command": command}


def run_pareto(
    seeds: tuple[int, ...], steps: int | None, quick: bool, page: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run ``hawker bench pareto``; ``quick`` replaces sizes and all seeds but the first.

    ``page`` is where its charts are to go, looked at before anything is run.

    Without ``steps`` each strategy learns from as many pages as the benchmark's config says.

    Raises:
        InputError: The seeds or the steps cannot be used, or there is no plotly for the page.
    """
    _require_charts(page)
    threads = choose_threads()
    config = replace(pareto.QUICK, seeds=seeds[:1]) if quick else pareto.ParetoConfig(seeds=seeds)
    if steps is not None:
        if steps <= config.train.critic_first:
            expected = f"more than {config.train.critic_first}, which teach the critic alone"
            raise InputError("too few pages to learn from", where="--steps", got=steps, expected=expected)
        config = replace(config, train=replace(config.train, steps=steps))
    report = pareto.bench_pareto(config, progress)
    size = [*(["--quick"] if quick else []), "--steps", str(config.train.steps)]
    command = shlex.join(["hawker", "bench", "pareto", *size, "--seeds", *map(str, config.seeds)])
    return {**report, "machine": machine(threads), "command": command}


def run_constraints(seeds: tuple[int, ...], quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``hawker bench constraints``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The seeds cannot be used.
    """
    threads = choose_threads()
    config = constraints.ConstraintsConfig(seeds=seeds)
    if quick:
        config = replace(constraints.QUICK, seeds=seeds[:1])
    report = constraints.bench_constraints(config, progress)
    options = [*(["--quick"] if quick else []), "--seeds", *map(str, config.seeds)]
    return {**report, "machine": machine(threads), "command": shlex.join(["hawker", "bench", "constraints", *options])}


def run_exploits(seeds: tuple[int, ...], quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``hawker bench exploits``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The seeds cannot be used.
    """
    threads = choose_threads()
    config = exploits.ExploitsConfig(seeds=seeds)
    if quick:
        config = replace(exploits.QUICK, seeds=seeds[:1])
    report = exploits.bench_exploits(config, progress)
    options = [*(["--quick"] if quick else []), "--seeds", *map(str, config.seeds)]
    return {**report, "machine": machine(threads), "command": shlex.join(["hawker", "bench", "exploits", *options])}


def run_writer(
    model: str,
    seeds: tuple[int, ...],
    ablations: bool,
    quick: bool,
    keep: Path | None,
    page: Path | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Run ``hawker bench writer``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The model or the seeds cannot be used, there is no trl, or the page cannot be drawn or written.
    """
    _require_charts(page)
    _require_trl("bench writer")
    from hawker.benchmarks import writer  # trl need not be there for the other benchmarks

    threads = choose_threads()
    config = replace(writer.QUICK, seeds=seeds[:1]) if quick else writer.WriterConfig(seeds=seeds)
    report = writer.bench_writer(replace(config, model=model), progress, ablations=ablations, keep=keep)
    options = [*(["--quick"] if quick else []), *(["--ablations"] if ablations else []), "--model", model]
    command = shlex.join(["hawker", "bench", "writer", *options, "--seeds", *map(str, config.seeds)])
    return {**report, "machine": machine(threads), "command": command}


def run_strategist(
    model: str, seeds: tuple[int, ...], quick: bool, keep: Path | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Run ``hawker bench strategist``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The model or the seeds cannot be used, or there is no trl.
    """
    _require_trl("bench strategist")
    from hawker.benchmarks import strategist  # trl need not be there for the other benchmarks

    threads = choose_threads()
    config = replace(strategist.QUICK, seeds=seeds[:1]) if quick else strategist.StrategistConfig(seeds=seeds)
    report = strategist.bench_strategist(replace(config, model=model), progress, keep=keep)
    options = [*(["--quick"] if quick else []), "--model", model]
    command = shlex.join(["hawker", "bench", "strategist", *options, "--seeds", *map(str, config.seeds)])
    return {**report, "machine": machine(threads), "command": command}


def run_backbone(model: str, seeds: tuple[int, ...], quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``hawker bench backbone``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The model or the seeds cannot be used, or there is no trl.
    """
    _require_trl("bench backbone")
    from hawker.benchmarks import backbone  # nor peft

    threads = choose_threads()
    config = replace(backbone.QUICK, seeds=seeds[:1]) if quick else backbone.BackboneBenchConfig(seeds=seeds)
    config = replace(config, backbone=replace(config.backbone, model=model))
    report = backbone.bench_backbone(config, progress)
    options = [*(["--quick"] if quick else []), "--model", model]
    command = shlex.join(["hawker", "bench", "backbone", *options, "--seeds", *map(str, config.seeds)])
    return {**report, "machine": machine(threads), "command": command}


def run_embeddings(model: str, seeds: tuple[int, ...], quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``hawker bench embeddings``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The model or the seeds cannot be used.
    """
    threads = choose_threads()
    config = embeddings.EmbeddingsConfig(seeds=seeds)
    if quick:
        config = replace(embeddings.QUICK, seeds=seeds[:1])
    report = embeddings.bench_embeddings(replace(config, model=model), progress)
    options = [*(["--quick"] if quick else []), "--model", model]
    command = shlex.join(["hawker", "bench", "embeddings", *options, "--seeds", *map(str, config.seeds)])
    return {**report, "machine": machine(threads), "command": command}


def run_search(variant: str, seeds: tuple[int, ...], quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``hawker bench search``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The variant or the seeds cannot be used.
    """
    threads = choose_threads()
    config = replace(search.QUICK, seeds=seeds[:1]) if quick else search.SearchConfig(seeds=seeds)
    report = search.bench_search(replace(config, variant=variant), progress)
    options = [*(["--quick"] if quick else []), "--variant", variant, "--seeds", *map(str, config.seeds)]
    return {**report, "machine": machine(threads), "command": shlex.join(["hawker", "bench", "search", *options])}


def run_why(seeds: tuple[int, ...], quick: bool, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``hawker bench why``; ``quick`` replaces sizes and all seeds but the first.

    Raises:
        InputError: The seeds cannot be used.
    """
    threads = choose_threads()
    config = replace(why.QUICK, seeds=seeds[:1]) if quick else why.WhyConfig(seeds=seeds)
    report = why.bench_why(config, progress)
    options = [*(["--quick"] if quick else []), "--seeds", *map(str, config.seeds)]
    return {**report, "machine": machine(threads), "command": shlex.join(["hawker", "bench", "why", *options])}


def _require_trl(command: str) -> None:
    if importlib.util.find_spec("trl") is None:
        raise InputError("the writer needs trl", where=command, remedy="run pip install 'hawker[train]'")


def _require_charts(page: Path | None) -> None:
    """Refuse a page that cannot be drawn or written: better now than after the benchmark."""
    if page is None:
        return
    if importlib.util.find_spec("plotly") is None:
        raise InputError("charts need plotly", where="--html", remedy="run pip install 'hawker[train]'")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write here ({error.strerror})", where=page) from None


def machine(threads: int) -> dict[str, Any]:
    """Describe what figures were measured on."""
    import os

    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"processor": platform.machine(), "cores": os.cpu_count(), "torch_threads": threads, "gpu": gpu}
