"""The documents say what the code does: README's blocks, the command line's reference, docstring examples, links."""

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawker.app.cli import COMMANDS
from hawker.app.reference import help_text, reference

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FOLDERS = ["shop", "simulators", "policies", "envs", "agents", "benchmarks", "app"]
EXAMPLES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py")) if ">>> " in path.read_text()]
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Yield each ``$ command`` of the console blocks, as words, with the output printed below it."""
    for block in blocks(text, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.replace("\\\n", " ").partition("\n")
            yield shlex.split(line, comments=True), output.strip()


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split what follows ``hawker`` into the command's name and its arguments."""
    for length in (2, 1):
        if " ".join(words[:length]) in COMMANDS:
            return words[:length], words[length:]
    return [], words


def test_reference_is_up_to_date():
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "run `make reference`"


def test_python_in_the_readme_runs(tmp_path: Path):
    code = "\n".join(block for block in blocks(README, "python") if ">>> " not in block)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_examples_in_the_readme_print_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = "\n".join(block for block in blocks(README, "python") if ">>> " in block)
    test = doctest.DocTestParser().get_doctest(text, {}, "README.md", "README.md", 0)
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


def test_examples_in_docstrings_print_what_they_show():
    for path in EXAMPLES:
        module = importlib.import_module(f"hawker.{path.parent.name}.{path.stem}")
        assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0, path


def test_commands_in_the_documents_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    seen = [(path.name, words, output) for path in MARKDOWN for words, output in commands(path.read_text())]
    assert seen, "README shows commands"
    for file, (program, *words), output in seen:
        if program == "make":
            assert {word for word in words if "=" not in word} <= set(targets), f"{file}: make {words}"
        if program == "hawker":
            name, arguments = split(words)
            if arguments == ["--help"]:
                assert output == help_text(*name), f"{file}: hawker {words}"
                continue
            assert name, f"{file}: no such command: hawker {words}"
            options = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
            known = set(re.findall(r"--[a-z][a-z-]*", help_text(*name)))
            assert options <= known, f"{file}: hawker {words}"


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path):
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    assert not [target for target in targets if "://" not in target and not (path.parent / target).exists()]
