"""What a writer gains along its optimisation, as learned shoppers believe and as it is.

Where a proxy is optimised, gold follows it for a while and then falls (Gao et al. 2022, arXiv 2210.10760): both are
read at the beginning, at quarters of the steps and at the end, on the same assignments, over the square root of the KL
divergence from the first writer.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hawker.agents.writer_config import GrpoConfig
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_training import Progress, Stage
from hawker.benchmarks.writer_copy import ship
from hawker.benchmarks.writer_shop import Shop
from hawker.policies.briefs import Brief
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
    writers: Mapping[str | int, Writer], shop: Shop, given: Sequence[Assignment], seed: int
) -> list[dict[str, Any]]:
    """Return what proxy and gold make of a writer along its optimisation.

    Args:
        writers: The writer at each point, the first one first.
        shop: What judges.
        given: What each writes ``EACH`` lines for.
        seed: Decides the lines.

    Returns:
        For each point its name as ``at``, its ``kl``, `divergence` from the first writer, and ``Shop.judged``'s means.
    """
    briefs, first, points = [each.brief for each in given], next(iter(writers.values())), []
    for at, writer in writers.items():
        lines = ship(writer, shop.guardrails, briefs, EACH, seed).lines
        points.append({"at": at, "kl": divergence(writer, first, briefs, lines), **shop.judged(given, lines)})
    return points


def divergence(writer: Writer, first: Writer, briefs: Sequence[Brief], lines: Sequence[Sequence[str]]) -> float:
    """Return a line's KL divergence from the first writer, in nats, as its own lines tell: their mean log-ratio.

    Where a line ends does not count.

    Args:
        writer: The writer.
        first: The first writer.
        briefs: What was written for.
        lines: The writer's lines for each.
    """
    asked = [brief for brief, some in zip(briefs, lines, strict=True) for _ in some]
    said = [line for some in lines for line in some]
    nats, tokens = writer.log_likelihood(asked, said)
    return float(np.nanmean((nats - first.log_likelihood(asked, said)[0]) * tokens))
