import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from hawker.shop.artefacts import CHECKSUMS
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.logs import Logs, read_logs
from hawker.simulators import diary
from hawker.simulators.bazaar import DAY, BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.diary import START, Columns, simulate, write_logs

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Plain:
    """The first five candidates, and nothing else that could be decided."""

    name = "plain"

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        n = len(context.mask)
        slate = torch.full((n, 8), EMPTY)
        slate[:, :5] = context.candidates[:, :5]
        return Decision(slate, torch.zeros(n))


class Everything:
    """A made-up decision with every part, and the time of the page hidden in its propensity."""

    name = "everything"

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        n = len(context.mask)
        slate = context.candidates[:, :8]
        copy = torch.randint(EMPTY, 188, (n, 8), generator=generator)
        ad, offer = torch.randint(EMPTY, 8, (n,), generator=generator), torch.randint(4, (n,), generator=generator)
        parts = {"ad": torch.full((n,), -0.5), "offer": torch.full((n,), -1.5), "copy": torch.full((n,), 1e-9)}
        propensity = torch.rand(n, 8, generator=generator).clamp(min=0.1)
        return Decision(slate, torch.full((n,), -2.0), ad, offer, copy, parts, propensity)


@pytest.fixture(scope="module")
def world() -> BazaarWorld:
    return BazaarWorld(load_bazaar(), CPU)


@pytest.fixture(scope="module")
def columns(world: BazaarWorld) -> Columns:
    return simulate(world, Everything(), 70, 20, generator(5))[0]


@pytest.fixture(scope="module")
def logs(world: BazaarWorld, tmp_path_factory: pytest.TempPathFactory) -> Logs:
    out = tmp_path_factory.mktemp("diary") / "logs"
    write_logs(world, Everything(), out, 70, 20, seed=5)
    return read_logs(out)


def test_pages_come_in_order_and_visits_are_whole(columns: Columns):
    shopper, clock, page = (columns[name] for name in ("shopper", "clock", "page"))
    same = shopper[1:] == shopper[:-1]
    assert bool((shopper[1:] >= shopper[:-1]).all())
    assert bool((clock[1:] > clock[:-1])[same].all())
    first = page == 0
    assert bool(first[0])
    assert bool(first[1:][~same].all())
    assert bool((page[1:] == page[:-1] + 1)[~first[1:]].all())
    days = clock // DAY
    assert bool((days[1:] - days[:-1] == 0)[~first[1:]].all())
    assert bool((days[1:] - days[:-1] >= 1)[same & first[1:]].all())
    assert int(days.min()) >= 0
    assert int(days.max()) < 20


def test_shoppers_join_evenly_over_the_first_60_percent(world: BazaarWorld):
    columns, _ = simulate(world, Plain(), 2_000, 10, generator())
    first = columns["clock"][torch.searchsorted(columns["shopper"], torch.arange(2_000))] // DAY
    counts = torch.bincount(first, minlength=10)
    assert counts[6:].tolist() == [0] * 4
    assert bool((counts[:6] > 270).all())


def test_a_log_holds_what_happened(world: BazaarWorld, columns: Columns, logs: Logs):
    assert logs.impressions is not None
    assert logs.pages is not None
    shown = logs.impressions.sort_values(["visit_id", "page", "position"], ignore_index=True)
    n = len(columns["page"])
    assert len(shown) == 8 * n

    def grid(column: str) -> np.ndarray:
        return shown[column].to_numpy().reshape(n, 8)

    ids = np.array(world.builder.catalog.item_ids)
    assert (grid("item_id") == ids[columns["slate"]]).all()
    assert (grid("clicked") == columns["clicked"].numpy()).all()
    assert (grid("converted") == columns["converted"].numpy()).all()
    assert (grid("placement") == np.where(np.arange(8) == columns["ad"][:, None].numpy(), "ad", "organic")).all()
    assert np.allclose(grid("propensity"), columns["propensity"])
    assert (grid("offer") == columns["offer"][:, None].numpy()).all()
    texts = np.array([*world.lines, ""])[columns["copy"]]
    assert (shown["copy"].fillna("").to_numpy().reshape(n, 8) == texts).all()
    price = world.items.table["price"].to_numpy()[columns["slate"]]
    discount = np.array(world.parameters.discounts)[columns["offer"]][:, None]
    assert np.abs(grid("price_shown") - price * (1 - discount)).max() < 0.006
    assert np.abs(grid("revenue") - np.where(columns["converted"], grid("price_shown"), 0)).max() < 0.006
    bid = np.where(shown["placement"] == "ad", world.items.table["bid"].to_numpy()[columns["slate"].flatten()], np.nan)
    assert np.allclose(shown["ad_bid"], bid, equal_nan=True)
    assert (
        ((shown["timestamp"] - START).dt.total_seconds()).to_numpy().reshape(n, 8) == columns["clock"][:, None].numpy()
    ).all()
    assert (shown["shopper_id"].to_numpy().reshape(n, 8) == [[f"s{i:07d}"] * 8 for i in columns["shopper"]]).all()

    pages = logs.pages.sort_values(["visit_id", "page"], ignore_index=True)
    assert (pages["page"] == columns["page"].numpy()).all()
    assert set(pages["log_prob_slate"]) == {-2.0}
    assert set(pages["log_prob_offer"]) == {-1.5}
    assert set(pages["log_prob_copy"]) == {0.0}  # a rounding error above certainty is none in the log
    assert all(
        (ids[row] == listed).all()
        for row, listed in zip(columns["candidates"].numpy(), pages["candidates"], strict=True)
    )


