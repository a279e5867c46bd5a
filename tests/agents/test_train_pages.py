"""``train`` on shoppers with a memory: whole pages, of the parts that their log knows."""

import dataclasses
import shutil

import pytest
import torch

from hawker.agents import page_world
from hawker.agents.config import WHOLE_PAGES, Constraints, TrainConfig, defaults_for
from hawker.agents.page_world import read
from hawker.agents.train import train
from hawker.policies.page_actor import PageStrategy
from hawker.shop.artefacts import read_json, sha256
from hawker.shop.config import load_config
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.store import load_shoppers

CPU = torch.device("cpu")

TINY = dataclasses.replace(
    WHOLE_PAGES,
    steps=512,
    shoppers=32,
    pages=4,
    batch=64,
    critic_first=128,
    hidden=8,
    horizon=5.0,
    checkpoint_every=2,
    device="cpu",
)
"""Four rollouts of 128 pages, the first of them for the critic, with a checkpoint after the second."""

MEASURED = ("random", "myopic", "trained", "likeliest")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(page_world, "EVALUATION_SHOPPERS", 10)


@pytest.fixture
def run(remembering, tmp_path) -> Run:
    shutil.copytree(remembering / "run", tmp_path / "run")
    return Run(tmp_path / "run")


def silent(pages: int, in_all: int, reward: float) -> None:
    """Take a report of progress and drop it."""


def weights(run: Run) -> tuple[str, str]:
    return sha256(run.policy / "actor.safetensors"), sha256(run.checkpoint / "state.safetensors")


def broken_off_after(pages: int):
    def progress(done: int, in_all: int, reward: float) -> None:
        if done >= pages:
            raise KeyboardInterrupt

    return progress


def test_a_run_gets_a_policy_of_whole_pages(run):
    strategy, report = train(run, TINY, False, silent)
    assert {path.name for path in run.path.iterdir()} == {"shoppers", "policy", "checkpoint", "tensorboard"}
    assert report == read_json(run.policy / "train.json")
    assert report["parts"] == ["slate", "ad", "offer", "copy"]
    assert set(report["figures"]) == {f"reward_per_{unit}.{name}" for unit in ("page", "shopper") for name in MEASURED}
    assert all(seen["low"] < seen["value"] < seen["high"] for seen in report["figures"].values())
    assert {seen["n"] for seen in report["figures"].values()} == {10}
    assert "upper bound" in report["judged_by"]
    assert load_config(TrainConfig, run.policy / "config.yaml") == TINY
    again = PageStrategy.load(run.policy, CPU)
    shoppers = load_shoppers(run.shoppers, CPU)
    assert again.trained_on == strategy.trained_on
    assert again.trained_on["shoppers"] == shoppers.digest == sha256(run.shoppers / "checksums.json")
    world = read(shoppers, shoppers.world("train"), TINY.reward)
    assert again.lines == world.lines == shoppers.lines.texts
    assert again.builder.shopper == world.builder.shopper
    context = world.arrive(300, torch.Generator().manual_seed(0)).context
    one, other = (arm.propose(context, torch.Generator().manual_seed(1)) for arm in (strategy, again))
    assert torch.equal(one.slate, other.slate)
    assert torch.equal(one.copy, other.copy)
    assert (one.ad >= 0).any()
    assert (one.offer > 0).any()


EVERYTHING = dataclasses.replace(
    TINY,
    reward=RewardSpec(conversion=5.0, repetition=0.1, disagreement=0.5, support=0.2),
    constraints=Constraints(ad_load=0.05),
    ad_gap=2,
    ad_cap=0.5,
    epochs=1,
)
"""With doubts, a limit over all pages, limits of each shopper, and a rate that falls: all that has a state."""


