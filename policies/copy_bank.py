"""The copy bank: lines that have passed the guardrails, with what they are expected to do, and a choice among them.

Lines stand per audience, item, surface and discount: one that speaks of 20% off may be shown where there is 20% off,
and nowhere else. A line is chosen with probability

    floor / m + (1 - floor) * softmax(bound / temperature),    bound = effect - caution * uncertainty

over the m lines of its key, so that its propensity is known exactly and every line is tried now and then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.policies.briefs import SURFACES, Brief
from hawker.policies.copy_choice import ChoiceConfig as ChoiceConfig  # for those who build a bank
from hawker.policies.guardrails import Guardrails
from hawker.shop.artefacts import read_json, verify_directory, write_directory, write_json
from hawker.shop.config import from_dict, to_dict
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

Scorer = Callable[[Sequence[str], Sequence[str], Sequence[float], Sequence[str]], Floats]
"""Takes item ids, audiences, discounts and n lines; returns what each of M models expects of each, shape (M, n)."""

KIND, FORMAT = "copy bank", 1
KEY = ["audience", "item_id", "surface", "discount"]
COLUMNS = [*KEY, "line", "effect", "uncertainty"]
DECIMALS = 4
"""Of a discount in a key: 0.2 and the 0.2 of a float32 are one offer."""


class Candidate(NamedTuple):
    """A line that was written.

    Attributes:
        item_id: The item.
        brief: What the writer was told; its surface, audience and discount are the line's.
        line: The line, as the model said it.
    """

    item_id: str
    brief: Brief
    line: str


class Chosen(NamedTuple):
    """Lines for n slots.

    Attributes:
        number: Of the line in the bank, ``EMPTY`` where a template is shown, shape (n,).
        propensity: Probability that this line is chosen for the slot, 1 for a template, shape (n,).
        lines: The texts, shape (n,).
    """

    number: Ints
    propensity: Floats
    lines: npt.NDArray[np.object_]


@dataclass(frozen=True)
class Filled:
    """What became of the candidates.

    Attributes:
        written: Lines that came in.
        kept: Lines in the bank.
        repeated: Lines that came in more than once for their key, beyond the first time.
        rejected: Lines that broke a rule.
        unscored: Lines whose expected effect is not a number.
        by_rule: How many lines broke each rule; a line may break several.
    """

    written: int
    kept: int
    repeated: int
    rejected: int
    unscored: int
    by_rule: dict[str, int]


@dataclass(frozen=True, eq=False)
class CopyBank:
    """A shop's lines; they are numbered in the order of ``table``.

    Attributes:
        table: Columns ``COLUMNS``, sorted by key, then the highest bound first: effect in units of reward against the
            template in the line's place, and its uncertainty, the standard deviation among models.
        templates: What stands for an item, surface and discount without lines: item_id, surface, discount, line.
        neutral: What stands for any other item, by surface.
        choice: How lines are chosen.
        writer: Digest of the model that wrote the lines.
        guardrails: Digest and version of the rules that they passed.
        filled: What became of the candidates.
    """

    table: pd.DataFrame
    templates: pd.DataFrame
    neutral: dict[str, str]
    choice: ChoiceConfig
    writer: str
    guardrails: tuple[str, int]
    filled: Filled = field(repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def propensity(self) -> Floats:
        """Probability of each line among those of its key, shape (n_lines,)."""
        bound = (self.table["effect"] - self.choice.caution * self.table["uncertainty"]).to_numpy(np.float64)
        start, group = self._starts, self._group
        if not len(bound):
            return bound
        odds = np.exp((bound - np.maximum.reduceat(bound, start)[group]) / self.choice.temperature)
        share = odds / np.add.reduceat(odds, start)[group]
        size = np.diff(np.append(start, len(bound)))[group]
        return np.asarray(self.choice.floor / size + (1 - self.choice.floor) * share, np.float64)

    def texts(self, surface: str) -> tuple[str, ...]:
        """Return all that may be said on a surface, each once: lines, templates, what stands for any other item."""
        lines, templates = (table["line"][table["surface"] == surface] for table in (self.table, self.templates))
        return tuple(dict.fromkeys([*lines, *templates, self.neutral[surface]]))

    def choose(
        self,
        item_ids: Sequence[str],
        audiences: Sequence[str],
        discounts: Sequence[float],
        surface: str,
        generator: np.random.Generator,
    ) -> Chosen:
        """Draw a line for each of n slots: all slots of a batch of pages, say.

        A key without lines takes those for anybody (audience ""), and without those the item's template.

        Args:
            item_ids: The item of each slot.
            audiences: The shopper's audience.
            discounts: The share of the price taken off.
            surface: Where the lines will stand.
            generator: Draws one number a slot.

        Raises:
            InputError: An unknown surface, or lists of different lengths.
        """
        group, template = self._find(item_ids, audiences, discounts, surface)
        number = np.full(len(group), EMPTY, np.int64)
        known = group >= 0
        drawn = generator.random(len(group))[known]
        found = group[known]
        # Cumulated over all lines, those of group g end at g + 1, so that one search serves every slot.
        number[known] = np.searchsorted(self._cumulated, found + drawn, side="right").clip(
            self._starts[found], np.append(self._starts, len(self))[found + 1] - 1
        )
        propensity = np.where(known, np.append(self.propensity, 1.0)[number], 1.0)
        return Chosen(number, propensity, np.where(known, np.append(self._lines, "")[number], template))

    def probabilities(
        self,
        item_ids: Sequence[str],
        audiences: Sequence[str],
        discounts: Sequence[float],
        surface: str,
        lines: Sequence[str],
    ) -> Floats:
        """Return the probability that ``choose`` shows each of the given lines in its slot, shape (n,)."""
        group, template = self._find(item_ids, audiences, discounts, surface)
        place = pd.MultiIndex.from_arrays([self._group, self._lines])
        found = place.get_indexer(pd.MultiIndex.from_arrays([group, np.asarray(lines, dtype=object)]))
        known = np.where(found >= 0, np.append(self.propensity, 0.0)[found], 0.0)
        return np.where(group >= 0, known, (template == np.asarray(lines, dtype=object)).astype(np.float64))

    def save(self, directory: Path) -> None:
        """Write the bank: lines.parquet, templates.parquet and manifest.json, all or nothing."""
        with write_directory(directory, KIND) as path:
            self.table.to_parquet(path / "lines.parquet", index=False)
            self.templates.to_parquet(path / "templates.parquet", index=False)
            manifest = {
                "format": FORMAT,
                "writer": self.writer,
                "guardrails": {"digest": self.guardrails[0], "version": self.guardrails[1]},
                "choice": to_dict(self.choice),
                "neutral": self.neutral,
                "filled": to_dict(self.filled),
            }
            write_json(path / "manifest.json", manifest)

    @classmethod
    def load(cls, directory: Path, guardrails: Guardrails | None = None) -> CopyBank:
        """Read a bank, verifying its checksums.

        Args:
            directory: Where it is.
            guardrails: The rules that its lines must have passed; None takes those that they did.

        Raises:
            InputError: Files are missing, changed or of another form, or the lines have passed other rules.
        """
        path = verify_directory(directory, KIND)
        manifest: dict[str, Any] = read_json(path / "manifest.json")
        try:
            if manifest["format"] != FORMAT:
                raise InputError("a bank of another format", where=path, got=manifest["format"], expected=str(FORMAT))
            rules = (str(manifest["guardrails"]["digest"]), int(manifest["guardrails"]["version"]))
            bank = cls(
                pd.read_parquet(path / "lines.parquet")[COLUMNS],
                pd.read_parquet(path / "templates.parquet"),
                {str(name): str(line) for name, line in manifest["neutral"].items()},
                from_dict(ChoiceConfig, manifest["choice"], path / "manifest.json"),
                str(manifest["writer"]),
                rules,
                Filled(**manifest["filled"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("not a copy bank of this version", where=path, got=str(error)) from None
        if guardrails is not None and guardrails.digest != rules[0]:
            raise InputError(
                "the lines have passed other guardrails",
                where=path,
                got=f"version {rules[1]}, {rules[0][:12]}",
                expected=f"version {guardrails.version}, {guardrails.digest[:12]}",
                remedy="build the bank anew",
            )
        return bank

    def _find(
        self, item_ids: Sequence[str], audiences: Sequence[str], discounts: Sequence[float], surface: str
    ) -> tuple[Ints, npt.NDArray[np.object_]]:
        """Return each slot's group of lines, -1 without any, and its template; both (n,)."""
        if surface not in SURFACES:
            Brief(surface)
        if not len(item_ids) == len(audiences) == len(discounts):
            got = f"{len(item_ids)} items, {len(audiences)} audiences, {len(discounts)} discounts"
            raise InputError("lists of different lengths", where="copy bank", got=got)
        item, off = np.asarray(item_ids, dtype=object), np.round(np.asarray(discounts, np.float64), DECIMALS)
        where = np.full(len(item), surface, dtype=object)
        group = self._keys.get_indexer(
            pd.MultiIndex.from_arrays([np.asarray(audiences, dtype=object), item, where, off])
        )
        anybody = np.full(len(item), "", dtype=object)
        other = self._keys.get_indexer(pd.MultiIndex.from_arrays([anybody, item, where, off]))
        place = self._template_keys.get_indexer(pd.MultiIndex.from_arrays([item, where, off]))
        template = np.append(self.templates["line"].to_numpy(object), self.neutral[surface])[place]
        return np.where(group >= 0, group, other).astype(np.int64), template

    @cached_property
    def _group(self) -> Ints:
        """The number of each line's key, ascending, shape (n_lines,)."""
        return np.asarray(self.table.groupby(KEY, sort=False).ngroup(), np.int64)

    @cached_property
    def _starts(self) -> Ints:
        return np.flatnonzero(np.diff(self._group, prepend=-1)).astype(np.int64)

    @cached_property
    def _cumulated(self) -> Floats:
        ends = np.append(self._starts, len(self))[1:] - 1
        within = self.propensity.cumsum()
        within += (self._group + 1 - within[ends][self._group]) if len(self) else 0.0  # rounding does not add up
        return within

    @cached_property
    def _keys(self) -> pd.MultiIndex:
        return pd.MultiIndex.from_frame(self.table[KEY].iloc[self._starts])

    @cached_property
    def _template_keys(self) -> pd.MultiIndex:
        return pd.MultiIndex.from_frame(self.templates[["item_id", "surface", "discount"]])

    @cached_property
    def _lines(self) -> npt.NDArray[np.object_]:
        return self.table["line"].to_numpy(object)


