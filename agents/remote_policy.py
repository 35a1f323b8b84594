"""A policy behind a websocket, asked as openpi's client asks it (`agents/policy_server.py`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.policy_wire import MOST_BYTES, check_libraries, check_token, pack, unpack
from errors import UserError

PATIENCE = 120.0
"""Seconds that an answer may take: a server's first one may be compiling."""


class RemotePolicy:
    """A connection to a policy; a context, which closes it.

    Args:
        url: ``ws://HOST:PORT`` or ``wss://...``.
        token: sent as ``Authorization: Api-Key TOKEN``.

    Raises:
        UserError: nothing answers there, it wants another token, or it is no policy.

    Attributes:
        description: what the server says of itself.
    """

    def __init__(self, url: str, token: str | None = None):
        check_libraries()
        check_token(token)
        from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
        from websockets.sync.client import connect

        self.url = url
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        try:
            self._connecting = connect(
                url, additional_headers=headers, compression=None, max_size=MOST_BYTES, proxy=None
            )
            self._connection = self._connecting.__enter__()
        except (InvalidURI, ValueError) as error:  # a port that is no number, a host that is none
            raise UserError(f"--policy is an address, ws://HOST:PORT, not {url!r:.80}") from error
        except InvalidStatus as error:
            status = error.response.status_code
            hint = "give its secret as --token" if status == 401 else "check the address"
            raise UserError(
                f"the server at {url} lets nobody in (HTTP {status}); {hint}"
            ) from error
        except (OSError, InvalidHandshake, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UserError(
                f"no policy answers at {url} ({reason:.100}); start its server, or check the"
                " address"
            ) from error
        try:
            self.description = self._receive()
        except UserError:
            self.close()
            raise

    def send(self, observation: Mapping[str, Any]) -> None:
        """Ask for actions; `receive` takes them. Raises UserError where the server is gone."""
        with _gone(self.url):
            self._connection.send(pack(observation))

    def receive(self) -> dict[str, Any]:
        """The answer to what was sent first.

        Raises:
            UserError: the server is gone, takes too long, or answers that something is wrong.
        """
        return self._receive()

    def close(self) -> None:
        """Say goodbye."""
        self._connecting.__exit__(None, None, None)

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _receive(self) -> dict[str, Any]:
        with _gone(self.url):
            answer = self._connection.recv(timeout=PATIENCE)
        if isinstance(answer, str):  # openpi's servers send a traceback
            last = answer.strip().splitlines()[-1:] or ["an empty text"]
            raise UserError(f"the policy at {self.url} answers: {last[0]:.300}")
        try:
            return unpack(answer)
        except UserError as error:
            raise UserError(f"the policy at {self.url} answers: {error}") from error


class _gone:
    """A block in which the end of a connection is one sentence."""

    def __init__(self, url: str):
        self.url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        from websockets.exceptions import ConnectionClosed

        if isinstance(error, TimeoutError):
            raise UserError(
                f"the policy at {self.url} has not answered for {PATIENCE:.0f} seconds"
            ) from error
        if isinstance(error, (ConnectionClosed, OSError)):
            raise UserError(f"the policy at {self.url} is gone ({error!s:.100})") from error


class RemoteActor:
    """Policies behind websockets, one connection for each of n environments, for `run_episodes`.

    Args:
        policies: the connections.
        prompt: what they are told to do.
        action_size: A of the environments.
        keys: names of entries in messages, by ours; `image/0` is the first camera's picture.
        n_action_steps: actions of an answer that are executed; None: what the server says, else
            all.
    """

    def __init__(
        self,
        policies: Sequence[RemotePolicy],
        prompt: str,
        action_size: int,
        keys: Mapping[str, str],
        n_action_steps: int | None = None,
    ):
        self.policies, self.prompt, self.keys = list(policies), prompt, keys
        self.action_size = action_size
        described = policies[0].description
        self.remembers = described.get("sessions") is True
        """Whether it is one of our servers, which are told of every step."""
        said = described.get("n_action_steps")
        wrong = said is not None and (not isinstance(said, int) or said < 1)
        if wrong and n_action_steps is None:
            raise UserError(
                f"the policy at {policies[0].url} says that it executes {said!r:.40} actions; give"
                " another number as --n-action-steps"
            )
        self.n_action_steps = n_action_steps or said
        self.left: list[deque[np.ndarray]] = [deque() for _ in policies]
        self.steps = [0] * len(self.policies)

    def policy(
        self, observation: dict[str, np.ndarray], state: None, explore: bool
    ) -> tuple[np.ndarray, None]:
        """Actions (n, A) float32 for `image`, `proprio` and `is_first` (n,); raises UserError where
        a server answers something else."""
        first = np.asarray(observation["is_first"], bool)
        asked = []
        for index, policy in enumerate(self.policies):
            if first[index]:
                self.left[index].clear()
                self.steps[index] = 0
            due = not self.left[index]
            if due or self.remembers:
                message = self._message(observation, index)
                if self.remembers:
                    message |= {"step": self.steps[index], "reset": bool(first[index])}
                    message |= {} if due else {"see": True}
                policy.send(message)
                asked.append((index, due))
            self.steps[index] += 1
        for index, due in asked:
            answer = self.policies[index].receive()
            if due:
                self.left[index].extend(self._actions(answer)[: self.n_action_steps])
        return np.stack([left.popleft() for left in self.left]), None

    def _message(self, observation: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
        values: dict[str, Any] = {"prompt": self.prompt}
        for name in ("image", "proprio"):
            if name in observation:
                values[name] = observation[name][index]
        message = {}
        for ours, theirs in self.keys.items():
            base, _, camera = ours.partition("/")
            if ours == "actions":
                continue
            if base not in values:
                raise UserError(f"--keys names {ours}, which the task does not show")
            value = values[base]
            if camera:
                cameras = value if value.ndim == 4 else value[None]
                if int(camera) >= len(cameras):
                    raise UserError(f"--keys names {ours}; the task is seen by {len(cameras)}")
                value = cameras[int(camera)]
            message[theirs] = value
        renamed = {ours.partition("/")[0] for ours in self.keys}
        return {name: value for name, value in values.items() if name not in renamed} | message

    def _actions(self, answer: Mapping[str, Any]) -> np.ndarray:
        """The actions (H, A) of an answer."""
        url, name = self.policies[0].url, self.keys.get("actions", "actions")
        if name not in answer:
            raise UserError(
                f"the policy at {url} answers without {name!r}, but {list(answer)!s:.80}"
            )
        actions = np.asarray(answer[name])
        actions = actions[None] if actions.ndim == 1 else actions
        if actions.dtype.kind not in "fiu" or actions.ndim != 2 or not len(actions):
            raise UserError(f"the policy at {url} answers no actions, but {actions.shape}")
        if actions.shape[1] != self.action_size:
            raise UserError(
                f"the policy at {url} answers actions of {actions.shape[1]} numbers, the task takes"
                f" {self.action_size}"
            )
        with np.errstate(over="ignore"):
            actions = actions.astype(np.float32)
        if not np.isfinite(actions).all():
            raise UserError(f"the policy at {url} answers an action that is not finite")
        return actions
