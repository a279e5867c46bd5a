"""The planted world's truth, by enumeration."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.logs import feature_columns, read_logs
from hawker.simulators.config import PlantedEffects
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.small import small_tables, small_world


def world_with(effects: PlantedEffects, size: int = 3, n_items: int = 8, seed: int = 0) -> PlantedWorld:
    impressions, items = small_tables(n_items, size, seed=seed)
    builder = ContextBuilder.fit(impressions, items)
    bank = builder.from_impressions(impressions).map(lambda array: torch.from_numpy(np.array(array)))
    return PlantedWorld(builder, bank, size, effects, seed)


def every_attraction(world: PlantedWorld) -> torch.Tensor:
    """Return P(click | examined) of every shopper of the bank and every item, shape (500, n_items)."""
    row, n_items = torch.arange(500), len(world.builder.catalog)
    return world.attraction(row, torch.arange(n_items).expand(500, n_items))


@pytest.mark.parametrize("ctr", [0.002, 0.05, 0.3])
def test_mean_click_probability_is_the_one_asked_for(ctr):
    world = world_with(PlantedEffects(ctr=ctr))
    row, every_item = torch.arange(500), range(len(world.builder.catalog))
    shown = [world.click_probability(row, torch.full((500, 3), item)) for item in every_item]
    assert float(torch.stack(shown).mean()) == pytest.approx(ctr, rel=1e-9)


@pytest.mark.parametrize(
    ("effects", "over_items", "over_shoppers", "both"),
    [
        (PlantedEffects(item=0.9, shopper=0, taste=0, affinity=0), 0.9, 0.0, 0.0),
        (PlantedEffects(item=0, shopper=0.4, taste=0, affinity=0), 0.0, 0.4, 0.0),
        (PlantedEffects(item=0, shopper=0, taste=0.2, affinity=0), 0.0, 0.0, 0.2),
        (PlantedEffects(item=1.8, shopper=0.8, taste=0.5, affinity=0), 1.8, 0.8, 0.5),
    ],
)
def test_effects_are_as_large_as_asked_for(effects, over_items, over_shoppers, both):
    odds = every_attraction(world_with(effects)).logit()
    item, shopper = odds.mean(0) - odds.mean(), odds.mean(1) - odds.mean()
    rest = odds - odds.mean() - item - shopper[:, None]
    deviations = [float(part.std(correction=0)) for part in (item, shopper, rest)]
    assert deviations == pytest.approx([over_items, over_shoppers, both], abs=1e-9)


def test_affinity_acts_by_the_unit_on_its_item_alone():
    world = world_with(PlantedEffects(item=0, shopper=0, taste=0, affinity=0.7))
    odds, liked = every_attraction(world).logit(), world._bank.affinity[:, 0] == 1
    assert odds[liked, 0].tolist() == pytest.approx([float(odds[0, 1]) + 0.7] * int(liked.sum()))
    assert float(odds[:, 1:].std()) == pytest.approx(0.0, abs=1e-9)


def test_each_position_is_looked_at_by_a_share_of_the_one_above():
    world = world_with(PlantedEffects(examination=0.6))
    shown = world.click_probability(torch.arange(500), torch.full((500, 3), 2))
    torch.testing.assert_close(shown, shown[:, :1] * torch.tensor([1.0, 0.6, 0.36], dtype=torch.float64))


def test_best_slate_beats_every_other():
    world = world_with(PlantedEffects(ctr=0.1, taste=1.0), size=2, n_items=5)
    row = torch.arange(40)
    slates = torch.tensor(list(itertools.permutations(range(5), 2)))
    clicks = torch.stack([world.click_probability(row, slate.expand(40, 2)).sum(1) for slate in slates], 1)
    best = world.best_slate(row)
    assert torch.equal(best, slates[clicks.argmax(1)])
    torch.testing.assert_close(world.click_probability(row, best).sum(1), clicks.amax(1))
    assert len({tuple(slate) for slate in best.tolist()}) > 1, "the best slate depends on the shopper"


def test_best_slate_of_a_shop_with_fewer_items_than_slots_ends_empty():
    world = world_with(PlantedEffects(), size=4, n_items=2)
    best = world.best_slate(torch.arange(3))
    assert best.shape == (3, 4)
    assert best.sort(1).values.tolist() == [[EMPTY, EMPTY, 0, 1]] * 3
    assert (best[:, 2:] == EMPTY).all()


def test_drawn_rows_carry_their_true_probability():
    world = world_with(PlantedEffects(ctr=0.1))
    drawn = world.draw(100_000, torch.Generator().manual_seed(0))
    slate = torch.full((100_000, 3), EMPTY).scatter(1, drawn.position[:, None], drawn.item[:, None])
    torch.testing.assert_close(drawn.probability, world.click_probability(drawn.row, slate).sum(1))
    for values, n in ((drawn.item, 8), (drawn.position, 3)):
        counts = torch.bincount(values, minlength=n)
        assert float(((counts - 1e5 / n) ** 2 / (1e5 / n)).sum()) < n - 1 + 4 * (2 * (n - 1)) ** 0.5, "uniform"
    rare = drawn.probability < drawn.probability.median()
    for part in (rare, ~rare):
        p, clicks = drawn.probability[part], drawn.clicked[part].double()
        assert abs(float((clicks - p).sum())) < 4 * float((p * (1 - p)).sum().sqrt())


def test_a_written_log_is_what_was_drawn_in_order_of_time():
    impressions, _ = small_tables()
    world = small_world(ctr=0.2)
    log = world.write_log(3000, impressions.assign(page=4, converted=1.0, revenue=9.9), seed=3)
    drawn = world.draw(3000, torch.Generator().manual_seed(3))
    seen = pd.DataFrame(
        {
            "timestamp": impressions["timestamp"].to_numpy()[drawn.row],
            "item_id": [f"item-{item}" for item in drawn.item],
            "position": drawn.position,
            "clicked": drawn.clicked.to(torch.int8),
            "age": impressions["age"].to_numpy()[drawn.row],
        }
    ).sort_values("timestamp", kind="stable", ignore_index=True)
    seen["timestamp"] = seen["timestamp"].astype(log["timestamp"].dtype)
    pd.testing.assert_frame_equal(log[list(seen)], seen, check_dtype=False)
    assert (log["page"] == 0).all()
    assert log["visit_id"].is_unique
    assert not {"converted", "revenue"} & set(log), "what was bought after other clicks says nothing here"
    assert feature_columns(log) == feature_columns(impressions)


def test_a_written_log_keeps_the_contract(tmp_path, tables, write_logs):
    logs = read_logs(write_logs(tmp_path / "logs", tables))
    assert len(logs.impressions) == 1000
    assert 0.1 < logs.impressions["clicked"].mean() < 0.3


def test_the_seed_decides_every_effect():
    one, two, other = (every_attraction(world_with(PlantedEffects(), seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.isclose(one.mean(0), other.mean(0)).any()


def test_a_visit_is_one_page_and_leaves_its_shopper_as_they_came():
    world = small_world()
    shoppers = world.arrive(10, torch.Generator().manual_seed(0))
    decision = Decision(torch.tensor([[4, 0, EMPTY]]).expand(10, 3), torch.zeros(10))
    after, outcome = world.respond(shoppers, decision, torch.Generator().manual_seed(1))
    assert after is shoppers
    assert outcome.gone.all()
