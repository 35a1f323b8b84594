"""A policy behind a websocket: real connections, real answers."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

import agents
from agents import policy_server
from agents.policy_evaluation import PolicyEvaluation
from agents.policy_server import Session, Stream, check_host
from agents.policy_wire import pack, renamed, unpack
from agents.remote_policy import RemoteActor, RemotePolicy
from envs import EnvironmentConfig
from errors import UserError
from examples import robot_client
from tests.agents import received_runs
from tests.agents.received_runs import with_weights
from tests.agents.test_policy import INSTRUCTION, seen, told

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = with_weights(received_runs.received_imitation(tmp_path_factory.mktemp("run")))
    return told(made, **{received_runs.TASK: INSTRUCTION})


@contextlib.contextmanager
def served(policy, **options):
    """A server in a thread of this process; its port."""
    port, stop = [], threading.Event()
    up = threading.Event()

    def ready(number):
        port.append(number)
        up.set()

    async def until_stopped():
        task = asyncio.create_task(policy_server.serve(policy, port=0, ready=ready, **options))
        while not stop.is_set():
            await asyncio.sleep(0.01)
            if task.done():
                break
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    thread = threading.Thread(target=lambda: asyncio.run(until_stopped()))
    thread.start()
    try:
        assert up.wait(30)
        yield port[0]
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def test_what_is_answered_is_what_the_policy_predicts(folder):
    policy, same = agents.load(folder), agents.load(folder)
    with served(policy) as port, RemotePolicy(f"ws://127.0.0.1:{port}") as client:
        assert client.description["observation"]["proprio"] == {"shape": [4], "dtype": "float32"}
        assert client.description["action_size"] == 4
        same.reset(INSTRUCTION)
        for step in range(3):
            client.send({**seen(policy, step), "prompt": INSTRUCTION, "step": step})
            found = client.receive()["actions"]
            expected = same.look(seen(policy, step))()[: same.n_action_steps]
            np.testing.assert_array_equal(found, expected)


def test_clients_are_episodes_of_their_own(folder):
    policy = agents.load(folder)
    with served(policy) as port:
        address = f"ws://127.0.0.1:{port}"
        with RemotePolicy(address) as one, RemotePolicy(address) as other:
            answers = []
            for client, step in ((one, 1), (other, 2), (one, 2)):
                client.send({**seen(policy, step), "step": 0, "reset": True})
                answers.append(client.receive()["actions"])
        assert not np.array_equal(answers[0], answers[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": None}, "has no 'image'"),
        ({"proprio": np.zeros(9, np.float32)}, "proprio of the observation is (9,) float32"),
        ({"action": np.zeros(7, np.float32)}, "an action of this policy is (4,)"),
        ({"step": -3}, "step is -3, no number of a step"),
        ({"prompt": 5}, "prompt is text, not int"),
        ({"reset": np.ones(2)}, "reset is array([1., 1.]), not true or false"),
        ({"reset": "no"}, "reset is 'no', not true or false"),
    ],
)
def test_a_wrong_message_is_one_line_and_the_server_lives_on(folder, change, said):
    policy = agents.load(folder)
    with served(policy) as port, connect(f"ws://127.0.0.1:{port}", compression=None) as client:
        client.recv()
        right = seen(policy, 0)
        wrong = {name: part for name, part in {**right, **change}.items() if part is not None}
        client.send(pack(wrong))
        answer = client.recv()
        assert isinstance(answer, str)
        assert said in answer
        assert "\n" not in answer
        client.send(pack(right))
        assert unpack(client.recv())["actions"].shape == (policy.n_action_steps, 4)


def array(data, dtype, shape):
    """A picture that a client may claim to send."""
    claimed = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"image": claimed})


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02\x03",
        b"\x81\xa1a" * 2000,
        array(b"1", "O", [1]),
        array(b"1", "<f8", [9]),
        array(b"", "<f8", [0, 2**62]),
        array(b"1", "u1", [-1]),
        msgpack.packb({"image": {b"__npgeneric__": True, b"data": "x", b"dtype": "<i4"}}),
        "text",
    ],
)  # fmt: skip
def test_no_message_harms_a_server(folder, message):
    policy = agents.load(folder)
    with served(policy) as port, connect(f"ws://127.0.0.1:{port}", compression=None) as client:
        client.recv()
        client.send(message)
        answer = client.recv()
        assert isinstance(answer, str)
        assert "\n" not in answer
        client.send(pack(seen(policy, 0)))
        assert isinstance(client.recv(), bytes)


def test_only_a_token_opens_the_door(folder):
    with served(agents.load(folder), token="secret") as port:
        address = f"ws://127.0.0.1:{port}"
        for headers in ({}, {"Authorization": "Api-Key other"}, {"Authorization": "secret"}):
            with pytest.raises(InvalidStatus, match="401"):
                connect(address, additional_headers=headers)
        with pytest.raises(UserError, match="lets nobody in") as error:
            RemotePolicy(address, "wrong")
        assert "--token" in str(error.value)
        for header in ("Api-Key secret", "Bearer secret"):
            with connect(address, additional_headers={"Authorization": header}) as client:
                assert unpack(client.recv())["policy"] == str(folder)


def test_other_machines_need_a_token():
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.2", "robot.local"):
        with pytest.raises(UserError, match="give a secret as --token"):
            check_host(host, None)
        check_host(host, "secret")
    for token in (" ", "", "a\nb", "schlüssel"):
        with pytest.raises(UserError, match="--token is empty"):
            check_host("0.0.0.0", token)
        with pytest.raises(UserError, match="--token is empty"):
            RemotePolicy("ws://127.0.0.1:1", token)


def test_a_port_that_is_taken_is_one_sentence(folder):
    policy = agents.load(folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="give another --port"):
            asyncio.run(policy_server.serve(policy, port=taken.getsockname()[1]))


@pytest.mark.parametrize("host", ["a" * 70 + ".b", "\0"])
def test_a_host_that_is_none_is_one_sentence(folder, host):
    with pytest.raises(UserError, match="nothing can be served at .* --host"):
        asyncio.run(policy_server.serve(agents.load(folder), host, token="x"))


@pytest.mark.parametrize(
    "url", ["ws://127.0.0.1:x", "ws://127.0.0.1:99999", "ws://[::1", "ws://" + "a" * 70 + ".b:1"]
)
def test_an_address_that_is_none_is_one_sentence(url):
    with pytest.raises(UserError, match="--policy is an address, ws://HOST:PORT, not"):
        RemotePolicy(url)


def test_arrays_and_numbers_come_back_as_they_went():
    values = {
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "proprio": np.array([0.1, -2.5]), "flag": np.bool_(True), "one": np.float32(0.5),
        "text": "é", "list": [1, {"a": None}], "none": np.zeros((0, 4), np.float32),
    }  # fmt: skip
    found = unpack(pack(values))
    for name in ("image", "proprio", "none"):
        np.testing.assert_array_equal(found[name], values[name])
        assert found[name].dtype == values[name].dtype
    assert {n: found[n] for n in ("flag", "one", "text", "list")} == {
        "flag": True, "one": np.float32(0.5), "text": "é", "list": [1, {"a": None}]
    }  # fmt: skip
    for wrong in (np.array([None]), np.array(["a"]), object()):
        with pytest.raises(UserError, match="cannot be sent"):
            pack({"x": wrong})


def test_keys_are_what_the_other_side_calls_them(folder):
    assert renamed(None) == {}
    keys = renamed("image/0=observation/image, proprio=observation/state,actions=action")
    for wrong in ("image", "mask=x", "image/a=x", "image=a,image=b"):
        with pytest.raises(UserError, match="--keys takes"):
            renamed(wrong)
    policy = agents.load(folder)
    shown = seen(policy, 0)
    theirs = {"observation/image": shown["image"], "observation/state": shown["proprio"]}
    with served(policy, keys=keys) as port, RemotePolicy(f"ws://127.0.0.1:{port}") as client:
        client.send(theirs)
        assert client.receive()["action"].shape == (policy.n_action_steps, 4)
        actor = RemoteActor([client], "", 4, keys)
        batch = {name: value[None] for name, value in shown.items()}
        action, _ = actor.policy({**batch, "is_first": np.array([True])}, None, False)
        assert action.shape == (1, 4)


def test_an_answer_that_does_not_fit_is_one_sentence(folder):
    policy = agents.load(folder)
    batch = {name: value[None] for name, value in seen(policy, 0).items()}
    batch["is_first"] = np.array([True])
    with served(policy) as port, RemotePolicy(f"ws://127.0.0.1:{port}") as client:
        for actor, said in (
            (RemoteActor([client], "", 7, {}), "answers actions of 4 numbers, the task takes 7"),
            (RemoteActor([client], "", 4, {"actions": "a"}), "answers without 'a'"),
            (RemoteActor([client], "", 4, {"image": "picture"}), "has no 'image'"),
        ):
            with pytest.raises(UserError, match=said):
                actor.policy(batch, None, False)
    with pytest.raises(UserError, match="no policy answers at"):
        RemotePolicy(f"ws://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("describes", "answers", "said"),
    [
        ({"n_action_steps": -1}, {}, "says that it executes -1 actions"),
        ({"n_action_steps": "3"}, {}, "says that it executes '3' actions"),
        ({}, {"actions": np.full((2, 4), 1e300)}, "answers an action that is not finite"),
        ({}, {"actions": np.zeros((0, 4))}, r"answers no actions, but \(0, 4\)"),
        ({}, {"actions": "left"}, r"answers no actions, but \(\)"),
        ({}, b"\xc1", r"ws://127.*: a message is no MessagePack"),
        ({}, "", "answers: an empty text"),
    ],
)
def test_a_server_that_says_nonsense_is_one_sentence(describes, answers, said):
    shown = {"image": np.zeros((1, 8, 8, 3), np.uint8), "is_first": np.array([True])}
    with (
        answering(describes, answers) as url,
        RemotePolicy(url) as client,
        pytest.raises(UserError, match=said),
    ):
        RemoteActor([client], "do it", 4, {}).policy(shown, None, False)


@pytest.mark.parametrize("options", [5, {"size": "x"}, {"x": 1}])
def test_a_server_that_shows_tasks_as_nobody_does_is_named(tmp_path, options):
    task = "metaworld/reach"
    with answering({"environment": options}, {}) as url, pytest.raises(UserError, match=url):
        PolicyEvaluation(url, [task], 1, 0, tmp_path / "out", EnvironmentConfig(), {})


@contextlib.contextmanager
def answering(describes, answers):
    """A server that always says the same; its address."""

    def talk(connection):
        with contextlib.suppress(ConnectionClosed):
            connection.send(pack(describes))
            for _ in connection:
                connection.send(pack(answers) if isinstance(answers, dict) else answers)

    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join(10)


def test_a_server_of_others_is_asked_in_its_own_words():
    """As openpi's are: it says nothing of itself, and gets what was asked for, when it is due."""
    got = []

    def talk(connection):
        connection.send(pack({}))
        for message in connection:
            got.append(unpack(message))
            if len(got) == 3:
                connection.send("Traceback (most recent call last):\n  line\nKeyError: 'state'\n")
                return
            connection.send(pack({"actions": np.full((5, 4), len(got)), "state": np.zeros(2)}))

    keys = renamed("image/1=observation/wrist_image,proprio=observation/state")
    with serve(talk, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        image = np.stack([np.zeros((1, 8, 8, 3), np.uint8), np.ones((1, 8, 8, 3), np.uint8)], 1)
        shown = {"image": image, "proprio": np.ones((1, 6), np.float32)}
        with RemotePolicy(f"ws://127.0.0.1:{port}") as client:
            actor = RemoteActor([client], "do it", 4, keys, n_action_steps=3)
            acted = [
                actor.policy({**shown, "is_first": np.array([step == 0])}, None, False)[0][0, 0]
                for step in range(5)
            ]
            assert acted == [1, 1, 1, 2, 2]
            assert got[0].keys() == {"prompt", "observation/wrist_image", "observation/state"}
            assert got[0]["prompt"] == "do it"
            assert got[0]["observation/wrist_image"].max() == 1
            with pytest.raises(UserError, match=r"answers: KeyError: 'state'$"):
                actor.policy({**shown, "is_first": np.array([True])}, None, False)
        server.shutdown()
        thread.join(10)


class Slow:
    """Computes chunks whose first numbers say from which step, when it is let."""

    def __init__(self, chunk_size=6, n_action_steps=4):
        self.chunk_size, self.n_action_steps, self.action_size = chunk_size, n_action_steps, 1
        self.observation = {}
        self.step, self.gate, self.computed = -1, threading.Event(), []
        self.gate.set()

    def reset(self, instruction=None):
        self.step = -1

    def look(self, observation, steps=1):
        self.step += steps
        step = self.step

        def compute():
            self.gate.wait(10)
            self.computed.append(step)
            return np.stack([[100 * step + k] for k in range(self.chunk_size)])

        return compute


def test_a_stream_is_answered_while_the_next_chunk_is_computed():
    policy = Slow()
    with policy_server.ThreadPoolExecutor(1) as workers:
        stream = Stream(policy, {}, workers)
        assert stream.answer({})["actions"][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
        policy.gate.clear()  # from now on it takes long
        found = [stream.answer({})["actions"][0, 0] for _ in range(4)]
        assert found == [1, 2, 3, 4]  # nobody waits
        assert stream.coming is not None
        base = stream.coming_base
        policy.gate.set()
        while not stream.coming.done():
            time.sleep(0.001)
        # Its actions are those of this step, counted from the one that it saw.
        assert stream.answer({})["actions"][0, 0] == 100 * base + (5 - base)


def test_a_stream_waits_where_there_is_no_action_left():
    policy = Slow()
    with policy_server.ThreadPoolExecutor(1) as workers:
        stream = Stream(policy, {}, workers)
        stream.answer({})
        policy.gate.clear()
        for _ in range(5):
            stream.answer({})
        threading.Timer(0.05, policy.gate.set).start()
        answer = stream.answer({})
        assert answer["actions"][0, 0] % 100 == 6 - answer["actions"][0, 0] // 100
        assert answer["server_timing"]["waited_ms"] > 20


def test_an_episode_begins_with_an_observation_of_its_own():
    policy = Slow()
    with policy_server.ThreadPoolExecutor(1) as workers:
        stream = Stream(policy, {}, workers)
        for _ in range(3):
            stream.answer({})
        assert stream.answer({"reset": True})["actions"][0, 0] == 0


def test_steps_count_on():
    session = Session(Slow(), {})
    assert session.observation({})[1] == 1
    assert session.observation({})[1] == session.policy.n_action_steps
    assert session.observation({"step": 9})[1] == 5
    with pytest.raises(UserError, match="step 9 comes after step 9"):
        session.observation({"step": 9})


def test_the_client_of_thirty_lines_drives_a_robot(folder):
    policy, moved = agents.load(folder), []
    with served(policy, token="t") as port:
        robot_client.drive(
            f"ws://127.0.0.1:{port}/stream", lambda: seen(policy, len(moved)), moved.append,
            steps=9, hertz=200, token="t", prompt=INSTRUCTION,
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="has no 'image'"):
            robot_client.drive(f"ws://127.0.0.1:{port}/stream", dict, moved.append, 1, token="t")
    assert len(moved) == 9
    assert all(action.shape == (4,) for action in moved)


def hears_interrupts():
    """Whoever runs the tests in the background may have let them ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextlib.contextmanager
def killed_in_the_end(process):
    """What fails does not wait for a process that goes on."""
    try:
        yield
    finally:
        process.kill()


def test_ctrl_c_ends_serving_without_a_traceback(folder):
    command = [sys.executable, "run.py", "serve", "--logdir", str(folder), "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=hears_interrupts,
    ) as process, killed_in_the_end(process):  # fmt: skip
        line = ""
        while "serving at" not in line:
            line = process.stdout.readline()
            assert line, process.stderr.read()
        address = line.split()[2].rstrip(",")
        with RemotePolicy(address) as client:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            with pytest.raises(UserError, match="is gone"):
                client.receive()
        assert process.stderr.read().split() == ["stopped"]


def test_a_model_state_is_not_shared(tmp_path):
    """Online agents, whose policies step a state."""
    folder = with_weights(received_runs.received_online(tmp_path / "run"))
    policy = agents.load(folder)
    with served(policy) as port, RemotePolicy(f"ws://127.0.0.1:{port}/stream") as client:
        torch.manual_seed(0)
        for step in range(3):
            client.send({**seen(policy, step), "step": step})
            assert client.receive()["actions"].shape == (1, policy.action_size)
    assert policy.actor is None
