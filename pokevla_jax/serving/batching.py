"""Many that ask, one network: whoever waits when it becomes free goes into its next batch."""

import asyncio
from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

Observation = dict[str, Any]


class Batcher:
    """Answers single observations with rows of batches.

    No timer: while one batch computes, the next one gathers. The policy pads batches to its compiled sizes.

    Args:
        infer: from observations to one result each; runs in a thread of its own, never twice at once.
        max_batch_size: the most observations of one call.
    """

    def __init__(self, infer: Callable[[Sequence[Observation]], np.ndarray], max_batch_size: int):
        self._infer = infer
        self._max_batch_size = max_batch_size
        self._waiting: asyncio.Queue[tuple[Observation, asyncio.Future[np.ndarray]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._task: asyncio.Task[None] | None = None

    async def infer(self, observation: Observation) -> np.ndarray:
        """The result of one observation; raises what ``infer`` raises for it."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._serve())
        future: asyncio.Future[np.ndarray] = loop.create_future()
        await self._waiting.put((observation, future))
        return await future

    def close(self) -> None:
        """Stops; whoever still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
        while not self._waiting.empty():
            self._waiting.get_nowait()[1].cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while not self._waiting.empty() and len(batch) < self._max_batch_size:
                batch.append(self._waiting.get_nowait())
            # Who went away while waiting needs no answer.
            batch = [(observation, future) for observation, future in batch if not future.done()]
            if not batch:
                continue
            for (_, future), result in zip(
                batch, await loop.run_in_executor(self._thread, self._results, [o for o, _ in batch]), strict=True
            ):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _results(self, observations: Sequence[Observation]) -> list[np.ndarray | Exception]:
        """A result or an error for each: the rows of a batch that fails run alone, so that none fails the others."""
        try:
            results = list(self._infer(observations))
            if len(results) != len(observations):
                raise RuntimeError(f"The policy gave {len(results)} results for {len(observations)} observations")
            return results
        except Exception as error:
            if len(observations) == 1:
                return [error]
        return [result for observation in observations for result in self._results([observation])]
