"""Encoders and their cache; the language models here are tiny, random and made on the spot."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.errors import InputError
from hawker.shop.language import (
    CACHE,
    LONGEST,
    CachedEncoder,
    Encoder,
    HashedEncoder,
    ModelEncoder,
    Vectors,
    load_encoder,
)

CPU = torch.device("cpu")
TEXTS = [
    "red running shoes",
    "garden hose",
    "a lamp for the desk and some more words behind it",
    "lamp",
    "\u0bb5\u0bbf",
]


GOLDEN_TEA = [-0.4472136, 0.4472136, -0.4472136, -0.4472136, 0.0, 0.0, 0.4472136, 0.0]


# The hashed encoder


def test_hashed_vectors_do_not_change():
    """Vectors are kept in artefacts: the same in every process and version."""
    code = (
        "import hashlib; from hawker.shop.language import HashedEncoder as H; "
        "print(hashlib.sha256(H(32).encode(['Red running shoes', '\u978b 100']).round(5).tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        for seed in ("1", "2")
    ]
    here = hashlib.sha256(HashedEncoder(32).encode(["Red running shoes", "\u978b 100"]).round(5).tobytes()).hexdigest()
    assert {run.stdout.strip() for run in runs} == {here}
    nonzero = HashedEncoder(8).encode(["tea"])[0]
    assert nonzero == pytest.approx(GOLDEN_TEA, abs=1e-6)


def test_hashed_vectors_by_hand():
    """Seven signed ones: " tea ", borders included, has three n-grams of 3, two of 4 and one of 5, and is a word."""
    wide = HashedEncoder(65_536)
    vector = wide.encode(["tea"])[0]
    assert np.count_nonzero(vector) == 7
    assert np.abs(vector[vector != 0]) == pytest.approx(7**-0.5)
    twice, other = wide.encode(["tea tea", "tea hat"])
    assert twice == pytest.approx(vector)
    # Were it three times tea and once hat, tea would weigh 1 + log 3 as much.
    hat = wide.encode(["hat"])[0]
    more = wide.encode(["tea tea hat tea"])[0]
    assert (more @ vector) / (more @ hat) == pytest.approx(1 + np.log(3), rel=1e-5)
    assert (other @ vector) / (other @ hat) == pytest.approx(1, rel=1e-5)


def test_similar_texts_are_closer():
    shoes, shoe, hose, typo = HashedEncoder().encode(
        ["red running shoes", "running shoe, red", "garden hose", "red runing shoes"]
    )
    assert shoes @ shoe > 0.6
    assert shoes @ typo > 0.6
    assert abs(shoes @ hose) < 0.35


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Red,  SHOES.", "red shoes"),
        ("wow\uff01\uff01", "wow !!"),  # full-width marks
        ("caf\u00e9", "cafe\u0301"),  # composed and decomposed
        ("\uff34\uff25\uff21", "tea"),  # full-width letters
        (
            "\u0631\u062f\u0627\u0621 \u0623\u062d\u0645\u0631",
            "\u200f\u0631\u062f\u0627\u0621\u060c \u0623\u062d\u0645\u0631",
        ),
        ("co\u00adoperate", "cooperate"),  # soft hyphen
        ("\ud800tea", "tea"),  # half a surrogate pair
        ("x" * LONGEST, "x" * LONGEST + " and more"),
    ],
)
def test_what_does_not_count(one: str, other: str):
    first, second = HashedEncoder().encode([one, other])
    assert first == pytest.approx(second)
    assert np.linalg.norm(first) == pytest.approx(1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\U0001f45f", "\U0001f3a9"),  # emoji say something
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u0928\u0926"),  # as do vowel signs
        ("\u9ed2\u3044\u9774", "\u8d64\u3044\u5e3d\u5b50"),
        ("\u20ac 5", "$ 5"),
        ("shoes", "shoes!!!"),
        ("wow!!!", "wow!"),
    ],
)
def test_what_counts_in_every_script(one: str, other: str):
    first, second = HashedEncoder().encode([one, other])
    assert first @ first == pytest.approx(1)
    assert first @ second < 0.9


@pytest.mark.parametrize("text", ["", " \n\t", "...", "\u200b\u200f", "\ud800", "\x00"])
def test_a_text_that_says_nothing_is_zeros(text: str):
    assert not HashedEncoder().encode([text]).any()
    assert not HashedEncoder().encode([text, "tea"])[0].any()


@given(st.lists(st.text(max_size=30), max_size=8), st.integers(1, 80))
def test_hashed_vectors_have_length_one_and_stand_alone(texts: list[str], width: int):
    encoder = HashedEncoder(width)
    vectors = encoder.encode(texts)
    assert vectors.shape == (len(texts), width)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert np.all((lengths == 0) | (np.abs(lengths - 1) < 1e-5))
    for text, vector in zip(texts, vectors, strict=True):
        assert encoder.encode([text])[0] == pytest.approx(vector, abs=1e-6)


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "ab " * 333_333, "\u0301\u0327" * 500_000, "\ufdfa" * 10**6, "\n" * 10**6]
)
def test_a_text_of_1_mb_does_not_hang(text: str):
    start = time.perf_counter()
    vector = HashedEncoder().encode([text])
    assert time.perf_counter() - start < 10
    assert np.isfinite(vector).all()


def test_many_texts_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch):
    texts = [f"word{i} of {i * 7}" for i in range(200)]
    whole = HashedEncoder().encode(texts)
    monkeypatch.setattr("hawker.shop.language._BLOCK", 100)
    assert HashedEncoder().encode(texts) == pytest.approx(whole, abs=1e-6)


def test_digests_tell_settings_apart():
    assert HashedEncoder(64).digest == HashedEncoder().digest
    assert HashedEncoder(65).digest != HashedEncoder(64).digest
    assert len(HashedEncoder().digest) == 64


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["tea", None], "text 1: not a text; got 'NoneType', expected a string, empty where there is none"),
        ([float("nan")], "text 0: not a text; got 'float'"),
        ("tea", "texts: one text where a list of texts is wanted; got 'tea'"),
    ],
)
def test_what_is_no_text(texts: Any, message: str, tmp_path: Path):
    for encoder in (HashedEncoder(), CachedEncoder(HashedEncoder(), tmp_path)):
        with pytest.raises(InputError) as caught:
            encoder.encode(texts)
        assert message in str(caught.value)


# Language models


def save_model(path: Path, special: dict[str, str] | None = None) -> Path:
    """A Llama of a few thousand random parameters; its tokenizer knows bytes and a few words, and has no padding."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **(special or {})).save_pretrained(path)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """One that may be broken."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def test_model_vectors_by_hand(tiny: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, lm = AutoTokenizer.from_pretrained(tiny), AutoModelForCausalLM.from_pretrained(tiny)
    between = tokenizer("\n")["input_ids"]
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            states = lm(torch.tensor([[*ids, *between, *ids]]), output_hidden_states=True).hidden_states
        assert len(states) == 3  # tokens, and two layers
        mean = states[1][0, -len(ids) :].mean(0).numpy()
        vector = ModelEncoder(str(tiny), CPU).encode([text])[0]
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_model_vectors_stand_alone_in_any_order_and_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    encoder = ModelEncoder(str(tiny), CPU)
    vectors = encoder.encode([*TEXTS, "lamp"])
    assert vectors.shape == (6, 16)
    assert vectors.dtype == np.float32
    assert (vectors[5] == vectors[3]).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    for text, vector in zip(TEXTS, vectors, strict=False):
        assert encoder.encode([text])[0] == pytest.approx(vector, abs=1e-5)
    assert encoder.encode(TEXTS[::-1])[::-1] == pytest.approx(vectors[:5], abs=1e-5)
    monkeypatch.setattr("hawker.shop.language.BATCH", 2)
    assert encoder.encode(TEXTS) == pytest.approx(vectors[:5], abs=1e-5)


