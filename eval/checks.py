"""The doctor's checks: each measures one thing, and a function beside it judges the measurement.

What is expected stands here, with where it comes from; ``pokevla_jax.sim.probes`` measures.
"""

import enum
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

import numpy as np

from eval.benchmarks.selection import PUBLISHED_SUITES
from eval.cluster import ROOT
from eval.cluster import local_cluster
from eval.errors import EvaluationError
from eval.protocol import versions
from pokevla_jax.sim import probes
from pokevla_jax.sim.assets import Assets
from pokevla_jax.sim.assets import resolve_assets
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.simplify import cache_folder
from pokevla_jax.sim.tasks import list_tasks
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.sim.tasks import load_task
from pokevla_jax.sim.upstream import choose_gl

PACKAGES = ("mujoco", "robosuite", "hf-libero", "bddl", "numpy")
# The first MuJoCo whose box contacts settle LIBERO's scenes differently, and darkens its floors.
NEW_CONTACTS = (3, 3, 3)
# The bowl on the ramekin after ten waiting steps, degrees: with MuJoCo up to 3.3.2, and with 3.4.0 and later.
RIGHT_TILT, LATER_TILT, TILT_TOLERANCE = 15.9, 10.6, 0.5
# How far the hand of a robot that was built in LIBERO-Plus's posture 450 ends from the usual one's place after the ten
# waiting steps, metres: (-0.207, -0.010, 0.199), not (-0.153, -0.006, 0.248), with the benchmark's own code.
RIGHT_DRIFT, DRIFT_TOLERANCE = 0.073, 0.010
STILL = 0.015
# What LIBERO-Plus's file names, and so its official prompts, end with.
SUFFIX = re.compile(
    r" (view( -?\d+){5}|initstate \d+|noise \d+|light \d+|table \d+|tb \d+|add \d+|level\d+|sample\d+)\b"
)
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software")
SLOW_FRAMES, LITTLE_SPACE = 5.0, 2**30


class Status(enum.StrEnum):
    """How grave a finding is: with a FAIL, results are wrong or not to be had; a WARN is to be known."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What a check found; ``advice`` says what to do about it and is empty only where all is well."""

    status: Status
    message: str
    advice: str = ""

    def __post_init__(self):
        if (self.status is Status.OK) == bool(self.advice):
            raise ValueError(f"a finding has advice exactly if something is to be done: {self}")


@dataclass
class Bench:
    """What the checks share: where things are, and scenes that are compiled once."""

    assets_path: str | None = None
    run_dir: Path = Path("runs")
    _environments: dict[tuple[str, int], LiberoEnvironment] = field(default_factory=dict)

    @property
    def assets(self) -> Assets:
        """The asset folder; raises ``AssetError`` where it is incomplete."""
        return resolve_assets(self.assets_path)

    def environment(self, suite: str, task: int) -> LiberoEnvironment:
        """The scene of a task."""
        if (suite, task) not in self._environments:
            self._environments[suite, task] = LiberoEnvironment(load_task(suite, task), assets=self.assets)
        return self._environments[suite, task]

    def close(self) -> None:
        """Frees the scenes."""
        for environment in self._environments.values():
            environment.close()


def packages(bench: Bench) -> Finding:
    """Versions of what decides physics and pixels, against the pins of the requirements files."""
    lines = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "requirements-sim.txt"))
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", lines, flags=re.MULTILINE))
    return judge_packages(versions(PACKAGES), {name: pins[name] for name in PACKAGES})


