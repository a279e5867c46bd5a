import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawker.policies.briefs import Brief
from hawker.policies.claims import folded, wrong_numbers

PLAIN = Brief("promotion", "Teapot 2000", "Holds 1.5 litres, 100% steel.", price=35.0)
OFFER = Brief("promotion", "Teapot 2000", "Holds 1.5 litres, 100% steel.", price=35.0, discount=0.2)


def rules(line: str, brief: Brief) -> list[str]:
    return [rule for rule, _ in wrong_numbers(line, brief)]


@pytest.mark.parametrize(
    ("line", "brief"),
    [
        ("20% off", OFFER),
        ("save 20 percent today", OFFER),
        ("twenty percent off", OFFER),
        ("a discount of 20 %", OFFER),
        ("\uff12\uff10\uff05 off", OFFER),  # full width
        ("\u0662\u0660\u066a off", OFFER),  # Arabic-Indic
        ("now $28", OFFER),
        ("28.00 euros", OFFER),
        ("was 35, now 28", OFFER),
        ("save 7 dollars", OFFER),
        ("\u20ac7.00 off", OFFER),
        ("35,00 \u20ac", PLAIN),
        ("100% steel", PLAIN),
        ("the 2000 holds 1.5 litres", PLAIN),
        ("the 2,000", PLAIN),
        ("no numbers", Brief("title")),
        ("a third off", Brief("title", discount=1 / 3)),
        ("33% off", Brief("title", discount=1 / 3)),
        ("half price", Brief("title", discount=0.5)),
        ("now $1,299.00", Brief("title", price=1299.0)),
        ("now 1.299,00 \u20ac", Brief("title", price=1299.0)),
    ],
)
def test_right_numbers_pass(line: str, brief: Brief):
    assert rules(line, brief) == []


@pytest.mark.parametrize(
    ("line", "brief", "rule"),
    [
        ("25% off", OFFER, "discount"),
        ("10% off", OFFER, "discount"),
        ("20.5% off", OFFER, "discount"),
        ("100% off", PLAIN, "discount"),  # the 100% of the catalogue is steel
        ("twenty-five percent off", OFFER, "discount"),
        ("half price", OFFER, "discount"),
        ("a quarter off", PLAIN, "discount"),
        ("34% off", Brief("title", discount=1 / 3), "discount"),
        ("save $35", OFFER, "discount"),
        ("8 euros off", OFFER, "discount"),
        ("save 9 today", OFFER, "discount"),
        ("2\u200d5% off", OFFER, "discount"),  # a joiner between the digits
        ("$30", OFFER, "price"),
        ("only 34.95 euros", PLAIN, "price"),
        ("$5", Brief("title"), "price"),
        ("since 1921", PLAIN, "number"),
        ("loved by 4,000 shoppers", PLAIN, "number"),
        ("95% of buyers agree", PLAIN, "number"),
        ("fr33 tea", PLAIN, "number"),
        ("\u00bd a litre", PLAIN, "number"),
    ],
)
def test_wrong_numbers_do_not(line: str, brief: Brief, rule: str):
    assert rule in rules(line, brief)


@given(st.text(max_size=200))
def test_every_number_of_the_catalogue_may_be_said(title: str):
    found = [rule for rule, _ in wrong_numbers(title, Brief("title", title=title))]
    assert set(found) <= {"discount"}  # what is said to be saved is the offer's to say


@given(st.integers(1, 99), st.integers(1, 99))
def test_percentage_off_is_the_offers_or_wrong(said: int, offered: int):
    assert bool(rules(f"{said}% off", Brief("title", discount=offered / 100))) == (said != offered)


@given(st.text(max_size=100))
def test_folding_twice_changes_nothing(text: str):
    assert folded(folded(text)) == folded(text)


@pytest.mark.parametrize(
    "line", ["1" * 5000, "1." * 5000, "$" * 5000, "9" * 400 + "%", "save " * 2000, "1,1" * 3000 + "% off"]
)
def test_long_lines_end(line: str):
    assert isinstance(rules(line, OFFER), list)
