"""What killed writers leave behind, and who clears it away."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hawker.shop.artefacts import WRITING, scratch_directory, sweep, verify_directory, write_directory

WRITER = """
import sys, time
from pathlib import Path
from hawker.shop.artefacts import write_directory
with write_directory(Path(sys.argv[1]), "thing") as scratch:
    (scratch / "a").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "thing"


def write(destination: Path) -> None:
    with write_directory(destination, "thing") as scratch:
        (scratch / "a").write_text("whole")


def scratches(destination: Path) -> list[Path]:
    return list(destination.parent.glob(f".thing.{WRITING}*"))


def test_the_scratch_of_a_killed_writer_is_swept_and_that_of_a_living_one_is_not(destination: Path):
    with subprocess.Popen([sys.executable, "-c", WRITER, destination], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        (left,) = scratches(destination)
        sweep(destination)
        write(destination)
        assert (left / "a").read_text() == "half"
        writer.send_signal(signal.SIGKILL)
    assert left.exists()
    write(destination)
    assert [path.name for path in destination.parent.iterdir()] == ["thing"]
    assert (verify_directory(destination, "thing") / "a").read_text() == "whole"


def test_two_writers_of_one_destination_do_not_sweep_each_other(destination: Path):
    with write_directory(destination, "thing") as first:
        (first / "a").write_text("first")
        with write_directory(destination, "thing") as second:
            (second / "a").write_text("second")
        assert first.exists()
    assert (verify_directory(destination, "thing") / "a").read_text() == "first"


def test_an_error_lets_go_of_the_scratch(destination: Path):
    with pytest.raises(RuntimeError), write_directory(destination, "thing"):
        raise RuntimeError
    assert not list(destination.parent.iterdir())


def test_nothing_else_is_swept(destination: Path):
    parent = destination.parent
    for name in (
        ".thing.previous",
        ".thing.settings",
        ".things.writing-abc",
        ".thing.more.writing-abc",
        "thing.writing-abc",
    ):
        (parent / name).mkdir()
    (parent / f".thing.{WRITING}file").write_text("a file")
    (parent / f".thing.{WRITING}link").symlink_to(parent / ".thing.settings")
    (parent / f".thing.{WRITING}dead").mkdir()
    before = {path.name for path in parent.iterdir()}
    sweep(destination)
    assert before - {path.name for path in parent.iterdir()} == {f".thing.{WRITING}dead"}


def test_a_name_with_wildcards_means_itself(tmp_path: Path):
    for name in (".[ab].writing-x", ".a.writing-x", ".b.writing-x"):
        (tmp_path / name).mkdir()
    sweep(tmp_path / "[ab]")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.writing-x", ".b.writing-x"]


def test_a_scratch_directory_is_gone_when_its_work_is_done_or_broken_off(destination: Path):
    with scratch_directory(destination) as scratch:
        (scratch / "a").write_text("some")
    with pytest.raises(KeyboardInterrupt), scratch_directory(destination) as scratch:
        raise KeyboardInterrupt
    left = destination.parent / f".thing.{WRITING}killed"
    left.mkdir()
    with scratch_directory(destination):
        assert not left.exists()
    assert not list(destination.parent.iterdir())
