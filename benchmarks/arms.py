"""Strategies by name: what the command line compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hawker.agents.bank_export import SURFACE, page_copy
from hawker.agents.config import TrainConfig, defaults_for
from hawker.agents.page_world import myopic, parts_of, read, remember, rules_of
from hawker.benchmarks.abtest_pages import PageArm
from hawker.envs.page import Rules
from hawker.policies.baselines import LoggingClone, Popularity, RandomStrategy
from hawker.policies.bundle import MANIFEST, Bundle
from hawker.policies.copy_bank import CopyBank
from hawker.policies.page_actor import DrawnPages, LikeliestPages, PageStrategy
from hawker.policies.page_bundle import PageBundle, load_bundle
from hawker.policies.page_clone import PageClone
from hawker.policies.page_copy import PageCopy
from hawker.policies.protocol import Strategy
from hawker.policies.served import ServedPages, ServedStrategy
from hawker.policies.strategist import BankTable, Strategist
from hawker.policies.trained import POLICY, TrainedStrategy
from hawker.policies.word_choice import WordChoice
from hawker.shop.artefacts import find_directory, read_json, verify_directory
from hawker.shop.config import from_dict, load_config
from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError, did_you_mean
from hawker.shop.logs import read_logs
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.reader import ReadWorld
from hawker.simulators.store import FittedShoppers, load_shoppers, require_impressions

NAMES = ("random", "popularity", "clone", "trained", "words")
"""What needs no path; ``clone:LOGS``, a run's directory and a bundle's directory are names too."""

PAGE_NAMES = ("random", "popularity", "clone", "myopic", "trained", "likeliest", "strategist", "words")
"""What needs no path where whole pages are compared; ``clone:LOGS`` and the directories of runs and bundles are names
too."""


def load_arm(name: str, shoppers: FittedShoppers, run: Run) -> Strategy:
    """Return the strategy of a name, ready for the pages of a run's shoppers and on their device.

    Args:
        name: "random"; "popularity" and "clone", both learned from the part of the run's log that strategies are
            trained on; "clone:LOGS", the clone of the strategy that wrote another log; "trained", the run's own policy;
            "words", the run's language model that chooses by words; the path of another run, or of a bundle.
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
    if name == "words":
        return _words(shoppers, run, shoppers.builder)
    if kind == "clone" and colon:
        return _clone(name, logs, shoppers)
    return _from_path(name, shoppers)


def _own(shoppers: FittedShoppers, run: Run) -> Strategy:
    _require_policy(run, whole=False)
    strategy = TrainedStrategy.load(run.policy, shoppers.arrivals["judge"].shopper.device)
    # A judge fitted later may know the very rows that the policy was trained on.
    _require_same_shoppers(strategy.trained_on, shoppers, run)
    _require_same_shop(strategy.builder, strategy.size, shoppers.builder, shoppers.size, run.policy)
    return strategy


def _words(shoppers: FittedShoppers, run: Run, builder: ContextBuilder) -> WordChoice:
    """Return the language model of a run that chooses by words, from contexts of ``builder``."""
    if not find_directory(run.words).is_dir():
        remedy = f"train one with `hawker words {run.path}`"
        raise InputError("the run has no language model that chooses by words", where=run.path, remedy=remedy)
    strategy = WordChoice.load(run.words, shoppers.arrivals["judge"].shopper.device)
    _require_same_shoppers(strategy.trained_on, shoppers, run)
    _require_same_shop(strategy.builder, strategy.size, builder, shoppers.size, run.words)
    return strategy


def _require_policy(run: Run, *, whole: bool) -> None:
    """Refuse a run without a policy, and one whose policy decides something else than is compared.

    Args:
        run: The run.
        whole: Whether whole pages are compared.
    """
    remedy = f"train one with `hawker train {run.path}`"
    if not find_directory(run.policy).is_dir():
        raise InputError("the run has no trained policy", where=run.path, remedy=remedy)
    is_whole = "page" in read_json(verify_directory(run.policy, "policy") / POLICY)
    if is_whole != whole:
        got, expected = ("whole pages", "slates") if is_whole else ("slates", "whole pages")
        what = "the policy decides something else than the run's shoppers are shown"
        raise InputError(what, where=run.policy, got=got, expected=expected, remedy=remedy)


