"""Live copy: a tiny real model, and writers that say what they are told to, when they are told to."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.live_copy import LiveCopy, LiveLine, StandIn
from hawker.policies.small_writer import small_model
from hawker.policies.writer import Writer, token_cap
from hawker.shop.errors import InputError

GUARDRAILS = Guardrails.load()
POT, HAT = Brief("headline", title="Tea pot", price=35.0), Brief("headline", title="Wool hat", price=35.0)
STORED = StandIn("A pot for slow mornings", "bank")
AMPLE = 120.0
"""Seconds that no line of these takes, however busy the machine is."""


class Slow:
    """A writer who neither speaks nor gives up before it is let, and knows how many asked it at once."""

    def __init__(self, line: str = "Pour a quiet cup") -> None:
        self.line, self.let, self.asked, self.begun = line, threading.Event(), [], threading.Event()
        self.writing = self.most = 0

    def write(self, briefs: Sequence[Brief], *, seed: int, **_: Any) -> list[list[str]]:
        self.writing += 1
        self.most = max(self.most, self.writing)
        self.asked.append(seed)
        self.begun.set()
        assert self.let.wait(AMPLE)
        self.writing -= 1
        return [[self.line] for _ in briefs]


class Says:
    """A writer who says a line for each brief, or raises after those before it."""

    def __init__(self, *said: str | Exception) -> None:
        self.said, self.told = said, dict[str, Any]()

    def write(self, briefs: Sequence[Brief], *, ended: Callable[[int, str], None], **told: Any) -> list[list[str]]:
        self.told = told
        lines = []
        for i, _ in enumerate(briefs):
            said = self.said[i % len(self.said)]
            if isinstance(said, Exception):
                raise said
            ended(i, said)
            lines.append([said])
        return lines


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    texts = ["A quiet pot for slow mornings", "Warm wool for cold days", "Write a headline that makes people look"]
    return Writer.load(str(small_model(tmp_path_factory.mktemp("models") / "chat", texts)), torch.device("cpu"))


@pytest.fixture
def live() -> Iterator[Callable[..., LiveCopy]]:
    """Makes live copy, and closes it."""
    made: list[LiveCopy] = []

    def make(writer: Any, seconds: float = AMPLE) -> LiveCopy:
        made.append(LiveCopy(writer, GUARDRAILS, seconds))
        return made[-1]

    yield make
    for copy in made:
        copy.close()


def one(copy: LiveCopy, seed: int, brief: Brief = POT, stored: StandIn = STORED) -> LiveLine:
    """Return the line of a page that shows one item."""
    (answer,) = copy.write([brief], [stored], seed)
    return answer


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + AMPLE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_page_of_a_real_writer_in_time(writer: Writer, live: Callable[..., LiveCopy], nothing_global: None):
    copy, briefs = live(writer), [POT, HAT] * 16
    pages = [copy.write(briefs, [STORED] * 32, seed) for seed in range(2)]
    assert [copy.write(briefs, [STORED] * 32, seed) for seed in range(2)] == pages
    assert pages[0] != pages[1]
    for seed, page in enumerate(pages):
        for brief, (said,), answer in zip(briefs, writer.write(briefs, seed=seed), page, strict=True):
            line = GUARDRAILS.tidy(said)
            rules = ", ".join(hit.rule for hit in GUARDRAILS.hits(line, brief))
            assert answer == (LiveLine(*STORED, "refused", rules) if rules else (line, "live", "written", ""))
    assert {answer.source for page in pages for answer in page} == {"live", "bank"}
    assert copy.counts.total() == 128


def test_a_real_writer_stops_when_it_is_late(writer: Writer, live: Callable[..., LiveCopy], nothing_global: None):
    copy, tokens = live(writer, 0.15), []
    expected = writer.write([POT], seed=3)

    def slowly(*_: object) -> None:
        tokens.append(1)
        time.sleep(0.1)

    hook = writer.model.register_forward_pre_hook(slowly)
    answer = one(copy, 3)
    copy.close()
    hook.remove()
    assert answer == LiveLine(*STORED, "late", "")
    assert len(tokens) <= 3 < token_cap("headline")  # begun, and not gone on with
    assert writer.write([POT], seed=3) == expected


def test_lines_that_have_ended_are_kept_when_the_others_are_late(live: Callable[..., LiveCopy]):
    let, pages = threading.Event(), []

    class Halfway:
        def write(self, briefs: Sequence[Brief], *, ended: Callable[[int, str], None], **_: Any) -> None:
            ended(1, "Warm wool")
            assert let.wait(AMPLE)
            raise TimeoutError

    copy = live(Halfway(), 0.1)

    def kept() -> bool:
        let.clear()
        pages.append(copy.write([POT, HAT, POT], [STORED] * 3, 0))
        let.set()
        return pages[-1][1].source == "live"

    wait_until(kept)  # the deadline may pass before the writer has begun: once more
    late = LiveLine(*STORED, "late", "")
    assert pages[-1] == [late, LiveLine("Warm wool", "live", "written", ""), late]


def test_late_then_busy_then_live_again(live: Callable[..., LiveCopy]):
    slow = Slow()
    copy = live(slow, 0.1)
    start = time.monotonic()
    assert one(copy, 1) == LiveLine(*STORED, "late", "")
    assert time.monotonic() - start >= 0.1
    wait_until(lambda: slow.begun.is_set() or not one(copy, 1))  # late before it began: once more
    assert [one(copy, seed).reason for seed in range(20)] == ["busy"] * 20
    assert slow.asked == [1]  # nobody waits in line
    slow.let.set()
    wait_until(lambda: one(copy, 2).source == "live")
    assert slow.asked.count(1) == 1
    wait_until(lambda: one(copy, 1) == ("Pour a quiet cup", "live", "written", ""))
    assert slow.asked.count(1) >= 2  # the late line was not kept
    assert copy.counts["bank", "busy"] >= 20
    assert copy.counts["live", "written"] == 2


def test_one_page_at_a_time(live: Callable[..., LiveCopy]):
    slow = Slow()
    copy = live(slow)
    with ThreadPoolExecutor(8) as pages:
        answers = [pages.submit(copy.write, [POT, HAT], [STORED] * 2, seed) for seed in range(8)]
        wait_until(lambda: sum(answer.done() for answer in answers) == 7)
        slow.let.set()
    reasons = sorted(line.reason for answer in answers for line in answer.result())
    assert reasons == ["busy"] * 14 + ["written"] * 2
    assert slow.most == 1
    assert copy.counts == {("bank", "busy"): 14, ("live", "written"): 2}


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
def test_what_stands_in(said: str | Exception, reason: str, detail: str, live: Callable[..., LiveCopy]):
    copy = live(Says("Pour a quiet cup", said))
    template = StandIn("Wool hat", "fallback")
    expected = [("Pour a quiet cup", "live", "written", ""), (*template, reason, detail)]
    assert copy.write([POT, HAT], [STORED, template], 4) == expected
    assert copy.write([POT, HAT], [STORED, template], 4) == expected
    assert copy.counts == {("live", "written"): 2, ("fallback", reason): 2}
    assert copy.rejected == ({detail: 2} if reason == "refused" else {})


def test_a_line_that_is_tidied_first(live: Callable[..., LiveCopy]):
    answer = one(live(Says('Headline: "Pour a quiet cup"\nIt is round.')), 0)
    assert answer == ("Pour a quiet cup", "live", "written", "")


def test_a_page_without_items(live: Callable[..., LiveCopy]):
    assert live(Says("")).write([], [], 0) == []


@pytest.mark.parametrize(
    ("seed", "told"), [(7, (1.0, 7)), (2**63 + 5, (1.0, 5)), (None, (0.0, 0))], ids=["seed", "large", "likeliest"]
)
def test_what_the_writer_is_asked(seed: int | None, told: tuple[float, int], live: Callable[..., LiveCopy]):
    writer = Says("Pour a quiet cup")
    live(writer).write([POT], [STORED], seed)
    assert (writer.told["temperature"], writer.told["seed"]) == told


def test_a_line_of_the_bank_that_is_no_longer_true(live: Callable[..., LiveCopy]):
    copy, stored = live(Says("")), StandIn("Warm wool for 35.00", "bank")
    dearer = Brief("headline", title="Wool hat", price=45.0)
    assert one(copy, 0, HAT, stored)[:2] == stored
    assert one(copy, 0, dearer, stored)[:2] == (GUARDRAILS.fallback(dearer), "fallback")


def test_closing_waits_and_what_comes_after_is_answered(live: Callable[..., LiveCopy]):
    slow = Slow()
    with live(slow, 0.01) as copy:
        assert one(copy, 0).reason == "late"
        begun = slow.begun.wait(0.5)
        threading.Timer(0.05, slow.let.set).start()
    assert slow.let.is_set() or not begun
    assert slow.writing == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("live-copy")]
    assert one(copy, 0) == LiveLine(*STORED, "closed", "")
    copy.close()


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, math.inf, 3601.0])
def test_bad_deadlines(seconds: float):
    writer: Any = Says("")
    with pytest.raises(InputError) as caught:
        LiveCopy(writer, GUARDRAILS, seconds)
    expected = f"live copy: bad deadline; got {seconds}, expected seconds above 0, at most 3,600"
    assert str(caught.value) == expected
