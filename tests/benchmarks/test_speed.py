import dataclasses
import statistics

import numpy as np
import pytest
import torch

from hawker.benchmarks import speed
from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.leaderboard import LeaderboardConfig
from hawker.benchmarks.speed import QUICK, REWARD, Passes, SpeedConfig, Stepper, bench_speed, enlarged, random_pages
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import write_logs
from hawker.simulators.fit import fit
from hawker.simulators.reader import ReadWorld
from hawker.simulators.retrieval import MISSED, RetrievingWorld
from hawker.simulators.store import load_shoppers

SMALL = dataclasses.replace(
    QUICK, items=40, many_items=700, size=4, choices=9, batch=128, few=64, many=128, seconds=0.01, repeats=3,
    train=dataclasses.replace(QUICK.train, shoppers=64, pages=2, batch=64),
)  # fmt: skip


@pytest.fixture(scope="module")
def bazaar_run(tmp_path_factory):
    """Shoppers fitted in a hurry to a short log of the bazaar: every head is there."""
    directory = tmp_path_factory.mktemp("bazaar")
    world = BazaarWorld(load_bazaar(None), torch.device("cpu"))
    write_logs(world, logging_strategy(world, "popularity"), directory / "logs", 80, 28, 0)
    fit(directory / "logs", directory / "shoppers", FitConfig(members=2, epochs=1), lambda line: None)
    return directory / "shoppers"


@pytest.fixture(scope="module")
def fitted(bazaar_run):
    return load_shoppers(bazaar_run, torch.device("cpu"))


@pytest.fixture
def world(fitted):
    return enlarged(fitted, 1_100, 10, 50)


def test_an_enlarged_world_answers_as_the_fitted_one(fitted, world):
    small, n = fitted.world("train"), len(fitted.builder.catalog)
    assert (len(world.builder.catalog), world.size, world.choices) == (1_100, 10, 50)
    assert len(set(world.builder.catalog.item_ids)) == 1_100
    assert world.lines == small.lines
    assert torch.equal(world.bids[:n], small.bids)
    context = small.arrive(20, torch.Generator().manual_seed(0)).context
    slate = torch.arange(small.size).expand(20, -1)
    wide = torch.nn.functional.pad(slate, (0, 10 - small.size), value=EMPTY)
    expected = small.click_probabilities(context, slate)
    torch.testing.assert_close(world.click_probabilities(context, wide)[:, :, : small.size], expected)
    further = world.click_probabilities(context, torch.where(wide >= 0, wide + n, EMPTY))[:, :, : small.size]
    assert not torch.isclose(further, expected).all(0).any(), "further items are no copies"


def test_further_items_are_like_those_there_are(fitted, world):
    own, wide = (ensemble.models[0] for ensemble in (fitted.ensembles["train"], world.ensemble))
    old, new = (model.click.items(model.item_vectors).detach() for model in (own, wide))
    torch.testing.assert_close(new[: len(old)], old)
    assert len(new.unique(dim=0)) == 1_100
    # Together as far apart as before, and 2 x 0.3 x 0.3 of the variance more.
    ratio = new[len(old) :].var(0).sum() / old.var(0).sum()
    assert 1.0 < ratio < 1.4
    again = enlarged(fitted, 1_100, 10, 50).ensemble.models[0]
    assert torch.equal(again.item_vectors, wide.item_vectors)


def test_learning_is_timed_as_on_the_leaderboard_with_the_actor_learning():
    assert dataclasses.replace(SpeedConfig().train, critic_first=LeaderboardConfig().train.critic_first) == (
        LeaderboardConfig().train
    )
    assert SpeedConfig().train.critic_first == 0
    assert SpeedConfig().train.reward == LeaderboardConfig().reward


def test_classes_of_taste_are_enlarged_too(fitted, world):
    own, wide = fitted.ensembles["train"].tastes, world.ensemble.tastes
    assert own is not None
    assert len(wide.kinds) == 1_100
    for old, new in zip(own.utilities(), wide.utilities(), strict=True):
        torch.testing.assert_close(new.item[: len(old.item)], old.item)
        assert torch.equal(new.line, old.line)
    assert torch.equal(wide.kinds[len(own.kinds) : len(own.kinds) + 50], own.kinds[:50])


def test_candidates_of_an_enlarged_world_differ(world):
    candidates = world.arrive(200, torch.Generator().manual_seed(0)).context.candidates
    assert candidates.min() >= 0
    assert candidates.max() < 1_100
    assert all(len(row.unique()) == 50 for row in candidates)


