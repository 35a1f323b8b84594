"""A trained agent at work in one environment, be it a simulator's or a robot's.

    policy = agents.load("runs/...")
    policy.reset()
    action = policy.act({"image": image, "proprio": proprio})

Shape legend: V cameras, S picture edge, D proprioception, A action, H actions of a chunk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import envs
from agents import imitation_loading, online_loading
from agents.agent import Actor, Imitator, OnlineAgent, TaskDescription
from agents.imitation_config import View
from agents.mask_world_model import ChunkActor
from errors import UserError
from experiment.checkpoint import fingerprint
from experiment.run_folder import RunFolder
from experiment.seed import check_seed

Chunk = Callable[[], np.ndarray]
"""Computes the actions (H, A) that follow from an observation."""
MOST_STEPS = 1_000_000
"""Between two observations of an episode."""


class Entry(NamedTuple):
    """Shape and kind of an observation's entry."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{tuple(self.shape)} {self.dtype}"


class Trained(NamedTuple):
    """What a folder holds of a policy; policies at work in several environments share it."""

    agent: Any
    """An `OnlineAgent` or an `Imitator`."""
    name: str
    """The folder."""
    method: str
    position: int
    """Environment steps of training, or updates."""
    task: str
    """What the run was given as its task."""
    tasks: tuple[str, ...]
    """Ids of what it was trained for."""
    instructions: dict[str, str]
    """By task, as far as they are known without the simulator."""
    observation: dict[str, Entry]
    """What an observation has to hold."""
    action_size: int
    """A."""
    environment: dict[str, Any]
    """Options of `envs.make` by which the tasks are shown as they were in training."""
    view: View | None = None
    """How an imitator sees; None for an agent of `train`."""