def judge_packages(installed: Mapping[str, str], pinned: Mapping[str, str]) -> Finding:
    """Other versions of the simulator fail; another NumPy, or a MuJoCo that behaves like the pinned one, is noted."""
    other = {name: version for name, version in installed.items() if version != pinned[name]}
    if not other:
        return Finding(Status.OK, ", ".join(f"{name} {version}" for name, version in installed.items()))
    found = ", ".join(f"{name} is {version}, not {pinned[name]}" for name, version in other.items())
    fix = " ".join(f"{name}=={pinned[name]}" for name in other)
    harmless = all(
        name == "numpy" or (name == "mujoco" and (3, 0) <= _numbers(version) < NEW_CONTACTS)
        for name, version in other.items()
    )
    if harmless:
        return Finding(Status.WARN, found, f"pip install --no-deps {fix}, or merge and compare no results with others")
    reason = ""
    if "mujoco" in other and _numbers(other["mujoco"]) >= NEW_CONTACTS:
        reason = " (from 3.3.3 on objects settle differently and floors are darker)"
    return Finding(Status.FAIL, found + reason, f"pip install --no-deps {fix}")


def assets(bench: Bench) -> Finding:
    """Hashes of meshes, textures and scenes against the shipped manifest."""
    return judge_assets(bench.assets)


def judge_assets(found: Assets) -> Finding:
    """Real files are well; known stand-ins are noted; a file that nobody declared a stand-in fails."""
    if found.kind == "real":
        return Finding(Status.OK, f"{found.root}: every file is the benchmark's own")
    if found.kind == "standins":
        advice = "give --assets or LIBERO_ASSETS the benchmark's folder before comparing with published numbers"
        return Finding(Status.WARN, f"{found.root}: generated stand-ins, libero_object only", advice)
    notes = found.root / "STANDINS.txt"
    declared = set(notes.read_text().split()) if notes.exists() else set()
    if edited := [name for name in found.replaced if name not in declared]:
        return Finding(
            Status.FAIL,
            f"{found.root}: {len(edited)} file(s) differ from the benchmark's: {_some(edited)}",
            "restore them, or list them in STANDINS.txt if they are meant to differ",
        )
    return Finding(
        Status.WARN,
        f"{found.root}: {len(found.replaced)} declared stand-in(s), such as {found.replaced[0]}; pixels differ",
        "set no rate measured with them beside a published one; physics is not affected by visual files",
    )


def settle(bench: Bench) -> Finding:
    """How objects come to rest: the bowl on the ramekin, from four stored states."""
    if bench.assets.kind == "standins":
        return Finding(
            Status.WARN, "not run: the generated stand-ins lack libero_spatial", "give --assets LIBERO's own folder"
        )
    environment = bench.environment("libero_spatial", 5)
    states = load_init_states(environment.task)[:4]
    return judge_tilt(probes.settle_tilt(environment, states, environment.task.target))


def judge_tilt(degrees: Sequence[float] | np.ndarray) -> Finding:
    """The bowl leans by the degrees of the MuJoCo that published results were made with."""
    tilts = np.asarray(degrees)
    message = f"the bowl on the ramekin leans by {tilts.min():.1f} to {tilts.max():.1f} degrees"
    if np.abs(tilts - RIGHT_TILT).max() <= TILT_TOLERANCE:
        return Finding(Status.OK, f"{message}, as it should ({RIGHT_TILT})")
    later = np.abs(tilts - LATER_TILT).max() <= TILT_TOLERANCE
    cause = "a MuJoCo with other box contacts" if later else "changed assets or another simulator"
    return Finding(
        Status.FAIL,
        f"{message}, not {RIGHT_TILT}: {cause}",
        "install the pinned simulator: pip install --no-deps mujoco==3.3.2 (then look at the checks above)",
    )


def pictures(bench: Bench) -> Finding:
    """Orientation of both cameras' images: an object is held to the upper right of each camera's axis."""
    environment = bench.environment("libero_object", 0)
    environment.reset(load_init_states(environment.task)[0])
    target = environment.task.target
    return judge_pictures(
        {view: probes.seen_at(environment, view, target, right=0.06, up=0.06) for view in ("agentview", "wrist")}
    )


