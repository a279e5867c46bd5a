"""Strategies by name: each is what its name says, and fits the shop it is tried on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.benchmarks.abtest import ab_test
from hawker.benchmarks.arms import load_arm
from hawker.policies.baselines import LoggingClone, Popularity, RandomStrategy
from hawker.policies.export import export_bundle
from hawker.policies.protocol import Strategy
from hawker.policies.served import ServedStrategy
from hawker.policies.slate import SlateActor
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import write_directory
from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_tables
from hawker.simulators.store import FittedShoppers, load_shoppers

CPU = torch.device("cpu")


def write_logs(directory: Path, impressions: pd.DataFrame, items: pd.DataFrame) -> Path:
    directory.mkdir()
    impressions.to_parquet(directory / "impressions.parquet", index=False)
    items.to_parquet(directory / "items.parquet", index=False)
    return directory


def log_of(n_items: int = 20, size: int = 3, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables with clicks: 10% of the impressions, at random."""
    impressions, items = small_tables(n_items, size, n_rows=600, seed=seed)
    clicked = np.random.default_rng(seed).random(len(impressions)) < 0.1
    return impressions.assign(clicked=clicked.astype(np.int8)), items


def actor_of(builder: ContextBuilder, size: int, seed: int) -> SlateActor:
    actor = SlateActor(builder, size, 8, torch.Generator().manual_seed(seed))
    torch.nn.init.normal_(actor.own_bias, generator=torch.Generator().manual_seed(seed))
    return actor


