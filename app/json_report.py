"""The report that every command writes for machines where ``--json PATH`` asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from hawker.shop.artefacts import write_json

Json = Annotated[Path | None, arg(metavar="PATH", help="Write the report as JSON here, for machines.")]


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Write a report where there is a path."""
    if path is not None:
        write_json(path, report)
