"""Guardrails: which lines of copy may not be shown, and why; what a model said, tidied; a line to fall back on.

The rules' words and numbers stand in ``data/guardrails.yaml``. A line is held against its brief: what the catalogue
says of the item, what is offered, whom it is written for. What the rules cannot see: claims without any of the listed
words ("the loveliest pot there is"), numbers in words except before "percent", names of people, foreign lines without
a function word of their language, and whether a line is any good.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from hawker.policies.briefs import DATA, SURFACES, TEMPLATE, Brief, visible
from hawker.policies.claims import folded, wrong_numbers
from hawker.shop.config import load_config
from hawker.shop.errors import InputError

Phrases = tuple[str, ...]


class Hit(NamedTuple):
    """A rule that a line breaks.

    Attributes:
        rule: Its name, one of ``RULES``.
        reason: What in the line breaks it, for people.
    """

    rule: str
    reason: str


@dataclass(frozen=True)
class Other:
    """Another language: its name and its function words."""

    name: str
    words: Phrases


@dataclass(frozen=True)
class Language:
    """Scripts that a line may be written in, and function words of the shop's language and of others."""

    scripts: Phrases
    own: Phrases
    others: tuple[Other, ...]


@dataclass(frozen=True)
class Fallback:
    """Lines to fall back on at a surface, the last one without the item's name."""

    surface: str
    lines: Phrases


@dataclass(frozen=True)
class Rules:
    """What ``data/guardrails.yaml`` holds; it says what each is."""

    version: int
    most_exclamations: int
    longest_acronym: int
    saving: Phrases
    not_saving: Phrases
    free: Phrases
    not_free: Phrases
    backed: Phrases
    medical: Phrases
    banned: Phrases
    records: Phrases
    private: Phrases
    leaks: Phrases
    injections: Phrases
    language: Language
    required: Phrases
    avoided: Phrases
    fallback: tuple[Fallback, ...]


RULES = (
    *("empty", "length", "shouting", "repeats", "markup", "link", "personal", "discount", "price", "number", "free"),
    *("claim", "medical", "banned", "language", "echo", "leak", "injected", "voice"),
)

MOST_READ = 1000
"""Characters of a line that are read: more than fit any surface, so that no line takes long."""

_WORD = re.compile(r"[^\W_]+")
_EMAIL = re.compile(r"[\w.+-]{1,64}\s?(?:@|\(at\)|\[at\])\s?[\w-]{1,64}(?:\s?(?:\.|\(dot\)|\[dot\])\s?[\w-]{2,64})+")
_DIGITS = re.compile(r"\+?\d(?:[\s().\-/]{0,3}\d){6,}")
_LINK = re.compile(
    r"https?:|www\.|\b[\w-]+(?:\.|\s?\(?dot\)?\s)(?:com|net|org|io|co|biz|info|shop|store|app|ly|me|ru|cn|de|fr|uk|xyz)\b"
)
_MARKUP = re.compile(r"[<>{}\[\]\\`\ufffd]|\*\*|__|##|\|\w+\||&\w{2,8};|&#")
_LABEL = re.compile(
    r"(?:(?:sure|certainly|of course|okay)[,!.:]|here(?:'s| is| are)\b[^:\n]{0,80}:"
    r"|(?:[#*_\s]*)(?:headline|title|product title|description|product description|promotion|promotion line|promo"
    r"|win-?back(?: message)?|copy|ad copy|line|output|answer|response|text|slogan|tagline|assistant)[*_\s]*:)",
    re.IGNORECASE,
)
_AGAIN = re.compile(r"(?<!\S)(\S+(?: \S+){1,11}) \1(?!\S)")
_FIELD = re.compile(r"\{(title|category|percent)\}")
_BULLET = re.compile(r"(?:[-*\u2022\u2013\u2014#>]+|\d{1,2}[.)])\s+")
_OPENING = tuple('"\u201c\u201d\u201e\u00ab\u00bb')
_CODED = re.compile(r"[A-Za-z0-9+/]{8,4000}")
_QUOTES = "\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb*_"


def words(text: str) -> list[str]:
    """Return the words of a text, folded."""
    return _WORD.findall(folded(text))


