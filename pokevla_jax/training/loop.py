"""The training loop: draw, step, log, evaluate, save — in an order that makes a restart exact."""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

import pokevla_jax
from pokevla_jax import config as config_lib
from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.sharding import flatten
from pokevla_jax.training import banner
from pokevla_jax.training import distributed
from pokevla_jax.training import init_from as init_from_lib
from pokevla_jax.training import workdir as workdir_lib
from pokevla_jax.training.checkpoint import Best
from pokevla_jax.training.checkpoint import Checkpointer
from pokevla_jax.training.goodput import Goodput
from pokevla_jax.training.metrics import Chrono
from pokevla_jax.training.metrics import DivergedError
from pokevla_jax.training.metrics import Log
from pokevla_jax.training.metrics import Reporter
from pokevla_jax.training.metrics import Window
from pokevla_jax.training.objective import Objective
from pokevla_jax.training.objective import TrainData
from pokevla_jax.training.optimizer import make_optimizer
from pokevla_jax.training.preemption import PreemptionGuard
from pokevla_jax.training.profiling import Profiler
from pokevla_jax.training.speed import Speed
from pokevla_jax.training.speed import count_flops
from pokevla_jax.training.state import StateFactory
from pokevla_jax.training.state import TrainState
from pokevla_jax.training.state import num_bytes
from pokevla_jax.training.step import abstract_batch
from pokevla_jax.training.step import make_eval_step
from pokevla_jax.training.step import make_train_step
from pokevla_jax.training.writers import open_writers
from pokevla_jax.typing import Batch


@dataclasses.dataclass(frozen=True)
class Options:
    """What belongs to one attempt and not to the experiment."""

    # Writes TensorBoard's event files beside ``metrics.jsonl``.
    tensorboard: bool = False
    # Project of Weights & Biases to send figures to.
    wandb: str | None = None
    # First and last step of a profile, into ``profile/``.
    profile_steps: tuple[int, int] | None = None
    # When the process began (``time.time()``), for the account of lost time.
    started: float | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    step: int
    # The signal that stopped it early, after a save; None when all steps are done.
    stopped_by: str | None
    state: TrainState


def train(
    config: Config,
    workdir: epath.PathLike,
    objective: Objective,
    data: TrainData,
    *,
    init_from: Sequence[epath.PathLike] = (),
    reporter_class: type[Reporter] = Reporter,
    options: Options = Options(),
) -> Result:
    """Trains to ``config.num_steps``, continuing what ``workdir`` holds.

    Args:
        config: the experiment.
        workdir: folder of the run; created, or continued if it holds the same experiment.
        objective: what is trained.
        data: batches, whose order is a function of the step.
        init_from: checkpoints whose parameters a *new* run starts with, each parameter from the first that has it; a
            run that is continued ignores them.
        reporter_class: writes to the console.
        options: of this attempt: writers, profile.

    Raises:
        ValueError: in one sentence, for a folder, mesh, batch size or checkpoint that cannot be used, for hosts that
            differ in code, configuration or data, for frozen teachers that would be random, and for a loss that is not
            finite (naming the step).
    """
    workdir = workdir_lib.create(workdir)
    if jax.process_count() > 1:
        distributed.check_agreement(distributed.fingerprint(config, data.assets))
        distributed.check_shared(workdir)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.batch_size, config.optimizer.accumulation_steps, mesh)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    factory = StateFactory(objective, config.optimizer, optimizer, mesh)
    workdir_lib.claim(workdir, config)
    workdir_lib.check_space(workdir, num_bytes(factory.abstract), config.checkpoint, config.num_steps)

    with PreemptionGuard() as guard:
        goodput = Goodput(workdir, options.started)
        assets = _assets(config, data) | init_from_lib.inherited(workdir, init_from)
        checkpointer = Checkpointer(workdir, config.checkpoint, assets)
        restored = checkpointer.restore(factory.abstract)
        start = restored.step if restored else 0
        reporter = reporter_class(config.num_steps, start)
        try:
            reporter.say(_banner(config, mesh, factory, data, start))
            if restored:
                state, best = restored.state, restored.best
            elif init_from:
                params, report = init_from_lib.load(init_from, config, objective, data.assets.get("tokenizer"))
                reporter.say(report)
                state, best = factory.from_params(params), None
            else:
                init_from_lib.check_teachers(config, flatten(objective.abstract_params))
                state, best = factory.initialize(config.seed), None
            if start >= config.num_steps:
                reporter.say(f"{workdir} is complete at step {start}")
                result = Result(start, None, state)
            else:
                writers = open_writers(
                    workdir,
                    start,
                    config_lib.to_dict(config),
                    tensorboard=options.tensorboard,
                    wandb=options.wandb,
                )
                log = Log(workdir, start, reporter, writers)
                run = _Run(
                    config,
                    workdir,
                    objective,
                    data,
                    mesh,
                    factory,
                    optimizer,
                    checkpointer,
                    log,
                    guard,
                    goodput,
                    Profiler(workdir, options.profile_steps),
                )
                result = run.steps(state, start, restored.position if restored else None, best)
        except DivergedError:
            # Every host has come here, so that the save in progress can be waited for.
            checkpointer.close()
            raise
        except BaseException:
            # A save ends when all hosts have written their part: after an error of this host alone, they will not.
            if jax.process_count() == 1:
                checkpointer.close()
            raise
        else:
            checkpointer.close()
            return result
        finally:
            reporter.close()


