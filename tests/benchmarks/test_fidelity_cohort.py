from __future__ import annotations

import numpy as np
import torch

from hawker.benchmarks.fidelity_cohort import Cohort, Predictions
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import Ensemble
from hawker.simulators.store import FittedShoppers


def test_a_cohort_is_what_its_rows_say(
    bazaar: BazaarWorld, cohort: Cohort, cohort_rows: Rows, untrained: FittedShoppers
) -> None:
    pages = cohort.pages
    assert (np.diff(pages.shopper) >= 0).all()
    same = np.diff(pages.shopper) == 0
    assert (np.diff(pages.clock)[same] > 0).all()
    filled = cohort.filled
    assert torch.equal(cohort_rows.item, torch.from_numpy(pages.slate)[filled])
    assert torch.equal(cohort_rows.clicked, torch.from_numpy(pages.clicked)[filled].float())
    assert cohort_rows.time is not None
    assert torch.equal(cohort_rows.time.number.long(), torch.from_numpy(pages.page))
    assert cohort_rows.line is not None
    # Rows number lines as the bazaar does, whatever the bank of the log.
    assert torch.equal(cohort_rows.line, torch.from_numpy(pages.copy)[filled])
    assert untrained.lines is not None
    assert len(untrained.lines) < len(bazaar.lines)


def test_lines_are_read_from_the_worlds_bank(bazaar: BazaarWorld, untrained: FittedShoppers, members: Ensemble) -> None:
    own, other = untrained.ensembles["train"].models[0].line_vectors, members.models[0].line_vectors
    assert own is not None
    assert other is not None
    assert untrained.lines is not None
    numbers = [bazaar.lines.index(text) for text in untrained.lines.texts]
    assert torch.allclose(other[numbers], own, atol=1e-5)


def test_hazards_follow_the_intervals(said: Predictions) -> None:
    hazard = said.hazard(torch.tensor([0, 3]), 13)
    assert hazard is not None
    assert said.back is not None
    assert hazard.shape == (2, 2, 13)
    assert torch.equal(hazard[:, :, 0], said.back[:, [0, 3], 1])  # day 1 is the second interval, after day 0
    assert torch.equal(hazard[:, :, 10], hazard[:, :, 9])  # days 10 and 11 share one
    assert torch.equal(hazard[:, :, 11], said.back[:, [0, 3], 11])
