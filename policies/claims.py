"""Numbers in a line of copy, held against the catalogue and the offer: percentages, amounts of money, anything else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from hawker.policies.briefs import Brief, visible

_NUMBER = r"\d{1,12}(?:[.,]\d{1,12}){0,4}"
_SYMBOL = "[$\u20ac\u00a3\u00a5\u20b9]"
_UNIT = r"(?:usd|eur|gbp|chf|jpy|inr|dollars?|euros?|pounds?|bucks?|cents?)\b"
_PERCENT = re.compile(rf"({_NUMBER})\s{{0,3}}(?:[%\u066a]|per\s?cent\b|pct\b)")
_AMOUNT = re.compile(rf"(?:{_SYMBOL}|\b{_UNIT})\s{{0,3}}({_NUMBER})|({_NUMBER})\s{{0,3}}(?:{_SYMBOL}|{_UNIT})")
_ANY = re.compile(_NUMBER)

_OFF = re.compile(r"\s*(?:off|less|discount|cheaper|reduction|reduced|saved|savings?)\b")
_SAVE = re.compile(r"\b(?:sav(?:e|es|ing|ings)|discount|off|reduced by|cut by)\b[^\d.!?]{0,16}$")

_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_WORDS = {
    **{word: i + 1 for i, word in enumerate(_ONES)},
    **dict(
        zip(
            ["ten", "fifteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred"],
            (10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100),
            strict=True,
        )
    ),
}
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_SPELT = re.compile(rf"\b(?:({_TENS})[\s-]({'|'.join(_ONES)})|({'|'.join(_WORDS)}))(?=\s?(?:%|per\s?cent\b|pct\b))")
_FRACTION = re.compile(r"\b(half|third|quarter|fifth)\s(?:off|price)\b")
_SHARE = {"half": 50, "third": 33, "quarter": 25, "fifth": 20}


def folded(text: str) -> str:
    """Return the text as rules read it: lower case, without accents, joiners and curly apostrophes."""
    text = unicodedata.normalize("NFKD", visible(text).replace("\u2019", "'"))
    text = "".join(c for c in text.casefold() if unicodedata.category(c) not in {"Mn", "Cf"})
    return " ".join(text.split())


def wrong_numbers(line: str, brief: Brief) -> Iterator[tuple[str, str]]:
    """Yield (rule, reason) for each number of a line that neither the catalogue text nor the offer holds.

    Rules: "discount", a percentage or sum that is said to be saved and is not the offer's; "price", an amount of money
    that is not the item's price with or without the discount; "number", any other. Digits of every script count;
    numbers in words count only before "percent".
    """
    text = _spelt_out(folded(line))
    known = _known(brief)
    taken: list[tuple[int, int]] = []
    for match in _PERCENT.finditer(text):
        taken.append(match.span())
        value, claimed = _value(match[1]), _claims(text, match)
        if not _offered(value, brief) and (claimed or (value, "%") not in known):
            yield (
                "discount" if claimed or brief.discount else "number",
                f"{_shown(value)}% is not the offer's; {_offer(brief)}",
            )
    for match in _AMOUNT.finditer(text):
        taken.append(match.span())
        value = _value(match[1] or match[2])
        if _claims(text, match):
            if not _same(value, _saved(brief)):
                yield "discount", f"{_shown(value)} saved is not the offer's; {_offer(brief)}"
        elif not any(_same(value, price) for price in _prices(brief)) and (value, "") not in known:
            yield "price", f"{_shown(value)} is not the price; {_price(brief)}"
    for match in _ANY.finditer(text):
        if any(start <= match.start() < end for start, end in taken):
            continue
        value = _value(match[0])
        if _claims(text, match):
            if not _same(value, _saved(brief)):
                yield "discount", f"{_shown(value)} saved is not the offer's; {_offer(brief)}"
        elif (value, "") not in known and not any(_same(value, price) for price in _prices(brief)):
            yield "number", f"{match[0][:20]} is not in the catalogue"


def _spelt_out(text: str) -> str:
    """Write fractions and numbers before "percent" as digits."""
    text = _SPELT.sub(lambda m: str(_WORDS[m[1]] + _WORDS[m[2]] if m[1] else _WORDS[m[3]]), text)
    return _FRACTION.sub(lambda m: f"{_SHARE[m[1]]}% off", text)


@lru_cache(maxsize=4096)
def _known(brief: Brief) -> frozenset[tuple[float, str]]:
    """Return the numbers of the item's catalogue text, those that are percentages with "%" too."""
    text = _spelt_out(folded(" / ".join((brief.title, brief.category, brief.description))))
    found = {(_value(match[0]), "") for match in _ANY.finditer(text)}
    return frozenset(found | {(_value(match[1]), "%") for match in _PERCENT.finditer(text)})


def _value(digits: str) -> float:
    """Return a written number: one or two digits after the last separator are decimals, other separators thousands."""
    head, separator, tail = digits.replace(",", ".").rpartition(".")
    if separator and len(tail) <= 2:
        return float(f"{head.replace('.', '')}.{tail}")
    return float(f"{head}{tail}".replace(".", ""))


def _claims(text: str, match: re.Match[str]) -> bool:
    """Say whether the number is said to be saved."""
    return bool(_OFF.match(text, match.end()) or _SAVE.search(text[max(match.start() - 32, 0) : match.start()]))


def _offered(percent: float, brief: Brief) -> bool:
    share = 100 * brief.discount
    return brief.discount > 0 and share - 1 < percent <= share + 1e-4


def _saved(brief: Brief) -> float | None:
    return brief.price * brief.discount if brief.price is not None and brief.discount else None


def _prices(brief: Brief) -> tuple[float, ...]:
    return () if brief.price is None else (brief.price, brief.price * (1 - brief.discount))


def _same(value: float, other: float | None) -> bool:
    return other is not None and abs(value - other) < 0.0101  # rounded to a cent either way


def _shown(value: float) -> str:
    return f"{value:.12g}"


def _offer(brief: Brief) -> str:
    return f"the offer is {100 * brief.discount:.4g}%" if brief.discount else "there is no offer"


def _price(brief: Brief) -> str:
    return "no price is known" if brief.price is None else f"the price is {brief.price:.2f}"
