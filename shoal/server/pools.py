"""Threads for blocking work, in pools of their own, so that work of one kind keeps no other waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")
KEY_THREADS, UPLOAD_THREADS = 2, 2


class Pools:
    """The threads of one service.

    Attributes:
        keys: look up whom a key stands for.
        requests: accept chats and completions, also those that wait for an adapter to be generated.
        uploads: check adapters and training examples, which can be made to cost a second each.
    """

    def __init__(self, max_open: int) -> None:
        """No thread is started before it is needed; so many requests are open at once."""
        self.keys = ThreadPoolExecutor(KEY_THREADS, "shoal-keys")
        self.requests = ThreadPoolExecutor(max_open, "shoal-requests")
        self.uploads = ThreadPoolExecutor(UPLOAD_THREADS, "shoal-uploads")

    def close(self) -> None:
        """Begin nothing more."""
        for pool in (self.keys, self.requests, self.uploads):
            pool.shutdown(wait=False, cancel_futures=True)


async def run_in(
    pool: Executor, function: Callable[P, Result], *arguments: P.args, **options: P.kwargs
) -> Result:
    """The value of a function, called on a thread of a pool."""
    call = partial(function, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(pool, call)
