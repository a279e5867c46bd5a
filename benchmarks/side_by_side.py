"""Parts of a benchmark side by side: each in a process of its own with one thread, some at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

Told = Callable[[str], None]

Start = Callable[..., "Future[Any]"]
"""Takes a function of a module and what it is given, which another process must be able to read."""


@contextmanager
def side_by_side(workers: int, told: Told) -> Iterator[Start]:
    """Yield a function that starts ``job(*given, told)`` in another process, in order, ``workers`` at once.

    The tensors of these benchmarks are too small for a second thread to pay: a core a job is the better use of them.

    Args:
        workers: Processes, at least 1.
        told: Called here with the lines that jobs tell there.

    Raises:
        Exception: What the block raises, a job's own exception by its future's ``result`` among it. Jobs that still
            run are then ended, as they are when this process ends.
    """
    spawn = multiprocessing.get_context("spawn")
    lines, (ours, theirs) = spawn.SimpleQueue(), spawn.Pipe(duplex=False)
    listener = threading.Thread(target=_listen, args=(lines, told), daemon=True)
    listener.start()
    try:
        with ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(lines, ours)) as pool:
            try:
                yield lambda job, *given: pool.submit(_run, job, given)
            except BaseException:
                theirs.close()
                raise
    finally:
        theirs.close()
        lines.put(None)
        listener.join()


def gathered(jobs: Sequence[Future[Any]]) -> list[Any]:
    """Return what jobs gave, in their order.

    Raises:
        Exception: What a job raises, as soon as it does.
    """
    for each in as_completed(jobs):
        each.result()
    return [each.result() for each in jobs]


def _listen(lines: SimpleQueue[str | None], told: Told) -> None:
    while (line := lines.get()) is not None:
        told(line)


_tell: Told = print
"""What a job here tells its lines to."""


def _begin(lines: SimpleQueue[str | None], parent: Connection) -> None:
    global _tell  # noqa: PLW0603 - a process of the pool has one listener
    _tell = lines.put
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """End this process once the other end of the connection is closed, or gone with its process."""
    wait([parent])
    os._exit(1)


def _run(job: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    return job(*given, _tell)
