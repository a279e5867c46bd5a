"""Pages and the words on them in turn: two rounds of a tiny shop, whole, broken off everywhere, and refused."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hawker.agents import page_world, rounds
from hawker.agents.config import WHOLE_PAGES, RoundsConfig
from hawker.agents.rounds import DECIDING, co_train
from hawker.agents.writer_config import GrpoConfig, SftConfig
from hawker.agents.writer_data import logged_lines
from hawker.agents.writer_sft import sft
from hawker.benchmarks.arms import load_page_arm
from hawker.envs.follow import follow
from hawker.policies.copy_bank import CopyBank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page_actor import PageStrategy
from hawker.policies.small_writer import small_model
from hawker.shop.artefacts import CHECKSUMS, read_json, sha256
from hawker.shop.audiences import Audiences
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.shop.models import model_digest
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.store import load_shoppers

CPU = torch.device("cpu")
PAGES = dataclasses.replace(
    WHOLE_PAGES,
    steps=512,
    shoppers=32,
    pages=4,
    batch=64,
    critic_first=128,
    hidden=8,
    horizon=8.0,  # long enough that a few lines change something
    checkpoint_every=2,
    device="cpu",
)
"""Four rollouts of 128 pages."""

WRITING = GrpoConfig(
    steps=2, batch=4, rows=4, group=2, tokens=12, rank=2, learning_rate=1e-3, checkpoint_every=1, device="cpu"
)


@pytest.fixture(scope="module")
def writer(remembering: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has learned to say what the log says."""
    home = tmp_path_factory.mktemp("writer")
    shoppers = load_shoppers(remembering / "run" / "shoppers", CPU)
    impressions, items = shoppers.read_part("train"), read_logs(shoppers.logs).items
    labels = Audiences.fit(impressions, items).label(impressions, items)
    lines = logged_lines(impressions, items, "headline", labels.tolist())
    model = small_model(home / "model", [line.line for line in lines])
    tuning = SftConfig(steps=40, batch=8, rows=8, rank=0, learning_rate=1e-2, device="cpu")
    return sft(Run(home), str(model), lines, Guardrails.load(), tuning, False, lambda *_: None)[0]


@pytest.fixture(scope="module")
def small() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page_world, "EVALUATION_SHOPPERS", 10)
        patched.setattr(rounds, "SHOWN_SHOPPERS", 12)
        patched.setattr(rounds, "JUDGED_SHOPPERS", 30)
        yield


def config_of(model: Path, **options: Any) -> RoundsConfig:
    return RoundsConfig(**{"writer": str(model), "rounds": 2, "places": 6, "count": 2, "writing": WRITING, **options})


def quiet(what: str, done: int, total: int, value: float | None) -> None:
    """Show nothing."""


def run_of(remembering: Path, where: Path) -> Run:
    shutil.copytree(remembering / "run", where / "run")
    return Run(where / "run")


def made(run: Run) -> dict[str, Any]:
    """Return what counts of a run, weights and lines by digest, without what tells the time and the place."""
    lines = ("writer/bank/lines.parquet", "writer/bank/templates.parquet")
    files = ("policy/actor.safetensors", "writer/grpo/model.safetensors", *lines)
    found: dict[str, Any] = {
        f"{home}/{name}": sha256(run.path / home / name) for home in (".", "rounds/1", "rounds/2") for name in files
    }
    report = read_json(run.path / "rounds/report.json")
    return found | {"report": report}


@pytest.fixture(scope="module")
def whole(remembering: Path, writer: Path, small: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Any]:
    run = run_of(remembering, tmp_path_factory.mktemp("whole"))
    told: list[str] = []
    report = co_train(run, PAGES, config_of(writer), False, lambda what, *_: told.append(what))
    assert [what for i, what in enumerate(told) if i == 0 or told[i - 1] != what] == [
        f"round {number}, {step}"
        for number in (1, 2)
        for step in ("pages", "writer", "bank: written", "bank: scored", "judge")
    ]
    return run, report


def test_two_rounds_end_with_the_best(whole: tuple[Run, Any]):
    run, report = whole
    assert report == read_json(run.path / "rounds/report.json")
    assert {path.name for path in run.path.iterdir()} == {"shoppers", "rounds", "policy", "writer"}
    earned = [each["figures"][DECIDING]["value"] for each in report["rounds"]]
    assert [each["round"] for each in report["rounds"]] == [1, 2]
    assert report["best"] == 1 + earned.index(max(earned))
    assert report["figures"][f"round 2.{DECIDING}"] == report["rounds"][1]["figures"][DECIDING]
    assert "whom nothing was trained against" in report["judged_by"]
    best = run.path / "rounds" / str(report["best"])
    for name in ("policy", "writer/grpo", "writer/bank"):
        files = [path.relative_to(best / name) for path in (best / name).rglob("*") if path.is_file()]
        assert len(files) > 3
        assert all(sha256(best / name / path) == sha256(run.path / name / path) for path in files)
    for each in report["rounds"]:
        figures = each["figures"]
        gain = figures["reward_per_shopper.with_bank"]["value"] - figures["reward_per_shopper.as_trained"]["value"]
        assert figures["reward_per_shopper.gain"]["value"] == pytest.approx(gain, abs=1e-9)
        assert all(part["low"] < part["value"] < part["high"] for part in figures.values())
        assert 0 <= each["covered"]["own"] < each["covered"]["any"] <= 1


