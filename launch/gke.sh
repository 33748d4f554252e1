#!/usr/bin/env bash
# A run on a GKE cluster with JobSet: fills in gke/jobset.yaml and applies it.
#
#   bash launch/gke.sh --image IMAGE --accelerator tpu-v5-lite-podslice --topology 4x4 --hosts 4 [--chips-per-host 4] \
#     [--namespace default] [--restarts 100] [--compile-cache gs://B/cache] [--dry-run] \
#     -- --config=configs/X.py --workdir=gs://BUCKET/runs/NAME
#
# IMAGE is built from gke/Dockerfile. JobSet restarts all pods together when one fails; a configuration error (exit status
# 2) ends the job instead. --dry-run prints the manifest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

# They are filled in by their names below.
# shellcheck disable=SC2034
IMAGE="" ACCELERATOR="" TOPOLOGY="" HOSTS="" CHIPS_PER_HOST=4 NAMESPACE=default RESTARTS=100 COMPILE_CACHE=""
launch::parse image! accelerator! topology! hosts! chips-per-host namespace restarts compile-cache -- "$@"
launch::require_bucket
((RESTARTS > 0)) || launch::fail "--restarts is $RESTARTS; a preempted run needs at least 1"
NAME="$(launch::run_id)"
# shellcheck disable=SC2034
ARGUMENTS="$("${POKEVLA_PYTHON:-python3}" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "${TRAIN[@]}")"

launch::apply launch/gke/jobset.yaml \
  NAME NAMESPACE IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS_PER_HOST RESTARTS COMPILE_CACHE ARGUMENTS
((DRY_RUN)) ||
  echo "logs: kubectl logs -n $NAMESPACE -f -l jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
