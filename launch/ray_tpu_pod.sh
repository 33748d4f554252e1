#!/usr/bin/env bash
# An evaluation on the hosts of a TPU pod slice that exists: Ray on all of them, the evaluator on the first one.
#
#   bash launch/ray_tpu_pod.sh --tpu NAME --zone ZONE [--project P] [--fetch gs://BUCKET/FOLDER] [--port 6379] [--dry-run] \
#     -- --policy runs/soup --suite libero_object --init-states 0-49 --assets libero_assets --run-dir runs/eval/soup
#
#   --fetch   its contents are copied into the project's folder of every host: the policy, LIBERO's assets
# The evaluator outlives this terminal; its log lies on the first host in ~/pokevla/RUN.log, its results in --run-dir
# there. Hosts that die lose nothing but their running episodes; run this again after a preemption of the slice.
#
# Ray has no password of its own: whoever reaches its port runs code on the hosts. So they share a random token, and the
# port must still be closed to other networks, because nothing is encrypted. Each policy process takes one chip of its own
# host and treats it as the only one (TPU_VISIBLE_CHIPS and bounds of 1,1,1, set by Ray). Without a pod slice that could not
# be tried: see docs/evaluation.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh
# shellcheck disable=SC2034
LAUNCHED="python -m eval run" LAUNCHED_FOLDER=run-dir LAUNCHED_EXAMPLE="--policy DIR --suite libero_object --run-dir DIR"

TPU="" ZONE="" PROJECT="" FETCH="" PORT=6379
launch::parse tpu! zone! project fetch port -- "$@"
run="$(launch::run_id)"
where=(--zone "$ZONE")
[[ -n "$PROJECT" ]] && where+=(--project "$PROJECT")
ssh=(gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}")

archive="${TMPDIR:-/tmp}/pokevla-$run.tar.gz" token="${TMPDIR:-/tmp}/pokevla-$run.token"
describe=(gcloud compute tpus tpu-vm describe "$TPU" "${where[@]}" "--format=value(networkEndpoints[0].ipAddress)")
if ((DRY_RUN)); then
  launch::quote "${describe[@]}"
  head=HEAD_IP
else
  head="$("${describe[@]}")"
  (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token")
fi

# The committed state, so that every host runs the same and it can be named afterwards.
launch::run git archive --format=tar.gz --output="$archive" HEAD
launch::run gcloud compute tpus tpu-vm scp "$archive" "$TPU:pokevla.tar.gz" "${where[@]}" --worker=all
launch::run gcloud compute tpus tpu-vm scp "$token" "$TPU:pokevla.token" "${where[@]}" --worker=all
((DRY_RUN)) || rm -f "$token"
fetch=""
[[ -n "$FETCH" ]] && fetch="gcloud storage cp -r $(launch::quote "${FETCH%/}")/'*' . &&"
launch::run "${ssh[@]}" --worker=all --command "chmod 600 pokevla.token && mkdir -p pokevla &&
  tar -xzf pokevla.tar.gz -C pokevla && cd pokevla && $fetch POKEVLA_ACCELERATOR=tpu bash launch/setup.sh"

# What an earlier evaluation left ends first; the others come when the head is there.
variables="RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=\$HOME/pokevla.token RAY_usage_stats_enabled=0"
ray="cd pokevla && { [ ! -f evaluate.pid ] || kill -TERM \$(cat evaluate.pid) || true; } 2>/dev/null;
  .venv/bin/ray stop --force >/dev/null; env $variables .venv/bin/ray start --disable-usage-stats"
launch::run "${ssh[@]}" --worker=0 --command \
  "$ray --head --node-ip-address=$head --port=$PORT --include-dashboard=false"
launch::run "${ssh[@]}" --worker=all --command \
  "case \" \$(hostname -I) \" in *\" $head \"*) ;; *) $ray --address=$head:$PORT ;; esac"
evaluate="$(launch::quote bash launch/evaluate.sh "${TRAIN[@]}")"
launch::run "${ssh[@]}" --worker=0 --command \
  "cd pokevla && { setsid nohup env $variables $evaluate >>$run.log 2>&1 </dev/null & echo \$! >evaluate.pid; }"

echo "log:   ${ssh[*]} --worker=0 --command 'tail -F pokevla/$run.log'"
echo "stop:  ${ssh[*]} --worker=all --command 'pokevla/.venv/bin/ray stop --force'"
