"""Gymnasium environments; importing this package registers them."""

from __future__ import annotations

import gymnasium as gym

gym.register(
    id="hawker/Recommend-v0",
    entry_point="hawker.envs.storefront:RecommendEnv",
    vector_entry_point="hawker.envs.storefront:RecommendVectorEnv",
)