class _Run:
    """The compiled steps and the loop over them."""

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        objective: Objective,
        data: TrainData,
        mesh: Mesh,
        factory: StateFactory,
        optimizer: Any,
        checkpointer: Checkpointer,
        log: Log,
        guard: PreemptionGuard,
        goodput: Goodput,
        profiler: Profiler,
    ):
        self._config, self._workdir, self._data = config, workdir, data
        self._criterion = objective.criterion
        self._batch_sharding = sharding.batch_sharding(mesh)
        self._checkpointer, self._log, self._guard = checkpointer, log, guard
        self._goodput, self._profiler = goodput, profiler
        batch = abstract_batch(data.spec, mesh)
        start = time.perf_counter()
        self._train_step = make_train_step(objective, config, optimizer, mesh, factory.abstract, batch)
        self._eval_step = make_eval_step(objective, mesh, factory.abstract, batch)
        seconds = time.perf_counter() - start
        distributed.meet("compiled")
        counted = count_flops(config, factory.abstract)
        self._speed = Speed(config, counted, mesh)
        lines = [("memory", banner.memory(factory.abstract, self._train_step))]
        lines += [("speed", banner.speed_formula(config, counted)), ("compiled", f"in {seconds:.1f} s")]
        log.say(banner.compose(lines))

    def steps(self, state: TrainState, start: int, position: Any, best: Best | None) -> Result:
        """Steps ``start + 1`` to the last.

        The order inside the loop must not change. A batch is drawn only after the step before it was saved, so that the
        iterator's position and the state belong together; logging and evaluation come before the save, so that a
        restart never repeats a line; the scalars are checked before the save, so that no diverged state is kept.
        """
        config, log, goodput = self._config, self._log, self._goodput
        iterator = self._data.iterate(start)
        if position is not None and iterator.get_state() != position:
            iterator.set_state(position)
        window, chrono = Window(config.optimizer), Chrono()
        in_flight: Any = None
        stopped_by = None
        goodput.steps_begin()
        try:
            for step in range(start + 1, config.num_steps + 1):
                self._profiler.before(step)
                with jax.profiler.StepTraceAnnotation("train", step_num=step):
                    batch = self._draw(iterator, in_flight, chrono)
                    with jax.transfer_guard("disallow"):
                        state, scalars = self._train_step(state, batch)
                # One step runs while the next batch is made; more in flight would only hold memory.
                jax.block_until_ready(in_flight)
                in_flight = scalars
                window.add(step, scalars)
                log.advance(step)
                self._profiler.after(step, scalars)

                last = step == config.num_steps
                stopped_by = None if last else self._guard.requested(step)
                improved = False
                if step % config.log_every == 0 or last:
                    count = len(window)
                    values = window.flush() | self._speed.extend(chrono.lap(count, config.batch_size))
                    log.train(step, values | {"goodput": goodput.share()})
                    self._checkpointer.publish_best()
                goodput.step(step - start)
                with chrono.pause():
                    if step % config.eval_every == 0 or last:
                        window.check()
                        with goodput.losing("evaluation"):
                            measures = self._evaluate(state)
                        if measures:
                            improved = best is None or measures[self._criterion] < best["metric"]
                            best = {"step": step, "metric": measures[self._criterion]} if improved else best
                            log.holdout(step, measures, best=improved)
                    if step % config.checkpoint.every_steps == 0 or improved or last or stopped_by:
                        window.check()
                        log.flush()
                        with goodput.losing("checkpoint"):
                            self._checkpointer.save(step, state, iterator.get_state(), best)
                        goodput.saved()
                if stopped_by:
                    log.say(f"{stopped_by}: saved step {step}; start the same command again to continue")
                    break
        finally:
            iterator.close()
            self._profiler.close()
            log.close()
            goodput.write()
        return Result(step, stopped_by, state)

    def _draw(self, iterator: Any, in_flight: Any, chrono: Chrono) -> Batch:
        """The next batch on the devices."""
        start = time.perf_counter()
        batch = next(iterator)
        if in_flight is None:
            picture = banner.write_first_batch(self._workdir, batch)
            self._log.say(f"first batch of this attempt: {picture}" if picture else "")
        # Making a batch costs nothing while the device is still busy with the step before.
        if in_flight is None or in_flight["loss"].is_ready():
            seconds = time.perf_counter() - start
            chrono.waited(seconds)
            self._goodput.add("data", seconds)
        return self._put(batch)

    def _put(self, batch: Batch) -> Batch:
        shapes = {name: tuple(spec.shape) for name, spec in self._data.spec.items()}
        return {
            name: jax.make_array_from_process_local_data(self._batch_sharding, x, shapes[name])
            for name, x in batch.items()
        }

    def _evaluate(self, state: TrainState) -> dict[str, float]:
        """Means over the held-out samples; empty where none are held out."""
        totals: dict[str, np.ndarray] = {}
        for batch in self._data.holdout():
            # Fetched batch by batch: float64 sums on the host do not depend on how many batches there are.
            for name, pair in jax.device_get(self._eval_step(state, self._put(batch))).items():
                totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        return {name: float(total / max(count, 1.0)) for name, (total, count) in totals.items()}


def _assets(config: Config, data: TrainData) -> dict[str, Any]:
    """What makes a checkpoint sufficient by itself."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"python": platform.python_version(), "pokevla_jax": getattr(pokevla_jax, "__version__", "unknown")}
    return json.loads(json.dumps({"config": config_lib.to_dict(config), "versions": versions, **data.assets}))


def _banner(config: Config, mesh: Mesh, factory: StateFactory, data: TrainData, start: int) -> str:
    """The run in named lines: hosts, mesh, batch, parameters, data."""
    state = f"{num_bytes(factory.abstract) / 2**20:.1f} MiB over all devices"
    begin = "continuing after" if start else "starting at"
    return banner.compose([
        ("hosts", banner.hosts()),
        ("mesh", sharding.describe(mesh)),
        ("batch", banner.batch_formula(config, mesh)),
        ("network", f"preset {config.model.preset}: {banner.parameters(factory.abstract)}; train state {state}"),
        ("data", data.description or "not described"),
        ("steps", f"{begin} step {start} of {config.num_steps}, seed {config.seed}"),
    ])  # fmt: skip
