import copy
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hawker.policies import export
from hawker.policies.bundle import GOLDEN, GRAPH, ITEMS, MANIFEST, Bundle, log_prob
from hawker.policies.export import compare, export_bundle, random_pages
from hawker.policies.slate import SlateActor
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import CHECKSUMS, sha256
from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder
from hawker.simulators.small import small_tables

FILES = (GRAPH, ITEMS, GOLDEN, MANIFEST, CHECKSUMS)


def make_strategy(n_items: int = 80, size: int = 3, spread: float = 0.3, seed: int = 0) -> TrainedStrategy:
    """An actor whose weights are moved from their start until its logits fill their range."""
    builder = ContextBuilder.fit(*small_tables(n_items, size))
    generator = torch.Generator().manual_seed(seed)
    actor = SlateActor(builder, size, 64, generator).requires_grad_(False)
    for weights in actor.parameters():
        weights.add_(torch.randn(weights.shape, generator=generator), alpha=spread)
    return TrainedStrategy(actor, builder, {"shoppers": "5" * 64, "logs": "7" * 64, "config": {"seed": 3}})


@pytest.fixture(scope="module")
def strategy() -> TrainedStrategy:
    return make_strategy()


@pytest.fixture(scope="module")
def exported(strategy, tmp_path_factory) -> tuple[Path, dict]:
    path = tmp_path_factory.mktemp("export") / "bundle"
    return path, export_bundle(strategy, path)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_onnx_agrees_with_torch_on_10_000_pages(strategy, exported):
    bundle = Bundle.load(exported[0])
    context = random_pages(strategy.builder, 10_000, np.random.default_rng(11))
    tensors = context.map(torch.from_numpy)
    slates = strategy.distribution(tensors)  # in float32, as trained
    picks = slates.sample(torch.Generator().manual_seed(12))
    served = bundle.logits(context)
    assert served[context.mask].min() < -10
    assert served[context.mask].max() > 10
    assert (np.isneginf(served) == ~context.mask).all()

    delta = log_prob(served, context.mask, picks.numpy()) - slates.log_prob(picks).numpy()
    assert np.abs(delta).max() <= 1e-5

    first, second = np.sort(np.where(context.mask, served, -np.inf), axis=1)[:, :-3:-1].T
    clear = first - second > export.TIE
    agree = served.argmax(1) == slates.logits.numpy().argmax(1)
    assert clear.sum() > 9_900
    assert agree[clear].mean() >= 0.9999


def test_report_gives_every_figure_with_its_sample(exported):
    path, report = exported
    figures = report["figures"]
    assert figures["max_delta_log_prob"]["value"] <= 1e-10
    assert 0 < figures["max_delta_log_prob_float32"]["value"] <= 1e-5
    agreement = figures["argmax_agreement"]
    assert agreement["value"] == 1.0
    assert 0.99 < agreement["low"] < 1.0
    assert 900 < agreement["n"] <= 1000
    assert figures["bytes"]["value"] == sum(map(len, content(path).values()))
    assert report["digest"] == Bundle.load(path).digest == sha256(path / CHECKSUMS)
    json.dumps(report, allow_nan=False)


def test_compare_sees_another_actor(strategy, exported):
    changed = copy.deepcopy(strategy)
    changed.actor.item_bias.weight += 0.001
    figures = compare(Bundle.load(exported[0]), changed, 200, 0)
    assert figures["max_delta_log_prob"]["value"] > export.MAX_DELTA


def test_same_strategy_gives_the_same_bytes_and_says_nothing(strategy, exported, tmp_path, capfd, caplog):
    state = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        export_bundle(strategy, tmp_path / "again")
    assert content(tmp_path / "again") == content(exported[0])
    assert not seen
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO]
    assert torch.equal(torch.get_rng_state(), state)


def test_files_tell_nothing_of_the_machine_and_can_be_read_by_others(exported):
    for file in exported[0].iterdir():
        assert not any(word in file.read_bytes() for word in (b".py", str(Path.home()).encode(), b"site-packages"))
        assert file.stat().st_mode & 0o044 == 0o044


def test_manifest_says_what_it_is(strategy, exported):
    path, _ = exported
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["trained_on"] == {"shoppers": "5" * 64, "logs": "7" * 64, "config": {"seed": 3}}
    assert manifest["builder"] == strategy.builder.to_dict()
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        name: sha256(path / name) for name in (GRAPH, ITEMS, GOLDEN)
    }
    d = strategy.builder.catalog.width
    assert manifest["graph"]["inputs"] == {
        "shopper": {"type": "float32", "shape": ["B", strategy.builder.shopper.width]},
        "candidates": {"type": "float32", "shape": ["B", "C", d + 64 + 2]},
        "mask": {"type": "bool", "shape": ["B", "C"]},
    }
    assert load_file(path / ITEMS)["table"].shape == (80, d + 64 + 1)