def build_bank(
    candidates: Sequence[Candidate],
    scorer: Scorer,
    guardrails: Guardrails,
    writer: str,
    choice: ChoiceConfig | None = None,
) -> CopyBank:
    """Filter and score lines that were written, and make a bank of them.

    Args:
        candidates: The lines; they are tidied before they are judged.
        scorer: What models expect of lines: ``lambda *asked: reward.by_member(*asked)["total"]`` of a ``CopyReward``.
            It is called once, with the lines that passed and then the template of each of their keys.
        guardrails: Whose rules the lines must pass.
        writer: Digest of the model that wrote them.
        choice: How lines will be chosen; by default ``ChoiceConfig()``.

    Raises:
        InputError: The scorer's answer has another shape.
    """
    by_rule: Counter[str] = Counter()
    kept: dict[tuple[str, Brief, str], None] = {}
    templates: dict[tuple[str, str, float], str] = {}
    briefs: dict[tuple[str, Brief], str] = {}
    repeated = rejected = 0
    for item_id, brief, said in candidates:
        if (item_id, brief) not in briefs:
            briefs[item_id, brief] = guardrails.fallback(brief)
            templates.setdefault((item_id, brief.surface, round(brief.discount, DECIMALS)), briefs[item_id, brief])
        line = guardrails.tidy(said)
        if (item_id, brief, line) in kept:
            repeated += 1
        elif hits := guardrails.hits(line, brief):
            by_rule.update(hit.rule for hit in hits)
            rejected += 1
        else:
            kept[item_id, brief, line] = None
    table = _scored(list(kept), briefs, scorer)
    scored = table[np.isfinite(table["effect"]) & np.isfinite(table["uncertainty"])].drop_duplicates([*KEY, "line"])
    choice = ChoiceConfig() if choice is None else choice
    bound = scored["effect"] - choice.caution * scored["uncertainty"]
    scored = scored.assign(bound=-bound).sort_values([*KEY, "bound", "line"], ignore_index=True)[COLUMNS]
    unscored = int(len(table) - np.isfinite(table["effect"] + table["uncertainty"]).sum())
    repeated += len(table) - unscored - len(scored)  # briefs that differ in nothing a key has
    filled = Filled(len(candidates), len(scored), repeated, rejected, unscored, dict(sorted(by_rule.items())))
    keys = pd.DataFrame(list(templates), columns=["item_id", "surface", "discount"]).astype({"discount": np.float64})
    neutral = {surface: guardrails.fallback(Brief(surface)) for surface in SURFACES}
    lines = keys.assign(line=pd.Series(list(templates.values()), dtype=object))
    return CopyBank(scored, lines, neutral, choice, writer, (guardrails.digest, guardrails.version), filled)


