"""Return models: when shoppers come back, and how often, learned from purchases over time alone.

An ensemble of unlike hazard models (`hawker.simulators.hazards`), fitted by right-censored likelihood to whole
histories; its forecast is the mean of theirs, which came nearer to the truth than any of them (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hawker.shop.artefacts import read_json, write_json
from hawker.shop.config import from_dict, to_dict
from hawker.shop.errors import InputError
from hawker.simulators.hazards import DormantClasses, EventGru, Forecast, Record, Truncations, repeat_share
from hawker.simulators.histories import Histories

WEIGHTS, META = "returns.safetensors", "returns.json"

_FORECAST_ROWS = 1 << 18  # shoppers times draws that are simulated at once

Member = EventGru | DormantClasses | Truncations
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ReturnConfig:
    """How return models are learned.

    Attributes:
        of_each: Members of each of the three kinds, which differ in their first weights.
        hidden: Size of the recurrent state and of the hidden layers.
        classes: Latent classes of shoppers.
        steps: Gradient steps of a member.
        batch: Most shoppers in a step.
        learning_rate: First step size of the networks; it falls to zero along a cosine. Latent classes, which
            have few parameters, take steps five times as large.
        weight_decay: Pull of the networks' weights towards zero, per step and unit of step size.
    """

    of_each: int = 2
    hidden: int = 16
    classes: int = 4
    steps: int = 80
    batch: int = 4096
    learning_rate: float = 0.02
    weight_decay: float = 0.1


class ReturnModel:
    """Fitted members and what they need to read a history.

    Args:
        members: The models.
        config: How they were fitted.
        period_days: Days of a period.
        value_mean: Mean of the log value of a period with events.
        value_scale: Its standard deviation, above 0.
    """

    def __init__(
        self, members: Sequence[Member], config: ReturnConfig, period_days: int, value_mean: float, value_scale: float
    ) -> None:
        self.members, self.config, self.period_days = tuple(members), config, period_days
        self.value_mean, self.value_scale = value_mean, value_scale

    def record(self, histories: Histories) -> Record:
        """Return histories as tensors on the model's device.

        Raises:
            InputError: Their periods are of another length than those the model was fitted to.
        """
        if histories.period_days != self.period_days:
            raise InputError(
                "periods of another length",
                where="period_days",
                got=histories.period_days,
                expected=f"{self.period_days}, as the model was fitted",
            )
        device = next(self.members[0].parameters()).device
        return _record(histories, self.value_mean, self.value_scale, device)

    def forecast(
        self, histories: Histories, periods: int, *, draws: int = 100, seed: int = 0, member: int | None = None
    ) -> Forecast:
        """Forecast the periods after the end of histories.

        Args:
            histories: What is known; every period counts, the last ones without events too.
            periods: How far to look, in periods, 1 or more.
            draws: Futures that are simulated for each shopper where there is no closed form, 1 or more.
            seed: Decides them.
            member: The member to ask; their mean unless told.

        Returns:
            Expected events (days with an event) and the probability of at least one, each (n,) on the model's device.

        Raises:
            InputError: No such number of periods or draws; periods of another length.
        """
        for name, number in (("periods", periods), ("draws", draws)):
            if number < 1:
                raise InputError("not a positive number", where=name, got=number)
        record = self.record(histories)
        chosen = self.members if member is None else [self.members[member]]
        generator = torch.Generator(record.events.device).manual_seed(seed)
        block = max(1, _FORECAST_ROWS // draws)
        parts = []
        with torch.inference_mode():
            for first in range(0, len(histories), block):
                part = Record(*(field[first : first + block] for field in record))
                found = [model.forecast(part, periods, draws, generator) for model in chosen]
                parts.append(Forecast(*(torch.stack(field).mean(0) for field in zip(*found, strict=True))))
        return Forecast(*(torch.cat(field) for field in zip(*parts, strict=True)))

    def save(self, directory: Path) -> None:
        """Write the model into a directory that is being written (`hawker.shop.artefacts.write_directory`)."""
        weights = {name: value.cpu().contiguous() for name, value in nn.ModuleList(self.members).state_dict().items()}
        save_file(weights, directory / WEIGHTS)
        meta = {
            "config": to_dict(self.config),
            "period_days": self.period_days,
            "value_mean": self.value_mean,
            "value_scale": self.value_scale,
            "repeat": self.members[0].repeat,
        }
        write_json(directory / META, meta)


def fit_returns(
    histories: Histories, config: ReturnConfig, seed: int, device: torch.device, progress: Progress
) -> ReturnModel:
    """Learn when shoppers come back.

    Args:
        histories: What is known. Every period after a shopper's first event counts, to the end of the record.
        config: How to learn.
        seed: Decides first weights and the order of shoppers.
        device: Where to compute.
        progress: Called with a line after each member.

    Raises:
        InputError: No shopper has a period after the one of her first event, none ever comes back, or an option of the
            config is not positive.
    """
    for name in ("of_each", "hidden", "classes", "steps", "batch", "learning_rate"):
        if getattr(config, name) <= 0:
            raise InputError("not a positive number", where=name, got=getattr(config, name))
    seen = histories.count[np.arange(histories.periods) > histories.birth[:, None]]
    if seen.size == 0 or not seen.any():
        raise InputError(
            "nobody comes back in a later period" if seen.size else "no period follows a first event",
            where="histories",
            got=f"{len(histories):,} shoppers, {histories.periods} periods of {histories.period_days} days",
            expected="shoppers with events in several periods",
            remedy="take a longer record or shorter periods",
        )
    known = histories.value[np.isfinite(histories.value)]
    mean, scale = (float(known.mean()), max(float(known.std()), 1e-3)) if known.size else (0.0, 1.0)
    record = _record(histories, mean, scale, device)
    draws = torch.Generator().manual_seed(seed)
    weights = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=draws)))
    members = _members(config, repeat_share(torch.from_numpy(seen)), weights)
    for i, member in enumerate(members):
        loss = _fit_member(member.to(device), record, config, draws)
        progress(f"return model {i + 1} of {len(members)} ({type(member).__name__}): {loss:.4f} nats a shopper")
    return ReturnModel(members, config, histories.period_days, mean, scale)


def load_returns(directory: Path, device: torch.device) -> ReturnModel:
    """Read a model that `ReturnModel.save` wrote; its artefact's checksums are for the caller to verify.

    Raises:
        InputError: Files are missing or of another form.
    """
    meta: dict[str, Any] = read_json(directory / META)
    try:
        config = from_dict(ReturnConfig, meta["config"], directory / META)
        members = _members(config, float(meta["repeat"]), torch.Generator())
        nn.ModuleList(members).load_state_dict(load_file(directory / WEIGHTS))
        numbers = (int(meta["period_days"]), float(meta["value_mean"]), float(meta["value_scale"]))
        return ReturnModel([member.to(device) for member in members], config, *numbers)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("no return model of this version", where=directory, got=str(error).splitlines()[0]) from None


def _record(histories: Histories, mean: float, scale: float, device: torch.device) -> Record:
    value = np.nan_to_num((histories.value - np.float32(mean)) / np.float32(scale))
    count, birth = torch.from_numpy(histories.count), torch.from_numpy(histories.birth)
    return Record(count.to(device), torch.from_numpy(value).to(device), birth.to(device))


def _members(config: ReturnConfig, repeat: float, generator: torch.Generator) -> list[Member]:
    members: list[Member] = []
    for _ in range(config.of_each):
        members += [EventGru(config.hidden, repeat, generator), DormantClasses(config.classes, repeat, generator)]
        members += [Truncations(config.hidden, repeat, generator)]
    return members


def _fit_member(member: Member, record: Record, config: ReturnConfig, generator: torch.Generator) -> float:
    """Maximise the likelihood; return the last loss, nats a shopper."""
    network = not isinstance(member, DormantClasses)
    rate, decay = (config.learning_rate, config.weight_decay) if network else (5 * config.learning_rate, 0.0)
    if isinstance(member, Truncations):
        member.standardise(record)
    levels = [parameter for parameter in member.parameters() if parameter.ndim < 2]
    weights = [parameter for parameter in member.parameters() if parameter.ndim >= 2]
    groups = [{"params": weights, "weight_decay": decay}, {"params": levels, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    loss = torch.zeros(())
    for _ in range(config.steps):
        part = record
        if len(record.birth) > config.batch:
            rows = torch.randperm(len(record.birth), generator=generator)[: config.batch].to(record.birth.device)
            part = Record(*(field[rows] for field in record))
        loss = -member.log_likelihood(part).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return float(loss.detach())
