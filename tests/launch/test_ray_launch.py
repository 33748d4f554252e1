"""The launchers of evaluations: what they would run on which host, and how the evaluator is started again."""

import copy
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
# What a shell might split, expand or take apart.
POLICY = "/shared/my runs/$HOME & 'soup' \\ \"1\""
EVALUATION = ["--policy", POLICY, "--suite", "all", "--run-dir=/shared/runs/eval/My_Run.1"]
LAUNCHERS = {
    "ray_tpu_pod": ["--tpu=pod", "--zone=z", "--fetch=gs://bucket/my folder/"],
    "ray_gke": ["--image", "i:1", "--claim", "disk", "--hosts", "3"],
    "ray_slurm": ["--nodes", "4", "--partition", "p", "--gpus-per-node", "8"],
}


def launch(name, *arguments, **environment):
    return subprocess.run(
        ["bash", str(ROOT / "launch" / f"{name}.sh"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "POKEVLA_PYTHON": sys.executable, **environment},
    )


def dry_run(name, *more):
    result = launch(name, *LAUNCHERS[name], *more, "--dry-run", "--", *EVALUATION)
    assert result.returncode == 0, result.stderr
    return result.stdout


def words_of(line):
    """What bash reads of a line, or of a text that another host's shell gets."""
    script = f"printf '%s\\0' {line}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return result.stdout.split("\0")[:-1]


def evaluation_of(text):
    """The arguments of the one ``launch/evaluate.sh`` in a shell's text."""
    (line,) = [line for line in text.splitlines() if "launch/evaluate.sh" in line]
    command = line.partition("launch/evaluate.sh")[2]
    for end in (" >>", " &"):
        command = command.rpartition(end)[0] if command.rpartition(end)[0].count("--run-dir") else command
    return words_of(command)


def remote_commands(text):
    """What the hosts' shells are given: (workers, command) of every ssh."""
    found = []
    for line in text.replace("$'", "$'").split("gcloud compute tpus tpu-vm ssh ")[1:]:
        words = words_of("gcloud compute tpus tpu-vm ssh " + line.partition("\nlog:")[0].strip())
        (workers,) = [word.partition("=")[2] for word in words if word.startswith("--worker=")]
        found.append((workers, words[words.index("--command") + 1]))
    return found


def test_a_pod_slice_gets_one_head_the_others_join_and_the_first_evaluates():
    text = dry_run("ray_tpu_pod").partition("\nlog:")[0]
    commands = remote_commands(text)
    assert [workers for workers, _ in commands] == ["all", "0", "all", "0"]
    setup, head, others, evaluate = [command for _, command in commands]
    assert "gcloud storage cp -r gs://bucket/my\\ folder/'*' ." in setup
    assert "ray start" in head and "--head --node-ip-address=HEAD_IP --port=6379" in head
    assert "--address=HEAD_IP:6379" in others
    for command in (head, others, evaluate):
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/pokevla.token" in command
    assert evaluation_of(evaluate) == EVALUATION
    # The token travels as a file: a command line is seen by every user of a machine.
    assert any("scp" in line and ".token" in line for line in text.splitlines())
    # Only hosts other than the head start a second time.
    branch = others.replace("cd pokevla", "echo JOINS; exit; cd pokevla", 1)
    for addresses, joins in (("HEAD_IP 172.17.0.1 ", False), ("10.0.0.12 ", True), ("XHEAD_IP ", True)):
        script = f"hostname() {{ echo '{addresses}'; }}; {branch}"
        shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
        assert ("JOINS" in shown) == joins


@pytest.mark.parametrize("chips", [[], ["--accelerator=tpu-v5-lite-podslice", "--topology=2x4", "--chips-per-host=8"]])
def test_rayjob_manifest_is_valid_and_complete(chips):
    manifest = yaml.safe_load(dry_run("ray_gke", "--cpus=8", "--memory=32Gi", "--restarts=7", *chips))
    jsonschema.validate(manifest, SCHEMA)
    assert "@" not in json.dumps(manifest)
    assert manifest["metadata"]["name"] == "my-run-1"
    spec = manifest["spec"]
    assert spec["backoffLimit"] == 7
    assert evaluation_of(spec["entrypoint"]) == EVALUATION
    versions = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split() if "==" in line)
    assert spec["rayClusterSpec"]["rayVersion"] == versions["ray"]
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    pod = group["template"]["spec"]
    limits = {"cpu": 8, "memory": "32Gi"} | ({"google.com/tpu": 8} if chips else {})
    assert pod["containers"][0]["resources"] == {"limits": limits, "requests": limits}
    assert pod.get("nodeSelector", {}).get("cloud.google.com/gke-tpu-topology") == ("2x4" if chips else None)
    for template in (pod, spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]):
        assert template["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
        assert template["containers"][0]["volumeMounts"] == [{"name": "shared", "mountPath": "/shared"}]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "backOffLimit"], 3),
        (["spec", "backoffLimit"], 0),
        (["spec", "rayClusterSpec", "authOptions", "mode"], "disabled"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"], "3"),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "volumeMount"], []),
    ],
)
def test_the_schema_refuses_misspelt_and_dangerous_fields(path, value):
    manifest = copy.deepcopy(yaml.safe_load(dry_run("ray_gke")))
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)


