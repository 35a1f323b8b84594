"""What online agents with a recurrent world model share: acting in its states, learning behaviour
in its imagination, and keeping what was learned.

Shape legend: n environments, B batch, T time, A action, E embedding, V cameras, S edge of their
pictures, which lie below each other in one of H = V·S and W = S.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic, ActorCriticConfig
from agents.device import Precision, autocast, compiled, require_compiler
from agents.replay import Replay
from world_models.layers import Optimizer, without_gradients
from world_models.recurrent_world_model import RecurrentWorldModel
from world_models.rssm import State
from world_models.targets import PredictionTarget
from world_models.views import views_stacked


class WorldModelAgent(abc.ABC):
    """An online agent (`agents/agent.py`) but for what its world model learns.

    Args:
        behaviour: hyperparameters of the actor-critic.
        precision: what dynamics and behaviour compute in.
        action: A, size of the action vector in [−1, 1].
        device: where parameters live.
        views: V, cameras that it sees.
    """

    context = 5
    """Frames the prediction video shows the model before it has to imagine."""

    dynamics: RecurrentWorldModel
    """The recurrent world model."""
    behaviour: ActorCritic
    """Actor and critic."""
    networks: nn.ModuleDict
    """All that a checkpoint keeps."""

    without_acting: tuple[str, ...] = (
        "dynamics.decoder.",
        "dynamics.reward_head.",
        "dynamics.discount_head.",
        "dynamics.rssm.prior_",
        "behaviour.critic.",
        "behaviour.target_critic.",
        "behaviour.reward_scale.",
    )
    """Beginnings of names of `networks`' weights that no action depends on."""

    def __init__(
        self,
        behaviour: ActorCriticConfig,
        precision: Precision,
        action: int,
        device: torch.device | str,
        views: int = 1,
    ):
        self.action, self.device, self.views = action, torch.device(device), views
        self.updates = 0  # made in the loop
        self.pretrained = 0  # made by `pretrain`
        self._start_states, self._precision = behaviour.start_states, precision
        self._compiled = False

    # What the agents differ in

    @property
    @abc.abstractmethod
    def pretraining_updates(self) -> int:
        """How many updates `pretrain` makes in all."""

    @abc.abstractmethod
    def pretrain(self, replay: Replay) -> Iterator[dict[str, Tensor]]:
        """Updates on the prefill; yields the metrics of each, and goes on where it stopped."""

    @abc.abstractmethod
    def update(self, replay: Replay) -> dict[str, Tensor]:
        """One update of every part; scalars for the log, on the device."""

    @abc.abstractmethod
    def embed(self, image: Tensor) -> Tensor:
        """What the world model sees of pictures (n, H, W, 3) uint8, (n, E)."""

    @abc.abstractmethod
    def optimizers(self) -> dict[str, Optimizer]:
        """By the name of what each trains."""

    @abc.abstractmethod
    def seeing_parts(self) -> dict[str, nn.Module]:
        """Modules that `parameter_counts` counts beside heads, actor and critic."""

    @abc.abstractmethod
    def compiled_parts(self, kind: str) -> list[tuple[Any, str]]:
        """(object, name of its method) of what `compile_updates` compiles on devices of a kind,
        "cpu" or "cuda"; each is called with the same shapes in all phases, so that it is compiled
        once."""

    @property
    def proprio_size(self) -> int:
        """D, numbers of proprioception that it sees beside the picture; 0: none."""
        seen = self.dynamics.proprioception
        return 0 if seen is None else len(seen.scale.mean)

    @property
    def discrete(self) -> bool:
        """Whether its actions are one-hot."""
        return self.behaviour.actor.discrete

    # Acting

    @property
    def acting(self) -> nn.Module:
        """The networks that act, and others."""
        return self.networks

    @torch.no_grad()
    def policy(
        self, observation: dict[str, np.ndarray], state: dict[str, Tensor] | None, explore: bool
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Act on one observation of each of n environments.

        Args:
            observation: `image` (n, [V,] S, S, 3) uint8, `is_first` (n,) bool, and `proprio` (n, D)
                float32 if the agent sees it.
            state: what the last call returned; None before the first.
            explore: sample the action; otherwise the actor's mode, the model state still sampled.

        Returns:
            Actions (n, A) float32 in [−1, 1] and the state for the next call.
        """
        image = torch.as_tensor(observation["image"], device=self.device)
        image = views_stacked({"image": image}, self.views)["image"]
        is_first = torch.as_tensor(observation["is_first"], device=self.device)[None]
        model_state, action = None, torch.zeros(len(image), self.action, device=self.device)
        if state is not None:
            model_state, action = State(*(state[name] for name in State._fields)), state["action"]
        embedding = self.embed(image)
        if self.proprio_size:
            proprio = torch.as_tensor(observation["proprio"], device=self.device)
            embedding = self.dynamics.with_proprio(embedding, {"proprio": proprio})
        embedding = embedding[None]
        posterior, _ = self.dynamics.rssm.observe(embedding, action[None], is_first, model_state)
        model_state = posterior.map(lambda part: part[0])
        distribution = self.behaviour.actor(model_state.feature)
        if explore:
            action = distribution.sample(torch.rand_like(distribution.mean))
        else:
            action = distribution.mode
        return action.cpu().numpy(), {**model_state._asdict(), "action": action}

    def acted(self, state: dict[str, Tensor], action: np.ndarray) -> dict[str, Tensor]:
        """`state` of `policy` for when the environments were given `action` (n, A) instead."""
        return {**state, "action": torch.as_tensor(action, device=self.device)}

    # Learning to act

    def start_states(self, posterior: State, is_terminal: Tensor) -> tuple[State, Tensor | None]:
        """Start states of imagination: all posterior states of a batch, or a random choice.

        Args:
            posterior: states (T, B, ...).
            is_terminal: (B, T) of the batch.

        Returns:
            States (n, ...), and for world models that predict ends whether the episode really went
            on after each, (n,), which counts in place of the prediction (published code).
        """
        start = posterior.map(lambda part: part.detach().flatten(0, 1))
        goes_on = None
        if self.dynamics.discount_head is not None:
            goes_on = 1.0 - is_terminal.transpose(0, 1).flatten().float()
        count, total = self._start_states, len(start.deterministic)
        if count is None or count >= total:
            return start, goes_on
        chosen = torch.randperm(total, device=self.device)[:count]
        return start.map(lambda part: part[chosen]), None if goes_on is None else goes_on[chosen]

    def update_behaviour(self, start: State, goes_on: Tensor | None = None) -> dict[str, Tensor]:
        """One update in imagination (eqs. 10 and 12) from what `start_states` returned."""
        with self.computing_in(self._precision), without_gradients(self.dynamics):
            losses = self.behaviour.losses(self.dynamics, start, goes_on)
        metrics = self.behaviour.step(*losses)
        return {f"behaviour/{name}": value for name, value in metrics.items()}

    def computing_in(self, precision: Precision) -> AbstractContextManager[Any]:
        """The context in which networks of a precision compute."""
        return autocast(precision, self.device)

    def to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the agent's device, with its cameras' pictures below each other."""
        there = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        return views_stacked(there, self.views)

    # Compiling

    def compile_updates(self) -> None:
        """Put what an update computes, gradients included, through torch.compile; on a GPU into
        CUDA graphs: then what an update returns is overwritten by the next.

        Raises:
            UserError: there is no compiler.
        """
        require_compiler(self.device)
        for part, name in self.compiled_parts(self.device.type):
            function: Callable = getattr(part, name)
            setattr(part, name, compiled(function, self.device))
        self._compiled = True

    def begin(self) -> None:
        """Let CUDA graphs overwrite what they have returned so far. `update` begins with it; where
        its parts are called one by one, call it before each round of them."""
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()

    # Showing

    def prediction_video(
        self,
        shown: list[Tensor],
        predicted: Tensor,
    ) -> dict[str, np.ndarray]:
        """Windows below each other, what is shown of them side by side.

        Args:
            shown: pictures (B, T, H, W, 3) uint8 each.
            predicted: the same, of the open-loop prediction: a bar above it is green while the
                model still sees, then red.

        Returns:
            `prediction`: (T, B·H, columns·W, 3) uint8.
        """
        seen, imagined = predicted.new_tensor([0, 200, 80]), predicted.new_tensor([220, 60, 40])
        predicted[:, : self.context, :2] = seen
        predicted[:, self.context :, :2] = imagined
        video = torch.cat([*shown, predicted], dim=3)  # along the width
        video = video.permute(1, 0, 2, 3, 4).flatten(1, 2)  # rows below each other
        return {"prediction": video.cpu().numpy()}

    def own_randomness(self) -> Any:
        """A context whose random numbers leave training's as they are, the same for as long as no
        update is made."""
        devices = [self.device] if self.device.type == "cuda" else []
        return torch.random.fork_rng(devices)

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters by module; the target critic is a copy and not counted."""
        heads = (self.dynamics.reward_head, self.dynamics.discount_head)
        parts: dict[str, nn.Module] = {
            **self.seeing_parts(),
            "dynamics/proprioception": self.dynamics.proprioception or nn.Module(),
            "dynamics/heads": nn.ModuleList(head for head in heads if head is not None),
            "behaviour/actor": self.behaviour.actor,
            "behaviour/critic": self.behaviour.critic,
        }
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        return {name: count for name, count in counts.items() if count}

    def update_counts(self) -> dict[str, int]:
        """Updates made so far by each part, pretraining included."""
        return {name: optimizer.updates for name, optimizer in self.optimizers().items()}

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """Everything learning needs to go on: tensors and plain numbers only."""
        return {
            "modules": self.networks.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers().items()},
            "updates": self.updates,
            "pretrained": self.pretrained,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; what else older checkpoints hold is left out."""
        self.networks.load_state_dict(state["modules"])
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.updates, self.pretrained = int(state["updates"]), int(state["pretrained"])


def pictures_of(target: PredictionTarget, prediction: Tensor) -> Tensor:
    """A target's values (B, T, H, W, C) as pictures (B, T, H, W, 3) uint8."""
    images = target.to_image(prediction.flatten(0, 1))
    return images.clone(memory_format=torch.contiguous_format).unflatten(0, prediction.shape[:2])
