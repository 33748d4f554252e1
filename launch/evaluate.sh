#!/usr/bin/env bash
# The evaluation of one Ray cluster, run on one of its hosts: python -m eval run, started again until it is over.
#
#   bash launch/evaluate.sh [--dry-run] --policy DIR --suite … --run-dir DIR
#
# Exit status of the evaluator: 0 (complete) and 2 (wrong input) end it, and 1 (some episodes ended in errors) for the third
# time; after anything else it is started again and goes on from its run folder, unless this script itself was asked to
# stop. Environment:
#   RAY_ADDRESS        the cluster (default: auto, the one that this host belongs to)
#   POKEVLA_RESTARTS   how often at most (default 100)
#   POKEVLA_PAUSE      seconds between two attempts (default 10)
#   POKEVLA_PYTHON     interpreter (default: .venv/bin/python of the project, else python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ "${1:-}" == --help ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' launch/evaluate.sh
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
command=("$POKEVLA_PYTHON" -m eval run --address "${RAY_ADDRESS:-auto}" "$@")
if ((dry)); then
  printf '%q ' "${command[@]}"
  echo
  exit
fi

stopped=0
errors=0
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
  while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
  done
  child=
  ((status == 0 || status == 2 || stopped)) && exit "$status"
  ((status == 1 && ++errors == 3)) && exit 1
  if ((attempt >= ${POKEVLA_RESTARTS:-100})); then
    echo "evaluate.sh: giving up after $attempt restarts (last exit status $status)" >&2
    exit "$status"
  fi
  echo "evaluate.sh: exit status $status; restart $((attempt + 1)) of ${POKEVLA_RESTARTS:-100}" >&2
  sleep "${POKEVLA_PAUSE:-10}" &
  wait $! || true
  ((stopped)) && exit "$status"
done
