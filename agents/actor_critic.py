"""Actor ψ and critic ξ, learned in imagination (Masked World Models, appendix A; DreamerV2).

Shape legend: H horizon, B start states, F model-state feature, A action.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from errors import UserError, refuse_above, refuse_below
from world_models.layers import (
    MLP,
    MOST_LAYERS,
    Optimizer,
    OptimizerConfig,
    initialise,
    step_together,
)


@dataclass(frozen=True)
class ActorCriticConfig:
    """Sizes and hyperparameters of behaviour learning. The defaults are the paper's, or DreamerV2's
    where it is silent."""

    horizon: int = 15
    """Imagined steps H from every start state."""
    start_states: int | None = None
    """Start states drawn from the batch's posterior states; None takes all of them."""
    discount: float = 0.99
    """Discount γ of imagined rewards, per agent step."""
    lambda_: float = 0.95
    """λ of the λ-return (eq. 11)."""
    layers: int = 4
    """Hidden layers of actor and critic."""
    units: int = 512
    """Units of each of them."""
    head_scale: float = 0.1
    """Factor on the first weights of the last layers of critic and actor's mean. (The published
    code's 0.1 is a factor on the variance, 0.316 on weights.)"""
    std_head_scale: float = 0.1
    """The same for the actor's standard deviation (published code: 1)."""
    min_std: float = 0.1
    """Smallest standard deviation of the actor's parent normal, in actions."""
    max_std: float = 1.0
    """Largest standard deviation; an untrained actor's is halfway between. DreamerV2's go from 0.1
    to 2.1."""
    entropy: float = 1e-4
    """Weight η of the actor's entropy (eq. 12)."""
    reinforce: float = 0.0
    """Share ρ of the REINFORCE gradient in the actor's loss, beside the one through the model
    (DreamerV2, eq. 6: 0 for control, 1 for Atari's discrete actions)."""
    target_every: int = 100
    """Updates between two moves of the target critic (DreamerV2: 100)."""
    target_rate: float = 1.0
    """Share of the way to the critic that such a move covers; 1 copies it (DreamerV2)."""
    normalise_reward: bool = True
    """Divide imagined rewards by a moving average of their size (Table 1: all but DMC)."""
    reward_decay: float = 0.99
    """Decay of that moving average."""
    actor_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4)
    )
    """Optimiser of the actor (DreamerV2: 1e-4)."""
    critic_optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4)
    )
    """Optimiser of the critic (DreamerV2: 1e-4)."""

    REMOVED: ClassVar = {
        "mean": ("tanh",),  # else clipped, or a tanh clipped before it saturates
        "scale_returns": (False,),  # else over their range, as in DreamerV3
    }

    def __post_init__(self) -> None:
        if self.horizon < 2:  # an action first shows in the return of the state after it
            raise UserError(f"horizon must be at least 2, not {self.horizon}")
        if self.target_every < 1 or (self.start_states is not None and self.start_states < 1):
            raise UserError("target_every and start_states must be at least 1")
        if not 0.0 <= self.reinforce <= 1.0:
            raise UserError(f"reinforce must be from 0 to 1, not {self.reinforce}")
        refuse_below(0, self, "layers")
        refuse_above(MOST_LAYERS, self, "layers")
        refuse_below(1, self, "units")
        if not (self.head_scale > 0.0 and self.std_head_scale > 0.0):
            raise UserError(
                "head_scale and std_head_scale must be above 0, not "
                f"{self.head_scale} and {self.std_head_scale}"
            )
        if not 0.0 < self.min_std <= self.max_std < math.inf:
            raise UserError(
                "min_std must be above 0 and max_std finite and no smaller, not "
                f"{self.min_std} and {self.max_std}"
            )


def lambda_return(
    reward: Tensor, value: Tensor, discount: Tensor, bootstrap: Tensor, lambda_: float
) -> Tensor:
    """λ-returns of imagined trajectories (eq. 11), by a backward recursion.

    V_t = r_t + d_t·((1 − λ)·v_{t+1} + λ·V_{t+1}), and the last V uses `bootstrap` for both.

    Args:
        reward: (H, B) of each state.
        value: (H, B) of each state.
        discount: (H, B): γ times the probability that the episode goes on after each state.
        bootstrap: (B,) value of the state after the last.
        lambda_: λ.

    Returns:
        (H, B).
    """
    next_value = torch.cat([value[1:], bootstrap[None]])
    target = reward + discount * (1.0 - lambda_) * next_value
    trace = discount * lambda_
    returns, following = [], bootstrap
    for t in reversed(range(len(reward))):
        following = target[t] + trace[t] * following
        returns.append(following)
    return torch.stack(returns[::-1])


