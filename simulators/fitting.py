"""Learning shoppers from logs: two ensembles, one to train strategies against and a judge that knows other shoppers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hawker.shop.context import ContextBuilder
from hawker.shop.lines import Lines
from hawker.simulators.appeal import ARCHITECTURES, Recorded
from hawker.simulators.calibration import calibrate
from hawker.simulators.config import FitConfig
from hawker.simulators.likelihood import Predicted, predict_rows, recall
from hawker.simulators.memory import days_at_risk
from hawker.simulators.rows import EncodedLog, Rows
from hawker.simulators.shopper import HEADS, IDENTITY, Ensemble, ShopperModel
from hawker.simulators.split import bootstrap_shoppers
from hawker.simulators.stored import some_units, with_beliefs
from hawker.simulators.taste_fit import find_tastes, folds_of
from hawker.simulators.taste_rows import believing_apart
from hawker.simulators.training import Member, Trainer, of_units, train_members, unit_batches

Progress = Callable[[str], None]

TASTED = 1_000_000
"""Rows that classes of taste, which have few weights, are fitted to at most, about."""

SOME = 1_000
"""Shoppers who tell how far the log goes."""


def fit_ensemble(
    log: EncodedLog,
    builder: ContextBuilder,
    size: int,
    config: FitConfig,
    first_architecture: int,
    generator: np.random.Generator,
    device: torch.device,
    progress: Progress,
    lines: Lines | None = None,
    offers: int = 1,
) -> Ensemble:
    """Fit and calibrate an ensemble on some rows of a log.

    Where shoppers are seen on more than one page, classes of taste are fitted first, for all members: they have few
    weights. Members learn what to add to what classes say that do not know the shopper. Each sees its own bootstrap of
    the shoppers and stops by the shoppers left out of it. The last rows in time then calibrate the ensemble, each
    predicted only by the members whose bootstrap left it out, so that no click is both learned from and calibrated on,
    and none has to be kept from learning.

    Args:
        log: The rows to learn from, on the CPU: batches go to the device.
        builder: The shop's contexts and catalog.
        size: Positions of a page, K.
        config: How to fit.
        first_architecture: Where in ``ARCHITECTURES`` the members start to take turns.
        generator: Source of bootstraps and seeds.
        device: Where to compute.
        progress: Called with a line after each member.
        lines: The bank of lines that the log shows.
        offers: Discount tiers of the whole log, 0 (none) included; these rows may show fewer.
    """
    recorded = Recorded.of(log.rows)
    recorded = replace(recorded, offers=max(offers, recorded.offers))
    tastes = None
    if recorded.timeline:
        progress("classes of taste")
        seed = int(generator.integers(2**62))
        some = some_units(log, TASTED, seed)
        tastes, apart = find_tastes(some.rows.to(device), builder, size, recorded, lines, seed, folds_of(some.shopper))
        log = with_beliefs(
            log, lambda rows, who: believing_apart(apart, torch.from_numpy(who % len(apart)), rows.to(device))
        )
    members = []
    for i in range(config.members):
        drawn, left_out = (torch.from_numpy(part) for part in bootstrap_shoppers(log.shopper, generator))
        architecture = ARCHITECTURES[(first_architecture + i) % len(ARCHITECTURES)]
        members.append(Member(architecture, int(generator.integers(2**62)), drawn, left_out))
    models = []
    trainer = Trainer(log, builder, size, recorded, lines, config, device, tastes)
    for i, (model, epochs, loss) in enumerate(train_members(trainer, members)):
        told = f"{epochs} epochs, log loss {loss:.5f} on rows left out"
        told = told if len(members[i].left_out) else "no row left out to stop by, left untrained"
        progress(f"member {i + 1} of {config.members}: {told}")
        models.append(model.eval())
    late = log.late_pages(config.calibration_share)
    for model in models:
        _keep_within(model, log)
    unseen = [member.left_out for member in members]
    return Ensemble(models, calibrate_ensemble(models, log, unseen, late), tastes).to(device).eval()


@torch.no_grad()
def _keep_within(model: ShopperModel, log: EncodedLog) -> None:
    """Tell a member's memory how far the log goes, by some of its shoppers."""
    if model.memory is None or log.rows.time is None:
        return
    some = torch.linspace(0, len(log.shopper) - 1, min(len(log.shopper), SOME)).long()
    rows = of_units(log.rows, some, model.position.device)
    _, carried = recall(model, rows)
    assert carried is not None
    assert rows.time is not None
    ends = [model.leave_odds(carried, rows.time.number)[:, None]]
    ends += [] if model.back is None else [model.return_odds(carried)]
    model.memory.keep_within(carried, ends)


