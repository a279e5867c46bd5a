"""Texts as vectors: a small encoder that needs no model, one that runs a language model, and a cache on disk.

An encoder is a function of the text alone: it is never fitted, so that the same text has the same vector in logs, in
worlds and in serving. Its ``digest`` changes whenever its vectors would.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from hawker.shop.errors import InputError
from hawker.shop.models import find_model, model_digest, quiet_transformers

if TYPE_CHECKING:
    import torch

Vectors = npt.NDArray[np.float32]

LONGEST = 16_384
"""Characters of a text that are read; the rest is ignored, so that a text of 1 MB costs what one of 16 kB does."""

WIDEST = 65_536
"""Largest width of a ``HashedEncoder``."""

TOKENS = 64
"""Tokens of a text that a ``ModelEncoder`` reads, twice."""

BATCH = 16
"""Texts that a ``ModelEncoder`` reads at once: the states of all layers are held."""

CACHE = "vectors.sqlite"
"""The file of a ``CachedEncoder``."""

_GRAMS = (3, 4, 5)
_BLOCK = 1 << 18  # characters hashed at once: bounds memory, and is fastest
_COMMIT = 4_096  # texts encoded between two writes of the cache: what a killed process may lose


class Encoder(Protocol):
    """What turns texts into vectors."""

    name: str
    """As ``load_encoder`` takes it."""

    @property
    def digest(self) -> str:
        """What the vectors depend on besides the text, as 64 hex digits."""
        ...

    @property
    def width(self) -> int:
        """Entries of a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector a text, shape (n, width): of length 1, or of zeros where the text says nothing."""
        ...


class HashedEncoder:
    """Hashed words and character n-grams: deterministic, offline, for every script.

    A text is normalised (NFKC), lower-cased and cut into words at spaces and punctuation; symbols such as emoji count
    as letters, and a run of exclamation and question marks, which set a tone, as a word. A word gives itself and its
    n-grams of 3 to 5 characters, its two borders included, each hashed into one entry with a sign of its own
    (Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning"), with weight 1 + log(times that the
    word stands in the text). Rows are scaled to length 1.

    Only the first 16,384 characters of a text are read.

    Args:
        width: Entries of a vector, 1 to 65,536.

    Raises:
        InputError: No such width.
    """

    def __init__(self, width: int = 64) -> None:
        if not 1 <= width <= WIDEST:
            raise InputError("no such width", where="hashed encoder", got=width, expected=f"1 to {WIDEST:,}")
        self.width = width
        self.name = f"hashed:{width}"
        settings = {"kind": "hashed", "version": 2, "width": width, "grams": _GRAMS, "longest": LONGEST}
        self.digest = _digest(settings)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector a text, float32, shape (n, width).

        Raises:
            InputError: An entry is not a text.
        """
        texts = _checked(texts)
        vectors = np.zeros((len(texts), self.width), np.float32)
        for start, stop in _blocks(texts):
            vectors[start:stop] = _unit(self._sums([_words(text) for text in texts[start:stop]]))
        return vectors

    def _sums(self, texts: list[list[str]]) -> npt.NDArray[np.float64]:
        from scipy.sparse import csr_array

        ids: dict[str, int] = {}
        flat = np.fromiter((ids.setdefault(word, len(ids)) for text in texts for word in text), np.int64)
        if not ids:
            return np.zeros((len(texts), self.width))
        rows = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        pairs, counts = np.unique(rows * len(ids) + flat, return_counts=True)
        weights = csr_array((1 + np.log(counts), np.divmod(pairs, len(ids))), shape=(len(texts), len(ids)))
        owners, hashes = _hashes(list(ids))
        signs = 1.0 - 2.0 * (hashes & np.uint64(1))
        entries = ((hashes >> np.uint64(1)) % np.uint64(self.width)).astype(np.int64)
        features = csr_array((signs, (owners, entries)), shape=(len(ids), self.width))
        return np.asarray((weights @ features).toarray())