def test_features_stand_with_shoppers_and_rows(logs: Logs):
    assert logs.impressions is not None
    assert logs.shoppers is not None
    assert len(logs.shoppers) == 70
    names = [name for name in logs.shoppers if name != "shopper_id"]
    assert names == ["age_band", "region", "device", "channel", "newsletter"]
    rows = logs.impressions[["shopper_id", *names]].drop_duplicates().sort_values("shopper_id", ignore_index=True)
    for name in names:
        assert (rows[name].astype(str) == logs.shoppers[name].astype(str)).all()


def test_a_strategy_without_parts_writes_a_log_too(world: BazaarWorld, tmp_path: Path):
    write_logs(world, Plain(), tmp_path / "logs", 5, 5, seed=0)
    logs = read_logs(tmp_path / "logs")
    assert logs.impressions is not None
    assert logs.pages is not None
    assert set(logs.impressions["position"]) == set(range(5))
    assert "propensity" not in logs.impressions
    assert "log_prob_ad" not in logs.pages
    assert logs.impressions["copy"].isna().all()
    assert set(logs.impressions["placement"]) == {"organic"}


def test_blocks_of_shoppers_join_into_one_log(world: BazaarWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(diary, "AT_ONCE", 16)
    done: list[tuple[int, int]] = []
    meta = write_logs(world, Everything(), tmp_path / "logs", 50, 10, 1, lambda some, total: done.append((some, total)))
    assert done == [(16, 50), (32, 50), (48, 50), (50, 50)]
    logs = read_logs(tmp_path / "logs")
    assert logs.impressions is not None
    assert meta["rows"]["impressions"] == len(logs.impressions)
    assert logs.impressions["shopper_id"].nunique() == 50
    visits = logs.impressions.groupby("visit_id")["shopper_id"].nunique()
    assert len(visits) == meta["visits"] == visits.index.max() + 1
    assert set(visits) == {1}
    written = pd.read_parquet(tmp_path / "logs" / "impressions.parquet")
    assert written["shopper_id"].astype(str).is_monotonic_increasing


def test_meta_says_where_a_log_comes_from(world: BazaarWorld, logs: Logs):
    assert logs.impressions is not None
    meta = json.loads((logs.path / "meta.json").read_text())
    assert meta["parameters"] == world.digest
    assert (meta["source"], meta["variant"], meta["strategy"], meta["seed"]) == ("bazaar", "bazaar", "everything", 5)
    assert meta["clicks"] == logs.impressions["clicked"].sum()
    assert meta["purchases"] == logs.impressions["converted"].sum()
    n = len(logs.impressions)
    assert meta["rows"] == {"items": 500, "shoppers": 70, "pages": n // 8, "impressions": n}


def test_the_same_seed_writes_the_same_bytes(world: BazaarWorld, tmp_path: Path, nothing_global: None):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_logs(world, Everything(), tmp_path / name, 10, 5, seed)
    sums = [(tmp_path / name / CHECKSUMS).read_text() for name in "abc"]
    assert sums[0] == sums[1] != sums[2]


@pytest.mark.parametrize(("shoppers", "days", "what"), [(0, 5, "shoppers"), (5, 0, "days"), (-1, 5, "shoppers")])
def test_nothing_to_simulate(world: BazaarWorld, tmp_path: Path, shoppers: int, days: int, what: str):
    with pytest.raises(InputError, match=f"{what}: too few"):
        write_logs(world, Plain(), tmp_path / "logs", shoppers, days, 0)
    assert not list(tmp_path.iterdir())


def test_an_error_on_the_way_leaves_nothing(world: BazaarWorld, tmp_path: Path):
    class Broken(Plain):
        def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
            raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="no idea"):
        write_logs(world, Broken(), tmp_path / "logs", 5, 5, 0)
    assert not list(tmp_path.iterdir())
