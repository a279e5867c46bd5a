"""Voices: what counts as a copy, what is masked, and how well a classifier tells lines apart, by hand."""

import numpy as np
import pytest

from hawker.benchmarks.writer_voice import VOICES, accuracy, copied, masked, tell_apart, voice_lines
from hawker.policies.briefs import SURFACES, TEMPLATE, Brief
from hawker.policies.guardrails import Guardrails

CALM, CHEERFUL = VOICES
BRIEFS = [
    Brief("headline", title=f"{style} {noun}", category="kitchen")
    for style in ("Rustic", "Retro", "Eco", "Luxury")
    for noun in ("teapot", "bread knife", "mixing bowl", "frying pan", "kettle")
]


def said(calm: str, cheerful: str) -> dict[str, list[list[str]]]:
    return {
        name: [[form.format(brief.title), form.format(brief.category)] for brief in BRIEFS]
        for name, form in ((CALM, calm), (CHEERFUL, cheerful))
    }


def test_voices_are_two_of_as_many_lines_as_a_brief_shows_and_no_rule_refuses_any():
    guardrails = Guardrails.load()
    assert len(VOICES) == 2
    for lines in VOICES.values():
        assert len(set(lines)) == len(lines) == TEMPLATE["most_voice"]
        for line in lines:
            assert len(line) <= SURFACES["headline"].longest
            assert [guardrails.hits(line, brief) for brief in BRIEFS[:2]] == [[], []]
    assert not any(copied(line, VOICES[CHEERFUL]) for line in VOICES[CALM])


@pytest.mark.parametrize(
    ("line", "copy"),
    [
        ("quietly GOOD at one thing", True),
        ("A teapot: good at one thing", True),  # four words in a row
        ("A teapot good at one", False),
        ("Yes please", True),  # all words of a short example
        ("Oh yes please do", True),
        ("Yes, do please", False),
        ("", False),
    ],
)
def test_a_copy_holds_four_words_in_a_row(line: str, copy: bool):
    assert copied(line, ["Quietly good at one thing.", "Yes please!"]) is copy


def test_words_of_the_item_are_masked_whatever_their_case():
    brief = Brief("headline", title="Caf\u00e9 bread-knife", category="kitchen")
    assert masked("Bread, knives and a KNIFE for the cafe kitchen!", brief) == "x, knives and a x for the x x!"


def test_each_voice_is_asked_for_with_its_own_lines_and_what_is_said_is_tidied():
    class Heard:
        def __init__(self) -> None:
            self.asked: list[tuple[tuple[str, ...], int, int]] = []

        def write(self, briefs: list[Brief], count: int, temperature: float, seed: int) -> list[list[str]]:
            self.asked += [(brief.voice, count, seed) for brief in briefs]
            return [['"A pot"', "90% off!!!"][:count] for _ in briefs]

    heard = Heard()
    found = voice_lines(heard, Guardrails.load(), BRIEFS[:2], 2, 7)
    assert heard.asked == [(VOICES[name], 2, 7) for name in (CALM, CHEERFUL) for _ in range(2)]
    assert found == dict.fromkeys(VOICES, [["A pot", "90% off!!!"]] * 2)


def test_voices_that_differ_are_told_apart_on_items_never_seen():
    found = tell_apart(BRIEFS, said("The {}, made with care.", "Oh wow, a {} for you!"), 1)
    assert np.array(found["of"]).tolist() == [[2] * 20] * 2
    assert found["right"] == found["of"]
    assert found["copied"] == 0
    figure = accuracy([found, found])
    assert (figure["value"], figure["low"], figure["high"], figure["n"]) == (1.0, 1.0, 1.0, 160)


def test_titles_alone_tell_nothing():
    found = tell_apart(BRIEFS, said("{}", "{}"), 1)
    assert accuracy([found])["value"] == 0.5  # whichever it says, it is right about one of the two


def test_copies_and_blank_lines_are_left_out_of_the_test():
    lines = said("The {}, made with care.", "Oh wow, a {} for you!")
    lines[CALM][0] = ["Quietly good at one thing.", ""]
    lines[CHEERFUL][1][0] = "Teapot: someone is about to be very happy"
    found = tell_apart(BRIEFS, lines, 1)
    assert found["copied"] == 2 / 80
    assert np.array(found["of"])[0, :2].tolist() == [0, 2]
    assert np.array(found["of"])[1, :2].tolist() == [2, 1]


def test_accuracy_by_hand():
    one = {"right": [[2, 1], [0, 1]], "of": [[2, 2], [2, 1]]}
    figure = accuracy([one])
    assert figure["value"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert figure["n"] == 7
    assert figure["low"] == pytest.approx(0.5)  # the first item alone: (1 + 0) / 2
    assert figure["high"] == pytest.approx(0.75)  # the second alone: (1/2 + 1) / 2


def test_nothing_to_test_is_no_accuracy():
    nothing = tell_apart(BRIEFS[:2], {name: [[""], [""]] for name in VOICES}, 0)
    assert accuracy([nothing]) == {"value": None, "low": None, "high": None, "n": 0, "unit": "share of unseen lines"}
