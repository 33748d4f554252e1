#!/usr/bin/env bash
# A run on a queued TPU, spot if you like: it waits for capacity, starts by itself, and after a preemption starts anew.
#
#   bash launch/queued_resource.sh --zone ZONE --accelerator v5litepod-16 --runtime v2-alpha-tpuv5-lite \
#     --bucket gs://BUCKET [--project P] [--spot yes] [--watch yes] [--dry-run] \
#     -- --config=configs/X.py --workdir=gs://BUCKET/runs/NAME
#
# The start-up script runs at every boot of every worker: it fetches the code from the bucket, sets up and trains, and the
# run continues from its newest checkpoint. A reclaimed spot slice does not boot again, so --watch yes keeps looking and
# asks for a new one until the run has written DONE beside its checkpoints; start it where it can stay.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

ZONE="" ACCELERATOR="" RUNTIME="" BUCKET="" PROJECT="" SPOT="" WATCH=""
launch::parse zone! accelerator! runtime! bucket! project spot watch -- "$@"
launch::require_bucket
run="$(launch::run_id)"
where=(--zone "$ZONE")
[[ -n "$PROJECT" ]] && where+=(--project "$PROJECT")
code="$BUCKET/code/$run.tar.gz" done_="$BUCKET/code/$run.DONE"

archive="${TMPDIR:-/tmp}/pokevla-$run.tar.gz" script="${TMPDIR:-/tmp}/pokevla-$run.startup.sh"
variables=(POKEVLA_ACCELERATOR=tpu POKEVLA_DISTRIBUTED=auto POKEVLA_COMPILE_CACHE="$BUCKET/cache")
train="$(launch::quote env "${variables[@]}" bash launch/train.sh "${TRAIN[@]}")"
cat >"$script" <<STARTUP
#!/usr/bin/env bash
# Runs as root at every boot of every worker.
set -euo pipefail
exec >>/var/log/pokevla.log 2>&1
mkdir -p /opt/pokevla && cd /opt/pokevla
gcloud storage cp $(launch::quote "$code") code.tar.gz
tar -xzf code.tar.gz
POKEVLA_ACCELERATOR=tpu bash launch/setup.sh
$train
echo finished | gcloud storage cp - $(launch::quote "$done_")
STARTUP

create=(gcloud compute tpus queued-resources create "$run" --node-id "$run" "${where[@]}"
  --accelerator-type "$ACCELERATOR" --runtime-version "$RUNTIME" --metadata-from-file "startup-script=$script")
[[ "$SPOT" == yes ]] && create+=(--spot)
delete=(gcloud compute tpus queued-resources delete "$run" "${where[@]}" --force --quiet)
describe=(gcloud compute tpus queued-resources describe "$run" "${where[@]}" "--format=value(state.state)")

launch::run git archive --format=tar.gz --output="$archive" HEAD
launch::run gcloud storage cp "$archive" "$code"
launch::run "${create[@]}"
if ((DRY_RUN)); then
  echo "# $script:"
  sed 's/^/#   /' "$script"
  [[ "$WATCH" == yes ]] && echo "# watching:" && launch::run "${describe[@]}" && launch::run "${delete[@]}"
  exit
fi
[[ "$WATCH" == yes ]] || exit 0

while ! gcloud storage ls "$done_" >/dev/null 2>&1; do
  state="$("${describe[@]}" 2>/dev/null || echo MISSING)"
  case "$state" in
    SUSPENDED | FAILED | MISSING)
      echo "$(date -u +%FT%TZ) $run is $state: asking again"
      [[ "$state" == MISSING ]] || "${delete[@]}"
      "${create[@]}" || echo "$(date -u +%FT%TZ) refused; trying again later"
      ;;
    *) echo "$(date -u +%FT%TZ) $run is $state" ;;
  esac
  sleep 120
done
echo "$run is done"
"${delete[@]}"