def _require_same_shoppers(trained_on: dict[str, Any], shoppers: FittedShoppers, run: Run) -> None:
    if trained_on.get("shoppers") != shoppers.digest:
        remedy = f"train it anew with `hawker train {run.path}`"
        raise InputError("the policy was trained against other shoppers", where=run.policy, remedy=remedy)


def load_page_arm(name: str, shoppers: FittedShoppers, run: Run, reward: RewardSpec) -> PageArm:
    """Return an arm of whole pages on a run's judge.

    Args:
        name: "random", "popularity" and "clone" or "clone:LOGS": as in ``load_arm``, the clone with the log's ads,
            offers and lines; "myopic", what pays best at once; "trained", the run's own policy; "likeliest", its
            likeliest pages; "strategist", these with the lines of the run's copy bank; "words", the run's language
            model that chooses slates by words; the path of another run with shoppers of its own, whose policy sees
            through their reader.
        shoppers: The run's shoppers; they have a memory.
        run: The run.
        reward: What the myopic strategy earns by.

    Returns:
        The arm; its strategy is called as ``name`` says.

    Raises:
        InputError: As in ``load_arm``.
    """
    if name in ("trained", "likeliest"):
        _require_policy(run, whole=True)
        return _page_policy(run, name, shoppers, shoppers)
    if name == "strategist":
        _require_policy(run, whole=True)
        return _strategist(run, shoppers)
    world, rules = read(shoppers, shoppers.world("judge"), reward), Rules()
    if name == "myopic":
        return PageArm(myopic(world, reward), world, rules)
    if name == "clone" or name.startswith("clone:"):
        return PageArm(_page_clone(name, shoppers), world, rules)
    if name == "words":
        return PageArm(_words(shoppers, run, world.builder), world, rules)
    if name in NAMES:
        return PageArm(load_arm(name, shoppers, run), world, rules)
    other = Run(Path(name))
    if (find_directory(other.path) / MANIFEST).is_file():
        return _page_bundle(other.path, name, shoppers)
    if not name or not find_directory(other.policy).is_dir():
        return PageArm(_from_path(name, shoppers, PAGE_NAMES), world, rules)  # says what is wrong with the name
    _require_policy(other, whole=True)
    arm = _page_policy(other, "trained", load_shoppers(other.shoppers, world.device), shoppers)
    arm.strategy.name = name
    return arm


def _page_policy(run: Run, name: str, theirs: FittedShoppers, shoppers: FittedShoppers) -> PageArm:
    """Return the policy of a run as an arm on the judge of ``shoppers``, read through ``theirs``."""
    judge = shoppers.world("judge")
    strategy = PageStrategy.load(run.policy, judge.device)
    _require_same_shoppers(strategy.trained_on, theirs, run)
    config = from_dict(TrainConfig, strategy.trained_on.get("config"), run.policy / POLICY)
    _require_same_shop(theirs.builder, theirs.size, shoppers.builder, shoppers.size, run.path)
    try:
        world = read(theirs, judge, config.reward)
    except ValueError as error:
        raise InputError(str(error), where=run.path, expected="lines of copy that the run's shoppers know") from None
    _require_same_shop(strategy.builder, strategy.size, world.builder, world.size, run.policy)
    logged = theirs.ensembles["train"].models[0].logged_lines
    if strategy.lines != world.lines[:logged]:
        raise InputError("a policy for other lines of copy", where=run.policy, got=len(strategy.lines))
    arm = LikeliestPages(strategy) if name == "likeliest" else strategy
    return PageArm(arm, world, rules_of(config))


def _strategist(run: Run, shoppers: FittedShoppers) -> PageArm:
    """Return the run's likeliest pages with the lines of its copy bank, which the judge's shoppers understand."""
    if not find_directory(run.bank).is_dir():
        remedy = f"fill one with `hawker writer bank {run.path}`"
        raise InputError("the run has no copy bank", where=run.path, remedy=remedy)
    bank = CopyBank.load(run.bank)  # whichever rules its lines have passed: nobody but simulated shoppers sees them
    shoppers = shoppers.with_lines(bank.texts(SURFACE))
    return _with_bank(_page_policy(run, "likeliest", shoppers, shoppers), page_copy(bank, shoppers))


def _with_bank(pages: PageArm, said: PageCopy) -> PageArm:
    """Return an arm with the lines of a copy bank, which its judge's shoppers understand."""
    world = pages.world
    assert isinstance(world, ReadWorld)
    assert isinstance(pages.strategy, (DrawnPages, LikeliestPages))
    told = said.audiences.labels, said.discounts, said.surface, world.lines, world.device
    table = BankTable.of(said.bank, world.builder.catalog.item_ids, *told)
    return PageArm(Strategist(pages.strategy, table), AudienceWorld(world, said.audiences), pages.rules)


