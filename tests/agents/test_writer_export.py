"""A writer goes into a bundle: whole, without code, with what it is told; what is none, or another shop's, does not."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from hawker.agents import page_export
from hawker.agents.page_export import export_run
from hawker.agents.writer_export import LEFT, TakenWriter
from hawker.policies.briefs import DATA, Brief
from hawker.policies.bundle import MANIFEST
from hawker.policies.page_live import COLUMNS, RULES, TOLD, WRITER
from hawker.policies.writer import Writer
from hawker.shop.artefacts import CHECKSUMS, write_json
from hawker.shop.errors import InputError
from hawker.shop.models import SOURCE, model_digest
from hawker.shop.run import Run
from hawker.simulators.store import FittedShoppers, load_shoppers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shoppers(served_bank: Path) -> FittedShoppers:
    return load_shoppers(served_bank / "run" / "shoppers", CPU)


@pytest.fixture
def model(small_lm: Path, tmp_path: Path) -> Path:
    """A tiny model that may be changed."""
    path = tmp_path / "model"
    shutil.copytree(small_lm, path, ignore=shutil.ignore_patterns(CHECKSUMS))
    return path


def test_a_bundle_holds_the_writer(served_live: Path):
    directory, source = served_live / "bundle", served_live / "run" / "writer" / "sft"
    files = {path.name for path in (directory / WRITER).iterdir()}
    assert files == {path.name for path in source.iterdir()} - set(LEFT) | {TOLD, RULES}
    for path in (directory / WRITER).iterdir():
        assert path.suffix in {".json", ".safetensors", ".jinja", ".parquet", ".yaml"}
        assert not any(word in path.read_bytes() for word in (b"site-packages", str(served_live).encode()))
    manifest = json.loads((directory / MANIFEST).read_text())
    assert manifest["writer"] == {"digest": model_digest(source), "voice": ["Made by hand, for every day"]}
    assert {f"{WRITER}/{name}" for name in files} <= set(manifest["files"])
    assert {f"{WRITER}/{name}" for name in files} <= set(json.loads((directory / CHECKSUMS).read_text())["files"])
    brief = [Brief("headline", title="Tea pot")]
    said = [Writer.load(str(path), CPU).write(brief, seed=3) for path in (source, directory / WRITER)]
    assert said[0] == said[1]


def test_what_is_written(model: Path, shoppers: FittedShoppers, tmp_path: Path):
    for name in ("train.json", "config.yaml", "modeling.py", "pytorch_model.bin"):
        (model / name).write_text("{}")
    write_json(model / SOURCE, {"model": "/somewhere", "made_from": "x", "logs": shoppers.logs_digest})
    rules = tmp_path / "rules.yaml"
    rules.write_text((DATA / "guardrails.yaml").read_text() + "\n# the shop's own\n")
    said = TakenWriter.find(model, shoppers, rules, ()).write(tmp_path / "out", shoppers)
    assert said == {"digest": model_digest(model), "voice": []}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written.isdisjoint({"train.json", "config.yaml", "modeling.py", "pytorch_model.bin", SOURCE, CHECKSUMS})
    assert (tmp_path / "out" / RULES).read_text() == rules.read_text()
    told = pd.read_parquet(tmp_path / "out" / TOLD)
    items = pd.read_parquet(shoppers.logs / "items.parquet").set_index("item_id")
    assert list(told.columns) == COLUMNS
    expected = items.loc[list(shoppers.builder.catalog.item_ids)]
    for name in set(COLUMNS) & set(items):
        assert told[name].tolist() == expected[name].tolist()


def refused(path: Path, shoppers: FittedShoppers) -> str:
    with pytest.raises(InputError) as error:
        TakenWriter.find(path, shoppers, None, ())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_writer_is_refused(model: Path, shoppers: FittedShoppers, tmp_path: Path, served_bank: Path):
    assert "none: no writer here; expected a directory that" in refused(tmp_path / "none", shoppers)
    assert "logs: not a language model" in refused(shoppers.logs, shoppers)
    assert "policy: not a language model" in refused(served_bank / "run" / "policy", shoppers)
    assert "org/name: no writer here" in refused(Path("org/name"), shoppers)  # and no hub is asked
    write_json(model / SOURCE, {"model": "x", "logs": "0" * 64})
    assert "model: the writer was trained on another log; got '000000000000...', expected " in refused(model, shoppers)
    (model / "adapter_config.json").write_text("{}")
    assert "model: an adapter, which is no model by itself" in refused(model, shoppers)


def test_a_writer_that_was_changed_is_refused(small_lm: Path, shoppers: FittedShoppers, tmp_path: Path):
    shutil.copytree(small_lm, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "config.json: the file was changed after it was written" in refused(tmp_path / "model", shoppers)


def test_a_model_that_cannot_be_read_ends_the_export(model: Path, shoppers: FittedShoppers, tmp_path: Path):
    (model / "model.safetensors").write_bytes(b"nothing")
    taken = TakenWriter.find(model, shoppers, None, ())
    with pytest.raises(InputError, match="transformers cannot read the model"):
        taken.write(tmp_path / "out", shoppers)


def test_runs_that_no_writer_can_go_along_with(
    served_pages: Path, served_bank: Path, tmp_path: Path, small_lm: Path, monkeypatch: pytest.MonkeyPatch
):
    out, seen = tmp_path / "bundle", []
    with pytest.raises(InputError, match=r"writer/bank: no copy bank to stand in where the writer is late; fill it"):
        export_run(Run(served_pages / "run"), out, None, small_lm)
    with pytest.raises(InputError, match="voice: nobody speaks in this voice; got 'A'; name a --writer"):
        export_run(Run(served_bank / "run"), out, None, None, ("A",))
    monkeypatch.setattr(page_export, "export_pages", lambda *given: seen.append(given) or {})
    export_run(Run(served_bank / "run"), out, None, small_lm, ("A",))
    assert seen[0][-1] == TakenWriter(small_lm, DATA / "guardrails.yaml", ("A",))
    monkeypatch.setattr(page_export, "read_json", lambda path: {})
    with pytest.raises(InputError, match="policy: slates have no lines to write; leave out --writer"):
        export_run(Run(served_bank / "run"), out, None, small_lm)
    assert not out.exists()
