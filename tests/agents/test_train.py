"""``train`` on a run: what it writes, what it reports, and that it can be broken off and resumed."""

import dataclasses
import math
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hawker.agents.config import TrainConfig
from hawker.agents.page_ppo import page_ppo
from hawker.agents.train import reward_figure, train
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.baselines import RandomStrategy
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import read_json, sha256
from hawker.shop.config import load_config
from hawker.shop.decision import Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_world

CPU = torch.device("cpu")


def silent(pages: int, in_all: int, reward: float) -> None:
    """Take a report of progress and drop it."""


def weights(run: Run) -> tuple[str, str]:
    """Return the digests of the actor and of the whole state of training."""
    return sha256(run.policy / "actor.safetensors"), sha256(run.checkpoint / "state.safetensors")


def broken_off_after(pages: int):
    """Return a progress function that interrupts."""

    def progress(done: int, in_all: int, reward: float) -> None:
        if done >= pages:
            raise KeyboardInterrupt

    return progress


def test_a_run_gets_its_policy_checkpoint_curves_and_report(run, tiny):
    told: list[tuple[int, int, float]] = []
    strategy, report = train(run, tiny, False, lambda *line: told.append(line))
    assert [line[:2] for line in told] == [(128, 512), (256, 512), (384, 512), (512, 512)]
    assert told[0][2] == pytest.approx(report["figures"]["reward.random"]["value"], rel=0.25), "in units of reward"
    assert {path.name for path in run.path.iterdir()} == {"shoppers", "policy", "checkpoint", "tensorboard"}
    assert report == read_json(run.policy / "train.json")
    assert load_config(TrainConfig, run.policy / "config.yaml") == tiny
    assert set(report["figures"]) == {"reward.random", "reward.trained"}
    for figure in report["figures"].values():
        assert 0 < figure["low"] < figure["value"] < figure["high"] < 3
    assert (report["steps"], report["seed"]) == (512, 0)
    assert "upper bound" in report["judged_by"]
    again = TrainedStrategy.load(run.policy, CPU)
    assert again.trained_on == strategy.trained_on
    assert again.trained_on["shoppers"] == sha256(run.shoppers / "checksums.json")
    context = small_world().arrive(50, torch.Generator().manual_seed(0)).context
    assert torch.equal(again.distribution(context).logits, strategy.distribution(context).logits)


def test_curves_are_written_for_tensorboard(run, tiny):
    told: list[tuple[int, int, float]] = []
    train(run, tiny, False, lambda *line: told.append(line))
    curves = EventAccumulator(str(run.tensorboard)).Reload()
    rewards = curves.Scalars("rollout/reward")
    assert [event.step for event in rewards] == [128, 256, 384, 512]
    assert [event.value for event in rewards] == pytest.approx([reward for _, _, reward in told])
    assert {"train/loss", "train/entropy_loss", "train/approx_kl"} <= set(curves.Tags()["scalars"])


@pytest.mark.usefixtures("nothing_global")
def test_same_seed_same_weights(run, tiny):
    digests = []
    for seed in (0, 0, 1):
        train(run, dataclasses.replace(tiny, seed=seed), False, silent)
        digests.append(weights(run))
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])


@pytest.mark.parametrize(("broken_off", "goes_on_at"), [(128, 128), (384, 384), (640, 640), (768, 640)])
def test_broken_off_and_resumed_is_as_unbroken(run, tiny, broken_off, goes_on_at):
    """A checkpoint is written after every second rollout of 128 pages; from before the first, training starts anew."""
    longer = dataclasses.replace(tiny, steps=1024)
    train(run, longer, False, silent)
    unbroken = weights(run)
    for path in (run.policy, run.checkpoint):
        shutil.rmtree(path)
    with pytest.raises(KeyboardInterrupt):
        train(run, longer, False, broken_off_after(broken_off))
    assert not run.policy.exists()
    assert run.checkpoint.exists() == (broken_off > 256)
    told: list[int] = []
    train(run, longer, True, lambda done, *rest: told.append(done))
    assert told[0] == goes_on_at
    assert weights(run) == unbroken


def test_steps_can_be_added(run, tiny):
    train(run, dataclasses.replace(tiny, steps=1024), False, silent)
    unbroken = weights(run)
    train(run, tiny, False, silent)
    assert weights(run) != unbroken
    _, report = train(run, dataclasses.replace(tiny, steps=1024, checkpoint_every=5), True, silent)
    assert weights(run) == unbroken
    assert report["steps"] == 1024


def test_with_nothing_left_to_do_the_policy_is_written_again(run, tiny):
    _, first = train(run, tiny, False, silent)
    before = weights(run)
    (run.policy / "actor.safetensors").unlink()

    def never(*line: object) -> None:
        raise AssertionError("there was nothing left to do")

    _, again = train(run, tiny, True, never)
    assert weights(run) == before
    assert again["figures"] == first["figures"]


def test_resuming_without_a_checkpoint_starts_anew(run, tiny):
    train(run, tiny, True, silent)
    resumed = weights(run)
    train(run, tiny, False, silent)
    assert weights(run) == resumed


