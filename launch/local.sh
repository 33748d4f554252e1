#!/usr/bin/env bash
# Several processes on this machine, as on several hosts: for trying a multi-host run, or one process per GPU.
#
#   bash launch/local.sh --processes 2 [--devices 4] [--port 9911] [--dry-run] -- --config=configs/X.py --workdir=DIR
#
#   --processes   how many
#   --devices     virtual CPU devices of each (without it: the machine's own devices)
# SIGTERM or Ctrl-C is passed on: all processes save and leave with status 75.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

PORT=9911
DEVICES=""
PROCESSES=""
launch::parse processes! devices port -- "$@"
[[ "$PROCESSES" =~ ^[1-9][0-9]*$ ]] || launch::fail "--processes is a number, got '$PROCESSES'"

pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT

for ((i = 0; i < PROCESSES; i++)); do
  variables=(JAX_COORDINATOR_ADDRESS="127.0.0.1:$PORT" JAX_NUM_PROCESSES="$PROCESSES" JAX_PROCESS_ID="$i")
  if [[ -n "$DEVICES" ]]; then
    variables+=(POKEVLA_ACCELERATOR=cpu JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES")
  fi
  if ((DRY_RUN)); then
    launch::quote env "${variables[@]}" bash launch/train.sh "${TRAIN[@]}"
  else
    env "${variables[@]}" bash launch/train.sh "${TRAIN[@]}" &
    pids+=($!)
  fi
done

status=0
for pid in "${pids[@]}"; do
  result=0
  launch::wait "$pid" || result=$?
  ((result > status)) && status=$result
done
exit "$status"
