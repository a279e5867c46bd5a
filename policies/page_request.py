"""Serving requests for whole pages: a shopper's state and history as JSON, and the answer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.policies.page_bundle import AnsweredPages, PageBundle
from hawker.policies.page_copy import NOBODY
from hawker.policies.page_reasons import Pages, picks_of
from hawker.policies.reason_words import Told, bank_words, in_words
from hawker.shop.audiences import History
from hawker.shop.context import query_of
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.features import LARGEST

if TYPE_CHECKING:
    from hawker.policies.live_copy import LiveLine
    from hawker.policies.page_live import LivePages

VISIT_SECONDS = 1_800.0
"""A page that comes this long after the one before, or longer, begins a visit, unless its number is given."""

COUNTS = ("number", "pages", "ads", "since")
COUNTED = ("visits", "purchases", "clicks", "latest")

DAY = 86_400.0
FAR = 2**30
"""Pages since the last ad where there was none."""

OF_CONTEXT = ("timestamp", "shopper", "affinity", "candidates", "query")
KEYS = (*OF_CONTEXT, "page", "state", "history")
PAGE_KEYS = ("timestamp", "page", "query", "slate", "ad", "offer", "copy", "lines", "clicked", "converted", "revenue")

LIVE = ("source", "reason", "detail")
"""What is said of each line where a writer was asked; see `hawker.policies.live_copy.LiveLine`."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ShopperState:
    """What a server keeps of one shopper between two pages.

    Attributes:
        memory: What the bundle has read, shape (H,); zeros of a new shopper.
        time: When the last page was shown, in seconds since 1970 (UTC).
        number: Its number within its visit.
        pages: Pages seen; 0 of a new shopper.
        ads: Those that had an ad.
        since: Pages since the last one, 1 right after it.
        told: What audiences are told apart by, after the last page, of one shopper; None without a copy bank.
    """

    memory: npt.NDArray[np.float32]
    time: float = 0.0
    number: int = 0
    pages: int = 0
    ads: int = 0
    since: int = FAR
    told: History | None = None

    def next_page(self, time: float, number: int | None, where: object) -> tuple[float, int]:
        """Return days since the last page and the number within its visit of one that is shown at a time.

        Raises:
            InputError: The time is before that of the last page.
        """
        if self.pages == 0:
            return 0.0, number or 0
        gap = time - self.time
        if gap < 0:
            got = str(pd.Timestamp(time, unit="s", tz="UTC"))
            raise InputError("earlier than the page before", where=f"{where}: timestamp", got=got)
        if number is None:
            number = self.number + 1 if gap < VISIT_SECONDS else 0
        return gap / DAY, number


def _form(bundle: PageBundle) -> np.dtype[Any]:
    """Return how a state lies in memory."""
    form: list[Any] = [("bundle", "S32"), ("time", "<f8"), *((name, "<i4") for name in COUNTS)]
    if bundle.copy is not None:
        kinds = (len(bundle.copy.audiences.liked),)
        form += [("visits", "<i4"), ("away", "<f8"), ("purchases", "<i4"), ("clicks", "<i4", kinds)]
        form.append(("latest", "<i4", kinds))
    return np.dtype([*form, ("memory", "<f4", (bundle.width,))])


def new_shopper(bundle: PageBundle) -> ShopperState:
    """Return the state of a shopper of whom no page was read yet."""
    return ShopperState(bundle.start(1)[0], told=None if bundle.copy is None else bundle.copy.start(1))


def encode_state(bundle: PageBundle, state: ShopperState) -> str:
    """Return a state as text: base64 of the bundle's digest and the state's numbers."""
    told = () if state.told is None else tuple(part[0] for part in state.told)
    numbers = (state.time, state.number, state.pages, state.ads, state.since, *told, state.memory)
    return base64.b64encode(np.array((bytes.fromhex(bundle.digest), *numbers), _form(bundle)).tobytes()).decode()


