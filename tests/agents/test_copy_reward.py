"""The reward of copy: what the environment pays for the same page, with the same history."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hawker.agents.copy_reward import COMPONENTS, CopyReward
from hawker.benchmarks.fidelity_cohort import impressions, served
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder
from hawker.shop.lines import Lines
from hawker.shop.reward import RewardSpec
from hawker.simulators.appeal import ARCHITECTURES, Recorded
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.bazaar_shop import make_items
from hawker.simulators.config import FitConfig
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.likelihood import predict_rows
from hawker.simulators.rows import encode_log
from hawker.simulators.shopper import IDENTITY, Ensemble, ShopperModel, calibrated
from hawker.simulators.store import FittedShoppers
from hawker.simulators.support import Support

CPU = torch.device("cpu")
SPEC = RewardSpec(click=1.0, conversion=5.0, return_visit=2.0, offer=0.01, disagreement=0.5, support=0.02)
PLAIN = replace(SPEC, disagreement=0.0, support=0.0)
DISCOUNTS = (0.0, 0.05, 0.1, 0.2)
ITEMS = make_items(load_bazaar(None)).table
NEW = "A line that nobody has seen, for slow mornings"


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """Forty shoppers of the bazaar over 40 days."""
    bazaar = BazaarWorld(load_bazaar(None), CPU)
    return impressions(bazaar, served(bazaar, 40, 40, 3))


@pytest.fixture(scope="module")
def shoppers(log: pd.DataFrame) -> FittedShoppers:
    """Three members with weights drawn at random, all of them, so that every part of a page matters."""
    encoder = HashedEncoder()
    builder = ContextBuilder.fit(log, ITEMS, encoder)
    lines = Lines.from_impressions(log, encoder)
    recorded = Recorded.of(encode_log(log, builder, lines, CPU).rows)
    members = []
    for i, architecture in enumerate(ARCHITECTURES[:3]):
        generator = torch.Generator().manual_seed(i)
        model = ShopperModel(builder, 8, architecture, 0.1, generator, recorded, lines)
        for weights in model.parameters():
            with torch.no_grad():
                weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.1)
        members.append(model.eval())
    calibration = torch.tensor([[0.1, 0.9, 0, 0], [-0.2, 1.1, 0, 0], [0.0, 1.0, 0.2, -2], [0.2, 0.8, -0.3, -1]])
    shopper = torch.from_numpy(builder.encode_shoppers(log.iloc[:1]))
    candidates = torch.arange(30)[None]
    arrivals = Context(shopper, candidates, torch.ones_like(candidates).bool(), torch.zeros(candidates.shape))
    support = Support.from_impressions(log, builder.catalog, lines, recorded.offers)
    ensembles = {"train": Ensemble(members, calibration)}
    return FittedShoppers(builder, 8, FitConfig(), ensembles, {"train": arrivals}, Path(), "", support, lines)


@pytest.fixture(scope="module")
def reward(log: pd.DataFrame, shoppers: FittedShoppers) -> CopyReward:
    return CopyReward(shoppers, log, ITEMS, SPEC, discounts=DISCOUNTS, contexts=8, seed=1)


def first_page(log: pd.DataFrame) -> pd.DataFrame:
    """The first page of the log's first row's shopper, whom the shoppers' arrivals consist of."""
    return log[(log["visit_id"] == log["visit_id"].iloc[0]) & (log["page"] == 0)]


def answered(world: LearnedWorld, decision: Decision[Tensor], seed: int) -> tuple[list[int], Outcome[Tensor]]:
    """Which member answers each of the pages, and what the environment's world makes of them."""
    generator = torch.Generator().manual_seed(seed)
    here = world.arrive(len(decision.slate), generator)
    return here.member.tolist(), world.respond(here, decision, generator)[1]


def lay(item: int, line: int, tier: int, rest: pd.DataFrame | None, shoppers: FittedShoppers) -> Decision[Tensor]:
    """The item with the line on the first slot of three pages; below it what the log shows there, if anything."""
    slate, copy, ad = torch.full((8,), EMPTY), torch.full((8,), EMPTY), EMPTY
    if rest is not None:
        slate[:] = torch.from_numpy(shoppers.builder.catalog.index(rest["item_id"], "test"))
        copy[:] = torch.from_numpy(shoppers.lines.index(rest["copy"]))
        ads = rest["position"][rest["placement"] == "ad"]
        ad = int(ads.iloc[0]) if len(ads) and ads.iloc[0] > 0 else EMPTY
    slate[0], copy[0] = item, line
    return Decision(
        slate.expand(3, 8),
        torch.zeros(3),
        ad=torch.full((3,), ad),
        offer=torch.full((3,), tier),
        copy=copy.expand(3, 8),
    )


