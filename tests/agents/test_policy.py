"""`agents.load`: the policy of a run folder, in one environment."""

import nbformat
import numpy as np
import pytest
import torch

import agents
from agents.agent import TaskDescription
from agents.data_spec import DataSpec
from agents.imitation_config import View
from agents.online_loading import load_agent
from agents.policy import Policy, load_trained
from errors import UserError
from experiment.checkpoint import load_checkpoint, save_checkpoint
from tests.agents import received_runs
from tests.agents.received_runs import with_weights

INSTRUCTION = "drawer close"


def told(folder, **instructions):
    """A run that says its instructions, as runs do, and whose actions depend on what is seen: an
    untrained policy's velocity is zero."""
    state = load_checkpoint(folder / "checkpoint.pt")
    for networks in (state["agent"]["ema"], state["agent"]["networks"]):
        torch.manual_seed(0)
        torch.nn.init.normal_(networks["policy.action_out.weight"])
    save_checkpoint(folder / "checkpoint.pt", {**state, "instructions": instructions})
    return folder


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    return with_weights(received_runs.received_online(tmp_path_factory.mktemp("online")))


@pytest.fixture(scope="module")
def imitator(tmp_path_factory):
    folder = with_weights(received_runs.received_imitation(tmp_path_factory.mktemp("imitator")))
    return told(folder, **{received_runs.TASK: INSTRUCTION})


def seen(policy, step):
    """An observation of a step."""
    rng = np.random.default_rng(step)
    return {
        name: rng.integers(0, 256, entry.shape, np.uint8)
        if entry.dtype == "uint8"
        else rng.normal(size=entry.shape).astype(np.float32)
        for name, entry in policy.observation.items()
    }


def test_an_online_policy_acts_as_its_agent_does(online):
    policy = agents.load(online)
    agent, state = load_agent(online)[0], None
    policy.reset()
    torch.manual_seed(1)
    found = [policy.act(seen(policy, step)) for step in range(4)]
    torch.manual_seed(1)
    for step in range(4):
        shown = {name: value[None] for name, value in seen(policy, step).items()}
        action, state = agent.policy({**shown, "is_first": np.array([step == 0])}, state, False)
        np.testing.assert_array_equal(found[step], action[0])
    assert found[0].shape == (policy.action_size,)
    assert found[0].dtype == np.float32


def test_a_policy_of_chunks_acts_as_its_agent_does_through_two_episodes(imitator):
    policy = agents.load(imitator)
    actor = policy.trained.agent.actor(TaskDescription(received_runs.TASK, INSTRUCTION))
    for episode in range(2):
        policy.reset()
        for step in range(7):
            shown = seen(policy, 10 * episode + step)
            found = policy.act(shown)
            batch = {name: value[None] for name, value in shown.items()}
            action, _ = actor.policy({**batch, "is_first": np.array([step == 0])}, None, False)
            np.testing.assert_array_equal(found, action[0])
    assert policy.n_action_steps < policy.chunk_size < 7


def test_an_online_policy_is_told_what_was_executed(online):
    policy = agents.load(online)

    def second_state(**executed):
        policy.reset()
        torch.manual_seed(2)
        policy.act(seen(policy, 0))
        policy.act({**seen(policy, 1), **executed})
        return policy._state["deterministic"]

    same = second_state()
    torch.testing.assert_close(second_state(), same, rtol=0, atol=0)
    other = second_state(action=np.full(policy.action_size, -0.9, np.float32))
    assert not torch.equal(other, same)


def test_another_instruction_is_heard_and_the_same_one_goes_on(imitator):
    policy = agents.load(imitator)
    policy.reset("open it")
    actor = policy.actor
    assert policy.instruction == "open it"
    policy.reset("open it")
    assert policy.actor is actor
    policy.reset("close it")
    assert policy.actor is not actor


def test_several_tasks_are_told_apart_by_name_or_by_instruction(imitator):
    trained = load_trained(imitator)._replace(
        tasks=("a/one", "b/two"), instructions={"a/one": "go", "b/two": "stay"}
    )
    with pytest.raises(UserError, match="several tasks, a/one, b/two: name one of them"):
        Policy(trained).reset()
    with pytest.raises(UserError, match="not for 'c/three'"):
        Policy(trained, "c/three")
    policy = Policy(trained, "b/two")
    policy.reset()
    assert policy.instruction == "stay"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"image": None},
            r"has no 'image'; the policy reads image \(32, 32, 3\) uint8 and proprio",
        ),
        ({"proprio": np.zeros(5, np.float32)}, r"proprio of the observation is \(5,\) float32"),
        ({"image": np.zeros((32, 32, 3))}, r"is \(32, 32, 3\) float64, the policy reads"),
        ({"proprio": np.full(4, np.nan)}, "a number that is not finite"),
        ({"proprio": np.full(4, 1e300)}, "a number that is not finite"),
        ({"action": np.full(4, np.nan)}, "action of the observation has a number that is not fin"),
        ({"action": np.zeros(7)}, r"is \(7,\) float64, an action of this policy is \(4,\)"),
    ],
)
def test_a_wrong_observation_is_one_sentence(imitator, change, said):
    policy = agents.load(imitator)
    given = {**seen(policy, 0), **change}
    with pytest.raises(UserError, match=said) as error:
        policy.act({name: value for name, value in given.items() if value is not None})
    assert "\n" not in str(error.value)


def test_several_cameras_are_one_array(tmp_path):
    spec, view = DataSpec(2, 32, 4, 4), View("corner2,corner", 32, "fast", 2)
    folder = with_weights(received_runs.received_imitation(tmp_path / "run"), view, spec)
    policy = agents.load(told(folder, **{received_runs.TASK: INSTRUCTION}))
    assert policy.observation["image"].shape == (2, 32, 32, 3)
    assert policy.act(seen(policy, 0)).shape == (4,)
    assert policy.trained.environment["camera"] == "corner2,corner"


def test_the_notebook_runs_but_for_its_simulator(online):
    """Its cells, with a folder that is there; the last one needs a simulator."""
    book = nbformat.read("examples/act.ipynb", as_version=4)
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] for cell in cells)
    known = {}
    for cell in cells[:-1]:
        exec(cell.source.replace("runs/metaworld-window-close-cpu-seed0", str(online)), known)
    assert known["policy"].act(known["observation"]).shape == (4,)
    compile(cells[-1].source, "the last cell", "exec")