def save_policy(run: Run, builder: ContextBuilder, size: int, trained_on: dict[str, Any], seed: int = 0) -> None:
    with write_directory(run.policy, "policy") as scratch:
        TrainedStrategy(actor_of(builder, size, seed), builder, trained_on).save(scratch)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run`` with shoppers and a policy, ``other`` with another policy, ``bundle`` of the first; logs in ``logs``."""
    home = tmp_path_factory.mktemp("arms")
    write_logs(home / "logs", *log_of())
    run = Run(home / "run")
    shoppers, _ = fit(home / "logs", run.shoppers, FitConfig(members=2, epochs=2, device="cpu"), lambda line: None)
    save_policy(run, shoppers.builder, 3, {"shoppers": shoppers.digest}, seed=0)
    save_policy(Run(home / "other"), shoppers.builder, 3, {"shoppers": "another"}, seed=1)
    export_bundle(TrainedStrategy.load(run.policy, CPU), home / "bundle")
    return home


@pytest.fixture(scope="module")
def shoppers(home: Path) -> FittedShoppers:
    return load_shoppers(Run(home / "run").shoppers, CPU)


def probabilities(strategy: Strategy, shoppers: FittedShoppers) -> torch.Tensor:
    """P(item at the first position) for ten shoppers of the judge, (10, n_items)."""
    context = shoppers.arrivals["judge"].map(lambda array: array[:10])
    return strategy.distribution(context).marginals(1, torch.Generator().manual_seed(0)).probability[:, 0]


def test_baselines(home: Path, shoppers: FittedShoppers) -> None:
    run = Run(home / "run")
    train = shoppers.read_part("train")
    catalog = shoppers.builder.catalog
    expected = {
        "random": RandomStrategy(3),
        "popularity": Popularity.fit(train, catalog, 3),
        "clone": LoggingClone.fit(train, catalog, 3),
    }
    for name, strategy in expected.items():
        arm = load_arm(name, shoppers, run)
        assert (arm.name, arm.size, type(arm)) == (name, 3, type(strategy))
        torch.testing.assert_close(probabilities(arm, shoppers), probabilities(strategy, shoppers))


def test_the_clone_of_another_log(home: Path, shoppers: FittedShoppers, tmp_path: Path) -> None:
    impressions, items = log_of(seed=1)
    impressions["item_id"] = np.where(np.arange(len(impressions)) % 4, "item-7", impressions["item_id"])
    logs = write_logs(tmp_path / "theirs", impressions, items)
    arm = load_arm(f"clone:{logs}", shoppers, Run(home / "run"))
    assert arm.name == f"clone:{logs}"
    seven = shoppers.builder.catalog.item_ids.index("item-7")
    assert (probabilities(arm, shoppers)[:, seven] > 0.7).all()


def test_trained_strategies(home: Path, shoppers: FittedShoppers) -> None:
    run = Run(home / "run")
    own, other, bundle = (
        load_arm(name, shoppers, run) for name in ("trained", str(home / "other"), str(home / "bundle"))
    )
    assert own.name == "trained"
    assert other.name == str(home / "other")
    assert bundle.name == str(home / "bundle")
    assert isinstance(bundle, ServedStrategy)
    by_hand = TrainedStrategy(actor_of(shoppers.builder, 3, 0), shoppers.builder, {})
    torch.testing.assert_close(probabilities(own, shoppers), probabilities(by_hand, shoppers))
    assert not torch.allclose(probabilities(own, shoppers), probabilities(other, shoppers))
    torch.testing.assert_close(
        probabilities(bundle, shoppers).float(), probabilities(own, shoppers), atol=1e-5, rtol=1e-4
    )


def test_a_run_and_its_bundle_are_not_distinguishable(home: Path, shoppers: FittedShoppers) -> None:
    arms = [load_arm(name, shoppers, Run(home / "run")) for name in ("trained", str(home / "bundle"), "random")]
    report = ab_test(arms, shoppers.world("judge"), shoppers=3_000, seed=0)
    assert not report["pairs"][0]["distinguishable"]
    assert report["figures"]["pair.random.model_lift"]["n"] == 2
    assert "2 models" in report["judged_by"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("randm", "arms: unknown strategy; got 'randm', expected a known name, or the directory of a run or a bundle; "
                  "did you mean 'random'?"),
        ("xyz", "known: clone, clone:LOGS, popularity, random, trained"),
        ("", "arms: unknown strategy; got ''"),
        ("clone:", "arms: no logs to clone; got 'clone:', expected clone:LOGS with a logs directory"),
        ("clone:{home}/nowhere", "{home}/nowhere: no such directory"),
        ("clones:{home}/logs", "arms: unknown strategy"),
        ("{home}", "{home}: no strategy here; expected a run with a trained policy, or a bundle with a manifest.json"),
        ("{home}/logs", "{home}/logs: no strategy here"),
        ("{home}/logs/items.parquet", "{home}/logs/items.parquet: no strategy here"),
        ("{home}/nowhere", "arms: unknown strategy; got '{home}/nowhere'"),
    ],
)  # fmt: skip
def test_unknown_names(home: Path, shoppers: FittedShoppers, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_arm(name.format(home=home), shoppers, Run(home / "run"))
    assert message.format(home=home) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_without_a_policy(home: Path, shoppers: FittedShoppers, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no trained policy; train one with `hawker train"):
        load_arm("trained", shoppers, Run(tmp_path))


def test_a_policy_older_than_the_shoppers(home: Path, shoppers: FittedShoppers) -> None:
    with pytest.raises(InputError, match=r"the policy was trained against other shoppers; train it anew with"):
        load_arm("trained", replace(shoppers, digest="fitted anew"), Run(home / "run"))


def test_a_log_that_changed(home: Path, shoppers: FittedShoppers) -> None:
    with pytest.raises(InputError, match="the log has changed since the shoppers were fitted"):
        load_arm("clone", replace(shoppers, logs_digest="0"), Run(home / "run"))


def reordered(impressions: pd.DataFrame, items: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    return impressions, items[::-1].reset_index(drop=True)


@pytest.mark.parametrize(
    ("tables", "size", "message"),
    [
        (log_of(n_items=21), 3, "a policy for another catalog, with item 'item-20'; got 21, expected the run's 20"),
        (log_of(n_items=19), 3, "a policy for another catalog; got 19, expected the run's 20 items"),
        (reordered(*log_of()), 3, "a policy for another catalog; got 20, expected the run's 20 items in their"),
        (log_of(), 2, "a policy for pages of another size; got 2, expected 3"),
        ((log_of()[0].drop(columns="age"), log_of()[1]), 3, "features: columns differ (age); expected those"),
        ((log_of()[0].assign(vip=1), log_of()[1]), 3, "features: columns differ (vip)"),
        ((log_of()[0].replace({"segment": {"new": "fresh"}}), log_of()[1]), 3,
         "features: categories of segment differ (fresh, new)"),
        ((log_of()[0].astype({"age": str}), log_of()[1]), 3, "features: kinds of columns differ (age)"),
    ],
)  # fmt: skip
def test_policies_of_other_shops(
    home: Path,
    shoppers: FittedShoppers,
    tmp_path: Path,
    tables: tuple[pd.DataFrame, pd.DataFrame],
    size: int,
    message: str,
) -> None:
    save_policy(Run(tmp_path), ContextBuilder.fit(*tables), size, {})
    with pytest.raises(InputError) as error:
        load_arm(str(tmp_path), shoppers, Run(home / "run"))
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_logs_that_cannot_be_cloned(home: Path, shoppers: FittedShoppers, tmp_path: Path) -> None:
    run = Run(home / "run")
    logs = write_logs(tmp_path / "one_slot", *log_of(size=1))
    with pytest.raises(InputError, match=r"the log never shows position 1; expected positions 0 to 2"):
        load_arm(f"clone:{logs}", shoppers, run)
    logs = write_logs(tmp_path / "more_items", *log_of(n_items=30))
    with pytest.raises(InputError, match=r"more_items impressions: item not in the catalog"):
        load_arm(f"clone:{logs}", shoppers, run)


def test_a_damaged_bundle(home: Path, shoppers: FittedShoppers, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in (home / "bundle").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    with (copy / "items.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="the file was changed after it was written"):
        load_arm(str(copy), shoppers, Run(home / "run"))
