#!/usr/bin/env bash
# The whole loop on this machine: set up, record, train, evaluate, report. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh
exec "$VENV/bin/python" launch/quickstart.py "$@"
