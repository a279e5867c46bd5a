"""The demo's second part: a tiny shop, the whole of it, without a writer and (slow: trl is read) with a tiny one."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch

from hawker.agents import page_export, page_world, rounds
from hawker.agents.config import WHOLE_PAGES
from hawker.agents.writer_config import GrpoConfig, SftConfig
from hawker.app import demo_bazaar, demo_samples
from hawker.app.cli import main
from hawker.app.demo_bazaar import BazaarConfig, Clock, bazaar_demo, find_writer, next_commands, verdict
from hawker.benchmarks.paired import UNITS
from hawker.policies.small_writer import small_model
from hawker.shop.artefacts import sha256
from hawker.shop.errors import InputError
from hawker.shop.figures import figure
from hawker.shop.run import Run
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig

TINY = BazaarConfig(
    shoppers=40,
    days=21,
    fit=FitConfig(members=2, epochs=1, device="cpu"),
    train=replace(
        WHOLE_PAGES,
        steps=256,
        shoppers=16,
        pages=4,
        batch=64,
        critic_first=64,
        hidden=8,
        horizon=4.0,
        device="cpu",
    ),
    sft=SftConfig(steps=8, batch=8, rows=8, rank=0, learning_rate=1e-2, device="cpu"),
    writing=GrpoConfig(steps=1, batch=4, rows=4, group=2, tokens=8, rank=2, device="cpu"),
    places=4,
    count=2,
    followed=40,
    samples=2,
    pages=2,
)

SLOTS = 5
"""Of the demo's pages."""


class Made(NamedTuple):
    """A finished second part: its run, its summary, what it printed, and its clock."""

    run: Run
    summary: dict[str, Any]
    printed: str
    clock: Clock


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page_world, "EVALUATION_SHOPPERS", 6)
        patched.setattr(rounds, "SHOWN_SHOPPERS", 8)
        patched.setattr(rounds, "JUDGED_SHOPPERS", 8)
        patched.setattr(page_export, "CHECKED_PAGES", 100)
        patched.setattr(page_export, "LIVES", 8)
        patched.setattr(demo_samples, "MET", 8)
        patched.setattr(demo_samples, "EARLIER", 2)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said = BazaarWorld(load_bazaar(), torch.device("cpu")).lines
    return small_model(tmp_path_factory.mktemp("model") / "model", said)


def made(run: Run, writer: str) -> Made:
    """Run the second part and keep what it prints."""
    printed, clock = io.StringIO(), Clock()
    with redirect_stdout(printed):
        summary = bazaar_demo(run, 0, find_writer(writer), clock, TINY)
    return Made(run, summary, printed.getvalue(), clock)


