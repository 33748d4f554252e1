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
source launch/restart.sh

restart::parse "$@"
# shellcheck source=launch/env.sh
source launch/env.sh
command=("$POKEVLA_PYTHON" -m pokevla_jax.cli.train "${ARGUMENTS[@]}")
if ((DRY_RUN)); then
  for name in POKEVLA_ACCELERATOR LIBTPU_INIT_ARGS XLA_FLAGS JAX_COMPILATION_CACHE_DIR POKEVLA_DISTRIBUTED; do
    [[ -n "${!name:-}" ]] && printf '%s=%q ' "$name" "${!name}"
  done
  launch::quote "${command[@]}"
else
  restart::loop 0 "${command[@]}"
fi