@pytest.mark.parametrize(("line", "tier"), [(5, 0), (40, 2), (EMPTY, 1), (NEW, 3)])
def test_a_page_of_one_item_earns_what_the_environment_pays(
    log: pd.DataFrame, shoppers: FittedShoppers, line: int | str, tier: int
):
    page = first_page(log).iloc[:1]
    reward = CopyReward(shoppers, page, ITEMS, SPEC, discounts=DISCOUNTS, contexts=1)
    hearing = shoppers.with_lines([NEW])
    number = len(shoppers.lines) if line == NEW else line
    text = "" if number == EMPTY else hearing.lines.texts[number]
    found = reward.by_member(["i0007"], ["new"], [DISCOUNTS[tier]], [text])
    decision = lay(7, number, tier, None, shoppers)
    members, outcome = answered(hearing.world("train", doubts=True), decision, 0)
    parts = SPEC.components(outcome, decision, torch.zeros(500))
    for row, member in enumerate(members):
        assert found["click"][member, 0] == pytest.approx(float(parts["click"][row]), rel=1e-4)
        assert 5 * found["conversion"][member, 0] == pytest.approx(float(parts["conversion"][row]), rel=1e-4)
        if line == NEW:
            continue  # it is paid for what is familiar of it
        assert 0.5 * found["spread"][member, 0] == pytest.approx(-float(parts["disagreement"][row]), rel=1e-3)
        at_once = sum(float(parts[name][row]) for name in ("click", "conversion", "offer", "disagreement", "support"))
        back = 2 * found["return_visit"][member, 0] * reward.last
        assert found["total"][member, 0] == pytest.approx(at_once + back, rel=1e-4)
    mean = reward(["i0007"], ["new"], [DISCOUNTS[tier]], [text])
    assert mean["total"][0] == pytest.approx(found["total"].mean())


def test_what_is_not_familiar_of_a_line_is_paid_as_no_line(log: pd.DataFrame, shoppers: FittedShoppers):
    reward = CopyReward(shoppers, log, ITEMS, replace(PLAIN, offer=0.0), discounts=DISCOUNTS, contexts=1)
    logged, strange = shoppers.lines.texts[11], "zzz qqq xxx"
    lines = (logged, f"{logged} {strange}", strange)
    share = shoppers.lines.familiar(lines, HashedEncoder())
    assert share[0] == 1
    assert share[2] < 0.2 < share[1] < 0.9
    found = reward.by_member(["i0007"] * 4, [""] * 4, [0.1] * 4, [*lines, ""])
    assert (np.abs(found["click"][:, 2] - found["click"][:, 3]) > 1e-3).any()  # models think that they know it
    click, back = found["click"], found["return_visit"]
    bought = found["conversion"] / click
    for i in range(3):
        clicks, buys, returns = (share[i] * of[:, i] + (1 - share[i]) * of[:, 3] for of in (click, bought, back))
        expected = clicks * (1 + 5 * buys) + 2 * reward.last * returns
        assert found["total"][:, i] == pytest.approx(expected, rel=1e-4)


def test_on_a_full_page_the_line_does_what_it_does_in_the_environment(log: pd.DataFrame, shoppers: FittedShoppers):
    """The world draws clicks, and says how likely a return is after them: the page is drawn until both have come."""
    page = first_page(log).assign(clicked=0, converted=0.0)
    never = replace(shoppers, ensembles={"train": _without_purchases(shoppers.ensembles["train"])})
    reward = CopyReward(never, page, ITEMS, PLAIN, discounts=DISCOUNTS, contexts=1)
    found = reward.by_member(["i0007"], [""], [0.1], [shoppers.lines.texts[11]])
    decision = lay(7, 11, 2, page, shoppers)
    world = never.world("train")
    back: dict[tuple[int, int], float] = {}
    for seed in range(60):
        members, outcome = answered(world, decision, seed)
        for row, member in enumerate(members):
            chance = float(outcome.click_probability[row, 0])
            assert found["click"][member, 0] == pytest.approx(chance, rel=1e-4)
            if not outcome.clicked[row, 1:].any():
                back[member, int(outcome.clicked[row, 0])] = float(outcome.return_probability[row])
    assert len(back) == 6
    for member in range(3):
        chance = found["click"][member, 0]
        expected = (1 - chance) * back[member, 0] + chance * back[member, 1]
        assert found["return_visit"][member, 0] == pytest.approx(expected, rel=1e-4)
        assert back[member, 0] != pytest.approx(back[member, 1], rel=1e-3)


def _without_purchases(ensemble: Ensemble) -> Ensemble:
    calibration = ensemble.calibration.clone()
    calibration[1] = torch.tensor([-30.0, 1.0, 0.0, 0.0])
    return Ensemble(ensemble.models, calibration)


