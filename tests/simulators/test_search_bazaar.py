import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.benchmarks.bazaar import logging_strategy
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.diary import write_logs
from hawker.simulators.search_bazaar import SearchBazaar, open_bazaar

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world() -> SearchBazaar:
    found = open_bazaar("search", CPU)
    assert isinstance(found, SearchBazaar)
    return found


def shown(shoppers) -> Decision[torch.Tensor]:
    return Decision(shoppers.context.candidates[:, :10], torch.zeros(len(shoppers.member)))


def test_a_variant_without_a_search_box_is_opened_as_ever():
    assert type(open_bazaar(None, CPU)) is BazaarWorld
    with pytest.raises(InputError, match="search: a bazaar with a search box; expected one without"):
        BazaarWorld(load_bazaar("search"), CPU)
    with pytest.raises(InputError, match="bazaar: a shop without a search box"):
        SearchBazaar(load_bazaar(), CPU)


def test_who_asks_and_what_it_brings(world: SearchBazaar):
    here = world.arrive(4_000, generator())
    query, candidates = here.state["query"], here.context.candidates
    asks = query != EMPTY
    assert float(asks.float().mean()) == pytest.approx(0.4, abs=0.03)
    assert here.context.mask.all()
    assert all(len(set(row)) == world.choices for row in candidates[:200].tolist())
    assert world._eligible[torch.searchsorted(world._eligible, candidates)].equal(candidates)  # in stock, and launched
    assert torch.equal(here.context.affinity[asks], world.lexical[query[asks]].gather(1, candidates[asks]))
    assert not here.context.affinity[~asks].any()
    # Of what BM25 finds, the best stand first, up to 20.
    in_stock = world.lexical[query[asks]][:, world._eligible]
    count = (in_stock > 0).sum(1).clamp(max=20)
    best = in_stock.topk(20, 1).values
    assert torch.equal((here.context.affinity[asks] > 0).sum(1).clamp(max=20) >= count, torch.ones_like(count).bool())
    assert torch.equal(here.context.affinity[asks][:, :20].sort(1, descending=True).values[:, 0], best[:, 0])


def test_what_is_wanted_moves_clicks_and_purchases(world: SearchBazaar):
    """In logits, by the grade of each item; without a query nothing does."""
    box = world.parameters.search
    assert box is not None
    here = world.arrive(300, generator(1))
    decision, query = shown(here), here.state["query"]
    silent = here.state | {"query": torch.full_like(query, EMPTY)}
    grade = world.relevance[query.clamp(min=0)].gather(1, decision.slate)
    for chances, effects in (
        (world.attraction, box.click),
        (world.conversion_probabilities, box.conversion),
    ):
        more = chances(here.state, decision).double().logit() - chances(silent, decision).double().logit()
        expected = torch.tensor(effects, dtype=torch.float64)[grade] * (query != EMPTY)[:, None]
        torch.testing.assert_close(more, expected, atol=1e-4, rtol=0)
        plain = BazaarWorld.attraction if chances == world.attraction else BazaarWorld.conversion_probabilities
        torch.testing.assert_close(chances(silent, decision), plain(world, here.state, decision))


def test_empty_slots_stay_empty(world: SearchBazaar):
    here = world.arrive(50, generator(2))
    slate = shown(here).slate.masked_fill(torch.arange(10) >= 7, EMPTY)
    _, outcome = world.respond(here, Decision(slate, torch.zeros(50)), generator(3))
    assert not outcome.click_probability[:, 7:].any()
    assert outcome.click_probability.isfinite().all()


def test_a_query_lasts_a_visit(world: SearchBazaar):
    here, draws = world.arrive(500, generator(4)), generator(5)
    for _ in range(5):
        before = here
        here, outcome = world.respond(here, shown(here), draws)
        stays = ~outcome.leave
        assert torch.equal(here.state["query"][stays], before.state["query"][stays])
        assert torch.equal(here.context.candidates[stays], before.context.candidates[stays])
        changed = here.state["query"][outcome.leave] != before.state["query"][outcome.leave]
        assert changed.float().mean() > 0.5


