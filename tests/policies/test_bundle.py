import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.stats import chisquare

from hawker.policies import bundle as bundle_module
from hawker.policies.bundle import (
    GOLDEN,
    GRAPH,
    ITEMS,
    MANIFEST,
    Bundle,
    conditional_log_prob,
    decide_request,
    log_prob,
)
from hawker.policies.export import export_bundle, random_pages
from hawker.policies.protocol import slate_of
from hawker.policies.slate import PlackettLuce, SlateActor
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import CHECKSUMS, sha256, write_directory
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.simulators.small import small_tables

FILES = (GRAPH, ITEMS, GOLDEN, MANIFEST, CHECKSUMS)
NOW = "2026-11-22T10:00:00Z"


@pytest.fixture(scope="module")
def strategy() -> TrainedStrategy:
    builder = ContextBuilder.fit(*small_tables(20, 3))
    generator = torch.Generator().manual_seed(0)
    actor = SlateActor(builder, 3, 16, generator).requires_grad_(False)
    for weights in actor.parameters():
        weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.3)
    return TrainedStrategy(actor, builder, {"shoppers": "5" * 64, "logs": "7" * 64, "config": {"seed": 3}})


@pytest.fixture(scope="module")
def exported(strategy, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "bundle"
    export_bundle(strategy, path)
    return path


@pytest.fixture(scope="module")
def bundle(exported) -> Bundle:
    return Bundle.load(exported)


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def reseal(path: Path) -> None:
    """Make every checksum right again, as an attacker or another version of Hawker would."""
    manifest = json.loads((path / MANIFEST).read_text())
    if isinstance(manifest, dict) and "files" in manifest:
        for name in (GRAPH, ITEMS, GOLDEN):
            manifest["files"][name]["sha256"] = sha256(path / name)
        (path / MANIFEST).write_text(json.dumps(manifest))
    digests = {name: sha256(path / name) for name in FILES if name != CHECKSUMS}
    (path / CHECKSUMS).write_text(json.dumps({"kind": "bundle", "files": digests}))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        Bundle.load(path)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


class TestDecisions:
    def test_greedy_slates_are_torchs_modes(self, strategy, bundle):
        context = random_pages(strategy.builder, 500, np.random.default_rng(1))
        tensors = context.map(torch.from_numpy)
        slates = strategy.distribution(tensors)
        decision = bundle.decide(context, None)
        assert np.array_equal(decision.slate, slate_of(tensors, slates.mode()).numpy())
        assert np.allclose(decision.log_prob, slates.log_prob(slates.mode()).numpy(), atol=1e-5)
        assert (decision.slate == EMPTY).any()

    def test_sampled_slates_agree_with_their_log_prob(self, bundle):
        """Chi-square over all 60 slates of 3 out of 5 eligible candidates, 100,000 draws; one more is not eligible."""
        n = 100_000
        builder = bundle.builder
        ids = [f"item-{i}" for i in (3, 5, 7, 11, 13, 17)]
        one = builder.from_request({"timestamp": NOW, "candidates": ids, "shopper": {"segment": "new"}}, "request")
        one.mask[0, 4] = False
        context = one.map(lambda array: np.repeat(array, n, axis=0))
        decision = bundle.decide(context, np.random.default_rng(2))

        slates = np.array(list(itertools.permutations(range(6), 3)))
        slates = slates[~(slates == 4).any(1)]
        logits = np.repeat(bundle.logits(one), len(slates), axis=0)
        expected = n * np.exp(log_prob(logits, np.repeat(one.mask, len(slates), axis=0), slates))
        assert expected.sum() == pytest.approx(n, rel=1e-12)

        drawn = (decision.slate[:, None] == one.candidates[0][slates][None]).all(2)
        assert (drawn.sum(1) == 1).all()
        assert np.allclose(decision.log_prob, np.log(expected / n)[drawn.argmax(1)])
        counts = drawn.sum(0)
        often = expected >= 5
        assert often.sum() >= 20
        counts = np.append(counts[often], counts[~often].sum())
        expected = np.append(expected[often], expected[~often].sum())
        used = expected > 0
        assert chisquare(counts[used], expected[used]).pvalue > 0.001

    def test_a_batch_is_decided_as_its_pages_are_alone(self, bundle, monkeypatch):
        context = random_pages(bundle.builder, 50, np.random.default_rng(3))
        whole = bundle.logits(context)
        monkeypatch.setattr(bundle_module, "MAX_ENTRIES", 7000)  # parts of 16 pages
        assert np.array_equal(bundle.logits(context), whole)
        for page in range(50):
            alone = bundle.logits(context.map(lambda array, page=page: array[page : page + 1]))
            assert np.allclose(alone, whole[page : page + 1], rtol=0, atol=1e-12)

    def test_same_generator_gives_the_same_slates_and_others_differ(self, bundle):
        context = random_pages(bundle.builder, 50, np.random.default_rng(3))
        slates = [bundle.decide(context, np.random.default_rng(seed)).slate for seed in (4, 4, 5)]
        assert np.array_equal(slates[0], slates[1])
        assert not np.array_equal(slates[0], slates[2])

    def test_slates_never_repeat_an_item_nor_show_an_ineligible_one(self, bundle):
        context = random_pages(bundle.builder, 2000, np.random.default_rng(6))
        slate = bundle.decide(context, np.random.default_rng(7)).slate
        for shown, candidates, mask in zip(slate, context.candidates, context.mask, strict=True):
            filled = shown[shown != EMPTY]
            assert len(set(filled)) == len(filled) == min(3, mask.sum())
            assert set(filled) <= set(candidates[mask])
            assert (shown[len(filled) :] == EMPTY).all()

    def test_a_page_without_candidates_stays_empty(self, bundle):
        context = random_pages(bundle.builder, 2, np.random.default_rng(8))
        context.mask[:] = False
        decision = bundle.decide(context, np.random.default_rng(9))
        assert decision.slate.tolist() == [[EMPTY] * 3] * 2
        assert decision.log_prob.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("name", ["shopper", "affinity"])
    def test_features_that_are_not_finite_are_refused(self, bundle, name):
        context = random_pages(bundle.builder, 2, np.random.default_rng(8))
        getattr(context, name)[1, 0] = np.nan
        with pytest.raises(InputError, match=f"context: {name}: not a finite number"):
            bundle.logits(context)


class TestLogProb:
    def test_by_hand(self):
        """Weights 1, 2, 3, and 4 that is not eligible: P(3 then 1) = 3/6 * 1/3."""
        logits, mask = np.log([[1.0, 2.0, 3.0, 4.0]]), np.array([[True, True, True, False]])
        assert np.exp(log_prob(logits, mask, np.array([[2, 0]]))) == pytest.approx(1 / 6)
        steps = conditional_log_prob(logits, mask, np.array([[2, 0, 1, EMPTY]]))
        assert np.exp(steps[0]).tolist() == pytest.approx([1 / 2, 1 / 3, 1.0, 1.0])

    @pytest.mark.parametrize("picks", [[0, 0], [3, 0], [0, EMPTY], [EMPTY, 0], [EMPTY, EMPTY]])
    def test_impossible_slates(self, picks):
        mask = np.array([[True, True, True, False]])
        assert log_prob(np.zeros((1, 4)), mask, np.array([picks])) == -np.inf

    @given(st.data())
    def test_agrees_with_torch(self, data):
        """On any slates, possible or not, even with more slots than candidates."""
        pages, places, size = 4, data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
        generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        logits = generator.uniform(-20, 20, (pages, places))
        mask = generator.random((pages, places)) < 0.8
        picks = generator.integers(EMPTY, places, (pages, size))
        slates = PlackettLuce(torch.from_numpy(logits), torch.from_numpy(mask), size)
        drawn = slates.sample(torch.Generator().manual_seed(0)).numpy()
        for chosen in (picks, drawn):
            expected = slates.log_prob(torch.from_numpy(chosen)).numpy()
            assert np.allclose(log_prob(logits, mask, chosen), expected, rtol=0, atol=1e-9)
        assert np.isfinite(log_prob(logits, mask, drawn)).all()

    @given(st.lists(st.floats(-20, 20), min_size=1, max_size=5), st.integers(1, 3))
    def test_probabilities_of_all_slates_sum_to_one(self, logits, size):
        filled = min(size, len(logits))
        slates = np.array(
            [[*s, *[EMPTY] * (size - filled)] for s in itertools.permutations(range(len(logits)), filled)]
        )
        shape = (len(slates), len(logits))
        total = np.exp(log_prob(np.broadcast_to(logits, shape), np.ones(shape, bool), slates)).sum()
        assert total == pytest.approx(1.0, abs=1e-12)


class TestRequests:
    def test_answer(self, bundle):
        ids = ["item-4", "item-9", "item-2", "item-1", "item-0"]
        request = {
            "timestamp": NOW,
            "shopper": {"age": 31, "segment": "loyal"},
            "affinity": {"item-2": 1.5},
            "candidates": ids,
        }
        answer = decide_request(bundle, request, "context.json", 1)
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
        assert len(set(answer["slate"])) == 3
        assert set(answer["slate"]) <= set(ids)
        assert answer["log_prob"] == pytest.approx(np.log(answer["propensities"]).sum())
        rest = {"drawn": "sampled", "seed": 1, "candidates": 5, "empty_slots": 0, "bundle": bundle.digest}
        assert answer.items() >= rest.items()

        context = bundle.builder.from_request(request, "context.json")
        logits = bundle.logits(context)[0]
        assert context.affinity[0].tolist() == [0, 0, 1.5, 0, 0]
        first = np.exp(logits[ids.index(answer["slate"][0])]) / np.exp(logits).sum()
        assert answer["propensities"][0] == pytest.approx(first)

    def test_seeds_and_greedy(self, bundle):
        answers = [decide_request(bundle, {"timestamp": NOW}, "", seed) for seed in (*range(20), 0, None, None)]
        assert answers[0] == answers[20]
        assert len({tuple(answer["slate"]) for answer in answers[:20]}) > 3
        greedy = answers[21]
        assert greedy == answers[22]
        assert (greedy["drawn"], greedy["seed"], greedy["candidates"]) == ("greedy", None, 20)
        assert greedy["log_prob"] >= max(answer["log_prob"] for answer in answers)

    def test_fewer_candidates_than_slots(self, bundle):
        answer = decide_request(bundle, {"timestamp": NOW, "candidates": ["item-3", "item-8"]}, "", 0)
        assert sorted(answer["slate"]) == ["item-3", "item-8"]
        assert (answer["candidates"], answer["empty_slots"]) == (2, 1)
        assert answer["propensities"][1] == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (
                {"timestamp": NOW, "candidates": ["item-3", "item-99"]},
                "item not in the catalog; got 'item-99'; did you",
            ),
            ({"timestamp": NOW, "candidate": ["item-3"]}, "unknown key 'candidate'; did you mean 'candidates'?"),
            ({"timestamp": NOW, "shopper": {"agee": 3}}, "unknown key 'agee'; did you mean 'age'?"),
            ({"timestamp": NOW, "shopper": {"age": float("nan")}}, "shopper.age: not a number; got nan"),
            ({"timestamp": NOW, "shopper": {"age": "old"}}, "shopper.age: not a number; got 'old'"),
            ({"timestamp": NOW, "affinity": {"item-1": float("nan")}}, "affinity.item-1: not a number; got nan"),
            ({"timestamp": NOW, "affinity": {"item-1": 1e39}}, "affinity.item-1: not a number; got 1e+39"),
            ({"timestamp": NOW, "affinity": {"itm-1": 1.0}}, "unknown key 'itm-1'; did you mean 'item-1'?"),
            ({"timestamp": NOW, "candidates": []}, "no candidates; got []"),
            ({"timestamp": NOW, "candidates": ["item-1", "item-2", "item-1"]}, "a candidate is listed twice"),
            ({"timestamp": "2026-11-22T10:00:00"}, "bad timestamp"),
            ({}, "no timestamp"),
            ([], "not an object"),
        ],
    )
    def test_bad_request(self, bundle, request_, message):
        with pytest.raises(InputError) as error:
            decide_request(bundle, request_, "context.json", 0)
        assert str(error.value).startswith("context.json: ")
        assert message in str(error.value)
        assert "\n" not in str(error.value)

    def test_bad_seed(self, bundle):
        with pytest.raises(InputError, match="seed: bad seed; got -1"):
            decide_request(bundle, {"timestamp": NOW}, "", -1)