def test_random_pages_show_nothing_twice(world):
    pages = random_pages(world, 300, 0)
    assert all(len(row.unique()) == 10 for row in pages[:, :10])
    highs = [50] * 10 + [51, 10, world.offers] + [len(world.lines) + 1] * 10
    assert pages.shape == (300, len(highs))
    assert (pages >= 0).all()
    assert (pages < torch.tensor(highs)).all()


def test_a_timed_step_is_a_whole_one(world):
    stepper = Stepper(world, 128)
    first = stepper.storefront.shoppers
    stepper.step()
    _, decision, outcome = stepper.storefront.shown
    assert decision.ad is not None
    assert decision.offer is not None
    assert decision.copy is not None
    assert outcome.return_probability is not None
    assert stepper.storefront.shoppers.placed
    assert not torch.equal(stepper.storefront.shoppers.state["memory"], first.state["memory"])


def test_a_timed_step_moves_nothing_between_host_and_device(world, never_waiting):
    stepper = Stepper(world, 128)
    stepper.step()
    with never_waiting():
        for _ in range(3):
            stepper.step()
            stepper.storefront.last_observation()


def test_a_storefront_shows_what_was_retrieved(fitted):
    world = enlarged(fitted, 700, 10, 50, retrieved=True)
    for inner in (world, ReadWorld(world, world.builder, world.ensemble, REWARD)):
        stepper = Stepper(RetrievingWorld(inner), 96)
        for _ in range(3):
            stepper.step()
            context, decision, _ = stepper.storefront.shown
            assert all(len(row.unique()) == 50 for row in context.candidates)
            found = (decision.slate[:, :, None] == context.candidates[:, None]).any(2)
            assert (found | (decision.slate == EMPTY)).all()
            assert found.float().mean() > 0.8
            assert not stepper.storefront.shoppers.state[MISSED].any()


def test_bare_passes_are_all_members_and_heads(world, monkeypatch):
    passes, seen = Passes(world, 128), []
    for model in world.models:
        after = model.memory.after
        monkeypatch.setattr(model.memory, "after", lambda *a, after=after: seen.append(after(*a)))
    passes.step()
    assert len(seen) == len(world.models)
    assert sum(len(memory) for memory, _ in seen) == 128


def test_figures_are_medians_with_their_range(bazaar_run):
    told = []
    report = bench_speed(dataclasses.replace(SMALL, shoppers=bazaar_run, processes=False), told.append)
    timings = report["timings"]
    env = report["figures"]["env.user_steps_per_s"]
    assert env["value"] == statistics.median(timings["env"])
    assert (env["low"], env["high"], env["n"]) == (min(timings["env"]), max(timings["env"]), 3)
    ratios = [a / b for a, b in zip(timings["env"], timings["bare"], strict=True)]
    assert report["figures"]["env.of_bare_forward"]["value"] == pytest.approx(statistics.median(ratios))
    costs = [a / b for a, b in zip(timings["few"], timings["many"], strict=True)]
    assert report["figures"]["env.cost_ratio_shoppers"]["value"] == pytest.approx(statistics.median(costs))
    costs = [a / b for a, b in zip(timings["few_items"], timings["many_items"], strict=True)]
    assert report["figures"]["env.cost_ratio_items"]["value"] == pytest.approx(statistics.median(costs))
    assert 0.9 < report["figures"]["retrieval.recall"]["value"] <= 1.0
    assert "env.two_processes" not in report["figures"]
    assert len(report["load"]["before"]) == 3
    assert report["shoppers"] == load_shoppers(bazaar_run, torch.device("cpu")).digest
    assert told


@pytest.mark.slow
def test_two_processes_are_timed_in_turn(bazaar_run):
    one, two = speed.two_processes(bazaar_run, SMALL)
    assert len(one) == len(two) == 3
    assert min(one) > 0
    assert min(two) > 0


def test_intervals_hold_the_median():
    found = speed._median(np.arange(100.0), "s")
    assert (found["value"], found["low"], found["high"], found["n"]) == (49.5, 40.0, 59.0, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repeats": 0}, "speed.repeats: bad number; got 0, expected above 0"),
        ({"batch": -1}, "speed.batch: bad number; got -1, expected above 0"),
        (
            {"choices": 5},
            "speed: too few items; got (10, 5, 1000, 100000), expected slots <= candidates <= items <= many items",
        ),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(InputError) as error:
        bench_speed(dataclasses.replace(SpeedConfig(), **change), print)
    assert str(error.value) == message
