"""The commands that train the writer and let it write."""

from __future__ import annotations

import json as text
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from hawker.agents.writer_config import DpoConfig, GrpoConfig, RewardModelConfig, RwrConfig, SftConfig, check
from hawker.app.json_report import Json, write_report
from hawker.app.tables import console, figure_table, number, say, text_table
from hawker.policies.copy_choice import ChoiceConfig
from hawker.shop.artefacts import refuse_others, write_text
from hawker.shop.config import to_dict
from hawker.shop.errors import InputError
from hawker.shop.run import Run

ConfigFile = Annotated[
    Path | None, arg(metavar="FILE", help="YAML with options of this command; options given here win over it.")
]
RunPath = Annotated[Positional[Path], arg(name="run", metavar="RUN")]

ENDS = 5
"""Steps at the beginning and at the end of training whose means are shown."""

SHOWN = ("loss", "reward", "shoppers/", "preference", "line/", "penalty/", "refused/", "kl", "accuracy", "rewards/acc")
"""What of a step is shown, by how its name begins."""


@dataclass(frozen=True)
class WriterSft:
    """Fine-tune a language model on logged copy, lines that did well more often than others.

    Reads the part of the log that the run's shoppers to train against were fitted to. Writes RUN/writer/sft.

    Args:
        run_: The run's directory, with RUN/shoppers in it.
        model: The language model: a fetched name, a directory or a hub id.
        resume: Go on from the last checkpoint.
    """

    run_: RunPath
    model: str = "smollm2-135m"
    resume: bool = False
    config: ConfigFile = None
    training: OmitArgPrefixes[SftConfig] = field(default_factory=SftConfig)
    json: Json = None

    def run(self) -> None:
        """Train."""
        from hawker.agents.writer_data import logged_lines
        from hawker.agents.writer_sft import sft
        from hawker.policies.guardrails import Guardrails
        from hawker.shop.devices import choose_threads

        choose_threads()
        check(self.training)
        _, impressions, items, labels = _train_part(Run(self.run_))
        lines = logged_lines(impressions, items, self.training.surface, labels, self.training.prior)
        with _progress() as update:
            path, report = sft(Run(self.run_), self.model, lines, Guardrails.load(), self.training, self.resume, update)
        _show(path, report)
        write_report(self.json, report)


@dataclass(frozen=True)
class _FromPairs:
    """What learns from pairs of lines.

    Args:
        run_: The run's directory.
        model: The language model to begin with; by default RUN/writer/sft.
        pairs: Pairs that people made: what `hawker prefs import` wrote, or JSONL of prompt, chosen and rejected. By
            default the pairs of lines that the log of RUN/shoppers tells apart.
        surface: Where the log's lines stood.
        resume: Go on from the last checkpoint.
    """

    run_: RunPath
    model: str | None = None
    pairs: Path | None = None
    surface: str = "headline"
    resume: bool = False
    config: ConfigFile = None
    json: Json = None

    def _begin(self) -> tuple[Run, str, list[Any]]:
        """Return the run, the model to begin with, and the pairs."""
        from hawker.shop.devices import choose_threads

        choose_threads()
        run = Run(self.run_)
        model = self.model or _made(run, "sft")
        return run, model, _pairs(run, self.pairs, model, self.surface)


@dataclass(frozen=True)
class WriterDpo(_FromPairs):
    """Train the writer on pairs of lines, directly.

    Writes RUN/writer/dpo.
    """

    training: OmitArgPrefixes[DpoConfig] = field(default_factory=DpoConfig)

    def run(self) -> None:
        """Train."""
        from hawker.agents.writer_prefs import dpo

        run, model, pairs = self._begin()
        with _progress() as update:
            path, report = dpo(run, model, pairs, self.training, self.resume, update)
        _show(path, report)
        write_report(self.json, report)