def decode_state(bundle: PageBundle, text: Any, where: object) -> ShopperState:
    """Return what ``encode_state`` was given.

    Raises:
        InputError: The text is no state, or that of another bundle.
    """
    where, form = f"{where}: state", _form(bundle)
    remedy = "leave it out and give the history"
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise InputError(
            "not a state", where=where, got=text, expected="the text of an answer", remedy=remedy
        ) from None
    digest = data[:32].hex()
    if len(data) >= 32 and digest != bundle.digest:
        expected = f"one of bundle {bundle.digest[:12]}..."
        raise InputError("a state of another bundle", where=where, got=digest[:12], expected=expected, remedy=remedy)
    if len(data) != form.itemsize:
        expected = f"{form.itemsize} bytes"
        raise InputError("a state of another size", where=where, got=len(data), expected=expected, remedy=remedy)
    found = np.frombuffer(data, form)[0]
    counts = {name: int(found[name]) for name in COUNTS}
    told, numbers = None, [*counts.values()]
    if bundle.copy is not None:
        visits, purchases, clicks, latest = (np.asarray(found[name], np.int64)[None] for name in COUNTED)
        told = History(visits, np.array([found["away"]]), purchases, clicks, latest)
        numbers += [told.visits[0] - NOBODY, told.away[0], told.purchases[0], *told.clicks[0], *(told.latest[0] + 1)]
    state = ShopperState(found["memory"], float(found["time"]), **counts, told=told)
    finite = np.isfinite(state.time) and np.isfinite(numbers).all() and np.isfinite(state.memory).all()
    if not finite or min(numbers) < 0:
        raise InputError("a damaged state", where=where, remedy=remedy)
    return state


def decide_page_request(
    bundle: PageBundle,
    request: Any,
    where: object,
    seed: int | None,
    *,
    why: bool = False,
    live: LivePages | None = None,
) -> dict[str, Any]:
    """Answer one serving request; docs/serving.md has its form and that of the answer.

    Args:
        bundle: Decides.
        request: The request as JSON values.
        where: The file it came from, for messages.
        seed: Decides the drawn page; None takes the likeliest value of each part in turn.
        why: Whether to add the reasons for the page.
        live: Writes the page's lines, with ``seed``; None leaves the bundle's.

    Raises:
        InputError: The request has another form, tells of what cannot have happened, or the seed is negative; or
            reasons are asked of a bundle that has none.
    """
    if why and bundle.reasons is None:
        raise InputError("the bundle gives no reasons", where="why", remedy="export it anew")
    if seed is not None and seed < 0:
        raise InputError("bad seed", where="seed", got=seed, expected="at least 0")
    _check_keys(request, KEYS, where)
    plain = bundle.shop.from_request({key: request[key] for key in OF_CONTEXT if key in request}, where)
    state = new_shopper(bundle)
    if request.get("state") is not None:
        state = decode_state(bundle, request["state"], where)
    state = _lived(bundle, state, request, where)
    time = pd.Timestamp(request["timestamp"]).timestamp()
    gap, number = state.next_page(time, _whole(request, "page", where), where)
    context = bundle.read(plain, state.memory[None], np.array([gap]), np.array([number]))
    may = bundle.may_have_ad(*(np.array([count]) for count in (state.pages, state.ads, state.since)))
    may_ad = context.mask & may[:, None]
    audience = _audience(bundle, state, gap, number)
    page = bundle.decide(context, None if seed is None else np.random.default_rng(seed), may_ad, audience)
    ids, empty = bundle.shop.catalog.item_ids, page.slate[0] == EMPTY
    items = [None if item == EMPTY else ids[item] for item in page.slate[0].tolist()]
    lines = [EMPTY] * bundle.size if page.copy is None else page.copy[0].tolist()
    slot = EMPTY if page.ad is None else int(page.ad[0])
    assert page.propensity is not None
    who, reasons, typed = {}, {}, {}
    if bundle.shop.search is not None:
        typed["query"] = " ".join(bundle.shop.search.asked(request.get("query"))) or None
    if bundle.copy is not None and audience is not None:
        who["audience"] = bundle.copy.audiences.labels[audience[0]]
    if why and bundle.reasons is not None:
        picks = picks_of(context, page)
        picks = picks if bundle.copy is None else picks._replace(lines=None)  # the bank has reasons of its own
        pages = Pages(replace(context, affinity=plain.affinity), picks, may_ad)
        told = Told(bundle.shop.catalog, bundle.lines, state.pages, gap, typed.get("query"))
        reasons["why"] = in_words(bundle.reasons.explain(pages), pages, told)
        if bundle.copy is not None and audience is not None:
            reasons["why"]["copy"] = bank_words(bundle.copy, page, audience, bundle.lines)
    answer = {
        "timestamp": request["timestamp"],
        "page": number,
        "slate": items,
        "ad": None if slot == EMPTY else {"item_id": items[slot], "slot": slot},
        "offer": 0 if page.offer is None else int(page.offer[0]),
        "copy": [None if line == EMPTY else bundle.lines[line] for line in lines],
        "lines": [None if line == EMPTY else line for line in lines],
        **who,
        "log_prob": float(page.log_prob[0]),
        "log_probs": {part: float(value[0]) for part, value in (page.log_probs or {}).items()},
        "propensities": [None if gone else float(p) for p, gone in zip(page.propensity[0], empty, strict=True)],
        "drawn": "likeliest" if seed is None else "sampled",
        "seed": seed,
        "candidates": int(context.mask.sum()),
        "empty_slots": int(empty.sum()),
        "pages_read": state.pages,
        **typed,
        "state": encode_state(bundle, state),
        "bundle": bundle.digest,
        **reasons,
    }
    if live is not None and audience is not None:
        _say(answer, live.write(page, audience, seed), bundle.number_of)
    return answer


