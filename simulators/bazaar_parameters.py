"""The parameters of the gold world `bazaar`: frozen dataclasses, read from the YAML files in ``data``.

A variant is a file with the keys that it changes: sections merge key by key into ``bazaar.yaml`` and ``lexicon.yaml``,
lists are replaced whole. Any file of that form loads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from hawker.shop.config import from_dict, to_dict
from hawker.shop.errors import InputError, did_you_mean

Rows = tuple[tuple[float, ...], ...]

GRADES = 4
"""Grades of relevance, from 0, nothing of what is wanted, to 3."""


@dataclass(frozen=True)
class ShopParameters:
    """The catalogue: how many items, how they are priced, what a page holds."""

    items: int
    new_share: float
    out_of_stock: float
    advertised: float
    bid_median: float
    idiosyncratic: float
    price_spread: float
    price_quality: float
    popularity_slope: float
    popularity_noise: float
    size: int
    candidates: int


@dataclass(frozen=True)
class Category:
    """A category: its median price in currency and the nouns of its items."""

    name: str
    price: float
    nouns: tuple[str, ...]


@dataclass(frozen=True)
class Style:
    """A style: what it adds to the log price, and the words it shows by in titles and descriptions."""

    name: str
    premium: float
    titles: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Provider:
    """Who delivers: reliability in 0..1 is felt after a purchase."""

    name: str
    reliability: float


@dataclass(frozen=True)
class Segment:
    """A taste segment; tastes by category and style, effects of copy by cue, all in logits."""

    name: str
    share: float
    category_taste: tuple[float, ...]
    style_taste: tuple[float, ...]
    quality: float
    price: float
    offer: float
    ad_aversion: float
    ad_annoyance: float
    cue_click: tuple[float, ...]
    cue_convert: tuple[float, ...]


@dataclass(frozen=True)
class VisitClass:
    """How often a shopper comes: ``base`` is the logit (log rate under Weibull) of coming back on a day."""

    name: str
    share: float
    base: float


@dataclass(frozen=True)
class Feature:
    """An observable feature; ``weights`` has a row per segment or visit class and a column per value."""

    name: str
    values: tuple[str, ...]
    by: Literal["segment", "visit_class"]
    weights: Rows


@dataclass(frozen=True)
class Look:
    """Which positions are looked at: independently by position, or one after another (cascade)."""

    law: Literal["position", "cascade"]
    positions: tuple[float, ...]
    passed: float
    clicked: float


@dataclass(frozen=True)
class Click:
    """Logits of a click on what is looked at."""

    base: float
    fatigue: float
    same_category: float
    ad: float
    offer: tuple[float, ...]


@dataclass(frozen=True)
class Conversion:
    """Logits of a purchase after a click."""

    base: float
    match: float
    price: float
    offer: tuple[float, ...]


@dataclass(frozen=True)
class FatigueParameters:
    """The share of a category's fatigue that is left a page and a visit later."""

    page: float
    visit: float


@dataclass(frozen=True)
class Satisfaction:
    """What moves satisfaction, and the share of it that is left a day later."""

    limit: float
    page: float
    click: float
    expected: float
    purchase: float
    spam: float
    lie: float
    ad: float
    dull: float
    relax: float


@dataclass(frozen=True)
class Leave:
    """Logits of leaving after a page."""

    base: float
    satisfaction: float
    page: float
    click: float


@dataclass(frozen=True)
class ComeBack:
    """The hazard of the days until the next visit, and how often the segment is drawn anew in between."""

    law: Literal["daily", "weibull"]
    satisfaction: float
    shape: float
    max_days: int
    drift: float


@dataclass(frozen=True)
class Synonyms:
    """Other words for a category, a kind of item or a style, which titles do not have."""

    of: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class SearchBox:
    """Visits that begin with a query; the comments of ``data/search.yaml`` give units and meaning."""

    share: float
    found: int
    taste: float
    kind: float
    style: float
    synonym: float
    click: tuple[float, ...]
    conversion: tuple[float, ...]
    synonyms: tuple[Synonyms, ...]


@dataclass(frozen=True)
class Cue:
    """What a line of copy can say, and the surface forms that say it: those that occur in logs, those that do not."""

    name: str
    logged: tuple[str, ...]
    unseen: tuple[str, ...]
    spam: bool = False
    claims_offer: bool = False


