"""serve: a policy behind a websocket."""

import contextlib
import signal
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from commands.command_line import parse
from commands.run_options import Trust
from errors import UserError
from experiment.stopping import SIGNALS


@dataclass(frozen=True)
class Serve:
    """Let robots ask a policy over a websocket, by the protocol of openpi's policy server
    (docs/acting.md); ends with Ctrl-C."""

    logdir: str
    """Run folder, or an exported policy's."""
    port: int = 8000
    """Port to listen at; 0 takes one that is free."""
    host: str = "127.0.0.1"
    """Address to listen at; any other than this machine's own needs --token."""
    token: str | None = None
    """Secret that clients have to send, as "Authorization: Api-Key TOKEN"."""
    task: str | None = None
    """Which task it does, of an agent of imitate that learned several; clients can say it by its
    instruction as well."""
    keys: str | None = None
    """What clients call the entries of their messages: image/0=observation/image,
    proprio=observation/state."""
    seed: int = 0
    """Seed of the noise of policies that sample their actions."""
    device: str = "auto"
    """torch device of the agent; auto takes CUDA when there is one."""
    trust: Trust = ()
    """What the run's configuration may load from outside the toolkit, once for each."""


def serve(arguments: Sequence[str]) -> None:
    """`run.py serve`. Raises UserError."""
    options = parse(Serve, arguments, "run.py serve")
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port is {options.port}; ports are below {2**16:,}")

    from agents import policy_server
    from agents.policy import load
    from agents.policy_wire import check_libraries, renamed
    from experiment.seed import check_seed

    check_seed(options.seed, "--seed")
    keys = renamed(options.keys)
    check_libraries()
    policy_server.check_host(options.host, options.token)
    policy = load(
        options.logdir, options.task, device=options.device, seed=options.seed,
        trusted=options.trust,
    )  # fmt: skip

    def ready(port: int) -> None:
        reads = ", ".join(f"{name} {entry}" for name, entry in policy.observation.items())
        print(f"{options.logdir} reads {reads}", flush=True)
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"serving at ws://{host}:{port}, until Ctrl-C", flush=True)

    _until_stopped(
        policy_server.serve(policy, options.host, options.port, options.token, keys, ready)
    )


def _until_stopped(serving: Coroutine[Any, Any, None]) -> None:
    """Serve until a signal says to stop, then say goodbye to clients, and obey it.

    A signal that interrupted the server wherever it is would leave connections half closed.
    """
    import asyncio

    heard = [n for n in SIGNALS if callable(signal.getsignal(n))]
    before = {number: signal.getsignal(number) for number in heard}

    async def serve_on() -> int | None:
        loop = asyncio.get_running_loop()
        stopped: asyncio.Future[int] = loop.create_future()

        def stop(number: int) -> None:
            if not stopped.done():
                stopped.set_result(number)

        for number in heard:
            loop.add_signal_handler(number, stop, number)
        task = asyncio.create_task(serving)
        either: set[asyncio.Future[Any]] = {task, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return stopped.result() if stopped.done() else None

    try:
        number = asyncio.run(serve_on())
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if number is not None:
        handler = before[number]
        assert callable(handler)
        handler(number, None)
