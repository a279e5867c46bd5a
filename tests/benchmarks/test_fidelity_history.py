from __future__ import annotations

import numpy as np
import pytest
import torch

from hawker.benchmarks.fidelity_cohort import Cohort
from hawker.benchmarks.fidelity_heads import Happened, Swaps
from hawker.benchmarks.fidelity_history import expected_by_history
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.belief import forecast


def test_the_filter_is_that_of_logs(bazaar: BazaarWorld, cohort: Cohort, seen: Happened, swaps: Swaps) -> None:
    found, within = expected_by_history(bazaar, cohort, seen, swaps, 7, particles=64)
    same = forecast(bazaar, cohort.pages, seen.days(), torch.Generator().manual_seed(7), particles=64)
    assert found.click == pytest.approx(same.click[cohort.filled.numpy()])
    assert found.leave == pytest.approx(same.leave[seen.closing.numpy()])
    away = np.cumprod(1 - found.hazard, axis=1)
    assert away == pytest.approx(same.staying_away, abs=1e-4)
    assert 0.4 < within < 1
