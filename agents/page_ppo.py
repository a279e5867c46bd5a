"""PPO over whole pages: stable-baselines3's learner with rollouts that stay tensors on one device.

What differs from stable-baselines3: the environment is stepped as tensors and its truncations get their value estimate
in one batch; each page has its own discount, by the days that pass; rewards reach the critic in units of the returns'
running root mean square; advantages are normalised over a rollout or not at all; every part of a page has a ratio, a
clip and an advantage of its own, from which the luck of drawn leaving and returning is taken out; minibatches have a
generator of their own; rollouts that teach the critic alone leave the actor out.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from hawker.agents.config import Constraints, PageTrainConfig
from hawker.agents.constraints import Prices
from hawker.agents.page_buffer import ReturnScale, TensorRolloutBuffer
from hawker.agents.page_step import FIGURES, FlatAdam, Loss
from hawker.envs.environments import finite
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.page import PageDistribution, PageLayout, sum_of
from hawker.policies.page_actor import PageActor
from hawker.policies.slate import Linear, initialise
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import Outcome
from hawker.shop.devices import mixed_precision
from hawker.shop.errors import InputError
from hawker.shop.reward import RETURN_DAYS


class PageActionDistribution(Distribution):
    """Pages as actions, in the form that stable-baselines3 expects of a distribution."""

    def __init__(self, pages: PageDistribution, choices: int, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pages, self._choices, self._generator = pages, choices, generator
        self._entropy: Tensor | None = None

    def sample(self) -> Tensor:
        """Draw actions, shape (B, width)."""
        return self._pages.layout.actions(self._pages.sample(self._generator), self._choices)

    def mode(self) -> Tensor:
        """Return the actions that take the likeliest value of each part in turn, shape (B, width)."""
        return self._pages.layout.actions(self._pages.mode(), self._choices)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probabilities of the parts of actions (B, width), lines slot by slot: shape (B, P)."""
        log_probs, entropies = self._pages.each(self._pages.layout.page(actions, self._choices))
        self._entropy = sum_of(entropies)
        return torch.cat([part.reshape(len(actions), -1) for part in log_probs.values()], 1)

    def entropy(self) -> Tensor:
        """Return the conditional entropies summed along the actions that ``log_prob`` saw last, shape (B,)."""
        assert self._entropy is not None, "call log_prob first"
        return self._entropy

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
        """Draw actions (B, width) and return them with the log-probabilities of their parts (B, P)."""
        actions = self.sample()
        return actions, self.log_prob(actions)