@dataclass(frozen=True)
class WriterReward(_FromPairs):
    """Learn a model of preferences from pairs of lines, to stand beside the shoppers in writer grpo.

    Writes RUN/writer/reward.
    """

    training: OmitArgPrefixes[RewardModelConfig] = field(default_factory=RewardModelConfig)

    def run(self) -> None:
        """Train."""
        from hawker.agents.writer_prefs import fit_preferences

        run, model, pairs = self._begin()
        with _progress() as update:
            path, report = fit_preferences(run, model, pairs, self.training, self.resume, update)
        _show(path, report)
        write_report(self.json, report)


@dataclass(frozen=True)
class _AgainstShoppers:
    """What learns from what the shoppers of a run make of its lines.

    Args:
        run_: The run's directory, with RUN/shoppers in it, fitted to logs that show copy.
        model: The writer to begin with; by default the last that the run has trained so far.
        items: Items to write for, by id; repeat the option for more. By default all of the log's.
        voice: A line in the shop's voice; repeat the option for more.
        resume: Go on from the last checkpoint.
    """

    run_: RunPath
    model: str | None = None
    items: UseAppendAction[tuple[str, ...]] = ()
    voice: UseAppendAction[tuple[str, ...]] = ()
    resume: bool = False
    config: ConfigFile = None
    json: Json = None

    def _begin(self, training: RwrConfig | GrpoConfig, wanted: int, *before: str) -> tuple[dict[str, Any], str]:
        """Return what both kinds of training are told alike, and the digest of the shoppers.

        Args:
            training: How to train.
            wanted: What there is to write for, how much of it.
            before: Stages whose writer to begin with, the first that the run has.
        """
        from hawker.agents.copy_reward import CopyReward
        from hawker.agents.writer_data import draw_assignments, tier_discounts
        from hawker.agents.writer_prefs import PreferenceModel
        from hawker.agents.writer_training import Stage
        from hawker.policies.guardrails import Guardrails
        from hawker.shop.devices import choose_threads, resolve_device

        choose_threads()
        check(training)
        run = Run(self.run_)
        model = self.model or _made(run, *before)
        shoppers, impressions, items, _ = _train_part(run)
        tiers = tuple(tier_discounts(impressions, items).values())
        answers = CopyReward(shoppers, impressions, items, training.reward, discounts=tiers, seed=training.seed)
        chosen = _chosen(items, self.items)
        given = draw_assignments(chosen, training.surface, answers.labels, tiers, wanted, training.seed, self.voice)
        preferred = Stage(run, "reward").out
        device = resolve_device(training.device)
        preferences = PreferenceModel.load(preferred, device) if preferred.is_dir() else None
        told = {"run": run, "model": model, "assignments": given, "answers": answers, "guardrails": Guardrails.load()}
        return told | {"config": training, "resume": self.resume, "preferences": preferences}, shoppers.digest


@dataclass(frozen=True)
class WriterRwr(_AgainstShoppers):
    """Let the writer write, and learn from its lines by what the shoppers of a run make of them.

    RUN/writer/reward counts too, where there is one. Begins with RUN/writer/sft. Writes RUN/writer/rwr.
    """

    training: OmitArgPrefixes[RwrConfig] = field(default_factory=RwrConfig)

    def run(self) -> None:
        """Train."""
        from hawker.agents.writer_rwr import rwr

        told, _ = self._begin(self.training, self.training.briefs, "sft")
        with _progress() as update:
            path, report = rwr(**told, progress=update)
        _show(path, report)
        gains = ", then ".join(f"{gain:.2f}" for gain in report["gains"])
        say(f"{report['written']:,} lines written; those learned from are worth {gains} spreads more")
        write_report(self.json, report)


