"""A policy behind a websocket, by the protocol of openpi's policy server.

On connecting, the server sends what `Policy.describe` says. Then every message of the client is an
observation, a map, and the answer a map with ``actions`` (H, A) float32, H at least 1, and
``server_timing``. A mistake is answered by one line of text, and the connection goes on.

There are two ways to ask, by the path of the address:

    ws://HOST:PORT/         actions are predicted from each observation, which is sent when those of
                            the last answer have been executed (openpi's habit)
    ws://HOST:PORT/stream   the observation of every control step is sent, and the answer, what is
                            left of the chunk that is being executed, is there at once: the next
                            chunk is computed meanwhile (`Stream`)

An observation holds what the policy reads (`image`, `proprio`), and may hold

    prompt   the instruction, in words; another one begins an episode
    reset    true at the first step of an episode; a new connection begins one, too
    step     number of the control step in the episode, where observations leave out some
    action   (A,), the action that was executed last, if it was not the one answered
    see      true: nothing is asked, the picture is for the policy to remember; no actions are
             answered then

Every connection is an episode of its own; they share the networks, which compute one thing at a
time.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import ipaddress
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from agents.policy import MOST_STEPS, Policy
from agents.policy_wire import MOST_BYTES, check_libraries, check_token, pack, unpack
from errors import UserError

LOOPBACK = "127.0.0.1"
CONNECTIONS = 64
"""Clients at the same time."""
STEPS_EARLIER = 1
"""Steps that a chunk is begun earlier than the slowest one lately asks for."""
FORGETTING = 0.95
"""What the time of the slowest chunk counts after each that was faster."""


class Session:
    """One client: its episode, and what it is answered.

    Args:
        policy: at the beginning of an episode.
        keys: names of entries in the client's messages, by ours.
    """

    def __init__(self, policy: Policy, keys: Mapping[str, str]):
        self.policy, self.keys = policy, keys
        self.prompt: str | None = None
        self.step = -1
        """Number of the last observation in the episode."""
        self.begun = False

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Actions predicted from an observation. Raises UserError where it is none."""
        observation, steps = self.observation(message)
        began = time.perf_counter()
        compute = self.policy.look(observation, steps)
        if observation.get("see") is True and self.policy.chunk_size > 1:
            actions = np.zeros((0, self.policy.action_size))
        else:
            actions = compute()[: self.policy.n_action_steps]
        return self._answered(actions, time.perf_counter() - began)

    def observation(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """What the policy reads of a message, and the steps since the one before; an episode is
        begun where one does.

        Raises:
            UserError: something in it is of another kind.
        """
        named = self._in_our_names(message)
        prompt = named.pop("prompt", None)
        if prompt is not None and not isinstance(prompt, str):
            raise UserError(f"prompt is text, not {type(prompt).__name__}")
        step = self._step(named.pop("step", None))
        fresh = self._reset(named.pop("reset", False)) or not self.begun or step == 0
        if fresh or (prompt is not None and prompt != self.prompt):
            self.policy.reset(prompt or self.prompt)
            self.prompt, self.begun, self.step = prompt or self.prompt, True, -1
            self.begin()
        before, self.step = self.step, self._next() if step is None else step
        if before < 0:
            return named, 1
        if self.step <= before:
            raise UserError(f"step {self.step} comes after step {before}; send reset, or count on")
        return named, self.step - before

    def begin(self) -> None:
        """An episode begins."""

    def _next(self) -> int:
        """The number of an observation that does not say it: the actions of the last answer have
        been executed."""
        return 0 if self.step < 0 else self.step + self.policy.n_action_steps

    def _reset(self, reset: Any) -> bool:
        if isinstance(reset, np.ndarray) and reset.size == 1:
            reset = reset.item()
        if not isinstance(reset, (bool, np.bool_, int, np.integer)):
            raise UserError(f"reset is {reset!r:.40}, not true or false")
        return bool(reset)

    def _step(self, step: Any) -> int | None:
        if step is None:
            return None
        whole = isinstance(step, (int, np.integer)) and not isinstance(step, bool)
        if not whole or not 0 <= step <= MOST_STEPS:
            raise UserError(f"step is {step!r:.40}, no number of a step")
        return int(step)

    def _in_our_names(self, message: Mapping[str, Any]) -> dict[str, Any]:
        theirs = {name: ours for ours, name in self.keys.items()}
        named = {theirs.get(name, name): value for name, value in message.items()}
        several = sorted(name for name in named if str(name).startswith("image/"))
        if "image" in self.policy.observation and "image" not in named and several:
            pictures = [named[name] for name in several]
            alike = {(p.shape, p.dtype) for p in pictures if isinstance(p, np.ndarray)}
            if len(alike) != 1 or not all(isinstance(p, np.ndarray) for p in pictures):
                raise UserError("the cameras' pictures are no arrays of the same shape")
            named["image"] = np.stack(pictures) if len(pictures) > 1 else pictures[0]
        return named

    def _answered(self, actions: np.ndarray, seconds: float) -> dict[str, Any]:
        name = self.keys.get("actions", "actions")
        return {
            name: np.ascontiguousarray(actions, np.float32),
            "server_timing": {"infer_ms": 1000 * seconds},
        }


class Stream(Session):
    """A client that sends the observation of every control step, and does not wait.

    While a chunk is executed, the next one is computed from the latest observation, begun so early
    that it is there in time. Its actions are numbered from that observation on: of those, the ones
    whose steps are over by then are skipped. Only an episode's first chunk is waited for; policies
    that predict one action at a time are asked at every step.

    Args:
        policy, keys: as of `Session`.
        workers: compute chunks.
    """

    def __init__(self, policy: Policy, keys: Mapping[str, str], workers: ThreadPoolExecutor):
        super().__init__(policy, keys)
        self.workers = workers
        self.seconds = self.slowest = 0.0
        """That the last chunk took, and the slowest one lately."""
        self.chunk: np.ndarray | None = None
        """(H, A), that is being executed."""
        self.base = 0
        """Step of its first action."""
        self.coming: Future | None = None
        """The next chunk, and the seconds that it took."""
        self.coming_base = 0
        self._period, self._asked = math.inf, math.nan

    def begin(self) -> None:
        """An episode begins: nothing of the chunks of the one before is left."""
        self.chunk = self.coming = None
        self._asked = math.nan

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """What is left of the chunk that is being executed, from this step on."""
        now = time.perf_counter()
        observation, steps = self.observation(message)
        if self.policy.chunk_size == 1:
            actions = self.policy.look(observation, steps)()
            return self._answered(actions, time.perf_counter() - now)
        compute = self.policy.look(observation, steps)
        if not math.isnan(self._asked):
            self._period = (now - self._asked) / steps
        self._asked = now
        self._take(wait=False)
        if self._over:
            if self.coming is None:
                self._start(compute)
            self._take(wait=True)
            if self._over:  # what was waited for is too old by now
                self._start(compute)
                self._take(wait=True)
        waited = time.perf_counter() - now
        assert self.chunk is not None
        if self.coming is None and self.step - self.base >= self._due:
            self._start(compute)
        answer = self._answered(self.chunk[self.step - self.base :], self.seconds)
        answer["server_timing"]["waited_ms"] = 1000 * waited
        return answer

    def _next(self) -> int:
        """Every observation is of the next step."""
        return self.step + 1

    @property
    def _over(self) -> bool:
        """Whether there is no action for this step."""
        return self.chunk is None or self.step - self.base >= len(self.chunk)

    @property
    def _due(self) -> int:
        """Actions of a chunk after which the next one is begun."""
        lead = STEPS_EARLIER + math.ceil(self.slowest / max(self._period, 1e-3))
        room = self.policy.chunk_size - 1 - lead
        return max(0, min(self.policy.n_action_steps - lead, room))

    def _start(self, compute: Callable[[], np.ndarray]) -> None:
        def timed() -> tuple[np.ndarray, float]:
            began = time.perf_counter()
            chunk = compute()
            return chunk, time.perf_counter() - began

        self.coming, self.coming_base = self.workers.submit(timed), self.step

    def _take(self, wait: bool) -> None:
        """Go over to the next chunk, if it is there and has an action for this step."""
        if self.coming is None or not (wait or self.coming.done()):
            return
        chunk, self.seconds = self.coming.result()
        self.slowest = max(self.seconds, FORGETTING * self.slowest)
        if self.step - self.coming_base < len(chunk):
            self.chunk, self.base = chunk, self.coming_base
        self.coming = None


def check_host(host: str, token: str | None) -> None:
    """Refuse to serve to other machines without a token.

    Raises:
        UserError: the host is no loopback address, and there is no token; the token is empty.
    """
    check_token(token)
    if token is None and not is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines in; give a secret as --token, which clients send,"
            f" or leave --host at {LOOPBACK}"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def serve(
    policy: Policy,
    host: str = LOOPBACK,
    port: int = 8000,
    token: str | None = None,
    keys: Mapping[str, str] | None = None,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve a policy until the task is cancelled.

    Args:
        policy: of which every client gets another.
        host: address to listen at.
        port: 0 takes one that is free.
        token: what clients have to send: ``Authorization: Api-Key TOKEN`` (openpi's habit) or
            ``Bearer TOKEN``.
        keys: names of entries in clients' messages, by ours.
        ready: called with the port when clients can connect.

    Raises:
        UserError: the address cannot be listened at; a library is not there.
    """
    check_libraries()
    check_host(host, token)
    from websockets.asyncio.server import serve as listen
    from websockets.exceptions import ConnectionClosed

    description = {**policy.describe(), "fingerprint": policy.fingerprint(), "sessions": True}
    # One thread: the networks compute one thing at a time, and PyTorch uses all cores for it.
    workers, sessions = ThreadPoolExecutor(1), ThreadPoolExecutor(CONNECTIONS)
    clients = 0

    def let_in(connection: Any, request: Any) -> Any:
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if request.path not in ("/", "/stream"):
            return connection.respond(http.HTTPStatus.NOT_FOUND, "paths are / and /stream\n")
        if token is not None and not _known(request.headers.get("Authorization", ""), token):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "wrong token, or none\n")
        if clients >= CONNECTIONS:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many clients\n")
        return None

    async def talk(connection: Any) -> None:
        nonlocal clients
        clients += 1
        loop = asyncio.get_running_loop()
        streams = connection.request.path == "/stream"
        another, named = policy.another(), keys or {}
        session = Stream(another, named, workers) if streams else Session(another, named)
        try:
            await connection.send(pack(description))
            async for message in connection:
                # A stream computes in its own thread, and must answer while others compute.
                pool = sessions if streams else workers
                answer = await loop.run_in_executor(pool, _answer, session, message)
                await connection.send(answer)
        except ConnectionClosed:
            pass
        finally:
            clients -= 1

    try:
        async with listen(
            talk, host, port, process_request=let_in, compression=None, max_size=MOST_BYTES,
            close_timeout=1,
        ) as server:  # fmt: skip
            ready(next(iter(server.sockets)).getsockname()[1])
            await server.serve_forever()
    except (OSError, ValueError) as error:  # names of hosts may be none
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"nothing can be served at {host}:{port} ({reason}); give another --port or --host"
        ) from error
    finally:
        workers.shutdown(wait=True, cancel_futures=True)
        sessions.shutdown(wait=False, cancel_futures=True)


def _answer(session: Session, message: str | bytes) -> str | bytes:
    """The answer to a message: bytes, or a line of text that says what is wrong with it."""
    try:
        if isinstance(message, str):
            raise UserError("a message is text; observations are MessagePack, sent as bytes")
        return pack(session.answer(unpack(message)))
    except UserError as error:
        return " ".join(str(error).split())


def _known(header: str, token: str) -> bool:
    kind, _, given = header.partition(" ")
    right = hmac.compare_digest(given.strip().encode(), token.encode())
    return right and kind.lower() in ("api-key", "bearer")