@cache
def _pattern(phrases: Phrases) -> re.Pattern[str] | None:
    """Compile phrases into one pattern over folded text; None where there are none."""
    parts = []
    for phrase in sorted(phrases, key=len, reverse=True):
        body = r"[\W_]{1,3}".join(
            re.escape(word).replace(r"\*", r"\w*") for word in re.split(r"[\s-]+", folded(phrase))
        )
        parts.append(body.removesuffix(":") + (r"\s?:" if phrase.endswith(":") else r"(?!\w)"))
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})") if parts else None


def _find(phrases: Phrases, text: str) -> re.Match[str] | None:
    pattern = _pattern(phrases)
    return pattern.search(text) if pattern else None


def _all(phrases: Phrases, text: str) -> Iterator[re.Match[str]]:
    pattern = _pattern(phrases)
    return pattern.finditer(text) if pattern else iter(())


def _without(phrases: Phrases, text: str) -> str:
    pattern = _pattern(phrases)
    return pattern.sub(" ", text) if pattern else text


class _Item(NamedTuple):
    """An item's catalogue text.

    Attributes:
        clean: The words that are about the item, in order.
        told: They, and words that a line may say by itself.
        every: All its words.
        orders: The words of a text that gives orders to the writer.
        private: Those of a text that is somebody's data.
    """

    clean: str
    told: frozenset[str]
    every: frozenset[str]
    orders: frozenset[str]
    private: frozenset[str]