@pytest.fixture(scope="module")
def unbroken(remembering, tmp_path_factory) -> tuple[tuple[str, str], dict]:
    """Weights and figures of a training of ``EVERYTHING`` in one go."""
    home = tmp_path_factory.mktemp("unbroken")
    shutil.copytree(remembering / "run", home / "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page_world, "EVALUATION_SHOPPERS", 10)
        patched.setattr("hawker.agents.train.SETTLING_SHOPPERS", 60)
        _, report = train(Run(home / "run"), EVERYTHING, False, silent)
    assert report["settled"]["rounds"] > 0
    assert set(report["settled"]["numbers"]) == {"ad_load"}
    return weights(Run(home / "run")), report["figures"]


@pytest.mark.usefixtures("nothing_global")
@pytest.mark.parametrize(("broken_off", "goes_on_at"), [(256, 128), (512, 384)])
def test_broken_off_and_resumed_is_as_unbroken(run, unbroken, broken_off, goes_on_at, monkeypatch):
    monkeypatch.setattr("hawker.agents.train.SETTLING_SHOPPERS", 60)
    with pytest.raises(KeyboardInterrupt):
        train(run, EVERYTHING, False, broken_off_after(broken_off))
    assert not run.policy.exists()
    assert run.checkpoint.exists() == (broken_off > 256)
    told: list[int] = []
    _, report = train(run, EVERYTHING, True, lambda done, *rest: told.append(done))
    assert told[0] == goes_on_at
    assert (weights(run), report["figures"]) == unbroken


def test_other_seed_other_weights_and_other_values_are_not_gone_on_with(run):
    train(run, TINY, False, silent)
    before = weights(run)
    for change in ({"horizon": 14.0}, {"reward": RewardSpec(conversion=4.0)}):
        with pytest.raises(InputError, match=f"made with another value of config.{next(iter(change))}"):
            train(run, dataclasses.replace(TINY, **change), True, silent)
    assert weights(run) == before
    train(run, dataclasses.replace(TINY, seed=1), False, silent)
    assert not set(weights(run)) & set(before)


def test_what_the_log_does_not_know_is_not_chosen(remembering_items, tmp_path):
    shutil.copytree(remembering_items / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    config = dataclasses.replace(TINY, reward=defaults_for(run.shoppers).reward)
    _, report = train(run, config, False, silent)
    assert report["parts"] == ["slate"]
    strategy = PageStrategy.load(run.policy, CPU)
    assert strategy.lines == ()
    shoppers = load_shoppers(run.shoppers, CPU)
    context = read(shoppers, shoppers.world("judge"), RewardSpec()).arrive(5, torch.Generator()).context
    decision = strategy.propose(context, torch.Generator())
    assert (decision.ad, decision.offer, decision.copy) == (None, None, None)
    with pytest.raises(InputError, match=r"reward.ad_income: no ads are learned here; got 1.0, expected 0"):
        train(run, dataclasses.replace(TINY, reward=RewardSpec(ad_income=1.0)), False, silent)
    with pytest.raises(InputError, match="the shoppers have no conversion head"):
        train(run, TINY, False, silent)


def test_defaults_are_those_of_what_is_known(remembering, remembering_items, fitted_run, tmp_path):
    assert defaults_for(remembering / "run" / "shoppers") == WHOLE_PAGES
    assert WHOLE_PAGES.reward == RewardSpec(conversion=5.0)
    items = defaults_for(remembering_items / "run" / "shoppers")
    assert items == dataclasses.replace(WHOLE_PAGES, reward=RewardSpec())
    assert defaults_for(fitted_run / "run" / "shoppers") == TrainConfig()
    assert defaults_for(tmp_path) == TrainConfig()
    (tmp_path / "shoppers.json").write_text('{"recorded": []}')
    assert defaults_for(tmp_path) == TrainConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 128}, "train.steps: too few steps: the critic would learn in all of them, and the strategy in none; "
                         "got 128, expected more than train.critic_first, 128"),
        ({"steps": 100}, "train.steps: too few steps"),
        ({"horizon": 0.5}, "train.horizon: bad config; got 0.5, expected a number from 1 to 365"),
        ({"horizon": float("nan")}, "train.horizon: bad config; got nan"),
        ({"ad_gap": 0}, "train.ad_gap: bad config; got 0"),
        ({"ad_cap": 1.5}, "train.ad_cap: bad config; got 1.5"),
        ({"greedy": -1.0}, "train.greedy: bad config; got -1.0"),
        ({"critic_first": -1}, "train.critic_first: bad config; got -1"),
    ],
)  # fmt: skip
def test_a_bad_config_is_refused_before_anything_is_written(run, change, message):
    with pytest.raises(InputError) as caught:
        train(run, dataclasses.replace(TINY, **change), False, silent)
    assert message in str(caught.value)
    assert [path.name for path in run.path.iterdir()] == ["shoppers"]
