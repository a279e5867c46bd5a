"""A first guess for PPO over whole pages: what another strategy would do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hawker.agents.page_ppo import Observation, PagePPO
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page import PageChoice
from hawker.policies.protocol import Strategy
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY

PAGES = 32
"""Pages of each shopper of the batch that are imitated."""

EPOCHS = 4
LEARNING_RATE = 1e-2


def imitate(model: PagePPO, teacher: Strategy, seed: int) -> float:
    """Let an untrained strategy begin as another one: behaviour cloning (Pomerleau 1991) in the world to learn from.

    The teacher shows its pages to the shoppers of the batch; the actor then learns to make them likely. A teacher that
    shows no ads teaches to show none.

    Args:
        model: Fresh from ``page_ppo``.
        teacher: What decides.
        seed: Of what it draws, and of the order of minibatches.

    Returns:
        The mean negative log-likelihood of the pages over the last epoch, in nats.
    """
    env, policy = model.env, model.policy
    assert isinstance(env, StorefrontVecEnv)
    shop, generator = env.storefront, torch.Generator(model.device).manual_seed(seed)
    shop.reset(seed)
    seen: list[tuple[Observation, Tensor]] = []
    for _ in range(PAGES):
        here = shop.observation
        context = Context(here["shopper"], here["candidates"], here["mask"].bool(), here["affinity"])
        decision = teacher.propose(context, generator)
        if policy.actor.layout.ad and decision.ad is None:
            decision = replace(decision, ad=torch.full_like(decision.slate[:, 0], EMPTY))
        page = PageChoice.of(context, decision)
        actions = policy.actor.layout.actions(page, shop.world.choices)
        seen.append(({name: value.clone() for name, value in here.items()}, actions))
        shop.step(actions)
    actions = torch.cat([action for _, action in seen])
    observations = {name: torch.cat([here[name] for here, _ in seen]) for name in seen[0][0]}
    optimizer, loss = torch.optim.Adam(policy.actor.parameters(), lr=LEARNING_RATE), torch.zeros(())
    for _epoch in range(EPOCHS):
        losses = []
        for rows in torch.randperm(len(actions), generator=generator, device=actions.device).split(model.batch_size):
            taught = policy.get_distribution({name: value[rows] for name, value in observations.items()})
            loss = -taught.log_prob(actions[rows]).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        loss = torch.stack(losses).mean()
    return float(loss)
