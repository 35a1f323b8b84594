"""ONNX graphs of acting paths: the actions of onnxruntime are those of the agents' own actors."""

from dataclasses import replace

import numpy as np
import onnxruntime
import torch

from agents import onnx_export
from agents.agent import TaskDescription
from agents.imitation_config import View
from agents.imitation_loading import make_imitator
from agents.policy import Entry, Policy, Trained
from tests.agents import received_runs, test_mask2act, tiny_agent
from tests.agents.received_runs import SPEC, statistics
from world_models.video_transformer import TransformerConfig
from world_models.video_vae import VideoVAEConfig

TASK = "a/task"


def policy_of(agent, action_size, **entries):
    entries = {name: Entry(shape, kind) for name, (shape, kind) in entries.items()}
    view = View("camera", entries["image"].shape[-2], "fast", 1) if "proprio" in entries else None
    trained = Trained(
        agent, "folder", "m", 0, TASK, (TASK,), {TASK: "do it"}, entries, action_size, {}, view
    )
    return Policy(trained, TASK)


def session_of(policy):
    built = onnx_export.build(policy)
    assert built.difference < 1e-4
    return onnxruntime.InferenceSession(built.model, providers=["CPUExecutionProvider"])


def test_an_online_agent_goes_through_an_episode():
    agent, size = tiny_agent.make(), tiny_agent.SIZE
    session = session_of(policy_of(agent, tiny_agent.A, image=((size, size, 3), "uint8")))
    rssm = agent.dynamics.rssm.config
    state, found = None, {
        "next_deterministic": np.zeros((1, rssm.deterministic), np.float32),
        "next_stochastic": np.zeros((1, rssm.variables * rssm.classes), np.float32),
        "action": np.zeros((1, tiny_agent.A), np.float32),
    }  # fmt: skip
    names = [each.name for each in session.get_outputs()]
    for step in range(4):
        shown = tiny_agent.observation(1, step, step == 0)
        torch.manual_seed(step)
        action, state = agent.policy(shown, state, explore=False)
        torch.manual_seed(step)
        noise = agent.dynamics.rssm.exponential_noise(1, 1, device=torch.device("cpu"))[0]
        inputs = {
            **shown, "deterministic": found["next_deterministic"],
            "stochastic": found["next_stochastic"], "last_action": found["action"],
            "noise": noise.numpy(),
        }  # fmt: skip
        found = dict(zip(names, session.run(None, inputs), strict=True))
        np.testing.assert_allclose(found["action"], action, atol=1e-5)


def test_mask_world_model_predicts_the_same_chunk():
    config = received_runs.imitation()
    dynamics = replace(
        config.agent.dynamics,
        vae=VideoVAEConfig(8, widths=(8,), blocks=(0, 0), scaling=(True,)),
        transformer=TransformerConfig(layers=1, heads=2, head_width=16),
    )
    config = replace(config, agent=replace(config.agent, dynamics=dynamics))
    agent = make_imitator(config, SPEC, statistics(), "cpu")
    torch.nn.init.normal_(agent.ema.policy.action_out.weight)  # zero at first: it would only echo
    entries = {"image": ((32, 32, 3), "uint8"), "proprio": ((4,), "float32")}
    session = session_of(policy_of(agent, 4, **entries))
    step = onnx_export.ChunkStep(agent, agent.caption(["do it"]))
    inputs = step.example(np.random.default_rng(3))
    draws = torch.Generator().manual_seed(5)
    for name in ("future_noise", "noise"):  # in the order in which the agent draws them
        inputs[name] = torch.randn(inputs[name].shape, generator=draws)
    expected = agent.act(
        inputs["image"], inputs["proprio"], agent.caption(["do it"]),
        torch.Generator().manual_seed(5),
    )  # fmt: skip
    known = {each.name for each in session.get_inputs()}
    (found,) = session.run(None, {n: part.numpy() for n, part in inputs.items() if n in known})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert np.abs(found).max() > 0.01


def test_mask2act_acts_the_same_on_a_window():
    agent = test_mask2act.make("masks")
    spec = agent.data_spec
    agent.goals = {TASK: torch.randint(0, 256, (1, spec.size, spec.size, 3), dtype=torch.uint8)}
    entries = {
        "image": ((spec.cameras, spec.size, spec.size, 3), "uint8"),
        "proprio": ((spec.proprio_size,), "float32"),
    }
    session = session_of(policy_of(agent, spec.action_size, **entries))
    actor = agent.actor(TaskDescription(TASK, "do it"))
    rng, steps = np.random.default_rng(0), agent.config.n_obs_steps
    shape = (steps, spec.cameras, spec.size, spec.size, 3)
    image = rng.integers(0, 256, shape, np.uint8)
    proprio = rng.normal(size=(steps, spec.proprio_size)).astype(np.float32)
    for step in range(steps):
        shown = {"image": image[step][None], "proprio": proprio[step][None]}
        expected, _ = actor.policy({**shown, "is_first": np.array([step == 0])}, None, False)
    inputs = {"image": image.swapaxes(0, 1)[None], "proprio": proprio[None]}
    (found,) = session.run(None, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