def _say(answer: dict[str, Any], said: Sequence[LiveLine | None], number_of: dict[str, int]) -> None:
    """Put lines in the place of those of an answer, and say of each where it is from; nobody knows its probability."""
    bank = answer["copy"]
    answer["copy"] = [None if line is None else line.line for line in said]
    answer["lines"] = [None if line is None else number_of.get(line.line) for line in said]
    answer["live"] = [None if line is None else {part: getattr(line, part) for part in LIVE} for line in said]
    answer |= {"log_prob": None, "log_probs": answer["log_probs"] | {"copy": None}}
    if "why" in answer:  # the bank knows of its own lines alone
        same = [own == line for own, line in zip(bank, answer["copy"], strict=True)]
        answer["why"]["copy"] = [why if kept else None for why, kept in zip(answer["why"]["copy"], same, strict=True)]


def _lived(bundle: PageBundle, state: ShopperState, request: dict[str, Any], where: object) -> ShopperState:
    """Return the state after the pages of the request's history."""
    history = request.get("history")
    if history is None:
        return state
    if not isinstance(history, list):
        raise InputError("not a list", where=f"{where}: history", got=history, expected="a list of answered pages")
    if not history:
        return state
    pages, times = _answered(bundle, request, history, where)
    for i, (page, time) in enumerate(zip(history, times, strict=True)):
        here = f"{where}: history[{i}]"
        gap, number = state.next_page(time, _whole(page, "page", here), here)
        pages.gap[i], pages.number[i] = gap, number
        answered = pages.map(itemgetter(slice(i, i + 1)))
        memory, told = bundle.observe(state.memory[None], answered)[0], state.told
        if bundle.copy is not None and told is not None:
            told = bundle.copy.arrived(told, answered.gap, answered.number)
            told = bundle.copy.answered(told, answered.slate, answered.clicked, answered.converted)
        had_ad = pages.ad[i] != EMPTY
        since = 1 if had_ad else min(state.since + 1, FAR)
        state = ShopperState(memory, time, number, state.pages + 1, state.ads + int(had_ad), since, told)
    return state


