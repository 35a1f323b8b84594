"""A policy as an ONNX graph: the acting path alone, for runtimes without Python or PyTorch.

The graph has no memory and draws no random numbers: what a policy remembers, and noise, are inputs
of it, and for online agents the new memory is an output. All computing is float32.

Shape legend: V cameras, H frames of history, S picture edge, D proprioception, A action, C actions
of a chunk, R deterministic state, N·K variables and classes of the stochastic state.

    online agents        image (1, S, S, 3) uint8, is_first (1,) bool, deterministic (1, R),
                         stochastic (1, N·K), last_action (1, A), noise (1, N, K)
                         -> action (1, A), next_deterministic, next_stochastic
    Mask World Model     image (1, V, H, S, S, 3) uint8, proprio (1, D), noise (1, C, A),
                         and with a video model future_noise (1, V, tokens, channels)
                         -> actions (1, C, A)
    Mask2Act             image (1, V, H, S, S, 3) uint8, proprio (1, H, D),
                         and with a video model video (1, 4, S, S, 3) uint8, future_noise
                         -> action (1, A)

`noise` of online agents is exponential, −log of uniform numbers; all other noise is normal.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from agents.diffusion_policy import euler
from agents.mask2act import VIDEO_FRAMES, Mask2Act, PlanActor
from agents.mask_world_model import ChunkActor, MaskWorldModel
from agents.policy import Policy
from agents.world_model_agent import WorldModelAgent
from errors import UserError
from world_models.image_encoder import ImageEncoder
from world_models.mask_dynamics import MaskDynamics
from world_models.planner import Planner
from world_models.rssm import State
from world_models.views import views_stacked

NAME = "policy.onnx"
"""File of an exported policy's folder."""
TOLERANCE = 1e-3
"""Largest distance of an action in onnxruntime to PyTorch's; actions are in [−1, 1]."""
TRIES = 8
"""Inputs on which the two are compared."""
OPSET = 18


class Exported(NamedTuple):
    """A graph, and how well it does."""

    model: bytes
    difference: float
    """Largest distance of an action in onnxruntime to PyTorch's."""
    inputs: dict[str, tuple[int, ...]]


