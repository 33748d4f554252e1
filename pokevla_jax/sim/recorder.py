"""Recording demonstrations: first states and actions, then pictures of the stored states, one shard at a time.

Physics takes about a second an episode and rendering about as long again, so both run in worker processes, each on its
own shards. A worker first plays all episodes of a shard and stores their simulator states
(``<out>/states/<shard>.npz``), then renders them into ``<out>/<shard>.arrayrecord`` and ``.parquet``. What exists
already is reused if it was made with the same settings, so an interrupted recording goes on where it was, and the same
states can be rendered again with other cameras. A shard's content depends on its settings alone.
"""

import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pokevla_jax.data import manifest
from pokevla_jax.data.records import Episode
from pokevla_jax.data.records import Frame
from pokevla_jax.data.records import shard_exists
from pokevla_jax.data.records import write_shard
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.demonstrate import Noise
from pokevla_jax.sim.demonstrate import Trajectory
from pokevla_jax.sim.demonstrate import demonstrate
from pokevla_jax.sim.demonstrate import load_trajectories
from pokevla_jax.sim.demonstrate import save_trajectories
from pokevla_jax.sim.environment import VIEWS
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.layouts import sample_layout
from pokevla_jax.sim.layouts import show_layout
from pokevla_jax.sim.scenes import make_environment
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.sim.tasks import load_task
from pokevla_jax.sim.versions import protocol_facts

RECORDER_VERSION = 1
"""Raise it when the same settings give other episodes: the expert, the noise, the layouts."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What to record.

    Attributes:
        tasks: indices in the suite; each gets ``episodes`` layouts, numbers 0 to ``episodes - 1`` of the seed.
        render_every: steps between two rendered ones; the first step is always rendered.
        shard_size: episodes of one shard, the unit of work and of resuming.
    """

    suite: str
    tasks: tuple[int, ...]
    episodes: int
    layout_kind: str
    layout_seed: int
    assets: Assets
    noise: Noise = field(default_factory=Noise)
    image_size: int = 128
    render_every: int = 4
    renderer: str = "fast"
    shard_size: int = 10

    def shards(self) -> list["Shard"]:
        """The units of work; a worker that takes neighbours keeps its compiled scene."""
        return [
            Shard(self, task, start, min(start + self.shard_size, self.episodes))
            for task in self.tasks
            for start in range(0, self.episodes, self.shard_size)
        ]