class PageActorCriticPolicy(ActorCriticPolicy):
    """The page actor with a critic; takes the observations of ``hawker/Storefront-v0``.

    The actor sees the context and which candidates may be ads, as a strategy does wherever it is used. The critic also
    sees the number of the page in its visit and the days since the page before.

    Attributes:
        actor: Scores every part of a page.
        critic: Estimates the value of a page.
        returns: The unit of its estimates.
        prices: What pages pay for breaking constraints.
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
        constraints: Constraints,
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
            constraints: What has to hold over all pages together.
        """
        self._made_of = (layout, builder, hidden, bids, line_vectors, constraints)
        self._seed, self._device, self._n = seed, device, n
        super().__init__(observation_space, action_space, lr_schedule, use_sde=use_sde)

    def _build(self, lr_schedule: Schedule) -> None:
        layout, builder, hidden, bids, line_vectors, constraints = self._made_of
        generator = torch.Generator().manual_seed(self._seed)
        self.actor = PageActor(layout, builder, hidden, generator, bids, line_vectors)
        assert isinstance(self.observation_space, spaces.Dict)
        self._clocks = [name for name in ("page", "gap") if name in self.observation_space.spaces]
        width, value = builder.shopper.width + len(self._clocks), Linear(hidden, 1 + layout.size)
        self.critic = nn.Sequential(Linear(width, hidden), nn.Tanh(), Linear(hidden, hidden), nn.Tanh(), value)
        initialise(self.critic, generator)
        nn.init.zeros_(value.weight)  # or its first guesses would drown the differences between pages
        self.returns = ReturnScale(self._n)
        self.prices = Prices(constraints, builder.catalog)
        self.generator = torch.Generator(self._device).manual_seed(self._seed)

    def get_distribution(self, obs: Any) -> PageActionDistribution:
        """Return the distribution over pages for observations."""
        context = Context(obs["shopper"], obs["candidates"], obs["mask"].bool(), obs["affinity"])
        ad_mask = obs["ad_mask"].bool() if "ad_mask" in obs else None
        with mixed_precision(context.mask.device):
            pages = self.actor.distribution(context, ad_mask, obs.get("given"))
        return PageActionDistribution(pages, context.mask.shape[1], self.generator)

    def predict_values(self, obs: Any) -> Tensor:
        """Return the value of each page, and what each of its slots will earn by itself: shape (B, 1 + K).

        Both are in units of ``returns.unit``.
        """
        slate, shopper = self.actor.slate, obs["shopper"]
        parts = [(shopper - slate.shopper_centre) / slate.shopper_spread]
        parts += [obs[name].reshape(len(shopper), 1).float().clamp(min=0).log1p() for name in self._clocks]
        values: Tensor = self.critic(torch.cat(parts, 1))
        return values

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions (B, width), values (B, 1 + K) and log-probabilities of parts (B, P)."""
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values (B, 1 + K), log-probabilities of parts (B, P) and entropies (B,) of actions (B, width)."""
        distribution = self.get_distribution(obs)
        log_prob = distribution.log_prob(actions)
        return self.predict_values(obs), log_prob, distribution.entropy()


def _chances(outcome: Outcome[Tensor]) -> Tensor:
    """Return by how much leaving, and coming back within a week, went otherwise than expected, shape (N, 2).

    0 on average whatever a page shows, and 0 where the world does not say what it expected.
    """
    leave, days, nothing = outcome.leave, outcome.days, torch.zeros_like(outcome.clicked[:, 0])
    left = back = nothing
    if leave is not None and outcome.leave_probability is not None:
        left = leave.float() - outcome.leave_probability
    if leave is not None and days is not None and outcome.return_probability is not None:
        back = leave * ((days <= RETURN_DAYS).float() - outcome.return_probability)
    return torch.stack([left, back], 1)