@dataclass(frozen=True)
class WriterGrpo(_AgainstShoppers):
    """Optimise the writer against the shoppers of a run, and against RUN/writer/reward where there is one.

    Begins with RUN/writer/rwr, or with RUN/writer/sft where there is none. Writes RUN/writer/grpo.
    """

    training: OmitArgPrefixes[GrpoConfig] = field(default_factory=GrpoConfig)

    def run(self) -> None:
        """Train."""
        from hawker.agents.writer_grpo import grpo

        wanted = self.training.steps * self.training.batch // max(self.training.group, 1)
        told, digest = self._begin(self.training, wanted, "rwr", "sft")
        with _progress() as update:
            path, report = grpo(**told, progress=update, answers_digest=digest)
        _show(path, report)
        rate, share = report["tokens"] / report["seconds"], report["reward_seconds"] / report["seconds"]
        say(f"{report['seconds']:,.0f} s, {rate:,.0f} tokens/s of whole steps; {share:.1%} of it for rewards")
        write_report(self.json, report)


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """What is written, and by whom.

    Args:
        model: Who writes; by default the last that the run has trained of grpo, rwr, dpo and sft.
        items: Items, by id; repeat the option for more. By default all of the log's.
        voice: A line in the shop's voice; repeat the option for more.
        rules: The rules; by default those that come with Hawker.
        count: Lines to draw for each brief.
        temperature: 0 takes the likeliest line every time.
        seed: Decides what is drawn.
        device: "auto", "cpu" or "cuda".
    """

    model: str | None = None
    items: UseAppendAction[tuple[str, ...]] = ()
    voice: UseAppendAction[tuple[str, ...]] = ()
    rules: Annotated[Path | None, arg(metavar="FILE")] = None
    count: int = 4
    temperature: float = 1.0
    seed: int = 0
    device: str = "auto"
    json: Json = None

    def _writer(self, run: Run, device: Any) -> Any:
        from hawker.policies.writer import Writer

        return Writer.load(self.model or _made(run, "grpo", "rwr", "dpo", "sft"), device)


@dataclass(frozen=True)
class WriterWrite(_Writing):
    """Write lines for items and audiences as JSONL, all of which keep the rules.

    A line that breaks one is left out and counted; where none is left for an item and audience, the fallback stands in.

    Args:
        run_: The run's directory, whose log knows the items.
        out: The JSONL file to write: item_id, audience, surface, discount, line, and source (writer or fallback).
        audience: Label of an audience; repeat the option for more. By default anybody.
        surface: Where the lines will stand.
        discount: Share of the price taken off, 0 to 1.
    """

    run_: RunPath
    out: Positional[Path]
    audience: UseAppendAction[tuple[str, ...]] = ()
    surface: str = "headline"
    discount: float = 0.0

    def run(self) -> None:
        """Write."""
        from hawker.agents.bank import every_assignment
        from hawker.policies.drafts import draft
        from hawker.policies.guardrails import Guardrails
        from hawker.shop.devices import choose_threads, resolve_device

        choose_threads()
        run, rules = Run(self.run_), Guardrails.load(self.rules)
        _, _, items, _ = _train_part(run)
        writer = self._writer(run, resolve_device(self.device))
        chosen, audiences = _chosen(items, self.items), self.audience or ("",)
        rows = every_assignment(chosen, self.surface, audiences, [self.discount], self.voice)
        with console().status("writing"):
            drafts = draft(writer, rules, [row.brief for row in rows], self.count, self.temperature, self.seed)
        written = []
        for row, lines, fell_back in zip(rows, drafts.lines, drafts.fell_back, strict=True):
            brief = row.brief
            about: dict[str, Any] = {"item_id": row.item_id, "audience": brief.audience}
            about |= {"surface": brief.surface, "discount": brief.discount}
            source = "fallback" if fell_back else "writer"
            written += [text.dumps(about | {"line": line, "source": source}, ensure_ascii=False) for line in lines]
        write_text(self.out, "".join(f"{line}\n" for line in written))
        report: dict[str, Any] = {
            "lines": len(written),
            "drawn": drafts.drawn,
            "refused": drafts.refused,
            "fell_back": sum(drafts.fell_back),
            "rejected": dict(drafts.rejected.most_common()),
            "writer": writer.digest,
            "rules": rules.digest,
            "seed": self.seed,
        }
        _show_counts(str(self.out), report, ("drawn", "refused", "fell_back", "lines"))
        write_report(self.json, report)