class TestDamage:
    @pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("name", FILES)
    def test_one_byte_flipped(self, copied, name, place):
        data = bytearray((copied / name).read_bytes())
        data[int(place * (len(data) - 1))] ^= 0x01
        (copied / name).write_bytes(data)
        assert str(copied) in refusal(copied)

    def test_any_byte_of_the_list_of_checksums_flipped(self, copied):
        whole = (copied / CHECKSUMS).read_bytes()
        for i in range(len(whole)):
            (copied / CHECKSUMS).write_bytes(whole[:i] + bytes([whole[i] ^ 0x01]) + whole[i + 1 :])
            refusal(copied)

    @pytest.mark.parametrize("name", FILES)
    def test_one_file_missing(self, copied, name):
        (copied / name).unlink()
        assert name in refusal(copied)

    @pytest.mark.parametrize("name", FILES)
    def test_one_file_truncated(self, copied, name):
        (copied / name).write_bytes((copied / name).read_bytes()[:100])
        refusal(copied)

    def test_nothing_there(self, tmp_path):
        assert "no bundle here" in refusal(tmp_path / "nothing")

    def test_another_artefact(self, strategy, tmp_path):
        with write_directory(tmp_path / "policy", "policy") as scratch:
            strategy.save(scratch)
        message = refusal(tmp_path / "policy")
        assert "policy: a directory of another kind; got 'policy', expected bundle" in message

    @pytest.mark.parametrize("name", [GRAPH, ITEMS, GOLDEN])
    def test_a_file_that_no_checksum_covers(self, copied, name):
        listed = json.loads((copied / CHECKSUMS).read_text())
        del listed["files"][name]
        (copied / CHECKSUMS).write_text(json.dumps(listed))
        assert f"{name}: not the file of the manifest" in refusal(copied)


