"""The writer is optimised against learned shoppers: group-relative policy optimisation, by trl's GRPOTrainer."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hawker.agents.writer_config import GrpoConfig, check
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_forward import read_prompts_once
from hawker.agents.writer_reward import Answers, Preferences, WriterReward
from hawker.agents.writer_training import (
    Progress,
    Stage,
    adapter,
    agreement,
    arguments,
    dataset,
    digest_of,
    fine_tune,
    network,
    training,
    untouched,
    write_stage,
)
from hawker.policies.guardrails import Guardrails
from hawker.policies.prefix import RAREST
from hawker.policies.writer import Writer, prompt_of
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.run import Run

CALIBRATION = 64
"""Lines of the first writer that others are held against."""


def grpo(
    run: Run,
    model: str,
    assignments: Sequence[Assignment],
    answers: Answers,
    guardrails: Guardrails,
    config: GrpoConfig,
    resume: bool,
    progress: Progress,
    preferences: Preferences | None = None,
    base: str | None = None,
    answers_digest: str = "",
) -> tuple[Path, dict[str, Any]]:
    """Optimise a writer against learned shoppers and write it to RUN/writer/grpo.

    The reward is `hawker.agents.writer_reward.WriterReward`; the KL divergence is from ``model`` itself, whose weights
    the adapter leaves as they are (with rank 0 a second copy is read from its directory).

    Args:
        run: Gets ``writer/grpo``, its checkpoint and its curves.
        model: The writer to begin with: RUN/writer/sft, say.
        assignments: What there is to write for; those that the steps need are drawn evenly.
        answers: The learned shoppers.
        guardrails: Rules of copy.
        config: How to train.
        resume: Go on from the stage's checkpoint, if it has one.
        progress: Called after each step.
        preferences: A model of preferences, to stand beside the shoppers.
        base: The untouched model, the judge of fluency; by default the one that ``model`` was trained from.
        answers_digest: What the shoppers' answers depend on; a checkpoint must agree on it.

    Returns:
        The model's directory and the report (``train.json``); ``seconds`` is that of all steps, ``reward_seconds``
        what of it went into rewards, ``tokens`` how many were generated.

    Raises:
        InputError: No such model, nothing to write for, no vLLM, answers that are not finite, or as in
            `hawker.agents.writer_training.fine_tune`.
    """
    check(config)
    if not assignments:
        raise InputError("nothing to write for", where="writer grpo")
    device = resolve_device(config.device)
    if config.vllm and (importlib.util.find_spec("vllm") is None or device.type != "cuda"):
        raise InputError("vLLM needs a GPU and its package", where="vllm", remedy="pip install vllm, or leave it out")
    stage, writer = Stage(run, "grpo"), Writer.load(model, device)
    judge = Writer.load(untouched(model) if base is None else base, device)
    tokenizer, path = writer.tokenizer, writer.path
    reward = WriterReward(assignments, answers, guardrails, judge, writer.ends, config, preferences)
    order = _order(len(assignments), config)
    rows = [{"prompt": prompt_of(tokenizer, assignments[i].brief), "row": i} for i in order]
    depends = [answers_digest, guardrails.digest, "" if preferences is None else preferences.digest]
    agree = agreement(config, model, digest_of([rows, [each.item_id for each in assignments], depends]))
    some = list(dict.fromkeys(order))[: max(1, CALIBRATION // config.group)]
    said = writer.write([assignments[i].brief for i in some], config.group, config.temperature, config.seed)
    level = reward.calibrate(some, said)
    del writer  # its memory is needed
    with training(stage) as scratch:
        from trl.trainer.grpo_config import GRPOConfig as TrlConfig
        from trl.trainer.grpo_trainer import GRPOTrainer

        trl_config = TrlConfig(
            **arguments(config, scratch),
            num_generations=config.group,
            max_completion_length=config.tokens,
            temperature=config.temperature,
            beta=config.beta,
            scale_rewards="none",  # they are in units of spread already, and a group of like lines has little to teach
            shuffle_dataset=False,  # the rows are in order, and a resumed run is to go on in the same one
            mask_truncated_completions=False,  # with few tokens it would mask most lines: they are punished instead
            use_vllm=config.vllm,
            generation_kwargs={"epsilon_cutoff": RAREST} if device.type != "cpu" and not config.vllm else None,
        )
        trainer: Any = GRPOTrainer(
            model=network(path, config),
            reward_funcs=reward,
            args=trl_config,
            train_dataset=dataset(rows),
            processing_class=tokenizer,
            peft_config=adapter(config.rank),
        )
        read_prompts_once(trainer, config.temperature)
        report = fine_tune(trainer, stage, agree, resume, progress)
        history = report["history"]
        report |= {"stage": "grpo", "model": model, "seed": config.seed, "level": asdict(level)}
        report["reward_seconds"] = round(sum(entry["seconds/reward"] for entry in history), 3)
        report["tokens"] = round(config.batch * sum(entry["completions/mean_length"] for entry in history))
        write_stage(stage, trainer, model, config, report)
    return stage.out, report


def _order(n: int, config: GrpoConfig) -> list[int]:
    """Return the assignment of each group of each step: all of them shuffled, again and again."""
    wanted = config.steps * config.batch // config.group
    generator = np.random.default_rng(config.seed)
    shuffled = [generator.permutation(n) for _ in range(-(-wanted // n))]
    return [int(i) for i in np.concatenate(shuffled)[:wanted]]