def test_each_step_begins_with_what_the_last_one_made(whole: tuple[Run, Any], writer: Path):
    run, report = whole
    shoppers, first, second = load_shoppers(run.shoppers, CPU), Run(run.path / "rounds/1"), Run(run.path / "rounds/2")
    one, two = (PageStrategy.load(home.policy, CPU) for home in (first, second))
    assert one.actor.layout.parts == ("slate", "ad", "offer", "copy")
    assert two.actor.layout.parts == ("slate", "ad", "offer")  # the bank says the lines
    assert one.lines == two.lines == shoppers.lines.texts
    assert one.builder.shopper == two.builder.shopper
    assert "bank" not in one.trained_on
    assert two.trained_on["bank"] == sha256(first.bank / CHECKSUMS)
    assert (one.trained_on["config"]["seed"], two.trained_on["config"]["seed"]) == (0, 1)
    begun = [read_json(home.path / "writer/grpo/source.json")["model"] for home in (first, second)]
    assert begun == [str(writer), str(first.path / "writer/grpo")]
    for home, each in zip((first, second), report["rounds"], strict=True):
        bank = CopyBank.load(home.bank, Guardrails.load())
        assert bank.writer == model_digest(home.path / "writer/grpo")
        assert (len(bank), bank.filled.written) == (each["lines"], 12)
        assert len(bank) > 0
        places = bank.templates[["item_id", "discount"]]
        assert len(places.drop_duplicates()) == len(places) >= 3


def test_the_best_is_what_is_compared_afterwards(whole: tuple[Run, Any]):
    """The arms of `hawker ab`, on the same shoppers: they earn what the judge said."""
    run, report = whole
    shoppers, said = load_shoppers(run.shoppers, CPU), report["rounds"][report["best"] - 1]["figures"]
    arm = load_page_arm("strategist", shoppers, run, PAGES.reward)
    generator = torch.Generator().manual_seed(PAGES.seed)
    here = arm.world.arrive(30, generator)
    found = follow(arm.world, arm.strategy, here, PAGES.reward.plain, arm.rules, generator)
    assert float(found.reward.mean()) == pytest.approx(said[DECIDING]["value"], rel=1e-5)


BREAKS = (
    ("round 1, pages", 256),
    ("round 1, writer", 1),
    ("round 1, bank: written", 12),
    ("round 1, judge", 0),
    ("round 2, pages", 512),
    ("round 2, writer", 2),
    ("round 2, bank: scored", 0),
)
"""Where a run is broken off, one place after the other: after so many steps of something."""


def test_broken_off_and_resumed_is_as_unbroken(remembering: Path, writer: Path, whole: tuple[Run, Any], tmp_path: Path):
    run, met = run_of(remembering, tmp_path), []
    for what, at in BREAKS:

        def broken(told: str, done: int, total: int, value: float | None, what: str = what, at: int = at) -> None:
            if told == what and done >= at:
                met.append(what)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            co_train(run, PAGES, config_of(writer), len(met) > 0, broken)
    assert met == [what for what, _ in BREAKS]
    co_train(run, PAGES, config_of(writer), True, quiet)
    assert made(run) == made(whole[0])


def test_what_is_there_is_not_made_again(whole: tuple[Run, Any], writer: Path):
    run, report = whole
    before = {path: path.stat().st_mtime_ns for path in (run.path / "rounds/1").rglob("*")}

    def refuse(*told: Any) -> None:
        raise AssertionError(told)

    assert co_train(run, PAGES, config_of(writer), True, refuse) == report
    assert {path: path.stat().st_mtime_ns for path in (run.path / "rounds/1").rglob("*")} == before
    other = (
        {"places": 7},
        {"writing": dataclasses.replace(WRITING, beta=0.1)},
        {"writer": str(run.path / "rounds/1/writer/grpo")},
    )
    for options, name in zip(other, ("rounds", "writing", "writer"), strict=True):
        with pytest.raises(InputError, match=f"plan.json: the rounds were begun with another value of {name}"):
            co_train(run, PAGES, config_of(writer, **options), True, refuse)
    with pytest.raises(InputError, match="the best round's writer would take its place"):
        co_train(run, PAGES, config_of(run.path / "writer/grpo"), True, refuse)
    with pytest.raises(InputError, match=r"writing.surface: a bank holds lines for another place; got 'promotion'"):
        co_train(run, PAGES, config_of(writer, writing=dataclasses.replace(WRITING, surface="promotion")), True, refuse)
    with pytest.raises(InputError, match="another value of training"):
        co_train(run, dataclasses.replace(PAGES, seed=5), config_of(writer), True, refuse)


def test_what_cannot_be_written_for(remembering_items: Path, fitted_run: Path, writer: Path, tmp_path: Path):
    for i, (home, pages) in enumerate(((remembering_items, PAGES), (fitted_run, PAGES))):
        run, config = run_of(home, tmp_path / str(i)), dataclasses.replace(pages, reward=RewardSpec())
        with pytest.raises(InputError, match=r"nothing to write for.*without --writer"):
            co_train(run, config, config_of(writer), False, quiet)
        assert {path.name for path in run.path.iterdir()} == {"shoppers"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "train.rounds: bad config; got 0, expected at least 1"),
        ({"places": 0}, "train.places: bad config"),
        ({"count": -1}, "train.count: bad config"),
        ({"writing": GrpoConfig(reward=RewardSpec(click=2.0))}, "the writer is rewarded as the pages are"),
    ],
)
def test_bad_configs(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        RoundsConfig(**{"writer": "model", **options})


def test_the_writers_config_is_checked_before_anything_is_read(tmp_path: Path):
    with pytest.raises(InputError, match=r"writer.batch: bad config"):
        co_train(Run(tmp_path), PAGES, RoundsConfig("m", writing=dataclasses.replace(WRITING, batch=5)), False, quiet)
    with pytest.raises(InputError, match="no shoppers here"):
        co_train(Run(tmp_path), PAGES, config_of(tmp_path), False, quiet)