def _scored(
    kept: Sequence[tuple[str, Brief, str]], briefs: dict[tuple[str, Brief], str], scorer: Scorer
) -> pd.DataFrame:
    """Return the lines with their effect against their template, and its standard deviation among models."""
    compared = list(dict.fromkeys((item_id, brief) for item_id, brief, _ in kept))
    asked = [*kept, *((item_id, brief, briefs[item_id, brief]) for item_id, brief in compared)]
    effect = uncertainty = np.zeros(0)
    if kept:
        item_ids, told, lines = zip(*asked, strict=True)
        answer = np.asarray(scorer(item_ids, [b.audience for b in told], [b.discount for b in told], lines), np.float64)
        if answer.ndim != 2 or answer.shape[1] != len(asked) or not len(answer):
            expected = f"shape (models, {len(asked)})"
            raise InputError(
                "the scorer's answer has another shape", where="copy bank", got=answer.shape, expected=expected
            )
        place = {pair: len(kept) + i for i, pair in enumerate(compared)}
        against = answer[:, [place[item_id, brief] for item_id, brief, _ in kept]]
        gain = answer[:, : len(kept)] - against
        effect, uncertainty = gain.mean(0), gain.std(0, ddof=1) if len(gain) > 1 else np.zeros(len(kept))
    rows = [(b.audience, item_id, b.surface, round(b.discount, DECIMALS), line) for item_id, b, line in kept]
    table = pd.DataFrame(rows, columns=[*KEY, "line"]).astype({"discount": np.float64})
    return table.assign(effect=effect, uncertainty=uncertainty)