class Guardrails:
    """The rules, read once.

    Attributes:
        rules: What the file says.
        digest: SHA-256 of the file and of the prompts' template, which echoes are looked for in.
        version: Of the file.
    """

    def __init__(self, rules: Rules, digest: str, where: object = "guardrails") -> None:
        """Args: ``rules``, their digest, and the file for messages; refuses fallbacks that break a rule."""
        self.rules, self.digest, self.version = rules, digest, rules.version
        self._fallback = {entry.surface: entry.lines for entry in rules.fallback}
        last = [lines[-1] for lines in self._fallback.values() if lines]
        self._harmless = frozenset(word for line in last for word in words(line)) | frozenset(rules.language.own)
        own = [TEMPLATE["system"], TEMPLATE["ask"], TEMPLATE["no_offer"], *(s.instruction for s in SURFACES.values())]
        grams = {gram for text in own for gram in _grams(words(text), 4)}
        told = (gram for gram in _grams(words(TEMPLATE["system"]), 3))
        grams.update(gram for gram in told if len(set(gram.split()) - self._harmless) >= 2)
        self._instructions = frozenset(grams)
        self._catalogue = lru_cache(maxsize=4096)(self._read_catalogue)
        for surface in SURFACES:
            lines = self._fallback.get(surface, ())
            hits = self.hits(lines[-1], Brief(surface)) if lines else [Hit("empty", "there is none")]
            if hits or "{" in lines[-1]:
                raise InputError(
                    f"the last line to fall back on breaks the rule {hits[0].rule}: {hits[0].reason}"
                    if hits
                    else "the last line to fall back on speaks of the item",
                    where=f"{where}: fallback of {surface}",
                    got=lines[-1] if lines else None,
                    expected="a line that no rule refuses, whatever the item",
                )

    @classmethod
    def load(cls, path: Path | None = None) -> Guardrails:
        """Read the rules from a YAML file, by default from the one that comes with Hawker.

        Raises:
            InputError: The file is missing, has another form, or its last fallback of a surface breaks a rule.
        """
        path = DATA / "guardrails.yaml" if path is None else path
        rules = load_config(Rules, path)
        digest = hashlib.sha256(path.read_bytes() + (DATA / "prompts.yaml").read_bytes()).hexdigest()
        return cls(rules, digest, path)

    def hits(self, line: str, brief: Brief) -> list[Hit]:
        """Return the rules that a line breaks, at most one hit a rule, in the order of ``RULES``."""
        found: dict[str, str] = {}
        for rule, reason in self._look(line, brief):
            found.setdefault(rule, reason)
        return [Hit(rule, found[rule]) for rule in RULES if rule in found]

    def tidy(self, text: str) -> str:
        """Return what a model said as one line: the first that is left once labels, bullets and quotes are off.

        >>> Guardrails.load().tidy('Sure, here is a headline:\\n"A pot for slow mornings"')
        'A pot for slow mornings'
        """
        lines = (_bare(visible(line)[:MOST_READ].rstrip()) for line in text.splitlines())
        return next((line for line in lines if any(c.isalnum() for c in line)), "")

    def fallback(self, brief: Brief) -> str:
        """Return a line that breaks no rule, whatever the brief: with the item's title where that is harmless."""
        known = {
            "title": visible(brief.title),
            "category": visible(brief.category),
            "percent": str(brief.percent or ""),
        }
        for template in self._fallback[brief.surface]:
            if all(known[name] for name in _FIELD.findall(template)):
                line = _FIELD.sub(lambda match: known[match[1]], template)
                if not self.hits(line, brief):
                    return line
        return self._fallback[brief.surface][-1]

    def _look(self, line: str, brief: Brief) -> Iterator[tuple[str, str]]:
        if len(line) > (longest := SURFACES[brief.surface].longest):
            yield "length", f"{len(line)} characters, where {longest} fit"
            line = line[:MOST_READ].rstrip()
        text, spoken, rules = folded(line), words(line), self.rules
        clean, told, every, orders, private = self._catalogue(brief.title, brief.description, brief.category)
        if not any(c.isalpha() for c in line):
            yield "empty", "no letter in it"
        yield from self._shouting(line, brief)
        if again := _repeated(spoken):
            yield "repeats", f"'{again[:60]}' twice"
        if line != visible(line):
            yield "markup", "a control character or white space that a line does not need"
        if match := _MARKUP.search(unicodedata.normalize("NFKC", line)):
            yield "markup", f"'{match[0]}'"
        if match := _LINK.search(text):
            yield "link", f"'{match[0]}'"
        yield from self._personal(text)
        yield from wrong_numbers(line, brief)
        said = _find(rules.saving, _without(rules.not_saving, text))
        if said and not brief.discount:
            yield "discount", f"'{said[0]}', where there is no offer"
        if brief.discount < 1:
            for said in _all(rules.free, _without(rules.not_free, _without(rules.backed, text))):
                after = _WORD.search(said.string, said.end())  # "free delivery" where the catalogue promises just that
                phrase = " ".join(words(said[0] + (f" {after[0]}" if after else " /")))
                if not after or f" {phrase} " not in f" {clean} ":
                    yield "free", f"'{said[0]}', and the catalogue does not say so"
        for rule, phrases, why in (
            ("claim", rules.backed, "is"),
            ("leak", rules.leaks, "speaks of the prompt, and is"),
        ):
            for said in _all(phrases, text):
                if " ".join(words(said[0])) not in clean:
                    yield rule, f"'{said[0]}' {why} not in the catalogue"
        for rule, phrases in (("medical", rules.medical), ("banned", rules.banned)):
            if said := _find(phrases, text):
                yield rule, f"'{said[0]}'"
        yield from self._language(line, spoken, brief, every)
        yield from self._echo(spoken, brief, clean, told)
        if said := _find(rules.injections, text):
            yield "injected", f"'{said[0]}' gives orders"
        for kind, rule, what in ((orders, "injected", "gives orders"), (private, "personal", "is somebody's data")):
            if back := next((word for word in spoken if word in kind and word not in told), None):
                yield rule, f"'{back[:40]}' comes from a catalogue text that {what}"
        if said := _find(rules.avoided, text):
            yield "voice", f"'{said[0]}' is to be avoided"
        if rules.required and not _find(rules.required, text):
            yield "voice", "none of the words that the brand requires"

    def _read_catalogue(self, *texts: str) -> _Item:
        clean: list[str] = []
        bad: tuple[set[str], set[str]] = (set(), set())
        for text in texts:
            flat, start = folded(text), len(folded(text))
            for phrases, into in zip((self.rules.injections, self.rules.private), bad, strict=True):
                if match := _find(phrases, flat) or (_EMAIL.search(flat) if into is bad[1] else None):
                    begin = max((flat.rfind(stop, 0, match.start()) for stop in ".!?;|"), default=-1) + 1
                    into |= set(_WORD.findall(flat[begin:]))
                    start = min(start, begin)
            bad[0].update(word for coded in _CODED.findall(text) for word in words(_decoded(coded)))
            clean += [*_WORD.findall(flat[:start]), "/"]
        every = frozenset(words(" ".join(texts)))
        return _Item(" ".join(clean), self._harmless.union(clean), every, frozenset(bad[0]), frozenset(bad[1]))

    def _shouting(self, line: str, brief: Brief) -> Iterator[tuple[str, str]]:
        flat = unicodedata.normalize("NFKC", line)
        if match := re.search(r"[!?\u00a1\u203c\u2049]{2,}|([^\W\d_])\1{3,}", flat):
            yield "shouting", f"'{match[0][:20]}'"
        if flat.count("!") > self.rules.most_exclamations:
            yield "shouting", f"{flat.count('!')} exclamation marks"
        capitals = [word for word in _WORD.findall(flat) if word.isupper() and sum(map(str.isalpha, word)) > 2]
        if capitals:
            known = set(_WORD.findall(unicodedata.normalize("NFKC", f"{brief.title} {brief.description}")))
            for word in capitals:
                if len(word) > self.rules.longest_acronym or word not in known:
                    yield "shouting", f"'{word[:40]}' in capitals"

    def _personal(self, text: str) -> Iterator[tuple[str, str]]:
        if match := _EMAIL.search(text):
            yield "personal", f"an e-mail address, '{match[0][:40]}'"
        if match := _DIGITS.search(text):
            yield "personal", f"a number as of a telephone or a card, '{match[0][:40]}'"
        records = "|".join(map(re.escape, self.rules.records))
        if records and (match := re.search(rf"\b(?:{records})s?[\s:#-]*(?:no|nr|number|id)?[\s.:#-]*\d", text)):
            yield "personal", f"'{match[0]}' names a record"

    def _language(self, line: str, spoken: list[str], brief: Brief, every: frozenset[str]) -> Iterator[tuple[str, str]]:
        language = self.rules.language
        if not line.isascii():
            known = set(_WORD.findall(visible(f"{brief.title} {brief.description} {brief.category}")))
            for word in _WORD.findall(line):
                scripts = {_script(c) for c in word if c.isalpha()}
                if scripts - set(language.scripts) and (word not in known or len(scripts) > 1):
                    yield "language", f"'{word[:40]}' is written in {', '.join(sorted(scripts)).lower()}"
        heard = [word for word in spoken if word not in every]
        own = sum(word in language.own for word in spoken)
        for other in language.others:
            theirs = sum(word in other.words for word in heard)
            if theirs >= 2 and theirs > own:
                yield "language", f"{theirs} function words of {other.name}, {own} of the shop's language"

    def _echo(self, spoken: list[str], brief: Brief, clean: str, told: frozenset[str]) -> Iterator[tuple[str, str]]:
        for gram in (*_grams(spoken, 4), *_grams(spoken, 3)):
            if gram in self._instructions and gram not in clean:
                yield "echo", f"'{gram}' is what the writer was told"
        label = words(brief.audience)
        whole = " ".join(label)
        grams = [gram for gram in _grams(label, 2) if not set(gram.split()) <= told and gram not in clean]
        if whole and not set(label) <= told and (len(label) > 1 or len(whole) > 4):
            grams.append(whole)
        line = f" {' '.join(spoken)} "
        for gram in grams:
            if f" {gram} " in line:
                yield "echo", f"'{gram[:60]}' is how the shop calls its readers"


