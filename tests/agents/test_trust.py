"""A run folder of somebody else is data: nothing that only it names is imported or loaded."""

import sys

import h5py
import numpy as np
import pytest

from agents import imitation_loading, online_loading
from agents.agent import Imitator
from agents.demonstrator import Demonstrator
from agents.imitation_loading import load_first_stage, make_imitator
from agents.recorded_episodes import open_source
from errors import UserError
from run import main
from tests.agents.received_runs import (
    SPEC,
    imitation,
    online,
    received_dreamer,
    received_imitation,
    received_online,
    statistics,
    with_weights,
)

PAYLOAD = """
from pathlib import Path
from world_models.targets import PixelTarget
from world_models.video_targets import PixelVideoTarget

Path(__file__).with_name("executed").touch()

class Online(PixelTarget):
    pass

class Video(PixelVideoTarget):
    pass
"""


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A folder with code that Python would find there: the received one, where the user is."""
    monkeypatch.setitem(sys.modules, "payload_of_a_stranger", None)
    del sys.modules["payload_of_a_stranger"]  # what a test imports is forgotten after it
    (tmp_path / "payload_of_a_stranger.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def executed(folder):
    return (folder / "executed").exists()


ONLINE, VIDEO = "payload_of_a_stranger:Online", "payload_of_a_stranger:Video"


def load_online(folder, trusted=()):
    return online_loading.load_agent(folder, "cpu", trusted)


def load_imitation(folder, trusted=()):
    return imitation_loading.load_agent(folder, "cpu", trusted)


def learn_from(folder, trusted=()):
    return open_source(str(folder), online("pixels"), ["corner2"], trusted)


def take_over(folder, trusted=()):
    config = imitation()
    agent: Imitator = make_imitator(config, SPEC, statistics(), "cpu")
    load_first_stage(agent, config, folder, trusted)


def record(folder, trusted=()):
    Demonstrator(folder, None, trusted=trusted)


LOADERS = {
    "evaluate": (received_online, load_online, ONLINE),
    "evaluate a dreamer": (received_dreamer, load_online, ONLINE),
    "train --recorded of a dreamer": (received_dreamer, learn_from, ONLINE),
    "evaluate an imitator": (received_imitation, load_imitation, VIDEO),
    "train --recorded": (received_online, learn_from, ONLINE),
    "imitate --dynamics-from": (received_imitation, take_over, VIDEO),
    "collect --policy": (received_online, record, ONLINE),
    "collect --policy of an imitator": (received_imitation, record, VIDEO),
}


@pytest.mark.parametrize(("received", "load", "name"), LOADERS.values(), ids=LOADERS)
def test_code_that_a_folder_names_is_not_imported_unasked(payload, received, load, name):
    folder = received(payload / "received", name)
    for trusted in ((), ("payload_of_a_stranger",), (f"{name}s",), ("pixels",)):
        with pytest.raises(UserError) as refusal:
            load(folder, trusted)
        said = str(refusal.value)
        assert said.count("\n") == 0
        for words in (str(folder), f"to load {name} (", "read that code", f"--trust {name}"):
            assert words in said
    assert not executed(payload)


@pytest.mark.parametrize(
    ("received", "load", "name"),
    [(received_online, load_online, ONLINE), (received_imitation, load_imitation, VIDEO)],
)
def test_code_that_the_user_names_too_is_imported(payload, received, load, name):
    folder = with_weights(received(payload / "received", name))
    agent, *_ = load(folder, (name,))
    assert executed(payload)
    if name == ONLINE:
        eye = agent.autoencoder if hasattr(agent, "autoencoder") else agent.dynamics
        assert type(eye.target).__name__ == "Online"


def test_the_users_own_target_counts_as_naming_it(payload):
    """`--recorded` and `--dynamics-from` with the same `--target`."""
    folder = received_online(payload / "received", ONLINE)
    with pytest.raises(UserError, match="replay"):  # which the test has left out
        open_source(str(folder), online(ONLINE), ["corner2"])
    other = with_weights(received_imitation(payload / "other", VIDEO))
    agent = make_imitator(imitation(), SPEC, statistics(), "cpu")
    load_first_stage(agent, imitation(VIDEO), other)


@pytest.mark.parametrize(
    "target",
    [
        ONLINE,
        f"pixels:1+{ONLINE}:0.5",
        f"{ONLINE}:2",
        f"  {ONLINE}  ",
        f"masks + {ONLINE}",
        "os:abort",
        "http.server:test",
        "antigravity:fly",
        f"{ONLINE}:b",
        f"{ONLINE}.b",
        "../payload_of_a_stranger:Online",
        "./payload_of_a_stranger:Online",
        ".payload_of_a_stranger:Online",
        "payload_of_a_stranger.py:Online",
        "payload_of_a_stranger :Online",
        "payload_of_a_stranger: Online",
        "payload_of_a_stranger:",
        ":Online",
        "payload_of_a_stranger",
        "payload_of_a_stranger\n:Online",
        "payload_of_a_stranger:Online:nan",
        "",
        "+",
    ],
)
def test_no_way_to_write_a_name_gets_around_it(payload, target):
    before = set(sys.modules)
    for received, load in ((received_online, load_online), (received_imitation, load_imitation)):
        folder = received(payload / received.__name__, target)
        with pytest.raises(UserError) as refusal:
            load(folder)
        assert str(folder / "config.yaml") in str(refusal.value)
    assert not executed(payload)
    assert {"http.server", "antigravity"}.isdisjoint(set(sys.modules) - before)


def test_a_field_cannot_be_given_twice_one_for_the_check_and_one_to_load(payload):
    folder = received_online(payload / "received", "pixels")
    path = folder / "config.yaml"
    text = path.read_text()
    assert "  agent:\n    autoencoder:" in text
    path.write_text(text.replace("target: pixels", f"target: pixels\n      target: {ONLINE}"))
    with pytest.raises(UserError, match="'target' stands there twice"):
        load_online(folder)
    assert not executed(payload)


@pytest.mark.parametrize("language", ["t5", "t5:", "t5:received/t5", "t5:google/flan-t5-small"])
def test_a_language_encoder_is_not_loaded_unasked(payload, monkeypatch, language):
    def reached(*arguments, **options):
        pytest.fail("the network or a folder was asked for weights")

    monkeypatch.setattr("world_models.language.T5.__init__", reached)
    folder = received_imitation(payload / "received", language=language)
    for load in (load_imitation, take_over, record):
        with pytest.raises(UserError, match=f"agent.language.*--trust {language}$"):
            load(folder)


@pytest.mark.parametrize("part", ["vae", "transformer"])
def test_published_weights_are_not_loaded_unasked(payload, part):
    folder = received_imitation(payload / "received")
    path = folder / "config.yaml"
    before, after = path.read_text().split(f"      {part}:\n")
    after = after.replace("pretrained: ''", "pretrained: someone/weights", 1)
    path.write_text(f"{before}      {part}:\n{after}")
    with pytest.raises(UserError, match=rf"agent\.dynamics\.{part}\.pretrained.*--trust someone"):
        load_imitation(folder)


def test_every_name_that_has_to_be_trusted_is_listed_at_once(payload):
    folder = received_imitation(payload / "received", VIDEO, "t5:my folder")
    with pytest.raises(UserError) as refusal:
        load_imitation(folder)
    assert str(refusal.value).endswith(f"add --trust 't5:my folder' --trust {VIDEO}")


def test_a_folder_of_built_in_parts_needs_no_trust(payload):
    assert load_online(with_weights(received_online(payload / "a")))[2] == 7
    assert load_imitation(with_weights(received_imitation(payload / "b")))[3] == 3


@pytest.mark.parametrize("received", [received_online, received_imitation])
@pytest.mark.parametrize("command", ["evaluate --logdir", "compare", "record"])
def test_commands_refuse_in_one_line_or_have_no_need_of_it(payload, capfd, received, command):
    name = ONLINE if received is received_online else VIDEO
    folder = received(payload / "received", name)
    status = main([*command.split(), str(folder)])
    assert status == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not executed(payload)


# ------------------------------------------------------------------- environments of the user's own

OWN_TASKS = [
    "payload_of_a_stranger:make",
    "gym:payload_of_a_stranger:Reach-v1",
    " payload_of_a_stranger:make ",
]


@pytest.mark.parametrize("task", OWN_TASKS)
@pytest.mark.parametrize("received", [received_online, received_dreamer, received_imitation])
def test_an_environment_that_a_folder_names_is_not_imported_unasked(payload, received, task):
    folder = received(payload / "received")
    path = folder / "config.yaml"
    text = path.read_text()
    assert text.count("task: metaworld/drawer-close\n") == 1
    path.write_text(text.replace("task: metaworld/drawer-close", f"task: '{task}'"))
    load = load_imitation if received is received_imitation else load_online
    with pytest.raises(UserError, match=r"asks to load .* \(task\), which is not part of the tool"):
        load(folder)
    with pytest.raises(UserError, match="no checkpoint"):  # it is not asked again
        load(folder, (task.strip(),))
    assert not executed(payload)


def test_one_of_several_tasks_that_a_folder_names_is_enough(payload):
    folder = received_imitation(payload / "received")
    path = folder / "config.yaml"
    several = "metaworld/drawer-close, payload_of_a_stranger:make"
    path.write_text(path.read_text().replace("task: metaworld/drawer-close", f"task: '{several}'"))
    with pytest.raises(UserError, match="--trust payload_of_a_stranger:make$"):
        load_imitation(folder)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("annotate --data", "whose observations cannot be had from a state"),
        ("inspect", None),
    ],
)
def test_an_environment_that_a_file_of_demonstrations_names_is_not_imported(
    payload, capfd, command, said
):
    path = payload / "demos.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["task"] = "payload_of_a_stranger:make"
        data.attrs["obs_alignment"] = "before_action"
        data.attrs["problem_info"] = '{"language_instruction": "run"}'
        demo = data.create_group("demo_0")
        demo["actions"] = np.zeros((4, 2))
        demo["states"] = np.zeros((4, 3))
        demo["rewards"], demo["dones"] = np.zeros(4, np.float32), np.zeros(4, np.uint8)
        demo["obs/front_rgb"] = np.zeros((4, 32, 32, 3), np.uint8)
        demo["obs/proprio"] = np.zeros((4, 2), np.float32)
    status = main([*command.split(), str(path)])
    shown = capfd.readouterr()
    if said is None:
        assert (status, "payload_of_a_stranger:make" in shown.out) == (0, True)
    else:
        assert (status, said in shown.err) == (2, True)
    assert not executed(payload)
