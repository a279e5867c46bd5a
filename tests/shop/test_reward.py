import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import BY_SLOT, COSTS, DOUBTS, WEIGHTS, RewardSpec

OUTCOME = Outcome(
    clicked=np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    click_probability=np.array([[0.5, 0.25, 0.0], [0.125, 0.0, 0.0]]),
    gone=np.array([True, False]),
    converted=np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    revenue=np.array([[20.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    conversion_probability=np.array([[0.25, 0.5, 1.0], [0.5, 0.5, 0.5]]),
    leave=np.array([True, False]),
    days=np.array([math.inf, 0.0]),
    return_probability=np.array([0.75, 0.5]),
)
DECISION = Decision(
    slate=np.array([[2, 0, 1], [1, 2, EMPTY]]),
    log_prob=np.zeros(2),
    ad=np.array([0, EMPTY]),
    offer=np.array([0, 3]),
)
BIDS = np.array([0.0, 8.0, 4.0])
PREVIOUS = np.array([[EMPTY, EMPTY, EMPTY], [1, EMPTY, 0]])
NO_CLICK = {"click": 0.0}
SHOP_COSTS = [name for name in COSTS if name not in DOUBTS]


def paid(spec: RewardSpec, outcome=OUTCOME, decision=DECISION, bids=BIDS, previous=PREVIOUS) -> dict[str, list[float]]:
    return {name: part.tolist() for name, part in spec.components(outcome, decision, bids, previous).items()}


SECOND = dataclasses.replace(
    OUTCOME,
    click_probability=np.array([[0.25, 0.25, 0.0], [0.375, 0.0, 0.0]]),
    conversion_probability=np.array([[0.5, 0.5, 1.0], [0.5, 0.5, 0.5]]),
    return_probability=np.array([0.25, 0.5]),
)
DOUBTED = dataclasses.replace(OUTCOME, second=SECOND, unsupported=np.array([1.5, 0.0]))


@pytest.mark.parametrize(
    ("spec", "costs"),
    [
        (RewardSpec(disagreement=2.0), {"disagreement": [-0.5, -0.5]}),
        (RewardSpec(disagreement=2.0, response="sampled"), {"disagreement": [-0.5, -0.5]}),  # expectations differ
        (RewardSpec(conversion=4.0, disagreement=1.0), {"disagreement": [-0.25, -0.75]}),  # 1.75 - 1.5, .375 - 1.125
        (RewardSpec(ad_income=1.0, disagreement=1.0), {"disagreement": [-1.25, -0.25]}),  # .25 x (1 + bid 4)
        (RewardSpec(ad=9.0, offer=9.0, revenue=9.0, disagreement=1.0), {"disagreement": [-0.25, -0.25]}),
        (RewardSpec(support=0.5), {"support": [-0.75, 0.0]}),
    ],
)
def test_doubts_cost(spec, costs):
    parts = paid(spec, outcome=DOUBTED)
    assert {name: parts[name] for name in costs} == costs
    assert spec.doubts
    assert not spec.plain.doubts
    assert paid(spec.plain, outcome=DOUBTED) == {name: part for name, part in parts.items() if name not in costs}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (RewardSpec(disagreement=1.0), "these shoppers tell no doubts, and disagreement costs"),
        (RewardSpec(support=1.0), "these shoppers tell no doubts, and support costs"),
    ],
)
def test_doubts_that_nobody_tells(spec, message):
    with pytest.raises(InputError, match=message):
        paid(spec)


def test_two_models_need_something_to_differ_over():
    with pytest.raises(InputError, match="nothing that models could differ over"):
        RewardSpec(click=0.0, revenue=1.0, disagreement=0.5)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (RewardSpec(), {"click": [0.75, 0.125]}),
        (RewardSpec(response="sampled"), {"click": [2.0, 0.0]}),
        (RewardSpec(click=2.0), {"click": [1.5, 0.25]}),
        (RewardSpec(click=0.0, revenue=0.1), {"revenue": [2.0, 0.0]}),
        (RewardSpec(click=0.0, conversion=4.0), {"conversion": [1.0, 0.25]}),  # 4 (1/8 + 1/8), 4 (1/16)
        (RewardSpec(click=0.0, conversion=4.0, response="sampled"), {"conversion": [4.0, 0.0]}),
        (
            RewardSpec(1.0, 4.0, -0.5),
            {"click": [0.75, 0.125], "conversion": [1.0, 0.25], "revenue": [-10.0, 0.0]},
        ),
        (RewardSpec(click=0.0, ad_income=3.0), {"ad_income": [6.0, 0.0]}),  # 3 x bid 4 of item 2 x 0.5
        (RewardSpec(click=0.0, ad_income=3.0, response="sampled"), {"ad_income": [12.0, 0.0]}),
        (RewardSpec(click=0.0, return_visit=2.0), {"return_visit": [1.5, 0.0]}),
        (RewardSpec(click=0.0, return_visit=2.0, response="sampled"), {"return_visit": [0.0, 0.0]}),  # inf days
        (
            RewardSpec(ad=0.5, offer=0.25, repetition=2.0),
            {"click": [0.75, 0.125], "ad": [-0.5, 0.0], "offer": [0.0, -0.75], "repetition": [0.0, -2.0]},
        ),
    ],
)
def test_parts_by_hand(spec: RewardSpec, parts: dict[str, list[float]]):
    assert paid(spec) == parts