@dataclass(frozen=True)
class Lexicon:
    """The cues and the neutral frames that a form is put into."""

    frames: tuple[str, ...]
    cues: tuple[Cue, ...]


@dataclass(frozen=True)
class BazaarParameters:
    """Everything that makes a bazaar; the comments of ``data/bazaar.yaml`` give units and meaning."""

    name: str
    seed: int
    shop: ShopParameters
    categories: tuple[Category, ...]
    styles: tuple[Style, ...]
    qualities: tuple[tuple[str, ...], ...]
    providers: tuple[Provider, ...]
    segments: tuple[Segment, ...]
    visit_classes: tuple[VisitClass, ...]
    features: tuple[Feature, ...]
    look: Look
    click: Click
    conversion: Conversion
    discounts: tuple[float, ...]
    fatigue: FatigueParameters
    satisfaction: Satisfaction
    leave: Leave
    come_back: ComeBack
    lexicon: Lexicon
    search: SearchBox | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the parameters as canonical JSON, 64 hex digits: the same world, the same digest."""
        values = to_dict(self)
        if self.search is None:  # a shop without a search box is what it was before there were any
            del values["search"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_BASE = ("bazaar", "lexicon")
_OF_ALL = "reading"  # how shoppers of every variant read; see `simulators.bazaar_reading`
_DATA = Path(__file__).parent / "data"


def shipped_variants() -> tuple[str, ...]:
    """Return the names of the variants that ship with the package."""
    names = {path.stem for path in _DATA.glob("*.yaml")}
    return tuple(sorted(names - {*_BASE, _OF_ALL}))


def load_bazaar(variant: str | Path | None = None) -> BazaarParameters:
    """Return the bazaar, or a variant of it.

    Args:
        variant: The name of a shipped variant, a file, or None for the bazaar itself.

    Raises:
        InputError: No such file or variant, an unknown key, a value of the wrong type or form.
    """
    values: dict[str, Any] = {}
    for name in _BASE:
        values |= _read((_DATA / f"{name}.yaml").read_text("utf-8"), f"{name}.yaml")
    where: object = "bazaar.yaml"
    if variant is not None and str(variant) not in _BASE[:1]:
        where = f"{variant}.yaml" if str(variant) in shipped_variants() else Path(variant)
        change = _read(_variant_text(variant), where)
        values = _merged(values | {"search": None}, {"name": Path(variant).stem, **change}, where)
    parameters = from_dict(BazaarParameters, values, where)
    _check(parameters, where)
    return parameters


def _variant_text(variant: str | Path) -> str:
    if str(variant) in shipped_variants():
        return (_DATA / f"{variant}.yaml").read_text("utf-8")
    path = Path(variant)
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        remedy = did_you_mean(str(variant), shipped_variants())
        raise InputError("no such variant", where=path, expected="a file or a shipped variant", remedy=remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the file cannot be read", where=path, got=str(error)) from None


def _read(text: str, where: object) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{where} line {mark.line + 1}" if mark else where
        raise InputError("not a YAML file", where=line, got=str(error).splitlines()[0]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError("not a mapping of parameters", where=where, got=values, expected="'key: value' lines")
    return values


def _merged(base: dict[str, Any], change: dict[Any, Any], where: object) -> dict[str, Any]:
    """Return ``base`` with the changes: mappings merge, everything else is replaced."""
    whole = dict(base)
    for key, value in change.items():
        if key not in base:
            raise InputError(f"unknown key {key!r}", where=where, remedy=did_you_mean(str(key), base))
        if isinstance(base[key], dict):
            if not isinstance(value, dict):
                raise InputError("wrong type", where=f"{where}: {key}", got=value, expected="'key: value' lines")
            whole[key] = _merged(base[key], value, f"{where}: {key}")
        else:
            whole[key] = value
    return whole


def _check(p: BazaarParameters, where: object) -> None:
    """Refuse what no shop can be made of.

    Raises:
        InputError: A list has the wrong length, or a number lies outside its range.
    """

    def length(name: str, values: tuple[Any, ...], n: int, per: str) -> None:
        if len(values) != n:
            raise InputError(
                "wrong length", where=f"{where}: {name}", got=len(values), expected=f"{n} values, one for each {per}"
            )

    def within(name: str, values: tuple[float, ...], low: float, high: float) -> None:
        for value in values:
            if not low <= value <= high:
                raise InputError("out of range", where=f"{where}: {name}", got=value, expected=f"{low} to {high}")

    for name in ("categories", "styles", "qualities", "providers", "segments", "visit_classes", "discounts"):
        if not getattr(p, name):
            raise InputError("an empty list", where=f"{where}: {name}", expected="at least one entry")
    cues = len(p.lexicon.cues)
    for segment in p.segments:
        here = f"segments: {segment.name}"
        length(f"{here}: category_taste", segment.category_taste, len(p.categories), "category")
        length(f"{here}: style_taste", segment.style_taste, len(p.styles), "style")
        length(f"{here}: cue_click", segment.cue_click, cues, "cue")
        length(f"{here}: cue_convert", segment.cue_convert, cues, "cue")
    for name, shares in (
        ("segments", [entry.share for entry in p.segments]),
        ("visit_classes", [entry.share for entry in p.visit_classes]),
    ):
        within(f"{name}: share", tuple(shares), 0.0, math.inf)
        if sum(shares) <= 0:
            raise InputError("no share is positive", where=f"{where}: {name}")
    for feature in p.features:
        groups = p.segments if feature.by == "segment" else p.visit_classes
        length(f"features: {feature.name}: weights", feature.weights, len(groups), feature.by.replace("_", " "))
        for row in feature.weights:
            length(f"features: {feature.name}: weights", row, len(feature.values), "value")
            within(f"features: {feature.name}: weights", row, 0.0, math.inf)
            if sum(row) <= 0:
                raise InputError("no weight is positive", where=f"{where}: features: {feature.name}", got=list(row))
    if p.look.law == "position":
        length("look: positions", p.look.positions, p.shop.size, "slot of a page")
    for name, offers in (("click", p.click.offer), ("conversion", p.conversion.offer)):
        length(f"{name}: offer", offers, len(p.discounts), "discount")
    for name, entry in (("categories", p.categories), ("styles", p.styles)):
        for part in entry:
            words = (part.nouns,) if isinstance(part, Category) else (part.titles, part.texts)
            if not all(words):
                raise InputError("no words", where=f"{where}: {name}: {part.name}")
    if not all(p.qualities):
        raise InputError("no words", where=f"{where}: qualities")
    within("shop: items, size, candidates", (p.shop.items, p.shop.size, p.shop.candidates), 1, 2**15 - 1)
    within("categories: price", tuple(c.price for c in p.categories), 1e-3, 1e9)
    shop, look = p.shop, p.look
    probabilities = {
        "shop": (shop.new_share, shop.out_of_stock, shop.advertised),
        "providers: reliability": tuple(provider.reliability for provider in p.providers),
        "look": (*look.positions, look.passed, look.clicked),
        "discounts": p.discounts,
        "fatigue": (p.fatigue.page, p.fatigue.visit),
        "satisfaction: relax": (p.satisfaction.relax,),
        "come_back: drift": (p.come_back.drift,),
    }
    for name, values in probabilities.items():
        within(name, values, 0.0, 1.0)
    if p.search is not None:
        _check_search(p, p.search, length, within, where)
    within("come_back: shape", (p.come_back.shape,), 1e-3, 100.0)
    within("come_back: max_days", (p.come_back.max_days,), 1, 100_000)


def _check_search(
    p: BazaarParameters,
    search: SearchBox,
    length: Callable[[str, tuple[Any, ...], int, str], None],
    within: Callable[[str, tuple[float, ...], float, float], None],
    where: object,
) -> None:
    """Refuse a search box that nobody can use; ``length`` and ``within`` are those of ``_check``."""
    for name, shares in (("share", search.share), ("kind", search.kind), ("style", search.style)):
        within(f"search: {name}", (shares,), 0.0, 1.0)
    within("search: synonym", (search.synonym,), 0.0, 1.0)
    within("search: found", (search.found,), 0, p.shop.candidates)
    length("search: click", search.click, GRADES, "grade of relevance")
    length("search: conversion", search.conversion, GRADES, "grade of relevance")
    names = {noun for category in p.categories for noun in category.nouns}
    names |= {category.name for category in p.categories} | {style.name for style in p.styles}
    for synonyms in search.synonyms:
        if synonyms.of not in names:
            remedy = did_you_mean(synonyms.of, sorted(names))
            raise InputError("a synonym of nothing", where=f"{where}: search: synonyms", got=synonyms.of, remedy=remedy)
