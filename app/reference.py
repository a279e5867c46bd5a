"""The command line's reference, made from its own ``--help``: ``python -m hawker.app.reference > docs/cli.md``."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

from hawker.app.cli import COMMANDS, main

WIDTH = 100  # columns


def help_text(*words: str) -> str:
    """Return what ``hawker WORDS --help`` prints on a screen of 100 columns without colours."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # without an encoding tyro draws its boxes in ASCII
    with _screen(), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    printed.seek(0)
    return "\n".join(line.rstrip() for line in printed.read().strip().splitlines())


def reference() -> str:
    """Return the reference as Markdown: the commands in the order of ``COMMANDS``, each with its help."""
    parts = ["# Command line", "Made by `make reference` from the commands' own `--help`; a test compares the two."]
    for words in [(), *(tuple(name.split()) for name in COMMANDS)]:
        parts += [f"## {' '.join(('hawker', *words))}", f"```text\n{help_text(*words)}\n```"]
    return "\n\n".join(parts) + "\n"


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)  # tyro and rich read the width from here
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


if __name__ == "__main__":
    print(reference(), end="")
