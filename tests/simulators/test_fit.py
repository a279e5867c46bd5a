"""``fit`` from a logs directory to an artefact: whole, honest about tiny logs, or not written at all."""

import dataclasses
import math
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from hawker.shop.artefacts import read_json, sha256
from hawker.shop.config import load_config
from hawker.shop.decision import Decision
from hawker.shop.errors import InputError
from hawker.simulators import arrivals
from hawker.simulators import fit as fit_module
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.memory import Memory
from hawker.simulators.rows import LONGEST
from hawker.simulators.shopper import IDENTITY
from hawker.simulators.small import small_tables
from hawker.simulators.split import three_way
from hawker.simulators.store import FittedShoppers, load_shoppers


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
    heads = {name: told.partition(":")[0] for name, told in report["heads"].items()}
    absent = dict.fromkeys(("conversion", "revenue", "leave", "return"), "absent")
    assert heads == {"click": "learned", "examination": "learned", **absent}
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
        decision = Decision(slate, torch.zeros(50))
        shown = world.respond(arrived, decision, torch.Generator().manual_seed(0))[1].click_probability
        assert ((shown >= 0) & (shown <= 1)).all()


def sound(shoppers: FittedShoppers, pages: int = 1) -> bool:
    """Say whether no weight is NaN and no answer of a world is, over some pages."""
    for role in ("train", "judge"):
        if not all(torch.isfinite(value).all() for value in shoppers.ensembles[role].state_dict().values()):
            return False
        world, generator = shoppers.world(role), torch.Generator().manual_seed(0)
        batch = world.arrive(50, generator)
        for _ in range(pages):
            slate = batch.context.candidates[:, : world.size]
            batch, outcome = world.respond(batch, Decision(slate, torch.zeros(50)), generator)
            shown = outcome.click_probability
            if not ((shown >= 0) & (shown <= 1)).all() or any(array.isnan().any() for array in batch.state.values()):
                return False
            if outcome.days is not None and (outcome.days.isnan().any() or (outcome.days < 0).any()):
                return False
    return True


