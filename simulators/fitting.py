"""Learning shoppers from logs: two ensembles, one to train strategies against and a judge that knows other shoppers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hawker.shop.context import ContextBuilder
from hawker.simulators.config import FitConfig
from hawker.simulators.shopper import ARCHITECTURES, Ensemble, ShopperModel, calibrated, log_odds
from hawker.simulators.split import bootstrap_rows, later_rows

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Rows:
    """Impressions as tensors: shopper (n, D), item (n,), position (n,), affinity with the item (n,), clicked (n,)."""

    shopper: Tensor
    item: Tensor
    position: Tensor
    affinity: Tensor
    clicked: Tensor

    @classmethod
    def from_impressions(cls, impressions: pd.DataFrame, builder: ContextBuilder, device: torch.device) -> Rows:
        """Encode log rows and put them on ``device``."""
        context = builder.from_impressions(impressions)
        item = builder.catalog.index(impressions["item_id"], "impressions")
        own = np.take_along_axis(context.affinity, item[:, None], axis=1)[:, 0]
        arrays = (context.shopper, item, impressions["position"].to_numpy(np.int64), own)
        clicked = impressions["clicked"].to_numpy(np.float32)
        return cls(*(torch.from_numpy(np.array(array)).to(device) for array in (*arrays, clicked)))

    def take(self, rows: Tensor) -> Rows:
        """Return the rows of those numbers."""
        return Rows(self.shopper[rows], self.item[rows], self.position[rows], self.affinity[rows], self.clicked[rows])

    def __len__(self) -> int:
        return len(self.item)


def click_log_probability(model: ShopperModel, rows: Rows, keep_own: Tensor | None = None) -> Tensor:
    """Return log P(click) of each logged impression, shape (n,)."""
    odds = model.log_odds(rows.shopper, rows.item[:, None], rows.affinity[:, None], keep_own).squeeze(1)
    return nn.functional.logsigmoid(odds) + model.log_examination()[rows.position]


def log_loss(log_probability: Tensor, clicked: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of clicks in nats, a scalar."""
    bounded = log_probability.clamp(max=-1e-6)
    return -(clicked * bounded + (1 - clicked) * torch.log1p(-bounded.exp())).mean()


def fit_ensemble(
    impressions: pd.DataFrame,
    builder: ContextBuilder,
    size: int,
    config: FitConfig,
    first_architecture: int,
    generator: np.random.Generator,
    device: torch.device,
    progress: Progress,
) -> Ensemble:
    """Fit and calibrate an ensemble on some rows of a log.

    Each member sees its own bootstrap of the rows and stops by the rows left out of it. The last rows in time then
    calibrate the ensemble, each predicted only by the members whose bootstrap left it out, so that no click is both
    learned from and calibrated on, and none has to be kept from learning.

    Args:
        impressions: The rows to learn from.
        builder: The shop's contexts and catalog.
        size: Positions of a page, K.
        config: How to fit.
        first_architecture: Where in ``ARCHITECTURES`` the members start to take turns.
        generator: Source of bootstraps and seeds.
        device: Where to compute.
        progress: Called with a line after each member.
    """
    rows = Rows.from_impressions(impressions, builder, device)
    late = later_rows(impressions, config.calibration_share)
    members, unseen = [], []
    for i in range(config.members):
        drawn, left_out = bootstrap_rows(impressions, generator)
        torch_generator = torch.Generator().manual_seed(int(generator.integers(2**62)))
        # One pseudo-click keeps the starting click rate inside (0, 1) where a log has no click or nothing else.
        ctr = (float(rows.clicked.sum()) + 1.0) / (len(rows) + 2.0)
        architecture = ARCHITECTURES[(first_architecture + i) % len(ARCHITECTURES)]
        model = ShopperModel(builder, size, architecture, ctr, torch_generator).to(device)
        fitting, stopping = (rows.take(torch.from_numpy(part).to(device)) for part in (drawn, left_out))
        epochs, loss = _fit_member(model, fitting, stopping, config, torch_generator)
        told = f"{epochs} epochs, log loss {loss:.5f} on rows left out"
        told = told if len(left_out) else "no row left out to stop by, left untrained"
        progress(f"member {i + 1} of {config.members}: {told}")
        members.append(model)
        unseen.append(np.isin(np.flatnonzero(late), left_out))
    calibration = calibrate(
        members, rows.take(torch.from_numpy(np.flatnonzero(late)).to(device)), torch.from_numpy(np.stack(unseen))
    )
    return Ensemble(members, calibration).to(device).eval()