def judge_pictures(seen: Mapping[str, tuple[float, float]]) -> Finding:
    """Policies see the frame buffer turned by 180 degrees: up is up, and right is left."""
    wrong = []
    for view, (row, column) in seen.items():
        if row < 0.5 and column < 0.5:
            continue
        how = {
            (True, True): "not turned (upside down)",
            (False, True): "flipped top to bottom only (not mirrored)",
            (True, False): "flipped left to right only (upside down)",
        }[row >= 0.5, column >= 0.5]
        wrong.append(f"{view} is {how}")
    if wrong:
        advice = "turn every image by 180 degrees (image[::-1, ::-1]); check the OpenGL driver if the code is untouched"
        return Finding(Status.FAIL, "; ".join(wrong), advice)
    return Finding(Status.OK, f"{' and '.join(seen)} are turned by 180 degrees")


def prompts(bench: Bench) -> Finding:
    """Instructions of the four suites: ten each, without what LIBERO-Plus appends to its file names."""
    return judge_prompts({suite: [task.language for task in list_tasks(suite)] for suite in PUBLISHED_SUITES})


def judge_prompts(languages: Mapping[str, Sequence[str]]) -> Finding:
    """Ten instructions per suite, none with a suffix of LIBERO-Plus."""
    short = [f"{suite} has {len(found)} tasks" for suite, found in languages.items() if len(found) != 10]
    suffixed = [language for found in languages.values() for language in found if SUFFIX.search(f" {language} ")]
    if not short and not suffixed:
        return Finding(Status.OK, f"{sum(map(len, languages.values()))} instructions, none with a suffix")
    message = "; ".join(short + [f"{len(suffixed)} instruction(s) carry a suffix: {_some(suffixed)}"] * bool(suffixed))
    return Finding(
        Status.FAIL,
        message,
        "this is not LIBERO's own package (LIBERO-Plus's fork?): pip install --no-deps -r requirements-sim.txt",
    )


def robot(bench: Bench) -> Finding:
    """The drift of an arm that was built in a perturbed pose and put into a stored state, as in LIBERO-Plus."""
    environment = bench.environment("libero_object", 0)
    return judge_drift(*probes.arm_drift(environment, load_init_states(environment.task)[0]))


def judge_drift(usual: float, perturbed: float) -> Finding:
    """The usual start stays where it is; the perturbed one drifts as far as in LIBERO-Plus."""
    message = (
        f"in the waiting steps the hand moves {1000 * usual:.0f} mm, and {1000 * perturbed:.0f} mm elsewhere when the "
        "robot was built in another posture"
    )
    if usual < STILL and abs(perturbed - RIGHT_DRIFT) < DRIFT_TOLERANCE:
        return Finding(Status.OK, f"{message}, as in LIBERO-Plus")
    return Finding(
        Status.FAIL,
        f"{message}, not under {1000 * STILL:.0f} and {1000 * RIGHT_DRIFT:.0f}",
        "the controller behaves differently: install robosuite==1.4.0 unchanged; robot perturbations do not compare",
    )


def renderer(bench: Bench) -> Finding:
    """Which device draws, and how fast."""
    backend, device = choose_gl(), probes.gl_renderer()
    environment = bench.environment("libero_object", 0)
    speed = probes.frames_per_second(environment)
    return judge_renderer(backend, device, speed, environment.image_size, gpu=Path("/dev/nvidiactl").exists())


def judge_renderer(backend: str, device: str, frames: float, size: int, *, gpu: bool) -> Finding:
    """A GPU that stands idle and a slow renderer are noted."""
    software = any(name in device.lower() for name in SOFTWARE)
    message = (
        f"MUJOCO_GL={backend}, {device} ({'software' if software else 'hardware'}): {frames:.0f} images of "
        f"{size} x {size} a second, {frames * size * size / 1e6:.2f} million pixels"
    )
    if software and gpu:
        return Finding(Status.WARN, message, "there is an NVIDIA GPU: set MUJOCO_GL=egl and install its EGL library")
    if frames < SLOW_FRAMES:
        return Finding(Status.WARN, message, "expect long evaluations: use a GPU, more cores or fewer simulators")
    return Finding(Status.OK, message)


