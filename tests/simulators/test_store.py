"""Fitted shoppers on disk: the same when read back, refused when not what was written."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from hawker.shop.artefacts import read_json, write_directory, write_json
from hawker.shop.decision import Decision
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.simulators.shopper import HEADS
from hawker.simulators.store import load_shoppers, require_impressions

CPU = torch.device("cpu")
FILES = [
    "train.safetensors",
    "judge.safetensors",
    "train-arrivals.safetensors",
    "judge-arrivals.safetensors",
    "items.safetensors",
    "support.safetensors",
    "shoppers.json",
    "config.yaml",
    "fidelity.json",
]


@pytest.fixture
def copy(fitted, tmp_path):
    """Logs and shoppers that a test may damage."""
    shutil.copytree(fitted[0], tmp_path / "shop")
    return tmp_path / "shop"


def test_what_is_read_back_answers_as_what_was_written(fitted, shoppers, tmp_path):
    with write_directory(tmp_path / "again", "shoppers") as scratch:
        shoppers.save(scratch)
    again = load_shoppers(tmp_path / "again", CPU)
    assert (again.config, again.size) == (shoppers.config, 3)
    assert (again.logs, again.logs_digest) == (fitted[0] / "logs", read_logs(fitted[0] / "logs").digest)
    for role in ("train", "judge"):
        one, other = shoppers.world(role), again.world(role)
        batch, same = (world.arrive(200, torch.Generator().manual_seed(0)) for world in (one, other))
        slate = torch.rand(200, 20, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :3]
        assert torch.equal(batch.context.affinity, same.context.affinity)
        assert torch.equal(
            one.click_probabilities(batch.context, slate), other.click_probabilities(same.context, slate)
        )


def test_shoppers_who_come_back_are_read_back_whole(regulars, tmp_path):
    """Lines, candidates, every head and its calibration."""
    _, shoppers, _ = regulars
    with write_directory(tmp_path / "again", "shoppers") as scratch:
        shoppers.save(scratch)
    again = load_shoppers(tmp_path / "again", CPU)
    assert again.lines.texts == shoppers.lines.texts == ("big sale today", "last ones left", "made by hand")
    assert np.array_equal(again.lines.scaled, shoppers.lines.scaled)
    assert again.support.visit == shoppers.support.visit > 1
    assert min(len(counts) for counts in (again.support.lines, again.support.offers)) == 3
    counts = [field.name for field in dataclasses.fields(shoppers.support)]
    assert all(torch.equal(getattr(again.support, name), getattr(shoppers.support, name)) for name in counts)
    for role in ("train", "judge"):
        one, other = shoppers.ensembles[role], again.ensembles[role]
        assert one.models[0].recorded == other.models[0].recorded
        assert other.calibration.shape == (len(HEADS), 4)
        weights, same = one.state_dict(), other.state_dict()
        assert weights.keys() == same.keys()
        assert all(torch.equal(value, same[name]) for name, value in weights.items())
        answers = []
        for world in (shoppers.world(role), again.world(role)):
            generator = torch.Generator().manual_seed(0)
            batch = world.arrive(100, generator)
            assert batch.context.candidates.shape == (100, 8)
            for _ in range(4):
                slate = batch.context.candidates[:, :3]
                copy, tier = torch.arange(3).expand(100, 3), torch.full((100,), 2)
                decision = Decision(slate, torch.zeros(100), tier, tier, copy)
                batch, outcome = world.respond(batch, decision, generator)
            answers.append((outcome, batch))
        (outcome, batch), (outcome_again, batch_again) = answers
        for name in ("clicked", "click_probability", "converted", "revenue", "leave", "days", "gone"):
            assert torch.equal(getattr(outcome, name), getattr(outcome_again, name)), name
        assert torch.equal(batch.state["memory"], batch_again.state["memory"])


def test_lines_stand_in_a_file_of_their_own(regulars):
    assert {path.name for path in (regulars[0] / "shoppers").iterdir()} == {
        *FILES,
        "lines.safetensors",
        "checksums.json",
    }


def test_arrivals_keep_the_candidates_of_their_page(regulars, journeys):
    """The candidates of a logged page, not of the whole catalog."""
    _, shoppers, _ = regulars
    train = shoppers.read_part("train").drop_duplicates("shopper_id")
    known = journeys[2].set_index(["visit_id", "page"])["candidates"]
    arrivals = shoppers.arrivals["train"]
    assert len(arrivals.shopper) == len(train) == 48
    for row, key in enumerate(train[["visit_id", "page"]].itertuples(index=False, name=None)):
        ids = [f"item-{i}" for i in arrivals.candidates[row][arrivals.mask[row]].tolist()]
        assert ids == known[key]


def test_every_file_is_accounted_for(fitted):
    assert {path.name for path in (fitted[0] / "shoppers").iterdir()} == {*FILES, "checksums.json"}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_refused(copy, name):
    file = copy / "shoppers" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="the file was changed after it was written"):
        load_shoppers(copy / "shoppers", CPU)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy / "shoppers" / name).unlink()
    with pytest.raises(InputError, match="a file is missing"):
        load_shoppers(copy / "shoppers", CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, "not shoppers of this version; got"),
        ({"size": 5}, "not shoppers of this version; got"),
        ({"builder": {}}, "not a feature schema"),
        ({"config": {"memebers": 2}}, "unknown option 'memebers'; did you mean 'members'?"),
        ({"config": {"members": 3}}, "not shoppers of this version; got"),
        ({"recorded": {}}, "not shoppers of this version; got"),
        ({"recorded": {"train": {"row": 1}, "judge": {}}}, "not shoppers of this version; got"),
        ({"recorded": {"train": {"timeline": True}, "judge": {}}}, "not shoppers of this version; got"),
        ({"lines": {"texts": ["a"], "scale": 1.0}}, "not shoppers of this version; got"),
        (None, "not shoppers of this version; got"),
    ],
)
def test_another_version_is_refused_in_one_line(copy, change, message):
    """The checksums are right, so that only the content can tell."""
    with write_directory(copy / "other", "shoppers") as scratch:
        for name in FILES:
            shutil.copy(copy / "shoppers" / name, scratch)
        meta = read_json(scratch / "shoppers.json")
        write_json(scratch / "shoppers.json", [] if change is None else meta | change)
    with pytest.raises(InputError) as caught:
        load_shoppers(copy / "other", CPU)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shoppers_of_before_recalibration_could_bend_are_refused_with_what_to_do(copy):
    with write_directory(copy / "old", "shoppers") as scratch:
        for name in FILES:
            shutil.copy(copy / "shoppers" / name, scratch)
        weights = load_file(scratch / "train.safetensors")
        weights["calibration"] = weights["calibration"][:, :2].contiguous()
        save_file(weights, scratch / "train.safetensors")
    with pytest.raises(InputError, match=r"size mismatch for calibration.*hawker fit"):
        load_shoppers(copy / "old", CPU)


def test_no_shoppers_at_all(tmp_path):
    with pytest.raises(InputError, match="no shoppers here"):
        load_shoppers(tmp_path / "nothing", CPU)


def test_parts_of_the_log_make_up_the_whole(fitted, shoppers):
    impressions = read_logs(fitted[0] / "logs").impressions
    parts = [shoppers.read_part(part) for part in ("train", "judge", "estimate")]
    assert [len(part) for part in parts] == [600, 200, 200]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), impressions)


def test_a_log_that_changed_since_is_refused(copy):
    with write_directory(copy / "moved", "shoppers") as scratch:
        for name in FILES:
            shutil.copy(copy / "shoppers" / name, scratch)
        write_json(scratch / "shoppers.json", read_json(scratch / "shoppers.json") | {"logs": str(copy / "logs")})
    shoppers = load_shoppers(copy / "moved", CPU)
    assert len(shoppers.read_part("judge")) == 200
    impressions = pd.read_parquet(copy / "logs/impressions.parquet")
    impressions.iloc[1:].to_parquet(copy / "logs/impressions.parquet", index=False)
    with pytest.raises(InputError, match="the log has changed since the shoppers were fitted; fit the shoppers anew"):
        shoppers.read_part("judge")
    shutil.rmtree(copy / "logs")
    with pytest.raises(InputError, match="no such directory"):
        shoppers.read_part("judge")


def test_a_log_of_events_alone_teaches_no_clicks(tmp_path):
    times = pd.to_datetime(["2026-01-01", "2026-01-02"], utc=True)
    events = pd.DataFrame({"shopper_id": ["a", "b"], "timestamp": times, "kind": "purchase"})
    events.to_parquet(tmp_path / "events.parquet", index=False)
    with pytest.raises(InputError, match="the log has no impressions; click models learn from the table impressions"):
        require_impressions(read_logs(tmp_path))


def test_the_judge_is_built_differently(shoppers):
    shapes = [
        {name: value.shape for name, value in shoppers.ensembles[role].members[0].state_dict().items()}
        for role in ("train", "judge")
    ]
    assert shapes[0] != shapes[1]
