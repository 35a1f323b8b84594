"""The recurrent state-space model with categorical latents (DreamerV2, sections 2.1 and A).

Shape legend: T time, B batch, E embedding, A action, R deterministic size, S variables,
K classes, F = R + S·K feature size. Sequences here are time-major, so that a step is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import refuse_below
from world_models.layers import initialise


@dataclass(frozen=True)
class RSSMConfig:
    """Sizes of the recurrent state-space model. The defaults are the paper's (E.2)."""

    deterministic: int = 1024
    """Width R of the recurrent state."""
    hidden: int = 1024
    """Width of the dense layers around it."""
    variables: int = 32
    """Number S of categorical variables."""
    classes: int = 32
    """Classes K of each variable."""
    gate_bias: bool = False
    """Give the GRU's dense layer a bias before the LayerNorm (published code), beside the norm's
    own after it."""
    zero_first_action: bool = False
    """Treat the first step of every window as the first of an episode (published code): its action
    is zeroed like the state before it. Otherwise the action that led there counts."""

    # An ELU between the GRU's input layer and the GRU; the paper's runs had none.
    REMOVED: ClassVar = {"input_activation": (False,)}

    def __post_init__(self) -> None:
        refuse_below(1, self, "deterministic", "hidden", "variables", "classes")


class State(NamedTuple):
    """A model state: `deterministic` (..., R), `stochastic` one-hot (..., S·K), its `logits`
    (..., S, K)."""

    deterministic: Tensor
    stochastic: Tensor
    logits: Tensor

    @property
    def feature(self) -> Tensor:
        """Input of heads, decoder, actor and critic, (..., F): both parts side by side."""
        return torch.cat([self.deterministic, self.stochastic], dim=-1)

    def map(self, function) -> State:
        """`function` applied to each tensor."""
        return State(*(function(part) for part in self))


