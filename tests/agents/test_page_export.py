"""A page strategy as a bundle: the same contexts and the same probabilities as in the world it was trained in."""

import copy
import dataclasses
import json
import shutil
from dataclasses import fields, replace
from operator import itemgetter

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hawker.agents import page_export
from hawker.agents.page_export import LARGEST, compare, compare_lives, export_pages, export_run
from hawker.agents.page_world import read
from hawker.policies.bundle import GOLDEN, GRAPH, ITEMS, MANIFEST
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import PageActor, PageStrategy
from hawker.policies.page_bundle import LINES, MEMORY, READER, REASONS, AnsweredPages, PageBundle
from hawker.policies.trained import POLICY
from hawker.shop.artefacts import CHECKSUMS, sha256
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.reader import OWN
from hawker.simulators.store import FittedShoppers, load_shoppers

CPU = torch.device("cpu")
REWARD = RewardSpec(conversion=5.0)


@pytest.fixture(scope="module")
def shoppers(served_pages) -> FittedShoppers:
    return load_shoppers(served_pages / "run" / "shoppers", CPU)


@pytest.fixture(scope="module")
def strategy(served_pages) -> PageStrategy:
    return PageStrategy.load(served_pages / "run" / "policy", CPU)


@pytest.fixture(scope="module")
def bundle(served_pages) -> PageBundle:
    return PageBundle.load(served_pages / "bundle")


def test_report_gives_every_figure_with_its_sample(served_pages, bundle):
    report = json.loads((served_pages / "report.json").read_text())
    figures = report["figures"]
    assert figures["max_delta_log_prob"]["value"] <= 1e-10
    assert figures["max_delta_log_prob"]["n"] == 500
    for part in ("slate", "ad", "offer", "copy"):
        assert 0 < figures[f"max_delta_log_prob.{part}"]["value"] <= 1e-10
    assert 0 < figures["max_delta_log_prob_float32"]["value"] <= 1e-4
    assert figures["max_delta_context"]["value"] <= 1e-5
    assert 0 < figures["max_delta_log_prob_read"]["value"] <= 1e-4
    assert 0 < figures["max_delta_reasons"]["value"] <= 1e-4
    assert figures["max_delta_log_prob_read"]["n"] == 24 * page_export.LIVED_PAGES
    files = [file for file in (served_pages / "bundle").iterdir() if file.is_file()]
    assert {file.name for file in files} == {
        GRAPH, READER, MEMORY, ITEMS, LINES, REASONS, GOLDEN, MANIFEST, CHECKSUMS,
    }  # fmt: skip
    assert figures["bytes"]["value"] == sum(file.stat().st_size for file in files)
    assert report["digest"] == bundle.digest == sha256(served_pages / "bundle" / CHECKSUMS)
    for file in files:
        assert not any(word in file.read_bytes() for word in (b".py", b"site-packages"))


def test_manifest_says_what_it_is(served_pages, strategy, shoppers, bundle):
    manifest = json.loads((served_pages / "bundle" / MANIFEST).read_text())
    assert manifest["trained_on"] == strategy.trained_on
    assert manifest["page"] == {"size": shoppers.size, "ad": True, "offers": 4, "copy": True}
    assert manifest["lines"] == list(shoppers.lines.texts)
    assert manifest["builder"] == shoppers.builder.to_dict()
    assert bundle.builder.shopper.columns == strategy.builder.shopper.columns
    assert np.array_equal(bundle.shop.catalog.vectors, shoppers.builder.catalog.vectors)