class TruncatedNormal:
    """A normal of `mean` and `std` cut to [−1, 1] and renormalised, independent per dimension.

    `mean` and `std` are the parent normal's. Samples carry gradients to both (inverse-CDF
    reparametrisation).
    """

    edge = 1.0 - 1e-6
    """Largest absolute value of a sample: there the log-density is still finite (DreamerV2)."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std
        self.low, self.high = (-1.0 - mean) / std, (1.0 - mean) / std
        self.low_cdf, self.high_cdf = torch.special.ndtr(self.low), torch.special.ndtr(self.high)
        self.mass = (self.high_cdf - self.low_cdf).clamp(min=1e-8)

    def sample(self, uniform: Tensor) -> Tensor:
        """Samples at the quantiles `uniform` in [0, 1), shaped like the mean."""
        quantile = (self.low_cdf + uniform * self.mass).clamp(1e-7, 1.0 - 1e-7)
        value = self.mean + self.std * torch.special.ndtri(quantile)
        return value + (value.clamp(-self.edge, self.edge) - value).detach()

    @property
    def mode(self) -> Tensor:
        """Where the density is highest: the parent's mean, clipped to [−1, 1]."""
        return self.mean.clamp(-1.0, 1.0)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats, summed over the last axis."""
        scaled = (value - self.mean) / self.std
        log_density = -0.5 * scaled.square() - 0.5 * math.log(2 * math.pi)
        return (log_density - self.std.log() - self.mass.log()).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, summed over the last axis."""
        density = (1.0 / math.sqrt(2 * math.pi)) * torch.exp(
            -0.5 * torch.stack([self.low, self.high]).square()
        )
        edges = self.low * density[0] - self.high * density[1]
        entropy = 0.5 * (1.0 + math.log(2 * math.pi)) + (self.std * self.mass).log()
        return (entropy + edges / (2.0 * self.mass)).sum(-1)