@dataclass(frozen=True)
class WriterBank(_Writing):
    """Fill the copy bank of a strategist: write lines, keep what the rules allow, score and store them.

    Lines are written for items, audiences and every discount of the log's offers, and scored by the run's shoppers in
    units of the reward that its policy earns. Writes RUN/writer/bank.

    Args:
        run_: The run's directory, with RUN/shoppers in it, fitted to logs that show copy.
        audience: Label of an audience, or "all" for anybody and every audience of the log; repeat the option for more.
            By default anybody.
        choice: How a line is chosen among those of its item, audience and discount.
    """

    run_: RunPath
    audience: UseAppendAction[tuple[str, ...]] = ()
    choice: ChoiceConfig = field(default_factory=ChoiceConfig)

    def run(self) -> None:
        """Write, score and store."""
        from hawker.agents.bank import every_assignment, expected_gain, fill_bank
        from hawker.agents.bank_export import SURFACE
        from hawker.agents.copy_reward import CopyReward
        from hawker.agents.writer_data import tier_discounts
        from hawker.benchmarks.arms import training_of
        from hawker.policies.copy_bank import KEY
        from hawker.policies.guardrails import Guardrails
        from hawker.shop.devices import choose_threads, resolve_device

        choose_threads()
        run, rules, device = Run(self.run_), Guardrails.load(self.rules), resolve_device(self.device)
        refuse_others(run.bank, "copy bank")
        shoppers, impressions, items, _ = _train_part(run, device)
        writer, tiers = self._writer(run, device), tuple(tier_discounts(impressions, items).values())
        reward = training_of(run).reward.plain
        answers = CopyReward(shoppers, impressions, items, reward, discounts=tiers, seed=self.seed)
        audiences = ("", *answers.labels) if "all" in self.audience else self.audience or ("",)
        wanted = every_assignment(_chosen(items, self.items), SURFACE, audiences, tiers, self.voice)
        with console().status("reading") as status:
            bank = fill_bank(
                writer,
                rules,
                wanted,
                answers,
                count=self.count,
                temperature=self.temperature,
                seed=self.seed,
                choice=self.choice,
                progress=lambda what, done, total: status.update(f"{what}: {done:,} of {total:,} lines"),
            )
        bank.save(run.bank)
        filled, gain = bank.filled, expected_gain(bank)
        report = {
            "briefs": len(wanted),
            "drawn": filled.written,
            "repeated": filled.repeated,
            "refused": filled.rejected,
            "unscored": filled.unscored,
            "lines": filled.kept,
            "fell_back": len(wanted) - len(bank.table[KEY].drop_duplicates()),
            "gain": gain,
            "rejected": dict(sorted(filled.by_rule.items(), key=lambda rule: (-rule[1], rule[0]))),
            "writer": bank.writer,
            "rules": rules.digest,
            "reward": to_dict(reward),
            "seed": self.seed,
        }
        counts = ("briefs", "drawn", "repeated", "refused", "unscored", "lines", "fell_back")
        _show_counts(str(run.bank), report, counts)
        if gain is not None:
            say(f"expected of a line, over the template in its place: {number(gain, '')} of reward")
        write_report(self.json, report)


WRITER: dict[str, type[Any]] = {
    "writer sft": WriterSft,
    "writer dpo": WriterDpo,
    "writer reward": WriterReward,
    "writer rwr": WriterRwr,
    "writer grpo": WriterGrpo,
    "writer write": WriterWrite,
    "writer bank": WriterBank,
}

WRITER_CONFIGS: dict[str, tuple[str, type[Any]]] = {
    "writer sft": ("training", SftConfig),
    "writer dpo": ("training", DpoConfig),
    "writer reward": ("training", RewardModelConfig),
    "writer rwr": ("training", RwrConfig),
    "writer grpo": ("training", GrpoConfig),
}
"""Commands that take ``--config``: the field it fills, and its type."""


