"""Training the members of an ensemble, side by side where the log is long."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import wait

import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.shop.devices import mixed_precision
from hawker.shop.lines import Lines
from hawker.simulators.appeal import Architecture, Recorded
from hawker.simulators.config import FitConfig
from hawker.simulators.likelihood import negative_log_likelihood, predict_rows
from hawker.simulators.rows import EncodedLog, Rows
from hawker.simulators.shopper import ShopperModel
from hawker.simulators.taste_classes import TasteClasses

HISTORY_EPOCHS = 8
"""Most passes over a log whose shoppers have a history; the step size falls to zero over them."""

LONG = 100_000
"""Rows from which on members are trained in processes of their own."""


@dataclass(frozen=True)
class Member:
    """What one member is made of.

    Attributes:
        architecture: Its widths.
        seed: Of its first weights and of the order of rows.
        drawn: The shoppers (pages, where there is no timeline) it learns from, with repeats.
        left_out: Those it stops by.
    """

    architecture: Architecture
    seed: int
    drawn: Tensor
    left_out: Tensor


@dataclass(frozen=True, eq=False)
class Trainer:
    """What the members of an ensemble have in common: their log, their shop, how to fit, and where to compute."""

    log: EncodedLog
    builder: ContextBuilder
    size: int
    recorded: Recorded
    lines: Lines | None
    config: FitConfig
    device: torch.device
    tastes: TasteClasses | None = None

    def build(self, member: Member) -> tuple[ShopperModel, torch.Generator]:
        """Return an untrained member, and the generator that its training goes on with."""
        rows, generator = self.log.rows, torch.Generator().manual_seed(member.seed)
        # One pseudo-click keeps the starting click rate inside (0, 1) where a log has no click or nothing else.
        ctr = (float(rows.clicked.sum()) + 1.0) / (len(rows) + 2.0)
        shape = (self.builder, self.size, member.architecture, ctr, generator, self.recorded, self.lines)
        model = ShopperModel(*shape).to(self.device)
        if self.tastes is not None and self.lines is not None:
            model.hear(self.tastes)
        return model, generator

    def train(self, member: Member) -> tuple[dict[str, Tensor], int, float]:
        """Return a trained member's weights, its epochs, and its loss on those left out."""
        model, generator = self.build(member)
        epochs, loss = fit_member(model, self.log, member.drawn, member.left_out, self.config, generator)
        return model.state_dict(), epochs, loss


def train_members(trainer: Trainer, members: list[Member]) -> Iterator[tuple[ShopperModel, int, float]]:
    """Yield each member trained, with its epochs and its loss on those left out.

    On the CPU, and where a log is long, each core trains a member in a process with one thread: the tensors of a step
    are too small for a second thread to pay. The weights do not depend on how many cores there are.
    """
    workers = min(available_cores(), len(members))
    if trainer.device.type != "cpu" or len(trainer.log.rows) < LONG or workers < 2:
        found = map(trainer.train, members)
        yield from _filled(trainer, members, found)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_start_worker, initargs=(trainer,)) as pool:
        try:
            yield from _filled(trainer, members, pool.map(_train_here, members))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _filled(
    trainer: Trainer, members: list[Member], found: Iterator[tuple[dict[str, Tensor], int, float]]
) -> Iterator[tuple[ShopperModel, int, float]]:
    for member, (weights, epochs, loss) in zip(members, found, strict=True):
        model, _ = trainer.build(member)
        model.load_state_dict(weights)
        yield model, epochs, loss


_here: Trainer | None = None


def _start_worker(trainer: Trainer) -> None:
    global _here  # noqa: PLW0603 - a worker has one job: the log is sent to it once
    _here = trainer
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once its parent has: a worker must not outlive a killed fit."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _train_here(member: Member) -> tuple[dict[str, Tensor], int, float]:
    assert _here is not None
    return _here.train(member)


def shopper_batches(
    rows: Rows, units: Tensor, size: int, generator: torch.Generator | None, device: torch.device
) -> Iterator[Rows]:
    """Yield whole shoppers of a log, about ``size`` rows at a time, in random order where a generator is given.

    Args:
        rows: The log.
        units: Shoppers of its timeline, or pages where it has none, shape (m,); they may repeat.
        size: Rows of a batch.
        generator: Decides the order.
        device: Where to put them.
    """
    for some in unit_batches(rows, units, size, generator):
        yield of_units(rows, some, device)


def of_units(rows: Rows, units: Tensor, device: torch.device) -> Rows:
    """Return the rows of those shoppers, or pages where there is no timeline, on a device."""
    taken = rows.take(units) if rows.time is None else rows.take(rows.time.pages(units), rows.time.take(units))
    return taken.to(device)