@pytest.fixture(scope="module")
def spoken(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """With a writer; not to be changed."""
    return made(Run(tmp_path_factory.mktemp("spoken") / "bazaar"), str(model))


def parts_in_order(printed: str, second: str) -> None:
    headings = ["7. A shop whose truth is known", "8. Shoppers", second, "10. Before and after", "11. A/B in gold"]
    headings.append("12. Bundle")
    places = [printed.index(f"\n{heading}: ") for heading in [*headings, "Verdict"]]
    assert all(a < b for a, b in pairwise(places))


@pytest.mark.slow
def test_the_whole_strategy_in_small(spoken: Made):
    summary = spoken.summary
    json.dumps(summary, allow_nan=False)
    parts_in_order(spoken.printed, "9. Words and pages")
    assert summary["left_out"] is None
    assert summary["train"]["best"] == 1
    arms = ("logging", "likeliest", "templates", "strategist")
    pairs = ("strategist - logging", "strategist - likeliest", "strategist - templates", "likeliest - logging")
    figures = summary["gold"]["figures"]
    assert set(figures) == {f"arm.{arm}.{key}" for arm in arms for key in UNITS} | {
        f"pair.{pair}.{key}" for pair in pairs for key in UNITS
    }
    assert all(each["low"] <= each["value"] <= each["high"] for each in figures.values())
    gain = figures["arm.strategist.reward"]["value"] - figures["arm.logging.reward"]["value"]
    assert figures["pair.strategist - logging.reward"]["value"] == pytest.approx(gain, abs=1e-4)
    assert summary["verdict"]["text"] == summary["gold"]["pairs"][0]["verdict"]
    assert summary["verdict"]["text"] in spoken.printed.replace("\n", " ")
    for arm in arms:
        assert f"\n{arm} " in spoken.printed
    stages = ("logs", "shoppers", "writer, tuned", "pages, writer, bank", "sample lines", "sample pages")
    assert list(spoken.clock.seconds) == [f"bazaar: {stage}" for stage in (*stages, "A/B in gold", "bundle")]
    assert all(part["wall"] >= 0 and part["cpu"] >= 0 for part in spoken.clock.seconds.values())


@pytest.mark.slow
def test_lines_are_shown_as_they_were_drawn(spoken: Made):
    writers = ["untouched model", "tuned on the log", "optimised"]
    samples = spoken.summary["writer"]["lines"]
    assert len(samples) == TINY.samples
    for sample in samples:
        assert list(sample["lines"]) == writers
        assert sample["title"] in spoken.printed
        for said in sample["lines"].values():
            assert set(said) == {"line", "refused"}
            if said["refused"]:
                assert f"(refused: {', '.join(said['refused'])[:10]}" in spoken.printed
    assert {sample["item_id"] for sample in samples} <= set(
        pd.read_parquet(spoken.run.path / "logs/items.parquet")["item_id"]
    )


@pytest.mark.slow
def test_pages_before_and_after(spoken: Made):
    items = pd.read_parquet(spoken.run.path / "logs/items.parquet").set_index("item_id")
    world = BazaarWorld(load_bazaar(spoken.run.path / "shop.yaml"), torch.device("cpu"))
    logged = {line for line, shown in zip(world.lines, world.logged_lines.tolist(), strict=True) if shown}
    bank = pd.read_parquet(spoken.run.bank / "lines.parquet")
    assert len(spoken.summary["pages"]) == TINY.pages
    for page in spoken.summary["pages"]:
        assert page["audience"]
        for name in ("before", "after"):
            slots, discount = page[name]["slots"], page[name]["discount"]
            assert len({slot["item_id"] for slot in slots}) == len(slots) == SLOTS
            assert sum(slot["ad"] for slot in slots) <= 1
            for slot in slots:
                item = items.loc[slot["item_id"]]
                assert slot["title"] == item["title"]
                assert slot["title"] in spoken.printed
                assert slot["price"] == pytest.approx(item["price"] * (1 - discount), abs=0.011)
        assert all(slot["line"] is None or slot["line"] in logged for slot in page["before"]["slots"])
        for slot in page["after"]["slots"]:
            mine = bank[
                (bank["item_id"] == slot["item_id"]) & (bank["discount"] == round(page["after"]["discount"], 4))
            ]
            own = set(mine["line"][mine["audience"].isin(["", page["audience"]])])
            assert slot["line"] in own if own else slot["line"]
            assert slot["first_line"]


@pytest.mark.slow
def test_what_it_leaves_can_be_gone_on_with(spoken: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    commands = next_commands(spoken.run, spoken=True, seed=0)
    for command in commands:
        assert f"  {command}\n" in spoken.printed
    decide = commands[0].split()[1:]
    assert main(decide) == 0
    decided = json.loads(capsys.readouterr().out)
    assert decided == spoken.summary["decide"]
    assert decided["audience"]
    assert len(decided["why"]["copy"]) == SLOTS
    assert main([*commands[2].split()[1:3], str(tmp_path / "bundle")]) == 0
    assert sha256(tmp_path / "bundle/bank/lines.parquet") == sha256(spoken.run.path / "bundle/bank/lines.parquet")
    arms = [*commands[1].split()[1:], "--shoppers", "400", "--days", "2", "--json", str(tmp_path / "ab.json")]
    assert main(arms) == 0
    assert json.loads((tmp_path / "ab.json").read_text())["arms"] == ["clone", "myopic", "likeliest", "strategist"]
    write = commands[3].split()[1:]
    assert main([*(str(tmp_path / "lines.jsonl") if word == "lines.jsonl" else word for word in write)]) == 0
    written = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert {(each["item_id"], each["discount"]) for each in written} == {("i0000", 0.1)}


@pytest.mark.slow
def test_its_logs_can_be_written_by_hand(spoken: Made, tmp_path: Path):
    shop = spoken.run.path / "shop.yaml"
    words = ["logs", "simulate", "bazaar", tmp_path / "logs", "--variant", shop, "--shoppers", 40, "--days", 21]
    assert main([str(word) for word in words]) == 0
    for name in ("impressions", "items", "pages"):
        assert sha256(tmp_path / f"logs/{name}.parquet") == sha256(spoken.run.path / f"logs/{name}.parquet")


def test_without_a_model_the_log_says_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As where nothing was fetched, in a run where an earlier demo's writer has left its lines."""
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path / "empty"))
    decided = {"slate": [], "copy": [], "why": {"slate": []}}  # the bundle is the slow tests'
    monkeypatch.setattr(demo_bazaar, "_served", lambda run, shop, seed: ({"figures": {}}, decided))
    run = Run(tmp_path / "bazaar")
    run.bank.mkdir(parents=True)
    (run.bank / "lines.parquet").write_bytes(b"old")
    found = made(run, "smollm2-135m")
    parts_in_order(found.printed, "9. Pages")
    told = [line for line in found.printed.splitlines() if "left out" in line]
    assert told == [
        "the writer is left out: smollm2-135m: the model is not on this machine; run hawker model fetch smollm2-135m"
    ]
    assert found.summary["left_out"] in told[0]
    assert found.summary["writer"] is None
    assert not (run.path / "writer").exists()
    assert [(pair["treatment"], pair["control"]) for pair in found.summary["gold"]["pairs"]] == [
        ("likeliest", "logging")
    ]
    world = BazaarWorld(load_bazaar(run.path / "shop.yaml"), torch.device("cpu"))
    for page in found.summary["pages"]:
        assert page["audience"] is None
        assert all(slot["line"] is None or slot["line"] in world.lines for slot in page["after"]["slots"])
        assert all("first_line" not in slot for slot in page["after"]["slots"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_demo(
    spoken: Made, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Same lines, same pages, same figures; afterwards without a writer, which leaves nothing of it behind."""
    run = Run(tmp_path / "bazaar")
    again = made(run, str(model))
    for part in ("gold", "pages", "writer", "verdict"):
        assert again.summary[part] == spoken.summary[part], part
    silent = made(run, "none")
    assert "the writer is left out: none was asked for" in silent.printed
    assert not (run.path / "bundle/bank").exists()
    capsys.readouterr()
    assert main(next_commands(run, spoken=False, seed=0)[0].split()[1:]) == 0
    assert json.loads(capsys.readouterr().out) == silent.summary["decide"]
    shown = "arm.logging.reward"
    assert silent.summary["gold"]["figures"][shown] == spoken.summary["gold"]["figures"][shown]


def test_which_writers_may_be_missing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    assert find_writer("none") == (None, "none was asked for")
    assert find_writer(str(model)) == (str(model), None)
    name, why = find_writer("smollm2-135m")
    assert name is None
    assert "hawker model fetch smollm2-135m" in why
    (tmp_path / "models/smollm2-135m").mkdir(parents=True)
    name, why = find_writer("smollm2-135m")
    assert name is None
    assert "not a language model" in why
    for other in ("smollm", str(tmp_path)):
        with pytest.raises(InputError):
            find_writer(other)


def gold(low: float, high: float, apart: bool, others: int = 1) -> dict[str, Any]:
    pairs = [
        {"treatment": f"arm {i}", "control": "logging", "distinguishable": apart and not i, "verdict": f"verdict {i}"}
        for i in range(others + 1)
    ]
    found = figure((low + high) / 2, low, high, 300, "reward per shopper")
    return {"pairs": pairs, "shoppers": 300, "figures": {f"pair.arm 0 - logging.{key}": found for key in UNITS}}


@pytest.mark.parametrize(("low", "high", "apart"), [(1.0, 2.0, True), (-1.0, 2.0, False), (0.01, 2.0, False)])
def test_the_verdict_is_that_of_the_pairs(low: float, high: float, apart: bool):
    found = verdict(gold(low, high, apart))
    assert (found["text"], found["distinguishable"]) == ("verdict 0", apart)
    assert found["because"][0] == "verdict 1"
    assert "Holm's correction over 2 comparisons" in found["because"][1]
    assert "which 300 shoppers came" in found["because"][1]
    assert "another seed makes another strategy" in found["because"][2]
    assert set(found["figures"]) == {f"pair.arm 0 - logging.{key}" for key in UNITS}
    alone = verdict(gold(low, high, apart, others=0))["because"]
    assert len(alone) == 2
    assert "Holm" not in alone[0]
