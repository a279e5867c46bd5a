"""PPO over whole pages: stable-baselines3's learner with rollouts that stay tensors on one device.

What differs from stable-baselines3: the environment is stepped as tensors and its truncations get their value estimate
in one batch; each page has its own discount, by the days that pass; rewards reach the critic in units of the returns'
running root mean square; advantages are normalised over a rollout; minibatches have a generator of their own.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from hawker.agents.config import PageTrainConfig
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page import PageDistribution, PageLayout, sum_of
from hawker.policies.page_actor import PageActor
from hawker.policies.slate import Linear, initialise
from hawker.shop.context import Context, ContextBuilder

Observation = dict[str, Tensor]
"""N pages as the storefront shows them, each (N, ...)."""


class PageActionDistribution(Distribution):
    """Pages as actions, in the form that stable-baselines3 expects of a distribution."""

    def __init__(self, pages: PageDistribution, choices: int, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pages, self._choices, self._generator = pages, choices, generator
        self._seen: tuple[Tensor, Tensor] | None = None

    def sample(self) -> Tensor:
        """Draw actions, shape (B, width)."""
        return self._pages.layout.actions(self._pages.sample(self._generator), self._choices)

    def mode(self) -> Tensor:
        """Return the actions that take the likeliest value of each part in turn, shape (B, width)."""
        return self._pages.layout.actions(self._pages.mode(), self._choices)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability of actions (B, width): shape (B,)."""
        page = self._pages.layout.page(actions, self._choices)
        log_probs, entropies = self._pages.log_probs_and_entropies(page)
        self._seen = sum_of(log_probs), sum_of(entropies)
        return self._seen[0]

    def entropy(self) -> Tensor:
        """Return the conditional entropies summed along the actions that ``log_prob`` saw last, shape (B,)."""
        assert self._seen is not None, "call log_prob first"
        return self._seen[1]

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Not used: the actor is the network."""
        raise TypeError("the page actor makes the logits")

    def proba_distribution(self, *args: Any, **kwargs: Any) -> PageActionDistribution:
        """Return the distribution, which has its logits from the start."""
        return self

    def actions_from_params(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draw actions, shape (B, width)."""
        return self.sample()

    def log_prob_from_params(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Draw actions (B, width) and return them with their log-probabilities (B,)."""
        actions = self.sample()
        return actions, self.log_prob(actions)


class ReturnScale(nn.Module):
    """The root mean square of discounted returns so far: the unit in which the critic learns.

    Attributes:
        square: Mean square of the returns, shape ().
        count: Returns seen, shape ().
        carried: Each shopper's return up to the last page, shape (N,).
    """

    square: Tensor
    count: Tensor
    carried: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("square", torch.ones((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("carried", torch.zeros(n))

    @property
    def unit(self) -> Tensor:
        """What to divide rewards by, shape ()."""
        return self.square.sqrt().clamp(min=1e-8).float()

    def update(self, rewards: Tensor, discounts: Tensor, ended: Tensor) -> None:
        """Take in a rollout: rewards, discounts of what follows and where episodes ended, (T, N) each."""
        squares = torch.zeros_like(self.square)
        for reward, kept in zip(rewards, discounts * ~ended, strict=True):
            self.carried = self.carried + reward
            squares += self.carried.double().square().sum()
            self.carried = self.carried * kept
        total = self.count + rewards.numel()
        self.square = torch.where(self.count > 0, self.square * (self.count / total), 0.0) + squares / total
        self.count = total


class PageActorCriticPolicy(ActorCriticPolicy):
    """The page actor with a critic; takes the observations of ``hawker/Storefront-v0``.

    The actor sees the context and which candidates may be ads, as a strategy does wherever it is used. The critic also
    sees the number of the page in its visit and the days since the page before.

    Attributes:
        actor: Scores every part of a page.
        critic: Estimates the value of a page.
        returns: The unit of its estimates.
        generator: Source of the drawn pages.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        use_sde: bool = False,
        *,
        layout: PageLayout,
        builder: ContextBuilder,
        hidden: int,
        seed: int,
        device: torch.device,
        n: int,
        bids: npt.NDArray[Any] | None,
        line_vectors: npt.NDArray[np.float32] | None,
    ) -> None:
        """Set up the policy.

        Args:
            observation_space: From PPO.
            action_space: From PPO.
            lr_schedule: From PPO.
            use_sde: From PPO.
            layout: Which parts are chosen.
            builder: The shop's contexts and catalog.
            hidden: Width.
            seed: Of the first weights and of what is drawn.
            device: Where it will live.
            n: Shoppers simulated at once.
            bids: Of each catalog item, shape (I,); see ``PageActor``.
            line_vectors: Of the bank, shape (L, w); see ``PageActor``.
        """
        self._made_of = (layout, builder, hidden, bids, line_vectors)
        self._seed, self._device, self._n = seed, device, n
        super().__init__(observation_space, action_space, lr_schedule, use_sde=use_sde)

    def _build(self, lr_schedule: Schedule) -> None:
        layout, builder, hidden, bids, line_vectors = self._made_of
        generator = torch.Generator().manual_seed(self._seed)
        self.actor = PageActor(layout, builder, hidden, generator, bids, line_vectors)
        assert isinstance(self.observation_space, spaces.Dict)
        self._clocks = [name for name in ("page", "gap") if name in self.observation_space.spaces]
        width, value = builder.shopper.width + len(self._clocks), Linear(hidden, 1)
        self.critic = nn.Sequential(Linear(width, hidden), nn.Tanh(), Linear(hidden, hidden), nn.Tanh(), value)
        initialise(self.critic, generator)
        nn.init.zeros_(value.weight)  # or its first guesses would drown the differences between pages
        self.returns = ReturnScale(self._n)
        self.generator = torch.Generator(self._device).manual_seed(self._seed)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5, fused=True)

    def get_distribution(self, obs: Any) -> PageActionDistribution:
        """Return the distribution over pages for observations."""
        context = Context(obs["shopper"], obs["candidates"], obs["mask"].bool(), obs["affinity"])
        ad_mask = obs["ad_mask"].bool() if "ad_mask" in obs else None
        with torch.autocast(context.mask.device.type, torch.bfloat16, enabled=context.mask.device.type == "cuda"):
            pages = self.actor.distribution(context, ad_mask, obs.get("given"))
        return PageActionDistribution(pages, context.mask.shape[1], self.generator)

    def predict_values(self, obs: Any) -> Tensor:
        """Return the value of each page in units of ``returns.unit``, shape (B, 1)."""
        slate, shopper = self.actor.slate, obs["shopper"]
        parts = [(shopper - slate.shopper_centre) / slate.shopper_spread]
        parts += [obs[name].reshape(len(shopper), 1).float().clamp(min=0).log1p() for name in self._clocks]
        values: Tensor = self.critic(torch.cat(parts, 1))
        return values

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (B, width), values (B, 1) and log-probabilities (B,)."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (B, 1), log-probabilities (B,) and entropies (B,) of actions (B, width)."""
        distribution = self.get_distribution(obs)
        log_prob = distribution.log_prob(actions)
        return self.predict_values(obs), log_prob, distribution.entropy()