class NormGRUCell(nn.Module):
    """GRU with one LayerNorm over all three gates, reset on the candidate, update bias −1."""

    def __init__(self, inputs: int, size: int, bias: bool = False):
        super().__init__()
        self.gates = nn.Linear(inputs + size, 3 * size, bias=bias)  # the norm has one, too
        self.norm = nn.LayerNorm(3 * size, eps=1e-3)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        gates = self.norm(self.gates(torch.cat([inputs, state], dim=-1)).float())
        reset, candidate, update = gates.chunk(3, dim=-1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        return torch.lerp(state, candidate, torch.sigmoid(update - 1.0))


class RSSM(nn.Module):
    """The recurrent state-space model: posterior and prior over model states.

    One step: input layer on (stochastic, action), GRU, then a prior from the deterministic state
    alone or a posterior from it and the embedding. Whatever is not recurrent stays out of the
    time loop: the embedding's and the action's share of the dense layers, and all priors.
    """

    def __init__(self, config: RSSMConfig, embedding: int, action: int):
        super().__init__()
        self.config = config
        flat = config.variables * config.classes
        self.feature_size = config.deterministic + flat
        # Two weights of one dense layer on the concatenated inputs, kept apart (see above).
        self.input_stochastic = nn.Linear(flat, config.hidden)
        self.input_action = nn.Linear(action, config.hidden, bias=False)
        self.cell = NormGRUCell(config.hidden, config.deterministic, config.gate_bias)
        self.prior_hidden = nn.Linear(config.deterministic, config.hidden)
        self.prior_logits = nn.Linear(config.hidden, flat)
        self.posterior_deterministic = nn.Linear(config.deterministic, config.hidden)
        self.posterior_embedding = nn.Linear(embedding, config.hidden, bias=False)
        self.posterior_logits = nn.Linear(config.hidden, flat)
        initialise(self)
        with torch.no_grad():  # Glorot of the whole layer, whose fan-in both parts share
            for parts in (
                (self.input_stochastic, self.input_action),
                (self.posterior_deterministic, self.posterior_embedding),
            ):
                fan_in = sum(part.in_features for part in parts)
                bound = (6.0 / (fan_in + config.hidden)) ** 0.5
                for part in parts:
                    part.weight.uniform_(-bound, bound)

    def initial(self, batch: int, device: torch.device) -> State:
        """The zero state for `batch` sequences."""
        c = self.config
        return State(
            torch.zeros(batch, c.deterministic, device=device),
            torch.zeros(batch, c.variables * c.classes, device=device),
            torch.zeros(batch, c.variables, c.classes, device=device),
        )

    def exponential_noise(self, *leading: int, device: torch.device) -> Tensor:
        """Exponential variates (*leading, S, K) for `sample`, drawn outside of a time loop."""
        shape = (*leading, self.config.variables, self.config.classes)
        return torch.rand(shape, device=device).log_().neg_()  # exponential_ is 4 times slower

    def sample(self, logits: Tensor, noise: Tensor) -> Tensor:
        """One-hot samples of softmax(logits) with straight-through gradients.

        The argmax of probabilities over exponential noise is an exact sample (the Gumbel-max trick
        in other words).

        Args:
            logits: (..., S, K).
            noise: (..., S, K) from `exponential_noise`.

        Returns:
            (..., S·K).
        """
        probabilities = torch.softmax(logits, dim=-1)
        winner = (probabilities.detach() / noise).argmax(dim=-1, keepdim=True)
        one_hot = torch.zeros_like(probabilities).scatter_(-1, winner, 1.0)
        return (one_hot + probabilities - probabilities.detach()).flatten(-2)

    def _recur(self, stochastic: Tensor, from_action: Tensor, deterministic: Tensor) -> Tensor:
        return self.cell(self.input_stochastic(stochastic) + from_action, deterministic)

    def _logits(self, flat: Tensor) -> Tensor:
        """(..., S·K) → (..., S, K), in float32 whatever the dense layers computed in."""
        return flat.float().unflatten(-1, (self.config.variables, self.config.classes))

    def prior(self, deterministic: Tensor) -> Tensor:
        """Logits of the next stochastic state without seeing the observation, (..., S, K)."""
        return self._logits(self.prior_logits(F.elu(self.prior_hidden(deterministic))))

    def observe(
        self,
        embedding: Tensor,
        action: Tensor,
        is_first: Tensor,
        start: State | None = None,
        noise: Tensor | None = None,
    ) -> tuple[State, Tensor]:
        """Posterior states along observed sequences.

        State and previous action are zeroed wherever `is_first` is set.

        Args:
            embedding: (T, B, E) of the observations.
            action: (T, B, A) that led to each observation.
            is_first: (T, B) bool.
            start: the state before the first step; None where a window begins: it is zero then,
                and the action is too with `zero_first_action`.
            noise: (T, B, S, K) from `exponential_noise`; drawn here when None.

        Returns:
            Posterior states, each part (T, B, ...), and the prior logits (T, B, S, K).
        """
        length, batch = is_first.shape
        if start is None and self.config.zero_first_action:
            is_first = torch.cat([torch.ones_like(is_first[:1]), is_first[1:]])
        keep = (~is_first).float().unsqueeze(-1)  # (T, B, 1)
        from_action = self.input_action(action * keep)
        from_embedding = self.posterior_embedding(embedding)
        if noise is None:
            noise = self.exponential_noise(length, batch, device=embedding.device)
        state = start or self.initial(batch, embedding.device)
        deterministic, stochastic = state.deterministic, state.stochastic
        states = []
        for t in range(length):
            deterministic = self._recur(
                stochastic * keep[t], from_action[t], deterministic * keep[t]
            )
            hidden = F.elu(self.posterior_deterministic(deterministic) + from_embedding[t])
            logits = self._logits(self.posterior_logits(hidden))
            stochastic = self.sample(logits, noise[t])
            states.append(State(deterministic, stochastic, logits))
        posterior = State(*(torch.stack(parts) for parts in zip(*states, strict=True)))
        return posterior, self.prior(posterior.deterministic)

    def imagine(self, state: State, action: Tensor, noise: Tensor) -> State:
        """The state after `action` (B, A), sampled from the prior with `noise` (B, S, K)."""
        from_action = self.input_action(action)
        deterministic = self._recur(state.stochastic, from_action, state.deterministic)
        logits = self.prior(deterministic)
        return State(deterministic, self.sample(logits, noise), logits)


def categorical_kl(left: Tensor, right: Tensor) -> Tensor:
    """KL(left ‖ right) of independent categoricals given logits (..., S, K), in nats, (...)."""
    left_log, right_log = left.log_softmax(-1), right.log_softmax(-1)
    return (left_log.exp() * (left_log - right_log)).sum((-2, -1))


def balanced_kl(
    posterior: Tensor, prior: Tensor, balance: float, free_nats: float
) -> tuple[Tensor, Tensor]:
    """The KL loss of DreamerV2 (Algorithm 2 there) with free nats on the batch mean.

    balance · KL(sg(q) ‖ p) + (1 − balance) · KL(q ‖ sg(p)), each no smaller than `free_nats`,
    where its gradient vanishes. Free nats are counted before any scaling. (The authors' code clips
    every time step after scaling, from `free_nats` to 100.)

    Returns:
        The loss and the mean KL in nats, scalars.
    """
    train_prior = categorical_kl(posterior.detach(), prior)
    train_posterior = categorical_kl(posterior, prior.detach())
    nats = train_prior.detach().mean()
    train_prior, train_posterior = (
        part.mean().clamp(min=free_nats) for part in (train_prior, train_posterior)
    )
    return balance * train_prior + (1.0 - balance) * train_posterior, nats