class Policy:
    """A trained agent in one environment: it remembers what it has seen in the episode.

    Args:
        trained: what to act with.
        task: which of its tasks; None: the only one, or the one whose instruction is given.
        seed: of the noise of policies that sample their actions. (The model states of online
            agents are sampled with PyTorch's own generator, `torch.manual_seed`.)

    Raises:
        UserError: it was not trained for the task; the seed is none.

    Attributes:
        observation: by name, shape and kind of what `act` has to be given.
        action_size: A.
        chunk_size: H, actions that are predicted at once.
        n_action_steps: actions of a chunk that are taken before the next one is predicted.
        actor: what acts in this episode; None before the first `reset`.
    """

    def __init__(self, trained: Trained, task: str | None = None, seed: int = 0):
        check_seed(seed)
        if task is not None and task not in trained.tasks:
            raise UserError(
                f"{trained.name} was trained for {', '.join(trained.tasks)}, not for {task!r:.80}"
            )
        self.trained, self.task, self.seed = trained, task, seed
        self.observation, self.action_size = trained.observation, trained.action_size
        self.chunk_size = getattr(trained.agent, "chunk", 1)
        self.n_action_steps = getattr(trained.agent, "n_action_steps", 1)
        self.instruction: str | None = None
        self.actor: Actor | None = None
        self._asked: str | None = None  # the instruction that the last episode was begun with
        self._state: Any = None
        self._first = True
        self._left: deque[np.ndarray] = deque()

    def another(self) -> Policy:
        """The same policy for another environment, at the beginning of an episode."""
        return Policy(self.trained, self.task, self.seed)

    def reset(self, instruction: str | None = None) -> None:
        """Begin an episode.

        Args:
            instruction: what to do, in words; None: the task's own. Agents of `train` know one
                task, and no words.

        Raises:
            UserError: several tasks were learned and none is named; the agent knows no picture of
                this task done, and needs one.
        """
        if instruction is not None and not isinstance(instruction, str):
            raise UserError(f"an instruction is text, not {type(instruction).__name__}")
        if self.actor is None or instruction != self._asked:
            self.actor, self._asked = self._make_actor(instruction), instruction
        self._state, self._first = None, True
        self._left.clear()

    def act(self, observation: Mapping[str, Any]) -> np.ndarray:
        """The next action.

        Args:
            observation: `image` ([V,] S, S, 3) uint8, and `proprio` (D,) if it was seen; what else
                it holds is not read, but for `action` (A,): the one that was executed in place of
                the last one, of which an online agent's model has to know.

        Returns:
            (A,) float32, in the units of the environment and of recorded demonstrations; one-hot
            where the environment's actions are discrete.

        Raises:
            UserError: the observation lacks something, or has it in another shape.
        """
        chunk = self.look(observation)
        if not self._left:
            self._left.extend(chunk()[: self.n_action_steps])
        return self._left.popleft()

    def look(self, observation: Mapping[str, Any], steps: int = 1) -> Chunk:
        """Take in an observation, as `act` does, and decide for yourself when to compute the
        actions that follow from it.

        Args:
            observation: as of `act`.
            steps: since the observation before; the policy takes it that nothing changed between.

        Returns:
            A function that may be called once, from any thread: the actions (H, A) from now on.
            Where H is 1 it has to be called before the next observation.

        Raises:
            UserError: as `act`.
        """
        seen = self._checked(observation)
        if not isinstance(steps, int) or not 1 <= steps <= MOST_STEPS:
            raise UserError(f"steps is {steps!r:.40}, no number from 1 to {MOST_STEPS:,}")
        if self.actor is None:
            self.reset()
        actor, first = self.actor, np.array([self._first])
        assert actor is not None
        self._first = False
        if isinstance(actor, ChunkActor):
            actor.see(seen["image"], first, steps)
            pictures = actor.seen(np.array([True]))
            felt = seen.get("proprio", np.zeros((1, 0), np.float32))
            return lambda: self._in_units(actor.chunk(pictures, felt)[0])
        executed = observation.get("action")
        if executed is not None and self._state is not None:
            self._state = self.trained.agent.acted(self._state, self._action(executed)[None])

        def step() -> np.ndarray:
            action, self._state = actor.policy({**seen, "is_first": first}, self._state, False)
            return self._in_units(action)

        return step

    def describe(self) -> dict[str, Any]:
        """What a client has to know: plain values."""
        trained = self.trained
        return {
            "policy": trained.name,
            "method": trained.method,
            "tasks": list(trained.tasks),
            "observation": {
                name: {"shape": list(entry.shape), "dtype": entry.dtype}
                for name, entry in self.observation.items()
            },
            "action_size": self.action_size,
            "chunk_size": self.chunk_size,
            "n_action_steps": self.n_action_steps,
            "environment": dict(trained.environment),
        }

    def fingerprint(self) -> str:
        """By which this policy is told from every other."""
        return fingerprint([self.trained.agent.state_dict(), self.trained.environment])

    # What is not the caller's business

    def _make_actor(self, instruction: str | None) -> Actor:
        agent = self.trained.agent
        if self.trained.view is None:
            self.instruction = instruction or ""
            return agent
        task, self.instruction = self._described(instruction)
        return agent.actor(TaskDescription(task, self.instruction), self.seed)

    def _described(self, instruction: str | None) -> tuple[str, str]:
        """Task and instruction: each says the other where only one is given."""
        trained, task = self.trained, self.task
        if instruction is None and task is None:
            if len(trained.tasks) > 1:
                raise UserError(
                    f"{trained.name} was trained for several tasks, {', '.join(trained.tasks)}:"
                    " name one of them, or give its instruction"
                )
            task = trained.tasks[0]
        if instruction is None:
            assert task is not None
            return task, self.told(task)
        if task is None and len(trained.tasks) > 1:
            task = next((t for t in trained.tasks if self.told(t) == instruction), None)
        return task or trained.tasks[0], instruction

    def told(self, task: str) -> str:
        """The instruction of a task; its simulator is asked where the folder does not say it.

        Raises:
            UserError: the simulator is not there.
        """
        known = self.trained.instructions
        if task not in known:
            try:
                environment = envs.make(task, size=8, quality="fast")
            except UserError as error:
                raise UserError(
                    f"{self.trained.name} does not say the instruction of {task}, and its simulator"
                    f" cannot be asked ({error}); give the instruction"
                ) from error
            known[task] = environment.get_wrapper_attr("instruction")
            environment.close()
        return known[task]

    def _checked(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What the agent reads, as of one environment of several, (1, ...)."""
        if not isinstance(observation, Mapping):
            raise UserError(f"an observation is a dict, not {type(observation).__name__}")
        seen = {}
        for name, entry in self.observation.items():
            if name not in observation:
                wanted = " and ".join(f"{n} {e}" for n, e in self.observation.items())
                raise UserError(f"the observation has no {name!r}; the policy reads {wanted}")
            value = _array(name, observation[name])
            alike = value.dtype == np.uint8 if entry.dtype == "uint8" else value.dtype.kind in "fiu"
            if value.shape != entry.shape or not alike:
                here = Entry(value.shape, str(value.dtype))
                raise UserError(f"{name} of the observation is {here}, the policy reads {entry}")
            with np.errstate(over="ignore"):
                value = value.astype(entry.dtype)
            if not np.isfinite(value).all():
                raise UserError(f"{name} of the observation has a number that is not finite")
            seen[name] = value[None]
        if "action" in observation:
            self._action(observation["action"])
        return seen

    def _in_units(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., A) as whoever recorded the demonstrations counts them."""
        view = self.trained.view
        return actions if view is None else view.in_units(actions).astype(np.float32)

    def _action(self, executed: Any) -> np.ndarray:
        value = _array("action", executed)
        if value.shape != (self.action_size,) or value.dtype.kind not in "fiu":
            raise UserError(
                f"action of the observation is {Entry(value.shape, str(value.dtype))}, an action of"
                f" this policy is {Entry((self.action_size,), 'float32')}"
            )
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError("action of the observation has a number that is not finite")
        return value


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{name} of the observation is no array of numbers") from error


def load(
    folder: Path | str,
    task: str | None = None,
    *,
    device: str = "auto",
    seed: int = 0,
    trusted: Collection[str] = (),
) -> Policy:
    """The policy of a run folder, of `train` or `imitate`, or of an exported policy's.

    Args:
        folder: the folder.
        task: which of several tasks it is to do; it can be told by an instruction as well.
        device: torch device; auto takes CUDA where there is one.
        seed: of the noise of policies that sample their actions.
        trusted: what the folder's configuration may load from outside the toolkit: classes,
            ``package.module:Class``, and weights, by the names it has for them.

    Raises:
        UserError: there is none that can be loaded, or it was not trained for the task.
    """
    return Policy(load_trained(folder, device, trusted), task, seed)


def load_trained(
    folder: Path | str, device: str = "auto", trusted: Collection[str] = ()
) -> Trained:
    """What a folder holds of a policy. Raises UserError as `load`."""
    if RunFolder.open(folder).of_imitation:
        return _imitator(folder, device, trusted)
    agent: OnlineAgent
    agent, config, step = online_loading.load_agent(folder, device, trusted)
    seen = config.environment
    cameras = (seen.views,) if seen.views > 1 else ()
    entries = {"image": Entry((*cameras, seen.size, seen.size, 3), "uint8")}
    if agent.proprio_size:
        entries["proprio"] = Entry((agent.proprio_size,), "float32")
    return Trained(
        agent, str(folder), config.method, step, config.task, (config.task,), {},
        entries, agent.action, asdict(seen),
    )  # fmt: skip


def _imitator(folder: Path | str, device: str, trusted: Collection[str]) -> Trained:
    agent: Imitator
    agent, config, view, updates = imitation_loading.load_agent(folder, device, trusted)
    spec = agent.data_spec
    cameras = (spec.cameras,) if spec.cameras > 1 else ()
    entries = {"image": Entry((*cameras, spec.size, spec.size, 3), "uint8")}
    if spec.proprio_size:
        entries["proprio"] = Entry((spec.proprio_size,), "float32")
    told = dict(agent.instructions)
    tasks = tuple(told) if config.task == "none" else tuple(envs.expand(config.task))
    options = view.options(quality=config.quality)
    return Trained(
        agent, str(folder), config.method, updates, config.task,
        tasks, told, entries, spec.action_size, options, view,
    )  # fmt: skip