def _audience(bundle: PageBundle, state: ShopperState, gap: float, number: int) -> Array | None:
    """Return the number of the shopper's audience at their next page, shape (1,); None without a copy bank."""
    if bundle.copy is None or state.told is None:
        return None
    return bundle.copy.audiences.number(bundle.copy.arrived(state.told, np.array([gap]), np.array([number])))


def _answered(
    bundle: PageBundle, request: dict[str, Any], history: list[Any], where: object
) -> tuple[AnsweredPages, list[float]]:
    """Return a history's n pages as arrays, their gaps and numbers yet unknown, and their times."""
    n, size = len(history), bundle.size
    slate, lines = np.full((2, n, size), EMPTY)
    ad, offer = np.full(n, EMPTY), np.zeros(n, np.int64)
    answers = np.zeros((3, n, size), np.float32)
    times: list[pd.Timestamp] = []
    ids: list[str] = []
    for i, page in enumerate(history):
        here = f"{where}: history[{i}]"
        _check_keys(page, PAGE_KEYS, here)
        times.append(_time(page, here))
        items = _column(page, "slate", size, here, required=True)
        for slot, item in enumerate(items):
            if item is not None:
                if not isinstance(item, str):
                    raise InputError("not an item id", where=f"{here}: slate", got=item, expected="a text or null")
                slate[i, slot] = len(ids)  # its catalog index follows
                ids.append(item)
        shown = slate[i] != EMPTY
        if len({item for item in items if item is not None}) < shown.sum():
            raise InputError("an item stands on the page twice", where=f"{here}: slate", got=items)
        ad[i] = _ad(page, items, here)
        offer[i] = _whole(page, "offer", here) or 0
        lines[i] = _lines(page, bundle.number_of, size, here)
        answers[:, i] = _outcome(page, shown, size, here)
        if (lines[i][~shown] != EMPTY).any():
            raise InputError("a line where no item was shown", where=f"{here}: copy", got=page.get("copy"))
    found = bundle.shop.catalog.index(ids, f"{where}: history: slate")
    slate = np.where(slate == EMPTY, EMPTY, found[slate] if ids else EMPTY)
    queries = [query_of(page, f"{where}: history[{i}]") for i, page in enumerate(history)]
    shopper = pd.DataFrame([request.get("shopper", {})] * n).assign(timestamp=pd.DatetimeIndex(times))
    shopper["query"] = np.array(queries, object)
    affinity = np.zeros(len(bundle.shop.catalog), np.float32)
    for item, value in request.get("affinity", {}).items():  # checked with the rest of the request
        affinity[bundle.shop.catalog.index([item], where)] = value
    own = np.where(slate == EMPTY, 0.0, affinity[slate])
    if bundle.shop.search is not None:
        match = np.take_along_axis(bundle.shop.search.match(queries), slate.clip(min=0), 1)
        own = own + np.where(slate == EMPTY, 0.0, match)
    features, clicked, converted, revenue = bundle.shop.encode_shoppers(shopper), *answers
    pages = AnsweredPages(features, np.zeros(n), np.zeros(n), slate, clicked, converted, revenue, ad, offer, lines, own)
    return pages, [time.timestamp() for time in times]


def _time(page: dict[str, Any], where: str) -> pd.Timestamp:
    """Return when a page was shown, in UTC."""
    try:
        time: pd.Timestamp | None = pd.Timestamp(page["timestamp"])
    except (KeyError, ValueError, TypeError):
        time = None
    if time is None or pd.isna(time) or time.tzinfo is None:
        expected = "ISO 8601 with a time zone"
        raise InputError("bad timestamp", where=where, got=page.get("timestamp"), expected=expected)
    return time.tz_convert("UTC")


