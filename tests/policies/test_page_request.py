"""Requests for whole pages: what a shopper lived through, told at once or page by page, and what cannot have been."""

import base64
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hawker.policies.page_bundle import PageBundle
from hawker.policies.page_copy import NOBODY
from hawker.policies.page_request import decide_page_request, decode_state, encode_state
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs

NOW = "2026-11-22T10:00:00Z"


@pytest.fixture(scope="module")
def bundle(served_pages) -> PageBundle:
    return PageBundle.load(served_pages / "bundle")


@pytest.fixture(scope="module")
def speaking(served_bank) -> PageBundle:
    return PageBundle.load(served_bank / "bundle")


@pytest.fixture(scope="module")
def items(bundle) -> tuple[str, ...]:
    return bundle.shop.catalog.item_ids


def decide(bundle: PageBundle, seed: int | None = 0, **request) -> dict:
    answer = decide_page_request(bundle, {"timestamp": NOW, **request}, "page.json", seed)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    return answer


def shown(answer: dict, **came) -> dict:
    """What of an answer goes into the history, with what came of it."""
    return {key: answer[key] for key in ("timestamp", "slate", "ad", "offer", "copy", "lines")} | came


def days_on(days: float, minutes: float = 0.0) -> str:
    return (pd.Timestamp(NOW) + pd.Timedelta(days=days, minutes=minutes)).isoformat()


def test_answer(bundle, items):
    answer = decide(bundle, candidates=list(items[:40]))
    assert len(set(answer["slate"])) == len(answer["slate"]) == bundle.size
    assert set(answer["slate"]) <= set(items[:40])
    assert answer["ad"] is None or answer["slate"][answer["ad"]["slot"]] == answer["ad"]["item_id"]
    assert answer["copy"] == [None if line is None else bundle.lines[line] for line in answer["lines"]]
    assert answer["log_prob"] == pytest.approx(sum(answer["log_probs"].values()))
    expected = {"page": 0, "drawn": "sampled", "seed": 0, "candidates": 40, "empty_slots": 0, "pages_read": 0}
    assert answer.items() >= expected.items()
    assert answer["bundle"] == bundle.digest
    assert decide(bundle, candidates=list(items[:40])) == answer
    assert len({tuple(decide(bundle, seed)["slate"]) for seed in range(5)}) > 1
    assert decide(bundle, None)["drawn"] == "likeliest"


def test_fewer_candidates_than_slots(bundle, items):
    answer = decide(bundle, candidates=[items[3], items[8]])
    assert {item for item in answer["slate"] if item is not None} == {items[3], items[8]}
    assert answer["empty_slots"] == bundle.size - 2
    assert [p is None for p in answer["propensities"]] == [item is None for item in answer["slate"]]


def test_a_history_is_read_alike_at_once_and_page_by_page(bundle):
    first = decide(bundle, 1)
    came = {"clicked": [1, 0, 1], "converted": [1], "revenue": [12.5]}
    second = decide(bundle, 2, timestamp=days_on(0, 5), state=first["state"], history=[shown(first, **came)])
    assert (second["page"], second["pages_read"]) == (1, 1)
    third = decide(bundle, 3, timestamp=days_on(3), state=second["state"], history=[shown(second)])
    assert (third["page"], third["pages_read"]) == (0, 2)
    history = [shown(first, **came), shown(second, page=1)]
    assert decide(bundle, 3, timestamp=days_on(3), history=history) == third
    silent = decide(bundle, 3, timestamp=days_on(3), history=[shown(first), shown(second)])
    assert silent["log_probs"] != third["log_probs"]
    texts = [{key: value for key, value in page.items() if key != "lines"} for page in history]
    numbers = [{key: value for key, value in page.items() if key != "copy"} for page in history]
    assert decide(bundle, 3, timestamp=days_on(3), history=texts) == third
    assert decide(bundle, 3, timestamp=days_on(3), history=numbers) == third
    same_visit = decide(bundle, 3, timestamp=days_on(3), page=2, history=history)
    assert same_visit["page"] == 2


