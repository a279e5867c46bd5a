"""PPO is timed on whole rollouts; that it happens in another process is test_speed's to see."""

from hawker.agents.config import PageTrainConfig
from hawker.benchmarks.speed_learning import Learning, learn
from hawker.shop.reward import RewardSpec
from hawker.simulators.store import FittedShoppers


def test_every_rollout_is_timed_but_the_first_two(untrained: FittedShoppers):
    learning = Learning(PageTrainConfig(shoppers=64, pages=2, batch=64), RewardSpec(), 28.0, 3, 1)
    rates, peak = learn(lambda: untrained.world("train"), learning)
    assert len(rates) == 3
    assert min(rates) > 0
    assert 100 < peak < 10_000