LEARNED = {"conversion": "learned", "revenue": "learned", "leave": "learned", "return": "learned"}
PARTIAL = {
    "no purchase at all": (
        lambda log: log.assign(converted=0, revenue=0.0),
        {"conversion": "absent: the log records no conversions", "revenue": "absent: the log records no revenue"},
    ),
    "purchases not recorded": (
        lambda log: log.drop(columns=["converted", "revenue"]),
        {"conversion": "absent: the log records no conversions", "revenue": "absent: the log records no revenue"},
    ),
    "purchases worth nothing": (
        lambda log: log.assign(revenue=0.0),
        {"revenue": "absent: the log records no revenue"},
    ),
    "nobody came back": (
        lambda log: log.assign(visit_id=log["shopper_id"], page=log.groupby(["shopper_id", "position"]).cumcount()),
        {"return": "absent: the log does not know its shoppers or none came back"},
    ),
    "strangers": (
        lambda log: log.assign(shopper_id=pd.Series([None] * len(log), dtype="str")),
        {"return": "absent: the log does not know its shoppers or none came back"},
    ),
    "one page each": (
        lambda log: log[log["page"] == 0].drop_duplicates(["shopper_id", "position"]).reset_index(drop=True),
        {"leave": "absent: the log shows nobody", "return": "absent: the log does not know its shoppers"},
    ),
    "one page a visit": (lambda log: log[log["page"] == 0].reset_index(drop=True), {}),
    "no click": (
        lambda log: log.assign(clicked=0, converted=0, revenue=0.0),
        {"conversion": "absent: the log records no conversions", "revenue": "absent: the log records no revenue"},
    ),
    "nothing but clicks": (lambda log: log.assign(clicked=1), {}),
    "nothing but purchases": (lambda log: log.assign(clicked=1, converted=1, revenue=5.0), {}),
    "one moment": (lambda log: log.assign(timestamp=log["timestamp"].iloc[0]), {}),
    "one item": (lambda log: log[log["position"] == 0].assign(item_id="item-0").reset_index(drop=True), {}),
    "an offer that only one shopper saw": (
        lambda log: log.assign(offer=np.where(log["shopper_id"] == "s3", 7, 0)),
        {},
    ),
    "an ad that only one shopper saw": (
        lambda log: log.assign(placement=np.where(log["shopper_id"] == "s3", "ad", "organic")),
        {},
    ),
    "a line of a million letters": (
        lambda log: log.assign(copy=np.where(log["shopper_id"] == "s3", "sale " * 200_000, None)),
        {},
    ),
    "purchases of a fortune": (lambda log: log.assign(revenue=log["revenue"] * 1e12), {}),
    "five shoppers": (
        lambda log: log[log["shopper_id"].isin(["s0", "s1", "s2", "s3", "s4"])].reset_index(drop=True),
        None,
    ),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_a_log_teaches_what_it_records_and_the_report_says_what_is_missing(case, journeys, write_logs, fast, tmp_path):
    change, missing = PARTIAL[case]
    logs = write_logs(tmp_path / "logs", (change(journeys[0]), journeys[1]))
    shoppers, report = fit(logs, tmp_path / "out", dataclasses.replace(fast, epochs=2, members=1), silent)
    assert finite_or_none(report)
    assert sound(shoppers, pages=4)
    assert report["heads"] == read_json(tmp_path / "out/fidelity.json")["heads"]
    if missing is not None:
        for head, told in (LEARNED | missing).items():
            assert report["heads"][head].startswith(told), head


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize(
    ("column", "value", "otherwise"),
    [("offer", 7, 0), ("placement", "ad", "organic"), ("copy", "a line", None), ("converted", 1, 0), ("clicked", 1, 0)],
)
def test_what_only_one_part_of_a_log_shows(column, value, otherwise, part, journeys, write_logs, fast, tmp_path):
    config = dataclasses.replace(fast, epochs=1, members=1)
    parts, _ = three_way(journeys[0], config.shares, config.seed)
    values = pd.Series(np.where(parts == part, value, otherwise))
    impressions = journeys[0].assign(
        **{column: values if column != "copy" else values.astype("str").where(parts == part)}
    )
    if column == "clicked":
        impressions = impressions.assign(converted=0, revenue=0.0)
    elif column == "converted":
        impressions = impressions.assign(clicked=1, revenue=values.astype(float))
    logs = write_logs(tmp_path / "logs", (impressions, journeys[1]))
    shoppers, report = fit(logs, tmp_path / "out", config, silent)
    assert finite_or_none(report)
    assert sound(shoppers, pages=2)
    if column == "converted":
        assert (report["heads"]["conversion"] == "learned") == (part == 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_calibration_on_no_row_or_on_all(share, journeys, write_logs, fast, tmp_path):
    logs = write_logs(tmp_path / "logs", journeys)
    shoppers, _ = fit(logs, tmp_path / "out", dataclasses.replace(fast, epochs=1, calibration_share=share), silent)
    assert sound(shoppers, pages=3)
    unchanged = bool((shoppers.ensembles["train"].calibration == IDENTITY).all())
    assert unchanged == (share == 0.0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_shoppers_are_refused_in_one_line(n, journeys, write_logs, fast, tmp_path):
    impressions = journeys[0][journeys[0]["shopper_id"].isin(["s0", "s1", "s2"][:n])].reset_index(drop=True)
    logs = write_logs(tmp_path / "logs", (impressions, journeys[1]))
    with pytest.raises(InputError) as caught:
        fit(logs, tmp_path / "out", fast, silent)
    assert str(caught.value) == f"impressions: too few shoppers to split in three; got {n}"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            "position",
            "impressions column position: too large a number; got 2000000000, expected numbers from 0 to 1000",
        ),
        ("offer", "impressions column offer: too large a number; got 2000000000, expected numbers from 0 to 100"),
    ],
)
def test_a_number_that_would_fill_the_memory_is_refused(column, message, journeys, write_logs, fast, tmp_path):
    values = np.arange(len(journeys[0])) % 3
    values[-1] = 2_000_000_000
    impressions = journeys[0].assign(**{column: values}).drop_duplicates(["visit_id", "page", "position"])
    logs = write_logs(tmp_path / "logs", (impressions, journeys[1]))
    with pytest.raises(InputError) as caught:
        fit(logs, tmp_path / "out", fast, silent)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_description_of_a_megabyte(tables, write_logs, fast, tmp_path):
    items = tables[1].assign(description=["lorem ipsum " * 90_000 if i == 3 else "a plain hat" for i in range(20)])
    shoppers, _ = fit(write_logs(tmp_path / "logs", (tables[0], items)), tmp_path / "out", fast, silent)
    assert sound(shoppers)


