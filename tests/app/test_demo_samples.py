"""What the demo shows of words and pages: drawn in a small gold shop, held against the shop's own tables."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from hawker.agents.writer_data import Assignment
from hawker.app.demo_bazaar import SHOP
from hawker.app.demo_samples import (
    LATEST,
    page_request,
    print_decision,
    print_lines,
    print_pages,
    sample_lines,
    sample_pages,
)
from hawker.benchmarks.bazaar import logging_strategy
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.shopkeeper import Habits, Shopkeeper
from hawker.policies.small_writer import small_model
from hawker.shop.audiences import Audiences
from hawker.shop.logs import read_logs
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.diary import write_logs

DISCOUNTS = (0.0, 0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[BazaarWorld, Any]:
    """The demo's shop, and logs of it."""
    home = tmp_path_factory.mktemp("shop")
    (home / "shop.yaml").write_text(SHOP)
    world = BazaarWorld(load_bazaar(home / "shop.yaml"), torch.device("cpu"))
    write_logs(world, logging_strategy(world, "popularity"), home / "logs", 30, 14, seed=0)
    return world, read_logs(home / "logs")


def trained(world: BazaarWorld) -> Shopkeeper:
    """Stand in for what was trained: always the deepest discount, the lines 3 and 5, never an ad."""
    popularity = torch.tensor(world.items.table["popularity"].to_numpy(), dtype=torch.float32)
    habits = Habits(exploration=0.5, offers=(0.0, 0.0, 0.0, 1.0), copy_share=1.0)
    return Shopkeeper("trained", world.size, popularity, habits, None, torch.tensor([3, 5]))


def printed(show: Any, *arguments: Any) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        show(*arguments)
    return out.getvalue()


def test_pages_of_both_strategies(shop: tuple[BazaarWorld, Any]):
    world, logs = shop
    usual, items = logging_strategy(world, "popularity"), logs.items
    samples = sample_pages(world, (world, trained(world)), usual, items, DISCOUNTS, 3, seed=1)
    assert samples == sample_pages(world, (world, trained(world)), usual, items, DISCOUNTS, 3, seed=1)
    assert samples != sample_pages(world, (world, trained(world)), usual, items, DISCOUNTS, 3, seed=2)
    assert len(samples) == 3
    table = items.set_index("item_id")
    assert list(items["item_id"]) == list(world.builder.catalog.item_ids)
    for sample in samples:
        assert sample["audience"] is None
        assert sample["after"]["discount"] == 0.2
        assert sample["before"]["discount"] in DISCOUNTS
        assert {slot["line"] for slot in sample["after"]["slots"]} <= {world.lines[3], world.lines[5]}
        assert not any(slot["ad"] for slot in sample["after"]["slots"])
        for page in (sample["before"], sample["after"]):
            assert len(page["slots"]) == world.size
            for slot in page["slots"]:
                item = table.loc[slot["item_id"]]
                assert slot["title"] == item["title"]
                assert slot["price"] == pytest.approx(item["price"] * (1 - page["discount"]), abs=0.006)
                assert "first_line" not in slot
    text = printed(print_pages, samples)
    assert (
        text.count("the page as the log's strategy shows it")
        == text.count("the page as the trained strategy does")
        == 3
    )
    assert text.count("does, 20% off") == 3
    assert "shopper 3: " in text
    for slot in samples[2]["after"]["slots"]:
        row = next(line for line in text.splitlines()[::-1] if line.startswith(slot["title"]))
        assert f"{slot['price']:.2f}" in row
        assert slot["line"] in row


def test_audiences_and_the_first_writers_lines(shop: tuple[BazaarWorld, Any]):
    """The first writer is asked for what the page shows: its items, to its shopper, at its discount."""
    world, logs = shop
    audiences, asked = Audiences.fit(logs.impressions, logs.items), []

    def first(briefs: list[Brief]) -> list[str]:
        asked.extend(briefs)
        return [f"line {i}" for i in range(len(briefs))]

    usual, where = logging_strategy(world, "popularity"), AudienceWorld(world, audiences)
    samples = sample_pages(world, (where, trained(world)), usual, logs.items, DISCOUNTS, 2, 0, first)
    assert all(sample["audience"] in audiences.labels for sample in samples)
    slots = [(sample, slot) for sample in samples for slot in sample["after"]["slots"]]
    assert [slot["first_line"] for _, slot in slots] == [f"line {i}" for i in range(len(slots))]
    assert len(asked) == 2 * world.size
    for (sample, slot), brief in zip(slots, asked, strict=True):
        assert (brief.title, brief.audience, brief.discount) == (slot["title"], sample["audience"], 0.2)
    text = printed(print_pages, samples)
    assert text.count("tuned writer") == text.count("optimised writer") == 2
    assert f"shopper 1 ({samples[0]['audience']})" in text.replace("\n", " ")


