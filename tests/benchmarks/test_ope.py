"""Off-policy estimators: against hand and published numbers, their laws, their intervals, what they refuse."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.benchmarks.bootstrap import MAX_GROUPS
from hawker.benchmarks.ope import ESTIMATORS, estimate, estimate_from_weights
from hawker.shop.errors import InputError

REFERENCE = Path(__file__).parent / "reference"
PUBLISHED = json.loads((REFERENCE / "estimates.json").read_text())

# Three rows by hand: w = 2, 1/2, 8; r = 1, 0, 1; q of the logged action 0.6, 0.4, 0.25; v = 0.4, 0.5, 0.3.
THREE = {
    "reward": np.array([1.0, 0.0, 1.0]),
    "action": np.array([0, 1, 2]),
    "propensity": np.array([0.25, 0.5, 0.1]),
    "target": np.array([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.2, 0.0, 0.8]]),
    "q_hat": np.array([[0.6, 0.2, 0.2], [0.4, 0.4, 0.8], [0.5, 0.9, 0.25]]),
}


def kish(*weights: float) -> float:
    return sum(weights) ** 2 / sum(w * w for w in weights)


BY_HAND = {  # value, effective sample size
    "dm": (0.4, 3),
    "ips": (10 / 3, kish(2, 0.5, 8)),
    "snips": (10 / 10.5, kish(2, 0.5, 8)),
    "dr": (0.4 + (2 * 0.4 - 0.5 * 0.4 + 8 * 0.75) / 3, kish(2, 0.5, 8)),
    "sndr": (0.4 + 6.6 / 10.5, kish(2, 0.5, 8)),
    "ips_clip(5)": ((2 + 5) / 3, kish(2, 0.5, 5)),
    "dr_clip(5)": (0.4 + (0.8 - 0.2 + 5 * 0.75) / 3, kish(2, 0.5, 5)),
    "switch-dr(5)": (0.4 + (0.8 - 0.2) / 3, kish(2, 0.5)),
    "switch-dr(8)": (2.6, kish(2, 0.5, 8)),  # a weight that equals the threshold is kept
    "dr-os(10)": (0.4 + (20 / 14 * 0.4 - 5 / 10.25 * 0.4 + 80 / 74 * 0.75) / 3, kish(20 / 14, 5 / 10.25, 80 / 74)),
    "sg-ips(0.1)": ((2 / 1.1 + 8 / 1.7) / 3, kish(2 / 1.1, 0.5 / 0.95, 8 / 1.7)),
    "sg-dr(0.1)": (0.4 + (2 / 1.1 * 0.4 - 0.5 / 0.95 * 0.4 + 8 / 1.7 * 0.75) / 3, kish(2 / 1.1, 0.5 / 0.95, 8 / 1.7)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_three_rows_by_hand(name: str):
    found = estimate(**THREE, estimators=[name])[name]
    assert (found.value, found.ess) == pytest.approx(BY_HAND[name], abs=1e-7)
    assert found.low <= found.value <= found.high


def test_agrees_with_the_published_estimates_of_a_synthetic_log():
    log = np.load(REFERENCE / "synth_binary_5a.npz")
    published = PUBLISHED["synth_binary_5a"]
    found = estimate(log["reward"], log["action"], log["propensity"], log["target"], log["q_hat"], list(published))
    assert set(ESTIMATORS) <= set(published)
    assert {name: e.value for name, e in found.items()} == pytest.approx(published, abs=5e-9, rel=0)
    assert found["ips"].ess == pytest.approx(1704.1271, abs=1e-4)


def test_agrees_with_the_published_estimates_of_the_open_bandit_log():
    path = Path(__file__).parents[2] / "shop" / "data" / "obd" / "random" / "all" / "all.csv.xz"
    log = pd.read_csv(path, usecols=["item_id", "position", "click", "propensity_score"])
    item, position, click = log.item_id.to_numpy(), log.position.to_numpy() - 1, log.click.to_numpy()
    clicks, shown = np.zeros((80, 3)), np.zeros((80, 3))
    np.add.at(clicks, (item, position), click)
    np.add.at(shown, (item, position), 1)
    q_hat = ((clicks + 10 * click.mean()) / (shown + 10))[:, position].T
    target = np.load(REFERENCE / "obd_bernoulli_ts_all.npz")["target"][:, position].T
    published = PUBLISHED["obd_random_all_smoothed"]
    found = estimate(click, item, log.propensity_score, target, q_hat, list(published))
    assert {name: e.value for name, e in found.items()} == pytest.approx(published, abs=1e-9, rel=0)
    # 38 clicks: the interval of every estimator that is not all model spans at least the log's own click rate.
    assert found["ips"].low < 0.0038 < found["ips"].high
    assert found["dr"].high > 2 * found["dr"].value


# Laws


@st.composite
def logs(draw: st.DrawFn) -> dict[str, np.ndarray]:
    n, n_actions, seed = draw(st.integers(2, 40)), draw(st.integers(2, 6)), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    logging, target = generator.dirichlet(np.ones(n_actions), size=(2, n)) * 0.9 + 0.1 / n_actions
    action = generator.integers(n_actions, size=n)
    return {
        "reward": generator.normal(1, 1, n).round(2) if draw(st.booleans()) else generator.integers(0, 2, n) * 1.0,
        "action": action,
        "propensity": logging[np.arange(n), action],
        "target": target,
        "q_hat": generator.random((n, n_actions)),
    }


def values(log: dict[str, np.ndarray], *names: str) -> list[float]:
    found = estimate(**log, estimators=names)
    return [found[name].value for name in names]


@given(logs())
def test_the_logging_strategy_is_worth_its_mean_reward(log: dict[str, np.ndarray]):
    log["propensity"] = log["target"][np.arange(len(log["action"])), log["action"]]
    found = estimate(**log, estimators=["ips", "snips"])
    assert found["ips"].value == found["snips"].value == log["reward"].mean()
    assert found["ips"].ess == pytest.approx(len(log["action"]))


@given(logs())
def test_a_constant_reward_that_the_model_knows(log: dict[str, np.ndarray]):
    log["reward"], log["q_hat"] = np.full_like(log["reward"], 0.3), np.full_like(log["q_hat"], 0.3)
    names = [name for name in ESTIMATORS if not name.startswith(("ips", "sg-ips"))]
    assert values(log, *names) == pytest.approx([0.3] * len(names))


@given(logs())
def test_without_a_model_doubly_robust_is_weighting(log: dict[str, np.ndarray]):
    log["q_hat"] = np.zeros_like(log["q_hat"])
    names = "dm", "dr", "ips", "sndr", "snips", "dr_clip(2)", "ips_clip(2)", "sg-dr(0.3)", "sg-ips(0.3)"
    dm, *pairs = values(log, *names)
    assert dm == 0
    assert pairs[::2] == pytest.approx(pairs[1::2])


@given(logs(), st.floats(0.01, 100))
def test_estimates_scale_with_the_reward(log: dict[str, np.ndarray], factor: float):
    scaled = log | {"reward": log["reward"] * factor, "q_hat": log["q_hat"] * factor}
    assert values(scaled, *ESTIMATORS) == pytest.approx([factor * x for x in values(log, *ESTIMATORS)])


@given(logs(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(log: dict[str, np.ndarray], random):
    order = list(range(len(log["action"])))
    random.shuffle(order)
    found, shuffled = (estimate(**x, estimators=ESTIMATORS) for x in (log, {k: v[order] for k, v in log.items()}))
    for name in ESTIMATORS:
        assert (shuffled[name].value, shuffled[name].ess) == pytest.approx((found[name].value, found[name].ess))


@given(logs())
def test_limits_of_the_parameters(log: dict[str, np.ndarray]):
    dm, ips, dr = values(log, "dm", "ips", "dr")
    assert values(log, "ips_clip(1e9)", "sg-ips(1e-12)") == pytest.approx([ips, ips])
    to_dr = "dr_clip(1e9)", "switch-dr(1e9)", "dr-os(1e12)", "sg-dr(1e-12)"
    assert values(log, *to_dr) == pytest.approx([dr] * 4)
    to_dm = "dr_clip(1e-12)", "switch-dr(1e-12)", "dr-os(1e-12)"
    assert values(log, *to_dm) == pytest.approx([dm] * 3, abs=1e-9)


@given(logs())
def test_intervals_hold_their_estimate_and_are_finite(log: dict[str, np.ndarray]):
    for found in estimate(**log, estimators=ESTIMATORS).values():
        assert np.isfinite(found).all()
        assert found.low <= found.value <= found.high
        assert 0 <= found.ess <= len(log["action"]) * (1 + 1e-9)


# Intervals


def planted(generator: np.random.Generator, n: int, ctr: float, sharpness: float):
    """Draw a log of uniformly shown items in 40 kinds of context; return weight, reward, q, v and the true value."""
    world = np.random.default_rng(1)
    share, n_items = world.dirichlet(np.full(40, 2.0)), 80
    appeal = 0.5 * world.normal(size=(1, n_items)) + 0.5 * world.normal(size=(40, n_items))
    click = ctr * np.exp(appeal) / (share @ np.exp(appeal).mean(axis=1))
    target = np.exp(sharpness * (0.7 * appeal + 0.8 * world.normal(size=(40, n_items))))
    target /= target.sum(axis=1, keepdims=True)
    model = click * np.exp(0.5 * world.normal(size=(40, n_items)))
    context, item = generator.choice(40, n, p=share), generator.integers(n_items, size=n)
    reward = (generator.random(n) < click[context, item]).astype(float)
    weight = target[context, item] * n_items
    truth = float(share @ (target * click).sum(axis=1))
    return weight, reward, model[context, item], (target * model).sum(axis=1)[context], truth


def covered(n: int, ctr: float, sharpness: float, repeats: int = 100) -> dict[str, int]:
    names = ["ips", "snips", "dr", "sndr"]
    hits = dict.fromkeys(names, 0)
    for seed in range(repeats):
        *rows, truth = planted(np.random.default_rng(seed), n, ctr, sharpness)
        for name, e in estimate_from_weights(*rows, names, seed=seed).items():
            hits[name] += e.low <= truth <= e.high
    return hits


def test_intervals_cover_the_truth_even_with_thirteen_clicks():
    assert min(covered(n=1_300, ctr=0.01, sharpness=1.6).values()) >= 90


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [1.0, 1.8, 2.8])  # effective sample size 42%, 13%, 5% of the rows
def test_intervals_cover_the_truth_of_a_large_log(sharpness: float):
    assert min(covered(n=50_000, ctr=0.02, sharpness=sharpness).values()) >= 90


@pytest.mark.parametrize("n", [2_000, MAX_GROUPS + 30_000])
def test_with_many_clicks_the_interval_is_the_classical_one(n: int):
    generator = np.random.default_rng(0)
    weight, reward = generator.uniform(0.5, 1.5, n), generator.normal(5, 1, n)
    found = estimate_from_weights(weight, reward, np.zeros(n), np.zeros(n), ["ips", "snips"])
    half = 1.96 * (weight * reward).std() / n**0.5
    assert found["ips"].high - found["ips"].low == pytest.approx(2 * half, rel=0.07)
    ratio = found["snips"].value
    half = 1.96 * (weight * (reward - ratio)).std() / n**0.5 / weight.mean()
    assert found["snips"].high - found["snips"].low == pytest.approx(2 * half, rel=0.07)


def test_a_log_without_a_click_bounds_the_click_rate_by_its_effective_size():
    generator = np.random.default_rng(0)
    weight = generator.exponential(size=4_000)  # effective sample size about 2,000
    zeros = np.zeros(4_000)
    for e in estimate_from_weights(weight, zeros, zeros, zeros, ["ips", "snips"]).values():
        assert e.value == 0
        assert e.low == pytest.approx(0, abs=1e-12)
        assert 1.5 / e.ess < e.high < 6 / e.ess  # the rule of three


def test_rows_of_one_shopper_are_one_observation():
    weight, reward, q, v, _ = planted(np.random.default_rng(0), 2_000, 0.2, 1.0)
    single = estimate_from_weights(weight, reward, q, v, ESTIMATORS)
    each_alone = estimate_from_weights(weight, reward, q, v, ESTIMATORS, cluster=np.arange(2_000))
    assert each_alone == single
    rows = [np.repeat(x, 9) for x in (weight, reward, q, v)]
    shopper = np.repeat([f"shopper {i}" for i in range(2_000)], 9)
    clustered, naive = (estimate_from_weights(*rows, ESTIMATORS, cluster=c) for c in (shopper, None))
    for name in ESTIMATORS:
        width = single[name].high - single[name].low
        assert clustered[name].value == pytest.approx(single[name].value)
        assert clustered[name].high - clustered[name].low == pytest.approx(width, rel=0.1)
        assert naive[name].high - naive[name].low == pytest.approx(width / 3, rel=0.15)


def test_the_seed_decides_and_the_company_does_not():
    rows = planted(np.random.default_rng(0), 1_000, 0.1, 1.0)[:4]
    assert estimate_from_weights(*rows, ["dr"], seed=3) == estimate_from_weights(*rows, ["dr"], seed=3)
    assert estimate_from_weights(*rows, ["dr"], seed=3)["dr"].low != estimate_from_weights(*rows, ["dr"])["dr"].low
    together = estimate_from_weights(*rows, ["snips", "dr"], seed=3)
    assert list(together) == ["snips", "dr"]
    assert tuple(together["dr"]) == pytest.approx(tuple(estimate_from_weights(*rows, ["dr"], seed=3)["dr"]))


def test_other_number_types_give_the_same_estimates():
    log = THREE | {"reward": [True, False, True], "action": THREE["action"].astype(np.int8)}
    log |= {name: THREE[name].astype(np.float32) for name in ("propensity", "target", "q_hat")}
    found, expected = estimate(**log, estimators=ESTIMATORS), estimate(**THREE, estimators=ESTIMATORS)
    for name in ESTIMATORS:
        assert (found[name].value, found[name].ess) == pytest.approx(
            (expected[name].value, expected[name].ess), rel=1e-5
        )


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.zeros((0, 3))}, "target: shape; got (0, 3), expected (n, n_actions), both at least 1"),
        ({"target": np.zeros(3)}, "target: shape; got (3,), expected (n, n_actions), both at least 1"),
        ({"target": [[0.5, 0.5], [1.0]]}, "target: rows differ in length; expected an array"),
        ({"target": [["a"]]}, "target: not an array of numbers; got '<U1', expected numbers"),
        (
            {"target": np.full((3, 3), 0.3)},
            "target, row 0: sum is off; got 0.8999999999999999, expected probabilities that sum to 1",
        ),
        (
            {"target": [[1, 0, 0], [0, 1, 0], [0.7, -0.1, 0.4]]},
            "target, row 2: bad value; got -0.1, expected probabilities >= 0",
        ),
        (
            {"target": [[1, 0, 0], [0, np.nan, 1], [0, 0, 1]]},
            "target, row 1: bad value; got nan, expected probabilities >= 0",
        ),
        (
            {"target": [[1, 0, 0], [0, 0, 1], [0, 0, np.inf]]},
            "target, row 2: bad value; got inf, expected probabilities >= 0",
        ),
        ({"action": [0, 1]}, "action: shape; got (2,), expected (3,), one per row"),
        ({"action": [0.0, 1.0, 2.0]}, "action: actions are not integers; got 'float64', expected an integer type"),
        ({"action": [0, 3, 1]}, "action, row 1: bad value; got 3, expected an action in [0, 3)"),
        ({"action": [-1, 3, 1]}, "action, row 0: bad value; got -1, expected an action in [0, 3)"),
        ({"propensity": [0.5, 0.5]}, "propensity: shape; got (2,), expected (3,), one per row"),
        ({"propensity": [0.5, 0.0, 0.5]}, "propensity, row 1: bad value; got 0.0, expected a probability in (0, 1]"),
        ({"propensity": [0.5, 1.5, 0.5]}, "propensity, row 1: bad value; got 1.5, expected a probability in (0, 1]"),
        ({"propensity": [0.5, 1, np.nan]}, "propensity, row 2: bad value; got nan, expected a probability in (0, 1]"),
        ({"q_hat": np.zeros((3, 2))}, "q_hat: shape; got (3, 2), expected (3, 3), as target"),
        (
            {"q_hat": [[0, 0, 0], [0, 0, 0], [0, np.inf, 0]]},  # where the target is zero
            "q_hat, row 2: bad value; got inf, expected finite numbers",
        ),
        ({"reward": [0.0, 1.0]}, "reward: shape; got (2,), expected (3,), one per row"),
        ({"reward": [0.0, 1.0, np.nan]}, "reward, row 2: bad value; got nan, expected a finite number"),
        ({"cluster": ["a", "b"]}, "cluster: shape; got (2,), expected (3,), one label per row"),
        (
            {"cluster": np.array(["a", None, "b"], dtype=object)},
            "cluster labels cannot be compared; expected labels of one type, none missing",
        ),
        (
            {"cluster": [1.0, np.nan, 2.0]},
            "row 1: cluster holds NaN; expected a label per row; "
            "give each row of an unknown shopper a label of its own",
        ),
        ({"cluster": ["a", "a", "a"]}, "estimate: too few shoppers for an interval; got 1, expected at least 2"),
        ({"estimators": "dr"}, "estimators: one name instead of a list; got 'dr', expected a list of names"),
        ({"estimators": ["snipss"]}, "estimators: unknown estimator; got 'snipss'; did you mean 'snips'?"),
        ({"estimators": ["dr(5)"]}, "estimators: takes no parameter; got 'dr(5)', expected dr"),
        (
            {"estimators": ["ips_clip"]},
            "estimators: not an estimator; got 'ips_clip', expected ips_clip(c), c a positive number",
        ),
        (
            {"estimators": ["dr-os(0)"]},
            "estimators: not an estimator; got 'dr-os(0)', expected dr-os(c), c a positive number",
        ),
        (
            {"estimators": ["switch-dr(inf)"]},
            "estimators: not an estimator; got 'switch-dr(inf)', expected switch-dr(c), c a positive number",
        ),
        (
            {"estimators": ["sg-dr(1)"]},
            "estimators: not an estimator; got 'sg-dr(1)', expected sg-dr(c), c a positive number under 1",
        ),
        (
            {"target": [[0, 1, 0], [1, 0, 0], [1, 0, 0]], "estimators": ["dm", "snips"]},
            "estimator snips: the target never takes a logged action; the log cannot say anything about this strategy",
        ),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str):
    with pytest.raises(InputError) as caught:
        estimate(**{**THREE, "estimators": ["dr"], **change})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([], "weight: shape; got (0,), expected (n,), one per row"),
        ([[1.0]], "weight: shape; got (1, 1), expected (1,), one per row"),
        ([1.0, -1.0], "weight, row 1: bad value; got -1.0, expected a weight >= 0"),
        ([1.0, np.inf], "weight, row 1: bad value; got inf, expected a finite number"),
        ([1.0], "estimate: too few rows for an interval; got 1, expected at least 2"),
    ],
)
def test_bad_weights_are_named(weight: list[float], message: str):
    other = np.zeros(len(weight))
    with pytest.raises(InputError) as caught:
        estimate_from_weights(weight, other, other, other, ["dr"])
    assert str(caught.value) == message


def test_a_target_that_the_log_never_took_is_left_to_the_model():
    log = THREE | {"target": np.array([[0.0, 1, 0], [1, 0, 0], [1, 0, 0]])}
    found = estimate(**log, estimators=["dm", "dr", "ips"])
    assert found["dr"].value == found["dm"].value == pytest.approx((0.2 + 0.4 + 0.5) / 3)
    assert (found["ips"].value, found["ips"].ess, found["dr"].ess) == (0, 0, 0)
