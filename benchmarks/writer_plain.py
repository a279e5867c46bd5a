"""How fast trl's GRPO goes by itself: the same model, briefs and sizes, and a reward that is always the same."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from hawker.agents.writer_config import GrpoConfig
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_training import Stage, adapter, arguments, dataset, network, training
from hawker.policies.writer import load_tokenizer, prompt_of
from hawker.shop.models import find_model
from hawker.shop.run import Run

ROWS = 8
"""Rows computed at once, at most: each holds its whole prompt here, and 32 took 19 GiB."""


def plain_rate(model: str, assignments: Sequence[Assignment], config: GrpoConfig) -> float:
    """Return the tokens a second that trl generates and learns from when the reward costs nothing.

    Args:
        model: The writer to begin with.
        assignments: What there is to write for; the first ones are taken.
        config: As for `hawker.agents.writer_grpo.grpo`, but for ``rows``, ``ROWS`` at most; ``steps`` after a first one
            that is not counted.
    """
    path, clock = find_model(model), _Clock()
    tokenizer = load_tokenizer(path)
    needed = (config.steps + 1) * config.batch // config.group
    rows = [{"prompt": prompt_of(tokenizer, assignments[i % len(assignments)].brief)} for i in range(needed)]
    with tempfile.TemporaryDirectory() as folder, training(Stage(Run(Path(folder)), "grpo")) as scratch:
        from trl.trainer.grpo_config import GRPOConfig as TrlConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        parts = replace(config, rows=math.gcd(config.rows, ROWS))
        shared = arguments(parts, scratch) | {"max_steps": config.steps + 1, "save_strategy": "no"}
        trainer: Any = GRPOTrainer(
            model=network(path, config),
            reward_funcs=_constant,
            args=TrlConfig(
                **shared,
                num_generations=config.group,
                max_completion_length=config.tokens,
                temperature=config.temperature,
                beta=config.beta,
                shuffle_dataset=False,
                mask_truncated_completions=False,
            ),
            train_dataset=dataset(rows),
            processing_class=tokenizer,
            peft_config=adapter(config.rank),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        lengths = [entry["completions/mean_length"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = clock.ends[-1] - clock.ends[0]
    return float(config.batch * sum(lengths[1:]) / seconds)


class _Clock(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def _constant(completions: Sequence[Any], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)
