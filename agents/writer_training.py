"""What every stage of the writer's training shares: trl made quiet, checkpoints, resuming, weights at the end.

trl's trainers do the learning. Around them: no network, no global random state, a checkpoint that is whole or not
there, and nothing written once a number is not finite.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging as log
import math
import random
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback

from hawker.agents.writer_config import TuneConfig
from hawker.policies.writer import adapted, dtype_on, load_causal, load_tokenizer, save_model
from hawker.shop.artefacts import WRITING, find_directory, read_json, verify_directory, write_directory, write_json
from hawker.shop.config import save_config, to_dict
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.models import SOURCE, find_model, model_digest
from hawker.shop.run import Run
from hawker.simulators.store import META

MADE_BY = "made_by.json"
LIBRARIES = ("trl", "transformers", "datasets", "accelerate", "peft", "torch")
"""Whose warnings are about their own inner life."""

Progress = Callable[[int, int, float], None]
"""Called after each step with steps so far, steps in all, and the step's reward, or its loss where there is none."""


@dataclass(frozen=True)
class Stage:
    """The places of one stage of the writer's training in a run.

    Attributes:
        run: The run.
        name: The stage: sft, dpo, reward, rwr or grpo.
    """

    run: Run
    name: str

    @property
    def out(self) -> Path:
        """What it made: a model with its tokenizer, config and report."""
        return self.run.path / "writer" / self.name

    @property
    def checkpoint(self) -> Path:
        """The last state of training."""
        return self.run.path / "writer" / f"{self.name}-checkpoint"

    @property
    def tensorboard(self) -> Path:
        """Learning curves, for TensorBoard."""
        return self.run.tensorboard / f"writer-{self.name}"

    @property
    def kind(self) -> str:
        """What kind of artefact it makes."""
        return "reward model" if self.name == "reward" else "language model"


def digest_of(rows: Sequence[Any]) -> str:
    """Return the SHA-256 of rows that JSON can hold: what a checkpoint's data must agree on."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def untouched(model: str) -> str:
    """Return the model that a writer was trained from in the first place; ``model`` itself where it is untouched."""
    source = find_model(model) / SOURCE
    return str(read_json(source).get("made_from", model)) if source.is_file() else model


def adapter(rank: int, kind: str = "CAUSAL_LM") -> Any:
    """Return the LoRA adapter of a rank; None for rank 0, which trains every weight."""
    from peft import LoraConfig

    head = {"modules_to_save": ["score"]} if kind == "SEQ_CLS" else {}
    lora: Any = LoraConfig  # its fields are too many for a type checker to see through
    return None if rank == 0 else lora(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type=kind, **head)


def network(path: Path, config: TuneConfig) -> Any:
    """Return a causal language model to train.

    Below an adapter it stays as it is: on a CPU it then computes in what is fast there (`dtype_on`), and the adapter in
    float32. On a GPU autocast sees to it.
    """
    device = resolve_device(config.device)
    frozen = config.rank > 0 and device.type == "cpu"
    return load_causal(path, dtype_on(device, path) if frozen else torch.float32)


def dataset(rows: Sequence[dict[str, Any]]) -> Any:
    """Return rows as trl takes them."""
    return _datasets().Dataset.from_list(list(rows))


def arguments(config: TuneConfig, scratch: Path) -> dict[str, Any]:
    """Return what trl's configs share."""
    device = resolve_device(config.device)
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return {
        "output_dir": str(scratch),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.rows,
        "gradient_accumulation_steps": config.batch // config.rows,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "linear" if config.decay else "constant",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # or a loss that is not finite would be logged as the one before
        "save_strategy": "steps",
        "save_steps": config.checkpoint_every,
        "seed": config.seed,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device.type == "cpu",
        "bf16": bf16,
        "gradient_checkpointing": device.type == "cuda",  # a GPU's memory is the narrower place
        "dataloader_pin_memory": device.type == "cuda",
    }


@contextlib.contextmanager
def training(stage: Stage) -> Iterator[Path]:
    """Yield a scratch directory; in this block trl is quiet and offline, and global random states are put back.

    Raises:
        InputError: Nothing can be written there, memory ran out, or the writer's probabilities are not finite.
    """
    try:
        stage.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write here ({error.strerror})", where=stage.out.parent) from None
    # Named so that what a killed process leaves is swept by whoever writes there next.
    prefix, parent = f".{stage.out.name}.{WRITING}", stage.out.parent
    try:
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as scratch,
            _quiet(),
            _own_randomness(),
        ):
            yield Path(scratch)
    except torch.OutOfMemoryError:
        raise InputError("not enough memory", where=f"writer {stage.name}", remedy="lower --rows or --rank") from None
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        remedy = "lower --learning-rate and train anew, or --resume from the last checkpoint"
        raise InputError("the writer's probabilities are not finite", where=stage.name, remedy=remedy) from None


