"""Runs toy episodes on a Ray cluster, as ``python -m eval run`` does with real ones; for ``test_many_hosts``.

Each simulator leaves a file that says where it got this project's code from.
"""

import argparse
import os
import sys
from pathlib import Path

import ray.cloudpickle

import eval
from eval.cluster import connect
from eval.driver import Driver
from eval.driver import Setup
from eval.results import RunFolder
from tests.eval import runs
from tests.eval import toy


class ToldScenes(toy.ToyScenes):
    """Leaves ``code-PID`` in the folder ``hang_file``."""

    def build(self, spec):
        Path(self.hang_file, f"code-{os.getpid()}").write_text(eval.__file__)
        return super().build(spec)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--episodes", type=int)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    # The tests are no part of what an evaluation sends to its hosts.
    ray.cloudpickle.register_pickle_by_value(toy)
    specs = toy.episodes(options.episodes)
    folder = RunFolder(options.run_dir)
    folder.open(specs, runs.protocol(), {})
    scenes = ToldScenes(seconds=options.seconds, hang_file=str(options.run_dir))
    setup = Setup(scenes, load_policy=toy.PolicyThatLooks)
    with connect(options.address, None) as cluster:
        Driver(ray=cluster, setup=setup, workers=None).run(folder.missing(), folder.append)
    folder.close()


if __name__ == "__main__":
    sys.exit(main())
