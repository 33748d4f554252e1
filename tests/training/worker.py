"""One process of a toy run: ``python -m tests.training.worker`` with a JSON list of runs as its last argument.

Each run is ``{"workdir", "changes", "signal": [process, name, step], "unreadable": [process, step], "ids"}``; they are
made one after the other by the same processes, which spares starting them anew. A signal is a real one, sent by the
process to itself while it draws the batch of that step. The exit status is that of the last run.
"""

import json
import os
import signal
import sys

import jax

from pokevla_jax import sharding
from pokevla_jax.training import checkpoint
from pokevla_jax.training import distributed
from pokevla_jax.training import loop
from pokevla_jax.training.preemption import PREEMPTED
from tests.training import toy


class Rows(toy.Batches):
    """This process's rows of the toy batches; writes down which, and sends the signal."""

    def __init__(self, start, place, run):
        super().__init__(start)
        (index, count), self._run = place, run
        size = toy.BATCH // count
        self._rows = slice(index * size, (index + 1) * size)

    def __next__(self):
        process, name, step = self._run.get("signal") or (None, None, None)
        if (jax.process_index(), self.step + 1) == (process, step):
            os.kill(os.getpid(), getattr(signal, name))
        batch = {name: x[self._rows] for name, x in super().__next__().items()}
        if "ids" in self._run:
            with open(f"{self._run['ids']}-{jax.process_index()}", "a") as file:
                file.write(json.dumps([self.step, [float(x[0]) for x in batch["x"]]]) + "\n")
        return batch


def data(config, run):
    place = sharding.loader_place(sharding.make_mesh(config.mesh))
    size = toy.BATCH // place[1]
    rows = slice(place[0] * size, (place[0] + 1) * size)
    whole = toy.data(lambda start: Rows(start, place, run))
    held_out = lambda: [{name: x[rows] for name, x in batch.items()} for batch in whole.holdout()]  # noqa: E731
    return toy.TrainData(spec=whole.spec, iterate=whole.iterate, holdout=held_out, assets=whole.assets)


def lose_sight(process, step):
    """Lets one process fail to read the arrays of one step, as a host with a bad disk or connection would."""
    read = checkpoint._read_arrays

    def fail(folder, target):
        if jax.process_index() == process and folder.parent.name == str(step):
            raise OSError("input/output error")
        return read(folder, target)

    checkpoint._read_arrays = fail


def main(runs):
    distributed.initialize()
    for run in runs:
        if "unreadable" in run:
            lose_sight(*run["unreadable"])
        config = toy.config(**run["changes"])
        try:
            result = loop.train(config, run["workdir"], toy.objective(0.1), data(config, run))
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            distributed.leave(2)
    return PREEMPTED if result.stopped_by else 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[-1])))
