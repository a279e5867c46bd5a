import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hawker.shop.artefacts import (
    CHECKSUMS,
    copy_directory,
    find_directory,
    read_json,
    sha256,
    verify_directory,
    write_directory,
    write_json,
    write_text,
)
from hawker.shop.errors import InputError


def write(path: Path, text: str) -> None:
    with write_directory(path, "thing") as scratch:
        (scratch / "deep").mkdir()
        for name in ("a", "deep/b"):
            (scratch / name).write_text(text)


def content(path: Path) -> str:
    """Return the text in both files of an artefact that ``write`` wrote."""
    directory = verify_directory(path, "thing")
    first, second = (directory / "a").read_text(), (directory / "deep/b").read_text()
    assert first == second
    return first


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def thing(tmp_path: Path) -> Path:
    """An artefact."""
    write(tmp_path / "thing", "old")
    return tmp_path / "thing"


def test_what_was_written_is_verified(thing: Path):
    assert content(thing) == "old"
    assert names(thing) == ["a", CHECKSUMS, "deep"]
    digest = sha256(thing / "a")
    assert read_json(thing / CHECKSUMS) == {"kind": "thing", "files": {"a": digest, "deep/b": digest}}
    assert thing.stat().st_mode & 0o777 == 0o755


def test_an_artefact_of_another_kind_is_not_replaced(thing: Path):
    with (
        pytest.raises(InputError, match="thing: the directory holds something else; got 'thing', expected toy; name"),
        write_directory(thing, "toy"),
    ):
        pass
    assert content(thing) == "old"


def test_sha256_of_the_published_example(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_an_artefact_is_replaced_whole(thing: Path):
    write(thing, "new")
    assert content(thing) == "new"
    with write_directory(thing, "thing") as scratch:
        (scratch / "c").touch()
    assert names(thing) == ["c", CHECKSUMS]
    assert names(thing.parent) == ["thing"]


def test_an_error_while_writing_leaves_the_artefact_as_it_was(thing: Path):
    def write_half() -> None:
        with write_directory(thing, "thing") as scratch:
            (scratch / "a").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert content(thing) == "old"
    assert names(thing.parent) == ["thing"]


def test_an_artefact_behind_a_link_is_replaced_and_the_link_stays(thing: Path):
    link = thing.with_name("latest")
    link.symlink_to("thing")
    for text in ("new", "newer"):
        write(link, text)
        assert link.is_symlink()
        assert content(link) == content(thing) == text
    thing.rename(thing.with_name(".thing.previous"))
    assert content(link) == "newer"


def test_an_empty_directory_may_be_written_to(tmp_path: Path):
    (tmp_path / "thing").mkdir()
    write(tmp_path / "thing", "new")
    assert content(tmp_path / "thing") == "new"


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        ("foreign", "foreign: the directory holds files that Hawker did not write; name another directory"),
        ("foreign/letter", "letter: a file stands where a directory is to be written"),
        ("foreign/letter/thing", "letter: cannot write here (File exists)"),
        ("foreign/letter/deep/thing", "deep: cannot write here (Not a directory)"),
    ],
)
def test_what_hawker_did_not_write_is_left_alone(tmp_path: Path, destination: str, message: str):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/letter").write_text("dear")
    with pytest.raises(InputError, match=re.escape(message)):
        write(tmp_path / destination, "new")
    assert (tmp_path / "foreign/letter").read_text() == "dear"
    assert names(tmp_path / "foreign") == ["letter"]
    assert names(tmp_path) == ["foreign"]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def turn_into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def holding(text: str) -> Callable[[Path], None]:
    def overwrite(path: Path) -> None:
        path.write_text(text)

    return overwrite


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (flip_a_bit, "a", r"thing/a: the file was changed .* expected SHA-256 \w{12}\.\.\.; write the thing anew"),
        (holding("oldest"), "deep/b", "thing/deep/b: the file was changed"),
        (remove, "deep/b", "thing/deep/b: a file is missing; write the thing anew"),
        (turn_into_directory, "a", "thing/a: a file is missing"),
        (remove, CHECKSUMS, f"thing: not a directory of thing; expected a {CHECKSUMS} in it"),
        (turn_into_directory, CHECKSUMS, "the list of checksums is damaged"),
        (holding('{"a": '), CHECKSUMS, f"thing/{CHECKSUMS}: the list of checksums is damaged"),
        (holding("[]"), CHECKSUMS, "the list of checksums is damaged"),
        (holding('{"kind": "thing", "files": {"a": 1}}'), CHECKSUMS, "thing/a: the file was changed"),
        (holding('{"kind": "toy", "files": {}}'), CHECKSUMS, "a directory of another kind; got 'toy', expected thing"),
    ],
)
def test_damage_is_seen(thing: Path, damage: Callable[[Path], None], file: str, message: str):
    damage(thing / file)
    with pytest.raises(InputError, match=message):
        verify_directory(thing, "thing")


