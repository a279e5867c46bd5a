from __future__ import annotations

import numpy as np
import pytest

from hawker.benchmarks.fidelity_baselines import expected_by_logistic
from hawker.benchmarks.fidelity_cohort import encode_cohort, served
from hawker.benchmarks.fidelity_heads import Happened, expected_by_rates, head_losses
from hawker.shop.language import Encoder
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.rows import Rows
from hawker.simulators.store import FittedShoppers


def test_regressions_lie_between_the_constant_and_certainty(
    bazaar: BazaarWorld, cohort_rows: Rows, seen: Happened, untrained: FittedShoppers, hashed: Encoder
) -> None:
    log = encode_cohort(bazaar, served(bazaar, 120, 40, 5), untrained, hashed)
    found = expected_by_logistic(log, cohort_rows, seen, untrained, 0)
    constant = expected_by_rates(log, seen)
    losses = head_losses(seen, {"constant": constant, "logistic": found})
    assert losses["click"]["logistic"] < losses["click"]["constant"]
    assert losses["leave"]["logistic"] < losses["leave"]["constant"]
    for head in ("click", "conversion", "leave"):
        assert found.of(head).shape == constant.of(head).shape
        assert ((found.of(head) > 0) & (found.of(head) < 1)).all()
    assert found.hazard.shape == constant.hazard.shape


def test_regressions_keep_the_rates_of_what_they_learned_from(
    cohort_rows: Rows, seen: Happened, untrained: FittedShoppers
) -> None:
    found = expected_by_logistic(cohort_rows, cohort_rows, seen, untrained, 0)
    assert found.click.mean() == pytest.approx(seen.clicks.mean(), rel=1e-2)
    assert found.leave.mean() == pytest.approx(seen.leaves.mean(), rel=1e-2)
    day = np.arange(1, seen.days() + 1)
    at_risk = day < (seen.wait + seen.returned)[:, None]
    assert (found.hazard * at_risk).sum() == pytest.approx(seen.returned.sum(), rel=1e-2)
