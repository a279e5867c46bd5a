"""The small shop made on the spot."""

import pytest
import torch

from hawker.shop.logs import affinity_columns, feature_columns, read_logs
from hawker.simulators.small import small_tables, small_world


def test_tables_keep_the_contract_of_logs(tmp_path, write_logs):
    impressions, items = small_tables(n_items=7, size=2, n_rows=90)
    logs = read_logs(write_logs(tmp_path, (impressions, items)))
    assert (len(logs.impressions), len(logs.items)) == (90, 7)
    assert logs.impressions["shopper_id"].isna().all()
    assert logs.impressions["clicked"].sum() == 0
    assert set(logs.impressions["position"]) == {0, 1}
    assert feature_columns(impressions) == ["age", "segment"]
    assert affinity_columns(impressions) == {"item-0": "affinity.item-0"}


def test_tables_are_made_from_their_seed():
    one, two, other = (small_tables(seed=seed)[0] for seed in (0, 0, 1))
    assert one.equals(two)
    assert not one["age"].equals(other["age"])


def test_world_has_the_size_and_click_rate_asked_for():
    world = small_world(n_items=9, size=4, ctr=0.07)
    assert (len(world.builder.catalog), world.size) == (9, 4)
    drawn = world.draw(50_000, torch.Generator().manual_seed(0))
    assert float(drawn.probability.mean()) == pytest.approx(0.07, rel=0.03)