def test_golden_examples_are_torchs_own(strategy, exported):
    golden = load_file(exported[0] / GOLDEN)
    assert len(golden["logits"]) == 32
    assert golden["mask"][0].sum() == 1
    assert 0.2 < golden["mask"].mean() < 0.8
    context = random_pages(strategy.builder, 32, np.random.default_rng(0)).map(torch.from_numpy)
    slates = strategy.distribution(context)
    assert np.allclose(golden["logits"][golden["mask"]], slates.logits.numpy()[golden["mask"]], atol=1e-4)
    assert np.allclose(golden["log_prob"], slates.log_prob(slates.mode()).numpy(), atol=1e-4)


def test_random_pages_cover_what_can_happen():
    builder = ContextBuilder.fit(*small_tables(300, 3))
    context = random_pages(builder, 500, np.random.default_rng(0))
    assert context.candidates.shape == (500, 100)
    assert len(np.unique(context.candidates)) == 300
    assert all(len(set(row)) == 100 for row in context.candidates.tolist())
    assert context.mask.any(1).all()
    assert (context.mask.sum(1) < 3).any()
    assert (context.mask.sum(1) > 95).any()
    assert context.shopper.dtype == context.affinity.dtype == np.float32
    one_hot = context.shopper[:, len(builder.shopper.numeric) :]
    assert set(one_hot.sum(1).tolist()) == {0.0, 1.0}
    assert (one_hot.sum(0) > 50).all()


def test_a_shop_of_one_item_exports(tmp_path):
    path = tmp_path / "bundle"
    report = export_bundle(make_strategy(n_items=1, size=2), path)
    assert report["figures"]["max_delta_log_prob"]["value"] == 0.0
    bundle = Bundle.load(path)
    decision = bundle.decide(bundle.builder.from_request({"timestamp": "2026-01-01T00:00Z"}, "request"), None)
    assert decision.slate.tolist() == [[0, EMPTY]]
    assert decision.log_prob.tolist() == [0.0]


@pytest.mark.parametrize("step", ["golden_examples", "_manifest", "compare"])
def test_export_that_dies_half_way_leaves_the_previous_bundle(exported, tmp_path, monkeypatch, step):
    def die(*args):
        raise KeyboardInterrupt

    path = tmp_path / "bundle"
    path.mkdir()
    for name, data in content(exported[0]).items():
        (path / name).write_bytes(data)
    before = content(path)
    monkeypatch.setattr(export, "trace", lambda actor: before[GRAPH])
    monkeypatch.setattr(export, step, die)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(make_strategy(), path)
    assert content(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_actor_that_onnxruntime_computes_otherwise_is_not_exported(strategy, tmp_path, monkeypatch):
    nudged = copy.deepcopy(strategy.actor)
    nudged.item_bias.weight += 0.001
    graph = export.trace(nudged)
    monkeypatch.setattr(export, "trace", lambda actor: graph)
    expected = r"bundle: the exported actor does not compute what torch does; got 0\.\d+, expected .* 1e-05 apart"
    with pytest.raises(InputError, match=expected) as error:
        export_bundle(strategy, tmp_path / "bundle")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(strategy, tmp_path, value):
    broken = copy.deepcopy(strategy)
    broken.actor.own_key[3, 0] = value
    with pytest.raises(InputError, match="own_key: the strategy has weights that are not finite; train it anew"):
        export_bundle(broken, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_directory_with_other_files_is_refused(strategy, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="files that Hawker did not write"):
        export_bundle(strategy, tmp_path)
    assert content(tmp_path) == {"thesis.tex": b"x"}


def test_bundle_holds_these_files_and_no_others(exported):
    assert sorted(content(exported[0])) == sorted(FILES)


def test_texts_and_images_ship_with_the_items(tmp_path):
    impressions, items = small_tables(30, 3)
    images = np.random.default_rng(2).normal(7.0, 0.1, (30, 5)).tolist()
    items = items.assign(title=[f"item {i}" for i in range(30)], image_embedding=[None, *images[1:]])
    builder = ContextBuilder.fit(impressions, items, HashedEncoder(16))
    actor = SlateActor(builder, 3, 16, torch.Generator().manual_seed(0)).requires_grad_(False)
    strategy = TrainedStrategy(actor, builder, {"shoppers": "5" * 64, "logs": "7" * 64, "config": {"seed": 3}})
    export_bundle(strategy, tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.builder.catalog.image_width == 5
    assert np.array_equal(bundle.builder.catalog.vectors, builder.catalog.vectors)
    context = random_pages(builder, 50, np.random.default_rng(1))
    logits = strategy.distribution(context.map(torch.from_numpy)).logits.numpy()
    assert np.allclose(bundle.logits(context)[context.mask], logits[context.mask], atol=1e-4)