def test_the_batch_script_starts_ray_on_all_nodes_and_evaluates_on_the_first(tmp_path):
    text = dry_run("ray_slurm", "--account=a", "--cpus-per-node=32")
    (tmp_path / "batch.sh").write_text(text)
    shellcheck = Path(sys.executable).parent / "shellcheck"
    found = subprocess.run([str(shellcheck), str(tmp_path / "batch.sh")], capture_output=True, text=True, timeout=60)
    assert found.stdout == ""
    for line in ("--nodes=4", "--requeue", "--gpus-per-node=8", "--cpus-per-task=32", "--account=a", "--partition=p"):
        assert f"#SBATCH {line}" in text
    assert "RAY_AUTH_MODE=token" in text and "umask 077" in text
    # Run with commands that say what they were given instead of doing it.
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, answer in (("scontrol", "printf 'n1\\nn2\\n'"), ("sleep", ":")):
        (stubs / name).write_text(f"#!/bin/sh\n{answer}\n")
    srun = "#!/usr/bin/env bash\ncase \"$*\" in *'hostname -I') echo '10.0.0.1 172.17.0.1' ;; esac\n"
    srun += 'printf "%q " "${RAY_ADDRESS:-}" "$@" >>"$CALLS"; echo >>"$CALLS"\n'
    (stubs / "srun").write_text(srun)
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    environment = {"PATH": f"{stubs}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    script = text.replace(f"cd {shlex.quote(str(ROOT))}", f"cd {tmp_path}")
    result = subprocess.run(["bash", "-c", script], env={**os.environ, **environment}, timeout=60)
    assert result.returncode == 0
    calls = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    (evaluate,) = [call for call in calls if "launch/evaluate.sh" in call]
    assert evaluate[0] == "10.0.0.1:6379"
    assert evaluate[evaluate.index("launch/evaluate.sh") + 1 :] == EVALUATION
    assert "--nodelist=n1" in evaluate
    (head,) = [call for call in calls if "--head" in call]
    assert {"--nodelist=n1", "--node-ip-address=10.0.0.1", "--port=6379"} <= set(head)
    (others,) = [call for call in calls if "--address=10.0.0.1:6379" in call]
    assert {"--exclude=n1", "--nodes=1", "--no-kill"} <= set(others)
    assert not list(tmp_path.glob(".ray-token*"))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_wrong_options_are_answered_in_one_sentence(name):
    for arguments, expected in (
        (["--nonsense=1", "--", *EVALUATION], "unknown option --nonsense"),
        ([], "is missing"),
        ([*LAUNCHERS[name], "--dry-run"], "arguments of python -m eval run are missing"),
        ([*LAUNCHERS[name], "--dry-run", "--", "--policy=x"], "--run-dir"),
    ):
        result = launch(name, *arguments)
        assert result.returncode == 2, (arguments, result.stdout)
        assert expected in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert "bash launch/" in launch(name, "--help").stdout


def test_results_in_a_pod_are_refused():
    result = launch("ray_gke", *LAUNCHERS["ray_gke"], "--dry-run", "--", "--policy=x", "--run-dir=runs/x")
    assert (result.returncode, "/shared/" in result.stderr) == (2, True)


FAKE = """#!/usr/bin/env bash
# In place of Python: notes its arguments, and leaves with the next status of a list.
echo "$@" >>"$FAKE_LOG"
if [[ -n "${FAKE_WAIT:-}" ]]; then
  for ((i = 0; i < 300; i++)); do sleep 0.1; done
fi
number=$(wc -l <"$FAKE_LOG")
set -- $FAKE_STATUS
exit "${!number}"
"""


@pytest.fixture
def fake(tmp_path):
    program = tmp_path / "python"
    program.write_text(FAKE)
    program.chmod(0o755)
    log = tmp_path / "log"
    return {"POKEVLA_PYTHON": str(program), "FAKE_LOG": str(log), "POKEVLA_PAUSE": "0"}, log


@pytest.mark.parametrize(
    ("statuses", "restarts", "expected", "attempts"),
    [
        ("0", 5, 0, 1),
        ("137 139 0", 5, 0, 3),  # killed, crashed, complete
        ("1 0", 5, 0, 2),  # episodes ended in errors, but not again
        ("1 137 1 1 0", 5, 1, 4),
        ("137 2 0", 5, 2, 2),  # a wrong command fails alike every time
        ("137 137 137 137", 2, 137, 3),
    ],
)
def test_the_evaluator_is_started_again_after_a_kill(fake, statuses, restarts, expected, attempts):
    environment, log = fake
    result = launch("evaluate", *EVALUATION, FAKE_STATUS=statuses, POKEVLA_RESTARTS=str(restarts), **environment)
    assert result.returncode == expected, result.stderr
    command = " ".join(["-m", "eval", "run", "--address", "auto", *EVALUATION])
    assert log.read_text().splitlines() == [command] * attempts


def test_a_request_to_stop_ends_the_restarts(fake):
    environment, log = fake
    process = subprocess.Popen(
        ["bash", str(ROOT / "launch" / "evaluate.sh"), *EVALUATION],
        env={**os.environ, **environment, "FAKE_WAIT": "1", "FAKE_STATUS": "1"},
    )
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert len(log.read_text().splitlines()) == 1
