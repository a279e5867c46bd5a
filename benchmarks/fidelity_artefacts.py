"""Logs and fitted shoppers that the benchmark makes once: found again by what they are made from.

A fit runs in a process of its own, so that its seconds and its peak of memory are of the fit alone.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hawker.shop.artefacts
import hawker.simulators.fit
from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.fidelity_cohort import LOGGED
from hawker.shop.artefacts import read_json, verify_directory, write_directory, write_json
from hawker.shop.config import from_dict, to_dict
from hawker.shop.devices import choose_threads
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.shop.models import home
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import write_logs
from hawker.simulators.fit import fit

KIND = "benchmark"


@dataclass(frozen=True)
class Fit:
    """Fitted shoppers and what they cost.

    Attributes:
        shoppers: Their directory.
        seconds: Of the fit, reading the log included.
        peak_mib: Largest resident memory of its process.
        impressions: Rows of the log.
        reused: Whether they were found.
    """

    shoppers: Path
    seconds: float
    peak_mib: float
    impressions: int
    reused: bool


def cached_logs(world: BazaarWorld, shoppers: int, days: int, seed: int, told: Callable[[str], None]) -> Path:
    """Return a log of the logging strategy, written unless it is there."""
    strategy = logging_strategy(world, LOGGED)
    habits = to_dict(strategy.habits)
    path = _place("logs", world.digest, shoppers, days, seed, strategy.name, habits, sources("simulators", "policies"))
    if _whole(path, "logs"):
        told(f"log of {shoppers:,} shoppers: reused")
        return path
    write_logs(world, strategy, path, shoppers, days, seed)
    meta = read_json(path / "meta.json")
    told(f"log of {shoppers:,} shoppers: {meta['rows']['impressions']:,} impressions, {meta['clicks']:,} clicks")
    return path


def cached_fit(logs: Path, config: FitConfig, told: Callable[[str], None]) -> Fit:
    """Return shoppers fitted to a log, fitted unless they are there.

    Raises:
        InputError: The fit failed; the message is its last line.
    """
    digest = read_logs(logs).digest
    path = _place("shoppers", digest, to_dict(config), sources("simulators", "shop"))
    reused = _whole(path, KIND)
    if not reused:
        with write_directory(path, KIND) as scratch:
            order = {"logs": str(logs), "out": str(scratch / "shoppers"), "config": to_dict(config)}
            write_json(scratch / "order.json", order)
            command = [sys.executable, "-m", __name__, str(scratch / "order.json"), str(scratch / "cost.json")]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                assert process.stdout is not None
                line = ""
                for line in process.stdout:
                    told(line.rstrip())
            if process.returncode:
                raise InputError("the fit failed", where=logs, got=line.strip()[:200])
    cost = read_json(path / "cost.json")
    told(f"fit: {cost['seconds']:.0f} s, {cost['peak_mib']:.0f} MiB{', reused' if reused else ''}")
    return Fit(path / "shoppers", cost["seconds"], cost["peak_mib"], cost["impressions"], reused)


def sources(*packages: str) -> str:
    """Return the SHA-256 of the sources and data files of some of Hawker's packages."""
    folders = {
        "simulators": Path(hawker.simulators.fit.__file__).parent,
        "shop": Path(hawker.shop.artefacts.__file__).parent,
    }
    folders["policies"] = folders["shop"].parent / "policies"
    digest = hashlib.sha256()
    for package in packages:
        files = [*folders[package].glob("*.py"), *folders[package].glob("data/*.yaml")]
        for path in sorted(files):
            digest.update(f"{package}/{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _place(what: str, *made_from: Any) -> Path:
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    return home() / "bench" / f"{what}-{key}"


def _whole(path: Path, kind: str) -> bool:
    """Say whether an artefact stands there undamaged."""
    try:
        verify_directory(path, kind)
    except InputError:
        return False
    return True


def memory_mib(process: int | str, entry: str) -> float:
    """Return a process's memory from Linux' own account, 0 where there is none: "VmRSS" now, "VmHWM" at its largest."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(entry)), 0.0)


class _Watch(threading.Thread):
    """Ends this process once its parent has, so that a killed benchmark leaves no fit behind; and watches its memory.

    Attributes:
        peak_mib: Largest resident memory seen, once a second, of this process and its workers together.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._parent, self.peak_mib = os.getppid(), 0.0

    def run(self) -> None:
        """Watch until the process ends."""
        while os.getppid() == self._parent:
            processes: list[int | str] = ["self"]
            processes += [child.pid for child in multiprocessing.active_children() if child.pid is not None]
            now = sum(memory_mib(process, "VmRSS") for process in processes)
            self.peak_mib = max(self.peak_mib, now, memory_mib("self", "VmHWM"))
            time.sleep(1.0)
        os._exit(1)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fit_here(order: Path, cost: Path) -> None:
    told = read_json(order)
    config = from_dict(FitConfig, told["config"], order)
    choose_threads()
    watch = _Watch()
    watch.start()
    started = time.perf_counter()
    logs = Path(told["logs"])
    fit(logs, Path(told["out"]), config, _say)
    seconds = time.perf_counter() - started
    impressions = int(read_json(logs / "meta.json")["rows"]["impressions"])
    write_json(cost, {"seconds": seconds, "peak_mib": watch.peak_mib, "impressions": impressions})


if __name__ == "__main__":
    try:
        _fit_here(Path(sys.argv[1]), Path(sys.argv[2]))
    except InputError as error:
        _say(str(error))
        sys.exit(2)
