#!/usr/bin/env bash
# An evaluation on a Slurm cluster: Ray on every node of a job, the evaluator on the first one.
#
#   bash launch/ray_slurm.sh --nodes 4 [--partition P] [--cpus-per-node 32] [--gpus-per-node 8] [--time 24:00:00] \
#     [--account A] [--port 6379] [--dry-run] -- --policy DIR --suite libero_object --init-states 0-49 --run-dir /shared/DIR
#
# Policy, assets and --run-dir lie on a disk that all nodes share. Two minutes before the time limit the job is requeued
# under the same name, and goes on from the run folder. The nodes share a random token, since whoever reaches Ray's port
# runs code on them; nothing is encrypted. --dry-run prints the batch script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh
# shellcheck disable=SC2034
LAUNCHED="python -m eval run" LAUNCHED_FOLDER=run-dir LAUNCHED_EXAMPLE="--policy DIR --suite libero_object --run-dir DIR"

NODES="" PARTITION="" CPUS_PER_NODE="" GPUS_PER_NODE="" TIME="24:00:00" ACCOUNT="" PORT=6379
launch::parse nodes! partition cpus-per-node gpus-per-node time account port -- "$@"
run="$(launch::run_id)"

batch="#!/usr/bin/env bash
#SBATCH --job-name=$run
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=$TIME
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$run.%j.log
${PARTITION:+#SBATCH --partition=$PARTITION
}${CPUS_PER_NODE:+#SBATCH --cpus-per-task=$CPUS_PER_NODE
}${GPUS_PER_NODE:+#SBATCH --gpus-per-node=$GPUS_PER_NODE
}${ACCOUNT:+#SBATCH --account=$ACCOUNT
}set -uo pipefail
cd $(launch::quote "$PWD") || exit
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=\"\$PWD/.ray-token-\$SLURM_JOB_ID\" RAY_usage_stats_enabled=0
(umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \\n' >\"\$RAY_AUTH_TOKEN_PATH\")
ray=.venv/bin/ray
head=\$(scontrol show hostnames \"\$SLURM_JOB_NODELIST\" | head -n 1)
address=\$(srun --nodes=1 --ntasks=1 --nodelist=\"\$head\" hostname -I | cut -d ' ' -f 1)
srun --overlap --nodes=1 --ntasks=1 --nodelist=\"\$head\" \"\$ray\" start --block --disable-usage-stats --head \\
  --node-ip-address=\"\$address\" --port=$PORT --include-dashboard=false &
sleep 20
if ((SLURM_JOB_NUM_NODES > 1)); then
  # A node that dies takes its episodes along, not the job: without --no-kill Slurm would end all.
  srun --overlap --no-kill --nodes=\$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --exclude=\"\$head\" \\
    \"\$ray\" start --block --disable-usage-stats --address=\"\$address:$PORT\" &
fi
stopped=0
child=
trap 'stopped=1; kill -TERM \"\$child\"' TERM
RAY_ADDRESS=\"\$address:$PORT\" srun --overlap --nodes=1 --ntasks=1 --nodelist=\"\$head\" \\
  $(launch::quote bash launch/evaluate.sh "${TRAIN[@]}") &
child=\$!
while kill -0 \"\$child\" 2>/dev/null; do
  wait \"\$child\"
done
wait \"\$child\"
status=\$?
rm -f \"\$RAY_AUTH_TOKEN_PATH\"
if ((stopped)); then
  scontrol requeue \"\$SLURM_JOB_ID\"
  exit 75
fi
exit \"\$status\""

if ((DRY_RUN)); then
  echo "$batch"
else
  sbatch <<<"$batch"
fi
