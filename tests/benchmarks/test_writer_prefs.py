"""Pairs with a hidden rule; how they are learned from stands in ``test_writer``."""

from hawker.benchmarks.writer_prefs import FLIPPED, addresses_reader, synthetic_pairs
from hawker.policies.briefs import Brief, messages

BRIEFS = [Brief("headline", title=title) for title in ("Rustic teapot", "Wool blanket")]


def test_the_rule():
    assert addresses_reader("Made for YOU, again")
    assert addresses_reader("Your teapot")
    assert not addresses_reader("A youthful teapot")


def test_a_fifth_of_the_pairs_is_turned_round():
    pairs = synthetic_pairs(BRIEFS, 1000, 3)
    right = [addresses_reader(pair.chosen) for pair in pairs]
    assert all(addresses_reader(pair.chosen) != addresses_reader(pair.rejected) for pair in pairs)
    assert abs(1 - sum(right) / 1000 - FLIPPED) < 0.04
    assert pairs == synthetic_pairs(BRIEFS, 1000, 3) != synthetic_pairs(BRIEFS, 1000, 4)
    assert pairs[1].prompt == messages(BRIEFS[1])


def test_what_is_judged_by_was_not_learned_from():
    judged = synthetic_pairs(BRIEFS, 50, 1, judging=True)
    assert all(addresses_reader(pair.chosen) for pair in judged)
    learned = {line for pair in synthetic_pairs(BRIEFS, 500, 3) for line in (pair.chosen, pair.rejected)}
    assert not learned & {line for pair in judged for line in (pair.chosen, pair.rejected)}
