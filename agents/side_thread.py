"""A thread beside this one, for the half of an update that shares nothing with the other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch


class Deferred:
    """What stands for a Future where nothing runs beside: called when its result is asked for."""

    def __init__(self, call: Callable, *args):
        self.result = functools.cache(functools.partial(call, *args))


class SideThread:
    """Two threads with half of this process's share of the cores each."""

    def __init__(self) -> None:
        self.running = False
        """Whether calls run beside this thread now."""
        self._thread: ThreadPoolExecutor | None = None

    @contextlib.contextmanager
    def share(self, in_order: bool) -> Iterator[Callable[..., Future]]:
        """What starts a call in the other thread, where one begins after the other.

        Args:
            in_order: wait for every call before this thread goes on.
        """
        threads, begun = torch.get_num_threads(), []
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)

        def with_half(call: Callable, *args):
            torch.get_num_threads()  # a new thread takes over the process's number when first asked
            torch.set_num_threads(threads // 2)
            return call(*args)

        def start(call: Callable, *args) -> Future:
            begun.append(self._thread.submit(with_half, call, *args))
            if in_order:
                wait(begun)
            return begun[-1]

        self.running = True
        torch.set_num_threads(threads - threads // 2)
        try:
            yield start
        finally:
            wait(begun)
            torch.set_num_threads(threads)
            self.running = False