def unit_batches(rows: Rows, units: Tensor, size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Yield the shoppers of each batch; arguments as in ``shopper_batches``."""
    if not len(units):
        return
    if generator is not None:
        units = units[torch.randperm(len(units), generator=generator)]
    if rows.time is None:
        yield from units.split(size)
        return
    pages_of = (rows.time.first[1:] - rows.time.first[:-1])[units]
    # Neighbours in length share a batch, so that little of it is padding; the batches then come in random order.
    block = max(1, round(8 * size / max(float(pages_of.sum()) / len(units) * len(rows) / len(rows.shopper), 1.0)))
    for some in units.split(block):
        length, order = (rows.time.first[1:] - rows.time.first[:-1])[some].sort(stable=True)
        number = (length.cumsum(0) * (len(rows) / len(rows.shopper)) / size).long()
        parts = [part for part in some[order].split(torch.bincount(number).tolist()) if len(part)]
        turns = torch.arange(len(parts)) if generator is None else torch.randperm(len(parts), generator=generator)
        yield from (parts[turn] for turn in turns.tolist())


def fit_member(
    model: ShopperModel, log: EncodedLog, drawn: Tensor, left_out: Tensor, config: FitConfig, generator: torch.Generator
) -> tuple[int, float]:
    """Maximise the posterior by Adam with early stopping; leave the best weights in ``model``."""
    device = model.position.device
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    best_loss, best_epoch = math.inf, 0
    best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    ends = log.rows.start if log.rows.time is None else log.rows.start[log.rows.time.first]
    n_rows = int(torch.diff(ends)[drawn].sum())
    size, epochs = config.batch, config.epochs
    if log.rows.time is not None:
        # A hundred steps an epoch or more: weights of histories need them.
        size, epochs = min(max(n_rows // 100, 256), config.batch), min(config.epochs, HISTORY_EPOCHS)
    precisions = [(parameter, 1.0 / scale**2) for parameter, scale in _prior_scales(model, config)]
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 - epoch / epochs)
    for epoch in range(1, epochs + 1):
        for rows in shopper_batches(log.rows, drawn, size, generator, device):
            keep = (torch.rand(len(model.item_vectors), generator=generator) >= config.id_dropout).float().to(device)
            with mixed_precision(device):  # of what is learned alone: what stops training, and what is fitted, is exact
                predicted = predict_rows(model, rows, keep, clicked_only=True)
            loss = negative_log_likelihood(model, rows, predicted) / len(rows)
            optimizer.zero_grad()
            loss.backward()
            _add_prior(precisions, n_rows)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        decay.step()
        held_out = _mean_loss(model, log.rows, left_out)
        if held_out < best_loss:
            best_loss, best_epoch = held_out, epoch
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        if epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(best_weights)
    return best_epoch, best_loss


@torch.no_grad()
def _mean_loss(model: ShopperModel, rows: Rows, units: Tensor) -> float:
    total, n = torch.zeros((), dtype=torch.float64), 0
    for batch in shopper_batches(rows, units, 1 << 16, None, model.position.device):
        total += negative_log_likelihood(model, batch, predict_rows(model, batch, clicked_only=True)).double().cpu()
        n += len(batch)
    return float(total) / n if n else math.nan


HISTORY_SCALES = {
    "match": 1.0,
    "conversion": 0.1,
    "position": 1.0,
    "offer_effect": 0.5,
    "class_weights": 0.3,
    "own_taste": 0.02,
    "item_taste": 0.05,
    "line_taste": 0.1,
    "memory.item": 0.4,
    "memory.line": 0.5,
    "mood": 0.08,
    "classes": 0.3,
    "memory": 0.25,
    "shift": 0.5,
    "body": 0.1,
    "taste": 0.1,
    "": 0.2,
}
"""Prior standard deviations of the weights of shoppers with a history, by a part of their names; the first fits."""


def _prior_scales(model: ShopperModel, config: FitConfig) -> Iterator[tuple[nn.Parameter, float]]:
    """Yield weights with the standard deviation of their prior around no effect: few clicks stay close to the mean."""
    for name, parameter in model.named_parameters():
        if name.endswith(("base", "level", "amount_log_spread", "fade_page", "fade_day", "gain", "wane")):
            continue
        scale = config.taste_scale if "taste" in name else config.effect_scale
        if model.memory is not None:
            scale = next(value for part, value in HISTORY_SCALES.items() if part in name)
        yield parameter, scale


@torch.no_grad()
def _add_prior(precisions: list[tuple[nn.Parameter, float]], n_rows: int) -> None:
    """Add the gradient of the prior's mean per row to what ``backward`` left: faster than recording it."""
    for parameter, precision in precisions:
        if parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=precision / n_rows)