class TensorRolloutBuffer(DictRolloutBuffer):
    """A rollout of T pages of N shoppers as tensors on one device, in memory that every rollout uses again.

    Whole numbers take the smallest type that holds their space. ``rewards``, ``values`` and ``returns`` are NumPy
    arrays (T, N) for reports, from the moment the rollout is complete.

    Attributes:
        generator: Source of the order of minibatches, on the device.
    """

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._kept: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Start a new rollout."""
        self.pos, self.full, self.generator_ready = 0, False, False

    def put(self, observation: Observation, **page: Tensor) -> None:
        """Keep one page of every shopper.

        Args:
            observation: What was seen, each (N, ...).
            page: ``actions`` (N, width); ``rewards``, ``discounts``, ``ended`` (where an episode did), ``bootstraps``
                (value of what was cut off), ``values`` and ``log_probs``, (N,) each.
        """
        for name, value in ({f"obs.{name}": value for name, value in observation.items()} | page).items():
            if name not in self._kept:
                shape, dtype = (self.buffer_size, *value.shape), self._type(name, value)
                self._kept[name] = torch.empty(shape, dtype=dtype, device=self.device)
            self._kept[name][self.pos].copy_(value)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def _type(self, name: str, value: Tensor) -> torch.dtype:
        if value.dtype not in (torch.int64, torch.int32):
            return value.dtype
        if name == "actions":
            assert isinstance(self.action_space, spaces.MultiDiscrete)
            largest = int(self.action_space.nvec.max())
        elif name == "obs.candidates":
            space = self.observation_space["candidates"]
            assert isinstance(space, spaces.Box)
            largest = int(space.high.max())
        else:
            return value.dtype
        return torch.int16 if largest < 2**15 else torch.int32

    def finish(self, last_values: Tensor, returns: ReturnScale) -> None:
        """Compute returns and advantages once the rollout is full.

        Args:
            last_values: Of the pages after the last, shape (N,).
            returns: Takes in the rollout, and then says in what unit rewards are.
        """
        kept = self._kept
        ended, values = kept["ended"], kept["values"]
        discounts = kept["discounts"] * self.gamma
        returns.update(kept["rewards"], discounts, ended)
        on = discounts * ~ended
        after = torch.cat([values[1:], last_values[None]])
        delta = kept["rewards"] / returns.unit + discounts * kept["bootstraps"] + on * after - values
        advantages, ahead = torch.empty_like(delta), torch.zeros_like(last_values)
        for t in reversed(range(self.buffer_size)):
            ahead = delta[t] + self.gae_lambda * on[t] * ahead
            advantages[t] = ahead
        kept["returns"] = advantages + values
        kept["advantages"] = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for name in ("rewards", "values", "returns"):
            setattr(self, name, kept[name].cpu().numpy())

    def get(  # type: ignore[override]  # as its parent does
        self, batch_size: int | None = None
    ) -> Generator[DictRolloutBufferSamples, None, None]:
        """Yield the rollout in shuffled minibatches."""
        assert self.full
        order = torch.randperm(self.buffer_size * self.n_envs, generator=self.generator, device=self.device)
        for rows in order.split(batch_size or len(order)):
            part = {name: value.flatten(0, 1)[rows] for name, value in self._kept.items() if name not in UNUSED}
            yield DictRolloutBufferSamples(
                {name.removeprefix("obs."): value for name, value in part.items() if name.startswith("obs.")},
                part["actions"].long(),
                part["values"],
                part["log_probs"],
                part["advantages"],
                part["returns"],
            )


UNUSED = ("rewards", "discounts", "ended", "bootstraps")
"""What of a rollout no gradient step needs."""


class PagePPO(PPO):
    """stable-baselines3's PPO with rollouts on the device; its policy is a ``PageActorCriticPolicy``."""

    policy: PageActorCriticPolicy

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer; False where the callback wants to stop.

        Nothing comes back from the device before the rollout is complete.
        """
        assert isinstance(rollout_buffer, TensorRolloutBuffer)
        assert isinstance(env, StorefrontVecEnv)
        assert self._last_obs is not None
        shop = env.storefront
        here = {name: torch.as_tensor(value, device=self.device) for name, value in dict(self._last_obs).items()}
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        totals: dict[str, Tensor] = {}
        for _ in range(n_rollout_steps):
            with torch.no_grad():
                actions, values, log_prob = self.policy(here)
                step = shop.step(actions)
                cut_off = torch.zeros_like(log_prob)
                if math.isfinite(shop.rules.horizon):  # whether anybody was cut off now is for the device to know
                    cut_off = self.policy.predict_values(shop.last_observation()).squeeze(1) * step.truncated
                rollout_buffer.put(
                    here,
                    actions=actions,
                    rewards=step.reward.float(),
                    discounts=step.happened["discount"].float(),
                    ended=step.terminated | step.truncated,
                    bootstraps=cut_off,
                    values=values.squeeze(1),
                    log_probs=log_prob,
                )
            for name, value in ({"reward": step.reward} | step.happened).items():
                totals[name] = totals.get(name, 0.0) + value.sum(dtype=torch.float32)
            here = step.observation
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        with torch.no_grad():
            rollout_buffer.finish(self.policy.predict_values(here).squeeze(1), self.policy.returns)
        self._last_obs = cast(Any, here)
        for name, total in totals.items():
            self.logger.record(f"rollout/{name}", float(total) / (n_rollout_steps * env.num_envs))
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True


def page_ppo(
    env: StorefrontVecEnv, config: PageTrainConfig, line_vectors: npt.NDArray[np.float32] | None = None
) -> PagePPO:
    """Return PPO over the page actor for the parts that a storefront lets it choose.

    Args:
        env: N shoppers.
        config: How to train.
        line_vectors: Vectors of the world's lines, shape (L, w), as ``Lines.scaled`` has them, where copy is chosen.
    """
    shop = env.storefront
    made_of = {"layout": shop.layout.page, "builder": shop.world.builder, "hidden": config.hidden, "seed": config.seed}
    bids = shop.world.bids.cpu().numpy()
    return PagePPO(
        PageActorCriticPolicy,
        env,
        learning_rate=config.learning_rate,
        n_steps=config.pages,
        batch_size=config.batch,
        n_epochs=config.epochs,
        gamma=config.discount,
        gae_lambda=config.trace,
        clip_range=config.clip,
        ent_coef=config.entropy,
        normalize_advantage=False,  # the buffer does it, once a rollout
        policy_kwargs=made_of
        | {"device": shop.world.device, "n": env.num_envs, "bids": bids, "line_vectors": line_vectors},
        rollout_buffer_class=TensorRolloutBuffer,
        rollout_buffer_kwargs={"seed": config.seed},
        device=shop.world.device,
    )