@pytest.mark.parametrize(("days", "value"), [(0.0, 5.0), (7.0, 5.0), (8.0, 0.0), (math.inf, 0.0)])
def test_a_sampled_return_is_the_one_that_was_drawn_within_seven_days(days, value):
    outcome = Outcome(OUTCOME.clicked, OUTCOME.click_probability, OUTCOME.gone, leave=OUTCOME.leave)
    outcome = Outcome(**{**vars(outcome), "days": np.array([days, 0.0])})
    for response in ("sampled", "expected"):  # nothing tells the probability
        spec = RewardSpec(click=0.0, return_visit=5.0, response=response)
        assert paid(spec, outcome) == {"return_visit": [value, 0.0]}


def test_where_visits_have_no_end_a_return_is_paid_to_who_is_gone():
    outcome = Outcome(**{**vars(OUTCOME), "leave": None, "gone": np.array([False, True])})
    assert paid(RewardSpec(click=0.0, return_visit=2.0), outcome) == {"return_visit": [0.0, 1.0]}


def test_pages_without_ads_offers_and_a_page_before_cost_nothing():
    plain = Decision(DECISION.slate, DECISION.log_prob)
    spec = RewardSpec(ad_income=1.0, ad=1.0, offer=1.0, repetition=1.0)
    parts = paid(spec, decision=plain, previous=None)
    assert parts.pop("click") == [0.75, 0.125]
    assert set(parts) == {"ad_income", "ad", "offer", "repetition"}
    assert all(part == [0.0, 0.0] for part in parts.values())


def test_an_ad_in_an_empty_slot_is_none():
    decision = Decision(DECISION.slate, DECISION.log_prob, ad=np.array([1, 2]))
    spec = RewardSpec(click=0.0, ad_income=1.0, ad=1.0)
    assert paid(spec, decision=decision) == {"ad_income": [0.0, 0.0], "ad": [-1.0, 0.0]}


def test_every_item_shown_again_costs():
    previous = np.array([[0, 2, 1], [2, 1, 0]])
    assert paid(RewardSpec(repetition=1.0), previous=previous)["repetition"] == [-3.0, -2.0]


def test_later_is_worth_less():
    assert RewardSpec(discount_per_day=0.5).discount(np.array([0.0, 1.0, 3.0, np.inf])).tolist() == [1, 0.5, 0.125, 0]
    assert RewardSpec(discount_per_day=0.5).discount(torch.tensor([0.0, 2.0])).tolist() == [1.0, 0.25]
    assert RewardSpec().discount(np.array([0.0, 400.0])).tolist() == [1.0, 1.0]