@torch.no_grad()
def calibrate_ensemble(members: list[ShopperModel], log: EncodedLog, unseen: list[Tensor], late: Tensor) -> Tensor:
    """Return the calibration of every head, shape (4, 4), from a log's late rows.

    Args:
        members: The fitted models.
        log: The log that they were fitted on.
        unseen: For each member the shoppers (pages, where there is no timeline) that it has not learned from.
        late: Which pages to calibrate on, shape (P,).
    """
    found: dict[str, list[tuple[Tensor, ...]]] = {head: [] for head in HEADS}
    rows, n_units, device = log.rows, len(log.shopper), members[0].position.device
    fresh = torch.zeros(len(members), n_units)
    for i, units in enumerate(unseen):
        fresh[i, units] = 1.0
    unit_of = torch.arange(n_units)
    if rows.time is not None:
        unit_of = torch.repeat_interleave(unit_of, rows.time.first[1:] - rows.time.first[:-1])
    everyone = unit_of[late].unique()
    for some in unit_batches(rows, everyone, 1 << 16, None):
        pages = some if rows.time is None else rows.time.pages(some)
        batch = of_units(rows, some, device)
        said = [predict_rows(member, batch) for member in members]
        on_page = late[pages].to(device)
        member_page = fresh[:, unit_of[pages]].to(device)
        _collect(found, batch, said, member_page, on_page)
    calibration = IDENTITY.clone()
    with torch.enable_grad():
        for i, head in enumerate(HEADS):
            if found[head]:
                raw, happened, weight, times = (torch.cat([part[j] for part in found[head]], dim=-1) for j in range(4))
                # Models are too sure who stays. Returns' one curve for the hazards of all days would bend for the days'
                # sake, not the shoppers'; clicks and purchases ask for no bend.
                calibration[i] = calibrate(raw, happened, weight, times, bend=head == "leave").cpu()
    return calibration


def _collect(
    found: dict[str, list[tuple[Tensor, ...]]], rows: Rows, said: list[Predicted], fresh: Tensor, on_page: Tensor
) -> None:
    """Add the events of some pages: the members' probabilities (M, n), what happened, who is fresh, and how often."""
    shown = on_page[rows.page]
    row_fresh = fresh[:, rows.page]

    def add(head: str, odds: list[Tensor], happened: Tensor, who: Tensor, keep: Tensor) -> None:
        raw = torch.stack(odds)[:, keep]
        found[head].append((raw, happened[keep], who[:, keep], torch.ones_like(happened[keep])))

    add("click", [p.click.exp() for p in said], rows.clicked, row_fresh, shown)
    if rows.converted is not None and said[0].conversion is not None:
        keep = shown & (rows.clicked > 0) & ~rows.converted.isnan()
        odds = [p.conversion.sigmoid() for p in said if p.conversion is not None]
        add("conversion", odds, rows.converted.nan_to_num(), row_fresh, keep)
    if rows.time is None:
        return
    keep = on_page & ~rows.time.closes.isnan()
    add("leave", [p.leave.sigmoid() for p in said if p.leave is not None], rows.time.closes.nan_to_num(), fresh, keep)
    if said[0].back is not None:
        keep = on_page & ~rows.time.returned.isnan()
        passed, came = days_at_risk(rows.time.wait, rows.time.returned.nan_to_num())
        raw = torch.stack([p.back.sigmoid() for p in said if p.back is not None])[:, keep]
        who = fresh[:, keep][:, :, None].expand(raw.shape)
        times = torch.cat([passed[keep].flatten(), came[keep].flatten()])
        happened = torch.cat([torch.zeros_like(passed[keep]).flatten(), came[keep].flatten()])
        flat, both = raw.flatten(1), who.flatten(1)
        found["return"].append((torch.cat([flat, flat], 1), happened, torch.cat([both, both], 1), times))