@contextmanager
def _progress() -> Iterator[Callable[[int, int, float], None]]:
    with console().status("reading") as status:
        yield lambda done, total, value: status.update(f"step {done:,} of {total:,}: {value:.4g}")


def _train_part(run: Run, device: Any = "cpu") -> tuple[Any, Any, Any, list[str]]:
    """Return shoppers, the impressions of their training part, the log's items and each row's audience."""
    import torch

    from hawker.shop.audiences import Audiences
    from hawker.shop.logs import read_logs
    from hawker.simulators.store import load_shoppers

    shoppers = load_shoppers(run.shoppers, torch.device(device))
    impressions, items = shoppers.read_part("train"), read_logs(shoppers.logs).items
    assert items is not None  # or shoppers could not have been fitted
    labels = Audiences.fit(impressions, items).label(impressions, items)
    return shoppers, impressions, items, labels.tolist()


def _made(run: Run, *stages: Any) -> str:
    """Return the first of these stages that the run has."""
    from hawker.agents.writer_training import Stage

    for name in stages:
        if (path := Stage(run, name).out).is_dir():
            return str(path)
    where = Stage(run, stages[-1]).out
    raise InputError("no writer here", where=where, remedy="run hawker writer sft first, or name a model with --model")


def _chosen(items: Any, wanted: tuple[str, ...]) -> Any:
    """Return the rows of the items that are wanted, all where none is named."""
    known = items["item_id"].astype(str)
    for item in wanted:
        if item not in set(known):
            raise InputError("no such item", where="items", got=item, remedy="the log's table items knows all")
    return items[known.isin(wanted)] if wanted else items


def _show_counts(title: str, report: dict[str, Any], names: tuple[str, ...]) -> None:
    """Print what became of lines: counts of a report by name, and how many broke each rule."""
    counts = [(name, f"{report[name]:,}") for name in names]
    counts += [(f"broke the rule {rule}", f"{n:,}") for rule, n in report["rejected"].items()]
    console().print(text_table(title, ("what", "count"), counts, right=(1,)))


def _pairs(run: Run, path: Path | None, model: str, surface: str) -> list[Any]:
    """Return pairs that people made, or else those that the run's log tells apart."""
    from hawker.agents.prefs import logged_pairs, read_preferences
    from hawker.agents.writer_data import Pair
    from hawker.policies.guardrails import Guardrails
    from hawker.policies.writer import load_tokenizer, prompt_of
    from hawker.shop.models import find_model

    if path is not None:
        return read_preferences(path)
    _, impressions, items, _ = _train_part(run)
    # Of all audiences together: told apart by audience, hardly any two lines are shown often enough.
    found = logged_pairs(impressions, items, surface, guardrails=Guardrails.load())
    if not found:
        raise InputError("the log tells no two lines apart", where=run.shoppers, remedy="name pairs with --pairs")
    tokenizer = load_tokenizer(find_model(model))
    return [Pair(prompt_of(tokenizer, pair.brief), pair.better, pair.worse) for pair in found]


def _show(path: Path, report: dict[str, Any]) -> None:
    """Print what training has changed, as means over its first and last steps."""
    history = report["history"]
    names = sorted({name for entry in history for name in entry if name.startswith(SHOWN)})
    rows = []
    for name in names:
        ends = [[entry[name] for entry in some if name in entry] for some in (history[:ENDS], history[-ENDS:])]
        rows.append((name, *(number(sum(some) / len(some), "") if some else "-" for some in ends)))
    columns = ("mean a step", f"first {ENDS}", f"last {ENDS}")
    console().print(text_table(f"{report['steps']:,} steps from {report['model']}", columns, rows, right=(1, 2)))
    if "figures" in report:
        console().print(figure_table("Judged on pairs that were held out", report["figures"]))
    say(f"{path.name}: {path}")
