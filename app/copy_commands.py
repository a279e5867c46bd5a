"""The commands about copy: judge given lines, import people's preferences."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from hawker.app.json_report import Json, write_report
from hawker.app.tables import console, interval, number, say, text_table


@dataclass(frozen=True)
class CopyScore:
    """Judge lines of copy: the rules they break, and the click rate that learned shoppers expect.

    The rate is that of the item on a page's first place, by the ensemble that nothing is trained against; its interval
    spans how far the ensemble's members disagree.

    Args:
        file: JSONL or CSV with item_id and line and, as known, surface, audience, discount (share of the price taken
            off), title, description, category and price; what the catalogue knows of an item may be left out with
            --shoppers. What hawker writer write has written is such a file.
        shoppers: Fitted shoppers, RUN/shoppers, whose logs show lines. Without them only the rules are checked.
        rules: The rules; by default those that come with Hawker.
        seed: Decides which pages of the log the lines are put on.
    """

    file: Positional[Path]
    shoppers: Path | None = None
    rules: Annotated[Path | None, arg(metavar="FILE")] = None
    seed: int = 0
    json: Json = None

    def run(self) -> None:
        """Judge the lines."""
        from hawker.app.copy_scores import read_lines, score_lines

        report = score_lines(read_lines(self.file), self.shoppers, self.rules, self.seed)
        rows = [
            (
                line["item_id"],
                line["line"],
                number(line["ctr"]["value"], "probability") if line["ctr"] else "-",
                interval(line["ctr"]) if line["ctr"] else "-",
                "; ".join(f"{hit['rule']}: {hit['reason']}" for hit in line["hits"]) or "none",
            )
            for line in report["lines"]
        ]
        columns = ("item", "line", "expected CTR", "95% interval", "rules it breaks")
        console().print(text_table(str(self.file), columns, rows, right=(2,)))
        counts = Counter(hit["rule"] for line in report["lines"] for hit in line["hits"])
        broken = ", ".join(f"{rule} {count:,}" for rule, count in counts.most_common())
        bad = sum(bool(line["hits"]) for line in report["lines"])
        say(f"{bad:,} of {len(rows):,} lines break a rule{f' ({broken})' if broken else ''}")
        write_report(self.json, report)


@dataclass(frozen=True)
class PrefsImport:
    """Import pairs of lines of which people preferred one.

    Every line of the file is checked, and nothing is written if one is bad.

    Args:
        file: JSONL with prompt (text, or a list of chat messages), chosen and rejected.
        out: The directory to write.
    """

    file: Positional[Path]
    out: Positional[Path]
    json: Json = None

    def run(self) -> None:
        """Import the pairs."""
        from hawker.agents.prefs import import_preferences

        found: dict[str, Any] = asdict(import_preferences(self.file, self.out))
        rows = [(name, f"{count:,}") for name, count in found.items()]
        console().print(text_table(str(self.out), ("what", "count"), rows, right=(1,)))
        write_report(self.json, found)


COPY = {"copy score": CopyScore, "prefs import": PrefsImport}