def fine_tune(trainer: Any, stage: Stage, made_by: dict[str, Any], resume: bool, progress: Progress) -> dict[str, Any]:
    """Run a trl trainer to its end and return what happened: history (one dict a step) and seconds.

    Args:
        trainer: One of trl's.
        stage: Where checkpoints and curves go.
        made_by: What a checkpoint must agree on to be resumed.
        resume: Go on from the stage's checkpoint, if it has one.
        progress: Called after each step.

    Raises:
        InputError: The checkpoint is damaged or was made by something else, or a loss is not finite. The last
            checkpoint is as it was.
    """
    begun = None
    if resume and find_directory(stage.checkpoint).exists():
        begun = verify_directory(stage.checkpoint, "writer checkpoint")
        if read_json(begun / MADE_BY) != made_by:
            what = "the checkpoint was made with other options, another model or other data"
            raise InputError(what, where=begun, remedy="repeat them, or train anew without --resume")
    else:
        shutil.rmtree(stage.tensorboard, ignore_errors=True)  # or old curves would lie over the new ones
    trainer.remove_callback(PrinterCallback)
    watch = _Watch(stage, made_by, progress)
    trainer.add_callback(watch)
    try:
        trainer.train(resume_from_checkpoint=None if begun is None else str(begun))
    finally:
        watch.close()
    history = [_plain(entry) for entry in trainer.state.log_history if "loss" in entry]
    seconds = sum(entry.get("seconds/step", 0.0) for entry in history)
    return {"history": history, "seconds": round(seconds, 3), "steps": trainer.state.global_step}


def write_stage(stage: Stage, trainer: Any, model: str, config: TuneConfig, report: dict[str, Any]) -> None:
    """Write what a stage has made: the model with the adapter merged in, tokenizer, config and report."""
    trained = trainer.accelerator.unwrap_model(trainer.model)
    with write_directory(stage.out, stage.kind) as scratch:
        if hasattr(trained, "merge_and_unload"):
            trained = _merged(trained, find_model(model))
        save_model(trained, load_tokenizer(find_model(model)), scratch)
        write_json(scratch / SOURCE, {"model": model, "made_from": untouched(model), **_learned_from(stage.run)})
        save_config(config, scratch / "config.yaml")
        write_json(scratch / "train.json", report)


def _learned_from(run: Run) -> dict[str, str]:
    """Return the digest of the log that a run has learned from, where it has."""
    meta = run.shoppers / META
    return {"logs": read_json(meta)["logs_digest"]} if meta.is_file() else {}


def _merged(trained: Any, path: Path) -> Any:
    """Return a model of peft's with its adapter merged into its weights, which are float32 again."""
    if trained.dtype == torch.float32:
        return trained.merge_and_unload()
    with tempfile.TemporaryDirectory() as folder:
        trained.save_pretrained(folder)
        return adapted(path, Path(folder))


def agreement(config: TuneConfig, model: str, data: str) -> dict[str, Any]:
    """Return what a checkpoint must agree on to be resumed; how often it is written may change."""
    same = {name: value for name, value in to_dict(config).items() if name != "checkpoint_every"}
    return {"config": same, "model": model_digest(find_model(model)), "data": data}


class _Watch(TrainerCallback):
    """Times steps, reports them, keeps checkpoints whole, and stops where a number is not finite."""

    def __init__(self, stage: Stage, made_by: dict[str, Any], progress: Progress) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._stage, self._made_by, self._progress = stage, made_by, progress
        self._curves = SummaryWriter(str(stage.tensorboard))
        self._started, self._took = time.perf_counter(), 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._took = time.perf_counter() - self._started

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise InputError(
                    f"the {name.replace('_', ' ')} is not finite at step {state.global_step}",
                    where=f"writer {self._stage.name}",
                    remedy="lower --learning-rate and train anew; the last checkpoint is as it was",
                )
        state.log_history[-1]["seconds/step"] = logs["seconds/step"] = self._took
        for name, value in _plain(logs).items():
            self._curves.add_scalar(name, value, state.global_step)
        reward = logs.get("reward")  # None where no line of the batch has one
        self._progress(state.global_step, state.max_steps, float(logs["loss"] if reward is None else reward))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        with write_directory(self._stage.checkpoint, "writer checkpoint") as scratch:
            for path in written.iterdir():
                if path.name not in ("training_args.bin", "README.md"):  # a pickle that nothing reads, and prose
                    shutil.move(path, scratch / path.name)
            write_json(scratch / MADE_BY, self._made_by)
        shutil.rmtree(written)

    def close(self) -> None:
        self._curves.close()


def _plain(entry: dict[str, Any]) -> dict[str, float]:
    """Return what is a finite number."""
    numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _datasets() -> Any:
    return importlib.import_module("datasets")  # which is untyped


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from huggingface_hub import constants
    from transformers.utils import logging

    datasets = _datasets()
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    more_bars = datasets.are_progress_bars_disabled()
    loggers = {name: log.getLogger(name) for name in LIBRARIES}
    levels = {name: logger.level for name, logger in loggers.items()}
    offline = constants.HF_HUB_OFFLINE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for logger in loggers.values():
        logger.setLevel(log.ERROR)
    constants.HF_HUB_OFFLINE = True  # everything is here already, and trl would tell its makers of every training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
        if not more_bars:
            datasets.enable_progress_bars()
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Put back the global random states, which trl seeds and draws from."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