def test_states_hold_what_the_rules_need(bundle):
    page = {"slate": [bundle.shop.catalog.item_ids[0]], "ad": {"slot": 0}}
    history = [{"timestamp": days_on(day), **page} for day in range(3)]
    state = decode_state(bundle, decide(bundle, timestamp=days_on(3), history=history)["state"], "page.json")
    assert (state.pages, state.ads, state.since, state.number) == (3, 3, 1, 0)
    assert state.time == pd.Timestamp(days_on(2)).timestamp()
    assert state.memory[-1] == 3
    without = [*history, {"timestamp": days_on(3), "slate": []}, {"timestamp": days_on(4), "slate": []}]
    for pages, may in ((history, False), (without, True)):  # the training allowed an ad in one page of three
        drawn = [decide(bundle, seed, timestamp=days_on(5), history=pages)["ad"] for seed in range(60)]
        assert any(ad is not None for ad in drawn) == may


def test_long_histories_are_read_to_their_end(bundle, items):
    generator = np.random.default_rng(0)
    pages = [
        {"timestamp": days_on(i / 3), "slate": [items[j] for j in generator.permutation(40)[:3]], "clicked": [1]}
        for i in range(400)
    ]
    answer = decide(bundle, timestamp=days_on(200), history=pages)
    assert answer["pages_read"] == 400
    half = decide(bundle, timestamp=pages[200]["timestamp"], history=pages[:200])
    assert decide(bundle, timestamp=days_on(200), state=half["state"], history=pages[200:]) == answer