def _page_bundle(path: Path, name: str, shoppers: FittedShoppers) -> PageArm:
    """Return a bundle as an arm on the judge of the shoppers that it was trained against, who read for it too."""
    bundle = load_bundle(path)
    if not isinstance(bundle, PageBundle):
        raise InputError(
            "a bundle of slates", where=path, expected="one of whole pages, as the run's shoppers are shown"
        )
    trained_on = bundle.manifest["trained_on"]
    if trained_on.get("shoppers") != shoppers.digest:
        remedy = "compare it on the run that it was exported from"
        raise InputError("the bundle was trained against other shoppers", where=path, remedy=remedy)
    config = from_dict(TrainConfig, trained_on.get("config"), path / MANIFEST)
    if bundle.copy is not None:
        shoppers = shoppers.with_lines(bundle.lines)
    arm = PageArm(ServedPages(bundle), read(shoppers, shoppers.world("judge"), config.reward), rules_of(config))
    arm = arm if bundle.copy is None else _with_bank(arm, bundle.copy)
    arm.strategy.name = name
    return arm


def require_without_history(names: Sequence[str], shoppers: FittedShoppers) -> None:
    """Refuse to value off-policy what decides by a shopper's history.

    Args:
        names: Of strategies, as ``load_arm`` takes them.
        shoppers: The run's shoppers.
    """
    if not remember(shoppers):
        return
    for name in names:
        if name not in NAMES[:3] and not name.startswith("clone:"):
            raise InputError(
                "no off-policy estimate of whole pages: they are chosen by each shopper's history, which no row tells, "
                "and a log holds hardly any page that they would show",
                where="policy",
                got=name,
                expected="random, popularity, clone or clone:LOGS",
                remedy="compare whole pages with `hawker ab`",
            )


def training_of(run: Run) -> TrainConfig:
    """Return how a run's policy was trained, or, where it has none, how it would be unless told otherwise."""
    if find_directory(run.policy).is_dir():
        return load_config(TrainConfig, run.policy / "config.yaml")
    return defaults_for(run.shoppers)


def _page_clone(name: str, shoppers: FittedShoppers) -> PageClone:
    """Return the clone of the strategy that wrote the run's log, or another one, whole pages and all."""
    items = load_arm(name, shoppers, Run(Path()))
    assert isinstance(items, LoggingClone)
    logs = name.partition(":")[2]
    impressions = require_impressions(read_logs(Path(logs))) if logs else shoppers.read_part("train")
    parts = parts_of(shoppers, RewardSpec())
    lines = () if shoppers.lines is None else shoppers.lines.texts
    return PageClone.fit(items, impressions, shoppers.builder.catalog, parts.ad, parts.offer, lines)


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


def _from_path(name: str, shoppers: FittedShoppers, names: tuple[str, ...] = NAMES) -> Strategy:
    path = find_directory(Path(name))
    policy = Run(path).policy
    strategy: TrainedStrategy | ServedStrategy
    if (path / MANIFEST).is_file():
        bundle = Bundle.load(path)
        strategy, builder = ServedStrategy(bundle), bundle.builder
    elif find_directory(policy).is_dir():
        _require_policy(Run(path), whole=False)
        strategy = TrainedStrategy.load(policy, shoppers.arrivals["judge"].shopper.device)
        builder = strategy.builder
    elif name and path.exists():
        expected = f"a run with a trained policy, or a bundle with a {MANIFEST}"
        raise InputError("no strategy here", where=path, expected=expected)
    else:
        expected = "a known name, or the directory of a run or a bundle"
        remedy = did_you_mean(name, (*names, "clone:LOGS"))
        raise InputError("unknown strategy", where="arms", got=name, expected=expected, remedy=remedy)
    _require_same_shop(builder, strategy.size, shoppers.builder, shoppers.size, path)
    strategy.name = name
    return strategy


def _require_same_shop(builder: ContextBuilder, size: int, world: ContextBuilder, slots: int, where: Path) -> None:
    """Refuse a strategy to which an index, a feature or a slot means something else than to the run's shoppers."""
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
    if size != slots:
        raise InputError("a policy for pages of another size", where=where, got=size, expected=str(slots))
