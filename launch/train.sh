#!/usr/bin/env bash
# The training command of one host, the same under every launcher: pokevla-train, started again until it is done.
#
#   bash launch/train.sh [--dry-run] --config=configs/X.py --workdir=DIR [--config.key=value …]
#
# Exit status of pokevla-train: 0 ends it; 2 (wrong configuration, data or folder) ends it, since a restart would fail
# alike; 75 (saved on request) and anything else is started again, unless this script itself was asked to stop. The
# restarted run continues from its newest checkpoint. Environment:
#   POKEVLA_RESTARTS   how often at most (default 100)
#   POKEVLA_PAUSE      seconds between two attempts (default 10)
#   POKEVLA_PYTHON     interpreter (default: .venv/bin/python of the project, else python3)
#   POKEVLA_ACCELERATOR, POKEVLA_COMPILE_CACHE   see env.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ "${1:-}" == --help ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "launch/train.sh"
  exit
fi
dry=0
if [[ "${1:-}" == --dry-run ]]; then
  dry=1
  shift
fi
if [[ -z "${POKEVLA_PYTHON:-}" ]]; then
  POKEVLA_PYTHON="${POKEVLA_VENV:-$PWD/.venv}/bin/python"
  [[ -x "$POKEVLA_PYTHON" ]] || POKEVLA_PYTHON=python3
fi
# shellcheck source=launch/env.sh
source launch/env.sh
command=("$POKEVLA_PYTHON" -m pokevla_jax.cli.train "$@")

if ((dry)); then
  for name in POKEVLA_ACCELERATOR LIBTPU_INIT_ARGS XLA_FLAGS JAX_COMPILATION_CACHE_DIR POKEVLA_DISTRIBUTED; do
    [[ -n "${!name:-}" ]] && printf '%s=%q ' "$name" "${!name}"
  done
  printf '%q ' "${command[@]}"
  echo
  exit
fi

stopped=0
child=
stop() {
  stopped=1
  [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true
}
trap stop TERM INT

for ((attempt = 0; ; attempt++)); do
  "${command[@]}" &
  child=$!
  status=0
  # A signal interrupts the first wait; the second one waits for the save.
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  child=
  ((status == 0 || status == 2 || stopped)) && exit "$status"
  if ((attempt >= ${POKEVLA_RESTARTS:-100})); then
    echo "train.sh: giving up after $attempt restarts (last exit status $status)" >&2
    exit "$status"
  fi
  echo "train.sh: exit status $status; restart $((attempt + 1)) of ${POKEVLA_RESTARTS:-100} in ${POKEVLA_PAUSE:-10} s" >&2
  sleep "${POKEVLA_PAUSE:-10}" &
  wait $! || true
  ((stopped)) && exit "$status"
done