def edit_manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / MANIFEST).read_text())
        change(manifest)
        (path / MANIFEST).write_text(json.dumps(manifest))

    return edit


def edit_arrays(name: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        arrays = {key: np.array(value) for key, value in load_file(path / name).items()}
        change(arrays)
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path / name)

    return edit


RESEALED = {
    "future format": (
        edit_manifest(lambda m: m.update(format=2, hawker="9.0")),
        "another format; got 2, expected format 1",
    ),
    "no format": (edit_manifest(lambda m: m.pop("format")), "another format"),
    "no builder": (
        edit_manifest(lambda m: m.pop("builder")),
        "not a bundle of this version; got \"KeyError('builder')\"",
    ),
    "a schema of another form": (edit_manifest(lambda m: m["builder"].update(shopper=[])), "not a feature schema"),
    "a size that is no number": (edit_manifest(lambda m: m.update(size="3")), "not a bundle of this version"),
    "manifest is a list": (lambda path: (path / MANIFEST).write_text("[]"), "not a bundle of this version"),
    "an item without a row": (edit_arrays(ITEMS, lambda a: a.update(table=a["table"][1:])), "got 'float32 (19, 21)'"),
    "rows too narrow": (edit_arrays(ITEMS, lambda a: a.update(table=a["table"][:, 1:])), "expected float32 (20, 21)"),
    "items in double": (
        edit_arrays(ITEMS, lambda a: a.update(table=a["table"].astype(np.float64))),
        "got 'float64",
    ),
    "no item table": (edit_arrays(ITEMS, lambda a: a.update(rows=a.pop("table"))), "KeyError('table')"),
    "other items": (
        edit_arrays(ITEMS, lambda a: a.update(table=a["table"][::-1])),
        "golden examples come out otherwise",
    ),
    "golden logits moved": (edit_arrays(GOLDEN, lambda a: a["logits"].__iadd__(1e-3)), "install onnxruntime"),
    "golden logits NaN": (
        edit_arrays(GOLDEN, lambda a: a["logits"].fill(np.nan)),
        "golden examples come out otherwise",
    ),
    "golden log_prob moved": (edit_arrays(GOLDEN, lambda a: a["log_prob"].__iadd__(1e-3)), "golden examples"),
    "golden pages of another shop": (
        edit_arrays(GOLDEN, lambda a: a.update(shopper=a["shopper"][:, 1:])),
        "Got invalid dimensions for input: shopper",
    ),
    "graph is noise": (lambda path: (path / GRAPH).write_bytes(b"noise"), "not a bundle of this version; got"),
    "graph of another width": (
        edit_manifest(lambda m: m["graph"]["inputs"]["shopper"]["shape"].__setitem__(1, 7)),
        "the graph does not fit the manifest",
    ),
}


@pytest.mark.parametrize(("edit", "message"), RESEALED.values(), ids=RESEALED)
def test_bundle_with_right_checksums_and_wrong_content(copied, edit, message):
    edit(copied)
    reseal(copied)
    assert message in refusal(copied)


def test_golden_examples_within_tolerance_are_let_through(copied):
    edit_arrays(GOLDEN, lambda a: a["logits"].__iadd__(5e-5))(copied)
    reseal(copied)
    assert Bundle.load(copied).size == 3


def test_a_graph_that_ignores_the_mask_is_refused(strategy, copied, monkeypatch):
    monkeypatch.setattr(Bundle, "logits", lambda self, context: scores(strategy, context))
    assert "an ineligible candidate in play" in refusal(copied)


def scores(strategy: TrainedStrategy, context: Context) -> np.ndarray:
    return strategy.actor(context.map(torch.from_numpy)).double().numpy()