def test_other_shoppers_are_not_gone_on_with(fitted_run, run, tiny):
    train(run, tiny, False, silent)
    before = weights(run)
    fit(fitted_run / "logs", run.shoppers, FitConfig(members=2, epochs=1, seed=5, device="cpu"), lambda line: None)
    with pytest.raises(InputError, match="made with another value of shoppers"):
        train(run, tiny, True, silent)
    assert weights(run) == before


def test_a_damaged_checkpoint_leaves_the_policy_alone(run, tiny):
    train(run, tiny, False, silent)
    before = sha256(run.policy / "actor.safetensors")
    (run.checkpoint / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="the file was changed after it was written"):
        train(run, dataclasses.replace(tiny, steps=1024), True, silent)
    assert sha256(run.policy / "actor.safetensors") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[
            ({name: 0}, f"train.{name}: bad config; got 0")
            for name in ("steps", "shoppers", "pages", "batch", "epochs")
        ],
        *[({name: 0}, f"train.{name}: bad") for name in ("steps", "shoppers", "pages", "batch", "epochs")],
        *[({name: 0}, f"train.{name}: bad") for name in ("hidden", "checkpoint_every", "learning_rate")],
        ({"learning_rate": math.nan}, "train.learning_rate: bad config; got nan"),
        ({"clip": -0.2}, "train.clip: bad config; got -0.2"),
        ({"entropy": -1.0}, "train.entropy: bad config; got -1.0"),
        ({"trace": 1.5}, "train.trace: bad config; got 1.5"),
        ({"final_rate": -0.1}, "train.final_rate: bad config; got -0.1"),
        ({"discount": 1.5}, "train.discount: bad config; got 1.5, expected a number from 0 to 1"),
        ({"seed": -1}, "train.seed: bad config; got -1"),
        ({"device": "gpu"}, "device: unknown device; got 'gpu'"),
        ({"reward": RewardSpec(revenue=1.0)}, "reward.revenue: the shoppers have no revenue head; got 1.0"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(run, tiny, change, message):
    with pytest.raises(InputError) as caught:
        train(run, dataclasses.replace(tiny, **change), False, silent)
    assert message in str(caught.value)
    assert [path.name for path in run.path.iterdir()] == ["shoppers"]


def test_a_run_without_shoppers_is_refused(tmp_path, tiny):
    with pytest.raises(InputError, match="no shoppers here"):
        train(Run(tmp_path / "run"), tiny, False, silent)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("response", ["expected", "sampled"])
def test_reward_of_the_random_strategy_is_the_click_rate_of_its_slots(response):
    world, reward = small_world(ctr=0.1), RewardSpec(click=2.0, response=response)
    got = reward_figure(RandomStrategy(3), world, reward, seed=0)
    assert got["low"] < 2.0 * 3 * 0.1 < got["high"]
    assert (got["n"], got["unit"]) == (20_000, "reward per page")
    assert got["high"] - got["low"] < (0.01 if response == "expected" else 0.03)
    assert got == reward_figure(RandomStrategy(3), world, reward, seed=0)


def test_what_is_trained_earns_more_than_chance_where_there_is_something_to_learn(run):
    config = TrainConfig(steps=8192, shoppers=128, pages=4, batch=128, hidden=16, learning_rate=1e-2, device="cpu")
    _, report = train(run, config, False, silent)
    assert report["figures"]["reward.trained"]["low"] > 1.1 * report["figures"]["reward.random"]["high"]


class OneItemShop:
    """Item 7 is clicked wherever it is shown, and nothing else ever is."""

    def __init__(self, size):
        self._world = small_world(size=size)
        self.builder, self.size, self.device = self._world.builder, size, self._world.device
        self.choices, self.offers = self._world.choices, self._world.offers
        self.lines, self.bids = self._world.lines, self._world.bids

    def arrive(self, n, generator):
        """Return n shoppers."""
        return self._world.arrive(n, generator)

    def respond(self, shoppers, decision, generator):
        """Click item 7."""
        clicked = (decision.slate == 7).float()
        return shoppers, Outcome(clicked, clicked, torch.ones(len(clicked), dtype=torch.bool))


@pytest.mark.parametrize("size", [1, 3])
def test_a_shop_in_which_one_item_is_always_clicked_is_solved(size):
    world = OneItemShop(size)
    config = TrainConfig(shoppers=128, pages=4, batch=128, hidden=16, learning_rate=1e-2, device="cpu")
    model = page_ppo(StorefrontVecEnv(world, config.shoppers, config.reward, config.seed), config).learn(8192)
    strategy = TrainedStrategy(model.policy.actor.slate, world.builder, {})
    trained = reward_figure(strategy, world, RewardSpec(), seed=1)
    assert trained["low"] >= 0.95, "of 1, the best there is"
    first = strategy.distribution(world.arrive(50, torch.Generator()).context).mode()[:, 0]
    assert (first == 7).all()
