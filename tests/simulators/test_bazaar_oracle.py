from dataclasses import replace

import pytest
import torch

from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_oracle import Aims, Lives, Oracle, live
from hawker.simulators.bazaar_parameters import load_bazaar

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def worlds() -> dict[str, BazaarWorld]:
    return {name: BazaarWorld(load_bazaar(name), CPU) for name in ("bazaar", "inert")}


@pytest.fixture(scope="module")
def lives(worlds: dict[str, BazaarWorld]) -> dict[tuple[str, str], Lives]:
    arms = {"clicks": Aims(), "myopic": Aims(1, 5), "aware": Aims(1, 5, 1)}
    return {
        (name, arm): live(world, Oracle(world, aims).propose, 300, 28, generator(3))
        for name, world in worlds.items()
        for arm, aims in arms.items()
    }


def test_the_greedy_page_cannot_be_bettered_by_one_change(worlds: dict[str, BazaarWorld]):
    world = worlds["bazaar"]
    shoppers = world.arrive(40, generator())
    best = Oracle(world, Aims()).propose(shoppers, generator())
    assert (best.slate.sort(1).values.diff(dim=1) != 0).all()
    assert best.copy is not None
    assert world.logged_lines[best.copy[best.copy != EMPTY]].all()
    expected = world.click_probabilities(shoppers.state, best)
    for seed in range(5):  # another line, or another item, on the first slot
        other_copy, other_slate = best.copy.clone(), best.slate.clone()
        other_copy[:, 0] = torch.randint(94, (40,), generator=generator(seed))
        picked = shoppers.context.candidates.gather(1, torch.randint(30, (40, 1), generator=generator(seed)))
        fresh = (picked != best.slate).all(1)
        other_slate[:, 0] = torch.where(fresh, picked[:, 0], best.slate[:, 0])
        for changed in (replace(best, copy=other_copy), replace(best, slate=other_slate)):
            assert (world.click_probabilities(shoppers.state, changed)[:, 0] <= expected[:, 0] + 1e-6).all()


def test_a_value_of_satisfaction_ends_spam(worlds: dict[str, BazaarWorld]):
    world = worlds["bazaar"]
    shoppers = world.arrive(200, generator(1))
    share = []
    for satisfaction in (0.0, 10.0):
        copy = Oracle(world, Aims(satisfaction=satisfaction)).propose(shoppers, generator()).copy
        assert copy is not None
        share.append(float(world.spam[copy.masked_fill(copy == EMPTY, len(world.lines))].mean()))
    assert share[0] > 0.5
    assert share[1] == 0.0


def test_greed_loses_to_an_eye_on_satisfaction(lives: dict[tuple[str, str], Lives]):
    def difference(name: str, arm: str) -> tuple[float, float]:
        one, two = lives[name, "aware"].reward(), lives[name, arm].reward()
        error = float((one.var() / len(one) + two.var() / len(two)).sqrt())
        return float(one.mean() - two.mean()), 1.96 * error

    for greedy in ("clicks", "myopic"):
        gain, margin = difference("bazaar", greedy)
        assert gain > margin
    gain, margin = difference("inert", "myopic")
    assert gain < margin
    rate = {key: float(value.clicks.sum() / value.impressions.sum()) for key, value in lives.items()}
    assert rate["bazaar", "clicks"] > 1.15 * rate["bazaar", "aware"]


def test_lives_add_up(worlds: dict[str, BazaarWorld]):
    world = worlds["bazaar"]
    seen = live(
        world, lambda s, g: Decision(s.context.candidates[:, :8], torch.zeros(len(s.member))), 50, 10, generator()
    )
    assert (seen.impressions == 8 * seen.pages).all()
    assert (seen.visits >= 1).all()
    assert (seen.pages >= seen.visits).all()
    assert (seen.purchases <= seen.clicks).all()
    assert torch.equal(seen.reward(2.0, 3.0), 2 * seen.clicks + 3 * seen.purchases)