@given(
    st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=5, max_size=5).filter(any),
    st.lists(st.floats(0, 10, allow_subnormal=False), min_size=len(SHOP_COSTS), max_size=len(SHOP_COSTS)),
    st.sampled_from(["expected", "sampled"]),
)
def test_tensors_and_arrays_are_paid_alike_and_weights_are_factors(weights, costs, response):
    def torches(values):
        return type(values)(**{k: None if v is None else torch.from_numpy(v) for k, v in vars(values).items()})

    factors = dict(zip((*WEIGHTS, *SHOP_COSTS), [*weights, *costs], strict=True))
    spec = RewardSpec(**factors, response=response)
    parts = spec.components(OUTCOME, DECISION, BIDS, PREVIOUS)
    tensors = (torch.from_numpy(BIDS), torch.from_numpy(PREVIOUS))
    of_tensors = spec.components(torches(OUTCOME), torches(DECISION), *tensors)
    twice = RewardSpec(**{name: 2 * weight for name, weight in factors.items()}, response=response)
    doubled = twice.components(OUTCOME, DECISION, BIDS, PREVIOUS)
    assert parts.keys() == of_tensors.keys() == doubled.keys() == {name for name, value in factors.items() if value}
    for name, part in parts.items():
        assert np.allclose(part, of_tensors[name].numpy(), rtol=1e-12)
        assert np.array_equal(2 * part, doubled[name])
        assert part.shape == (2,)
        assert name not in COSTS or (part <= 0).all()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"click": 0.0}, "reward: every weight is 0; expected at least one weight that is not"),
        ({"click": 0.0, "ad": 1.0}, "reward: every weight is 0"),
        ({"click": float("nan")}, "reward: a weight is not finite"),
        ({"revenue": float("-inf")}, "reward: a weight is not finite"),
        ({"return_visit": float("inf")}, "reward: a weight is not finite; got"),
        ({"ad": -1.0}, "reward.ad: bad cost; got -1.0, expected a finite number of at least 0"),
        ({"offer": float("nan")}, "reward.offer: bad cost; got nan"),
        ({"repetition": float("inf")}, "reward.repetition: bad cost; got inf"),
        ({"discount_per_day": 0.0}, "reward.discount_per_day: bad discount; got 0.0, expected a number above 0 and"),
        ({"discount_per_day": 1.5}, "reward.discount_per_day: bad discount; got 1.5"),
        ({"discount_per_day": float("nan")}, "reward.discount_per_day: bad discount; got nan"),
    ],
)
def test_weights_that_cannot_be_meant(weights: dict[str, float], message: str):
    with pytest.raises(InputError) as caught:
        RewardSpec(**weights)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["conversion", "revenue", "ad_income", "return_visit"])
def test_a_weight_on_what_the_shoppers_do_not_have(name: str):
    clicks_only = Outcome(OUTCOME.clicked, OUTCOME.click_probability, OUTCOME.gone)
    assert RewardSpec(**{name: 0.0}).components(clicks_only).keys() == {"click"}
    message = f"reward.{name}: the shoppers have no {name} head; got 0.5, expected 0; their logs recorded no {name}"
    for decision in (None, DECISION):
        with pytest.raises(InputError, match=message):
            RewardSpec(**{name: 0.5}).components(clicks_only, decision)


@pytest.mark.parametrize(
    ("spec", "slots"),
    [
        (RewardSpec(), [[0.5, 0.25, 0.0], [0.125, 0.0, 0.0]]),
        (RewardSpec(response="sampled"), [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
        (RewardSpec(click=2.0, conversion=4.0), [[1.5, 1.0, 0.0], [0.5, 0.0, 0.0]]),
        (RewardSpec(click=0.0, ad_income=3.0, revenue=0.1), [[8.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        (RewardSpec(click=0.0, return_visit=1.0), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_what_slots_earn_by_hand(spec, slots):
    assert spec.slots(OUTCOME, DECISION, BIDS) == pytest.approx(np.array(slots))


@given(
    st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=4, max_size=4).filter(any),
    st.sampled_from(["expected", "sampled"]),
)
def test_slots_sum_to_the_parts_that_are_theirs(weights, response):
    """Returns and costs belong to the page."""
    factors = dict(zip(BY_SLOT, weights, strict=True))
    spec = RewardSpec(**factors, return_visit=3.0, ad=1.0, offer=1.0, repetition=1.0, response=response)
    parts = spec.components(OUTCOME, DECISION, BIDS, PREVIOUS)
    expected = sum(parts[name] for name in BY_SLOT if name in parts)
    slots = spec.slots(OUTCOME, DECISION, BIDS)
    assert slots.shape == (2, 3)
    assert slots.sum(1) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert not slots[DECISION.slate == EMPTY].any()