def test_a_shopper_with_very_many_rows(write_logs, fast, tmp_path, journeys):
    """One visitor with more pages than all others together, a page every half minute: in the time of as many others."""
    n = 4_000
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(n) * 30, unit="s")
    robot = journeys[0].iloc[:1].loc[lambda log: log.index.repeat(n)].reset_index(drop=True)
    robot = robot.assign(visit_id=[f"r{i // 100}" for i in range(n)], page=np.arange(n) % 100, position=0)
    robot = robot.assign(shopper_id="robot", timestamp=times)
    impressions = pd.concat([journeys[0], robot], ignore_index=True)
    logs = write_logs(tmp_path / "logs", (impressions, journeys[1]))
    longest: list[int] = []
    run = Memory.run

    def watched(memory, shopper, summary, time):
        count = time.first[1:] - time.first[:-1]
        longest.append(int(count.max()))
        return run(memory, shopper, summary, time)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Memory, "run", watched)
        shoppers, report = fit(logs, tmp_path / "out", dataclasses.replace(fast, epochs=1), silent)
    assert max(longest) == LONGEST < n
    assert sound(shoppers, pages=2)
    assert sum(part["impressions"] for part in report["split"]["parts"].values()) == len(impressions)


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


KILLED = """
import os, signal, sys
from pathlib import Path
from hawker.simulators import fit, store
from hawker.simulators.config import FitConfig

logs, out, moment, passed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), 0


def before(function):
    def ticking(*arguments, **options):
        global passed
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1
        return function(*arguments, **options)

    return ticking


# Lines of progress, files as they are written, the renames at the end.
store.save_file, fit.write_json, Path.rename = before(store.save_file), before(fit.write_json), before(Path.rename)
config = FitConfig(members=1, epochs=1, batch=128, device="cpu", seed=9)
fit.fit(logs, out, config, before(lambda line: None))
raise SystemExit(f"lived through {passed} moments")
"""


def kill_at(moment: int, logs: Path, out: Path) -> str:
    """Fit other shoppers in a process that is killed at a moment; return what it said if it lived."""
    command = [sys.executable, "-c", KILLED, str(logs), str(out), str(moment)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL or done.stderr.startswith("lived"), done.stderr
    return done.stderr


def kill_and_look(moments: Iterable[int], logs: Path, out: Path, config: FitConfig) -> list[bool]:
    """Return after which of these kills the new shoppers stood there; the old ones must stand there else."""
    old, new = fit(logs, out, config, silent)[0].digest, []
    for moment in moments:
        if kill_at(moment, logs, out):
            break
        new.append(load_shoppers(out, torch.device("cpu")).digest != old)
    # The next run starts clean and sweeps up after those that were killed.
    again = fit(logs, out, config, silent)[0]
    assert again.digest == old
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return new


def test_a_killed_fit_leaves_the_previous_shoppers(fitted, fast, tmp_path):
    """SIGKILL half-way through writing."""
    assert kill_and_look([9], fitted[0] / "logs", tmp_path / "shop/shoppers", fast) == [False]


@pytest.mark.slow
def test_a_fit_killed_at_any_moment_leaves_whole_shoppers(fitted, fast, tmp_path):
    new = kill_and_look(range(100), fitted[0] / "logs", tmp_path / "shop/shoppers", fast)
    assert 10 < len(new) < 100
    assert not any(new), "they stand there with the last rename, and then the fit is over"


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
    monkeypatch.setattr(arrivals, "MAX_ARRIVALS", 50)
    shoppers, report = fit(fitted[0] / "logs", tmp_path / "out", fast, silent)
    assert {len(context.shopper) for context in shoppers.arrivals.values()} == {50}
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