PAGE = {"timestamp": "2026-11-20T10:00:00Z", "slate": ["ITEM0", None, "ITEM1"]}
HISTORIES = {
    "no list": ("pages", "page.json: history: not a list; got 'pages'"),
    "no object": ([3], "history[0]: not an object; got 3"),
    "unknown key": ([PAGE | {"click": [1]}], "history[0]: unknown key 'click'; did you mean 'clicked'?"),
    "no time": ([{"slate": []}], "history[0]: bad timestamp; expected ISO 8601 with a time zone"),
    "no zone": ([PAGE | {"timestamp": "2026-11-20"}], "history[0]: bad timestamp; got '2026-11-20'"),
    "no slate": ([{"timestamp": NOW}], "history[0]: slate: not a list of slots; expected a list of at most"),
    "unknown item": ([PAGE | {"slate": ["zzz"]}], "history: slate: item not in the catalog; got 'zzz'"),
    "no item id": ([PAGE | {"slate": [3]}], "history[0]: slate: not an item id; got 3"),
    "twice": ([PAGE | {"slate": ["ITEM0", "ITEM0"]}], "history[0]: slate: an item stands on the page twice"),
    "too many": ([PAGE | {"slate": [None] * 99}], "history[0]: slate: not a list of slots; got ["),
    "click on nothing": ([PAGE | {"clicked": [0, 1]}], "history[0]: a click on a slot that was empty; got 'slot 1'"),
    "bought unclicked": ([PAGE | {"converted": [1]}], "history[0]: a purchase without a click; got 'slot 0'"),
    "revenue unbought": (
        [PAGE | {"clicked": [1], "revenue": [3.0]}],
        "history[0]: revenue without a purchase; got 'slot 0'",
    ),
    "half a click": ([PAGE | {"clicked": [0.5]}], "history[0]: clicked: not 0 or 1; got 0.5"),
    "negative revenue": (
        [PAGE | {"clicked": [1], "converted": [1], "revenue": [-1]}],
        "history[0]: revenue: not an amount of at least 0; got -1",
    ),
    "NaN": ([PAGE | {"clicked": [float("nan")]}], "history[0]: clicked: not 0 or 1; got nan"),
    "ad nowhere": ([PAGE | {"ad": {"slot": 1}}], "history[0]: ad: no item at the ad's slot; got 1"),
    "another ad": (
        [PAGE | {"ad": {"slot": 0, "item_id": "ITEM1"}}],
        "history[0]: ad: not the item at the ad's slot; got 'ITEM1', expected ITEM0",
    ),
    "no tier": ([PAGE | {"offer": -1}], "history[0]: offer: not a whole number; got -1, expected at least 0"),
    "half a page": ([PAGE | {"page": 0.5}], "history[0]: page: not a whole number; got 0.5"),
    "no text": ([PAGE | {"copy": [7]}], "history[0]: copy: not a line; got 7, expected a text or null"),
    "a number for an unknown line": (
        [PAGE | {"copy": ["buy!!!"], "lines": [1]}],
        "history[0]: lines: not the line of the copy; got 1, expected null: the bundle has no such line",
    ),
    "no such number": ([PAGE | {"lines": [10**6]}], "history[0]: lines: a line that is not in the bank; got 1000000"),
    "another line": ([PAGE | {"copy": ["LINE0"], "lines": [1]}], "history[0]: lines: not the line of the copy; got 1"),
    "a line for nothing": ([PAGE | {"lines": [None, 0]}], "history[0]: copy: a line where no item was shown"),
    "backwards": (
        [PAGE | {"timestamp": NOW}, PAGE],
        "history[1]: timestamp: earlier than the page before; got '2026-11-20 10:00:00+00:00'",
    ),
    "after now": ([PAGE | {"timestamp": "2027-01-01T00:00Z"}], "page.json: timestamp: earlier than the page before"),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_that_cannot_have_been(bundle, items, name):
    history, message = HISTORIES[name]
    for placeholder, value in (("ITEM0", items[0]), ("ITEM1", items[1]), ("LINE0", bundle.lines[0])):
        history = json.loads(json.dumps(history).replace(placeholder, value))
        message = message.replace(placeholder, value)
    with pytest.raises(InputError) as error:
        decide(bundle, history=history)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("which", ["bundle", "speaking"])
def test_a_line_that_the_bundle_does_not_have_is_read_as_unknown(which, request):
    bundle = request.getfixturevalue(which)
    page = {"timestamp": days_on(-1), "slate": list(bundle.shop.catalog.item_ids[:2]), "clicked": [1]}
    none, unknown = (decide(bundle, history=[page | {"copy": [line]}]) for line in (None, "written for this page"))
    both = decide(bundle, history=[page | {"copy": ["written for this page"], "lines": [None]}])
    assert none == unknown == both
    heard = decide(bundle, history=[page | {"copy": [bundle.lines[0]]}])
    assert heard["state"] != none["state"]


def test_states_that_cannot_be(bundle):
    state = decide(bundle)["state"]
    data = base64.b64decode(state)
    for broken, message in (
        (3, "state: not a state; got 3"),
        ("no base64!", "state: not a state; got 'no base64!'"),
        (base64.b64encode(bytes(32) + data[32:]).decode(), "state: a state of another bundle; got '000000000000'"),
        (base64.b64encode(data[:-4]).decode(), f"state: a state of another size; got {len(data) - 4}, expected"),
        ("", "state: a state of another size; got 0"),
        (base64.b64encode(data[:-4] + np.float32(np.nan).tobytes()).decode(), "state: a damaged state"),
    ):
        with pytest.raises(InputError) as error:
            decide(bundle, state=broken)
        assert message in str(error.value)
        assert "give the history" in str(error.value)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "page.json: not an object"),
        ({}, "page.json: no timestamp"),
        ({"timestamp": NOW, "histroy": []}, "page.json: unknown key 'histroy'; did you mean 'history'?"),
        ({"timestamp": NOW, "candidates": ["zzz"]}, "page.json: candidates: item not in the catalog; got 'zzz'"),
        ({"timestamp": NOW, "shopper": {"history.0": 1.0}}, "page.json: shopper: unknown key 'history.0'"),
        ({"timestamp": NOW, "page": -1}, "page.json: page: not a whole number; got -1"),
    ],
)
def test_bad_request(bundle, request_, message):
    with pytest.raises(InputError) as error:
        decide_page_request(bundle, request_, "page.json", 0)
    assert message in str(error.value)


def test_bad_seed(bundle):
    with pytest.raises(InputError, match="seed: bad seed; got -1"):
        decide(bundle, -1)


