import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.decision import Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec

OUTCOME = Outcome(
    clicked=np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    click_probability=np.array([[0.5, 0.25, 0.0], [0.125, 0.0, 0.0]]),
    gone=np.array([True, False]),
    converted=np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    revenue=np.array([[20.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (RewardSpec(), {"click": [0.75, 0.125]}),
        (RewardSpec(response="sampled"), {"click": [2.0, 0.0]}),
        (RewardSpec(click=2.0), {"click": [1.5, 0.25]}),
        (RewardSpec(click=0.0, revenue=0.1), {"revenue": [2.0, 0.0]}),
        (
            RewardSpec(1.0, 5.0, -0.5),
            {"click": [0.75, 0.125], "conversion": [5.0, 0.0], "revenue": [-10.0, 0.0]},
        ),
    ],
)
def test_parts_by_hand(spec: RewardSpec, parts: dict[str, list[float]]):
    assert {name: part.tolist() for name, part in spec.components(OUTCOME).items()} == parts


@given(
    st.tuples(*[st.floats(-10, 10, allow_subnormal=False)] * 3).filter(any), st.sampled_from(["expected", "sampled"])
)
def test_tensors_and_arrays_are_paid_alike_and_weights_are_factors(weights, response):
    known = {name: value for name, value in vars(OUTCOME).items() if value is not None}
    tensors = Outcome(**{name: torch.from_numpy(value) for name, value in known.items()})
    spec = RewardSpec(*weights, response)
    parts, of_tensors = spec.components(OUTCOME), spec.components(tensors)
    doubled = RewardSpec(*(2 * weight for weight in weights), response).components(OUTCOME)
    assert parts.keys() == of_tensors.keys() == doubled.keys()
    for name, part in parts.items():
        assert np.array_equal(part, of_tensors[name].numpy())
        assert np.array_equal(2 * part, doubled[name])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"click": 0.0}, "reward: every weight is 0; expected at least one weight that is not"),
        ({"click": float("nan")}, "reward: a weight is not finite"),
        ({"revenue": float("-inf")}, "reward: a weight is not finite"),
    ],
)
def test_weights_that_cannot_be_meant(weights: dict[str, float], message: str):
    with pytest.raises(InputError, match=message):
        RewardSpec(**weights)
    with pytest.raises(InputError, match="reward: a weight is not finite; got"):
        RewardSpec(revenue=float("inf"))


@pytest.mark.parametrize("name", ["conversion", "revenue"])
def test_a_weight_on_what_the_shoppers_do_not_have(name: str):
    clicks_only = Outcome(OUTCOME.clicked, OUTCOME.click_probability, OUTCOME.gone)
    assert RewardSpec(**{name: 0.0}).components(clicks_only).keys() == {"click"}
    message = f"reward.{name}: the shoppers have no {name} head; got 0.5, expected 0; their logs recorded no {name}"
    with pytest.raises(InputError, match=message):
        RewardSpec(**{name: 0.5}).components(clicks_only)
