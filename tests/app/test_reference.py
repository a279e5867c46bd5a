import os

import pytest

from hawker.app.cli import COMMANDS
from hawker.app.reference import WIDTH, help_text, reference


def test_help_is_the_same_on_every_screen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "41")
    narrow = help_text("demo")
    assert os.environ["COLUMNS"] == "41"
    monkeypatch.delenv("COLUMNS")
    assert help_text("demo") == narrow
    assert "COLUMNS" not in os.environ
    assert "usage: hawker demo" in narrow
    assert "\x1b" not in narrow


def test_reference_has_every_command_once():
    text = reference()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["hawker", *(f"hawker {name}" for name in COMMANDS)]
    boxes = [line for line in text.splitlines() if line.startswith(("\u256d", "\u2502"))]
    assert boxes
    assert max(map(len, boxes)) <= WIDTH
