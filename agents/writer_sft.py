"""The writer learns what a shop's copy sounds like: supervised fine-tuning on logged lines, by trl's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hawker.agents.writer_config import SftConfig, TuneConfig, check
from hawker.agents.writer_data import LoggedLine, draw_lines
from hawker.agents.writer_forward import read_prompts_once
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
    write_stage,
)
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import answer_of, load_tokenizer, prompt_of
from hawker.shop.models import find_model
from hawker.shop.run import Run


def sft(
    run: Run,
    model: str,
    lines: Sequence[LoggedLine],
    guardrails: Guardrails,
    config: SftConfig,
    resume: bool,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune a language model on logged lines and write it to RUN/writer/sft.

    A step's rows are drawn as in `hawker.agents.writer_data.draw_lines`, so that lines that did well are learned
    from more often.

    Args:
        run: Gets ``writer/sft``, its checkpoint and its curves.
        model: A fetched model's name, a directory or a hub id.
        lines: What the log has shown.
        guardrails: Rules of copy; lines that break one are not learned from.
        config: How to train.
        resume: Go on from the stage's checkpoint, if it has one.
        progress: Called after each step.

    Returns:
        The model's directory and the report (``train.json``).

    Raises:
        InputError: No such model, no lines that may be shown, or as in `hawker.agents.writer_training.fine_tune`.
    """
    check(config)
    stage = Stage(run, "sft")
    path = find_model(model)
    drawn = draw_lines(lines, guardrails, config.steps * config.batch, config.sharpness, config.together, config.seed)
    rows = [(drew.brief, drew.line) for drew in drawn]
    return tune(stage, model, load_tokenizer(path), rows, config, resume, progress, {"lines": len(lines)})


def tune(
    stage: Stage,
    model: str,
    tokenizer: Any,
    rows: Sequence[tuple[Brief, str]],
    config: TuneConfig,
    resume: bool,
    progress: Progress,
    told: dict[str, Any],
    whole: TuneConfig | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune a language model on briefs and their lines, in the order in which they come.

    The loss is that of a line's tokens and of its end; the prompt's tokens do not count.

    Args:
        stage: Gets the model, its checkpoint and its curves.
        model: The model to begin with.
        tokenizer: Its tokenizer.
        rows: What every step learns from, ``config.batch`` rows a step; those of one brief, in a row, share its prompt.
        config: How to train.
        resume: Go on from the stage's checkpoint, if it has one.
        progress: Called after each step.
        told: What else the report tells.
        whole: What is written down beside the model as its config, where ``config`` is of a part of the training.

    Returns:
        The model's directory and the report (``train.json``).

    Raises:
        InputError: As in `hawker.agents.writer_training.fine_tune`.
    """
    asked = [{"prompt": prompt_of(tokenizer, brief), "completion": answer_of(tokenizer, line)} for brief, line in rows]
    agree = agreement(config, model, digest_of(asked))
    with training(stage) as scratch:
        from trl.trainer.sft_config import SFTConfig as TrlConfig
        from trl.trainer.sft_trainer import SFTTrainer

        trainer: Any = SFTTrainer(
            model=network(find_model(model), config),
            args=TrlConfig(
                **arguments(config, scratch),
                max_length=None,
                completion_only_loss=True,
                train_sampling_strategy="sequential",  # lines of one brief stand together
            ),
            train_dataset=dataset(asked),
            processing_class=tokenizer,
            peft_config=adapter(config.rank),
        )
        read_prompts_once(trainer)
        report = fine_tune(trainer, stage, agree, resume, progress)
        report |= {"stage": stage.name, "model": model, "seed": config.seed, **told}
        write_stage(stage, trainer, model, whole or config, report)
    return stage.out, report