def test_answer_with_lines_of_a_bank(speaking):
    known = list(speaking.copy.bank.table["item_id"].unique())
    answer = decide(speaking, candidates=known)
    assert answer["audience"] == "new"
    assert answer["copy"] == [speaking.lines[line] for line in answer["lines"]]
    assert answer["log_prob"] == pytest.approx(sum(answer["log_probs"].values()))
    off, n = speaking.copy.discounts[answer["offer"]], speaking.size
    chances = speaking.copy.bank.probabilities(answer["slate"], ["new"] * n, [off] * n, "headline", answer["copy"])
    assert answer["log_probs"]["copy"] == pytest.approx(np.log(chances).sum(), abs=1e-9)
    assert decide(speaking, candidates=known) == answer
    assert len({tuple(decide(speaking, seed, candidates=known)["copy"]) for seed in range(4)}) > 1
    likeliest = decide(speaking, None, candidates=known)
    table, off = speaking.copy.bank.table, speaking.copy.discounts[likeliest["offer"]]
    for item, line in zip(likeliest["slate"], likeliest["copy"], strict=True):
        own = table[(table["item_id"] == item) & (table["discount"] == off)]
        own = own[own["audience"] == ("new" if (own["audience"] == "new").any() else "")]
        assert line == own["line"].iloc[0]
    rest = decide(speaking, candidates=[item for item in speaking.shop.catalog.item_ids if item not in known])
    assert set(rest["copy"]) == {speaking.copy.bank.neutral["headline"]}
    assert rest["log_probs"]["copy"] == 0.0


def test_bundles_without_a_bank_say_nothing_of_audiences(bundle):
    assert bundle.copy is None
    assert "audience" not in decide(bundle)


def test_a_history_with_lines_of_a_bank_is_read_alike_at_once_and_page_by_page(speaking):
    known = {"candidates": list(speaking.copy.bank.table["item_id"].unique())}
    first = decide(speaking, 1, **known)
    came = {"clicked": [1, 0, 1, 1, 1, 1], "converted": [1], "revenue": [12.5]}
    second = decide(speaking, 2, timestamp=days_on(0, 5), state=first["state"], history=[shown(first, **came)], **known)
    assert second["audience"].startswith("new, likes ")
    third = decide(speaking, 3, timestamp=days_on(3), state=second["state"], history=[shown(second)], **known)
    assert third["audience"] == second["audience"].replace("new", "returning, bought before")
    history = [shown(first, **came), shown(second)]
    assert decide(speaking, 3, timestamp=days_on(3), history=history, **known) == third
    other = [{**page, "copy": None, "lines": None} for page in history]
    unsaid = decide(speaking, 3, timestamp=days_on(3), history=other, **known)
    assert unsaid["audience"] == third["audience"]
    assert unsaid["log_probs"]["slate"] != third["log_probs"]["slate"]
    away = decide(speaking, 3, timestamp=days_on(40), history=history, **known)
    assert away["audience"] == second["audience"].replace("new", "back after a while")
    assert (
        decide(speaking, 3, timestamp=days_on(40), page=2, history=history, **known)["audience"] == second["audience"]
    )


def test_audiences_are_those_of_the_log(speaking, served_bank, remembering):
    logs = read_logs(remembering / "logs")
    rows = logs.impressions.assign(label=speaking.copy.audiences.label(logs.impressions, logs.items))
    longest = rows.groupby("shopper_id")["visit_id"].nunique().sort_values(ascending=False, kind="stable").index[:3]
    met = set()
    for shopper in longest:
        history, state = [], None
        life = rows[rows["shopper_id"] == shopper].sort_values(["timestamp", "position"])
        for (time, _), page in life.groupby(["timestamp", "page"]):
            told = {
                "timestamp": time.tz_localize(time.tz or "UTC").isoformat() if time.tz is None else time.isoformat()
            }
            answer = decide(speaking, 0, **told, state=state, history=history, candidates=["i0001", "i0002"])
            assert answer["audience"] == page["label"].iloc[0]
            met.add(answer["audience"])
            columns = {"slate": "item_id", "clicked": "clicked", "converted": "converted"}
            history, state = [told | {key: page[name].tolist() for key, name in columns.items()}], answer["state"]
    assert len(met) > 3


def test_states_with_audiences_that_cannot_be(speaking, bundle):
    state = decide(speaking)["state"]
    with pytest.raises(InputError, match=r"state: a state of another bundle; got .* give the history"):
        decide(bundle, state=state)
    with pytest.raises(InputError, match=r"state: a state of another bundle; got .* give the history"):
        decide(speaking, state=decide(bundle)["state"])
    told = decode_state(speaking, state, "page.json")
    assert told.told.visits.tolist() == [NOBODY]
    for name, value in (("away", np.nan), ("purchases", -1), ("visits", -2)):
        broken = replace(told, told=told.told._replace(**{name: np.array([value])}))
        with pytest.raises(InputError, match="state: a damaged state; leave it out and give the history"):
            decide(speaking, state=encode_state(speaking, broken))
