"""Reasons as people read them, in the answer to a serving request."""

import copy
import json

import numpy as np
import pytest

from hawker.policies.page_bundle import PageBundle
from hawker.policies.page_request import decide_page_request
from hawker.policies.reason_words import NAMED, SMALLEST, WORDS
from hawker.shop.errors import InputError

NOW = {"timestamp": "2026-11-22T10:00:00Z"}


@pytest.fixture(scope="module")
def bundle(served_pages) -> PageBundle:
    return PageBundle.load(served_pages / "bundle")


def test_every_choice_of_a_page_says_why(bundle):
    plain = decide_page_request(bundle, NOW, "x", 3)
    answer = decide_page_request(bundle, NOW, "x", 3, why=True)
    assert {name: value for name, value in answer.items() if name != "why"} == plain
    why = json.loads(json.dumps(answer["why"], allow_nan=False))
    assert set(why) == {"unit", "slate", "ad", "ad_slot", "offer", "copy"}
    told = [*why["slate"], *why["copy"], why["ad"], why["ad_slot"], why["offer"]]
    told = [choice for choice in told if choice is not None]
    assert len(told) >= 2 * bundle.size
    for choice in told:
        assert len(choice["reasons"]) <= NAMED
        sizes = [reason["size"] for reason in choice["reasons"]]
        assert sorted(sizes, key=abs, reverse=True) == sizes
        assert all(abs(size) >= SMALLEST for size in sizes)
        assert choice["usual"] + sum(sizes) + choice["rest"] == pytest.approx(choice["score"], abs=1e-6)
        assert all(reason["words"].startswith(WORDS[reason["reason"]]) for reason in choice["reasons"])
    slot = next(i for i, choice in enumerate(why["slate"]) if choice is not None)
    assert why["slate"][slot]["sentence"].startswith(f"slot {slot}, {answer['slate'][slot]}: ")
    assert all(f"{answer['copy'][i] or 'no line'}" in said["sentence"] for i, said in enumerate(why["copy"]))
    assert why == decide_page_request(bundle, NOW, "x", 3, why=True)["why"]


def test_words_name_category_price_and_days(bundle):
    first = decide_page_request(bundle, NOW, "x", None)
    seen = {key: first[key] for key in ("timestamp", "slate", "ad", "offer", "lines")} | {"clicked": [1]}
    later = {"timestamp": "2026-11-24T22:00:00Z", "history": [seen]}
    said, features = {}, bundle.shop.catalog.features
    for seed in range(20):
        why = decide_page_request(bundle, later, "x", seed, why=True)["why"]
        for choice in (*why["slate"], why["offer"], *why["copy"], why["ad"]):
            said |= {reason["reason"]: reason["words"] for reason in (choice or {"reasons": []})["reasons"]}
    assert {"category", "price"} <= set(said)
    known = features.categories["category"]
    assert any(said["category"] == f"its category ({name})" for name in known)
    assert said["price"].endswith(" on average)")
    if "visits" in said:
        assert "2.5 days since the last page" in said["visits"]


def test_a_bundle_without_reasons_says_so(bundle):
    old = copy.copy(bundle)
    old.reasons = None
    assert "why" not in decide_page_request(old, NOW, "x", 0)
    with pytest.raises(InputError, match=r"^why: the bundle gives no reasons; export it anew$"):
        decide_page_request(old, NOW, "x", 0, why=True)


def test_one_candidate_has_nothing_to_say(bundle):
    item = bundle.shop.catalog.item_ids[0]
    answer = decide_page_request(bundle, NOW | {"candidates": [item]}, "x", None, why=True)
    assert answer["why"]["slate"] == [None] * bundle.size
    assert np.isfinite(answer["why"]["offer"]["score"])


def test_lines_of_a_bank_say_what_it_expects_of_them(served_bank):
    bundle = PageBundle.load(served_bank / "bundle")
    known = [*bundle.copy.bank.table["item_id"].unique(), bundle.shop.catalog.item_ids[-1]]
    plain = decide_page_request(bundle, NOW | {"candidates": known}, "x", 3)
    answer = decide_page_request(bundle, NOW | {"candidates": known}, "x", 3, why=True)
    assert {name: value for name, value in answer.items() if name != "why"} == plain
    why = json.loads(json.dumps(answer["why"], allow_nan=False))
    assert set(why) == {"unit", "slate", "ad", "ad_slot", "offer", "copy"}
    assert np.log([said["propensity"] for said in why["copy"]]).sum() == pytest.approx(answer["log_probs"]["copy"])
    table, off = bundle.copy.bank.table, bundle.copy.discounts[answer["offer"]]
    assert {said["audience"] for said in why["copy"]} >= {"", "new"}
    for slot, (item, line, said) in enumerate(zip(answer["slate"], answer["copy"], why["copy"], strict=True)):
        assert said["sentence"].startswith(f'slot {slot}, "{line}": ')
        if said["audience"] is None:
            assert item == known[-1]
            expected = {"effect": 0.0, "uncertainty": 0.0, "propensity": 1.0, "choices": 0}
            assert said.items() >= expected.items()
            continue
        own = table[(table["item_id"] == item) & (table["audience"] == said["audience"]) & (table["discount"] == off)]
        assert said["choices"] == len(own) == 3
        row = own[own["line"] == line].iloc[0]
        assert (said["effect"], said["uncertainty"]) == (row["effect"], row["uncertainty"])
        assert f"{row['effect']:+.4f} of reward expected against the template" in said["sentence"]
        assert said["sentence"].endswith(f"of 3 for {said['audience'] or 'anybody'}")
    few = decide_page_request(bundle, NOW | {"candidates": known[:2]}, "x", 3, why=True)
    assert [said is None for said in few["why"]["copy"]] == [item is None for item in few["slate"]]