class PagePPO(PPO):
    """stable-baselines3's PPO with rollouts on the device; its policy is a ``PageActorCriticPolicy``.

    Attributes:
        critic_first: First pages, which tell the actor nothing.
    """

    policy: PageActorCriticPolicy
    critic_first: int
    _actor_learns: bool

    def _setup_model(self) -> None:
        super()._setup_model()
        # Only now do the weights lie where they stay.
        self._adam = FlatAdam(list(self.policy.parameters()), self.lr_schedule(1))
        self.policy.optimizer = self._adam.optimizer

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer; False where the callback wants to stop.

        Nothing comes back from the device before the rollout is complete.

        Raises:
            InputError: The world's rewards are no numbers.
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
        prices = self.policy.prices
        counted = torch.zeros(2, len(prices.names), device=self.device)
        for _ in range(n_rollout_steps):
            with torch.no_grad():
                distribution = self.policy.get_distribution(here)
                actions = distribution.sample()
                log_prob = distribution.log_prob(actions)
                step = shop.step(actions)
                assert shop.shown is not None
                _, decision, outcome = shop.shown
                counts = prices.counts(decision)
                penalty = prices.penalty(counts)
                after: dict[str, Tensor] = {}
                if math.isfinite(shop.rules.horizon):  # whether anybody was cut off now is for the device to know
                    after = {f"next.{name}": value for name, value in shop.unreplaced().items()}
                rollout_buffer.put(
                    here,
                    actions=actions,
                    rewards=step.reward.float(),
                    penalties=penalty,
                    discounts=step.happened["discount"].float(),
                    ended=step.terminated | step.truncated,
                    cut_off=step.truncated,
                    chances=_chances(outcome),
                    slots=shop.reward.slots(outcome, decision, shop.bids).float(),
                    log_probs=log_prob,
                    **after,
                )
            counted += counts.sum(2)
            for name, value in ({"reward": step.reward, "penalty": penalty} | step.happened).items():
                totals[name] = totals.get(name, 0.0) + value.sum(dtype=torch.float32)
            here = step.observation
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        with torch.no_grad():
            rollout_buffer.estimate(self.policy.predict_values)
            self._actor_learns = self.num_timesteps > self.critic_first
            last_values = self.policy.predict_values(here)[:, 0]
            rollout_buffer.finish(last_values, self.policy.returns, self._actor_learns)
        finite(rollout_buffer.rewards)
        self._last_obs = cast(Any, here)
        for name, total in totals.items():
            self.logger.record(f"rollout/{name}", float(total) / (n_rollout_steps * env.num_envs))
        for name, figure in prices.update(counted, rollout_buffer.rewards).items():
            self.logger.record(f"constraint/{name}", figure)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def train(self) -> None:
        """Take the gradient steps of a rollout."""
        buffer = self.rollout_buffer
        assert isinstance(buffer, TensorRolloutBuffer)
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = cast(Any, self.clip_range)(self._current_progress_remaining)
        loss = Loss(clip, self.ent_coef, self.vf_coef, self._actor_learns)
        told = []
        for _ in range(self.n_epochs):
            for pages in buffer.get(self.batch_size):
                found, figures = loss.of(self.policy, pages)
                self._adam.step(found, self.max_grad_norm)
                told.append(figures)
        self._n_updates += self.n_epochs
        for name, figure in zip(FIGURES, torch.stack(told).mean(0).tolist(), strict=True):
            self.logger.record(f"train/{name}", figure)
        self.logger.record(
            "train/explained_variance", explained_variance(buffer.values.ravel(), buffer.returns.ravel())
        )
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip)


def page_ppo(
    env: StorefrontVecEnv, config: PageTrainConfig, line_vectors: npt.NDArray[np.float32] | None = None
) -> PagePPO:
    """Return PPO over the page actor for the parts that a storefront lets it choose.

    Args:
        env: N shoppers.
        config: How to train.
        line_vectors: Vectors of the world's lines, shape (L, w), as ``Lines.scaled`` has them, where copy is chosen.

    Raises:
        InputError: A constraint is on something that is not chosen, or on a provider that the catalog does not know.
    """
    shop, constraints = env.storefront, config.constraints
    parts = shop.layout.parts
    if (constraints.ad_load is not None and not parts.ad) or (constraints.shares and not parts.slate):
        expected = "ads chosen for a limit on ads, slates chosen for shares of exposure"
        raise InputError("a constraint on what is not chosen", where="train.constraints", got=parts, expected=expected)
    made_of = {"layout": shop.layout.page, "builder": shop.world.builder, "hidden": config.hidden, "seed": config.seed}
    bids = shop.world.bids.cpu().numpy()
    model = PagePPO(
        PageActorCriticPolicy,
        env,
        learning_rate=lambda left: config.learning_rate * (config.final_rate + (1 - config.final_rate) * left),
        n_steps=config.pages,
        batch_size=config.batch,
        n_epochs=config.epochs,
        gamma=config.discount,
        gae_lambda=config.trace,
        clip_range=config.clip,
        ent_coef=config.entropy,
        normalize_advantage=False,  # the buffer does it, once a rollout
        policy_kwargs=made_of
        | {"device": shop.world.device, "n": env.num_envs, "bids": bids, "line_vectors": line_vectors}
        | {"constraints": constraints},
        rollout_buffer_class=TensorRolloutBuffer,
        rollout_buffer_kwargs={"seed": config.seed, "normalise": config.normalise, "slot_by_slot": parts.copy},
        vf_coef=(1 + shop.layout.size) / 2,  # the loss is a mean over the page's value and those of its slots
        device=shop.world.device,
    )
    model.critic_first = config.critic_first
    if config.greedy:
        model.policy.actor.begin_greedy(config.greedy)
    return model
