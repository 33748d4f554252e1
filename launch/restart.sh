# shellcheck shell=bash
# What train.sh and evaluate.sh share: their interpreter, and a command that is started again until it is done.
source launch/common.sh

# restart::parse "$@": --help is answered, --dry-run goes into DRY_RUN and what follows into ARGUMENTS; POKEVLA_PYTHON is
# the interpreter from then on.
restart::parse() {
  [[ "${1:-}" == --help ]] && launch::help
  DRY_RUN=0
  [[ "${1:-}" == --dry-run ]] && DRY_RUN=1 && shift
  # shellcheck disable=SC2034  # both are for the script that sources this
  ARGUMENTS=("$@")
  [[ -n "${POKEVLA_PYTHON:-}" ]] && return
  POKEVLA_PYTHON="${POKEVLA_VENV:-$PWD/.venv}/bin/python"
  [[ -x "$POKEVLA_PYTHON" ]] || POKEVLA_PYTHON=python3
}

# restart::loop MOST_ERRORS COMMAND…: runs the command, again and again, and ends this script with its exit status: 0
# (done) and 2 (a restart would fail alike) at once, 1 at the MOST_ERRORS-th time (0: like any other), any other when
# POKEVLA_RESTARTS are used up. SIGTERM and SIGINT are passed on to the command and end the restarts.
restart::loop() {
  local most_errors="$1" restarts="${POKEVLA_RESTARTS:-100}" pause="${POKEVLA_PAUSE:-10}"
  local stopped=0 child="" errors=0 attempt status
  shift
  trap 'stopped=1; [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  for ((attempt = 0; ; attempt++)); do
    "$@" &
    child=$!
    status=0
    launch::wait "$child" || status=$?
    child=""
    ((status == 0 || status == 2 || stopped)) && exit "$status"
    ((status == 1 && ++errors == most_errors)) && exit 1
    if ((attempt >= restarts)); then
      echo "${0##*/}: giving up after $attempt restarts (last exit status $status)" >&2
      exit "$status"
    fi
    echo "${0##*/}: exit status $status; restart $((attempt + 1)) of $restarts in $pause s" >&2
    sleep "$pause" &
    wait $! || true
    ((stopped)) && exit "$status"
  done
}
