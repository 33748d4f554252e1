"""Launchers run as a user would, what they print, and a stand-in for the interpreter that they start."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PYTHON = """#!/usr/bin/env bash
# In place of Python: notes its arguments, and leaves with the next status of a list.
[[ -z "${FAKE_SAVED:-}" ]] || trap 'exit "$FAKE_SAVED"' TERM
echo "$@" >>"$FAKE_LOG"
if [[ -n "${FAKE_WAIT:-}" ]]; then
  for ((i = 0; i < 300; i++)); do sleep 0.1; done
fi
number=$(wc -l <"$FAKE_LOG")
set -- $FAKE_STATUS
exit "${!number}"
"""


def launch(name, *arguments, **environment):
    """What a launcher answers."""
    return subprocess.run(
        ["bash", str(ROOT / "launch" / f"{name}.sh"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "POKEVLA_PYTHON": sys.executable, **environment},
    )


def dry_run(name, options, command):
    """What a launcher would run, or give to a cluster."""
    result = launch(name, *options, "--dry-run", "--", *command)
    assert result.returncode == 0, result.stderr
    return result.stdout


def shellcheck(path):
    """What shellcheck has to say about a script."""
    program = Path(sys.executable).parent / "shellcheck"
    found = subprocess.run([str(program), "-x", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return found.stdout + found.stderr


def assert_refused(name, *arguments, because):
    """A wrong command line is answered in one sentence."""
    result = launch(name, *arguments)
    assert result.returncode == 2, (arguments, result.stdout)
    assert because in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def assert_wrong_options_are_answered(name, options, command, launched):
    """``options`` are right, and ``command`` are the right arguments of what is ``launched``."""
    assert_refused(name, "--nonsense=1", "--", *command, because="unknown option --nonsense")
    assert_refused(name, because="is missing")
    assert_refused(name, *options, "--dry-run", because=f"arguments of {launched} are missing")
    assert "bash launch/" in launch(name, "--help").stdout


class Interpreter:
    """``POKEVLA_PYTHON`` of a launcher, whose exit statuses are given and whose calls are noted."""

    def __init__(self, folder):
        program = folder / "python"
        program.write_text(PYTHON)
        program.chmod(0o755)
        self.log = folder / "log"
        self.environment = {"POKEVLA_PYTHON": str(program), "FAKE_LOG": str(self.log), "POKEVLA_PAUSE": "0"}
        self.environment |= {"POKEVLA_ACCELERATOR": "cpu"}

    @property
    def calls(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def launch(self, name, *arguments, statuses, restarts):
        """A launcher's end after these exit statuses."""
        more = {"FAKE_STATUS": statuses, "POKEVLA_RESTARTS": str(restarts)}
        return launch(name, *arguments, **self.environment, **more)

    def terminate(self, name, *arguments, calls=1, saved=""):
        """A launcher's exit status after SIGTERM, sent when its processes run; they answer with status ``saved``."""
        process = subprocess.Popen(
            ["bash", str(ROOT / "launch" / f"{name}.sh"), *arguments],
            env={**os.environ, **self.environment, "FAKE_WAIT": "1", "FAKE_STATUS": "1", "FAKE_SAVED": saved},
        )
        deadline = time.monotonic() + 60
        while len(self.calls) < calls and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)