@dataclass(frozen=True)
class Shard:
    """Layouts ``start`` to ``stop - 1`` of one task."""

    recording: Recording
    task: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """File name without extension."""
        r = self.recording
        return f"{r.suite}-task{self.task:02d}-{r.layout_kind}-seed{r.layout_seed}-{self.start:05d}-{self.stop:05d}"

    def settings(self) -> dict[str, Any]:
        """Everything that decides the shard's content, in plain JSON types."""
        r = self.recording
        return {
            "recorder": RECORDER_VERSION,
            "suite": r.suite,
            "layout_kind": r.layout_kind,
            "layout_seed": r.layout_seed,
            "noise": json.loads(json.dumps(dataclasses.asdict(r.noise))),
            "render_every": r.render_every,
            "protocol": protocol_facts(r.assets, renderer=r.renderer, image_size=r.image_size, hard_reset=False),
        }


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard.

    Attributes:
        failed: numbers of the layouts whose episode did not reach the goal; they are not stored.
        reused: whether it was there already.
        physics_seconds, render_seconds: CPU time of the two phases.
    """

    name: str
    episodes: int
    failed: tuple[int, ...]
    reused: bool
    physics_seconds: float = 0.0
    render_seconds: float = 0.0


def record(
    recording: Recording, out: Path, *, workers: int = 1, progress: Callable[[int], None] = lambda episodes: None
) -> list[ShardResult]:
    """Records every shard into ``out`` and returns what became of each, in order.

    Args:
        recording: what to record.
        out: the dataset's folder; what an interrupted recording left there is reused.
        workers: processes; 1 records in this one.
        progress: called now and then with the number of episodes finished so far.

    Raises:
        SimulationError: when ``out`` holds shards of the same name made with other settings, or a task has fewer stored
            states than ``episodes``.
    """
    _check_stored_states(recording)
    shards = recording.shards()
    results = {shard.name: _reuse(shard, out) for shard in shards if shard_exists(out, shard.name)}
    todo = [shard for shard in shards if shard.name not in results]

    def finish(result: ShardResult) -> None:
        results[result.name] = result
        progress(sum(r.episodes for r in results.values()))

    progress(sum(r.episodes for r in results.values()))
    if workers == 1:
        for shard in todo:
            finish(record_shard(shard, out))
    elif todo:
        _record_parallel(todo, out, workers, finish)
    return [results[shard.name] for shard in shards]


def _check_stored_states(recording: Recording) -> None:
    """Refuses more episodes of kind "stored" than there are states, before any is played."""
    if recording.layout_kind != "stored":
        return
    for index in recording.tasks:
        task = load_task(recording.suite, index)
        if recording.episodes > (count := len(load_init_states(task))):
            raise SimulationError(f"{task.name!r} has {count} stored states; give --episodes {count} or fewer")


def _record_parallel(shards: Sequence[Shard], out: Path, workers: int, finish: Callable[[ShardResult], None]) -> None:
    # Spawned, not forked: an OpenGL context does not survive a fork.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(shards)), mp_context=context) as pool:
        futures = [pool.submit(record_shard, shard, out) for shard in shards]
        try:
            for future in as_completed(futures):
                finish(future.result())
        except BrokenProcessPool as error:
            raise SimulationError(
                "A recording process died, perhaps for lack of memory; run the command again with fewer --workers, "
                "finished shards are kept"
            ) from error
        except KeyboardInterrupt:
            # Do not wait for shards in progress: their states are stored or cheap.
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _reuse(shard: Shard, out: Path) -> ShardResult:
    """The result of a shard that is on disk, after a check that it is the one asked for."""
    path = out / f"{shard.name}.parquet"
    header = manifest.parse_header(pq.read_schema(path).metadata, path)
    if header["settings"] != shard.settings():
        raise SimulationError(f"{path} was recorded with other settings; choose another --out or delete the folder")
    stored = {info["source"]["index"] for info in header["episodes"]}
    failed = tuple(index for index in range(shard.start, shard.stop) if index not in stored)
    return ShardResult(shard.name, shard.stop - shard.start, failed, reused=True)


def record_shard(shard: Shard, out: Path) -> ShardResult:
    """Plays the shard's episodes, stores their states, renders them and writes the shard.

    Episodes that miss the goal are left out; a shard without any success is not written.
    """
    states = out / "states" / f"{shard.name}.npz"
    start = time.process_time()
    environment = _environment(shard)
    trajectories = _stored_trajectories(states, shard.settings())
    if trajectories is None:
        trajectories = [_demonstrate(environment, shard, index) for index in range(shard.start, shard.stop)]
        save_trajectories(states, trajectories, shard.settings())
    middle = time.process_time()
    successes = [trajectory for trajectory in trajectories if trajectory.success]
    if successes:
        rendered = (render(environment, t, shard.recording.render_every) for t in successes)
        try:
            write_shard(out, shard.name, rendered, settings=shard.settings())
        except FileExistsError as error:
            raise SimulationError(
                f"{out / shard.name}.parquet was written by another recording meanwhile; let one of them end, then run "
                "the same command again"
            ) from error
    return ShardResult(
        shard.name,
        len(trajectories),
        tuple(t.layout.index for t in trajectories if not t.success),
        reused=False,
        physics_seconds=middle - start,
        render_seconds=time.process_time() - middle,
    )


def _stored_trajectories(path: Path, settings: dict[str, Any]) -> list[Trajectory] | None:
    """States that an interrupted recording left, if they are of the same making."""
    if not path.exists():
        return None
    trajectories, made_with = load_trajectories(path)
    return trajectories if made_with == settings else None


def _demonstrate(environment: LiberoEnvironment, shard: Shard, index: int) -> Trajectory:
    r = shard.recording
    layout = sample_layout(environment, r.layout_kind, r.layout_seed, index, task=shard.task)
    return demonstrate(environment, layout, r.noise)


def render(environment: LiberoEnvironment, trajectory: Trajectory, every: int) -> tuple[Episode, dict[int, Frame]]:
    """The episode with camera poses and keypoints of all steps, and the pictures of every ``every``-th one."""
    layout = trajectory.layout
    show_layout(environment, layout)
    task = environment.task
    base = environment.base_from_world()
    poses, keypoints, frames = [], [], {}
    for step, state in enumerate(trajectory.sim_state):
        environment.set_sim_state(state)
        poses.append([environment.camera(view).base_from_camera for view in VIEWS])
        points = np.stack([environment.object_position(name) for name in (task.target, task.goal_object)])
        keypoints.append(points @ base[:3, :3].T + base[:3, 3])
        if step % every == 0:
            frames[step] = _look(environment)
    episode = Episode(
        id=f"{layout.suite}/{layout.task}/{layout.kind}/{layout.seed}/{layout.index}",
        suite=layout.suite,
        task=layout.task,
        instruction=task.language,
        success=trajectory.success,
        source=layout.to_json(),
        views=VIEWS,
        intrinsics=np.stack([environment.camera(view).intrinsics for view in VIEWS]).astype(np.float32),
        state=trajectory.proprio,
        action=trajectory.label,
        executed=trajectory.executed,
        chunk_end=trajectory.chunk_end(),
        base_from_camera=np.array(poses, np.float32),
        keypoints=np.array(keypoints, np.float32),
    )
    return episode, frames


def _look(environment: LiberoEnvironment) -> Frame:
    """What all cameras see now: pictures, the task's objects, depth."""
    images, masks, depth = {}, {}, {}
    for view in VIEWS:
        seen = environment.render(view, mask=True, depth=True)
        assert seen.rgb is not None and seen.mask is not None and seen.depth is not None
        images[view], masks[view], depth[view] = seen.rgb, seen.mask, seen.depth
    return Frame(images, masks, depth)


_compiled: dict[tuple, LiberoEnvironment] = {}


def _environment(shard: Shard) -> LiberoEnvironment:
    """This process's compiled scene for the shard; the one before is closed, since each takes half a gigabyte."""
    r = shard.recording
    # All tasks of the shared scene are played in one.
    scene = (r.suite, None if r.layout_kind == "shared" else shard.task, r.layout_kind)
    key = (*scene, r.assets, r.renderer, r.image_size)
    if key not in _compiled:
        close()
        options = {"assets": r.assets, "renderer": r.renderer, "image_size": r.image_size}
        _compiled[key] = make_environment(r.suite, shard.task, r.layout_kind, **options)
    return _compiled[key]


def close() -> None:
    """Frees the scene that recording in this process has compiled."""
    while _compiled:
        _compiled.popitem()[1].close()
