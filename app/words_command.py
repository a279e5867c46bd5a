"""The command that trains a language model to choose items by words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from hawker.agents.word_config import WordsConfig
from hawker.app.json_report import Json, write_report
from hawker.app.tables import console, figure_table, say
from hawker.shop.run import Run


@dataclass(frozen=True)
class Words:
    """Train a language model to choose items by words: an arm to compare with.

    Candidates get shuffled labels in a prompt, and the softmax over the labels is the strategy. It decides slates
    alone, and learns against the shoppers of a run by the reward that the run's strategy was trained for. A prompt is
    read for every page: slow without a GPU. Writes RUN/words.

    Args:
        run_: The run's directory, with RUN/shoppers in it.
        model: The language model: a fetched name, a directory or a hub id.
        resume: Go on from the last checkpoint.
    """

    run_: Annotated[Positional[Path], arg(name="run", metavar="RUN")]
    model: str = "smollm2-135m"
    resume: bool = False
    training: OmitArgPrefixes[WordsConfig] = field(default_factory=WordsConfig)
    json: Json = None

    def run(self) -> None:
        """Train."""
        from hawker.agents.page_world import read, remember
        from hawker.agents.word_choice import train_words
        from hawker.agents.word_config import check_words
        from hawker.benchmarks.arms import training_of
        from hawker.shop.devices import choose_threads, resolve_device
        from hawker.shop.logs import read_logs
        from hawker.simulators.store import load_shoppers
        from hawker.simulators.world import World

        choose_threads()
        check_words(self.training)
        run = Run(self.run_)
        shoppers, told = load_shoppers(run.shoppers, resolve_device(self.training.device)), training_of(run)
        items, reward = read_logs(shoppers.logs).items, told.reward
        assert items is not None  # or shoppers could not have been fitted
        world: World = shoppers.world("train", reward.doubts)
        if remember(shoppers):
            world = read(shoppers, world, reward)
        with console().status("reading") as status:
            _, report = train_words(
                run,
                self.model,
                world,
                items,
                reward,
                self.training,
                self.resume,
                lambda done, total, value: status.update(f"step {done:,} of {total:,}: {value:.4g}"),
                told.horizon,
                shoppers.digest,
            )
        console().print(figure_table("In the world it was trained in (an upper bound)", report["figures"]))
        say(f"words: {run.words}")
        write_report(self.json, report)
