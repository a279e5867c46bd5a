"""``fit`` from a logs directory to an artefact: whole, honest about tiny logs, or not written at all."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hawker.shop.artefacts import read_json, sha256
from hawker.shop.config import load_config
from hawker.shop.errors import InputError
from hawker.simulators import fit as fit_module
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_tables


def silent(line: str) -> None:
    """Take a line of progress and drop it."""


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): sha256(path) for path in sorted(directory.rglob("*")) if path.is_file()}


def finite_or_none(report: dict) -> bool:
    numbers = [figure[end] for figure in report["figures"].values() for end in ("value", "low", "high")]
    return all(number is None or math.isfinite(number) for number in numbers)


def test_report_is_complete_and_stands_on_disk(fitted, fast):
    directory, shoppers, report = fitted
    assert finite_or_none(report)
    assert set(report["figures"]) == {
        *(f"log_loss.{name}" for name in ("constant", "logistic", "train", "judge")),
        *(f"log_loss.{one}_minus_{two}" for one in ("train", "judge") for two in ("constant", "logistic")),
        *(f"auc.{name}" for name in ("logistic", "train", "judge")),
        *(f"calibration.{name}" for name in ("constant", "logistic", "train", "judge")),
    }
    for figure in report["figures"].values():
        assert figure["low"] < figure["value"] < figure["high"]
    parts = report["split"]["parts"]
    assert report["split"]["unit"] == "time"
    assert [part["impressions"] for part in parts.values()] == [600, 200, 200]
    assert sum(part["clicks"] for part in parts.values()) == shoppers.read_part("train")["clicked"].sum() + sum(
        shoppers.read_part(name)["clicked"].sum() for name in ("judge", "estimate")
    )
    assert parts["train"]["to"] <= parts["judge"]["from"] <= parts["judge"]["to"] <= parts["estimate"]["from"]
    assert [head.partition(":")[0] for head in report["heads"].values()] == ["learned", "learned", "absent", "absent"]
    assert read_json(directory / "shoppers/fidelity.json") == report
    assert load_config(FitConfig, directory / "shoppers/config.yaml") == fast


def test_same_seed_same_files(fitted, fast, tmp_path):
    lines: list[str] = []
    again, _ = fit(fitted[0] / "logs", tmp_path / "again", fast, lines.append)
    assert contents(tmp_path / "again") == contents(fitted[0] / "shoppers")
    assert again.digest == fitted[1].digest
    assert lines[0] == f"train: 600 impressions, {fitted[2]['split']['parts']['train']['clicks']} clicks"
    assert len(lines) == 7, "a line for each part, each member and the report"


def test_features_are_scaled_by_the_part_for_training_alone(shoppers):
    schema = shoppers.builder.shopper
    age, known = schema.numeric.index("age"), shoppers.read_part("train")["age"]
    assert (schema.mean[age], schema.scale[age]) == (pytest.approx(known.mean()), pytest.approx(known.std(ddof=0)))


def test_shoppers_are_split_where_the_log_knows_them(tables, write_logs, fast, tmp_path):
    impressions = tables[0].assign(shopper_id=[f"s{i % 50}" for i in range(1000)])
    shoppers, report = fit(write_logs(tmp_path / "logs", (impressions, tables[1])), tmp_path / "out", fast, silent)
    assert report["split"]["unit"] == "shopper"
    assert [part["impressions"] for part in report["split"]["parts"].values()] == [600, 200, 200]
    ids = [set(shoppers.read_part(part)["shopper_id"]) for part in ("train", "judge", "estimate")]
    assert [len(part) for part in ids] == [30, 10, 10]
    assert not ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2]


TINY = {
    "no click at all": lambda log, items: (log.assign(clicked=np.int8(0)), items),
    "nothing but clicks": lambda log, items: (log.assign(clicked=np.int8(1)), items),
    "one item": lambda log, items: (log.assign(item_id="item-0"), items[:1]),
    "one position": lambda log, items: (log.assign(position=0), items),
    "clicks only in the part for training": lambda log, items: (
        log.assign(clicked=(np.arange(len(log)) < 20).astype(np.int8)),
        items,
    ),
    "clicks only in the part for estimates": lambda log, items: (
        log.assign(clicked=(np.arange(len(log)) > 180).astype(np.int8)),
        items,
    ),
    "ten rows": lambda log, items: (log[:10], items),
    "five rows": lambda log, items: (log[:5], items),
    "five shoppers": lambda log, items: (log.assign(shopper_id=[f"s{i % 5}" for i in range(len(log))]), items),
    "no features": lambda log, items: (log.drop(columns=["age", "segment", "affinity.item-0"]), items[["item_id"]]),
    "affinity in the millions": lambda log, items: (
        log.assign(**{"affinity.item-0": log["affinity.item-0"] * 1e6}),
        items,
    ),
    "one moment": lambda log, items: (log.assign(timestamp=log["timestamp"].iloc[0]), items),
}


@pytest.mark.parametrize("case", TINY)
def test_a_log_too_small_or_too_plain_gives_a_sound_model(case, write_logs, fast, tmp_path):
    impressions, items = small_tables(n_rows=200)
    impressions["clicked"] = (np.random.default_rng(0).random(200) < 0.1).astype(np.int8)
    logs = write_logs(tmp_path / "logs", TINY[case](impressions, items))
    shoppers, report = fit(logs, tmp_path / "out", dataclasses.replace(fast, epochs=2), silent)
    assert finite_or_none(report)
    for role in ("train", "judge"):
        assert all(torch.isfinite(value).all() for value in shoppers.ensembles[role].state_dict().values())
        world = shoppers.world(role)
        arrived = world.arrive(50, torch.Generator().manual_seed(0))
        slate = torch.zeros(50, world.size, dtype=torch.long)
        shown = world.respond(arrived, slate, torch.Generator().manual_seed(0)).click_probability
        assert ((shown >= 0) & (shown <= 1)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": 0}, "fit.members: bad config; got 0, expected a number from 1 to"),
        ({"epochs": 0}, "fit.epochs: bad config"),
        ({"patience": 0}, "fit.patience: bad config"),
        ({"batch": 0}, "fit.batch: bad config"),
        ({"learning_rate": -1.0}, "fit.learning_rate: bad config"),
        ({"learning_rate": math.nan}, "fit.learning_rate: bad config; got nan"),
        ({"effect_scale": 0.0}, "fit.effect_scale: bad config"),
        ({"taste_scale": 0.0}, "fit.taste_scale: bad config"),
        ({"id_dropout": 1.5}, "fit.id_dropout: bad config"),
        ({"calibration_share": 2.0}, "fit.calibration_share: bad config"),
        ({"seed": -1}, "fit.seed: bad config"),
        ({"shares": (0.5, 0.5, 0.5)}, "shares: bad shares"),
        ({"device": "gpu"}, "device: unknown device; got 'gpu'"),
    ],
)
def test_a_bad_config_is_refused_before_anything_is_written(fitted, fast, tmp_path, change, message):
    with pytest.raises(InputError) as caught:
        fit(fitted[0] / "logs", tmp_path / "out", dataclasses.replace(fast, **change), silent)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_fit_that_is_broken_off_leaves_the_previous_shoppers(fitted, fast, write_logs, tmp_path):
    out = tmp_path / "shop/shoppers"
    fit(fitted[0] / "logs", out, fast, silent)
    before = contents(tmp_path / "shop")

    def interrupt(line: str) -> None:
        if line.startswith("measuring"):
            raise KeyboardInterrupt

    other = dataclasses.replace(fast, seed=9)
    with pytest.raises(KeyboardInterrupt):
        fit(fitted[0] / "logs", out, other, interrupt)
    assert contents(tmp_path / "shop") == before
    three_rows = tuple(table[:3] for table in small_tables(n_items=3))
    with pytest.raises(InputError):
        fit(write_logs(tmp_path / "logs", three_rows), out, other, silent)
    assert contents(tmp_path / "shop") == before


def test_a_write_that_fails_half_way_leaves_the_previous_shoppers(fitted, fast, tmp_path, monkeypatch):
    out = tmp_path / "shop/shoppers"
    fit(fitted[0] / "logs", out, fast, silent)
    before = contents(tmp_path / "shop")

    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_module, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        fit(fitted[0] / "logs", out, dataclasses.replace(fast, seed=9), silent)
    assert contents(tmp_path / "shop") == before


def test_of_a_long_log_some_arrivals_are_kept(fitted, fast, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "MAX_ARRIVALS", 50)
    shoppers, report = fit(fitted[0] / "logs", tmp_path / "out", fast, silent)
    assert {len(arrivals.shopper) for arrivals in shoppers.arrivals.values()} == {50}
    known = set(map(tuple, shoppers.builder.from_impressions(shoppers.read_part("train")).shopper.tolist()))
    assert set(map(tuple, shoppers.arrivals["train"].shopper.tolist())) <= known
    assert report == fitted[2], "the models learn from all rows"


def test_items_that_were_never_shown_are_judged_by_their_words(tmp_path):
    impressions, items = small_tables(n_items=40, n_rows=6_000)
    generator = np.random.default_rng(1)
    liked = generator.integers(2, size=40).astype(bool)
    nouns = ("sandal", "boot", "loafer", "trainer", "clog")
    items["title"] = [f"{'velvet' if like else 'rubber'} {nouns[i % 5]} {i}" for i, like in enumerate(liked)]
    shown = impressions["item_id"].map(dict(zip(items["item_id"], liked, strict=True))).to_numpy()
    impressions["clicked"] = (generator.random(len(impressions)) < np.where(shown, 0.3, 0.05)).astype(np.int8)
    new = set(items["item_id"][30:])
    logs = tmp_path / "logs"
    logs.mkdir()
    items.drop(columns=["category", "price"]).to_parquet(logs / "items.parquet")
    impressions[~impressions["item_id"].isin(new)].to_parquet(logs / "impressions.parquet")
    aucs = {}
    for texts in (True, False):
        if not texts:
            items.drop(columns=["category", "price", "title"]).to_parquet(logs / "items.parquet")
        shoppers, _ = fit(logs, tmp_path / "shoppers", FitConfig(members=2, epochs=15, encoder="hashed:32"), silent)
        context = shoppers.arrivals["train"].map(lambda array: array[:200])
        world = shoppers.world("train")
        score = [float(world.click_probabilities(context, torch.full((200, 3), item)).mean()) for item in range(30, 40)]
        aucs[texts] = roc_auc_score(liked[30:], score)
    assert aucs == {True: 1.0, False: 0.5}  # without words nothing is known of a new item


def test_an_encoder_that_is_not_there(fitted, tmp_path):
    with pytest.raises(InputError, match="no-such-model"):
        fit(fitted[0] / "logs", tmp_path / "out", FitConfig(encoder="no-such-model"), silent)
    assert not (tmp_path / "out").exists()