def test_an_artefact_that_is_not_there(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(InputError, match=f"{path.name}: no toy here; expected a directory with toy"):
            verify_directory(path, "toy")


def test_the_previous_artefact_is_put_back_by_hand(thing: Path):
    previous = thing.with_name(".thing.previous")
    thing.rename(previous)  # where a process stands that died between its two renames
    assert find_directory(thing) == thing
    assert content(thing) == "old"
    assert not previous.exists()
    thing.rename(previous)
    write(thing, "new")
    assert content(thing) == "new"
    assert names(thing.parent) == ["thing"]


def test_the_previous_artefact_never_takes_the_place_of_a_newer_one(thing: Path):
    thing.rename(thing.with_name("aside"))
    write(thing, "new")
    thing.with_name("aside").rename(thing.with_name(".thing.previous"))
    assert content(thing) == "new"


KILLED_AT_EVERY_MOMENT = """
import os, signal, sys
from pathlib import Path
from hawker.shop.artefacts import write_directory

def write(path, text):
    with write_directory(path, "thing") as scratch:
        (scratch / "deep").mkdir()
        for name in ("a", "deep/b"):
            (scratch / name).write_text(text)

def write_and_die(path, moment):
    seen = 0
    def hook(event, _):
        nonlocal seen
        if event == "open" or event.partition(".")[0] in ("os", "shutil", "tempfile"):
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    write(path, "old")
    sys.addaudithook(hook)
    write(path, "new")
    os._exit(0)

for moment in range(1, 1000):
    child = os.fork()
    if not child:
        write_and_die(Path(sys.argv[1], str(moment), "thing"), moment)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
"""


def test_a_whole_artefact_is_found_wherever_the_writer_was_killed(tmp_path: Path):
    """SIGKILL right before each of the file operations that replace an artefact, one process per operation."""
    subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_MOMENT, str(tmp_path)], check=True, timeout=60)
    moments = sorted(tmp_path.iterdir(), key=lambda path: int(path.name))
    between_renames = sum(not (moment / "thing").exists() for moment in moments)
    found = [content(moment / "thing") for moment in moments]
    assert len(moments) > 20
    assert between_renames >= 1
    assert found == sorted(found, reverse=True), "old until the new one is whole, then new"
    assert set(found) == {"old", "new"}
    for moment in moments:
        write(moment / "thing", "newest")
        assert content(moment / "thing") == "newest"
        assert names(moment) == ["thing"], "nothing of the killed writer is left"


def test_a_file_is_written_in_one_rename(tmp_path: Path):
    path = tmp_path / "deep" / "value.json"
    write_json(path, {"a": [1, None, "ä"]})
    before = path.stat()
    assert read_json(path) == {"a": [1, None, "ä"]}
    assert before.st_mode & 0o777 == 0o644
    write_text(path, "[]")
    assert read_json(path) == []
    assert path.stat().st_ino != before.st_ino
    assert names(path.parent) == ["value.json"]


@pytest.mark.parametrize(
    ("value", "error"),
    [({"a": float("nan")}, ValueError), ([float("inf")], ValueError), ({"a": object()}, TypeError)],
)
def test_what_json_cannot_say_is_refused_and_the_file_left_as_it_was(
    tmp_path: Path, value: object, error: type[Exception]
):
    path = tmp_path / "value.json"
    write_json(path, 1)
    with pytest.raises(error, match="not JSON"):
        write_json(path, value)
    assert read_json(path) == 1
    assert names(tmp_path) == ["value.json"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", r"folder: cannot write here \(Is a directory\)"),
        ("file/value.json", r"value\.json: cannot write here \(File exists\)"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, path: str, message: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=message):
        write_json(tmp_path / path, 1)
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "value.json: no such file"),
        (b"", "value.json: not a JSON file"),
        (b'{"a": ', "value.json: not a JSON file"),
        (b"\xff\xfe", "value.json: not a JSON file"),
    ],
)
def test_a_file_that_is_not_json(tmp_path: Path, data: bytes | None, message: str):
    if data is not None:
        (tmp_path / "value.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "value.json")


def test_a_copy_is_the_artefact_and_takes_the_place_of_one_of_its_kind_alone(tmp_path: Path):
    for name, kind in (("one", "policy"), ("two", "policy"), ("other", "bundle")):
        with write_directory(tmp_path / name, kind) as scratch:
            (scratch / "inner").mkdir()
            (scratch / "inner" / "file").write_text(name)
    copy_directory(tmp_path / "one", tmp_path / "two", "policy")
    assert (verify_directory(tmp_path / "two", "policy") / "inner" / "file").read_text() == "one"
    with pytest.raises(InputError):
        copy_directory(tmp_path / "one", tmp_path / "other", "policy")
    assert (tmp_path / "other" / "inner" / "file").read_text() == "other"
