from __future__ import annotations

import numpy as np
import pytest
import torch

from hawker.benchmarks.fidelity_cohort import Cohort
from hawker.benchmarks.fidelity_texts import EveryItem, cold_items, copy_effects, true_effects
from hawker.shop.decision import EMPTY
from hawker.shop.language import Encoder
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import Ensemble
from hawker.simulators.store import FittedShoppers


def test_true_effects_of_lines_are_those_of_their_cues(bazaar: BazaarWorld, cohort: Cohort) -> None:
    pages = torch.tensor([0, 10])
    found = true_effects(bazaar, cohort, pages, torch.from_numpy(cohort.pages.slate)[pages, 0])
    for row, page in enumerate(pages.tolist()):
        segment = bazaar.parameters.segments[int(cohort.before["segment"][page])]
        assert found[row] == pytest.approx(bazaar.bank.cues @ np.array(segment.cue_click), abs=1e-4)


def test_texts_of_untrained_shoppers(
    bazaar: BazaarWorld,
    cohort: Cohort,
    cohort_rows: Rows,
    untrained: FittedShoppers,
    members: Ensemble,
    hashed: Encoder,
) -> None:
    found = copy_effects(bazaar, cohort, cohort_rows, members, 20, 1)
    assert set(found) == {"unseen", "logged", "unseen_lines", "logged_lines"}
    context = bazaar.arrive(400, torch.Generator().manual_seed(1)).context
    slate = EveryItem(bazaar).propose(context, torch.Generator().manual_seed(2)).slate
    assert (slate != EMPTY).all()
    assert float((~bazaar.launched[slate]).float().mean()) == pytest.approx(bazaar.parameters.shop.new_share, abs=0.06)
    cold = cold_items(bazaar, untrained, members, hashed, 40, 20, 4)
    assert cold["truth_new"] > 0.6
    assert 0.3 < cold["new"] < 0.7
