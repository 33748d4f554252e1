#!/usr/bin/env bash
# A run on a cluster made by xpk.
#
#   bash launch/xpk.sh --cluster C --zone ZONE --tpu-type v5litepod-256 --image IMAGE [--project P] [--slices 1] \
#     [--restarts 100] [--compile-cache gs://B/cache] [--dry-run] -- --config=configs/X.py --workdir=gs://BUCKET/runs/NAME
#
# xpk's own default is no restart at all; here it is 100. xpk sends usage data unless `xpk config set send-telemetry
# false` was run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

CLUSTER="" ZONE="" TPU_TYPE="" IMAGE="" PROJECT="" SLICES=1 RESTARTS=100 COMPILE_CACHE=""
launch::parse cluster! zone! tpu-type! image! project slices restarts compile-cache -- "$@"
launch::require_bucket
((RESTARTS > 0)) || launch::fail "--restarts is $RESTARTS; a preempted run needs at least 1"
variables=(POKEVLA_ACCELERATOR=tpu POKEVLA_DISTRIBUTED=auto POKEVLA_RESTARTS=0 POKEVLA_COMPILE_CACHE="$COMPILE_CACHE")
create=(xpk workload create --cluster "$CLUSTER" --zone "$ZONE" --workload "$(launch::run_id)"
  --tpu-type "$TPU_TYPE" --num-slices "$SLICES" --docker-image "$IMAGE" --max-restarts "$RESTARTS"
  --command "$(launch::quote env "${variables[@]}" bash launch/train.sh "${TRAIN[@]}")")
[[ -n "$PROJECT" ]] && create+=(--project "$PROJECT")
launch::run "${create[@]}"
