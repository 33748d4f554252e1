"""Starting the processes of one run on this machine, as a launcher would."""

import os
import socket
import subprocess
import sys
import time


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(arguments, processes, devices, environment=None):
    """``processes`` times ``python arguments`` with ``devices`` virtual CPU devices each, joined by jax.distributed.

    ``arguments`` is a list, or a function from the index of a process to one.
    """
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(processes):
        own = {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(index),
        }
        command = [sys.executable, *(arguments(index) if callable(arguments) else arguments)]
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, **own, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started, timeout=500.0):
    """Exit status and output of each, once all have ended; where one was killed, the others are ended as well.

    A launcher does the same, for they would wait for it.
    """
    deadline = time.monotonic() + timeout
    try:
        while any(p.poll() is None for p in started):
            if any(p.poll() is not None and p.poll() < 0 for p in started):
                # They notice by themselves too, but only after the heartbeat's patience.
                time.sleep(1.0)
                for p in started:
                    p.kill()
            if time.monotonic() > deadline:
                raise TimeoutError("; ".join(f"process {i}: {p.poll()}" for i, p in enumerate(started)))
            time.sleep(0.1)
    finally:
        for p in started:
            p.kill()
        outputs = ["".join(x for x in p.communicate()[0].splitlines(True) if "[Gloo]" not in x) for p in started]
    return [p.returncode for p in started], outputs
