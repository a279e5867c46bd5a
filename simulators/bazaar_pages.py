"""Pages that a bazaar's shoppers saw, as arrays: what a diary writes into a log, and what a log gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.logs import Logs
from hawker.simulators.bazaar import DAY, BazaarWorld

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pages:
    """Pages, n of them, sorted by shopper and time; what can be observed, and nothing else.

    Attributes:
        shopper: Number of the shopper from 0, shape (n,).
        page: Number of the page in its visit from 0, shape (n,).
        clock: Seconds since the midnight before the log's first page, shape (n,).
        slate, copy: Items and lines shown, ``EMPTY`` where none, shape (n, K).
        ad, offer: Slot of the ad or ``EMPTY``, and discount tier, shape (n,).
        clicked, converted: What came of each position, shape (n, K).
        features: Numbers of each shopper's feature values, shape (shoppers, features).
    """

    shopper: Ints
    page: Ints
    clock: Ints
    slate: Ints
    copy: Ints
    ad: Ints
    offer: Ints
    clicked: Bools
    converted: Bools
    features: Ints

    @property
    def last(self) -> Bools:
        """True where a page ended its visit, shape (n,)."""
        return np.append(self.page[1:] == 0, True)[: len(self.page)]

    @property
    def days(self) -> npt.NDArray[np.float64]:
        """Days from the end of a visit to the next, shape (n,): 0 within a visit, NaN after a shopper's last one."""
        gap = np.zeros(len(self.page))
        day = self.clock // DAY
        followed = np.append(self.shopper[1:] == self.shopper[:-1], False)[: len(self.page)]
        gap[:-1] = day[1:] - day[:-1]
        return np.where(self.last, np.where(followed, gap, np.nan), 0.0)


def read_pages(logs: Logs, world: BazaarWorld) -> Pages:
    """Return the pages of a log that was simulated in a bazaar with this catalogue and these lines.

    Args:
        logs: What ``read_logs`` returned.
        world: The bazaar.

    Raises:
        InputError: The log has items, lines or feature values that the world lacks, or no impressions.
    """
    frame = logs.impressions
    if frame is None or frame["shopper_id"].isna().any():
        raise InputError("pages need impressions of known shoppers", where=logs.path)
    shopper, ids = pd.factorize(frame["shopper_id"], sort=True)
    frame = frame.assign(
        shopper=shopper,
        item=world.builder.catalog.index(frame["item_id"], f"{logs.path} impressions"),
        line=_numbers(frame, "copy", world.lines, logs),
    ).sort_values(["shopper", "timestamp", "visit_id", "page", "position"], kind="stable")
    start = ~frame.duplicated(["visit_id", "page"]).to_numpy()
    row, heads = np.cumsum(start) - 1, frame[start]
    n, position = len(heads), frame["position"].to_numpy(np.int64)
    if position.max() >= world.size:
        raise InputError("a page is longer than the world's", where=logs.path, got=int(position.max()) + 1)

    def spread(values: npt.NDArray[np.generic], empty: int) -> Ints:
        whole = np.full((n, world.size), empty, np.int64)
        whole[row, position] = values
        return whole

    placement = spread(np.asarray(frame["placement"] == "ad"), 0)
    first = frame["timestamp"].min().normalize()
    people = heads.drop_duplicates("shopper").sort_values("shopper")
    features = [_numbers(people, feature.name, feature.values, logs) for feature in world.parameters.features]
    return Pages(
        shopper=heads["shopper"].to_numpy(np.int64),
        page=heads["page"].to_numpy(np.int64),
        clock=((heads["timestamp"] - first) // pd.Timedelta(seconds=1)).to_numpy(np.int64),
        slate=spread(frame["item"].to_numpy(), EMPTY),
        copy=spread(frame["line"].to_numpy(), EMPTY),
        ad=np.where(placement.any(1), placement.argmax(1), EMPTY),
        offer=heads["offer"].to_numpy(np.int64) if "offer" in heads else np.zeros(n, np.int64),
        clicked=spread(frame["clicked"].to_numpy(), 0).astype(bool),
        converted=spread((frame["converted"] > 0).to_numpy(), 0).astype(bool),
        features=np.stack(features, 1) if features else np.zeros((len(ids), 0), np.int64),
    )


def _numbers(frame: pd.DataFrame, column: str, known: tuple[str, ...], logs: Logs) -> Ints:
    """Return the number of each row's text among the known ones; ``EMPTY`` where it has none."""
    if column not in frame:
        return np.full(len(frame), EMPTY, np.int64)
    place = {text: i for i, text in enumerate(known)}
    numbers, texts = pd.factorize(frame[column])
    for text in texts:
        if text not in place:
            raise InputError("the world does not know this text", where=f"{logs.path} column {column}", got=text)
    return np.array([*(place[text] for text in texts), EMPTY], np.int64)[numbers]
