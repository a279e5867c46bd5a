"""The shop of the gold world `bazaar`: items with readable texts, and lines of copy whose words have effects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.simulators.bazaar_parameters import BazaarParameters, Lexicon

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BazaarItems:
    """The items, n of them, with what only the world knows of them.

    Attributes:
        table: The items table of a log: item_id, title, description, category, price, stock, provider, popularity
            (units that the shop's stores sold last month), bid (currency per click, 0 where not advertised).
        category: Number of the category, shape (n,).
        quality: Latent quality in 0..1, shape (n,).
        reliability: Reliability of the provider in 0..1, shape (n,).
        appeal: What each segment thinks of each item, in logits, shape (segments, n).
        launched: False for items that come after the logs, shape (n,).
        noun: Number of the kind among those of its category, shape (n,).
        style: Number of the style, shape (n,).
    """

    table: pd.DataFrame
    category: npt.NDArray[np.int64]
    quality: Floats
    reliability: Floats
    appeal: Floats
    launched: Bools
    noun: npt.NDArray[np.int64]
    style: npt.NDArray[np.int64]


def make_items(p: BazaarParameters) -> BazaarItems:
    """Draw the items from the seed of the parameters; the same parameters, the same items."""
    shop, n = p.shop, p.shop.items
    generator = np.random.default_rng(p.seed)
    category = generator.permutation(np.arange(n) % len(p.categories))
    noun = generator.integers(2**31, size=n) % np.array([len(c.nouns) for c in p.categories])[category]
    style = generator.integers(len(p.styles), size=n)
    quality = generator.beta(2.0, 2.0, size=n)
    provider = generator.integers(len(p.providers), size=n)
    relative = (
        shop.price_quality * (quality - 0.5)
        + np.array([s.premium for s in p.styles])[style]
        + shop.price_spread * generator.standard_normal(n)
    )
    price = np.round(np.array([c.price for c in p.categories])[category] * np.exp(relative), 2).clip(min=0.01)
    own = shop.idiosyncratic * generator.standard_normal(n)
    appeal = np.stack(
        [
            np.array(s.category_taste)[category]
            + np.array(s.style_taste)[style]
            + s.quality * (quality - 0.5)
            - s.price * relative
            + own
            for s in p.segments
        ]
    )
    share = np.array([s.share for s in p.segments])
    liking = share @ appeal / share.sum()
    units = np.exp(4.0 + shop.popularity_slope * liking + shop.popularity_noise * generator.standard_normal(n))
    stock = np.where(generator.random(n) < shop.out_of_stock, 0, 1 + generator.poisson(40, n))
    advertised = generator.random(n) < shop.advertised
    bid = np.where(advertised, shop.bid_median * np.exp(0.5 * generator.standard_normal(n)), 0.0)
    launched = generator.random(n) >= shop.new_share
    words = generator.integers(2**31, size=(n, 3))
    level = np.minimum((quality * len(p.qualities)).astype(int), len(p.qualities) - 1)
    titles, descriptions = [], []
    for i in range(n):
        looks, make = p.styles[style[i]], p.qualities[level[i]]
        titles.append(f"{_pick(looks.titles, words[i, 0])} {p.categories[category[i]].nouns[noun[i]]}")
        descriptions.append(f"{_pick(looks.texts, words[i, 1])} {_pick(make, words[i, 2])}")
    table = pd.DataFrame(
        {
            "item_id": [f"i{i:04d}" for i in range(n)],
            "title": titles,
            "description": descriptions,
            "category": [p.categories[c].name for c in category],
            "price": price,
            "stock": stock.astype(np.int64),
            "provider": [p.providers[k].name for k in provider],
            "popularity": np.round(units).clip(min=1.0),
            "bid": np.round(bid, 3),
        }
    )
    reliability = np.array([entry.reliability for entry in p.providers])[provider]
    return BazaarItems(table, category, quality, reliability, appeal, launched, noun, style)


@dataclass(frozen=True, eq=False)
class CopyBank:
    """The bank of copy lines, n of them.

    Attributes:
        texts: What stands there.
        cues: Which cues each says, shape (n, cues).
        logged: True for lines that may occur in logs, shape (n,).
        spam: True for shouting clickbait, shape (n,).
        claims_offer: True for lines that promise a discount, shape (n,).
    """

    texts: tuple[str, ...]
    cues: Bools
    logged: Bools
    spam: Bools
    claims_offer: Bools


def make_bank(lexicon: Lexicon) -> CopyBank:
    """Put every form into every frame: first the lines that occur in logs, then those that do not."""
    halves = [
        list(dict.fromkeys(form for cue in lexicon.cues for form in getattr(cue, half)))
        for half in ("logged", "unseen")
    ]
    texts = [frame.replace("{form}", form) for forms in halves for form in forms for frame in lexicon.frames]
    cues = read_cues(lexicon, texts)
    logged = np.arange(len(texts)) < len(halves[0]) * len(lexicon.frames)
    spam = cues @ np.array([cue.spam for cue in lexicon.cues], bool)
    claims = cues @ np.array([cue.claims_offer for cue in lexicon.cues], bool)
    return CopyBank(tuple(texts), cues, logged, spam, claims)


def read_cues(lexicon: Lexicon, texts: Sequence[str]) -> Bools:
    """Return which cues each text says, shape (texts, cues): a form stands in it as words, whatever the case."""
    patterns = [
        re.compile("|".join(rf"(?<!\w){re.escape(form.lower())}(?!\w)" for form in (*cue.logged, *cue.unseen)) or "$^")
        for cue in lexicon.cues
    ]
    found = [[bool(pattern.search(text.lower())) for pattern in patterns] for text in texts]
    return np.array(found, bool).reshape(len(texts), len(patterns))


def _pick(words: tuple[str, ...], number: int) -> str:
    return words[number % len(words)]
