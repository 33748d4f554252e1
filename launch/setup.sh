#!/usr/bin/env bash
# Sets this machine up: a virtual environment with everything pinned, and the system's OpenGL libraries.
#
#   bash launch/setup.sh        or, in another script:  source launch/setup.sh   (then use "$VENV/bin/python")
#
# Run again it does nothing, and needs no network, until a requirement changes.
#   POKEVLA_VENV         folder of the virtual environment      (default: .venv in the project's root)
#   POKEVLA_PYTHON       interpreter to build it with           (default: the first of python3.11 .. python3.13)
#   POKEVLA_PLAN         1: also the TPU compiler that pokevla-plan and its tests need (200 MB; Linux on x86-64)
#   POKEVLA_ACCELERATOR  tpu or cuda: JAX's plugin for it too   (default: the CPU alone)
#   POKEVLA_TORCH_INDEX  where torch's CPU build is looked for when pip's own index lacks it (a mirror's address)
# It sets VENV, and LIBERO_ASSETS where the variable is unset and a shared asset folder stands beside the project.
set -euo pipefail

if [[ "${BASH_SOURCE[0]}" == "$0" && "${1:-}" == --help ]]; then
  # shellcheck source=launch/common.sh
  source "$(dirname "$0")/common.sh"
  launch::help
fi
PROJECT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${POKEVLA_VENV:-$PROJECT/.venv}"
if [[ -z "${LIBERO_ASSETS+set}" && -d "$PROJECT/../shared/data/libero_assets" ]]; then
  LIBERO_ASSETS="$(cd "$PROJECT/../shared/data/libero_assets" && pwd)"
  export LIBERO_ASSETS
fi

setup::say() { echo "setup: $*" >&2; }

setup::fail() {
  setup::say "$*"
  exit 1
}

# Runs a command with its output in the log, of which the end is shown if it fails.
setup::quietly() {
  "$@" </dev/null >>"$VENV/setup.log" 2>&1 && return
  tail -n 20 "$VENV/setup.log" >&2
  setup::fail "'$*' failed; the end of $VENV/setup.log stands above"
}

# Installs Debian packages where that is possible, and otherwise says in one sentence what to install.
setup::debian() {
  local reason="$1"
  shift
  if [[ "$(id -u)" != 0 ]] || ! command -v apt-get >/dev/null; then
    setup::fail "$reason; install it (Debian: sudo apt-get install -y $*) and run this again"
  fi
  setup::say "installing $*"
  export DEBIAN_FRONTEND=noninteractive
  setup::quietly apt-get update -qq
  setup::quietly apt-get install -y -qq --no-install-recommends "$@"
}

# MuJoCo renders through EGL (with a GPU's driver) or OSMesa (without); neither comes with pip.
setup::libraries() {
  [[ "$(uname -s)" == Linux ]] || return 0
  local known
  known="$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)"
  [[ "$known" == *libOSMesa.so* && "$known" == *libEGL.so.1* && "$known" == *libGLESv2.so.2* ]] && return
  setup::debian "the OpenGL library to render with is missing" libosmesa6 libegl1 libgles2 libgl1-mesa-dri
}

setup::python() {
  local candidate
  for candidate in ${POKEVLA_PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  setup::fail "no Python 3.11 to 3.13 found; install one (Debian: apt-get install python3), or name it in POKEVLA_PYTHON"
}

setup::venv() {
  [[ -x "$VENV/bin/pip" ]] && return
  local python
  python="$(setup::python)"
  # Debian's Python comes without what makes a virtual environment.
  "$python" -c 'import ensurepip' 2>/dev/null ||
    setup::debian "Python's ensurepip is missing" "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
  setup::say "creating $VENV with $("$python" --version)"
  setup::quietly "$python" -m venv "$VENV"
}

# The CPU build by its full version, so that pip cannot choose the CUDA one and its gigabytes.
setup::torch() {
  local torch pip=("$VENV/bin/pip" install -c "$PROJECT/constraints.txt" -c "$PROJECT/requirements.txt")
  torch="$(grep '^torch==' "$PROJECT/requirements.txt")"
  if [[ "$(uname -s)" != Linux ]] || "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    return
  fi
  "${pip[@]}" "$torch+cpu" </dev/null >>"$VENV/setup.log" 2>&1 && return
  setup::quietly "${pip[@]}" "$torch+cpu" --extra-index-url "${POKEVLA_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
}

setup::packages() {
  local stamp="$VENV/pokevla-setup.sha256" wanted start=$SECONDS
  # The commands that are installed follow from setup.py and from the files of cli/.
  wanted="$(cd "$PROJECT" && { echo "$PROJECT" "${POKEVLA_ACCELERATOR:-}" pokevla_jax/cli/*.py && cat setup.py constraints.txt requirements*.txt; } |
    "$VENV/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
  [[ -f "$stamp" && "$(<"$stamp")" == "$wanted" ]] && return
  setup::say "installing packages into $VENV (some minutes the first time; log: $VENV/setup.log)"
  local pip=("$VENV/bin/pip" install --disable-pip-version-check --progress-bar off -c "$PROJECT/constraints.txt")
  setup::torch
  setup::quietly "${pip[@]}" -r "$PROJECT/requirements.txt" -r "$PROJECT/requirements-dev.txt"
  setup::quietly "${pip[@]}" --no-deps -r "$PROJECT/requirements-sim.txt" -r "$PROJECT/requirements-clients.txt"
  case "${POKEVLA_ACCELERATOR:-cpu}" in
    cpu) ;;
    tpu) setup::quietly "${pip[@]}" "jax[tpu]==$(sed -n 's/^jax==//p' "$PROJECT/requirements.txt")" ;;
    cuda) setup::quietly "${pip[@]}" "jax[cuda12]==$(sed -n 's/^jax==//p' "$PROJECT/requirements.txt")" ;;
    *) setup::fail "POKEVLA_ACCELERATOR is '$POKEVLA_ACCELERATOR'; it is tpu, cuda or cpu" ;;
  esac
  setup::quietly "${pip[@]}" --no-deps --no-build-isolation -e "$PROJECT"
  echo "$wanted" >"$stamp"
  setup::say "packages are in after $((SECONDS - start)) s"
}

# Not part of the packages: few machines need it, and beside a GPU or on a laptop JAX would look for a TPU with it.
setup::plan() {
  [[ -z "${POKEVLA_PLAN:-}" ]] && return
  local wanted
  wanted="$(sed -n 's/^libtpu==//p' "$PROJECT/requirements-plan.txt")"
  "$VENV/bin/python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("libtpu") != sys.argv[1])' "$wanted" \
    2>/dev/null && return
  setup::say "installing the TPU compiler"
  setup::quietly "$VENV/bin/pip" install --disable-pip-version-check --progress-bar off \
    -c "$PROJECT/constraints.txt" -r "$PROJECT/requirements-plan.txt"
}

mkdir -p "$VENV" 2>/dev/null || setup::fail "cannot write $VENV; name another folder in POKEVLA_VENV"
setup::venv
setup::libraries
setup::packages
setup::plan
