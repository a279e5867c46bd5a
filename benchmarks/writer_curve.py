"""What a writer gains along its optimisation, as learned shoppers believe and as it is.

Where a proxy is optimised, gold follows it for a while and then falls (Gao et al. 2022, arXiv 2210.10760): both are
read at the beginning, at quarters of the steps and at the end, on the same assignments, over the square root of the KL
divergence from the first writer. With 40 assignments and SmolLM2-135M the three points between take a core a minute.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hawker.agents.writer_config import GrpoConfig
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_training import Progress, Stage
from hawker.benchmarks.writer_copy import ship
from hawker.benchmarks.writer_shop import Shop
from hawker.policies.writer import Writer
from hawker.shop.artefacts import find_directory, read_json, write_directory

EACH = 2
"""Lines for each assignment."""

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
STATE = "trainer_state.json"
"""Of what trl writes into a checkpoint."""


def quarter(config: GrpoConfig) -> int:
    """Return the steps between two adapters that are kept: a quarter of all, at least one."""
    return max(config.steps // 4, 1)


class Quarters:
    """Keeps the adapters of a training at a quarter, a half and three quarters of its steps.

    Args:
        stage: The training, which writes a checkpoint every ``quarter(config)`` steps.
        config: Its config.
        progress: Called too.
    """

    def __init__(self, stage: Stage, config: GrpoConfig, progress: Progress) -> None:
        self._stage, self._progress = stage, progress
        each = quarter(config)
        self._steps = range(each, config.steps, each)[:3]

    def __call__(self, done: int, of: int, value: float) -> None:
        """Keep the checkpoint of the step before ``done``, if it is one to keep: it is whole by now."""
        self._progress(done, of, value)
        step, checkpoint = done - 1, find_directory(self._stage.checkpoint)
        if step not in self._steps or self._place(step).exists() or not (checkpoint / ADAPTER[1]).is_file():
            return
        if read_json(checkpoint / STATE)["global_step"] == step:
            with write_directory(self._place(step), "writer adapter") as scratch:
                for name in ADAPTER:
                    shutil.copy(checkpoint / name, scratch / name)

    def kept(self) -> dict[int, Path]:
        """Return the adapters that are there, by step."""
        return {step: self._place(step) for step in self._steps if self._place(step).exists()}

    def _place(self, step: int) -> Path:
        return self._stage.run.path / "writer" / f"{self._stage.name}-step-{step}"


def along(
    first: str,
    adapters: Mapping[int, Path],
    shop: Shop,
    given: Sequence[Assignment],
    ends: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]],
    history: Sequence[Mapping[str, float]],
    seed: int,
    device: torch.device,
) -> list[dict[str, float]]:
    """Return what proxy and gold make of the writer along its optimisation.

    Args:
        first: The writer before.
        adapters: Of it, by steps done.
        shop: What judges.
        given: The same for every point.
        ends: Lines of the first writer and of the last for each, ``EACH`` of which are judged.
        history: trl's log, one entry a step.
        seed: Decides the lines between.
        device: Where writers write.

    Returns:
        For each point its ``step``, its ``kl`` (`kl_at`), and ``Shop.judged``'s means.
    """
    briefs, written = [each.brief for each in given], {0: ends[0]}
    for step, adapter in sorted(adapters.items()):
        writer = Writer.load(first, device, adapter)
        written[step] = ship(writer, shop.guardrails, briefs, EACH, seed).lines
    written[len(history)] = ends[1]
    return [
        {"step": step, "kl": kl_at(history, step), **shop.judged(given, [some[:EACH] for some in lines])}
        for step, lines in written.items()
    ]


def kl_at(history: Sequence[Mapping[str, Any]], step: int) -> float:
    """Return a line's KL divergence from the first writer after some steps, in nats, from trl's log.

    An entry tells of the writer before its step, by the mean of a token on one batch; the mean of the five entries
    about the step is taken, as far as they are there, each times the batch's mean length. 0 before the first step.
    """
    if step == 0:
        return 0.0
    near = history[max(step - 2, 0) : step + 3] or history[-1:]
    nats = [float(entry.get("kl", math.nan) * entry["completions/mean_length"]) for entry in near]
    return sum(nats) / len(nats)
