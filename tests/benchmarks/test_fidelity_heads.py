from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hawker.benchmarks.fidelity_cohort import Cohort, Predictions
from hawker.benchmarks.fidelity_heads import (
    Happened,
    Swaps,
    calibration_details,
    corr_within,
    expected_by_model,
    expected_by_rates,
    expected_by_state,
    explained_figures,
    head_losses,
    predict_pages,
    probe_ensemble,
    return_curves,
    return_distances,
)
from hawker.benchmarks.fidelity_metrics import returned_by, within_correlation
from hawker.shop.decision import Decision
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import HEADS, Ensemble


def test_the_truth_of_a_cohort_agrees_with_what_happened(cohort: Cohort, seen: Happened, bazaar: BazaarWorld) -> None:
    state = expected_by_state(bazaar, cohort, seen)
    for head in ("click", "conversion", "leave"):
        p, events = state.of(head), seen.events(head)
        assert abs(events.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    # Expected returns add up over the days at risk.
    day = np.arange(1, seen.days() + 1)
    at_risk = day < (seen.wait + seen.returned)[:, None]
    mean = (state.hazard * at_risk).sum()
    assert abs(seen.returned.sum() - mean) < 4 * np.sqrt((state.hazard * (1 - state.hazard) * at_risk).sum())


def test_who_knows_the_truth_explains_everything(
    bazaar: BazaarWorld, cohort: Cohort, cohort_rows: Rows, seen: Happened
) -> None:
    state, constant = expected_by_state(bazaar, cohort, seen), expected_by_rates(cohort_rows, seen)
    for head, found in explained_figures(seen, constant, state, state, 0).items():
        assert found["value"] == 1.0, head
    for head, found in explained_figures(seen, constant, constant, state, 0).items():
        assert found["value"] == 0.0, head
    assert all(told["worst"] < 1e-6 for told in calibration_details(cohort, cohort_rows, seen, state, state).values())
    curves = return_curves(bazaar, cohort, seen, returned_by(state.hazard))
    assert max(return_distances(curves)) < 1e-6
    losses = head_losses(seen, {"constant": constant, "state": state})
    assert all(losses[head]["state"] < losses[head]["constant"] for head in HEADS)


def test_rates_are_those_of_the_log(cohort_rows: Rows, seen: Happened) -> None:
    rates = expected_by_rates(cohort_rows, seen)
    assert rates.click[0] == pytest.approx(seen.clicks.mean())
    assert rates.conversion[0] == pytest.approx(seen.purchases.mean())
    assert rates.leave[0] == pytest.approx(seen.leaves.mean())
    at_risk = sum(wait - 1 + came for wait, came in zip(seen.wait, seen.returned, strict=True) if wait > 0)
    assert rates.hazard[0, 0] == pytest.approx(seen.returned.sum() / at_risk)


def test_swaps_change_one_position(bazaar: BazaarWorld, cohort: Cohort, swaps: Swaps) -> None:
    was = torch.from_numpy(cohort.pages.slate)[swaps.pages].repeat_interleave(swaps.variants, 0)
    changed = swaps.decision.slate != was
    place = swaps.position.repeat_interleave(swaps.variants)
    assert torch.equal(changed.nonzero()[:, 1], place)
    new = swaps.decision.slate.gather(1, place[:, None])
    assert bazaar.launched[new].all()
    assert not (was == new).any()
    assert len(new.reshape(-1, swaps.variants)[0].unique()) == swaps.variants
    truth = swaps.truth.double().numpy()
    assert within_correlation(truth, truth) == pytest.approx(1.0)


def test_the_same_page_is_predicted_alike_alone_and_in_the_log(
    members: Ensemble, cohort: Cohort, cohort_rows: Rows, said: Predictions
) -> None:
    pages = torch.tensor([0, 5, len(cohort.leave) - 1])
    shown = cohort.decision
    parts = (shown.slate, shown.log_prob, shown.ad, shown.offer, shown.copy)
    own = Decision(*(part[pages] for part in parts if part is not None))
    alone = predict_pages(members, cohort_rows, pages, own, 1)
    whole = torch.zeros(2, *cohort.filled.shape)
    whole[:, cohort.filled] = said.click
    assert torch.allclose(alone, whole[:, pages], atol=1e-6)


def test_the_probe_of_untrained_shoppers(
    bazaar: BazaarWorld,
    cohort: Cohort,
    cohort_rows: Rows,
    members: Ensemble,
    swaps: Swaps,
    seen: Happened,
    said: Predictions,
) -> None:
    found = probe_ensemble(bazaar, cohort, cohort_rows, members, cohort_rows, swaps, 1)
    json.dumps(found, allow_nan=False)
    assert found["explained_by"] == "hidden state"
    assert all(f["value"] is not None and f["value"] < 0.4 for f in found["explained"].values())
    assert abs(corr_within(members, cohort_rows, swaps)) < 0.5
    model = expected_by_model(said, seen)
    assert model is not None
    assert model.click == pytest.approx(said.click.mean(0).double().numpy())
    assert len(found["return_ks"]) == 3
