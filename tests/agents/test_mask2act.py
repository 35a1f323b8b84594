"""Mask2Act: what either stage trains, what acting needs, and that both can learn."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.agent import TaskDescription
from agents.data_spec import DataSpec
from agents.executor import ExecutorConfig
from agents.mask2act import Mask2Act
from agents.mask2act_config import WITHOUT_TOKENS, Mask2ActConfig
from errors import UserError
from mask_classes import HAND, OBJECT
from world_models.layers import Optimizer, OptimizerConfig
from world_models.mask_dynamics import MaskDynamicsConfig
from world_models.plan_targets import PLANS
from world_models.planner import CausalTransformerConfig, PlannerConfig
from world_models.resnet import ResNetConfig
from world_models.video_transformer import TransformerConfig
from world_models.video_vae import VideoVAEConfig

S, H, V, A, D, B = 32, 3, 2, 4, 5, 2
TRANSFORMER = CausalTransformerConfig(16, 1, 2, dropout=0.0)
RESNET = ResNetConfig(width=4, pool_stem=False)
FAST = OptimizerConfig(3e-3, epsilon=1e-8)
TINY = Mask2ActConfig(
    planner=PlannerConfig(RESNET, TRANSFORMER),
    executor=ExecutorConfig(RESNET, TRANSFORMER),
    dynamics=MaskDynamicsConfig(
        "pixels",
        VideoVAEConfig(8, widths=(8, 8), blocks=(0, 0, 0), scaling=(True, True)),
        TransformerConfig(layers=1, heads=2, head_width=16),
        future_frames=1,
    ),
    n_obs_steps=H,
    planner_optimizer=FAST,
    executor_optimizer=FAST,
    ema_decay=0.0,
    precision="float32",
)
STATISTICS = {
    f"{name}_{kind}": [edge] * size
    for name, size in (("action", A), ("proprio", D))
    for kind, edge in (("low", -1.0), ("min", -1.0), ("high", 1.0), ("max", 1.0))
}
ALL_PLANS = [*PLANS, *WITHOUT_TOKENS]


def rng_of(seed):
    return np.random.default_rng(seed)


def pictures(*shape, seed=0):
    return rng_of(seed).integers(0, 256, (*shape, S, S, 3), np.uint8)


def tasks(goals=2):
    return [
        TaskDescription(f"task/{name}", f"do {name}", pictures(goals, seed=10 + index))
        for index, name in enumerate("ab")
    ]


def make(plan="masks", device="cpu", **changes):
    torch.manual_seed(0)
    config = replace(TINY, plan=plan, **changes)
    agent = Mask2Act(config, DataSpec(V, S, A, D), STATISTICS, device)
    agent.captions = agent.describe(tasks())
    return agent


def window(reads, seed):
    """What `envs.windows` would give for some reads."""
    rng, found = rng_of(seed), {}
    for name, (kind, steps, ahead, cameras) in reads.items():
        rows = len(steps) * len(ahead)
        if tuple(ahead) != (0,):
            found[f"{name}_valid"] = np.ones(rows, bool)
        if kind == "rgb":
            many = [V] if cameras == "all" else []
            found[name] = pictures(*many, rows, seed=seed)
        elif kind == "mask":
            found[name] = rng.choice([0, HAND, OBJECT], (rows, S, S)).astype(np.uint8)
        elif kind == "effector":
            found[name] = rng.uniform(0, S, (rows, 2)).astype(np.float32)
        elif kind == "tracks":
            found[name] = rng.uniform(0, S, (rows, 7, 2)).astype(np.float32)
        elif kind == "visible":
            found[name] = np.ones((rows, 7), bool)
        else:
            size = A if kind == "action" else D
            found[name] = rng.uniform(-1, 1, (rows, size)).astype(np.float32)
    return found


def batch(agent, stage):
    windows = [window(agent.reads(stage), seed) for seed in range(B)]
    made = {name: torch.from_numpy(np.stack([w[name] for w in windows])) for name in windows[0]}
    return made | {name: part[torch.arange(B) % 2] for name, part in agent.captions.items()}


def learn(agent, stage, updates):
    agent.resume(stage)
    trained = agent.stage(stage)
    optimizer, one = Optimizer(trained.modules, trained.optimizer), batch(agent, stage)
    losses = []
    for update in range(updates):
        loss, metrics = agent.loss(stage, one)
        optimizer.accumulate(loss)
        optimizer.apply()
        agent.update_ema(update + 1)
        losses.append(loss.item())
    assert all(value.shape == () for value in metrics.values())
    return losses


def observation(n=2, seed=0, first=False):
    return {
        "image": pictures(n, V, seed=seed),
        "proprio": rng_of(seed).uniform(-1, 1, (n, D)).astype(np.float32),
        "is_first": np.full(n, first),
    }


@pytest.mark.parametrize("plan", ALL_PLANS)
def test_both_stages_learn_a_batch_by_heart_and_the_agent_acts(plan):
    agent = make(plan)
    if plan != "none":
        losses = learn(agent, "planner", 20)
        assert losses[-1] < losses[0]
        sheet, metrics = agent.report(batch(agent, "planner"), seed=0)
        assert sheet.dtype == np.uint8
        assert sheet.shape[0] == B * S
        assert all(np.isfinite(value) for value in metrics.values())
    agent.begin("executor")
    losses = learn(agent, "executor", 20)
    assert losses[-1] < 0.5 * losses[0]
    actor = agent.actor(tasks()[0], drawn=True)
    for step in range(3):
        action, _ = actor.policy(observation(seed=step, first=step == 0), None, explore=False)
        assert action.shape == (2, A)
        assert action.dtype == np.float32
        assert (np.abs(action) <= 1).all()
    assert len(actor.film) == 3
    foretold = {"masks": 0, "trajectory": 1, "points": 1}.get(plan, 0)  # no mask is shown
    assert actor.film[0].shape == (S, (V + foretold) * S, 3)


@pytest.mark.parametrize("plan", [name for name in ALL_PLANS if name != "none"])
def test_the_executors_stage_leaves_the_planner_bit_for_bit(plan):
    """Running statistics included."""
    agent = make(plan)
    learn(agent, "planner", 2)
    agent.begin("executor")
    before = copy.deepcopy(agent.first_stage_state_dict())
    learn(agent, "executor", 3)
    after = agent.first_stage_state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_acting_needs_neither_masks_nor_the_decoder():
    """Masks and decoder are taken away: the same actions."""
    agent = make("masks")
    actions = []
    for taken_away in (False, True):
        if taken_away:
            agent.ema.target = None
            agent.networks.target = None
        actor = agent.actor(tasks()[0], seed=1)
        actions.append(actor.policy(observation(first=True), None, explore=False)[0])
    assert np.array_equal(*actions)
    assert not any("mask" in name for name in observation())


def test_a_film_shows_what_is_foretold_of_the_masks_that_are_shown_to_it():
    agent = make("masks", ahead=(2, 4))
    assert agent.films_masks
    assert not make("points").films_masks
    actor, plain = (agent.actor(tasks()[0], seed=1, drawn=drawn) for drawn in (True, False))
    seen = observation(first=True)
    mask = np.zeros((2, V, S, S), np.uint8)
    mask[:, 0, 4:12, 4:12] = OBJECT
    action, _ = actor.policy({**seen, "mask": mask}, None, explore=False)
    assert np.array_equal(action, plain.policy(seen, None, explore=False)[0])
    assert actor.film[0].shape == (S, (V + 2) * S, 3)
    assert np.array_equal(actor.film[0][:, :S], seen["image"][0, 0])


def test_planning_reads_no_action_no_state_and_one_camera():
    for plan in ALL_PLANS:
        reads = make(plan).reads("planner")
        kinds = {kind for kind, *_ in reads.values()}
        assert kinds <= {"rgb", "mask", "tracks", "visible", "effector"}
        assert all(read.cameras == "first" for read in reads.values())


def test_acting_step_by_step_is_acting_on_the_window():
    """What was encoded earlier is kept, so that every picture is encoded once."""
    agent = make("masks")
    learn(agent, "executor", 2)
    actor = agent.actor(TaskDescription("task/a", "do a", tasks()[0].goals[:1]))
    seen = [observation(1, seed=step, first=step == 0) for step in range(H)]
    acted = [actor.policy(step, None, explore=False)[0] for step in seen][-1]
    together = {
        "image": torch.from_numpy(np.stack([step["image"][0] for step in seen], 1))[None],
        "goals": torch.from_numpy(tasks()[0].goals[:1])[None],
    }
    proprio = agent.proprio.normalise(torch.from_numpy(np.stack([s["proprio"] for s in seen], 1)))
    with torch.no_grad():
        plan, view = agent.plan(agent.ema, together)
        action = agent.ema.executor(together["image"], proprio, plan, view)[:, -1]
    np.testing.assert_allclose(agent.actions.denormalise(action).numpy(), acted, atol=1e-5)


def test_an_episode_that_begins_forgets_the_one_before():
    agent = make("masks")
    one_goal = TaskDescription("task/a", "do a", tasks()[0].goals[:1])
    actor, fresh = agent.actor(one_goal), agent.actor(one_goal)
    actor.policy(observation(seed=5, first=True), None, explore=False)
    begun = observation(seed=6)
    begun["is_first"] = np.array([True, False])
    action, _ = actor.policy(begun, None, explore=False)
    alone, _ = fresh.policy({**begun, "is_first": np.array([True, True])}, None, explore=False)
    np.testing.assert_allclose(action[0], alone[0], atol=1e-6)
    assert not np.allclose(action[1], alone[1])


def test_a_task_without_a_goal_picture_is_refused():
    agent = make("masks")
    with pytest.raises(UserError, match=r"no goal picture of task/c, it learned task/a, task/b"):
        agent.actor(TaskDescription("task/c", "do c"))


def test_what_was_saved_acts_the_same():
    agent = make("masks")
    learn(agent, "executor", 2)
    other = make("masks")
    other.load_state_dict(agent.state_dict())
    one = agent.actor(tasks()[1], seed=2).policy(observation(first=True), None, explore=False)[0]
    two = other.actor(tasks()[1], seed=2).policy(observation(first=True), None, explore=False)[0]
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"plan": "mask"}, "unknown plan 'mask'; use one of masks, features"),
        ({"n_obs_steps": 0}, "n_obs_steps must be at least 1"),
        ({"objects": ("robot", "dog")}, "not dog"),
        ({"objects": ()}, "not none"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"ahead": ()}, "ahead must be one or several numbers from 1 to .* not none"),
        ({"ahead": (4, 0)}, "not 4 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        make(**changes)
