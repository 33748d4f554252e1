"""Runs independent pieces of work here, in processes of this machine, or on a Ray cluster; results in any order."""

import multiprocessing
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED
from concurrent.futures import Future
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any
from typing import TypeVar

from pokevla_jax.data.codec import DataError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 2


def run(function: Callable[[T], R], work: Iterable[T], *, workers: int, address: str | None = None) -> Iterator[R]:
    """Yields ``function(item)`` for every item; few items are held at a time.

    Args:
        function: importable by name, with picklable argument and result.
        work: consumed as workers become free.
        workers: processes of this machine; 1 runs in this one. On a cluster: pieces under way at a time.
        address: of a Ray cluster ("auto", "ray://host:10001", host:port); its machines must see the same folders.

    Raises:
        DataError: when a worker died, which a new start of the command answers best.
    """
    if address is not None:
        yield from _on_cluster(function, work, workers, address)
    elif workers == 1:
        yield from map(function, work)
    else:
        yield from _in_processes(function, work, workers)


def _in_processes(function: Callable[[T], R], work: Iterable[T], workers: int) -> Iterator[R]:
    # Spawned: threads of numeric libraries do not survive a fork.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            pending: set[Future[R]] = set()
            for item in work:
                pending.add(pool.submit(function, item))
                if len(pending) >= workers * _AHEAD:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            for future in pending:
                yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "A worker process was killed (out of memory?); start the same command again, it goes on where it was, "
            "with fewer --workers if need be"
        ) from error


def _call(function: Callable[[T], R], item: T) -> R:
    return function(item)


def _on_cluster(function: Callable[[T], R], work: Iterable[T], workers: int, address: str) -> Iterator[R]:
    import ray

    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DataError(f"No Ray cluster answers at {address!r}: {str(error)[:200]}") from error
    try:
        # A piece whose machine dies is done again elsewhere: it leaves nothing half-written behind.
        remote: Any = ray.remote(_call).options(num_cpus=1, max_retries=3)
        shared = ray.put(function)  # Stored once; Ray takes plain functions alone for a task.
        pending: list[Any] = []
        for item in work:
            pending.append(remote.remote(shared, item))
            if len(pending) >= workers * _AHEAD:
                done, pending = ray.wait(pending, num_returns=1)
                yield ray.get(done[0])
        for reference in pending:
            yield ray.get(reference)
    finally:
        if started:
            ray.shutdown()
