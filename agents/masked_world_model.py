"""Masked World Models: policy() and update() of Algorithm 1.

Shape legend: n environments, B batch, T time, H = W image size, A action.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import torch
from torch import Tensor, nn

from agents.actor_critic import ActorCritic
from agents.batch_reader import BatchReader, Frames
from agents.device import Precision, autocast, compiled, require_compiler
from agents.masked_world_model_config import MaskedWorldModelConfig
from agents.replay import Replay
from agents.side_thread import Deferred, SideThread
from world_models.autoencoder import MaskedAutoencoder
from world_models.latent_dynamics import LatentDynamics
from world_models.layers import Optimizer, frozen_view
from world_models.rssm import State
from world_models.targets import truth


class MaskedWorldModel(nn.Module):
    """An agent in the sense of design.md: policy, pretrain, update, report, state_dict.

    Args:
        config: sizes and hyperparameters.
        action: A, size of the action vector in [−1, 1].
        device: where parameters live.
    """

    context = 5
    """Frames the prediction video shows the model before it has to imagine."""

    def __init__(self, config: MaskedWorldModelConfig, action: int, device: torch.device | str):
        super().__init__()
        self.config, self.device = config, torch.device(device)
        self.autoencoder = MaskedAutoencoder(config.autoencoder)
        self.dynamics = LatentDynamics(
            config.dynamics, self.autoencoder.grid, config.autoencoder.width, action
        )
        self.to(self.device)
        self.behaviour = ActorCritic(config.behaviour, self.dynamics.feature_size, action)
        self.behaviour.to(self.device)
        self.autoencoder_optimizer = Optimizer([self.autoencoder], config.autoencoder_optimizer)
        self.dynamics_optimizer = Optimizer([self.dynamics], config.dynamics_optimizer)
        self.updates = 0  # joint updates in the loop
        self.pretrained = 0  # updates done by `pretrain`
        self.compiled = False  # by `compile_updates`
        self.reader = BatchReader(
            config.autoencoder_batch,
            config.autoencoder_window,
            config.batch,
            config.window,
            self.device,
            config.random_shift,
        )
        self._world: list[LatentDynamics] = []  # `world`; bare, its weights would be kept twice
        self._warm = False  # every part of an update has run, and is compiled if it is to be
        self._start: State | None = None  # where the next joint update's imagination begins
        self._beside = SideThread()

    @property
    def world(self) -> LatentDynamics:
        """The dynamics as behaviour learns in them: the same weights, of which no gradients are
        computed; also after a copy or a move of the agent."""
        if self._world:
            seen, own = (next(m.parameters()) for m in (self._world[0], self.dynamics))
            if seen.data_ptr() == own.data_ptr():
                return self._world[0]
        self._world = [frozen_view(self.dynamics)]
        return self._world[0]

    # Acting

    @torch.no_grad()
    def policy(
        self, observation: dict[str, np.ndarray], state: tuple | None, explore: bool
    ) -> tuple[np.ndarray, tuple]:
        """Act on one observation of each of n environments.

        Args:
            observation: `image` (n, H, W, 3) uint8 and `is_first` (n,) bool.
            state: what the last call returned; None before the first.
            explore: sample the action; otherwise the actor's mode, the model state still sampled.

        Returns:
            Actions (n, A) float32 in [−1, 1] and the state for the next call.
        """
        image = torch.as_tensor(observation["image"], device=self.device)
        is_first = torch.as_tensor(observation["is_first"], device=self.device)[None]
        model_state, action = state if state is not None else (None, None)
        if action is None:
            action = torch.zeros(len(image), self.behaviour.action, device=self.device)
        embedding = self.dynamics.embed(self.autoencoder.encode(image)[None])
        posterior, _ = self.dynamics.rssm.observe(embedding, action[None], is_first, model_state)
        model_state = posterior.map(lambda part: part[0])
        distribution = self.behaviour.actor(model_state.feature)
        if explore:
            action = distribution.sample(torch.rand_like(distribution.mean))
        else:
            action = distribution.mode
        return action.cpu().numpy(), (model_state, action)

    def acted(self, state: tuple, action: np.ndarray) -> tuple:
        """`state` of `policy` for when the environments were given `action` (n, A) instead."""
        return state[0], torch.as_tensor(action, device=self.device)

    # Learning

    def compile_updates(self) -> None:
        """Put what an update computes, gradients included, through torch.compile; on a GPU into
        CUDA graphs: then what an update returns is overwritten by the next.

        Raises:
            UserError: there is no compiler.
        """
        require_compiler(self.device)
        parts = [(self, "_encode"), (self.dynamics, "loss"), (self.behaviour, "losses")]
        if self.device.type == "cuda":
            # Not on a CPU, where its convolutions are slower compiled than eagerly.
            parts.append((self.autoencoder, "loss"))
        for part, name in parts:
            setattr(part, name, compiled(getattr(part, name), self.device))
        self.compiled = True

    def begin(self) -> None:
        """What CUDA graphs returned so far is overwritten from here on: to be called before an
        update, where its parts are called one by one."""
        if self.compiled:
            torch.compiler.cudagraph_mark_step_begin()

    def pretrain(self, replay: Replay) -> Iterator[dict[str, Tensor]]:
        """Updates on the prefill; yields the metrics of each, and goes on where it stopped."""
        while self.pretrained < self.pretraining_updates:
            if self.pretrained < self.config.autoencoder_pretraining:
                metrics = self.update_autoencoder(replay)
                self.pretrained += 1
            else:
                metrics = self._joint_update(replay, pretraining=True)
            yield metrics

    @property
    def pretraining_updates(self) -> int:
        """How many updates `pretrain` makes in all."""
        return self.config.autoencoder_pretraining + self.config.joint_pretraining

    def update(self, replay: Replay) -> dict[str, Tensor]:
        """One update of every part (Algorithm 1, lines 9 to 18). Returns scalars on the device."""
        return self._joint_update(replay, pretraining=False)

    def _joint_update(self, replay: Replay, pretraining: bool) -> dict[str, Tensor]:
        """Behaviour learns in the world that the last update left; beside it, the next is made.

        This is Algorithm 1 with its loop cut elsewhere: an update ends where the dynamics have
        learned and imagination could begin; the first of all makes a world before that. Neither
        half reads what the other changes, so that they can run beside each other.
        """
        if self._start is None:
            self._learn_world(replay, self._autoencoder_due(pretraining))
        if pretraining:
            self.pretrained += 1
            pretraining = self.pretrained < self.pretraining_updates
        else:
            self.updates += 1
        return self._learn_world(replay, self._autoencoder_due(pretraining), self._start)

    def _learn_world(
        self, replay: Replay, see: bool, start: State | None = None
    ) -> dict[str, Tensor]:
        """The dynamics learn from a batch of windows, the autoencoder if it is to `see`, the
        behaviour if there are `start` states."""
        self.begin()
        reading = self.reader.start(replay, see)
        # Drawn here, so that the order of random draws is always the same.
        keep = self._draw_keep(see)
        race = self.dynamics.race(self.config.batch, self.config.window, self.device)
        with self._two_threads() as beside:
            encoding = beside(self._read_and_encode, reading)
            predicting = beside(lambda: self._predict(encoding.result()[1], race))
            metrics = {} if start is None else self.update_behaviour(start)
            frames, _ = encoding.result()  # with the eyes as they were
            if frames.single is not None:
                metrics |= self._learn_to_see(frames.single, keep)
            predicted, posterior = predicting.result()
            # Not before: behaviour has learned in the world as it was.
            metrics |= self._step_dynamics(predicted)
        self._warm |= start is not None
        self._start = self._start_states(posterior).map(self._kept)
        return metrics

    def _two_threads(self) -> contextlib.AbstractContextManager[Callable[..., Future | Deferred]]:
        """What computes a call in a thread beside this one; without `overlap`, in this one and
        when its result is asked for."""
        if self.config.overlap and self.device.type == "cpu" and torch.get_num_threads() > 1:
            # torch.compile puts back the random state of all threads when it is done.
            return self._beside.share(in_order=self.compiled and not self._warm)
        return contextlib.nullcontext(Deferred)

    def _autoencoder_due(self, pretraining: bool) -> bool:
        """Whether the autoencoder learns in the next update of the world model."""
        return pretraining or self.updates % self.config.autoencoder_every == 0

    def _draw_keep(self, due: bool) -> Tensor | None:
        """Features that the autoencoder's next update keeps, if it is due."""
        if not due:
            return None
        return self.autoencoder.random_keep(self.config.autoencoder_batch, self.device)

    def _kept(self, value: Tensor) -> Tensor:
        """`value` for the next update, which overwrites what CUDA graphs returned in this one."""
        return value.clone() if self.compiled and value.is_cuda else value

    def _read_and_encode(self, reading: Callable[[], Frames]) -> tuple[Frames, dict[str, Tensor]]:
        """Frames of the replay, and their windows as the dynamics model learns from them."""
        frames = reading()
        return frames, self._encode_windows(frames.windows)

    def _encode_windows(self, windows: dict[str, Tensor]) -> dict[str, Tensor]:
        batch = self._to_device(windows)
        with self._autocast(self.config.precision):
            batch["feature"] = self._encode(batch.pop("image"))
        return batch

    def _encode(self, image: Tensor) -> Tensor:
        """`features` of what is learned from."""
        return self.features(image)

    def update_autoencoder(self, replay: Replay, keep: Tensor | None = None) -> dict[str, Tensor]:
        """One update on frames (eq. 13), independent ones unless `autoencoder_window` says so."""
        self.begin()
        draw = self.reader.draw_frames(replay)
        return self._learn_to_see(self.reader.frames(replay, draw), keep)

    def _learn_to_see(self, frames: dict[str, Tensor], keep: Tensor | None) -> dict[str, Tensor]:
        with self._autocast(self.config.autoencoder_precision):
            loss, metrics = self.autoencoder.loss(self._to_device(frames), keep)
        metrics["gradient"] = self.autoencoder_optimizer.step(loss)
        return {f"autoencoder/{name}": value for name, value in metrics.items()}

    def update_dynamics(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], State]:
        """One update on windows of frozen features (eq. 14); also their posterior states
        (T, B, ...)."""
        metrics, posterior = self._predict(batch)
        return self._step_dynamics(metrics), posterior

    def _predict(
        self, batch: dict[str, Tensor], race: Tensor | None = None
    ) -> tuple[dict[str, Tensor], State]:
        """The gradient of the dynamics' loss on a batch, for their next step."""
        self.dynamics_optimizer.adam.zero_grad()  # what an update that failed may have left
        with self._autocast(self.config.precision):
            loss, posterior, metrics = self.dynamics.loss(batch, race)
        self.dynamics_optimizer.accumulate(loss)
        return metrics, posterior

    def _step_dynamics(self, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        metrics["gradient"] = self.dynamics_optimizer.apply()
        return {f"dynamics/{name}": value for name, value in metrics.items()}

    def sample(self, replay: Replay) -> dict[str, Tensor]:
        """A batch of windows as `update_dynamics` takes it."""
        index = self.reader.draw_windows(replay)
        return self._encode_windows(self.reader.windows(replay, index))

    def update_behaviour(self, start: State) -> dict[str, Tensor]:
        """One update in imagination from `start` states (n, ...) (eqs. 10 and 12)."""
        with self._autocast(self.config.precision):
            losses = self.behaviour.losses(self.world, start)
        metrics = self.behaviour.step(*losses)
        return {f"behaviour/{name}": value for name, value in metrics.items()}

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Frozen, unmasked autoencoder tokens of images (B, T, H, W, 3) → (B, T, N, D)."""
        tokens = self.autoencoder.encode(image.flatten(0, 1)).float()
        return tokens.unflatten(0, image.shape[:2])

    def _start_states(self, posterior: State) -> State:
        """Posterior states (T, B, ...) as one batch of starts, all or a random choice of them."""
        start = posterior.map(lambda part: part.detach().flatten(0, 1))
        count, total = self.config.behaviour.start_states, len(start.deterministic)
        if count is None or count >= total:
            return start
        chosen = torch.randperm(total, device=self.device)[:count]
        return start.map(lambda part: part[chosen])

    def _autocast(self, precision: Precision) -> torch.autocast:
        # The cache of cast weights is one per process, and leaving autocast in any thread empties
        # it: beside each other, gradients would be summed in an order that time decides.
        return autocast(precision, self.device, cache=not self._beside.running)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    # Showing

    @torch.no_grad()
    def report(self, replay: Replay, rows: int = 3, length: int = 50) -> dict[str, np.ndarray]:
        """Pictures of what the models believe, drawn without touching the training's randomness.

        Returns:
            `prediction`: (T, rows·H, columns·W, 3) uint8, per frame from left to right the image,
            what the target should have been (where that is not the image), the autoencoder's
            reconstruction under masking, and the open-loop prediction: after `context` frames the
            model sees only the actions. A bar above the prediction is green while it still sees.
        """
        rng = np.random.default_rng(self.updates)
        batch = self._to_device(replay.sample_windows(rows, length, rng))
        with torch.random.fork_rng(self._cuda_devices()):
            torch.manual_seed(self.updates)
            image = batch["image"]
            keep = self.autoencoder.random_keep(rows * length, self.device)
            masked = self.autoencoder.encode(image.flatten(0, 1), keep)
            reconstruction = self.autoencoder.decode(masked, keep)[0].unflatten(0, (rows, length))
            predicted = self.open_loop(batch, self.context)
        shown = [image]
        flat = {name: value.flatten(0, 1) for name, value in batch.items()}
        wanted = truth(self.autoencoder.target, flat)
        if wanted is not None:
            shown.append(wanted.unflatten(0, (rows, length)))
        predicted, reconstruction = (self._to_image(p) for p in (predicted, reconstruction))
        seen, imagined = predicted.new_tensor([0, 200, 80]), predicted.new_tensor([220, 60, 40])
        predicted[:, : self.context, :2] = seen
        predicted[:, self.context :, :2] = imagined
        video = torch.cat([*shown, reconstruction, predicted], dim=3)  # along the width
        video = video.permute(1, 0, 2, 3, 4).flatten(1, 2)  # rows below each other
        return {"prediction": video.cpu().numpy()}

    @torch.no_grad()
    def open_loop(self, batch: dict[str, Tensor], context: int) -> Tensor:
        """The target's values (B, T, H, W, C): `context` frames from posterior states, the rest
        imagined from the recorded actions alone, decoded through the autoencoder."""
        seen = {name: value[:, :context] for name, value in batch.items()}
        seen["feature"] = self.features(seen["image"])
        posterior, _ = self.dynamics.observe(seen)
        actions = batch["action"][:, context:].transpose(0, 1)
        start = posterior.map(lambda part: part[-1])
        dream = self.dynamics.imagine(lambda _, step: actions[step], start, len(actions))
        state = torch.cat([posterior.feature, dream.feature[1:]])  # (T, B, F)
        tokens = self.dynamics.reconstruct(state).transpose(0, 1)
        prediction, _ = self.autoencoder.decode(tokens.flatten(0, 1))
        return prediction.unflatten(0, tokens.shape[:2])

    def _to_image(self, prediction: Tensor) -> Tensor:
        """The target's values (B, T, H, W, C) as pictures (B, T, H, W, 3) uint8."""
        images = self.autoencoder.target.to_image(prediction.flatten(0, 1))
        return images.clone(memory_format=torch.contiguous_format).unflatten(
            0, prediction.shape[:2]
        )

    def _cuda_devices(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def parameter_counts(self) -> dict[str, int]:
        """Trained parameters by module; the target critic is a copy and not counted."""
        behaviour = self.behaviour
        parts = {
            "autoencoder": self.autoencoder,
            "dynamics/encoder": self.dynamics.encoder,
            "dynamics/rssm": self.dynamics.rssm,
            "dynamics/decoder": self.dynamics.decoder,
            "dynamics/heads": nn.ModuleList(
                head
                for head in (self.dynamics.reward_head, self.dynamics.discount_head)
                if head is not None
            ),
            "behaviour/actor": behaviour.actor,
            "behaviour/critic": behaviour.critic,
        }
        return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}

    def update_counts(self) -> dict[str, int]:
        """Updates made so far by each part, pretraining included."""
        return {name: optimizer.updates for name, optimizer in self._optimizers().items()}

    # Keeping

    def _optimizers(self) -> dict[str, Optimizer]:
        return {
            "autoencoder": self.autoencoder_optimizer,
            "dynamics": self.dynamics_optimizer,
            "actor": self.behaviour.actor_optimizer,
            "critic": self.behaviour.critic_optimizer,
        }

    def save(self) -> dict:
        """Everything learning needs to go on: tensors and plain numbers only."""
        return {
            "modules": self.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self._optimizers().items()},
            "updates": self.updates,
            "pretrained": self.pretrained,
            "start": None if self._start is None else self._start._asdict(),
        }

    def load(self, state: dict) -> None:
        """The inverse of `save`."""
        self.load_state_dict(state["modules"])
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.updates, self.pretrained = state["updates"], state["pretrained"]
        start = state.get("start")  # checkpoints from before there was any have none
        self._start = None
        if start is not None:
            self._start = State(**start).map(lambda part: part.to(self.device))
