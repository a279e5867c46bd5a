"""Pages as text."""

import gymnasium as gym
import numpy as np
import torch

import hawker.envs  # noqa: F401  # registers the environments
from hawker.envs.page import STOREFRONT
from hawker.envs.render import describe
from hawker.envs.storefront import Storefront
from hawker.shop.decision import EMPTY
from hawker.shop.reward import RewardSpec


def test_render_names_features_candidates_and_affinities(world):
    env = gym.make("hawker/Recommend-v0", world=world, render_mode="ansi")
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        if observation["affinity"][0]:
            break
    shopper, candidates, affinity = env.render().splitlines()
    age = observation["shopper"][world.builder.shopper.numeric.index("age")]
    assert f"age {age:.3g}" in shopper
    assert "segment=" in shopper
    assert candidates == "candidates: 20 of 20 items"
    assert affinity == "affinity with: item-0"


def test_the_page_answered_is_shown_with_all_its_parts(calendar):
    world = calendar(gone=lambda number: number == 1)
    shop = Storefront(world, 2, RewardSpec(), STOREFRONT)
    shop.reset(0)
    assert "page answered" not in describe(shop, 0)
    titles = ["apron", "basket", "cup", "dish", "egg", "fan"]
    shop.step(torch.tensor([[2, 3, 3, 5, 1, 1, 0, 2, 0], [2, 3, 4, 6, 0, 0, 2, 2, 1]]))
    assert describe(shop, 0, titles).splitlines()[3:] == [
        "page answered, offer 1:",
        '  0. cup: "old" <- clicked',
        "  1. fan [ad]",
        '  2. dish: "old"',
        "left, and came back after 3 days",
    ]
    shop.step(torch.tensor([[2, 2, 2, 6, 1, 0, 0, 2, 0]] * 2))
    assert "  1. (empty)" in describe(shop, 0)
    shop.reset(0)
    assert "page answered" not in describe(shop, 0)


def test_who_is_gone_is_said_to_be(calendar):
    shop = Storefront(calendar(gone=torch.ones_like), 1, RewardSpec())
    shop.reset(0)
    shop.step(torch.tensor([[2, 3, EMPTY]]))
    text = describe(shop, 0)
    assert text.endswith("gone for good")
    assert "  0. item-2 <- clicked" in text


def test_purchases_are_told():
    env = gym.make("hawker/Storefront-v0", render_mode="ansi", titles=[f"thing {i}" for i in range(60)])
    env.reset(seed=0)
    texts = []
    for _ in range(150):
        *_, terminated, truncated, _ = env.step(np.array([0, 1, 2, 12, 0, 3, 188, 188, 188]))
        texts.append(env.render())
        if terminated or truncated:
            env.reset()
    assert any(" <- clicked, bought" in text for text in texts)
    assert "thing " in texts[0]
