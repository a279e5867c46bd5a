"""The one error a user of Hawker is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST_VALUE = 200
"""Characters of an offending value that are shown."""

MOST_NAMES = 20
"""Known names that are listed where none is close to the unknown one."""


class InputError(ValueError):
    """Input that Hawker cannot use: a file, a column, a value, an option.

    Its text is one line in a fixed order, ``where: what; got ..., expected ...; remedy``, and the command line prints
    it without a traceback and exits with code 2.

    Args:
        what: What is wrong, as a short clause ("clicked is not 0 or 1").
        where: The file, row, column or option it was found in.
        got: The offending value.
        expected: The rule it breaks.
        remedy: What to do about it.
    """

    def __init__(
        self, what: str, *, where: object = "", got: object = None, expected: str = "", remedy: str = ""
    ) -> None:
        self.what, self.where, self.got, self.expected, self.remedy = what, str(where), got, expected, remedy
        against = ", ".join(
            part
            for part in (f"got {_shown(got)}" if got is not None else "", f"expected {expected}" if expected else "")
            if part
        )
        line = "; ".join(part for part in (what, against, remedy) if part)
        super().__init__(" ".join((f"{where}: {line}" if self.where else line).split()))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the closest known name, else "known: a, b, c", at most 20 of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known[:MOST_NAMES]) or 'none'}{', ...' if len(known) > MOST_NAMES else ''}"
