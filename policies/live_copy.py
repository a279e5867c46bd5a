"""Live copy: lines written while a page waits for them, and what stands in where none comes in time.

A line that is late is not finished: the writer stops, and nothing of it is kept. Who wants a line more than once puts
it into the copy bank, where it has been scored and has a propensity.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np

from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import CopyBank
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import Writer
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError

LONGEST_WAIT = 3600.0
"""Seconds that a deadline may allow."""

Source = Literal["live", "bank", "fallback"]

Reason = Literal["written", "refused", "late", "busy", "failed", "closed"]


class LiveLine(NamedTuple):
    """A line that may be shown, whoever it came from.

    It has no propensity. A line written live has none, and since nobody knows how often the deadline passes, neither
    has a line of the bank that stands in for it.

    Attributes:
        line: The text; it breaks no rule for its brief.
        source: "live" (the writer's), "bank", or "fallback" (a template of the guardrails).
        reason: "written" where it is live; else why it is not: the writer's line was "refused" by a rule or "late", the
            writer was "busy" with another, "failed", or is "closed".
        detail: The rules of a refused line, the error of a writer that failed; else "".
    """

    line: str
    source: Source
    reason: Reason
    detail: str


class LiveCopy:
    """Asks a writer for lines, one at a time, and waits for each no longer than a deadline.

    May be asked from several threads: while a line is being written, everybody else is answered at once without the
    writer, so that no work piles up. Past the deadline the writer stops after the token that it is at (the first one
    comes with the reading of the whole prompt), and until then it is busy. While it writes, torch's global generators
    are the writer's: what else draws from them in the process would change both.

    The first line of a process takes longer, since transformers is imported for it.

    Attributes:
        counts: Answers by source and reason.
        rejected: Refused lines by the rule that they broke; a line may break several.
    """

    def __init__(self, writer: Writer, guardrails: Guardrails, bank: CopyBank | None, seconds: float) -> None:
        """Args: the writer, the rules, the bank if there is one, and the deadline, in seconds after the question.

        Raises:
            InputError: A deadline that is not above 0 and at most ``LONGEST_WAIT``.
        """
        if not 0 < seconds <= LONGEST_WAIT:  # NaN too
            expected = f"seconds above 0, at most {LONGEST_WAIT:,.0f}"
            raise InputError("bad deadline", where="live copy", got=seconds, expected=expected)
        self.counts: Counter[tuple[Source, Reason]] = Counter()
        self.rejected: Counter[str] = Counter()
        self._writer, self._guardrails, self._bank, self._seconds = writer, guardrails, bank, seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="live-copy")
        self._last: Future[tuple[str, Reason, str]] | None = None
        self._closed = False
        self._lock = Lock()
        self._stored("", Brief("headline"), np.random.default_rng(0))  # the bank's index is built now, not for a page

    def write(self, item_id: str, brief: Brief, seed: int) -> LiveLine:
        """Return the writer's line for a brief; a line of the bank or a fallback where it has none in time.

        Takes the deadline at most, and then what a look into the bank takes (milliseconds). The same seed gives the
        same line wherever the reason is "written", "refused" or "failed".

        Args:
            item_id: The item, as in the bank.
            brief: What to write for.
            seed: At least 0; decides what the writer says, and what is drawn from the bank.
        """
        until = time.monotonic() + self._seconds
        generator = np.random.default_rng(seed)
        text, reason, detail = self._ask(brief, seed, until)
        line = self._guardrails.tidy(text)
        source: Source = "live"
        rules = [hit.rule for hit in self._guardrails.hits(line, brief)] if reason == "written" else []
        if rules:
            reason, detail = "refused", ", ".join(rules)
        if reason != "written":
            line, source = self._stored(item_id, brief, generator)
        with self._lock:
            self.counts[source, reason] += 1
            self.rejected.update(rules)
        return LiveLine(line, source, reason, detail)

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

    def _ask(self, brief: Brief, seed: int, until: float) -> tuple[str, Reason, str]:
        """Return what the writer says, "written" or why it says nothing, and a detail."""
        with self._lock:
            if self._closed:
                return "", "closed", ""
            if self._last is not None and not self._last.done():
                return "", "busy", ""
            said = self._last = self._thread.submit(self._said, brief, seed, until)
        try:
            return said.result(until - time.monotonic())
        except TimeoutError:
            said.cancel()  # where it has not begun
            return "", "late", ""

    def _said(self, brief: Brief, seed: int, until: float) -> tuple[str, Reason, str]:
        """Do the writing, on a thread of its own."""
        try:
            return self._writer.write([brief], seed=seed, until=until)[0][0], "written", ""
        except TimeoutError:
            return "", "late", ""
        except Exception as error:  # a page is waiting, whatever it is that failed
            return "", "failed", f"{type(error).__name__}: {error}"

    def _stored(self, item_id: str, brief: Brief, generator: np.random.Generator) -> tuple[str, Source]:
        """Return a line that needs no writer, and where it is from."""
        if self._bank is not None:
            chosen = self._bank.choose([item_id], [brief.audience], [brief.discount], brief.surface, generator)
            line = str(chosen.lines[0])
            # The rules again: the item's price or text may have changed since the line came into the bank.
            if chosen.number[0] != EMPTY and not self._guardrails.hits(line, brief):
                return line, "bank"
        return self._guardrails.fallback(brief), "fallback"