@torch.no_grad()
def test_a_served_shopper_who_lives_through_the_same_pages_has_the_same_probabilities(strategy, shoppers, bundle):
    """Page by page beside the world that the strategy was trained in, read there in single precision."""
    n, generator = 16, torch.Generator().manual_seed(3)
    world = read(shoppers, shoppers.world("train"), REWARD)
    here, memory, gap, number = world.arrive(n, generator), bundle.start(n), np.zeros(n), np.zeros(n)
    pages = []
    for _ in range(5):
        features, context = here.state[OWN + "shopper"].numpy(), here.context.map(lambda array: array.numpy())
        seen = bundle.read(replace(context, shopper=features), memory, gap, number)
        np.testing.assert_allclose(seen.shopper, context.shopper, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(seen.affinity, context.affinity, rtol=1e-5, atol=1e-5)
        decision = strategy.propose(here.context, generator)
        served = page_export.log_probs(bundle.scores(seen), _picks(here.context, decision))
        for part, value in decision.log_probs.items():
            np.testing.assert_allclose(served[part], value.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.sum(list(served.values()), 0), decision.log_prob.numpy(), rtol=0, atol=1e-4)
        here, outcome = world.respond(here, decision, generator)
        whole = (decision.slate, outcome.clicked, outcome.converted, outcome.revenue, decision.ad, decision.offer)
        told = [part.numpy() for part in (*whole, decision.copy)]
        pages.append(AnsweredPages(features, gap, number, *told, np.zeros_like(told[1])))
        memory = bundle.observe(memory, pages[-1])
        gap, number = outcome.days.numpy(), np.where(outcome.leave.numpy(), 0, number + 1)
    # One shopper's life by itself ends in the same memory.
    alone = bundle.start(1)
    for page in pages:
        alone = bundle.observe(alone, page.map(itemgetter(slice(4, 5))))
    np.testing.assert_allclose(alone[0], memory[4], rtol=1e-6, atol=1e-6)


def _picks(context: Context, decision) -> page_export.Picks:
    page = page_export.PageChoice.of(context, decision)
    return page_export.Picks(*(None if part is None else part.numpy() for part in page))


def test_comparing_sees_another_strategy_and_another_reader(strategy, shoppers, bundle):
    other = PageStrategy(_moved(strategy.actor), strategy.builder, strategy.lines, strategy.trained_on)
    figures = compare(bundle, other, 50, 0)
    assert figures["max_delta_log_prob"]["value"] > LARGEST["max_delta_log_prob"]
    ensemble = _moved(shoppers.ensembles["train"])
    moved = replace(shoppers, ensembles=shoppers.ensembles | {"train": ensemble})
    world = read(moved, shoppers.world("train"), REWARD)
    figures = compare_lives(bundle, strategy, world, 8, 2, 0)
    assert figures["max_delta_context"]["value"] > 1e-3


def _moved(module):
    moved = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.01)
    return moved


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(served_pages, strategy, shoppers, tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    broken = _moved(strategy.actor)
    broken.slate.own_key.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="own_key: the strategy has weights that are not finite; train it anew"):
        export_pages(PageStrategy(broken, strategy.builder, strategy.lines, strategy.trained_on), shoppers, out)
    shutil.copytree(served_pages / "run", tmp_path / "run")
    other = dataclasses.replace(shoppers, digest="0" * 64)
    monkeypatch.setattr(page_export, "load_shoppers", lambda *_: other)
    with pytest.raises(InputError, match="run/policy: the policy was trained against other shoppers; train it anew"):
        export_run(Run(tmp_path / "run"), out)

    def write(*arguments) -> None:
        for file in (served_pages / "bundle").iterdir():
            if file.name != CHECKSUMS:
                shutil.copy(file, arguments[3])

    monkeypatch.setattr(page_export, "_write", write)
    moved = PageStrategy(_moved(strategy.actor), strategy.builder, strategy.lines, strategy.trained_on)
    monkeypatch.setattr(page_export, "CHECKED_PAGES", 20)
    monkeypatch.setattr(page_export, "LIVES", 4)
    with pytest.raises(InputError, match=r"does not compute what torch does; got .* at most 1e-05 apart"):
        export_pages(moved, shoppers, out)
    assert not out.exists()


def test_a_run_of_slates_is_exported_as_slates(tmp_path, monkeypatch, served_pages):
    seen = []
    monkeypatch.setattr(page_export, "export_bundle", lambda strategy, out: seen.append((strategy, out)) or {})
    monkeypatch.setattr(page_export.TrainedStrategy, "load", lambda path, device: path)
    shutil.copytree(served_pages / "run" / "policy", tmp_path / "run" / "policy")
    policy = tmp_path / "run" / "policy"
    values = json.loads((policy / POLICY).read_text())
    del values["page"]
    (policy / POLICY).write_text(json.dumps(values))
    listed = json.loads((policy / CHECKSUMS).read_text())
    listed["files"][POLICY] = sha256(policy / POLICY)
    (policy / CHECKSUMS).write_text(json.dumps(listed))
    assert export_run(Run(tmp_path / "run"), tmp_path / "bundle") == {}
    assert seen == [(policy, tmp_path / "bundle")]
    with pytest.raises(InputError, match="no policy here"):
        export_run(Run(tmp_path / "nothing"), tmp_path / "bundle")


def test_golden_lives_are_of_every_kind(served_pages):
    golden = load_file(served_pages / "bundle" / GOLDEN)
    names = {field.name for field in fields(AnsweredPages)}
    assert {f"life.{name}" for name in names} <= set(golden)
    assert (golden["life.slate"] == EMPTY).any()
    assert golden["life.clicked"].any()
    assert golden["life.converted"].any()
    assert (golden["life.ad"] != EMPTY).any()
    assert (golden["life.lines"] != EMPTY).any()


@pytest.mark.slow
def test_shops_without_ads_offers_and_copy_are_exported_and_bytes_repeat(remembering_items, tmp_path, monkeypatch):
    monkeypatch.setattr(page_export, "CHECKED_PAGES", 200)
    monkeypatch.setattr(page_export, "LIVES", 8)
    shoppers = load_shoppers(remembering_items / "run" / "shoppers", CPU)
    world = read(shoppers, shoppers.world("train"), RewardSpec())
    actor = PageActor(PageLayout(world.size), world.builder, 8, torch.Generator().manual_seed(0))
    trained_on = {"shoppers": shoppers.digest, "logs": "", "config": {"reward": {"click": 1.0}}}
    plain = PageStrategy(actor, world.builder, world.lines, trained_on)
    for name in ("one", "two"):
        export_pages(plain, shoppers, tmp_path / name)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    bundle = PageBundle.load(tmp_path / "one")
    context = bundle.shop.from_request({"timestamp": "2026-01-01T00:00Z"}, "")
    decision = bundle.decide(bundle.read(context, bundle.start(1), np.zeros(1), np.zeros(1)), None)
    assert decision.ad is None
    assert decision.copy is None
