# shellcheck shell=bash
# What the launchers share: help, options before `--`, the arguments of the launched command after it, dry runs.
# A script that launches something else than training sets these after it has sourced this file.
LAUNCHED="pokevla-train" LAUNCHED_FOLDER=workdir LAUNCHED_EXAMPLE="--config=configs/X.py --workdir=DIR"

launch::fail() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# Prints the help at the top of the script that was called, which lies beside this file, and ends it.
launch::help() {
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]%/*}/${0##*/}"
  exit
}

# launch::parse NAME… -- "$@": reads --name VALUE or --name=VALUE into upper-case variables of those names (dashes become
# underscores), --dry-run into DRY_RUN and what follows `--` into TRAIN. A name with a trailing ! must be given.
launch::parse() {
  local names=() required=() option value name found
  while [[ "$1" != -- ]]; do
    names+=("${1%!}")
    [[ "$1" == *! ]] && required+=("${1%!}")
    shift
  done
  shift
  DRY_RUN=0
  TRAIN=()
  while (($#)); do
    case "$1" in
      --) shift && TRAIN=("$@") && break ;;
      --help) launch::help ;;
      --dry-run) DRY_RUN=1 && shift && continue ;;
      --*) ;;
      *) launch::fail "unexpected '$1'; options come first, then -- and the arguments of $LAUNCHED (see --help)" ;;
    esac
    option="${1%%=*}"
    if [[ "$1" == *=* ]]; then
      value="${1#*=}"
      shift
    else
      (($# > 1)) || launch::fail "$option needs a value"
      value="$2"
      shift 2
    fi
    found=0
    for name in "${names[@]}"; do
      if [[ "$option" == "--$name" ]]; then
        name="${name^^}"
        printf -v "${name//-/_}" '%s' "$value"
        found=1
      fi
    done
    ((found)) || launch::fail "unknown option $option; known: ${names[*]/#/--} --dry-run"
  done
  for name in "${required[@]}"; do
    option="${name^^}"
    option="${option//-/_}"
    [[ -n "${!option:-}" ]] || launch::fail "--$name is missing (see --help)"
  done
  ((${#TRAIN[@]})) || launch::fail "the arguments of $LAUNCHED are missing: … -- $LAUNCHED_EXAMPLE"
}

# The value of the launched command's option for its folder; nothing where it has none.
launch::folder() {
  local argument folder=""
  for ((i = 0; i < ${#TRAIN[@]}; i++)); do
    argument="${TRAIN[i]}"
    [[ "$argument" == "--$LAUNCHED_FOLDER="* ]] && folder="${argument#*=}"
    [[ "$argument" == "--$LAUNCHED_FOLDER" ]] && folder="${TRAIN[i + 1]:-}"
  done
  echo "$folder"
}

# The run's id: the last part of its folder, which a restart keeps; as cloud resources want their names.
launch::run_id() {
  local workdir
  workdir="$(launch::folder)"
  [[ -n "$workdir" ]] || launch::fail "--$LAUNCHED_FOLDER is missing among the arguments of $LAUNCHED"
  workdir="${workdir%/}"
  workdir="${workdir##*/}"
  workdir="$(tr '[:upper:]_.' '[:lower:]--' <<<"$workdir" | tr -cd 'a-z0-9-')"
  [[ "$workdir" =~ ^[a-z] ]] || workdir="run-$workdir"
  echo "${workdir:0:40}"
}

# The workdir must be visible to every host.
launch::require_bucket() {
  [[ " ${TRAIN[*]} " == *" --workdir=gs://"* || " ${TRAIN[*]} " == *" --workdir gs://"* ]] ||
    launch::fail "the hosts share no disk: give --workdir=gs://BUCKET/runs/NAME"
}

# Arguments as one line that a shell reads back the same.
launch::quote() {
  local text
  printf -v text '%q ' "$@"
  echo "${text% }"
}

# Runs a command, or prints it.
launch::run() {
  if ((DRY_RUN)); then
    launch::quote "$@"
  else
    "$@"
  fi
}

# launch::apply FILE NAME…: gives a Kubernetes cluster the manifest in FILE, with @NAME@ replaced by the value of each
# variable NAME, or prints it.
launch::apply() {
  local manifest name
  manifest="$(<"$1")"
  for name in "${@:2}"; do
    manifest="${manifest//@$name@/"${!name}"}"
  done
  if ((DRY_RUN)); then
    echo "$manifest"
  else
    kubectl apply -f - <<<"$manifest"
  fi
}

# The exit status of a process that this script has started. A signal interrupts `wait`, which then says nothing of the
# process; one that has ended keeps its status for the last line.
launch::wait() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1" || true
  done
  wait "$1"
}
