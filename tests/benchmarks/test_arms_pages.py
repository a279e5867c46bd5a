"""Arms of whole pages by name: what they are, and what is refused."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from hawker.agents.config import WHOLE_PAGES, TrainConfig
from hawker.agents.page_world import read
from hawker.agents.writer_data import tier_discounts
from hawker.benchmarks.arms import load_arm, load_page_arm, require_without_history, training_of
from hawker.envs.page import Rules
from hawker.policies.copy_bank import CopyBank
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import LikeliestPages, PageActor, PageStrategy
from hawker.policies.page_clone import PageClone
from hawker.policies.slate import SlateActor
from hawker.policies.strategist import Strategist, audience_of
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import write_directory
from hawker.shop.config import save_config, to_dict
from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.store import FittedShoppers, load_shoppers

CPU = torch.device("cpu")
CONFIG = dataclasses.replace(WHOLE_PAGES, ad_gap=2, ad_cap=0.5, horizon=9.0)


def save_policy(run: Run, shoppers: FittedShoppers, config: TrainConfig = CONFIG, digest: str | None = None) -> None:
    """Write an untrained policy of whole pages."""
    world = read(shoppers, shoppers.world("judge"), config.reward)
    layout = PageLayout(world.size, ad=True, offers=world.offers, lines=len(world.lines))
    actor = PageActor(
        layout, world.builder, 8, torch.Generator().manual_seed(0), world.bids.numpy(), shoppers.lines.scaled
    )
    trained_on = {"shoppers": digest or shoppers.digest, "config": to_dict(config)}
    with write_directory(run.policy, "policy") as scratch:
        PageStrategy(actor, world.builder, world.lines, trained_on).save(scratch)
        save_config(config, scratch / "config.yaml")


def save_slates(run: Run, builder: ContextBuilder, size: int, digest: str) -> None:
    with write_directory(run.policy, "policy") as scratch:
        actor = SlateActor(builder, size, 8, torch.Generator().manual_seed(0))
        TrainedStrategy(actor, builder, {"shoppers": digest}).save(scratch)


@pytest.fixture(scope="module")
def home(remembering, tmp_path_factory) -> Path:
    """``run`` with shoppers and an untrained policy; ``again`` is a copy of it; ``bundle`` is one by name."""
    home = tmp_path_factory.mktemp("arms")
    for name in ("run", "again"):
        shutil.copytree(remembering / "run", home / name)
        run = Run(home / name)
        save_policy(run, load_shoppers(run.shoppers, CPU))
    (home / "bundle").mkdir()
    (home / "bundle" / "manifest.json").write_text("{}")
    return home


@pytest.fixture(scope="module")
def shoppers(home) -> FittedShoppers:
    return load_shoppers(Run(home / "run").shoppers, CPU)


def page(arm, n: int = 40):
    generator = torch.Generator().manual_seed(0)
    return arm.strategy.propose(arm.world.arrive(n, generator).context, generator)


def test_the_run_s_own_policy_is_two_arms(home, shoppers):
    drawn, likeliest = (
        load_page_arm(name, shoppers, Run(home / "run"), CONFIG.reward) for name in ("trained", "likeliest")
    )
    assert isinstance(drawn.strategy, PageStrategy)
    assert isinstance(likeliest.strategy, LikeliestPages)
    assert (drawn.strategy.name, likeliest.strategy.name) == ("trained", "likeliest")
    assert drawn.rules == likeliest.rules == Rules(9.0, 2, 0.5)
    assert not torch.equal(page(drawn).slate, page(likeliest).slate)
    assert torch.equal(page(likeliest).slate, page(likeliest).slate)
    assert drawn.world.world.ensemble is shoppers.ensembles["judge"]
    assert drawn.world.model is shoppers.ensembles["train"].models[0]
    assert training_of(Run(home / "run")) == CONFIG


def test_baselines(home, shoppers):
    random, popularity, myopic, clone = (
        load_page_arm(name, shoppers, Run(home / "run"), CONFIG.reward)
        for name in ("random", "popularity", "myopic", "clone")
    )
    names = [arm.strategy.name for arm in (random, popularity, myopic, clone)]
    assert names == ["random", "popularity", "myopic", "clone"]
    for arm in (random, popularity):
        assert (page(arm).ad, page(arm).copy, page(arm).offer) == (None, None, None)
    assert (page(myopic).copy >= 0).all()
    assert isinstance(clone.strategy, PageClone)
    rows = read_logs(shoppers.logs).impressions
    ads = rows.groupby(["visit_id", "page"])["placement"].agg(lambda kinds: (kinds == "ad").any()).mean()
    assert float((page(clone, 2_000).ad >= 0).float().mean()) == pytest.approx(ads, abs=0.08)
    logs = str(shoppers.logs)
    assert load_page_arm(f"clone:{logs}", shoppers, Run(home / "run"), CONFIG.reward).strategy.name == f"clone:{logs}"


def test_another_run_sees_through_its_own_reader(home, shoppers):
    again = load_page_arm(str(home / "again"), shoppers, Run(home / "run"), CONFIG.reward)
    assert again.strategy.name == str(home / "again")
    assert again.world.model is not shoppers.ensembles["train"].models[0]
    assert again.world.world.ensemble is shoppers.ensembles["judge"]
    own = load_page_arm("trained", shoppers, Run(home / "run"), CONFIG.reward)
    assert torch.equal(page(own).slate, page(again).slate)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("likliest", "arms: unknown strategy; got 'likliest', expected a known name, or the directory of a run or a "
                     "bundle; did you mean 'likeliest'?"),
        ("", "arms: unknown strategy; got ''"),
        ("clone:", "arms: no logs to clone; got 'clone:'"),
        ("clone:{home}/nowhere", "{home}/nowhere: no such directory"),
        ("{home}", "{home}: no strategy here"),
        ("{home}/nowhere", "arms: unknown strategy; got '{home}/nowhere'"),
        ("{home}/bundle", "{home}/bundle"),
    ],
)  # fmt: skip
def test_unknown_names(home, shoppers, name, message):
    with pytest.raises(InputError) as caught:
        load_page_arm(name.format(home=home), shoppers, Run(home / "run"), CONFIG.reward)
    assert message.format(home=home) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["trained", "likeliest"])
def test_policies_that_do_not_fit(home, shoppers, tmp_path, name):
    run = Run(tmp_path / "run")
    with pytest.raises(InputError, match=r"the run has no trained policy; train one with `hawker train"):
        load_page_arm(name, shoppers, run, CONFIG.reward)
    save_slates(run, shoppers.builder, shoppers.size, shoppers.digest)
    with pytest.raises(InputError, match=r"something else than the run's shoppers are shown; got 'slates', expected w"):
        load_page_arm(name, shoppers, run, CONFIG.reward)
    save_policy(run, shoppers, digest="another")
    with pytest.raises(InputError, match=r"trained against other shoppers; train it anew with `hawker train"):
        load_page_arm(name, shoppers, run, CONFIG.reward)
    with pytest.raises(InputError, match=r"no shoppers here"):
        load_page_arm(str(run.path), shoppers, Run(home / "run"), CONFIG.reward)


def test_whole_pages_are_no_arm_of_slates(home, tmp_path, shoppers):
    with pytest.raises(InputError, match=r"something else .* got 'whole pages', expected slates"):
        load_arm("trained", shoppers, Run(home / "run"))
    with pytest.raises(InputError, match=r"something else .* got 'whole pages', expected slates"):
        load_arm(str(home / "again"), shoppers, Run(tmp_path))


def test_a_run_whose_shoppers_know_other_lines(home, shoppers, tmp_path):
    logs = tmp_path / "logs"
    shutil.copytree(shoppers.logs, logs)
    (logs / "checksums.json").unlink()
    path = logs / "impressions.parquet"
    rows = read_logs(shoppers.logs).impressions
    said = rows["copy"].dropna().iloc[0]
    rows.assign(copy=rows["copy"].replace({said: "Nothing like it was ever said before"})).to_parquet(path)
    run = Run(tmp_path / "run")
    other, _ = fit(logs, run.shoppers, FitConfig(members=1, epochs=1, device="cpu"), lambda line: None)
    save_policy(run, other)
    with pytest.raises(InputError, match=r"line that the world does not know; expected lines of copy that the run's"):
        load_page_arm(str(run.path), shoppers, Run(home / "run"), CONFIG.reward)


def test_off_policy_estimates_of_whole_pages_are_refused(home, shoppers, remembering_items):
    require_without_history(("random", "popularity", "clone", "clone:logs"), shoppers)
    for name in ("trained", "likeliest", "myopic", "runs/other"):
        with pytest.raises(InputError) as caught:
            require_without_history(("random", name), shoppers)
        assert f"got '{name}', expected random, popularity, clone" in str(caught.value)
        assert "hawker ab" in str(caught.value)
    slates = dataclasses.replace(shoppers, ensembles={"train": _Forgetful()})
    require_without_history(("trained",), slates)


class _Forgetful:
    models = (type("Model", (), {"memory": None})(),)


def test_how_a_run_without_a_policy_would_be_trained(remembering_items, tmp_path):
    shutil.copytree(remembering_items / "run", tmp_path / "run")
    assert training_of(Run(tmp_path / "run")) == dataclasses.replace(WHOLE_PAGES, reward=RewardSpec())


def test_a_bundle_draws_as_the_policy_that_it_was_exported_from(served_pages):
    run = Run(served_pages / "run")
    shoppers = load_shoppers(run.shoppers, CPU)
    own, served = (
        load_page_arm(name, shoppers, run, CONFIG.reward) for name in ("trained", str(served_pages / "bundle"))
    )
    assert served.strategy.name == str(served_pages / "bundle")
    assert served.rules == own.rules
    context = own.world.arrive(50, torch.Generator().manual_seed(3)).context
    decision = own.strategy.propose(context, torch.Generator().manual_seed(4))
    one, other = (arm.strategy.log_prob(context, decision).double() for arm in (own, served))
    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_a_bundle_of_other_shoppers_is_refused(served_pages):
    run = Run(served_pages / "run")
    others = dataclasses.replace(load_shoppers(run.shoppers, CPU), digest="another")
    with pytest.raises(InputError, match=r"the bundle was trained against other shoppers; compare it on the run that"):
        load_page_arm(str(served_pages / "bundle"), others, run, CONFIG.reward)


def test_the_strategist_is_the_likeliest_pages_with_lines_of_the_bank(served_bank):
    run = Run(served_bank / "run")
    shoppers = load_shoppers(run.shoppers, CPU)
    plain, arm = (load_page_arm(name, shoppers, run, CONFIG.reward) for name in ("likeliest", "strategist"))
    assert isinstance(arm.strategy, Strategist)
    assert (arm.strategy.name, arm.rules) == ("strategist", plain.rules)
    assert isinstance(arm.world, AudienceWorld)
    bank = CopyBank.load(run.bank)
    assert arm.world.lines == (*plain.world.lines, *dict.fromkeys(bank.texts("headline")))
    assert {type(each.judge) for each in (plain, arm)} == {LearnedWorld}
    generator = torch.Generator().manual_seed(0)
    here = arm.world.arrive(200, generator)
    decision = arm.strategy.propose(here.context, generator)
    assert torch.equal(arm.strategy.log_prob(here.context, decision), decision.log_prob)
    same = plain.strategy.propose(audience_of(here.context)[0], generator)
    for part in ("slate", "ad", "offer"):
        assert torch.equal(getattr(decision, part), getattr(same, part)), part
    assert (decision.copy >= len(plain.world.lines)).all()  # no line of the log is in this bank
    ids, labels = arm.world.builder.catalog.item_ids, arm.world.audiences.labels
    discounts = tier_discounts(shoppers.read_part("train"), read_logs(shoppers.logs).items)
    audience = here.context.shopper[:, -1].long().tolist()
    asked = [
        (ids[item], labels[who], discounts.get(tier, 0.0), arm.world.lines[line])
        for who, tier, slate, said in zip(
            audience, decision.offer.tolist(), decision.slate.tolist(), decision.copy.tolist(), strict=True
        )
        for item, line in zip(slate, said, strict=True)
    ]
    items, whose, off, lines = zip(*asked, strict=True)
    expected = bank.probabilities(items, whose, off, "headline", lines).reshape(decision.slate.shape)
    assert decision.log_probs["copy"].exp().numpy() == pytest.approx(expected.prod(1), rel=1e-4)
    assert 0 < (expected < 1).mean() < 1, "some items have lines, others their template"


def test_a_run_without_a_bank_has_no_strategist(home, shoppers):
    with pytest.raises(InputError, match=r"run: the run has no copy bank; fill one with `hawker writer bank"):
        load_page_arm("strategist", shoppers, Run(home / "run"), CONFIG.reward)


def test_a_bundle_with_a_bank_says_its_lines(served_bank):
    run, bundle = Run(served_bank / "run"), served_bank / "bundle"
    shoppers = load_shoppers(run.shoppers, CPU)
    arm = load_page_arm(str(bundle), shoppers, run, CONFIG.reward)
    assert isinstance(arm.strategy, Strategist)
    assert arm.strategy.name == str(bundle)
    generator = torch.Generator().manual_seed(0)
    context = arm.world.arrive(50, generator).context
    decision = arm.strategy.propose(context, generator)
    assert torch.equal(arm.strategy.log_prob(context, decision), decision.log_prob)
    assert list(decision.log_probs) == ["slate", "ad", "offer", "copy"]
    assert {arm.world.lines[line] for line in decision.copy.unique()} <= set(CopyBank.load(run.bank).texts("headline"))
