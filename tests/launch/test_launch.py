"""The launchers: what they would run, that a shell and a cluster can read it, and how the training command restarts."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.launch import scripts
from tests.launch.scripts import ROOT
from tests.launch.scripts import launch
from tests.launch.scripts import shellcheck

SCRIPTS = sorted(ROOT.glob("launch/**/*.sh")) + [ROOT / "tests" / "run.sh"]
SCHEMA = json.loads((Path(__file__).parent / "jobset.schema.json").read_text())
# What a shell might split, expand or take apart.
PROMPT = "--config.data.prompt_template=do {instruction} & 'go' $HOME \\ \"now\""
TRAIN = ["--config=configs/libero_object_small.py", "--workdir=gs://bucket/runs/My_Run.1", PROMPT]

LAUNCHERS = {
    "local": ["--processes", "2", "--devices", "4"],
    "tpu_vm": ["--tpu=pod", "--zone=z", "--compile-cache=gs://bucket/cache"],
    "queued_resource": [
        *("--zone", "z", "--accelerator", "v5litepod-16", "--runtime", "v2-alpha-tpuv5-lite"),
        *("--bucket", "gs://bucket", "--spot", "yes", "--watch", "yes"),
    ],
    "gke": ["--image", "i:1", "--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4", "--hosts", "4"],
    "xpk": ["--cluster", "c", "--zone", "z", "--tpu-type", "v5litepod-256", "--image", "i:1"],
    "slurm": ["--nodes", "4", "--gpus-per-node", "8", "--partition", "p"],
}


def dry_run(name, *more):
    return scripts.dry_run(name, [*LAUNCHERS[name], *more], TRAIN)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    assert shellcheck(path) == ""


def test_shellcheck_finds_something_to_say(tmp_path):
    (tmp_path / "bad.sh").write_text("#!/usr/bin/env bash\nrm -r $1/*\n")
    assert "SC2086" in shellcheck(tmp_path / "bad.sh")


def training_commands(text):
    """The arguments of every ``bash launch/train.sh`` in a text, as the innermost shell reads them."""
    found = []
    for line in text.splitlines():
        words = [line]
        # A command may be quoted within another one.
        for _ in range(3):
            position = next((i for i, word in enumerate(words) if word == "launch/train.sh"), None)
            if position is not None:
                found.append(words[position + 1 :])
                break
            nested = [word for word in words if "launch/train.sh" in word]
            if not nested:
                break
            words = shlex.split(nested[0].lstrip("# "))
    return found


@pytest.mark.parametrize("name", ["local", "tpu_vm", "queued_resource", "xpk", "slurm"])
def test_every_launcher_runs_the_same_training_command(name):
    """Also with arguments that a shell would take apart; local.sh starts it twice, the others once on every host."""
    text = dry_run(name)
    if name == "tpu_vm":
        (line,) = [line for line in text.splitlines() if line.startswith("gcloud compute tpus tpu-vm ssh")]
        # What bash itself reads of it, then what the remote shell reads.
        remote = subprocess.run(
            ["bash", "-c", f"printf '%s' {line.partition('--command ')[2]}"], capture_output=True, text=True, check=True
        ).stdout
        text = remote.split("setsid nohup ")[1].split(" >>")[0]
    commands = training_commands(text)
    assert len(commands) == (2 if name == "local" else 1)
    for command in commands:
        assert command[: len(TRAIN)] == TRAIN


@pytest.mark.parametrize("hosts", [1, 4])
def test_jobset_manifest_is_valid_and_complete(hosts):
    manifest = yaml.safe_load(dry_run("gke", f"--hosts={hosts}", "--restarts=7", "--compile-cache=gs://bucket/c"))
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["metadata"]["name"] == "my-run-1"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    container = job["template"]["spec"]["containers"][0]
    assert container["command"] + container["args"] == ["bash", "launch/train.sh", *TRAIN]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["POKEVLA_COMPILE_CACHE"] == "gs://bucket/c"
    assert "@" not in json.dumps(manifest)


@pytest.mark.parametrize("wrong", [{"maxRestart": 3}, {"maxRestarts": 0}, {"maxRestarts": "3"}])
def test_the_schema_refuses_misspelt_and_missing_restarts(wrong):
    manifest = yaml.safe_load(dry_run("gke"))
    manifest["spec"]["failurePolicy"] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)


def test_scripts_made_for_clusters_pass_shellcheck_too(tmp_path):
    text = dry_run("slurm")
    (tmp_path / "batch.sh").write_text(text)
    assert shellcheck(tmp_path / "batch.sh") == ""
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --ntasks-per-node=8" in text
    lines = dry_run("queued_resource").partition(".startup.sh:\n")[2].splitlines()
    startup = "\n".join(line.removeprefix("#   ") for line in lines if line.startswith("#   "))
    (tmp_path / "startup.sh").write_text(startup + "\n")
    assert shellcheck(tmp_path / "startup.sh") == ""
    assert "POKEVLA_COMPILE_CACHE=gs://bucket/cache" in startup


def test_restarts_are_above_zero_everywhere():
    assert "--max-restarts 100" in dry_run("xpk")
    assert "for attempt in {0..100}" in dry_run("slurm")
    for name in ("gke", "xpk"):
        refused = launch(name, *LAUNCHERS[name], "--restarts=0", "--dry-run", "--", *TRAIN)
        assert (refused.returncode, "needs at least 1" in refused.stderr) == (2, True)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_wrong_options_are_answered_in_one_sentence(name):
    scripts.assert_wrong_options_are_answered(name, LAUNCHERS[name], TRAIN, "pokevla-train")
    if name != "local":
        scripts.assert_refused(name, *LAUNCHERS[name], "--dry-run", "--", "--config=x.py", because="workdir")


def test_help_is_found_from_any_folder():
    for name in (*LAUNCHERS, "train", "evaluate", "setup"):
        result = subprocess.run(
            ["bash", f"{name}.sh", "--help"], cwd=ROOT / "launch", capture_output=True, text=True, timeout=60
        )
        assert f"bash launch/{name}.sh" in result.stdout
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("statuses", "restarts", "expected", "attempts"),
    [
        ("0", 5, 0, 1),
        ("75 1 137 0", 5, 0, 4),  # preempted, crashed, killed, done
        ("1 2 0", 5, 2, 2),  # a wrong configuration fails alike every time
        ("1 1 1 1", 2, 1, 3),
    ],
)
def test_train_sh_restarts_what_a_restart_can_help(interpreter, statuses, restarts, expected, attempts):
    result = interpreter.launch("train", *TRAIN, statuses=statuses, restarts=restarts)
    assert result.returncode == expected, result.stderr
    assert result.stderr.count("train.sh: exit status") == attempts - 1
    assert interpreter.calls == [" ".join(["-m", "pokevla_jax.cli.train", *TRAIN])] * attempts


@pytest.mark.parametrize("name", ["train", "local"])
def test_sigterm_is_passed_on_and_ends_the_restarts(interpreter, name):
    options = ["--processes=2", "--"] if name == "local" else []
    calls = 2 if name == "local" else 1
    assert interpreter.terminate(name, *options, *TRAIN, calls=calls, saved="75") == 75
    assert len(interpreter.calls) == calls


def test_the_worst_status_of_several_processes_counts_whichever_ends_first(tmp_path):
    program = tmp_path / "python"
    program.write_text('#!/usr/bin/env bash\n[[ "$JAX_PROCESS_ID" == 1 ]] && exit 2\nsleep 1\n')
    program.chmod(0o755)
    result = launch("local", "--processes=2", "--", *TRAIN, POKEVLA_PYTHON=str(program), POKEVLA_ACCELERATOR="cpu")
    assert result.returncode == 2


def test_each_xla_flag_has_its_reason_and_reaches_the_process():
    lines = (ROOT / "launch" / "env.sh").read_text().splitlines()
    flags = [i for i, line in enumerate(lines) if line.strip().startswith("--xla")]
    assert flags
    for i in flags:
        above = lines[i - 1].strip()
        assert above.startswith(("#", "--xla")), f"{lines[i]} has no reason"
    shown = {
        accelerator: subprocess.run(
            ["bash", str(ROOT / "launch" / "train.sh"), "--dry-run", *TRAIN],
            env={k: v for k, v in os.environ.items() if "XLA" not in k} | {"POKEVLA_ACCELERATOR": accelerator},
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for accelerator in ("tpu", "cuda", "cpu")
    }
    assert "LIBTPU_INIT_ARGS=--xla_tpu_enable_latency_hiding_scheduler=true" in shown["tpu"]
    assert "--xla_gpu" in shown["cuda"]
    assert "--xla_gpu" not in shown["cpu"] and "--xla_tpu" not in shown["cpu"]
    refused = launch("train", "--dry-run", *TRAIN, POKEVLA_ACCELERATOR="tpus")
    assert (refused.returncode, "it is tpu, cuda or cpu" in refused.stderr) == (2, True)


def test_xla_knows_the_flags_for_gpus():
    """XLA ends the process at a flag that it does not know."""
    script = "source launch/env.sh && exec \"$POKEVLA_PYTHON\" -c 'import jax; print(jax.device_count())'"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"POKEVLA_ACCELERATOR": "cuda", "POKEVLA_PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.strip() == "1", result.stderr


COMPILE = """
import jax
import jax.numpy as jnp
from jax.experimental import topologies
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
place = jax.sharding.SingleDeviceSharding(devices[0])
x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=place)
jax.jit(lambda x: x @ x).lower(x).compile()
"""


@pytest.mark.tpu_compiler
@pytest.mark.parametrize("more", ["", " --xla_tpu_no_such_flag=true"])
def test_the_tpu_compiler_knows_the_flags_for_tpus(more):
    """libtpu ends the process at a flag that it does not know, as the second case shows."""
    script = f'source launch/env.sh && export LIBTPU_INIT_ARGS+="{more}" && exec "$POKEVLA_PYTHON" -c \'{COMPILE}\''
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    environment |= {"POKEVLA_ACCELERATOR": "tpu", "POKEVLA_PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    environment |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    result = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode == 0) == (not more), result.stderr[-2000:]
