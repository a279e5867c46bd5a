"""Where the time of a step goes: ``python -m hawker.benchmarks.speed_profile SHOPPERS``, fitted shoppers' directory.

For every operation of a step the least time of many, so that other processes hardly show: summed by the line that asks
for it, of the environment and of its networks' forward passes alone.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hawker.benchmarks.speed import Passes, SpeedConfig, Stepper, enlarged
from hawker.shop.devices import choose_threads
from hawker.simulators.store import load_shoppers

STEPS = 20
LINES = 40


class _Clock(TorchDispatchMode):
    """Times every operation; the n-th of a step is compared with the n-th of the others."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.least: list[int] = []
        self.asked: list[tuple[str, str]] = []
        self.place = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        started = time.thread_time_ns()
        result = function(*args, **(kwargs or {}))
        taken = time.thread_time_ns() - started
        if self.place == len(self.least):
            self.least.append(taken)
            self.asked.append((_line(), str(function).removeprefix("aten.")))
        else:
            self.least[self.place] = min(self.least[self.place], taken)
        self.place += 1
        return result


def _line() -> str:
    """Return the line of Hawker's that asked for an operation."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "hawker" not in frame.f_globals.get("__name__", ""):
        frame = frame.f_back
    return f"{frame.f_globals['__name__'].removeprefix('hawker.')}:{frame.f_lineno} {frame.f_code.co_name}"


def profile(name: str, step: Callable[[], None], n: int) -> None:
    """Print where the time of a step of n shoppers goes."""
    step()
    with _Clock() as clock:
        for _ in range(STEPS):
            clock.place = 0
            step()
    total = sum(clock.least) / n / 1e3
    sys.stdout.write(f"{name}: {total:.2f} us a user-step in {len(clock.least)} operations of {n:,} shoppers\n")
    spent: Counter[tuple[str, str]] = Counter()
    for taken, asked in zip(clock.least, clock.asked, strict=True):
        spent[asked] += taken
    for (line, function), taken in spent.most_common(LINES):
        sys.stdout.write(f"{taken / n:8.0f} ns  {line}  {function}\n")


def main(directory: Path, config: SpeedConfig) -> None:
    """Profile the environment and its networks."""
    choose_threads()
    world = enlarged(load_shoppers(directory, torch.device("cpu")), config.items, config.size, config.choices)
    for name, stepper in (
        ("environment", Stepper(world, config.batch)),
        ("forward passes", Passes(world, config.batch)),
    ):
        profile(name, stepper.step, config.batch)


if __name__ == "__main__":
    main(Path(sys.argv[1]), SpeedConfig())
