"""Threads that nobody has to wait for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any


class DaemonExecutor(ThreadPoolExecutor):
    """At most `max_workers` threads, as in the base class, but neither shutdown() nor the end of the process waits.

    A thread in a name lookup or an HTTP request cannot be stopped from outside. The base class waits for it, so that
    ^C would end the program only minutes later.
    """

    def __init__(self, max_workers: int):
        super().__init__(max_workers)  # asyncio takes this type alone as its executor
        self._free = max_workers
        self._calls: queue.SimpleQueue = queue.SimpleQueue()

    def submit(self, call, /, *args, **kwargs) -> Future:
        future: Future = Future()
        self._calls.put((future, call, args, kwargs))
        if self._free:
            self._free -= 1
            threading.Thread(target=self._work, daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Return at once; the arguments are not used. The threads end after the calls that were submitted."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call, args, kwargs = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
        self._calls.put(None)  # for the next thread


def beside(call: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Begin `call(*args)` in a thread of its own. -> what waits for its result, and returns it or raises its error.

    ^C ends the waiting at once, and the end of the process does not wait for the thread.
    """
    threads = DaemonExecutor(1)
    future = threads.submit(call, *args)
    threads.shutdown()

    def result() -> Any:
        # a lock without a time limit does not wake for a ^C that another thread received
        while not wait([future], timeout=0.2).done:
            pass
        return future.result()

    return result
