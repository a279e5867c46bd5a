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
from hawker.policies.page_bundle import LINES, MEMORY, READER, AnsweredPages, PageBundle, load_bundle
from hawker.policies.page_draw import draw, log_probs
from hawker.shop.artefacts import CHECKSUMS, sha256
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError


@pytest.fixture(scope="module")
def bundle(served_pages) -> PageBundle:
    return PageBundle.load(served_pages / "bundle")


@pytest.fixture
def copied(served_pages, tmp_path) -> Path:
    return Path(shutil.copytree(served_pages / "bundle", tmp_path / "bundle"))


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
    for name in manifest["files"]:
        manifest["files"][name]["sha256"] = sha256(path / name)
    (path / MANIFEST).write_text(json.dumps(manifest))
    digests = {file.name: sha256(file) for file in path.iterdir() if file.name != CHECKSUMS}
    (path / CHECKSUMS).write_text(json.dumps({"kind": "bundle", "files": digests}))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_bundle(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    return str(error.value)


def test_serving_needs_no_torch(served_pages):
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
    (copied / MANIFEST).write_text(json.dumps(manifest | {"format": 3}))
    reseal(copied)
    assert "a bundle of another format; got 3, expected format 1" in refusal(copied)
    assert "no bundle here" in refusal(copied / "nothing")
