#!/usr/bin/env bash
# A run on a TPU VM that exists: code to every worker, set-up, and the same training command on all of them.
#
#   bash launch/tpu_vm.sh --tpu NAME --zone ZONE [--project P] [--compile-cache gs://B/cache] [--dry-run] \
#     -- --config=configs/X.py --workdir=gs://BUCKET/runs/NAME
#
# The processes outlive this terminal. Their logs lie on each worker in ~/pokevla/RUN.log; each of them starts again by
# itself after a failure. To stop: the last command that this script prints.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

TPU="" ZONE="" PROJECT="" COMPILE_CACHE=""
launch::parse tpu! zone! project compile-cache -- "$@"
launch::require_bucket
run="$(launch::run_id)"
where=(--zone "$ZONE" --worker=all)
[[ -n "$PROJECT" ]] && where+=(--project "$PROJECT")

# The committed state, so that every host runs the same and it can be named afterwards.
archive="${TMPDIR:-/tmp}/pokevla-$run.tar.gz"
launch::run git archive --format=tar.gz --output="$archive" HEAD
launch::run gcloud compute tpus tpu-vm scp "$archive" "$TPU:pokevla.tar.gz" "${where[@]}"

variables=(POKEVLA_ACCELERATOR=tpu POKEVLA_DISTRIBUTED=auto POKEVLA_COMPILE_CACHE="$COMPILE_CACHE")
train="$(launch::quote env "${variables[@]}" bash launch/train.sh "${TRAIN[@]}")"
remote="mkdir -p pokevla && tar -xzf pokevla.tar.gz -C pokevla && cd pokevla &&
  POKEVLA_ACCELERATOR=tpu bash launch/setup.sh &&
  while [ -f train.pid ] && kill -TERM \$(cat train.pid) 2>/dev/null; do sleep 5; done &&
  { setsid nohup $train >>$run.log 2>&1 </dev/null & echo \$! >train.pid; }"
launch::run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command "$remote"

watch="gcloud compute tpus tpu-vm ssh $TPU --zone $ZONE --worker"
echo "logs:  $watch=0 --command 'tail -F pokevla/$run.log'"
echo "stop:  $watch=all --command 'kill -TERM \$(cat pokevla/train.pid)'"
