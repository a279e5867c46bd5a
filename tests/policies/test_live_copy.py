"""Live copy: a tiny real model, and writers that say what they are told to, when they are told to."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import Candidate, CopyBank, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.live_copy import LiveCopy, LiveLine
from hawker.policies.small_writer import small_model
from hawker.policies.writer import Writer, token_cap
from hawker.shop.errors import InputError

GUARDRAILS = Guardrails.load()
POT = Brief("headline", title="Tea pot", price=35.0)
IN_BANK = {"A pot for slow mornings", "Brew something good", "Tea time"}
AMPLE = 120.0
"""Seconds that no line of these takes, however busy the machine is."""


class Slow:
    """A writer who neither speaks nor gives up before it is let, and knows how many asked it at once."""

    def __init__(self, line: str = "Pour a quiet cup") -> None:
        self.line, self.let, self.asked, self.begun = line, threading.Event(), [], threading.Event()
        self.writing = self.most = 0

    def write(self, briefs: Sequence[Brief], seed: int, until: float) -> list[list[str]]:
        self.writing += 1
        self.most = max(self.most, self.writing)
        self.asked.append(seed)
        self.begun.set()
        assert self.let.wait(AMPLE)
        self.writing -= 1
        return [[self.line] for _ in briefs]


class Says:
    """A writer who says a line, or raises, at once."""

    def __init__(self, said: str | Exception) -> None:
        self.said = said

    def write(self, briefs: Sequence[Brief], seed: int, until: float) -> list[list[str]]:
        if isinstance(self.said, Exception):
            raise self.said
        return [[self.said] for _ in briefs]


@pytest.fixture(scope="module")
def bank() -> CopyBank:
    candidates = [Candidate("pot", POT, line) for line in sorted(IN_BANK)]
    candidates.append(Candidate("hat", Brief("headline", title="Wool hat", price=35.0), "Warm wool for 35.00"))
    held = build_bank(candidates, lambda *asked: np.zeros((1, len(asked[0]))), GUARDRAILS, "a writer")
    assert len(held) == 4
    return held


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    texts = ["A quiet pot for slow mornings", "Warm wool for cold days", "Write a headline that makes people look"]
    return Writer.load(str(small_model(tmp_path_factory.mktemp("models") / "chat", texts)), torch.device("cpu"))


@pytest.fixture
def live(bank: CopyBank) -> Iterator[Callable[..., LiveCopy]]:
    """Makes live copy of the bank, and closes it."""
    made: list[LiveCopy] = []

    def make(writer: Any, seconds: float = AMPLE, held: CopyBank | None = bank) -> LiveCopy:
        made.append(LiveCopy(writer, GUARDRAILS, held, seconds))
        return made[-1]

    yield make
    for copy in made:
        copy.close()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + AMPLE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_real_writer_in_time(writer: Writer, live: Callable[..., LiveCopy], nothing_global: None):
    copy = live(writer)
    seeds = range(8)
    answers = [copy.write("pot", POT, seed) for seed in seeds]
    assert [copy.write("pot", POT, seed) for seed in seeds] == answers
    for seed, answer in zip(seeds, answers, strict=True):
        line = GUARDRAILS.tidy(writer.write([POT], seed=seed)[0][0])
        rules = ", ".join(hit.rule for hit in GUARDRAILS.hits(line, POT))
        if rules:
            assert answer[1:] == ("bank", "refused", rules)
            assert answer.line in IN_BANK
        else:
            assert answer == (line, "live", "written", "")
    assert {answer.source for answer in answers} == {"live", "bank"}
    assert len({answer.line for answer in answers if answer.source == "bank"}) > 1  # the seed chooses there too
    copy.close()


def test_a_real_writer_stops_when_it_is_late(writer: Writer, live: Callable[..., LiveCopy], nothing_global: None):
    copy, tokens = live(writer, 0.15), []
    expected = writer.write([POT], seed=3)

    def slowly(*_: object) -> None:
        tokens.append(1)
        time.sleep(0.1)

    hook = writer.model.register_forward_pre_hook(slowly)
    answer = copy.write("pot", POT, 3)
    copy.close()
    hook.remove()
    assert answer[1:] == ("bank", "late", "")
    assert answer.line in IN_BANK
    assert len(tokens) <= 3 < token_cap("headline")  # begun, and not gone on with
    assert writer.write([POT], seed=3) == expected


def test_late_then_busy_then_live_again(live: Callable[..., LiveCopy]):
    slow = Slow()
    copy = live(slow, 0.1)
    start = time.monotonic()
    assert copy.write("pot", POT, 1)[1:] == ("bank", "late", "")
    assert time.monotonic() - start >= 0.1
    wait_until(lambda: slow.begun.is_set() or not copy.write("pot", POT, 1))  # late before it began: once more
    assert [copy.write("pot", POT, seed)[1:] for seed in range(20)] == [("bank", "busy", "")] * 20
    assert slow.asked == [1]  # nobody waits in line
    slow.let.set()
    wait_until(lambda: copy.write("pot", POT, 2).source == "live")
    assert slow.asked.count(1) == 1
    wait_until(lambda: copy.write("pot", POT, 1) == ("Pour a quiet cup", "live", "written", ""))
    assert slow.asked.count(1) >= 2  # the late line was not kept
    assert copy.counts["bank", "busy"] >= 20
    assert copy.counts["live", "written"] == 2


def test_one_line_at_a_time(live: Callable[..., LiveCopy]):
    slow = Slow()
    copy = live(slow)
    with ThreadPoolExecutor(8) as pages:
        answers = [pages.submit(copy.write, "pot", POT, seed) for seed in range(8)]
        wait_until(lambda: sum(answer.done() for answer in answers) == 7)
        slow.let.set()
    assert sorted(answer.result().reason for answer in answers) == ["busy"] * 7 + ["written"]
    assert slow.most == 1
    assert copy.counts == {("bank", "busy"): 7, ("live", "written"): 1}


@pytest.mark.parametrize(
    ("said", "reason", "detail"),
    [
        ("50% off today", "refused", "discount"),
        ("", "refused", "empty"),
        (RuntimeError("the device is gone"), "failed", "RuntimeError: the device is gone"),
        (InputError("too long", where="tiny"), "failed", "InputError: tiny: too long"),
        (MemoryError(), "failed", "MemoryError: "),
        (TimeoutError(), "late", ""),
    ],
    ids=["offer", "empty", "runtime", "input", "memory", "timeout"],
)
@pytest.mark.parametrize("item", ["pot", "unknown"])
def test_what_stands_in(said: str | Exception, reason: str, detail: str, item: str, live: Callable[..., LiveCopy]):
    copy = live(Says(said))
    answer = copy.write(item, POT, 4)
    source = "bank" if item == "pot" else "fallback"
    assert answer == LiveLine(answer.line, source, reason, detail)
    assert answer.line in IN_BANK if item == "pot" else answer.line == GUARDRAILS.fallback(POT)
    assert copy.write(item, POT, 4) == answer
    assert copy.counts == {(source, reason): 2}
    assert copy.rejected == ({detail: 2} if reason == "refused" else {})


def test_a_line_that_is_tidied_first(live: Callable[..., LiveCopy]):
    answer = live(Says('Headline: "Pour a quiet cup"\nIt is round.')).write("pot", POT, 0)
    assert answer == ("Pour a quiet cup", "live", "written", "")


def test_no_bank(live: Callable[..., LiveCopy]):
    assert live(Says(""), held=None).write("pot", POT, 0)[:2] == (GUARDRAILS.fallback(POT), "fallback")


def test_a_line_of_the_bank_that_is_no_longer_true(live: Callable[..., LiveCopy]):
    copy = live(Says(""))
    hat, dearer = (Brief("headline", title="Wool hat", price=price) for price in (35.0, 45.0))
    assert copy.write("hat", hat, 0)[:2] == ("Warm wool for 35.00", "bank")
    assert copy.write("hat", dearer, 0)[:2] == (GUARDRAILS.fallback(dearer), "fallback")


def test_closing_waits_and_what_comes_after_is_answered(live: Callable[..., LiveCopy]):
    slow = Slow()
    with live(slow, 0.01) as copy:
        assert copy.write("pot", POT, 0).reason == "late"
        begun = slow.begun.wait(0.5)
        threading.Timer(0.05, slow.let.set).start()
    assert slow.let.is_set() or not begun
    assert slow.writing == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("live-copy")]
    assert copy.write("pot", POT, 0)[1:] == ("bank", "closed", "")
    copy.close()


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, 3601.0])
def test_bad_deadlines(seconds: float, bank: CopyBank):
    writer: Any = Says("")
    with pytest.raises(InputError) as caught:
        LiveCopy(writer, GUARDRAILS, bank, seconds)
    expected = f"live copy: bad deadline; got {seconds}, expected seconds above 0, at most 3,600"
    assert str(caught.value) == expected
