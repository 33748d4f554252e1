"""The processes of one run: joining them, and making sure that they run the same thing on the same folder.

One process per host is the rule; a run of one process is the case of one, and talks to nobody.
"""

import hashlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from typing import NoReturn

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

import pokevla_jax
from pokevla_jax import config as config_lib
from pokevla_jax.config import Config

# Flags that change the compiled program: hosts that differ in them wait for each other for ever.
ENVIRONMENT = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# A process that died is noticed after so long where its connections do not tell at once.
HEARTBEAT_SECONDS = 60
# How long the first process waits for the last one to have compiled.
MEET_SECONDS = 3600


class AgreementError(ValueError):
    """Hosts of one run that differ; the message says which and in what."""


def initialize() -> None:
    """Joins the other processes of this run, if the environment says that there are any.

    Either ``JAX_COORDINATOR_ADDRESS`` (HOST:PORT of process 0), ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say so
    outright, or ``POKEVLA_DISTRIBUTED=auto`` asks JAX to find out from Slurm, a TPU VM or GKE. Slurm steps of several
    tasks and TPU slices on GKE are found without being told.

    Raises:
        ValueError: in one sentence, when only a part of the variables is set.
    """
    environment = os.environ
    patience: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    if "JAX_COORDINATOR_ADDRESS" in environment:
        try:
            count, index = (int(environment[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers too ({error})"
            ) from error
        jax.distributed.initialize(environment["JAX_COORDINATOR_ADDRESS"], count, index, **patience)
    elif _is_one_of_many(environment):
        jax.distributed.initialize(**patience)


def _is_one_of_many(environment: Mapping[str, str]) -> bool:
    slurm = "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1
    slice_ = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    return environment.get("POKEVLA_DISTRIBUTED") == "auto" or slurm or slice_


def meet(name: str) -> None:
    """Returns once every process has come here, by the coordination service alone.

    Before the first collective: its connections (Gloo's) are given up after half a minute, and processes that compile
    at different speeds are further apart than that.

    Args:
        name: of the place; a process comes to each place once.
    """
    if jax.process_count() > 1:
        multihost.get_barrier_sync_fn()(key=name, timeout_ms=MEET_SECONDS * 1000)


def leave(status: int) -> NoReturn:
    """Ends this process at once, without the farewell that would wait for processes which may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def fingerprint(config: Config, assets: Mapping[str, Any]) -> dict[str, str]:
    """What must be the same on every host, by name: configuration, sources, versions, flags, data."""
    entries = {f"config.{key}": json.dumps(value) for key, value in _leaves(config_lib.to_dict(config))}
    root = Path(pokevla_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        entries[f"source {path.relative_to(root.parent)}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    entries |= {f"{name} (environment)": os.environ.get(name, "") for name in ENVIRONMENT}
    entries["python"] = ".".join(map(str, sys.version_info[:3]))
    for name, value in assets.items():
        content = json.dumps(value, sort_keys=True)
        entries[f"data.{name}"] = content if len(content) < 80 else hashlib.sha256(content.encode()).hexdigest()[:12]
    return entries


def check_agreement(entries: Mapping[str, str]) -> None:
    """Returns once every host has shown the same ``entries``; every host stops where one differs.

    Raises:
        AgreementError: naming the first host that differs from host 0, and the keys.
    """
    digest = hashlib.sha256(json.dumps(dict(entries), sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    if (digests == digests[0]).all():
        return
    shown = [json.loads(text) for text in gather_text(json.dumps({"host": socket.gethostname(), **entries}))]
    raise AgreementError(describe_difference(shown))


def describe_difference(shown: Sequence[Mapping[str, str]]) -> str:
    """One sentence: which host differs from host 0, and in which keys; ``shown`` is each one's."""
    for index, entries in enumerate(shown):
        keys = [key for key in {**shown[0], **entries} if key != "host" and entries.get(key) != shown[0].get(key)]
        if keys:
            key, more = keys[0], f", and {len(keys) - 1} more: {', '.join(keys[1:6])}" if len(keys) > 1 else ""
            return (
                f"Process {index} on host {entries['host']} and process 0 on host {shown[0]['host']} do not run the "
                f"same: {key} is {entries.get(key, 'missing')} there and {shown[0].get(key, 'missing')} here{more}; "
                "start the same code with the same command on every host"
            )
    return "The hosts do not run the same, but show no difference; start the same code again on every host"


def check_shared(workdir: epath.Path) -> None:
    """Raises ``AgreementError`` on every host unless all of them see one and the same folder."""
    index = jax.process_index()
    stamp = workdir / f".shared-by-{gather_text(f'{socket.gethostname()}-{os.getpid()}')[0]}"
    if index == 0:
        stamp.write_text("")
    multihost_utils.sync_global_devices("the folder is stamped")
    # A network file system may show a new file a moment late.
    deadline = time.monotonic() + 5.0
    while not (seen := stamp.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    missing = np.flatnonzero(~multihost_utils.process_allgather(np.array(seen)))
    if index == 0:
        stamp.unlink()
    if len(missing):
        raise AgreementError(
            f"Process {missing[0]} sees another folder than process 0 under --workdir {workdir}; give one that all "
            "hosts share: a bucket (gs://…) or a network file system"
        )


def gather_text(text: str) -> list[str]:
    """Every process's ``text``, in their order."""
    own = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(own), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found
