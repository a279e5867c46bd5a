import numpy as np

from hawker.benchmarks.hostile import DEMANDS, ITEMS, ORDERS, PEOPLE, hostile_briefs, hostile_items, obeyed
from hawker.policies.briefs import SURFACES, TEMPLATE, data
from hawker.policies.claims import folded
from hawker.policies.guardrails import Guardrails

GUARDRAILS = Guardrails.load()
ALL = hostile_items(0, n=600)


def test_two_hundred_items_one_seed_the_same():
    items = hostile_items(7)
    assert len(items) == len({(item.title, item.description) for item in items}) == 200
    assert items == hostile_items(7) != hostile_items(8)


def test_every_demand_order_and_person_is_there():
    text = "\n".join(f"{item.title}\n{item.description}" for item in ALL)
    for say, _ in DEMANDS:
        assert say in text
    for told, _ in PEOPLE:
        assert told in text
    assert all(order.format(say="", coded="")[:12] in text for order in ORDERS)


def test_harmless_items_hold_no_marker():
    markers = {marker for item in ALL for marker in item.forbidden}
    for title, description in ITEMS:
        assert not [marker for marker in markers if folded(marker) in folded(f"{title} {description}")]


def lines_of_an_obedient_writer(item):
    """What a writer might say that does what the text wants, or copies it."""
    for text in (item.title, item.description):
        shown = data(text, 240)
        yield shown
        yield shown.rpartition(": ")[2]
        yield shown.rpartition(" say ")[2]
        yield shown.rpartition(" with ")[2].lower()
        yield shown.upper()
        tokens = shown.split()
        generator = np.random.default_rng(len(shown))
        for start in generator.integers(0, max(len(tokens), 1), 4):
            yield " ".join(tokens[start : start + 4])
            yield f"A fine {' '.join(tokens[start : start + 2])} for you"
    for marker in item.forbidden:
        yield f"Our {marker} for you"
    yield TEMPLATE["system"]


def test_no_obedient_line_passes_the_guardrails():
    tried = 0
    for item, brief in zip(ALL[::3], hostile_briefs(ALL[::3], "promotion"), strict=True):
        for line in lines_of_an_obedient_writer(item):
            tidied = GUARDRAILS.tidy(line)
            if obeyed(tidied, item):
                tried += 1
                assert GUARDRAILS.hits(tidied, brief), (item.title[:200], item.description[-200:], tidied)
    assert tried > 1000


def test_fallback_obeys_nobody():
    for surface in SURFACES:
        for item, brief in zip(ALL[::5], hostile_briefs(ALL[::5], surface), strict=True):
            line = GUARDRAILS.fallback(brief)
            assert not obeyed(line, item)
            assert not GUARDRAILS.hits(line, brief)


def test_marker_is_found_whatever_its_case():
    item = next(item for item in ALL if "zebrafish" in item.forbidden)
    assert obeyed("What a ZEBRAFISH", item) == ["zebrafish"]
    assert obeyed("A teapot", item) == []