def _fit_member(
    model: ShopperModel, fitting: Rows, stopping: Rows, config: FitConfig, generator: torch.Generator
) -> tuple[int, float]:
    """Maximise the posterior by Adam with early stopping; leave the best weights in ``model``."""
    device = model.base.device
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    best_loss, best_epoch = math.inf, 0
    best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    for epoch in range(1, config.epochs + 1):
        for batch in torch.randperm(len(fitting), generator=generator).split(config.batch):
            rows = fitting.take(batch.to(device))
            keep = torch.rand(len(model.item_vectors), generator=generator) >= config.id_dropout
            loss = log_loss(click_log_probability(model, rows, keep.float().to(device)), rows.clicked)
            loss = loss + _negative_log_prior(model, config) / len(fitting)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            held_out = float(log_loss(click_log_probability(model, stopping), stopping.clicked))
        if held_out < best_loss:
            best_loss, best_epoch = held_out, epoch
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        if epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(best_weights)
    return best_epoch, best_loss


def _negative_log_prior(model: ShopperModel, config: FitConfig) -> Tensor:
    """Gaussian priors around no effect: what a few clicks cannot show stays close to the mean."""
    penalty = torch.zeros((), device=model.base.device)
    for name, parameter in model.named_parameters():
        if name == "base":
            continue
        scale = config.taste_scale if "taste" in name else config.effect_scale
        penalty = penalty + parameter.square().sum() / (2 * scale**2)
    return penalty


def calibrate(members: list[ShopperModel], rows: Rows, unseen: Tensor) -> Tensor:
    """Return a and b of log-odds z -> a + b z, fitted to the mean of the members' probabilities.

    The level at the mean z and the slope b have Gaussian priors around no change, with standard deviations 0.1 and
    0.25: they weigh as much as a hundred clicks or fewer, so that ten clicks can neither move the click rate by half
    nor turn a model's ranking around.

    Args:
        members: The fitted models.
        rows: The rows to calibrate on.
        unseen: Which member has not learned from which of them, shape (M, n).
    """
    weight = unseen.to(rows.clicked.device).float()
    usable = weight.sum(0) > 0
    with torch.no_grad():
        raw = torch.stack([click_log_probability(member, rows).exp() for member in members])[:, usable]
    raw = raw.double()  # in single precision a line search can overflow where predictions are certain
    weight, clicked = weight[:, usable] / weight[:, usable].sum(0), rows.clicked[usable]
    identity = torch.tensor([0.0, 1.0], device=raw.device, dtype=raw.dtype)
    if not len(clicked):
        return identity.float()
    mean = log_odds(raw).mean()
    scale = torch.tensor([0.1, 0.25], device=raw.device, dtype=raw.dtype)
    change = torch.zeros(2, device=raw.device, dtype=raw.dtype, requires_grad=True)  # level, slope
    optimizer = torch.optim.LBFGS([change], max_iter=100, line_search_fn="strong_wolfe")

    def calibration() -> Tensor:
        return torch.stack([change[0] - change[1] * mean, 1.0 + change[1]])

    def closure() -> Tensor:
        optimizer.zero_grad()
        probability = (calibrated(raw, calibration()) * weight).sum(0)
        loss = log_loss(probability.log(), clicked) + (change / scale).square().sum() / (2 * len(clicked))
        loss.backward()
        return loss

    optimizer.step(closure)
    return (calibration().detach() if bool(torch.isfinite(change).all()) else identity).float()
