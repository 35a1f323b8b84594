"""A checkpoint that reads well and holds something else than its run needs is one sentence."""

import random
import shutil

import pytest
import torch

from agents import imitation_loading, online_loading
from agents.imitation_loading import STAGE_1, load_predictor
from agents.online_run import OnlineRun
from errors import UserError
from experiment.checkpoint import FORMAT, VERSION, load_checkpoint
from experiment.run_folder import RunFolder
from tests.agents.received_runs import online, received_imitation, received_online, with_weights

NOTHING = object()
OTHERS = [NOTHING, None, "x", [], {}, torch.zeros(2, 2)]


@pytest.fixture(scope="module", params=["online", "imitation"])
def received(request, tmp_path_factory):
    """A run folder, what loads its agent, and its checkpoint's content."""
    received, load = {
        "online": (received_online, online_loading.load_agent),
        "imitation": (received_imitation, imitation_loading.load_agent),
    }[request.param]
    folder = with_weights(received(tmp_path_factory.mktemp("received") / request.param))
    return folder, load, load_checkpoint(folder / "checkpoint.pt")


def places(value, path=()):
    """Where something stands in nested dicts, as a tuple of keys."""
    for key, item in value.items() if isinstance(value, dict) else ():
        yield (*path, key)
        yield from places(item, (*path, key))


def changed(value, path, other):
    """Nested dicts with something else, or nothing, at one place."""
    first, *rest = path
    copied = dict(value)
    if rest:
        copied[first] = changed(value[first], rest, other)
    elif other is NOTHING:
        del copied[first]
    else:
        copied[first] = other
    return copied


def refusal(function):
    """What the user is told; None if it goes well."""
    try:
        function()
    except UserError as error:
        return str(error)


def write(path, state):
    torch.save({"format": FORMAT, "version": VERSION, "state": state}, path)


def test_whatever_is_changed_the_agent_loads_or_the_file_is_named(received):
    folder, load, state = received
    rng, refused = random.Random(0), 0
    some = rng.sample(list(places(state)), 30)
    for place in [(name,) for name in state] + some:
        write(folder / "checkpoint.pt", changed(state, place, rng.choice(OTHERS)))
        said = refusal(lambda: load(folder, "cpu"))
        if said is not None:
            refused += 1
            assert str(folder) in said
            assert "\n" not in said
    assert refused > 20


def test_ranges_of_other_sizes_are_refused_by_the_file_that_has_them(tmp_path):
    folder = with_weights(received_imitation(tmp_path / "run"))
    path = folder / "checkpoint.pt"
    state = load_checkpoint(path)
    for name in ("action_low", "proprio_max"):
        lists = state["agent"]["statistics"]
        fewer = {**lists, name: lists[name][:-1]}
        write(path, changed(state, ("agent", "statistics"), fewer))
        said = refusal(lambda: imitation_loading.load_agent(folder, "cpu"))
        assert f"{path} is" in said
        assert f"the statistics of {name.partition('_')[0]} are not" in said


@pytest.mark.parametrize("other", [NOTHING, torch.zeros(3), torch.tensor(float("nan")), "x"])
def test_a_first_stage_of_something_else_is_named(tmp_path, other):
    folder = with_weights(received_imitation(tmp_path / "run"))
    agent, *_ = imitation_loading.load_agent(folder, "cpu")
    state = load_checkpoint(folder / STAGE_1)
    load_predictor(agent, folder)
    write(folder / STAGE_1, changed(state, [max(state)], other))
    with pytest.raises(UserError, match=STAGE_1):
        load_predictor(agent, folder)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run in the simulator, and a checkpoint it can go on from."""
    path = tmp_path_factory.mktemp("resumed") / "run"
    with RunFolder.create_or_resume(path, online()) as folder, OnlineRun(online(), folder) as run:
        run.resume()
        run.checkpoint()
        state = load_checkpoint(folder.checkpoint_path)
        seen = {"image": run.collector.observation["image"], "is_first": torch.ones(1).bool()}
        _, acting = run.agent.policy(seen, None, explore=False)
        state["unfinished"] = {"actions": torch.zeros(5, 4), "agent_state": acting}
        yield run, state


@pytest.mark.simulator
@pytest.mark.parametrize("other", [NOTHING, None, "x", -1, torch.zeros(2, 2)])
@pytest.mark.parametrize(
    "place",
    [
        ("random",), ("random", "cpu"), ("evaluated",), ("seconds",), ("metrics_position",),
        ("step",), ("replay",), ("replay", "episodes"), ("replay", "rng"), ("started",),
        ("unfinished",), ("unfinished", "actions"), ("unfinished", "agent_state"),
        ("unfinished", "agent_state", "deterministic"), ("agent", "updates"),
        ("agent", "optimizers", "actor", "updates"), ("agent", "optimizers", "actor", "adam"),
    ],
)  # fmt: skip
def test_training_goes_on_or_names_the_checkpoint(resumed, place, other):
    run, state = resumed
    log = run.folder.metrics.path.read_bytes()
    write(run.folder.checkpoint_path, changed(state, place, other))
    said = refusal(run.resume)
    if said is None:
        may_be_without = {("started",): {NOTHING}, ("unfinished",): {NOTHING, None}}
        assert other in may_be_without.get(place, {None, -1})
    else:
        assert str(run.folder.path) in said
        assert "\n" not in said
        assert run.folder.metrics.path.read_bytes() == log


@pytest.mark.simulator
def test_a_copy_of_another_run_is_refused(tmp_path):
    first = with_weights(received_online(tmp_path / "first"))
    second = with_weights(received_imitation(tmp_path / "second"))
    shutil.copy(second / "checkpoint.pt", first / "checkpoint.pt")
    with pytest.raises(UserError, match=r"first.checkpoint\.pt"):
        online_loading.load_agent(first, "cpu")