class ModelEncoder:
    """The mean of a causal language model's hidden states over a text's tokens, read a second time.

    A causal model reads the first words of a text before it knows the rest, so it is given the text twice, a line
    break between, and the second time counts (Springer et al. 2024, "Repetition Improves Language Model Embeddings").
    The states are those of the layer half-way up: the last ones say which word comes next (Skean et al. 2025, "Layer
    by Layer: Uncovering Hidden Representations in Language Models").

    Reads the first 64 tokens (of the first 16,384 characters); a blank text is a vector of zeros, all others have
    length 1. The model is read when the first text comes; in bfloat16 on a GPU that has it, else in float32. No code
    that a model brings along is run, and only safetensors are read.

    Args:
        model: A fetched model's name ("smollm2-135m"), a model's directory, or a hub id ("org/name").
        device: Where it computes.

    Raises:
        InputError: There is no such model, or transformers is not installed.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        self.name = model
        self.device = device
        self._path = find_model(model)

    @cached_property
    def digest(self) -> str:
        """What the vectors depend on: the model's files, the precision and the limits."""
        settings = {"kind": "model", "version": 2, "files": model_digest(self._path), "dtype": str(self._dtype)}
        return _digest(settings | {"tokens": TOKENS, "longest": LONGEST})

    @cached_property
    def width(self) -> int:
        """Entries of a vector: the model's hidden size."""
        return int(self._loaded[1].config.get_text_config().hidden_size)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector a text, float32, shape (n, width).

        Raises:
            InputError: The model cannot be read or gives no finite vectors; an entry is not a text.
        """
        texts = _checked(texts)
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        tokenizer, _ = self._loaded
        vectors = np.zeros((len(distinct), self.width), np.float32)
        spoken = [(i, _writable(text[:LONGEST])) for text, i in distinct.items() if text.strip()]
        if spoken:
            options: dict[str, Any] = {"truncation": True, "max_length": TOKENS, "add_special_tokens": False}
            tokens = tokenizer([text for _, text in spoken], **options)["input_ids"]
            rows = sorted(((len(ids), i, ids) for (i, _), ids in zip(spoken, tokens, strict=True) if ids), reverse=True)
            for start in range(0, len(rows), BATCH):
                _, where, ids = zip(*rows[start : start + BATCH], strict=True)
                vectors[list(where)] = self._pooled(ids)
        return vectors[[distinct[text] for text in texts]]

    @cached_property
    def _dtype(self) -> torch.dtype:
        import torch

        bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if bf16 else torch.float32

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the model."""
        with quiet_transformers(self._path):
            from transformers import AutoModel, AutoTokenizer

            options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
            tokenizer = AutoTokenizer.from_pretrained(self._path, **options)
            model = AutoModel.from_pretrained(self._path, dtype=self._dtype, use_safetensors=True, **options)
            return tokenizer, model.to(self.device).eval()

    def _pooled(self, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
        """Return the unit vectors of a batch of token ids, in order of falling length."""
        import torch

        tokenizer, model = self._loaded
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        between = tokenizer("\n", add_special_tokens=False)["input_ids"]
        # Padded here, at the end: what stands there is masked, so that the tokenizer needs no padding token.
        tokens = torch.zeros((len(ids), len(first) + 2 * len(ids[0]) + len(between)), dtype=torch.long)
        mask, second = torch.zeros_like(tokens), torch.zeros_like(tokens)
        for i, row in enumerate(ids):
            twice = [*first, *row, *between, *row]
            tokens[i, : len(twice)] = torch.as_tensor(twice)
            mask[i, : len(twice)] = 1
            second[i, len(twice) - len(row) : len(twice)] = 1
        tokens, mask, second = tokens.to(self.device), mask.to(self.device), second.to(self.device)
        with torch.no_grad():
            states = model(input_ids=tokens, attention_mask=mask, use_cache=False, output_hidden_states=True)
            hidden = states.hidden_states[len(states.hidden_states) // 2].float()  # the first are the tokens' own
            means = (hidden * second[:, :, None]).sum(1) / second.sum(1, keepdim=True)
        vectors = means.double().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise InputError("the model gives vectors that are not finite", where=self._path, remedy="fetch it anew")
        return _unit(vectors)


class CachedEncoder:
    """An encoder that keeps its vectors on disk, by the SHA-256 of its digest and the text.

    The store is one SQLite file, which several processes may read and write at once and a killed process leaves whole.
    Entries carry a checksum; damaged ones, or a damaged file, are computed anew.

    Args:
        encoder: What computes vectors that are not there yet.
        directory: Where the store stands; encoders may share it.

    Raises:
        InputError: No file can be written there.
    """

    def __init__(self, encoder: Encoder, directory: Path) -> None:
        self._encoder = encoder
        self.name = encoder.name
        self.path = Path(directory) / CACHE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write here ({error.strerror})", where=directory) from None

    @property
    def digest(self) -> str:
        """The digest of the encoder inside."""
        return self._encoder.digest

    @property
    def width(self) -> int:
        """The width of the encoder inside."""
        return self._encoder.width

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one vector a text, float32, shape (n, width); see the encoder inside."""
        texts = _checked(texts)
        if not texts:
            return self._encoder.encode(texts)
        keys = {text: _key(self.digest, text) for text in dict.fromkeys(texts)}
        known = self._read(list(keys.values()))
        missing = [text for text, key in keys.items() if key not in known]
        for start in range(0, len(missing), _COMMIT):
            block = missing[start : start + _COMMIT]
            new = dict(zip((keys[text] for text in block), self._encoder.encode(block), strict=True))
            self._write(new)
            known |= new
        return np.stack([known[keys[text]] for text in texts])

    def _read(self, keys: list[bytes]) -> dict[bytes, Vectors]:
        found: dict[bytes, Vectors] = {}
        for start in range(0, len(keys), 500):  # SQLite takes 999 parameters and more
            block = keys[start : start + 500]
            query = f"SELECT key, vector, sum FROM vectors WHERE key IN ({','.join('?' * len(block))})"
            for key, vector, total in self._run(query, block):
                if isinstance(vector, bytes) and len(vector) % 4 == 0 and zlib.crc32(key + vector) == total:
                    found[key] = np.frombuffer(vector, "<f4").astype(np.float32)
        return found

    def _write(self, vectors: dict[bytes, Vectors]) -> None:
        blobs = ((key, vector.astype("<f4").tobytes()) for key, vector in vectors.items())
        rows = [(key, blob, zlib.crc32(key + blob)) for key, blob in blobs]
        self._run("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows, many=True)

    def _run(self, query: str, values: Sequence[Any], many: bool = False) -> list[Any]:
        """Run one statement in a transaction of its own; a damaged file is begun anew."""
        for last in (False, True):
            try:
                with closing(sqlite3.connect(self.path, timeout=60)) as store, store:
                    store.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, sum INTEGER)")
                    return (store.executemany if many else store.execute)(query, values).fetchall()
            except sqlite3.DatabaseError as error:
                damaged = type(error) is sqlite3.DatabaseError or "no such column" in str(error)
                if last or not damaged:
                    raise InputError(
                        f"the cache cannot be used ({error})", where=self.path, remedy="free it, or name another"
                    ) from None
                self.path.unlink(missing_ok=True)
                self.path.with_name(f"{CACHE}-journal").unlink(missing_ok=True)
        raise AssertionError("unreachable")


def load_encoder(name: str, device: torch.device, cache: Path | None = None) -> Encoder | Any:
    """Return the encoder of a name; None for "none", which leaves texts out.

    Args:
        name: "hashed" (64 entries), "hashed:WIDTH", "none", or a language model: a fetched name, a directory or a hub
            id.
        device: Where a language model computes.
        cache: Directory that keeps a language model's vectors; the hashed ones are as quickly made as read.

    Raises:
        InputError: There is no such encoder.
    """
    if name == "none":  # the one case of None: whoever has refused it need not ask, hence "| Any"
        return None
    if re.fullmatch(r"hashed(:.*)?", name):
        width = name.partition(":")[2] or ("64" if name == "hashed" else "")
        if not (width.isascii() and width.isdecimal() and len(width) < 10):
            raise InputError("no such encoder", where="encoder", got=name, expected="hashed or hashed:WIDTH")
        return HashedEncoder(int(width))
    encoder = ModelEncoder(name, device)
    return encoder if cache is None else CachedEncoder(encoder, cache)


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InputError("one text where a list of texts is wanted", where="texts", got=texts)
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError("not a text", where=f"text {i}", got=kind, expected="a string, empty where there is none")
    return texts


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _key(digest: str, text: str) -> bytes:
    return hashlib.sha256(f"{digest}\0{text}".encode("utf-8", "surrogatepass")).digest()


def _writable(text: str) -> str:
    """Replace halves of surrogate pairs, which no tokenizer takes, by question marks."""
    return text.encode("utf-8", "replace").decode()


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: npt.NDArray[np.float64] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return units


def _blocks(texts: list[str]) -> Iterator[tuple[int, int]]:
    """Yield ranges of texts that hold about ``_BLOCK`` characters each."""
    start, held = 0, 0
    for i, text in enumerate(texts):
        held += min(len(text), LONGEST)
        if held >= _BLOCK:
            yield start, i + 1
            start, held = i + 1, 0
    if start < len(texts):
        yield start, len(texts)


class _Borders(dict[int, str | None]):
    """For ``str.translate``: a space where a word ends, nothing for format marks, else the character itself.

    The regular expression class of word characters would drop emoji and cut Indic words at their vowel signs.
    """

    def __missing__(self, code: int) -> str | None:
        kind = "" if chr(code) in "!?" else unicodedata.category(chr(code))
        self[code] = " " if kind[:1] in ("P", "Z") or kind in ("Cc", "Cs") else None if kind == "Cf" else chr(code)
        return self[code]


_BORDERS = _Borders()


def _words(text: str) -> list[str]:
    text = re.sub(r"[!?]+", r" \g<0> ", unicodedata.normalize("NFKC", text[:LONGEST]))
    return text.lower().translate(_BORDERS).split()


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return 64 well-mixed bits for each value (splitmix64; Steele et al. 2014), a new array."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _hashes(words: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return the hash of each word and of each of its n-grams, with the word's index beside it."""
    codes = np.frombuffer("".join(f" {word} " for word in words).encode("utf-32-le"), "<u4").astype(np.uint64)
    lengths = np.array([len(word) + 2 for word in words])
    owner = np.repeat(np.arange(len(words)), lengths)
    starts = np.cumsum(lengths) - lengths
    places = (np.arange(len(codes)) - starts[owner]).astype(np.uint64)
    owners = [np.arange(len(words))]
    hashes = [_mixed(np.add.reduceat(_mixed(codes + (places << np.uint64(32))), starts))]
    for n in _GRAMS:
        windows = max(len(codes) - n + 1, 0)
        inside = owner[:windows] == owner[n - 1 : n - 1 + windows]
        values = np.full(windows, n, np.uint64)
        for k in range(n):
            values = _mixed(values ^ codes[k : k + windows])
        owners.append(owner[:windows][inside])
        hashes.append(values[inside])
    return np.concatenate(owners), np.concatenate(hashes)