def test_model_reads_what_comes(tiny: Path):
    encoder = ModelEncoder(str(tiny), CPU)
    assert encoder.encode([]).shape == (0, 16)
    long = "lamp " * 200_000
    vectors = encoder.encode(["", " \n", long, long[:LONGEST], "\ud800", "\U0001f45f \u0623\u062d\u0645\u0631"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([0, 0, 1, 1, 1, 1], abs=1e-5)
    assert (vectors[2] == vectors[3]).all()


def test_model_digest_needs_no_model_in_memory(tiny: Path, model: Path):
    encoder = ModelEncoder(str(model), CPU)
    assert encoder.digest == ModelEncoder(str(tiny), CPU).digest
    assert "_loaded" not in vars(encoder)
    (model / "config.json").write_text(
        (model / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    )
    assert ModelEncoder(str(model), CPU).digest != encoder.digest


@pytest.mark.parametrize("special", [{"eos_token": "<end>"}, {"pad_token": "<end>", "padding_side": "left"}])
def test_padding_tokens_change_nothing(tiny: Path, tmp_path: Path, special: dict[str, str]):
    other = save_model(tmp_path / "other", special)
    expected = ModelEncoder(str(tiny), CPU).encode(TEXTS)
    assert ModelEncoder(str(other), CPU).encode(TEXTS) == pytest.approx(expected, abs=1e-5)


def rewrite(name: str, **values: Any):
    def change(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def not_finite(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"] *= float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda model: (model / "model.safetensors").write_bytes(b"x"),
            "transformers cannot read the model (Safetensor",
        ),
        (lambda model: (model / "config.json").write_text("{"), "transformers cannot read the model"),
        (rewrite("config.json", model_type="nothing"), "transformers cannot read the model"),
        (lambda model: (model / "tokenizer.json").unlink(), "transformers cannot read the model"),
        (not_finite, "the model gives vectors that are not finite; fetch it anew"),
    ],
)
def test_models_that_are_broken(model: Path, spoil: Any, message: str):
    spoil(model)
    with pytest.raises(InputError) as caught:
        ModelEncoder(str(model), CPU).encode(["lamp"])
    assert str(caught.value).startswith(f"{model}: {message}")
    assert "\n" not in str(caught.value)


def test_code_that_a_model_brings_is_not_run(model: Path, tmp_path: Path):
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": "evil.Tokenizer"}
    rewrite("config.json", auto_map=auto, model_type="evil")(model)
    with pytest.raises(InputError, match="transformers cannot read the model"):
        ModelEncoder(str(model), CPU).encode(["lamp"])
    assert not (tmp_path / "ran").exists()


# The cache


class Counting:
    """An encoder that counts what it is asked."""

    name, width = "counting", 64

    def __init__(self, digest: str = "0" * 64) -> None:
        self.digest, self.asked = digest, list[str]()

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return HashedEncoder().encode(texts)


def test_what_is_cached_is_not_encoded_again(tmp_path: Path):
    expected = HashedEncoder().encode([*TEXTS, "lamp"])
    first = Counting()
    assert (CachedEncoder(first, tmp_path / "new" / "cache").encode([*TEXTS, "lamp"]) == expected).all()
    assert first.asked == TEXTS  # each text once
    second = Counting()
    cached: Encoder = CachedEncoder(second, tmp_path / "new" / "cache")
    assert (cached.encode([*TEXTS, "lamp", "\ud800"])[:6] == expected).all()
    assert second.asked == ["\ud800"]
    assert (cached.name, cached.digest, cached.width) == ("counting", "0" * 64, 64)
    assert cached.encode([]).shape == (0, 64)


def test_another_encoder_has_other_entries(tmp_path: Path):
    CachedEncoder(Counting(), tmp_path).encode(TEXTS)
    other = Counting("1" * 64)
    CachedEncoder(other, tmp_path).encode(TEXTS)
    assert other.asked == TEXTS


def test_many_texts_are_kept_by_and_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed on the way, it has what came before."""
    monkeypatch.setattr("hawker.shop.language._COMMIT", 100)
    texts = [f"text {i}" for i in range(1_200)]

    class Killed(Counting):
        def encode(self, texts: Sequence[str]) -> Vectors:
            if len(self.asked) >= 1_000:
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(Killed(), tmp_path).encode(texts)
    after = Counting()
    assert (CachedEncoder(after, tmp_path).encode(texts) == HashedEncoder().encode(texts)).all()
    assert after.asked == texts[1_000:]


def flip_entry(path: Path) -> None:
    with sqlite3.connect(path) as store:
        store.execute("UPDATE vectors SET vector = zeroblob(256)")
    store.close()


def other_schema(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as store:
        store.execute("CREATE TABLE vectors (something TEXT)")
    store.close()


def scribble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:3000] = bytes(range(256)) * 11 + bytes(84)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        flip_entry,
        other_schema,
        scribble,
        lambda path: path.write_bytes(b"no database" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, spoil: Any):
    CachedEncoder(Counting(), tmp_path).encode(TEXTS)
    spoil(tmp_path / CACHE)
    again = Counting()
    assert (CachedEncoder(again, tmp_path).encode(TEXTS) == HashedEncoder().encode(TEXTS)).all()
    assert again.asked == TEXTS
    last = Counting()
    CachedEncoder(last, tmp_path).encode(TEXTS)
    assert not last.asked


def test_several_write_at_once(tmp_path: Path):
    def work(worker: int) -> bool:
        texts = [f"text {i}" for i in range(worker * 20, worker * 20 + 60)]
        return bool((CachedEncoder(Counting(), tmp_path).encode(texts) == HashedEncoder().encode(texts)).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    last = Counting()
    CachedEncoder(last, tmp_path).encode([f"text {i}" for i in range(200)])
    assert not last.asked


def test_caches_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot write here"):
        CachedEncoder(Counting(), tmp_path / "file" / "cache")
    (tmp_path / CACHE).mkdir()
    with pytest.raises(InputError, match=r"vectors.sqlite: the cache cannot be used \(unable to open database file\)"):
        CachedEncoder(Counting(), tmp_path).encode(["lamp"])


# By name


def test_load_encoder(tiny: Path, tmp_path: Path):
    assert load_encoder("none", CPU, tmp_path) is None
    assert load_encoder("hashed", CPU).digest == HashedEncoder().digest
    assert load_encoder("hashed:128", CPU, tmp_path).encode(["tea"]).shape == (1, 128)
    assert isinstance(load_encoder(str(tiny), CPU), ModelEncoder)
    cached = load_encoder(str(tiny), CPU, tmp_path)
    assert isinstance(cached, CachedEncoder)
    assert cached.width == 16
    assert (cached.encode(TEXTS) == cached.encode(TEXTS)).all()
    assert {path.name for path in tmp_path.iterdir()} == {CACHE}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hashed:", "encoder: no such encoder; got 'hashed:', expected hashed or hashed:WIDTH"),
        ("hashed:ten", "no such encoder; got 'hashed:ten'"),
        ("hashed:-1", "no such encoder"),
        ("hashed:0", "hashed encoder: no such width; got 0, expected 1 to 65,536"),
        ("hashed:65537", "no such width; got 65537"),
        ("hashed:" + "9" * 5000, "no such encoder"),
        ("smolm2-135m", "no such language model; got 'smolm2-135m'; did you mean 'smollm2-135m'?"),
        ("", "no such language model; got ''"),
    ],
)
def test_unknown_encoders(name: str, message: str):
    with pytest.raises(InputError) as caught:
        load_encoder(name, CPU)
    assert message in str(caught.value)
