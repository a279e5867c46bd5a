"""A bundle for whole pages: what it refuses to load, and that pages of a batch are decided as they are alone."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hawker.policies import page_bundle
from hawker.policies.bundle import GOLDEN, GRAPH, MANIFEST, Bundle
from hawker.policies.export import random_pages
from hawker.policies.page_bundle import (
    FORMAT_WITH_BANK,
    LINES,
    MEMORY,
    READER,
    AnsweredPages,
    PageBundle,
    load_bundle,
)
from hawker.policies.page_copy import BANK
from hawker.policies.page_draw import draw, log_probs
from hawker.shop.artefacts import CHECKSUMS, sha256
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.features import EFFECT_LINE


@pytest.fixture(scope="module")
def bundle(served_pages) -> PageBundle:
    return PageBundle.load(served_pages / "bundle")


@pytest.fixture(scope="module")
def speaking(served_bank) -> PageBundle:
    return PageBundle.load(served_bank / "bundle")


@pytest.fixture
def copied(served_pages, tmp_path) -> Path:
    return Path(shutil.copytree(served_pages / "bundle", tmp_path / "bundle"))


@pytest.fixture
def copied_bank(served_bank, tmp_path) -> Path:
    return Path(shutil.copytree(served_bank / "bundle", tmp_path / "bundle"))


def lived(bundle: PageBundle, n: int, pages: int, seed: int) -> tuple[np.ndarray, Context, np.ndarray, np.ndarray]:
    """Memories after some pages of random answers, and the shop's contexts, gaps and numbers of the next ones."""
    generator = np.random.default_rng(seed)
    context, memory = random_pages(bundle.shop, n, generator), bundle.start(n)
    for page in range(pages):
        memory = bundle.observe(memory, answered(bundle, context, page, generator))
    return memory, context, generator.exponential(3.0, n), np.zeros(n)


def answered(bundle: PageBundle, context: Context, page: int, generator: np.random.Generator) -> AnsweredPages:
    n = len(context.mask)
    slate = np.stack([generator.permutation(len(bundle.shop.catalog))[: bundle.size] for _ in range(n)])
    clicked = generator.random(slate.shape) < 0.3
    converted = clicked & (generator.random(slate.shape) < 0.5)
    gap, none = np.full(n, 2.5 * (page > 0)), np.full_like(slate, EMPTY)
    ad, offer = generator.integers(EMPTY, bundle.size, n), generator.integers(4, size=n)
    told = (clicked, converted, 9.0 * converted, ad, offer, none, np.zeros(slate.shape))
    return AnsweredPages(context.shopper, gap, np.zeros(n), slate, *told)