class OneHotChoice:
    """One of A actions, of unnormalised log-probabilities `logits` (..., A), as a one-hot vector.

    Samples carry straight-through gradients to the probabilities (DreamerV2, section 2.1).
    """

    def __init__(self, logits: Tensor):
        self.logits = torch.log_softmax(logits, dim=-1)
        self.mean = self.logits.exp()
        """The probabilities."""

    def sample(self, uniform: Tensor) -> Tensor:
        """Samples (..., A) from numbers (..., A) in [0, 1).

        The argmax of probabilities over exponential noise is an exact sample (the Gumbel-max trick
        in other words).
        """
        noise = -torch.log(uniform.clamp(1e-7, 1.0 - 1e-7))
        return self._one_hot(self.mean.detach() / noise) + (self.mean - self.mean.detach())

    @property
    def mode(self) -> Tensor:
        """The likeliest action."""
        return self._one_hot(self.logits)

    def _one_hot(self, score: Tensor) -> Tensor:
        places = torch.arange(score.shape[-1], device=score.device)
        return (score.argmax(-1, keepdim=True) == places).to(score.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats of one-hot actions (..., A)."""
        return (value * self.logits).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        return -(self.mean * self.logits).sum(-1)


class Actor(nn.Module):
    """Model-state features (..., F) → a distribution over actions (..., A): a truncated normal, or
    where `discrete` a choice of one."""

    def __init__(self, config: ActorCriticConfig, feature: int, action: int, discrete: bool):
        super().__init__()
        self.min_std, self.max_std, self.discrete = config.min_std, config.max_std, discrete
        outputs = action if discrete else 2 * action
        self.layers = MLP(feature, config.units, config.layers, outputs)
        initialise(self, config.head_scale)
        if not discrete and config.std_head_scale != config.head_scale:
            with torch.no_grad():
                weight = self.layers.head.weight[action:]
                weight.mul_(config.std_head_scale / config.head_scale)

    def forward(self, feature: Tensor) -> TruncatedNormal | OneHotChoice:
        if self.discrete:
            return OneHotChoice(self.layers(feature).float())
        mean, std = self.layers(feature).float().chunk(2, dim=-1)
        std = self.min_std + (self.max_std - self.min_std) * torch.sigmoid(std)
        return TruncatedNormal(torch.tanh(mean), std)


def stacked(distributions: Sequence[Any]) -> TruncatedNormal | OneHotChoice:
    """Distributions of one kind as one with a leading axis."""

    def joined(name: str) -> Tensor:
        return torch.stack([getattr(each, name) for each in distributions])

    if isinstance(distributions[0], OneHotChoice):
        return OneHotChoice(joined("logits"))
    return TruncatedNormal(joined("mean"), joined("std"))


class ActorCritic(nn.Module):
    """Actor, critic and target critic, learned inside any world model that has
    `imagine(policy, start, horizon)`; `discrete`: actions are one-hot vectors."""

    reward_scale: Tensor

    def __init__(
        self, config: ActorCriticConfig, feature: int, action: int, discrete: bool = False
    ):
        super().__init__()
        self.config = config
        self.action = action
        self.actor = Actor(config, feature, action, discrete)
        self.critic = MLP(feature, config.units, config.layers, 1)
        initialise(self.critic, config.head_scale)
        self.target_critic = MLP(feature, config.units, config.layers, 1)
        self.target_critic.load_state_dict(self.critic.state_dict())
        self.target_critic.requires_grad_(False)
        self.register_buffer("reward_scale", torch.ones(()))
        self.actor_optimizer = Optimizer([self.actor], config.actor_optimizer)
        self.critic_optimizer = Optimizer([self.critic], config.critic_optimizer)

    def _normalise(self, reward: Tensor) -> Tensor:
        """Imagined rewards over a moving average of their size; the average moves first."""
        if not self.config.normalise_reward:
            return reward
        decay = self.config.reward_decay
        self.reward_scale.mul_(decay).add_((1.0 - decay) * reward.detach().abs().mean())
        return reward / (self.reward_scale + 1e-8)

    def losses(
        self, world_model, start, start_continuation: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The losses of one dream.

        Args:
            world_model: has `imagine`.
            start: states (B, ...) to imagine from.
            start_continuation: (B,), 1 where the episode went on after the start state and 0 where
                it terminated there, when that is known; None takes the model's prediction.

        Returns:
            The actor's loss (eq. 12), the critic's loss (eq. 10) and metrics, all scalars on the
            device.
        """
        config = self.config
        count = len(start.deterministic)
        uniform = torch.rand(config.horizon, count, self.action, device=start.deterministic.device)
        distributions = []

        def policy(feature: Tensor, step: int) -> Tensor:
            distributions.append(self.actor(feature.detach()))
            return distributions[-1].sample(uniform[step])

        dream = world_model.imagine(policy, start, config.horizon)
        reward = self._normalise(dream.reward)
        continuation = dream.continuation
        if start_continuation is not None:
            continuation = torch.cat([start_continuation[None], continuation[1:]])
        discount = config.discount * continuation
        value = self.target_critic(dream.feature).squeeze(-1).float()
        target = lambda_return(reward[:-1], value[:-1], discount[:-1], value[-1], config.lambda_)
        # A state counts as much as its being reached: the product of the discounts before it.
        weight = torch.cat([torch.ones_like(discount[:1]), discount[:-2]]).cumprod(0).detach()
        # The action taken in state t first shows in V_{t+1}; the last action shows in none.
        chosen = stacked(distributions)
        entropy = chosen.entropy()
        gained = target[1:]
        if config.reinforce:
            advantage = (target[1:] - value[:-2]).detach()
            scored = chosen.log_prob(dream.action.detach())[:-1] * advantage
            gained = config.reinforce * scored + (1.0 - config.reinforce) * gained
        objective = gained + config.entropy * entropy[:-1]
        actor_loss = -(weight[:-1] * objective).mean()
        predicted = self.critic(dream.feature[:-1].detach()).squeeze(-1).float()
        critic_loss = 0.5 * (weight * (predicted - target.detach()).square()).mean()
        metrics = {
            "actor": actor_loss,
            "critic": critic_loss,
            "entropy": entropy.mean(),
            "value": value.mean(),
            "imagined_reward": dream.reward.mean(),
            "reward_scale": self.reward_scale.clone(),
        }
        return actor_loss, critic_loss, {name: m.detach() for name, m in metrics.items()}

    def step(
        self, actor_loss: Tensor, critic_loss: Tensor, metrics: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """One update of actor, critic and target critic from what `losses` returned."""
        # Neither loss reaches the other's weights, and a compiled graph goes backward only once.
        metrics["actor_gradient"], metrics["critic_gradient"] = step_together(
            actor_loss + critic_loss, self.actor_optimizer, self.critic_optimizer
        )
        if self.critic_optimizer.updates % self.config.target_every == 0:
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.target_critic.parameters()),
                    list(self.critic.parameters()),
                    self.config.target_rate,
                )
        return metrics
