import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.bazaar import BazaarWorld, State
from hawker.simulators.bazaar_pages import Pages
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.belief import Belief, forecast
from hawker.simulators.diary import simulate

CPU = torch.device("cpu")
NAMES = ("shopper", "page", "clock", "slate", "copy", "ad", "offer", "clicked", "converted")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Keeper:
    """The first candidates, with lines and a few ads."""

    name = "keeper"

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        candidates = context.candidates
        n = len(candidates)
        copy = torch.randint(0, 188, (n, 8), generator=generator)
        ad = torch.randint(-6, 8, (n,), generator=generator).clamp(min=EMPTY)
        return Decision(candidates[:, :8], torch.zeros(n), ad=ad, copy=copy)


def small(name: str) -> BazaarWorld:
    """Two segments that change often, two visit classes, one feature."""
    p = load_bazaar(name)
    feature = replace(p.features[0], weights=p.features[0].weights[:2])
    habit = replace(p.features[-1], weights=p.features[-1].weights[:2])
    come_back = replace(p.come_back, drift=0.3)
    return BazaarWorld(
        replace(
            p,
            segments=p.segments[:2],
            visit_classes=p.visit_classes[:2],
            features=(feature, habit),
            come_back=come_back,
        ),
        CPU,
    )


def enumerate_two_visits(
    world: BazaarWorld, features: Tensor, pages: list[tuple[Decision[Tensor], Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Sum over every path of segments and every class: one page, a gap of 4 days, one page."""
    p = world.parameters
    share = torch.tensor([s.share for s in p.segments])
    share = share / share.sum()
    first, classes = world.beliefs(features)
    (one, clicked1, bought1), (two, clicked2, bought2) = pages
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(())) + value

    def seen(state: State, decision: Decision[Tensor], clicked: Tensor, bought: Tensor) -> Tensor:
        conversion = world.conversion_probabilities(state, decision)
        chance = torch.where(bought, conversion, 1 - conversion)[clicked].prod()
        return chance * world.click_log_likelihood(world.attraction(state, decision), clicked).exp()[0]

    for z1, z2, r in itertools.product(range(2), repeat=3):
        state: State = {
            "segment": torch.tensor([z1]),
            "visit_class": torch.tensor([r]),
            "satisfaction": torch.zeros(1),
            "fatigue": torch.zeros(1, len(p.categories)),
            "page": torch.zeros(1, dtype=torch.int64),
            "clicked": torch.zeros(1, dtype=torch.bool),
        }
        prior = first[0, z1] * classes[0, r] * (0.7 * (z1 == z2) + 0.3 * share[z2])
        click, conversion = world.click_probabilities(state, one), world.conversion_probabilities(state, one)
        add("click1", prior * click)
        add("both1", prior * click * conversion)
        weight = prior * seen(state, one, clicked1, bought1)
        state = world.after_page(state, one, clicked1, bought1)
        leave = world.leave_probability(state)[0]
        add("seen1", weight)
        add("leave1", weight * leave)
        hazard = world.return_hazard(state, 6)[0]
        weight = weight * leave
        add("left1", weight)
        add("away1", weight * (1 - hazard).cumprod(0))
        weight = weight * (1 - hazard[:3]).prod() * hazard[3]
        state = world.rest(state, torch.tensor([4.0]), generator()) | {"segment": torch.tensor([z2])}
        click, conversion = world.click_probabilities(state, two), world.conversion_probabilities(state, two)
        add("back", weight)
        add("click2", weight * click)
        add("both2", weight * click * conversion)
        weight = weight * seen(state, two, clicked2, bought2)
        state = world.after_page(state, two, clicked2, bought2)
        add("seen2", weight)
        add("leave2", weight * world.leave_probability(state)[0])
        add("satisfaction2", weight * state["satisfaction"])
    return {
        "click1": sums["click1"],
        "conversion1": sums["both1"] / sums["click1"],
        "leave1": sums["leave1"] / sums["seen1"],
        "away1": sums["away1"] / sums["left1"],
        "click2": sums["click2"] / sums["back"],
        "conversion2": sums["both2"] / sums["click2"],
        "leave2": sums["leave2"] / sums["seen2"],
        "satisfaction2": sums["satisfaction2"] / sums["seen2"],
    }


@pytest.mark.parametrize("name", ["bazaar", "cascade", "weibull"])
def test_against_every_path_of_a_tiny_case(name: str):
    world = small(name)
    features = torch.tensor([[2, 1]])
    who = torch.tensor([0])
    pages = []
    for start, clicks, purchases in ((0, [1, 4], [4]), (40, [0], [])):
        clicked, bought = torch.zeros(1, 8, dtype=torch.bool), torch.zeros(1, 8, dtype=torch.bool)
        clicked[0, clicks], bought[0, purchases] = True, True
        slate = torch.arange(start, start + 8)[None]
        copy = torch.tensor([[0, 30, EMPTY, 50, 90, EMPTY, 120, 60]])
        decision = Decision(slate, torch.zeros(1), ad=torch.tensor([3]), offer=torch.tensor([1]), copy=copy)
        pages.append((decision, clicked, bought))
    exact = enumerate_two_visits(world, features, pages)
    belief, found = Belief(world, features, 20_000, generator()), {}
    for number, (decision, clicked, bought) in enumerate(pages, 1):
        found[f"click{number}"], found[f"conversion{number}"] = belief.page(who, decision)
        belief.see_page(who, decision, clicked, bought)
        found[f"leave{number}"] = belief.leaving(who)
        if number == 1:
            belief.see_leaving(who, torch.tensor([True]))
            found["away1"] = belief.staying_away(who, 6)
            belief.see_return(who, torch.tensor([4.0]))
    found["satisfaction2"] = belief.expected_satisfaction(who)
    for key, value in exact.items():
        assert found[key].flatten().tolist() == pytest.approx(value.flatten().tolist(), rel=0.015, abs=2e-4), key
    assert float(belief.weight.sum()) == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def diary() -> tuple[BazaarWorld, Pages]:
    world = BazaarWorld(load_bazaar(), CPU)
    columns, features = simulate(world, Keeper(), 400, 40, generator(2))
    return world, Pages(*(columns[name].numpy() for name in NAMES), features.numpy())


def log_loss(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -np.where(y, np.log(p), np.log1p(-p))


def test_a_log_is_foretold_better_than_by_its_own_rates(diary: tuple[BazaarWorld, Pages]):
    world, pages = diary
    found = forecast(world, pages, 40, generator(), particles=64)
    ended = pages.last
    room = 39 - pages.clock[ended] // 86_400
    gap = pages.days[ended]
    told = room >= 7
    heads = {
        "click": (found.click, pages.clicked, 0.07),
        "conversion": (found.conversion[pages.clicked], pages.converted[pages.clicked], 0.01),
        "leave": (found.leave, ended, 0.02),
        "return": (1 - found.staying_away[told][:, 6], (gap <= 7)[told], 0.03),
    }
    for name, (p, y, least) in heads.items():
        constant = log_loss(np.full(p.shape, y.mean()), y)
        assert 1 - log_loss(p, y).mean() / constant.mean() > least, name
        error = float(np.sqrt((p * (1 - p)).sum()))
        assert float(p.sum()) == pytest.approx(y.sum(), abs=4 * error), name  # calibrated


def test_shoppers_do_not_touch_each_other(diary: tuple[BazaarWorld, Pages]):
    """Some shoppers alone are foretold as among the others, but for the particles' noise."""
    world, pages = diary
    some = pages.shopper < 100
    few = Pages(*(getattr(pages, name)[some] for name in NAMES), pages.features[:100])
    alone = forecast(world, few, 10, generator(1), particles=256)
    among = forecast(world, pages, 10, generator(2), particles=256)
    assert np.corrcoef(alone.click.ravel(), among.click[some].ravel())[0, 1] > 0.995
    assert np.abs(alone.leave - among.leave[some]).mean() < 0.01


def test_a_seed_decides_the_particles(diary: tuple[BazaarWorld, Pages], nothing_global: None):
    world, pages = diary
    first, second = (forecast(world, pages, 5, generator(3), particles=8) for _ in range(2))
    for name in ("click", "conversion", "leave", "staying_away", "satisfaction"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
