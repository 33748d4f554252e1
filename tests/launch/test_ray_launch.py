"""The launchers of evaluations: what they would run on which host, and how the evaluator is started again."""

import copy
import json
import os
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.launch import scripts
from tests.launch.scripts import ROOT

SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
# What a shell might split, expand or take apart.
POLICY = "/shared/my runs/$HOME & 'soup' \\ \"1\""
EVALUATION = ["--policy", POLICY, "--suite", "all", "--run-dir=/shared/runs/eval/My_Run.1"]
LAUNCHERS = {
    "ray_tpu_pod": ["--tpu=pod", "--zone=z", "--fetch=gs://bucket/my folder/"],
    "ray_gke": ["--image", "i:1", "--claim", "disk", "--hosts", "3"],
    "ray_slurm": ["--nodes", "4", "--partition", "p", "--gpus-per-node", "8"],
}


def dry_run(name, *more):
    return scripts.dry_run(name, [*LAUNCHERS[name], *more], EVALUATION)


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
    for line in text.split("gcloud compute tpus tpu-vm ssh ")[1:]:
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
    assert scripts.shellcheck(tmp_path / "batch.sh") == ""
    for line in ("--nodes=4", "--requeue", "--gpus-per-node=8", "--cpus-per-task=32", "--account=a", "--partition=p"):
        assert f"#SBATCH {line}" in text
    assert "RAY_AUTH_MODE=token" in text and "umask 077" in text
    # Run with commands that say what they were given instead of doing it.
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name, answer in (("scontrol", "printf 'n1\\nn2\\n'"), ("sleep", ":")):
        (stubs / name).write_text(f"#!/bin/sh\n{answer}\n")
    srun = "#!/usr/bin/env bash\ncase \"$*\" in *'hostname -I') echo '10.0.0.1 172.17.0.1' ;; esac\n"
    # A line in one write: several of them run at the same time.
    srun += 'call=$(printf "%q " "${RAY_ADDRESS:-}" "$@"); printf "%s\\n" "$call" >>"$CALLS"\n'
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
    scripts.assert_wrong_options_are_answered(name, LAUNCHERS[name], EVALUATION, "python -m eval run")
    scripts.assert_refused(name, *LAUNCHERS[name], "--dry-run", "--", "--policy=x", because="--run-dir")


def test_results_in_a_pod_are_refused():
    command = ("--policy=x", "--run-dir=runs/x")
    scripts.assert_refused("ray_gke", *LAUNCHERS["ray_gke"], "--dry-run", "--", *command, because="/shared/")


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
def test_the_evaluator_is_started_again_after_a_kill(interpreter, statuses, restarts, expected, attempts):
    result = interpreter.launch("evaluate", *EVALUATION, statuses=statuses, restarts=restarts)
    assert result.returncode == expected, result.stderr
    assert result.stderr.count("evaluate.sh: exit status") == attempts - 1
    command = " ".join(["-m", "eval", "run", "--address", "auto", *EVALUATION])
    assert interpreter.calls == [command] * attempts


def test_a_request_to_stop_ends_the_restarts(interpreter):
    assert interpreter.terminate("evaluate", *EVALUATION) == 143
    assert len(interpreter.calls) == 1