def _grams(tokens: list[str], n: int) -> list[str]:
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _repeated(spoken: list[str]) -> str:
    """Return words, two at least, that follow on themselves, or the last three where they stand before; "" if none.

    Three words that open two clauses ("a pot for you, a pot for tea") are a figure of speech.
    """
    if match := _AGAIN.search(" ".join(spoken)):
        return match[1]
    last = " ".join(spoken[-3:])
    return last if len(spoken) > 3 and last in _grams(spoken[:-1], 3) else ""


def _bare(line: str) -> str:
    """Take labels, bullets and quotes off, until nothing more comes off."""
    before = ""
    while line != before:
        before = line
        for prefix in (_LABEL, _BULLET):
            match = prefix.match(line)
            line = line[match.end() :].strip() if match else line
        while len(line) > 1 and line[0] in _QUOTES and line[-1] in _QUOTES:
            line = line[1:-1].strip()
        if line[:1] in _OPENING and not any(quote in line[1:] for quote in _OPENING):  # never closed
            line = line[1:].strip()
    return line


def _decoded(text: str) -> str:
    """Return what base64 stands for, "" where that is no ASCII text."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4)).decode("ascii")
    except ValueError:
        return ""


@cache
def _script(letter: str) -> str:
    return unicodedata.name(unicodedata.normalize("NFKD", letter)[0], "UNKNOWN").split()[0]
