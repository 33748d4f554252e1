#!/usr/bin/env bash
# The test command: set-up, linter, formatter, type checker, then the fast tests.
#
#   bash tests/run.sh                   the fast tier
#   bash tests/run.sh --all             every marker
#   bash tests/run.sh -k layering -x    other arguments go to pytest
#   TEST_PROCESSES=8 bash tests/run.sh  on as many workers instead of two, 3 GiB each
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Every marker: the TPU compiler's too.
[[ " $* " == *" --all "* ]] && export POKEVLA_PLAN=1
source launch/setup.sh </dev/null
if [[ -z "${QWEN_TOKENIZER+set}" && -d ../shared/data/qwen2.5_tokenizer ]]; then
  export QWEN_TOKENIZER="$PWD/../shared/data/qwen2.5_tokenizer"
fi
if [[ -z "${LIBERO_PLUS+set}" && -f ../shared/data/libero_plus.tar.gz ]]; then
  export LIBERO_PLUS="$PWD/../shared/data/libero_plus.tar.gz"
fi
export MUJOCO_GL="${MUJOCO_GL:-osmesa}"

"$VENV/bin/ruff" check --quiet .
"$VENV/bin/ruff" format --check --quiet .
"$VENV/bin/mypy" --no-error-summary
# TensorFlow and the software renderer cannot share a process. 5: the arguments chose none of these few tests.
MUJOCO_GL=disable "$VENV/bin/python" -m pytest -q "$@" -m tensorflow </dev/null || [[ $? == 5 ]]
# The last word, and the exit status, are pytest's: 5 (nothing collected) fails like any other.
exec "$VENV/bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadgroup --durations=10 --durations-min=2 "$@" </dev/null