class OnlineStep(nn.Module):
    """One step of an online agent: see, filter, act."""

    outputs = ("action", "next_deterministic", "next_stochastic")

    def __init__(self, agent: WorldModelAgent):
        super().__init__()
        self.networks, self.agent = agent.acting, agent

    def forward(
        self,
        image: Tensor,
        is_first: Tensor,
        deterministic: Tensor,
        stochastic: Tensor,
        last_action: Tensor,
        noise: Tensor,
        proprio: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the module's docstring."""
        agent = self.agent
        before = State(deterministic, stochastic, torch.zeros_like(noise))
        embedding = agent.embed(views_stacked({"image": image}, agent.views)["image"])
        if proprio is not None:
            embedding = agent.dynamics.with_proprio(embedding, {"proprio": proprio})
        posterior, _ = agent.dynamics.rssm.observe(
            embedding[None], last_action[None], is_first[None], before, noise[None]
        )
        state = posterior.map(lambda part: part[0])
        action = agent.behaviour.actor(state.feature).mode
        return action, state.deterministic, state.stochastic

    def example(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Inputs drawn at random, in the middle of an episode."""
        agent = self.agent
        size, rssm = agent.config.image_size, agent.dynamics.rssm  # type: ignore[attr-defined]
        noise = rssm.exponential_noise(1, device=torch.device("cpu"))
        cameras = (agent.views,) if agent.views > 1 else ()
        logits = torch.from_numpy(rng.normal(size=noise.shape)).float()
        inputs = {
            "image": _pictures(rng, 1, *cameras, size, size, 3),
            "is_first": torch.zeros(1, dtype=torch.bool),
            "deterministic": torch.tanh(_normal(rng, 1, rssm.config.deterministic)),
            "stochastic": rssm.sample(logits, noise),
            "last_action": torch.from_numpy(rng.uniform(-1, 1, (1, agent.action))).float(),
            "noise": noise,
        }
        if agent.proprio_size:
            inputs["proprio"] = _normal(rng, 1, agent.proprio_size)
        return inputs


class Told(nn.Module):
    """What an instruction became (1, K, D), whatever is asked: it is a constant of the graph."""

    def __init__(self, tokens: Tensor):
        super().__init__()
        self.tokens = tokens

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """See the class."""
        return self.tokens


class ChunkStep(nn.Module):
    """A chunk of actions of Mask World Model: features, then Euler's method from noise."""

    outputs = ("actions",)

    def __init__(self, agent: MaskWorldModel, caption: dict[str, Tensor]):
        super().__init__()
        self.agent, self.networks = agent, agent.acting
        self.proprio, self.actions = agent.proprio, agent.actions
        self.text, self.text_mask = caption["text"], caption["text_mask"]
        self.seeing = agent.ema.world_model
        if isinstance(self.seeing, ImageEncoder):
            with torch.no_grad():
                tokens = self.seeing.instruction(self.text, self.text_mask)
            self.seeing = copy.deepcopy(self.seeing)
            self.seeing.add_module("instruction", Told(tokens))

    def forward(
        self, image: Tensor, proprio: Tensor, noise: Tensor, future_noise: Tensor | None = None
    ) -> Tensor:
        """See the module's docstring."""
        networks = self.agent.ema
        if self.agent.config.world_model == "blind":
            image = image * 0
        if future_noise is None:
            features = self.seeing(image, self.text, self.text_mask)
        else:
            features = networks.dynamics.features(
                image, self.text, self.text_mask, noise=future_noise
            )
        context, seen = networks.policy.read(features), self.proprio.normalise(proprio)
        steps = networks.policy.config.num_inference_steps
        chunk = euler(lambda z, s: networks.policy.velocity(z, s, seen, context), noise, steps)
        return self.actions.denormalise(chunk)

    def example(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Inputs drawn at random."""
        config, spec = self.agent.config, self.agent.data_spec
        inputs = {
            "image": _pictures(rng, 1, spec.cameras, config.n_obs_steps, spec.size, spec.size, 3),
            "proprio": _proprio(rng, self.agent, 1),
            "noise": _normal(rng, 1, config.policy.chunk, spec.action_size),
        }
        if config.predicts:
            dynamics = self.agent.ema.dynamics
            inputs["future_noise"] = _future_noise(rng, dynamics, spec.cameras, spec.size)
        return inputs


class PlanStep(nn.Module):
    """An action of Mask2Act: the plan, then the executor, over the whole window."""

    outputs = ("action",)

    def __init__(self, agent: Mask2Act, actor: PlanActor):
        super().__init__()
        self.agent, self.networks = agent, agent.acting
        self.proprio, self.actions = agent.proprio, agent.actions
        self.text, self.text_mask = actor.text["text"], actor.text["text_mask"]
        self.task: Tensor | None = None
        if isinstance(agent.ema.planner, Planner):
            goal = actor.goals[:1].to(agent.device)
            self.task = agent.ema.planner.task_token({"goal": goal, **actor.text})

    def forward(
        self,
        image: Tensor,
        proprio: Tensor,
        video: Tensor | None = None,
        future_noise: Tensor | None = None,
    ) -> Tensor:
        """See the module's docstring."""
        networks, planner = self.agent.ema, self.agent.ema.planner
        view = None
        plan = torch.zeros(1, image.shape[2], networks.plan_width, device=image.device)
        if isinstance(planner, Planner):
            assert self.task is not None
            view = planner.encoder(image[:, 0])
            plan = planner.plan(view, self.task)
            view = None if self.agent.config.executor.own_view else view
        elif planner is not None:
            assert video is not None
            assert networks.pool is not None
            tokens = planner.features(
                video[:, None], self.text, self.text_mask, noise=future_noise
            )[-1]
            plan = torch.cat([plan[:, 1:], networks.pool(tokens)[:, None]], 1)
        action = networks.executor(image, self.proprio.normalise(proprio), plan, view)[:, -1]
        return self.actions.denormalise(action)

    def example(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Inputs drawn at random."""
        config, spec = self.agent.config, self.agent.data_spec
        steps = config.n_obs_steps
        inputs = {
            "image": _pictures(rng, 1, spec.cameras, steps, spec.size, spec.size, 3),
            "proprio": _proprio(rng, self.agent, 1, steps),
        }
        planner = self.agent.ema.planner
        if isinstance(planner, MaskDynamics):
            inputs["video"] = _pictures(rng, 1, VIDEO_FRAMES, spec.size, spec.size, 3)
            inputs["future_noise"] = _future_noise(rng, planner, 1, spec.size)
        return inputs


def build(policy: Policy) -> Exported:
    """The graph of a policy, compared with PyTorch.

    Args:
        policy: on the CPU; of several tasks, one that says which.

    Raises:
        UserError: the libraries are not there, the graph cannot be made, or acts otherwise.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise UserError(f"--onnx needs pip install '.[onnx]' ({error})") from error
    step = _step(policy)
    inputs = step.example(np.random.default_rng(0))
    with _quiet(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                step, (), kwargs=inputs, input_names=list(inputs), output_names=list(step.outputs),
                opset_version=OPSET, dynamo=True,
            )  # fmt: skip
        except Exception as error:  # whatever the exporter makes of a network
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"PyTorch cannot make an ONNX graph of this policy: {reason:.200}"
            ) from error
    model = program.model_proto
    described = {**policy.describe(), "task": policy.task, "instruction": policy.instruction}
    model.metadata_props.append(
        onnx.StringStringEntryProto(key="policy", value=json.dumps(described))
    )
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    difference = compare(step, session)
    if not difference <= TOLERANCE:
        raise UserError(
            f"the ONNX graph acts otherwise than PyTorch, by up to {difference:.2g}; it is not"
            " written"
        )
    shapes = {name: tuple(part.shape) for name, part in inputs.items()}
    return Exported(content, difference, shapes)


def compare(step: Any, session: Any) -> float:
    """Largest distance of actions between a module and its graph, on random inputs."""
    rng, worst = np.random.default_rng(1), 0.0
    known = {each.name for each in session.get_inputs()}
    for _ in range(TRIES):
        inputs = step.example(rng)
        with torch.no_grad():
            expected = step(**inputs)
        expected = expected[0] if isinstance(expected, tuple) else expected
        given = {name: part.numpy() for name, part in inputs.items() if name in known}
        found = session.run(None, given)[0]
        worst = max(worst, float(np.abs(found - expected.numpy()).max()))
    return worst


def _step(policy: Policy) -> OnlineStep | ChunkStep | PlanStep:
    agent = policy.trained.agent
    if isinstance(agent, WorldModelAgent):
        return OnlineStep(agent).eval()
    policy.reset()
    actor = policy.actor
    if isinstance(agent, Mask2Act):
        return PlanStep(agent, cast(PlanActor, actor)).eval()
    return ChunkStep(agent, cast(ChunkActor, actor).caption).eval()


def _pictures(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, shape, np.uint8))


def _normal(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.normal(size=shape)).float()


def _proprio(rng: np.random.Generator, agent: Any, *leading: int) -> Tensor:
    """Proprioception as demonstrations have it, (*leading, D)."""
    low, high = (np.array(agent.statistics[f"proprio_{edge}"]) for edge in ("low", "high"))
    return torch.from_numpy(low + (high - low) * rng.random((*leading, len(low)))).float()


def _future_noise(
    rng: np.random.Generator, dynamics: MaskDynamics, cameras: int, size: int
) -> Tensor:
    return _normal(rng, *dynamics.noise_shape(1, cameras, size))


@contextlib.contextmanager
def _quiet():
    """The exporter prints its progress and warns of what it does itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
