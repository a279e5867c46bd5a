"""Rival encodings of items: their arithmetic by hand, what is new stays unseen, and the whole of it in small."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hawker.benchmarks.embeddings import (
    BY_ID,
    ENCODINGS,
    HASHED,
    LLM,
    MEASURES,
    NO_TEXT,
    POOLS,
    QUICK,
    STRATEGIES,
    TFIDF,
    _figures,
    _notes,
    bench_embeddings,
    encodings,
    require_unseen,
    restocked,
    stock_of,
)
from hawker.benchmarks.embeddings_items import SENTENCES, TfidfEncoder, reworded, texts_of
from hawker.policies.small_writer import small_model
from hawker.shop.context import Context
from hawker.shop.errors import InputError
from hawker.shop.figures import figure
from hawker.shop.language import HashedEncoder
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.config import FitConfig


def detail(seed: int, ours: float) -> dict:
    def of(encoding: str) -> dict[str, float]:
        reward = ours if encoding == LLM else 10.0 + ENCODINGS.index(encoding)
        return {"reward": reward, "page": reward / 10}

    arms = {f"{strategy}, {encoding}": of(encoding) for strategy in STRATEGIES for encoding in ENCODINGS}
    return {"seed": seed, "pools": dict.fromkeys(POOLS, arms)}


def test_figures_by_hand():
    figures = _figures([detail(1, 14.0), detail(2, 16.0)])
    assert len(figures) == len(STRATEGIES) * len(POOLS) * 4 * 2
    gain = figures["strategist.cold_item_gain_tfidf"]
    assert gain["value"] == pytest.approx(4.0), "15 on average, against 11"
    assert gain["low"] < 0 < gain["high"], "two seeds say little"
    assert figures["strategist.cold_item_gain_ids"]["value"] == pytest.approx(3.0)
    assert figures["myopic.reworded_item_gain_no_text"]["value"] == pytest.approx(2.0)
    assert figures["strategist.known_item_gain_hashed.page"]["value"] == pytest.approx(0.1)
    assert figures["strategist.known_item_gain"] == gain, "known items are compared with TF-IDF's"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((0.4, -0.1, 0.9), r"\+0.40 .* a tie, the interval holds zero \[-0.10, \+0.90\]"),
        ((0.4, 0.1, 0.7), r"\+0.40 .* above \[\+0.10, \+0.70\]"),
        ((-0.4, -0.7, -0.1), r"-0.40 .* below \[-0.70, -0.10\]"),
        ((0.4, None, None), "one seed has no interval"),
    ],
)
def test_a_tie_is_called_a_tie(found: tuple, said: str):
    names = ("cold_item_gain_tfidf", "reworded_item_gain_tfidf", "known_item_gain", "cold_item_gain_ids")
    notes = _notes({f"strategist.{name}": figure(*found, 3, "reward a shopper") for name in names})
    assert len(notes) == len(names)
    assert all(re.search(said, note) for note in notes)


def test_stock_falls_into_three_parts(bazaar: BazaarWorld):
    known, new, other = stock_of(bazaar, 3)
    together = torch.cat([known, new, other])
    stocked = torch.from_numpy(np.flatnonzero(bazaar.items.table["stock"] > 0))
    assert torch.equal(together.sort().values, stocked)
    assert bazaar.launched[known].all()
    assert not bazaar.launched[torch.cat([new, other])].any()
    assert abs(len(new) - len(other)) <= 1
    assert torch.equal(new, stock_of(bazaar, 3)[1])
    assert not torch.equal(new, stock_of(bazaar, 4)[1])


def test_half_of_the_candidates_are_new(bazaar: BazaarWorld):
    parts = stock_of(bazaar, 3)
    shops, half = restocked(bazaar, *parts), bazaar.choices // 2
    assert list(shops) == list(POOLS)
    for pool, counts in {"new": (half, half, 0), "reworded": (half, 0, half), "known": (2 * half, 0, 0)}.items():
        candidates = shops[pool].arrive(5, torch.Generator().manual_seed(0)).context.candidates
        assert [int(torch.isin(candidates, part).sum()) for part in parts] == [5 * count for count in counts]


def test_what_each_encoding_is_told(bazaar: BazaarWorld):
    _, _, other = stock_of(bazaar, 3)
    model = HashedEncoder(32)
    tables = encodings(bazaar, other, model, 1)
    assert tuple(tables) == ENCODINGS
    assert list(tables[BY_ID]) == ["item_id", "stock", "bid", "image_embedding"]
    np.testing.assert_array_equal(np.stack(tables[BY_ID]["image_embedding"]), np.eye(len(bazaar.items.table)))
    assert list(tables[NO_TEXT]) == ["item_id", "category", "price", "stock", "provider", "bid"]
    for name in (LLM, TFIDF, HASHED):
        assert list(tables[name]) == [*tables[NO_TEXT], "image_embedding"]
    vectors = {name: np.stack(tables[name]["image_embedding"]) for name in (LLM, TFIDF, HASHED)}
    assert [vectors[name].shape[1] for name in vectors] == [32, 32, 64]
    texts = np.array(texts_of(bazaar.items.table))
    same = np.ones(len(texts), bool)
    same[other.numpy()] = False
    np.testing.assert_array_equal(vectors[LLM][same], model.encode(list(texts[same])))
    assert (vectors[LLM][~same] != model.encode(list(texts[~same]))).any(1).all(), "in other words"


def test_tfidf_knows_no_word_that_only_new_items_have(bazaar: BazaarWorld):
    _, _, other = stock_of(bazaar, 3)
    found = np.stack(encodings(bazaar, other, HashedEncoder(4_000), 1)[TFIDF]["image_embedding"])
    texts = np.array(texts_of(bazaar.items.table))
    logged = list(texts[bazaar.items.launched])
    encoder = TfidfEncoder(logged, 4_000, 1)
    np.testing.assert_allclose(found[bazaar.items.launched], encoder.encode(logged), atol=1e-6)
    vocabulary = set(re.findall(r"\w\w+", " ".join(logged).lower()))
    which = np.zeros(len(texts), bool)
    which[other.numpy()] = True
    whole = dict(zip(np.flatnonzero(which).tolist(), texts_of(reworded(bazaar.items.table, which)[which]), strict=True))
    for row, text in whole.items():
        known = [word for word in re.findall(r"\w\w+", text.lower()) if word in vocabulary]
        assert len(known) < len(text.split()) / 2, "the noun, and words that say nothing"
        np.testing.assert_allclose(found[row], encoder.encode([" ".join(known)])[0], atol=1e-6)


def test_an_item_of_the_log_is_not_new():
    context = Context(
        torch.zeros(2, 1), torch.tensor([[0, 1], [2, 3]]), torch.tensor([[True] * 2, [True, False]]), None
    )
    shown = torch.tensor([5.0, 0.0, 1.0, 0.0, 0.0])
    fitted = SimpleNamespace(arrivals={"train": context}, support=SimpleNamespace(items=shown))
    require_unseen(fitted, torch.tensor([3, 4]))  # the third is no candidate: it is masked
    with pytest.raises(ValueError, match="candidates"):
        require_unseen(fitted, torch.tensor([1, 4]))
    fitted.support.items = shown + torch.tensor([0.0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="shows a new item"):
        require_unseen(fitted, torch.tensor([3, 4]))


def test_without_seeds_there_is_nothing_to_say():
    with pytest.raises(InputError, match="seeds"):
        bench_embeddings(replace(QUICK, seeds=()), lambda line: None)


def test_without_its_model_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    with pytest.raises(InputError, match="no-such-model"):
        bench_embeddings(replace(QUICK, model="no-such-model"), pytest.fail)
    with pytest.raises(InputError, match="nothing reads the items"):
        bench_embeddings(replace(QUICK, model="none"), pytest.fail)


@pytest.mark.slow
def test_the_whole_of_it_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path / "home"))
    small_model(tmp_path / "model", list(SENTENCES))
    fit = FitConfig(members=1, epochs=1, shares=(0.9, 0.05, 0.05))
    config = replace(QUICK, model=str(tmp_path / "model"), shoppers=60, days=21, followed=20, asked=20, fit=fit)
    report = bench_embeddings(config, lambda line: None)
    names = {f"{strategy}, {encoding}" for strategy in STRATEGIES for encoding in ENCODINGS}
    for pool in POOLS:
        arms = report["arms"][pool]
        assert set(arms) == names
        assert all(set(values) == set(MEASURES) for values in arms.values())
        assert all((values["new"] > 0) == (pool != "known") for values in arms.values())
    told: list[str] = []
    again = bench_embeddings(config, told.append)
    assert sum("reused" in line for line in told) == 1 + len(ENCODINGS)
    assert again["figures"] == report["figures"]