def test_histories_count(log: pd.DataFrame, shoppers: FittedShoppers):
    """On a later page: what the members expect of the log with the line and the item in their place."""
    code = log["shopper_id"].value_counts().index[0]
    own = log[log["shopper_id"] == code].reset_index(drop=True)
    reward = CopyReward(shoppers, own, ITEMS, PLAIN, contexts=1, seed=3)
    label = reward.audiences.label(own, ITEMS)
    counts = pd.Series(np.asarray(label)[own["position"] == 0]).value_counts()
    alone = next(name for name in counts.index[::-1] if counts[name] == 1 and not name.startswith("new"))
    text = shoppers.lines.texts[30]
    found = reward.by_member(["i0300"], [alone], [0.0], [text])
    row = np.flatnonzero((label == alone) & (own["position"] == 0))
    assert len(row) == 1
    changed = own.astype({"item_id": object, "copy": object, "placement": object})
    changed.loc[row, ["item_id", "copy", "placement"]] = ["i0300", text, "organic"]
    changed.loc[changed["visit_id"].eq(own["visit_id"][row[0]]) & changed["page"].eq(own["page"][row[0]]), "offer"] = 0
    encoded = encode_log(changed, shoppers.builder, shoppers.lines, CPU)
    place = int(np.flatnonzero(encoded.order == row[0])[0])
    for member, model in enumerate(shoppers.ensembles["train"].models):
        with torch.no_grad():
            odds = predict_rows(model, encoded.rows).click.exp()
        expected = calibrated(odds, shoppers.ensembles["train"].calibration[0])[place]
        assert found["click"][member, 0] == pytest.approx(float(expected), rel=1e-3)


def test_an_answer_does_not_depend_on_what_else_is_asked(reward: CopyReward):
    items = ["i0001", "i0001", "i0002", "i0001", "i0400"]
    audiences = [reward.labels[0], reward.labels[0], reward.labels[0], "", reward.labels[-1]]
    discounts, lines = [0.0, 0.0, 0.2, 0.0, 0.05], ["Made by hand", "a line nobody has seen", "", "Made by hand", "x"]
    whole = reward(items, audiences, discounts, lines)
    assert set(whole) == set(COMPONENTS)
    for i in range(5):
        alone = reward(items[i : i + 1], audiences[i : i + 1], discounts[i : i + 1], lines[i : i + 1])
        for name in COMPONENTS:
            assert alone[name][0] == pytest.approx(whole[name][i], rel=1e-5)
    assert len(set(np.round(whole["click"], 9))) == 5
    assert (whole["click"] > whole["conversion"]).all()
    assert ((whole["return_visit"] > 0) & (whole["return_visit"] < 1)).all()
    assert (whole["spread"] > 0).all()
    assert all(part.shape == (0,) for part in reward([], [], [], []).values())


def test_pessimism_is_that_of_the_reward(log: pd.DataFrame, shoppers: FittedShoppers, reward: CopyReward):
    plain = CopyReward(shoppers, log, ITEMS, PLAIN, discounts=DISCOUNTS, contexts=8, seed=1)
    known = shoppers.lines.texts[3]
    asked = (["i0003"] * 2, [""] * 2, [0.0] * 2, [known, "a line nobody has seen"])
    bold, careful = plain(*asked), reward(*asked)
    missing = shoppers.support.missing(
        Decision(torch.tensor([[3], [3]]), torch.zeros(2), copy=torch.tensor([[3], [94]]))
    )
    assert missing.tolist()[1] == 1.0
    expected = bold["total"] - 0.5 * bold["spread"] - 0.02 * missing.numpy()
    assert careful["total"] == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_gives_the_same_and_the_shoppers_stay_as_they_were(log: pd.DataFrame, shoppers: FittedShoppers):
    asked, few = (["i0003"], [""], [0.0], ["a line nobody has seen"]), log[log["shopper_id"] < "c0000004"]
    before = [model.line_vectors.clone() for model in shoppers.ensembles["train"].models]
    first, again, other = (CopyReward(shoppers, few, ITEMS, SPEC, contexts=4, seed=seed)(*asked) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    for model, vectors in zip(shoppers.ensembles["train"].models, before, strict=True):
        assert torch.equal(model.line_vectors, vectors)
        assert model.in_view is not None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((["i0001"], ["new"], [0.0], []), "lists of different lengths; got '1 items, 1 audiences"),
        ((["i9999"], [""], [0.0], ["x"]), "item not in the catalog"),
        ((["i0001"], ["newt"], [0.0], ["x"]), "no page of the log has this audience"),
    ],
)
def test_what_is_not_known_is_refused(reward: CopyReward, asked: tuple, message: str):
    with pytest.raises(InputError, match=message):
        reward(*asked)


def test_shoppers_that_cannot_answer_are_refused(log: pd.DataFrame, shoppers: FittedShoppers):
    with pytest.raises(InputError, match="seen no lines of copy"):
        CopyReward(replace(shoppers, lines=None), log, ITEMS, SPEC)
    with pytest.raises(InputError, match="no contexts"):
        CopyReward(shoppers, log, ITEMS, SPEC, contexts=0)
    model = shoppers.ensembles["train"].models[0]
    bare = replace(model.recorded, conversions=False, revenue=False, returns=False)
    members = [ShopperModel(shoppers.builder, 8, ARCHITECTURES[0], 0.1, torch.Generator(), bare, shoppers.lines)]
    poor = replace(shoppers, ensembles={"train": Ensemble(members, IDENTITY)})
    with pytest.raises(InputError, match="no conversion head"):
        CopyReward(poor, log, ITEMS, SPEC)
    clicks = CopyReward(poor, log, ITEMS, RewardSpec(), contexts=2)(["i0001"], [""], [0.0], [poor.lines.texts[3]])
    assert clicks["total"] == clicks["click"]
    assert clicks["conversion"] == clicks["return_visit"] == clicks["spread"] == 0
