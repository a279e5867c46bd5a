"""Items and lines of copy that no log has shown: what learned shoppers read out of their words."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from hawker.benchmarks.fidelity_cohort import (
    Cohort,
    encode_cohort,
    picked,
    predict_cohort,
    repeat,
    shopkeeper,
    shown_instead,
    simulate_cohort,
)
from hawker.benchmarks.fidelity_metrics import Floats, auc_within, correlation
from hawker.policies.shopkeeper import Habits
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.language import Encoder
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import Ensemble
from hawker.simulators.store import FittedShoppers


class EveryItem:
    """Shows items drawn uniformly from all in stock, whether the logs know them or not; no ads, offers or copy."""

    name = "every item"

    def __init__(self, world: BazaarWorld) -> None:
        """Args: the ``world`` whose items it shows."""
        self._items = torch.from_numpy(np.flatnonzero(world.items.table["stock"].to_numpy() > 0))
        scores = torch.zeros(len(world.items.table))
        self._keeper = shopkeeper(world, self.name, scores, Habits(exploration=1.0))

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        """Draw one decision per page."""
        candidates = self._items.expand(len(context.mask), -1)
        mask = torch.ones_like(candidates, dtype=torch.bool)
        whole = Context(context.shopper, candidates, mask, torch.zeros(candidates.shape))
        return self._keeper.propose(whole, generator)


class ColdItems(TypedDict):
    """Expected areas under the ROC curve within position: of predictions and of the truth, on new and known items."""

    new: float
    known: float
    truth_new: float
    truth_known: float
    ratio: float


def cold_items(
    world: BazaarWorld,
    fitted: FittedShoppers,
    ensemble: Ensemble,
    encoder: Encoder,
    shoppers: int,
    days: int,
    seed: int,
) -> ColdItems:
    """Hold predictions for items that no log has shown against those for known ones.

    ``ratio`` is (AUC - 0.5) on the new items over that on the known ones.

    Args:
        world: The gold world.
        fitted: Whose shoppers they are.
        ensemble: Which of them, with the world's lines.
        encoder: Of texts.
        shoppers: Size of the cohort that sees uniformly random items.
        days: Its length.
        seed: Decides everything that is drawn.
    """
    cohort = simulate_cohort(world, EveryItem(world), shoppers, days, seed)
    rows = encode_cohort(world, cohort, fitted, encoder)
    predicted = predict_cohort(ensemble, rows).click.mean(0).double().numpy()
    truth = cohort.click[cohort.filled].double().numpy()
    fresh = ~world.launched[torch.from_numpy(cohort.pages.slate)[cohort.filled]].numpy()
    position = rows.position.numpy()
    auc = {
        (who, part): auc_within(score[keep], truth[keep], position[keep])
        for part, keep in (("new", fresh), ("known", ~fresh))
        for who, score in (("model", predicted), ("truth", truth))
    }
    return ColdItems(
        new=auc["model", "new"],
        known=auc["model", "known"],
        truth_new=auc["truth", "new"],
        truth_known=auc["truth", "known"],
        ratio=(auc["model", "new"] - 0.5) / (auc["model", "known"] - 0.5),
    )


def copy_effects(
    world: BazaarWorld, cohort: Cohort, rows: Rows, ensemble: Ensemble, shoppers: int, seed: int
) -> dict[str, float]:
    """Hold the predicted effect of every line on the log-odds of a click, against no line, against the true one.

    The effect is that on the first item of a shopper's last page in the cohort, given all pages before it; the true one
    follows from the hidden segment. Correlations are over pairs of shopper and line, and over lines.

    Args:
        world: The gold world.
        cohort: Shoppers with a history.
        rows: The same as the ensemble reads it.
        ensemble: Learned shoppers, with the world's lines.
        shoppers: How many of the cohort's.
        seed: Draws them.

    Returns:
        ``unseen``, ``logged`` (pairs) and ``unseen_lines``, ``logged_lines`` (means over shoppers).
    """
    last = torch.from_numpy(np.flatnonzero(np.append(np.diff(cohort.pages.shopper) > 0, True)))
    generator = torch.Generator().manual_seed(seed)
    some = last[torch.randperm(len(last), generator=generator)[:shoppers]]
    item = torch.from_numpy(cohort.pages.slate)[some, 0]
    true, said = true_effects(world, cohort, some, item), predicted_effects(ensemble, rows, some, item)
    found = {}
    for name, lines in (("unseen", ~world.bank.logged), ("logged", world.bank.logged)):
        found[name] = correlation(said[:, lines].ravel(), true[:, lines].ravel())
        found[f"{name}_lines"] = correlation(said[:, lines].mean(0), true[:, lines].mean(0))
    return found


def true_effects(world: BazaarWorld, cohort: Cohort, pages: Tensor, item: Tensor) -> Floats:
    """Return the true effect of each line on the log-odds of a click on an item, (m, L), at some pages (m,)."""
    n = len(world.lines)
    state, slate = repeat(picked(cohort.before, pages), n + 1), item.repeat_interleave(n + 1)[:, None]
    line = torch.cat([torch.tensor([EMPTY]), torch.arange(n)]).repeat(len(pages))[:, None]
    odds = world.attraction(state, Decision(slate, torch.zeros(len(slate)), copy=line)).double().logit()
    odds = odds.reshape(len(pages), n + 1)
    return np.asarray((odds[:, 1:] - odds[:, :1]).numpy())


@torch.no_grad()
def predicted_effects(ensemble: Ensemble, rows: Rows, pages: Tensor, item: Tensor) -> Floats:
    """Return the mean over members of the effect of each line of the bank on an item alone, (m, L)."""
    vectors = ensemble.models[0].line_vectors
    assert vectors is not None
    n, m = len(vectors), len(pages)
    zero = torch.zeros(m * (n + 1))
    shown = Rows(
        rows.shopper[pages].repeat_interleave(n + 1, 0),
        page=torch.arange(m * (n + 1)),
        item=item.repeat_interleave(n + 1),
        position=zero.long(),
        affinity=zero,
        clicked=zero,
        line=torch.cat([torch.tensor([EMPTY]), torch.arange(n)]).repeat(m),
    )
    effects = []
    for model, person, told in shown_instead(ensemble, rows, pages.repeat_interleave(n + 1), shown):
        odds = model.log_odds(person, told).reshape(m, n + 1)
        effects.append(odds[:, 1:] - odds[:, :1])
    return np.asarray(torch.stack(effects).mean(0).double().numpy())