def reseal(path: Path) -> None:
    """Make every checksum right again, as an attacker or another version of Hawker would."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if (path / name).exists()}
    for name in manifest["files"]:
        manifest["files"][name]["sha256"] = sha256(path / name)
    (path / MANIFEST).write_text(json.dumps(manifest))
    files = [file for file in path.rglob("*") if file.is_file() and file != path / CHECKSUMS]
    digests = {str(file.relative_to(path)): sha256(file) for file in files}
    (path / CHECKSUMS).write_text(json.dumps({"kind": "bundle", "files": digests}))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_bundle(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


@pytest.mark.parametrize("which", ["served_pages", "served_bank"])
def test_serving_needs_no_torch(request, which):
    served_pages = request.getfixturevalue(which)
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from hawker.policies.page_bundle import load_bundle\n"
        "from hawker.policies.page_request import decide_page_request\n"
        f"bundle = load_bundle(Path({str(served_pages / 'bundle')!r}))\n"
        "decide_page_request(bundle, {'timestamp': '2026-11-22T10:00Z'}, 'x', 0)\n"
        "assert not {'torch', 'onnx', 'onnxscript', 'transformers', 'gymnasium'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_batch_is_read_and_decided_as_its_pages_are_alone(bundle, monkeypatch):
    memory, plain, gap, number = lived(bundle, 12, 3, 1)
    assert memory.dtype == np.float32
    whole = bundle.read(plain, memory, gap, number)
    decision = bundle.decide(whole, None)
    monkeypatch.setattr(page_bundle, "MAX_ENTRIES", 5 * 128 * plain.mask.shape[1])  # parts of 5 pages
    np.testing.assert_allclose(lived(bundle, 12, 3, 1)[0], memory, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(bundle.read(plain, memory, gap, number).shopper, whole.shopper, rtol=1e-6, atol=1e-6)
    for page in range(12):
        rows = slice(page, page + 1)
        alone = bundle.read(plain.map(lambda array, rows=rows: array[rows]), memory[rows], gap[rows], number[rows])
        np.testing.assert_allclose(alone.shopper, whole.shopper[rows], rtol=1e-6, atol=1e-6)
        chosen = bundle.decide(alone, None)
        assert np.array_equal(chosen.slate, decision.slate[rows])
        np.testing.assert_allclose(chosen.log_prob, decision.log_prob[rows], atol=1e-5)


def test_what_was_read_changes_what_is_decided_and_nothing_is_kept(bundle):
    memory, plain, gap, number = lived(bundle, 6, 2, 2)
    before = memory.copy()
    told = bundle.read(plain, memory, gap, number)
    fresh = bundle.read(plain, bundle.start(6), gap * 0, number)
    assert np.array_equal(memory, before)
    assert np.abs(told.affinity - fresh.affinity).max() > 1e-3
    found, other = bundle.scores(told), bundle.scores(fresh)
    assert np.abs(found.slate - other.slate).max() > 1e-3
    capped = bundle.read(plain, memory, np.full(6, bundle.longest_gap), number)
    assert np.array_equal(bundle.read(plain, memory, np.full(6, np.inf), number).shopper, capped.shopper)


def test_decisions_are_drawn_with_their_log_probabilities(bundle):
    context = random_pages(bundle.builder, 300, np.random.default_rng(3))
    decision = bundle.decide(context, np.random.default_rng(4))
    scores = bundle.scores(context)
    parts = log_probs(scores, draw(scores, bundle.size, np.random.default_rng(4)))
    assert set(parts) == {"slate", "ad", "offer", "copy"}
    assert np.array_equal(decision.log_prob, np.sum(list(parts.values()), 0))
    assert np.isfinite(decision.log_prob).all()
    has_ad = decision.ad != EMPTY
    assert 0 < has_ad.mean() < 1
    steps = np.log(decision.propensity).sum(1)
    none = parts["slate"] + np.where(has_ad, parts["ad"], 0.0)  # where there is no ad, that has no slot
    np.testing.assert_allclose(steps, none, atol=1e-9)
    for slate, candidates, mask in zip(decision.slate, context.candidates, context.mask, strict=True):
        filled = slate[slate != EMPTY]
        assert len(set(filled)) == len(filled) == min(bundle.size, mask.sum())
        assert set(filled) <= set(candidates[mask])
    assert (bundle.decide(context, np.random.default_rng(4), np.zeros_like(context.mask)).ad == EMPTY).all()


def test_rules_for_ads_are_those_of_the_training(bundle):
    assert (bundle.ad_gap, bundle.ad_load) == (3, 1.0)
    pages, ads, since = np.array([0, 5, 5, 5]), np.array([0, 1, 1, 1]), np.array([9, 1, 2, 3])
    assert bundle.may_have_ad(pages, ads, since).tolist() == [True, False, False, True]


@pytest.mark.parametrize("name", ["shopper", "affinity"])
def test_contexts_that_are_not_finite_are_refused(bundle, name):
    context = random_pages(bundle.builder, 2, np.random.default_rng(5))
    getattr(context, name)[1, 0] = np.nan
    with pytest.raises(InputError, match=f"context: {name}: not a finite number"):
        bundle.scores(context)
    memory, plain, gap, number = lived(bundle, 2, 1, 6)
    with pytest.raises(InputError, match="context: memory: not a finite number"):
        bundle.read(plain, np.full_like(memory, np.inf), gap, number)
    with pytest.raises(InputError, match="context: features: not a finite number"):
        bundle.read(replace(plain, shopper=plain.shopper * np.nan), memory, gap, number)


def test_damage_is_seen(copied):
    for name in (GRAPH, READER, MEMORY, LINES, GOLDEN, MANIFEST, CHECKSUMS):
        whole = (copied / name).read_bytes()
        (copied / name).write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
        assert str(copied) in refusal(copied), name
        (copied / name).write_bytes(whole)
    (copied / READER).unlink()
    assert READER in refusal(copied)


def test_a_graph_that_answers_otherwise_is_refused(copied):
    golden = load_file(copied / GOLDEN)
    for name in ("answer.memory", "answer.affinity", "answer.ad", "answer.log_prob.copy"):
        save_file(golden | {name: golden[name] + golden[name].dtype.type(0.01)}, copied / GOLDEN)
        reseal(copied)
        assert "the golden examples come out otherwise here" in refusal(copied), name


def test_bundles_know_each_other_by_their_format(copied, served_pages):
    assert isinstance(load_bundle(copied), PageBundle)
    with pytest.raises(InputError, match="a bundle of another format; got 2, expected format 1"):
        Bundle.load(copied)
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(manifest | {"format": 4}))
    reseal(copied)
    assert "a bundle of another format; got 4, expected format 1" in refusal(copied)
    assert "no bundle here" in refusal(copied / "nothing")


def test_lines_of_a_bank_are_drawn_with_their_log_probabilities(speaking):
    said = speaking.copy
    known = speaking.shop.catalog.index(said.bank.table["item_id"].unique(), "bank")
    context = random_pages(speaking.builder, 300, np.random.default_rng(3))
    context.candidates[:, : len(known)] = known
    context.mask[:, len(known) :] = False
    audience = np.random.default_rng(0).integers(len(said.audiences.labels), size=300)
    decision = speaking.decide(context, np.random.default_rng(4), audience=audience)
    assert set(decision.log_probs) == {"slate", "ad", "offer", "copy"}
    np.testing.assert_array_equal(decision.log_prob, np.sum(list(decision.log_probs.values()), 0))
    shown, page = decision.slate != EMPTY, np.nonzero(decision.slate != EMPTY)[0]
    chances = said.bank.probabilities(
        [speaking.shop.catalog.item_ids[item] for item in decision.slate[shown]],
        [said.audiences.labels[number] for number in audience[page]],
        [said.discounts[tier] for tier in decision.offer[page]],
        "headline",
        [speaking.lines[line] for line in decision.copy[shown]],
    )
    each = np.zeros(shown.shape)
    each[shown] = np.log(chances)
    np.testing.assert_allclose(decision.log_probs["copy"], each.sum(1), atol=1e-12)
    assert len(np.unique(chances)) > 3
    again = speaking.decide(context, np.random.default_rng(4), audience=audience)
    assert np.array_equal(again.slate, decision.slate)
    assert np.array_equal(again.copy, decision.copy)
    likeliest = speaking.decide(context, None, audience=audience)
    other = said.log_prob(likeliest.slate, audience, likeliest.offer, likeliest.copy)
    assert (other >= np.log(1 / 3)).all()  # of three lines
    with pytest.raises(InputError, match="page bundle: no audiences; expected the number of each shopper's audience"):
        speaking.decide(context, None)


def test_the_slate_of_a_bundle_with_a_bank_is_that_of_one_without(bundle, speaking):
    context = random_pages(bundle.builder, 50, np.random.default_rng(7))
    mine, theirs = speaking.scores(context), bundle.scores(context)
    for part in ("slate", "ad", "slot", "offer"):
        np.testing.assert_allclose(getattr(mine, part), getattr(theirs, part), rtol=1e-9, atol=1e-9)
    assert mine.line_query is None
    assert speaking.lines[: len(bundle.lines)] == bundle.lines
    memory, plain, gap, number = lived(bundle, 4, 3, 8)
    np.testing.assert_allclose(lived(speaking, 4, 3, 8)[0], memory, rtol=1e-6, atol=1e-6)
    one, other = (held.read(plain, memory, gap, number) for held in (bundle, speaking))
    np.testing.assert_allclose(one.shopper, other.shopper, rtol=1e-6, atol=1e-6)


def test_the_memory_hears_lines_of_the_bank(speaking):
    generator = np.random.default_rng(9)
    plain = random_pages(speaking.shop, 6, generator)
    page, memory = answered(speaking, plain, 0, generator), speaking.start(6)
    logged = speaking.manifest["context"]["numeric"]
    first = sum(name.startswith(EFFECT_LINE) for name in logged)
    assert 0 < first < len(speaking.lines)
    heard = [
        speaking.observe(memory, replace(page, lines=np.full_like(page.lines, line)))
        for line in (EMPTY, first, first + 1)
    ]
    assert np.abs(heard[1] - heard[0]).max() > 1e-3
    assert np.abs(heard[2] - heard[1]).max() > 1e-6


def test_damage_of_a_bank_is_seen(copied_bank):
    for name in ("lines.parquet", "templates.parquet", "manifest.json", CHECKSUMS):
        file = copied_bank / BANK / name
        whole = file.read_bytes()
        file.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
        assert str(file) in refusal(copied_bank), name
        file.write_bytes(whole)
    assert isinstance(load_bundle(copied_bank), PageBundle)
    shutil.rmtree(copied_bank / BANK)
    assert "a file is missing" in refusal(copied_bank)
    reseal(copied_bank)
    assert f"{copied_bank / BANK}: no copy bank here" in refusal(copied_bank)


def test_a_bank_that_does_not_fit_its_bundle_is_refused(copied_bank):
    whole = json.loads((copied_bank / MANIFEST).read_text())
    assert whole["format"] == FORMAT_WITH_BANK
    other = whole["bank"] | {"guardrails": {"digest": "0" * 64, "version": 7}}
    for change, message in (
        ({"bank": other}, "the lines have passed other guardrails than the manifest says; got 'version 1,"),
        ({"lines": whole["lines"][:-1]}, "the bank holds a line that the bundle does not list; got "),
        ({"format": 2}, "a bundle of another format; got 2, expected format 3"),
    ):
        (copied_bank / MANIFEST).write_text(json.dumps(whole | change))
        reseal(copied_bank)
        assert message in refusal(copied_bank)
    without = {name: value for name, value in whole.items() if name != "bank"}
    (copied_bank / MANIFEST).write_text(json.dumps(without))
    reseal(copied_bank)
    assert "a bundle of another format; got 3, expected format 2" in refusal(copied_bank)


@pytest.mark.parametrize("name", ["answer.bank", "answer.audience"])
def test_a_bank_that_answers_otherwise_is_refused(copied_bank, name):
    golden = load_file(copied_bank / GOLDEN)
    assert golden["bank.lines"].shape == golden["answer.bank"].shape
    assert len(np.unique(golden["answer.bank"])) > 2
    assert len(np.unique(golden["answer.audience"])) > 2
    moved = golden[name].copy()
    moved[(0,) * moved.ndim] += moved.dtype.type(1)
    save_file(golden | {name: moved}, copied_bank / GOLDEN)
    reseal(copied_bank)
    assert "the golden examples come out otherwise here" in refusal(copied_bank)
