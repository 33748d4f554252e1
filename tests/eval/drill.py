"""Two Ray nodes on this machine, as two hosts, and kills at random moments of an evaluation that runs on them."""

import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from tests.eval import runs

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = ("simulator", "policy", "node", "driver")


@dataclass
class Nodes:
    """A Ray cluster of processes that nobody protects: a head and one more node."""

    cpus: int
    environment: dict[str, str]
    port: int
    temporary: str
    head: subprocess.Popen | None = None
    other: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", str(self.cpus)]
        command += ["--num-gpus", "0", "--object-store-memory", "100000000", "--disable-usage-stats"]
        # Any free ports: the nodes share a machine.
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        log = open(f"{self.temporary}/nodes.log", "a")  # noqa: SIM115
        return subprocess.Popen([*command, *options], env=self.environment, stdout=log, stderr=log)

    def start_head(self) -> None:
        options = ["--head", "--port", str(self.port), "--include-dashboard", "false", "--temp-dir", self.temporary]
        self.head = self.start(*options, "--ray-client-server-port", str(free_port()))
        deadline = time.monotonic() + 120
        while not listening(self.port):
            assert self.head.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def start_other(self) -> None:
        self.other = self.start("--address", self.address)

    def kill_other(self) -> None:
        assert self.other is not None
        kill_tree(self.other)
        self.other = None

    def close(self) -> None:
        for process in (self.other, self.head):
            if process is not None:
                kill_tree(process)

    def actors(self, name: str) -> list[int]:
        """Processes of an actor class, on both nodes."""
        roots = [process.pid for process in (self.head, self.other) if process is not None]
        found = [pid for root in roots for pid in descendants(root)]
        return [pid for pid in found if command_of(pid).startswith(f"ray::{name}")]

    def log(self) -> str:
        return Path(self.temporary, "nodes.log").read_text()[-4000:]


@contextmanager
def two_nodes(cpus: int = 2, **variables: str) -> Iterator[Nodes]:
    """Both nodes started; their processes know nothing of this project's folder."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment = {key: value for key, value in environment.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), **variables}
    # Unix sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(cpus, environment, free_port(), folder)
        try:
            nodes.start_head()
            nodes.start_other()
            yield nodes
        finally:
            nodes.close()


@dataclass(frozen=True)
class Kill:
    """``victim`` dies ``delay`` seconds after ``records`` episodes were recorded."""

    victim: str
    records: int
    delay: float


def schedule(count: int, episodes: int, victims: tuple[str, ...], seed: int, *, first: int = 0) -> list[Kill]:
    """``count`` kills at random moments, every kind of victim in turn, the order shuffled.

    The last ones come late by the delays of all before them, so that no moment lies in the last two fifths of the run.
    """
    rng = random.Random(seed)
    chosen = [victims[number % len(victims)] for number in range(count)]
    rng.shuffle(chosen)
    moments = sorted(rng.randrange(first, max(first + 1, int(0.6 * episodes))) for _ in range(count))
    return [Kill(victim, moment, rng.uniform(0, 2)) for victim, moment in zip(chosen, moments, strict=True)]


@dataclass
class Drill:
    """One evaluation under fire.

    Attributes:
        nodes: where it runs.
        start: starts the driver, which goes on from the run folder.
        run_dir: that folder.
        done: what was killed, with the number of records then.
    """

    nodes: Nodes
    start: Callable[[], subprocess.Popen]
    run_dir: Path
    seed: int = 0
    done: list[tuple[str, int]] = field(default_factory=list)

    def run(self, kills: list[Kill], timeout: float) -> None:
        """Returns when the driver has ended with status 0; a restarted node joins again."""
        deadline, rng = time.monotonic() + timeout, random.Random(self.seed)
        driver = self.start()
        try:
            for kill in kills:
                while recorded(self.run_dir) < kill.records:
                    assert driver.poll() is None, f"the driver ended by itself with status {driver.returncode}"
                    assert time.monotonic() < deadline, self.nodes.log()
                    time.sleep(0.05)
                time.sleep(kill.delay)
                if kill.victim == "driver":
                    driver.kill()
                    driver.wait()
                    driver = self.start()
                elif kill.victim == "node":
                    self.nodes.kill_other()
                    self.nodes.start_other()
                else:
                    name = {"simulator": "Simulator", "policy": "PolicyServer"}[kill.victim]
                    if not self._kill_actor(name, rng, driver, deadline):
                        continue
                self.done.append((kill.victim, recorded(self.run_dir)))
            status = driver.wait(max(1.0, deadline - time.monotonic()))
            assert status == 0, f"the driver ended with status {status}"
        finally:
            if driver.poll() is None:
                driver.kill()
                driver.wait()

    def _kill_actor(self, name: str, rng: random.Random, driver: subprocess.Popen, deadline: float) -> bool:
        """Waits for one that runs, as the last kill may have taken all; False when the driver ended meanwhile."""
        while time.monotonic() < deadline and driver.poll() is None:
            if pids := self.nodes.actors(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    return True
            time.sleep(0.1)
        return False


def recorded(run_dir: Path) -> int:
    """Complete lines of the results so far."""
    path = run_dir / "episodes.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def ends(run_dir: Path) -> dict[str, tuple]:
    """How each recorded episode ended."""
    return runs.ends([json.loads(line) for line in (run_dir / "episodes.jsonl").read_text().splitlines()])


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all that it has started, as when the power fails."""
    for pid in [process.pid, *descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, front = [], [root]
    while front:
        front = [child for pid in front for child in children.get(pid, [])]
        found += front
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
