"""Live copy: a page's lines, written while it waits for them, and what stands in where none comes in time.

A line that is late is not finished: the writer stops, and nothing of it is kept. Who wants a line more than once puts
it into the copy bank, where it has been scored and has a propensity.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NamedTuple

from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.shop.errors import InputError

if TYPE_CHECKING:
    from hawker.policies.writer import Writer  # torch is needed where there is a writer, and not before

LONGEST_WAIT = 3600.0
"""Seconds that a deadline may allow."""

SEEDS = 2**63
"""Beyond this a page's seed begins anew for the writer: torch takes none that is larger."""

Source = Literal["live", "bank", "fallback"]

Reason = Literal["written", "refused", "late", "busy", "failed", "closed"]


class StandIn(NamedTuple):
    """What is shown in the place of a line that does not come.

    Attributes:
        line: The text.
        source: "bank", or "fallback" where it is a template.
    """

    line: str
    source: Source


class LiveLine(NamedTuple):
    """A line that may be shown, whoever it came from.

    It has no propensity. A line written live has none, and since nobody knows how often the deadline passes, neither
    has a line of the bank that stands in for it.

    Attributes:
        line: The text; it breaks no rule for its brief.
        source: "live" (the writer's), "bank", or "fallback" (a template).
        reason: "written" where it is live; else why it is not: the writer's line was "refused" by a rule or "late", the
            writer was "busy" with another page, "failed", or is "closed".
        detail: The rules of a refused line, the error of a writer that failed; else "".
    """

    line: str
    source: Source
    reason: Reason
    detail: str


class LiveCopy:
    """Asks a writer for the lines of one page at a time, and waits for them no longer than a deadline.

    A page's lines are written together, and those that have ended when the deadline passes are kept. May be asked from
    several threads: while a page is being written, everybody else is answered at once without the writer, so that no
    work piles up. Past the deadline the writer stops after the token that it is at (the first one comes with the
    reading of the whole prompts), and until then it is busy. While it writes, torch's global generators are the
    writer's: what else draws from them in the process would change both.

    Attributes:
        counts: Lines by source and reason.
        rejected: Refused lines by the rule that they broke; a line may break several.
    """

    def __init__(self, writer: Writer, guardrails: Guardrails, seconds: float) -> None:
        """Args: the writer, the rules, and the deadline, in seconds after the question.

        Raises:
            InputError: A deadline that is not above 0 and at most ``LONGEST_WAIT``.
        """
        if not 0 < seconds <= LONGEST_WAIT:  # NaN too
            expected = f"seconds above 0, at most {LONGEST_WAIT:,.0f}"
            raise InputError("bad deadline", where="live copy", got=seconds, expected=expected)
        self.counts: Counter[tuple[Source, Reason]] = Counter()
        self.rejected: Counter[str] = Counter()
        self._writer, self._guardrails, self._seconds = writer, guardrails, seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live-copy")
        self._last: Future[tuple[Reason, str]] | None = None
        self._closed = False
        self._lock = Lock()

    def write(self, briefs: Sequence[Brief], stand_ins: Sequence[StandIn], seed: int | None) -> list[LiveLine]:
        """Return the writer's line for each brief of a page; what stands in for it where none comes in time.

        Takes the deadline at most, and then what the rules take (milliseconds). The same briefs and seed give the same
        line wherever the reason is "written" or "refused".

        Args:
            briefs: What to write for.
            stand_ins: What is shown else, for each brief; where that breaks a rule, the rules' own template.
            seed: At least 0, decides what the writer says; None takes the likeliest words.
        """
        said, reason, detail = self._ask(briefs, seed, time.monotonic() + self._seconds)
        return [
            self._line(said.get(i), brief, stand_in, reason, detail)
            for i, (brief, stand_in) in enumerate(zip(briefs, stand_ins, strict=True))
        ]

    def close(self) -> None:
        """Let the writer write no more, and wait until it has stopped; whoever asks later is answered without it."""
        with self._lock:
            self._closed = True
        self._thread.shutdown()

    def __enter__(self) -> LiveCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, briefs: Sequence[Brief], seed: int | None, until: float) -> tuple[dict[int, str], Reason, str]:
        """Return what the writer has said, by the brief's number, why it says no more, and a detail."""
        said: dict[int, str] = {}
        with self._lock:
            if self._closed:
                return said, "closed", ""
            if self._last is not None and not self._last.done():
                return said, "busy", ""
            asked = self._last = self._thread.submit(self._write, briefs, seed, until, said)
        try:
            return said, *asked.result(until - time.monotonic())
        except TimeoutError:
            asked.cancel()  # where it has not begun
            return dict(said), "late", ""  # a copy, since the writer may be at it still

    def _write(
        self, briefs: Sequence[Brief], seed: int | None, until: float, said: dict[int, str]
    ) -> tuple[Reason, str]:
        """Do the writing, on a thread of its own; lines go into ``said`` as they end."""
        temperature, seed = (0.0, 0) if seed is None else (1.0, seed % SEEDS)
        try:
            told = said.__setitem__
            lines = self._writer.write(briefs, temperature=temperature, seed=seed, until=until, ended=told)
        except TimeoutError:
            return "late", ""
        except Exception as error:  # a page is waiting, whatever it is that failed
            return "failed", f"{type(error).__name__}: {error}"
        said.update((i, line) for i, (line,) in enumerate(lines))
        return "written", ""

    def _line(self, text: str | None, brief: Brief, stand_in: StandIn, reason: Reason, detail: str) -> LiveLine:
        """Return what the writer has said, where that may be shown, or what stands in for it."""
        rules: list[str] = []
        line, source = stand_in
        if text is not None:
            tidied = self._guardrails.tidy(text)
            rules = [hit.rule for hit in self._guardrails.hits(tidied, brief)]
            reason, detail = ("refused", ", ".join(rules)) if rules else ("written", "")
            if not rules:
                line, source = tidied, "live"
        # The rules again: the item's price or text may have changed since the line came into the bank.
        if source != "live" and self._guardrails.hits(line, brief):
            line, source = self._guardrails.fallback(brief), "fallback"
        with self._lock:
            self.counts[source, reason] += 1
            self.rejected.update(rules)
        return LiveLine(line, source, reason, detail)
