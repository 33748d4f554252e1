#!/usr/bin/env bash
# An evaluation on a Kubernetes cluster with KubeRay: fills in gke/rayjob.yaml and applies it.
#
#   bash launch/ray_gke.sh --image IMAGE --claim CLAIM --hosts 4 [--cpus 16] [--memory 64Gi] \
#     [--accelerator tpu-v5-lite-podslice --topology 2x4 --chips-per-host 8] [--namespace default] [--restarts 10] \
#     [--dry-run] -- --policy /shared/runs/soup --suite all --benchmark libero --assets /shared/libero_assets \
#     --run-dir /shared/runs/eval/soup
#
#   --image    built from gke/evaluate.Dockerfile
#   --claim    a volume that all pods mount at /shared (ReadWriteMany): policy, assets, results
#   --hosts    pods that simulate; hosts of one slice each with --accelerator, whose topology must be one host
# KubeRay 1.5.1 or newer starts Ray with a random token. A new cluster continues the run folder when one fails.
# --dry-run prints the manifest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh
# shellcheck disable=SC2034
LAUNCHED="python -m eval run" LAUNCHED_FOLDER=run-dir LAUNCHED_EXAMPLE="--policy DIR --suite libero_object --run-dir DIR"

# They are filled in by their names below.
# shellcheck disable=SC2034
IMAGE="" CLAIM="" HOSTS="" CPUS=16 MEMORY=64Gi ACCELERATOR="" TOPOLOGY="" CHIPS_PER_HOST=4 NAMESPACE=default RESTARTS=10
launch::parse image! claim! hosts! cpus memory accelerator topology chips-per-host namespace restarts -- "$@"
NAME="$(launch::run_id)"
[[ "$(launch::folder)" == /shared/* ]] || launch::fail "give --run-dir=/shared/…: nothing else outlives the pods"
((RESTARTS > 0)) || launch::fail "--restarts is $RESTARTS; an evaluation that is to survive a lost head needs at least 1"
# shellcheck disable=SC2034
RAY_VERSION="$(sed -n 's/^ray==//p' requirements.txt)"
NODE_SELECTOR="{}" CHIPS=""
if [[ -n "$ACCELERATOR" ]]; then
  [[ -n "$TOPOLOGY" ]] || launch::fail "--topology is missing beside --accelerator"
  # shellcheck disable=SC2034
  NODE_SELECTOR="{cloud.google.com/gke-tpu-accelerator: \"$ACCELERATOR\", cloud.google.com/gke-tpu-topology: \"$TOPOLOGY\"}"
  # shellcheck disable=SC2034
  CHIPS=", google.com/tpu: $CHIPS_PER_HOST"
fi
# KubeRay gives the text to a shell; JSON's string is one of YAML's.
# shellcheck disable=SC2034
ENTRYPOINT="$("${POKEVLA_PYTHON:-python3}" -c 'import json, sys; print(json.dumps(sys.argv[1]))' \
  "$(launch::quote bash launch/evaluate.sh "${TRAIN[@]}")")"

launch::apply launch/gke/rayjob.yaml \
  NAME NAMESPACE IMAGE CLAIM HOSTS CPUS MEMORY NODE_SELECTOR CHIPS RAY_VERSION RESTARTS ENTRYPOINT
((DRY_RUN)) || echo "logs: kubectl logs -n $NAMESPACE -f -l job-name=$NAME"
