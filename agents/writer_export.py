"""The writer of a run on its way into a bundle: a model without code, what it is told of the items, and its rules."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from hawker.agents.bank_export import SURFACE
from hawker.agents.writer_data import item_brief
from hawker.policies.briefs import DATA
from hawker.policies.page_live import COLUMNS, RULES, TOLD
from hawker.policies.writer import Writer
from hawker.shop.artefacts import CHECKSUMS, find_directory, read_json
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.shop.models import FILES, SOURCE, find_model, model_digest
from hawker.simulators.store import FittedShoppers

LEFT = (SOURCE, CHECKSUMS, "train.json")
"""Of a model's files those that say how it came about, and where: a bundle needs none of them."""

TRIED = 10
"""Items that the writer writes for before it goes into a bundle: those with the longest texts."""


@dataclass(frozen=True)
class TakenWriter:
    """What of a writer goes into a bundle.

    Attributes:
        model: Its directory.
        rules: The file with the rules that its lines must keep.
        voice: Lines in the shop's voice, which it is shown.
    """

    model: Path
    rules: Path
    voice: tuple[str, ...]

    @classmethod
    def find(cls, path: Path, shoppers: FittedShoppers, rules: Path | None, voice: tuple[str, ...]) -> TakenWriter:
        """Return the writer of a directory.

        Args:
            path: RUN/writer/grpo, say.
            shoppers: Those of the run that is exported.
            rules: The guardrails; by default those that come with Hawker.
            voice: Lines in the shop's voice.

        Raises:
            InputError: There is no whole language model, or one that was trained on another log than the shoppers were.
        """
        if not find_directory(path).is_dir():
            raise InputError("no writer here", where=path, expected="a directory that hawker writer sft or grpo wrote")
        model = find_model(str(path.resolve()))
        if any(model.glob("adapter_*")):
            raise InputError("an adapter, which is no model by itself", where=model, remedy="merge it into its model")
        logs = read_json(model / SOURCE).get("logs") if (model / SOURCE).is_file() else None
        if logs not in (None, shoppers.logs_digest):
            raise InputError(
                "the writer was trained on another log",
                where=path,
                got=f"{logs[:12]}...",
                expected=f"{shoppers.logs_digest[:12]}..., that of the run's shoppers",
                remedy="train it in this run with hawker writer sft",
            )
        return cls(model, DATA / "guardrails.yaml" if rules is None else rules, voice)

    def write(self, directory: Path, shoppers: FittedShoppers) -> dict[str, Any]:
        """Write the files of a bundle's writer, let it write a page, and return what the manifest says of it.

        Args:
            directory: The directory to make.
            shoppers: Their log knows the items.

        Raises:
            InputError: Transformers cannot read the model, it cannot write, or the log is not there any more.
        """
        directory.mkdir()
        for file in sorted({file for pattern in FILES for file in self.model.glob(pattern)}):
            if file.name not in LEFT:
                shutil.copyfile(file, directory / file.name)
        shutil.copyfile(self.rules, directory / RULES)
        items = read_logs(shoppers.logs).items
        assert items is not None  # or shoppers could not have been fitted
        known = items.set_index(items["item_id"].astype(str)).loc[list(shoppers.builder.catalog.item_ids)]
        briefs = [item_brief(item, SURFACE, voice=self.voice) for item in known.to_dict("records")]
        told = pd.DataFrame([[getattr(brief, name) for name in COLUMNS] for brief in briefs], columns=COLUMNS)
        told.astype({"price": "float64"}).to_parquet(directory / TOLD, index=False)
        longest = sorted(briefs, key=lambda brief: -len(f"{brief.title} {brief.description} {brief.category}"))[:TRIED]
        Writer.load(str(directory), torch.device("cpu")).write(longest)
        return {"digest": model_digest(self.model), "voice": list(self.voice)}
