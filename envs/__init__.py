"""Gymnasium environments; importing this package registers them."""

from __future__ import annotations

import gymnasium as gym

for _name in ("Storefront", "Recommend", "AdPlacement", "Copywriting"):
    gym.register(
        id=f"hawker/{_name}-v0",
        entry_point=f"hawker.envs.environments:{_name}Env",
        vector_entry_point=f"hawker.envs.environments:{_name}VectorEnv",
    )
