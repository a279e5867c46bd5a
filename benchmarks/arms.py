"""Strategies by name: what the command line compares."""

from __future__ import annotations

from pathlib import Path

from hawker.policies.baselines import LoggingClone, Popularity, RandomStrategy
from hawker.policies.bundle import MANIFEST, Bundle
from hawker.policies.protocol import Strategy
from hawker.policies.served import ServedStrategy
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import find_directory
from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.logs import read_logs
from hawker.shop.run import Run
from hawker.simulators.store import FittedShoppers, require_impressions

NAMES = ("random", "popularity", "clone", "trained")
"""What needs no path; ``clone:LOGS``, a run's directory and a bundle's directory are names too."""


def load_arm(name: str, shoppers: FittedShoppers, run: Run) -> Strategy:
    """Return the strategy of a name, ready for the pages of a run's shoppers and on their device.

    Args:
        name: "random"; "popularity" and "clone", both learned from the part of the run's log that strategies are
            trained on; "clone:LOGS", the clone of the strategy that wrote another log; "trained", the run's own policy;
            the path of another run, or of a bundle.
        shoppers: The run's shoppers.
        run: The run.

    Returns:
        The strategy, called as ``name`` says.

    Raises:
        InputError: Nothing has this name, or it was made for other items, shopper features or pages than the run's.
    """
    kind, colon, logs = name.partition(":")
    catalog, size = shoppers.builder.catalog, shoppers.size
    if name == "random":
        return RandomStrategy(size)
    if name == "popularity":
        return Popularity.fit(shoppers.read_part("train"), catalog, size)
    if name == "clone":
        return LoggingClone.fit(shoppers.read_part("train"), catalog, size)
    if name == "trained":
        return _own(shoppers, run)
    if kind == "clone" and colon:
        return _clone(name, logs, shoppers)
    return _from_path(name, shoppers)


def _own(shoppers: FittedShoppers, run: Run) -> Strategy:
    if not find_directory(run.policy).is_dir():
        remedy = f"train one with `hawker train {run.path}`"
        raise InputError("the run has no trained policy", where=run.path, remedy=remedy)
    strategy = TrainedStrategy.load(run.policy, shoppers.arrivals["judge"].shopper.device)
    # A judge fitted later may know the very rows that the policy was trained on.
    if strategy.trained_on.get("shoppers") != shoppers.digest:
        remedy = f"train it anew with `hawker train {run.path}`"
        raise InputError("the policy was trained against other shoppers", where=run.policy, remedy=remedy)
    _require_same_shop(strategy.builder, strategy.size, shoppers, run.policy)
    return strategy


def _clone(name: str, logs: str, shoppers: FittedShoppers) -> Strategy:
    if not logs:
        raise InputError("no logs to clone", where="arms", got=name, expected="clone:LOGS with a logs directory")
    impressions = require_impressions(read_logs(Path(logs)))
    never = sorted(set(range(shoppers.size)) - set(impressions["position"]))
    if never:
        expected = f"positions 0 to {shoppers.size - 1}, as the run's pages have"
        raise InputError(f"the log never shows position {never[0]}", where=logs, expected=expected)
    shoppers.builder.catalog.index(impressions["item_id"].unique(), f"{logs} impressions")  # a message with the path
    return LoggingClone.fit(impressions, shoppers.builder.catalog, shoppers.size, name)


def _from_path(name: str, shoppers: FittedShoppers) -> Strategy:
    path = find_directory(Path(name))
    policy = Run(path).policy
    strategy: TrainedStrategy | ServedStrategy
    if (path / MANIFEST).is_file():
        bundle = Bundle.load(path)
        strategy, builder = ServedStrategy(bundle), bundle.builder
    elif find_directory(policy).is_dir():
        strategy = TrainedStrategy.load(policy, shoppers.arrivals["judge"].shopper.device)
        builder = strategy.builder
    elif name and path.exists():
        expected = f"a run with a trained policy, or a bundle with a {MANIFEST}"
        raise InputError("no strategy here", where=path, expected=expected)
    else:
        expected = "a known name, or the directory of a run or a bundle"
        remedy = did_you_mean(name, (*NAMES, "clone:LOGS"))
        raise InputError("unknown strategy", where="arms", got=name, expected=expected, remedy=remedy)
    _require_same_shop(builder, strategy.size, shoppers, path)
    strategy.name = name
    return strategy


def _require_same_shop(builder: ContextBuilder, size: int, shoppers: FittedShoppers, where: Path) -> None:
    """Refuse a strategy to which an index, a feature or a slot means something else than to the run's shoppers."""
    world = shoppers.builder
    made_for, items = builder.catalog.item_ids, world.catalog.item_ids
    if made_for != items:
        strange = next((item for item in made_for if item not in set(items)), None)
        what = "a policy for another catalog" + (f", with item {strange!r}" if strange else "")
        expected = f"the run's {len(items)} items in their order"
        raise InputError(what, where=where, got=len(made_for), expected=expected)
    for what, mine, theirs in (
        ("columns", builder.shopper.columns, world.shopper.columns),
        ("kinds of columns", builder.shopper.numeric, world.shopper.numeric),
        *(
            (f"categories of {column}", builder.shopper.categories.get(column), known)
            for column, known in world.shopper.categories.items()
        ),
    ):
        if mine != theirs:
            differing = ", ".join(sorted(set(mine or ()) ^ set(theirs))[:5]) or "order"
            raise InputError(
                f"a policy for other shopper features: {what} differ ({differing})",
                where=where,
                expected="those of the run's shoppers",
            )
    if size != shoppers.size:
        raise InputError("a policy for pages of another size", where=where, got=size, expected=str(shoppers.size))
