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
source launch/restart.sh

restart::parse "$@"
command=("$POKEVLA_PYTHON" -m eval run --address "${RAY_ADDRESS:-auto}" "${ARGUMENTS[@]}")
if ((DRY_RUN)); then
  launch::quote "${command[@]}"
else
  restart::loop 3 "${command[@]}"
fi