def expert(bench: Bench) -> Finding:
    """The scripted expert on one task of each suite that can be built, then its actions once more."""
    suites = ("libero_object",) if bench.assets.kind == "standins" else ("libero_object", "libero_spatial")
    found = {}
    for suite in suites:
        environment = bench.environment(suite, 0 if suite == "libero_object" else 5)
        task = environment.task
        found[f"{suite} task {task.index}"] = probes.play_back(environment, task, 0)
    return judge_playback(found)


def judge_playback(found: Mapping[str, probes.Playback]) -> Finding:
    """The expert succeeds, and its actions lead to the same end again, bit by bit."""
    failed = [f"the expert fails on {name}" for name, playback in found.items() if not playback.solved]
    solved = {name: playback for name, playback in found.items() if playback.solved}
    failed += [f"its actions fail on {name} when repeated" for name, p in solved.items() if not p.repeated]
    failed += [
        f"repeated actions end elsewhere on {name}" for name, p in solved.items() if p.repeated and not p.same_end
    ]
    if failed:
        return Finding(
            Status.FAIL,
            "; ".join(failed),
            "the physics is not LIBERO's: look at packages, assets and settle; results from here do not compare",
        )
    steps = ", ".join(f"{name} in {playback.steps} steps" for name, playback in found.items())
    return Finding(Status.OK, f"solved {steps}; repeated actions end in the same state")


def ray(bench: Bench) -> Finding:
    """Whether Ray starts on this machine and runs a function in another process."""
    start = time.perf_counter()
    with local_cluster(1) as cluster:
        # A function without a module of its own travels whole: the other process need not import this one.
        process = cluster.get(cluster.remote(lambda: os.getpid()).remote(), timeout=60)
    if process == os.getpid():
        raise EvaluationError("Ray ran a function in this process instead of another")
    return Finding(Status.OK, f"started and ran a function in {time.perf_counter() - start:.1f} s")


def files(bench: Bench) -> Finding:
    """Whether results and caches can be written, and how much room there is."""
    return judge_files({folder: _writable(folder) for folder in (bench.run_dir, cache_folder())})


def judge_files(folders: Mapping[Path, int | str]) -> Finding:
    """Every folder can be written (free bytes) or says why not."""
    if bad := [f"{folder}: {value}" for folder, value in folders.items() if isinstance(value, str)]:
        advice = "give --run-dir (or XDG_CACHE_HOME, for the cache) a folder that can be written"
        return Finding(Status.FAIL, "; ".join(bad), advice)
    free = {folder: int(value) for folder, value in folders.items()}
    message = ", ".join(f"{folder} ({value / 2**30:.1f} GiB free)" for folder, value in free.items())
    if min(free.values()) < LITTLE_SPACE:
        return Finding(Status.WARN, message, "free some space: videos and caches take hundreds of megabytes")
    return Finding(Status.OK, message)


CHECKS: dict[str, Callable[[Bench], Finding]] = {
    check.__name__: check
    for check in (packages, assets, prompts, files, renderer, pictures, settle, robot, expert, ray)
}
"""Name -> check; ``eval.doctor`` describes them."""

REMEDIES = {
    "renderer": "set MUJOCO_GL to egl (GPU) or osmesa (software) and install libegl1 or libosmesa6",
    "pictures": "set MUJOCO_GL to egl (GPU) or osmesa (software) and install libegl1 or libosmesa6",
    "ray": "reinstall the pinned ray; look for a full /dev/shm, a full /tmp or a proxy that catches 127.0.0.1",
}
"""What to do about an exception, where its own words do not say; else the packages are the first suspect."""


def run_check(name: str, bench: Bench) -> Finding:
    """The finding of one check; an exception is a FAIL, in its own words."""
    try:
        return CHECKS[name](bench)
    except Exception as error:
        text = next((line for line in str(error).splitlines() if line.strip()), "")
        advice = REMEDIES.get(name, "bash launch/setup.sh installs what is pinned; the line above may say more")
        return Finding(Status.FAIL, f"{type(error).__name__}: {text}", advice)


def _writable(folder: Path) -> int | str:
    """Free bytes where ``folder`` is or would be made, or why nothing can be written there."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return str(error.strerror)
    return shutil.disk_usage(existing).free


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