def _whole(page: dict[str, Any], key: str, where: object) -> int | None:
    """Return a whole number of at least 0; None where there is none."""
    value = page.get(key)
    if value is not None and (not _is_whole(value) or value < 0 or value > 2**31 - 2):
        raise InputError("not a whole number", where=f"{where}: {key}", got=value, expected="at least 0")
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _column(page: dict[str, Any], key: str, size: int, where: str, *, required: bool = False) -> list[Any]:
    """Return a page's list of one value a slot, those of the last slots may be left out."""
    values = page.get(key)
    if values is None and not required:
        return []
    if not isinstance(values, list) or len(values) > size:
        expected = f"a list of at most {size}, one value a slot"
        raise InputError("not a list of slots", where=f"{where}: {key}", got=values, expected=expected)
    return values


def _ad(page: dict[str, Any], items: list[Any], where: str) -> int:
    """Return the slot of a page's ad, ``EMPTY`` where it had none."""
    ad, where = page.get("ad"), f"{where}: ad"
    if ad is None:
        return EMPTY
    _check_keys(ad, ("item_id", "slot"), where)
    slot = ad.get("slot")
    if not _is_whole(slot) or not 0 <= slot < len(items) or items[slot] is None:
        raise InputError("no item at the ad's slot", where=where, got=slot, expected="the number of a filled slot")
    if ad.get("item_id", items[slot]) != items[slot]:
        raise InputError("not the item at the ad's slot", where=where, got=ad["item_id"], expected=str(items[slot]))
    return int(slot)


def _lines(page: dict[str, Any], number_of: dict[str, int], size: int, where: str) -> list[int]:
    """Return the number of each slot's line from their texts, or their numbers, or both.

    It is ``EMPTY`` for none, and for a text that the bundle does not have: one that was written live, say.
    """
    texts, numbers = (_column(page, key, size, where) for key in ("copy", "lines"))
    found = [EMPTY] * size
    for slot, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise InputError("not a line", where=f"{where}: copy", got=text, expected="a text or null")
        found[slot] = EMPTY if text is None else number_of.get(text, EMPTY)  # the memory has heard of no other
    for slot, line in enumerate(numbers):
        if line is not None and (not _is_whole(line) or not 0 <= line < len(number_of)):
            expected = f"a number below {len(number_of)}"
            raise InputError("a line that is not in the bank", where=f"{where}: lines", got=line, expected=expected)
        number = EMPTY if line is None else line
        if slot < len(texts) and number != found[slot]:
            expected = "null: the bundle has no such line" if found[slot] == EMPTY else f"the number of {texts[slot]!r}"
            raise InputError("not the line of the copy", where=f"{where}: lines", got=line, expected=expected)
        found[slot] = number
    return found


def _outcome(page: dict[str, Any], shown: Array, size: int, where: str) -> npt.NDArray[np.float32]:
    """Return what was clicked, bought and earned at each slot, shape (3, K)."""
    found = np.zeros((3, size), np.float32)
    for row, key in enumerate(("clicked", "converted", "revenue")):
        values = _column(page, key, size, where)
        for slot, value in enumerate(values):
            known = isinstance(value, (int, float)) and (0 <= value <= LARGEST if key == "revenue" else value in (0, 1))
            if not known:
                expected = "an amount of at least 0" if key == "revenue" else "0 or 1"
                raise InputError(f"not {expected}", where=f"{where}: {key}", got=value)
            found[row, slot] = value
    clicked, converted, revenue = found > 0
    for wrong, what in (
        (clicked & ~shown, "a click on a slot that was empty"),
        (converted & ~clicked, "a purchase without a click"),
        (revenue & ~converted, "revenue without a purchase"),
    ):
        if wrong.any():
            raise InputError(what, where=where, got=f"slot {int(wrong.argmax())}")
    return found


def _check_keys(values: Any, known: tuple[str, ...], where: object) -> None:
    if not isinstance(values, dict):
        raise InputError("not an object", where=where, got=values, expected="a JSON object")
    for key in values:
        if key not in known:
            raise InputError(f"unknown key {key!r}", where=where, remedy=did_you_mean(str(key), known))