def test_the_same_seed_the_same_pages(world: SearchBazaar):
    def run() -> torch.Tensor:
        draws = generator(6)
        here = world.arrive(100, draws)
        for _ in range(3):
            here, _ = world.respond(here, shown(here), draws)
        return torch.cat([here.context.candidates, here.state["query"][:, None]], 1)

    assert torch.equal(run(), run())


def test_relevant_items_are_clicked_more(world: SearchBazaar):
    here = world.arrive(4_000, generator(7))
    here = here.take(here.state["query"] != EMPTY)
    ranked = world.relevance[here.state["query"]].gather(1, here.context.candidates).argsort(1, descending=True)
    best = Decision(here.context.candidates.gather(1, ranked[:, :10]), torch.zeros(len(ranked)))
    worst = Decision(here.context.candidates.gather(1, ranked[:, -10:]), torch.zeros(len(ranked)))
    clicks = [float(world.click_probabilities(here.state, page).sum(1).mean()) for page in (best, worst)]
    assert clicks[0] > 2 * clicks[1]


def test_logs_have_queries(world: SearchBazaar, tmp_path: Path):
    write_logs(world, logging_strategy(world, "popularity"), tmp_path / "logs", 60, 14, seed=2)
    rows = read_logs(tmp_path / "logs").impressions
    assert rows is not None
    per_visit = rows.groupby("visit_id")["query"].agg(lambda column: column.nunique(dropna=False))
    assert (per_visit == 1).all()
    first = rows.drop_duplicates("visit_id")["query"]
    assert first.isna().mean() == pytest.approx(0.6, abs=0.12)
    assert set(first.dropna()) <= set(world.queries)
    # The shop's own search ranks: on searched pages the items with the words stand above those without.
    asked = rows[rows["query"].notna() & (rows["placement"] == "organic")]
    number = {item: i for i, item in enumerate(world.builder.catalog.item_ids)}
    score = np.array(
        [
            float(world.lexical[world.queries.index(query), number[item]])
            for query, item in zip(asked["query"], asked["item_id"], strict=True)
        ]
    )
    above = pd.Series(score).groupby(asked["position"].to_numpy()).mean()
    assert above[0] > 1.2 * above[9]


def test_logs_of_other_bazaars_have_none(tmp_path: Path):
    world = open_bazaar(None, CPU)
    write_logs(world, logging_strategy(world, "popularity"), tmp_path / "logs", 5, 7, seed=2)
    assert "query" not in pd.read_parquet(tmp_path / "logs" / "impressions.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 1.5}, "search: share: out of range; got 1.5"),
        ({"found": 31}, "search: found: out of range; got 31"),
        ({"click": (0.0, 1.0)}, "search: click: wrong length; got 2, expected 4 values"),
    ],
)
def test_bad_boxes(tmp_path: Path, change: dict, message: str):
    import yaml

    from hawker.shop.config import to_dict

    box = to_dict(dataclasses.replace(load_bazaar("search").search, **change))
    path = tmp_path / "box.yaml"
    path.write_text(yaml.safe_dump({"search": box}))
    with pytest.raises(InputError) as raised:
        load_bazaar(path)
    assert message in str(raised.value)


def test_a_synonym_of_nothing(tmp_path: Path):
    path = tmp_path / "box.yaml"
    path.write_text(
        "search: {share: 0.1, found: 5, taste: 1, kind: 1, style: 0, synonym: 0.2, click: [0, 0, 0, 1], "
        "conversion: [0, 0, 0, 0], synonyms: [{of: tents, words: [shelter]}]}"
    )
    with pytest.raises(InputError, match="a synonym of nothing; got 'tents'; did you mean 'tent'"):
        load_bazaar(path)
    path.write_text("search: 3")
    with pytest.raises(InputError, match="search: wrong type; got 3"):
        load_bazaar(path)
