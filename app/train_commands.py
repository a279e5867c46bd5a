"""The command that trains a strategy: pages alone, or pages and the words on them in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from hawker.agents.config import RoundsConfig, TrainConfig, defaults_for
from hawker.agents.writer_config import GrpoConfig
from hawker.app.json_report import Json, write_report
from hawker.app.tables import console, figure_table, say, text_table
from hawker.shop.artefacts import find_directory
from hawker.shop.config import load_config
from hawker.shop.errors import InputError
from hawker.shop.run import Run

NO_WRITER = "none"


@dataclass(frozen=True)
class Train:
    """Train a strategy against the shoppers of a run, by PPO.

    Against shoppers with a memory it learns whole pages (slate, ad, offer and copy, as far as their log shows them) and
    how to keep shoppers over their visits; against others, slates. The two differ in their defaults.

    With a writer it learns pages and the words on them in turn: pages by PPO, then the writer by GRPO for what these
    pages show, then a copy bank, of which the next round's pages take their lines. The run's judge says what each round
    earns with its bank and as it was trained; the best one is kept as RUN/policy, RUN/writer/grpo and RUN/writer/bank,
    all of them stand in RUN/rounds. Pages of later rounds leave the words to the bank: without it they say nothing.

    Args:
        run_: The run's directory, with RUN/shoppers in it.
        resume: Go on from the run's last checkpoint.
        rounds: How often pages, writer and bank are made one after the other.
        writer: The language model that the writer begins as: RUN/writer/sft, a fetched name, a directory or a hub id;
            "none" trains pages alone.
        writing: YAML with options of `hawker writer grpo`, for the writer's part of each round.
        places: Items, audiences and discounts that a bank holds lines for, at most: those that pages show most.
        lines: Lines drawn for each of them.
        voice: A line in the shop's voice; repeat the option for more.
    """

    run_: Annotated[Positional[Path], arg(name="run", metavar="RUN")]
    resume: bool = False
    rounds: int = 1
    writer: str = NO_WRITER
    writing: Annotated[Path | None, arg(metavar="FILE")] = None
    places: int = 400
    lines: int = 8
    voice: UseAppendAction[tuple[str, ...]] = ()
    config: Annotated[
        Path | None, arg(metavar="FILE", help="YAML with options of this command; options given here win over it.")
    ] = None
    training: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    json: Json = None

    def run(self) -> None:
        """Train the strategy."""
        from hawker.shop.devices import choose_threads

        choose_threads()
        report = self._pages() if self.writer == NO_WRITER else self._rounds()
        write_report(self.json, report)

    def _pages(self) -> dict[str, Any]:
        from hawker.agents.train import train
        from hawker.app.reports import progress_bar

        for name in ("rounds", "writing", "places", "lines", "voice"):
            if (got := getattr(self, name)) != type(self).__dataclass_fields__[name].default:
                remedy = "name a language model with --writer"
                raise InputError("no writer to train in rounds", where=name, got=got, remedy=remedy)
        with progress_bar("pages") as update:
            _, report = train(Run(self.run_), self.training, self.resume, update)
        console().print(figure_table("In the world it was trained in (an upper bound)", report["figures"]))
        say(f"policy: {Run(self.run_).policy}")
        return report

    def _rounds(self) -> dict[str, Any]:
        from hawker.agents.rounds import co_train

        run = Run(self.run_)
        writing = GrpoConfig() if self.writing is None else load_config(GrpoConfig, self.writing)
        rounds = RoundsConfig(self.writer, self.rounds, self.places, self.lines, self.voice, writing)
        with console().status("reading") as status:

            def show(what: str, done: int, total: int, figure: float | None) -> None:
                status.update(f"{what}: {done:,} of {total:,}" + ("" if figure is None else f": {figure:.4g}"))

            report = co_train(run, self.training, rounds, self.resume, show)
        console().print(figure_table("On shoppers of the judge, whom nothing was trained against", report["figures"]))
        rows = [
            (
                f"{each['round']}, kept" if each["round"] == report["best"] else str(each["round"]),
                f"{each['lines']:,}",
                f"{each['covered']['own']:.1%}",
                f"{each['covered']['any']:.1%}",
            )
            for each in report["rounds"]
        ]
        columns = ("round", "lines in the bank", "impressions with lines for their audience", "with any")
        console().print(text_table("What was written for", columns, rows, right=(1, 2, 3)))
        say(f"policy: {run.policy}; bank: {run.bank}")
        return report


def training_defaults(words: list[str]) -> TrainConfig:
    """Return what the options of ``hawker train`` are by default, from its words: those that suit the run's shoppers.

    The run is the one word that has shoppers in it.
    """
    runs = (Run(Path(word)) for word in words)
    return next((defaults_for(run.shoppers) for run in runs if find_directory(run.shoppers).is_dir()), TrainConfig())


DEFAULTS: dict[str, Callable[[list[str]], Any]] = {"train": training_defaults}
"""Commands whose options' defaults depend on what they are run on."""
