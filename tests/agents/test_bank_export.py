"""A run's copy bank goes into its bundle: lines that passed the rules, the log's audiences, and nothing unproven."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hawker.agents import page_export
from hawker.agents.bank_export import audiences_of_lives, compare_copy, page_copy, read_bank, without_copy
from hawker.agents.config import WHOLE_PAGES
from hawker.agents.page_export import LARGEST, export_pages, export_run
from hawker.agents.page_world import read
from hawker.agents.writer_data import tier_discounts
from hawker.policies.briefs import DATA
from hawker.policies.bundle import GOLDEN, GRAPH, ITEMS, MANIFEST
from hawker.policies.copy_bank import CopyBank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page_actor import PageStrategy
from hawker.policies.page_bundle import FORMAT_WITH_BANK, LINES, MEMORY, READER, REASONS, AnsweredPages, PageBundle
from hawker.policies.page_copy import BANK
from hawker.policies.page_draw import log_probs
from hawker.policies.page_reasons import picks_of
from hawker.policies.strategist import BankTable, Strategist
from hawker.shop.artefacts import CHECKSUMS
from hawker.shop.audiences import Audiences
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.shop.run import Run
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.reader import OWN
from hawker.simulators.store import FittedShoppers, load_shoppers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shoppers(served_bank) -> FittedShoppers:
    return load_shoppers(served_bank / "run" / "shoppers", CPU)


@pytest.fixture(scope="module")
def strategy(served_bank) -> PageStrategy:
    return PageStrategy.load(served_bank / "run" / "policy", CPU)


@pytest.fixture(scope="module")
def bank(served_bank) -> CopyBank:
    found = read_bank(Run(served_bank / "run"))
    assert found is not None
    return found


def test_the_bank_is_taken_along(served_bank, bank, shoppers):
    directory = served_bank / "bundle"
    files = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    own = {f"{BANK}/{name}" for name in ("lines.parquet", "templates.parquet", "manifest.json", CHECKSUMS)}
    assert files == own | {GRAPH, READER, MEMORY, ITEMS, REASONS, GOLDEN, MANIFEST, CHECKSUMS}  # no LINES
    assert LINES not in files
    manifest = json.loads((directory / MANIFEST).read_text())
    assert set(manifest["files"]) == files - {MANIFEST, CHECKSUMS}
    assert own <= set(json.loads((directory / CHECKSUMS).read_text())["files"])
    rows, items = shoppers.read_part("train"), read_logs(shoppers.logs).items
    assert manifest["bank"] == {
        "surface": "headline",
        "liked": list(Audiences.fit(rows, items).liked),
        "discounts": list(tier_discounts(rows, items).values()),
        "writer": "digest of a writer",
        "guardrails": {"digest": bank.guardrails[0], "version": bank.guardrails[1]},
    }
    assert manifest["format"] == FORMAT_WITH_BANK
    assert manifest["page"]["copy"] is False
    logged = shoppers.lines.texts
    assert tuple(manifest["lines"]) == logged + tuple(t for t in bank.texts("headline") if t not in logged)
    assert "effect_line" not in load_file(directory / REASONS)
    loaded = PageBundle.load(directory)
    assert loaded.copy.bank.table.equals(bank.table)
    assert loaded.copy.bank.templates.equals(bank.templates)
    assert (loaded.copy.bank.neutral, loaded.copy.bank.choice) == (bank.neutral, bank.choice)


def test_report_has_the_banks_figures_too(served_bank):
    figures = json.loads((served_bank / "report.json").read_text())["figures"]
    assert set(LARGEST) <= set(figures)
    assert figures["max_delta_log_prob.copy"]["value"] <= 1e-10
    assert figures["max_delta_log_prob.copy"]["n"] == 200
    assert 0 < figures["max_delta_log_prob_read"]["value"] <= 1e-4
    assert figures["max_delta_context"]["value"] <= 1e-5
    written = [file for file in (served_bank / "bundle").rglob("*") if file.is_file()]
    assert figures["bytes"]["value"] == sum(file.stat().st_size for file in written)


def test_what_is_left_without_copy_are_the_same_pages(strategy):
    plain = without_copy(strategy, ("a line",))
    assert plain.lines == ("a line",)
    assert strategy.actor.layout.lines == len(strategy.lines)
    assert plain.actor.layout.parts == ("slate", "ad", "offer")
    assert plain.actor.offer.weight is strategy.actor.offer.weight


def test_comparing_sees_another_bank(bank, shoppers):
    hearing = shoppers.with_lines(bank.texts("headline"))
    lines, said = hearing.lines.texts, page_copy(bank, hearing)
    assert compare_copy(said, lines, 100, 8, 0)["max_delta_log_prob.copy"]["value"] <= 1e-10
    said.bank = replace(bank, table=bank.table.assign(effect=bank.table["effect"] * 1.5))
    assert compare_copy(said, lines, 100, 8, 0)["max_delta_log_prob.copy"]["value"] > LARGEST["max_delta_log_prob.copy"]
    said.bank = replace(bank, table=bank.table[bank.table["line"] != "Made to last"].reset_index(drop=True))
    assert compare_copy(said, lines, 100, 8, 0)["max_delta_log_prob.copy"]["value"] is None  # infinite


def test_audiences_of_lives_by_hand(bank, shoppers):
    said = page_copy(bank, shoppers.with_lines(bank.texts("headline")))
    item = int(np.flatnonzero(said.liked == 0)[0])
    slate = np.array([[[item, EMPTY]], [[EMPTY, item]], [[item, EMPTY]]])  # (3, 1, 2)
    lives = {"slate": slate, "clicked": slate != EMPTY, "converted": np.zeros_like(slate)}
    lives |= {"gap": np.array([[9.0], [0.0], [3.0]]), "number": np.array([[2], [3], [0]])}
    lives |= {"next_gap": np.array([22.0]), "next_number": np.array([0])}
    found = audiences_of_lives(said, {f"life.{name}": value for name, value in lives.items()})
    liked = f"likes {said.audiences.liked[0]}"
    assert [said.audiences.labels[number] for number in found[:, 0]] == [
        "new", "new", f"returning, {liked}", f"back after a while, {liked}",
    ]  # fmt: skip


def test_banks_that_cannot_go_along_are_refused(served_bank, bank, shoppers, tmp_path, monkeypatch):
    shutil.copytree(served_bank / "run", tmp_path / "run")
    run, out = Run(tmp_path / "run"), tmp_path / "bundle"
    rules = tmp_path / "rules.yaml"
    rules.write_text((DATA / "guardrails.yaml").read_text() + "\n# the shop's own\n")
    with pytest.raises(
        InputError, match=r"writer/bank: the lines have passed other guardrails; .* build the bank anew"
    ):
        export_run(run, out, rules)
    replace(bank, guardrails=(Guardrails.load(rules).digest, 1)).save(run.bank)
    with pytest.raises(
        InputError, match=r"writer/bank: the lines have passed other guardrails; .* build the bank anew"
    ):
        export_run(run, out)
    assert read_bank(run, rules) is not None
    (run.bank / "lines.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"lines.parquet: the file was changed after it was written"):
        export_run(run, out)
    assert read_bank(Run(tmp_path / "nothing")) is None
    moved = replace(shoppers, logs_digest="0" * 64)
    strategy = PageStrategy.load(run.policy, CPU)
    with pytest.raises(InputError, match="the log has changed since the shoppers were fitted"):
        export_pages(strategy, moved, out, bank)
    with pytest.raises(InputError, match="these shoppers have seen no lines of copy"):
        export_pages(strategy, replace(shoppers, lines=None), out, bank)
    assert not out.exists()


def test_a_run_gives_its_bank_and_rules_on(served_bank, monkeypatch):
    seen = []
    monkeypatch.setattr(page_export, "export_pages", lambda *given: seen.append(given) or {})
    monkeypatch.setattr(page_export, "read_bank", lambda run, rules: (run, rules))
    run = Run(served_bank / "run")
    assert export_run(run, Path("out"), Path("rules")) == {}
    assert seen[0][2:] == (Path("out"), (run, Path("rules")), None)


@torch.no_grad()
def test_a_served_shopper_has_the_probabilities_and_audiences_of_the_strategist(strategy, shoppers, bank, served_bank):
    """Page by page beside the world that tells audiences, in which the bank's lines are understood."""
    bundle = PageBundle.load(served_bank / "bundle")
    said, hearing = bundle.copy, shoppers.with_lines(bank.texts("headline"))
    assert bundle.lines == hearing.lines.texts
    reading = read(hearing, hearing.world("train"), WHOLE_PAGES.reward)
    told_of = (said.audiences.labels, said.discounts, said.surface, bundle.lines, CPU)
    table = BankTable.of(bank, said.items.tolist(), *told_of)
    strategist, world = Strategist(strategy, table), AudienceWorld(reading, said.audiences)
    n, generator = 24, torch.Generator().manual_seed(5)
    here, memory, told = world.arrive(n, generator), bundle.start(n), said.start(n)
    gap, number, met = np.zeros(n), np.zeros(n), set()
    for _ in range(8):
        told = said.arrived(told, gap, number)
        audience = said.audiences.number(told)
        np.testing.assert_array_equal(audience, here.context.shopper[:, -1].numpy())
        met |= set(audience.tolist())
        features, context = here.state[OWN + "shopper"].numpy(), here.context.map(lambda array: array.numpy())
        seen = bundle.read(replace(context, shopper=features), memory, gap, number)
        np.testing.assert_allclose(seen.shopper, context.shopper[:, :-1], rtol=1e-5, atol=1e-5)
        decision = strategist.propose(here.context, generator)
        parts = ("slate", "log_prob", "ad", "offer", "copy")
        page = Decision(**{part: getattr(decision, part).numpy() for part in parts})
        served = log_probs(bundle.scores(seen), picks_of(seen, page)._replace(lines=None))
        served["copy"] = said.log_prob(page.slate, audience, page.offer, page.copy).sum(1)
        assert set(served) == set(decision.log_probs)
        for part, value in decision.log_probs.items():
            np.testing.assert_allclose(served[part], value.numpy(), rtol=0, atol=1e-4)
        here, outcome = world.respond(here, decision, generator)
        answers = [part.numpy() for part in (outcome.clicked, outcome.converted, outcome.revenue)]
        whole = (page.slate, *answers, page.ad, page.offer, page.copy, np.zeros(page.slate.shape))
        memory = bundle.observe(memory, AnsweredPages(features, gap, number, *whole))
        told = said.answered(told, page.slate, *answers[:2])
        gap, number = outcome.days.numpy(), np.where(outcome.leave.numpy(), 0, number + 1)
    assert len(met) > 3