def test_lines_are_shown_with_what_they_break(tmp_path: Path):
    models = {
        name: str(small_model(tmp_path / name, [text] * 3, seed=i))
        for i, (name, text) in enumerate({"one": "Warm wool for cold days", "other": "A quiet pot"}.items())
    }
    given = [
        Assignment("i1", Brief("headline", title="Rustic teapot", price=30.0, discount=0.2, audience="new")),
        Assignment("i2", Brief("headline", title="Wool scarf", price=20.0)),
    ]
    rules = Guardrails.load()
    samples = sample_lines(models, rules, given, 0)
    assert samples == sample_lines(models, rules, given, 0)
    assert [(each["item_id"], each["title"], each["audience"], each["discount"]) for each in samples] == [
        ("i1", "Rustic teapot", "new", 0.2),
        ("i2", "Wool scarf", "", 0.0),
    ]
    for sample, each in zip(samples, given, strict=True):
        assert list(sample["lines"]) == ["one", "other"]
        assert sample["lines"]["one"]["line"] != sample["lines"]["other"]["line"]
        for said in sample["lines"].values():
            assert said["refused"] == sorted({hit.rule for hit in rules.hits(said["line"], each.brief)})
    samples[0]["lines"]["one"] = {"line": "Free tea!", "refused": ["claim", "free"]}
    samples[0]["lines"]["other"] = {"line": "A quiet pot", "refused": []}
    text = printed(print_lines, samples)
    assert "Rustic teapot, 20% off, for new" in text
    assert "Wool scarf, no offer, for anybody" in text
    assert '"Free tea!"  (refused: claim, free)' in text
    assert any(line.strip().endswith('"A quiet pot"') for line in text.splitlines())


def test_a_request_is_a_logged_page_and_those_before(shop: tuple[BazaarWorld, Any]):
    rows = shop[1].impressions
    request = page_request(rows, ["age_band", "region", "unknown"])
    met: dict[str, set[tuple[int, int]]] = {}
    for shopper, visit, page in rows[["shopper_id", "visit_id", "page"]].itertuples(index=False):
        met.setdefault(shopper, set()).add((visit, page))
        if len(met[shopper]) == 2:
            break
    own = rows[rows["shopper_id"] == shopper]
    pages = [page for _, page in own.groupby(["timestamp", "visit_id", "page"])]
    assert len(request["history"]) == min(len(pages) - 1, LATEST) > 0
    now = pages[len(request["history"])].iloc[0]
    assert (pd.Timestamp(request["timestamp"]), request["page"]) == (now["timestamp"], now["page"])
    assert request["shopper"] == {"age_band": now["age_band"], "region": now["region"]}
    for told, page in zip(request["history"], pages, strict=False):
        assert told["slate"] == page["item_id"].tolist()
        assert told["clicked"] == page["clicked"].tolist()
        assert told["offer"] == page["offer"].iloc[0]
        assert told["copy"] == [None if pd.isna(line) else line for line in page["copy"]]
        ad = page["position"][page["placement"] == "ad"].tolist()
        assert told["ad"] == ({"slot": ad[0]} if ad else None)


def test_a_decision_is_shown_with_its_first_reasons():
    items = pd.DataFrame({"item_id": ["a", "b"], "title": ["Teapot", "Scarf"]})
    reason = {"reasons": [{"words": "its price (9; the others 12)"}, {"words": "the item"}]}
    decision = {
        "slate": ["b", None, "a"],
        "copy": ["warm", None, None],
        "audience": "returning",
        "why": {"slate": [reason, None, {"reasons": []}]},
    }
    lines = [line.split("  ") for line in printed(print_decision, decision, items).splitlines()]
    assert lines[0][0].strip() == "One decision, for returning"
    told = [[part.strip() for part in line if part.strip()] for line in lines[2:]]
    assert told == [["Scarf", "warm", "its price (9; the others 12)"], ["Teapot", "-", "-"]]
