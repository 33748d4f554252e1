#!/usr/bin/env bash
# A run on a Slurm cluster: one process per node, or per GPU; started again when one of them dies.
#
#   bash launch/slurm.sh --nodes 4 [--partition P] [--gpus-per-node 8] [--time 24:00:00] [--account A] [--dry-run] \
#     -- --config=configs/X.py --workdir=/shared/runs/NAME
#
# Slurm sends SIGTERM two minutes before the time limit: the run saves, leaves with status 75, and the job is requeued
# under the same name, which continues it. --dry-run prints the batch script.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

NODES="" PARTITION="" GPUS_PER_NODE="" TIME="24:00:00" ACCOUNT=""
launch::parse nodes! partition gpus-per-node time account -- "$@"
run="$(launch::run_id)"
accelerator=cpu
[[ -n "$GPUS_PER_NODE" ]] && accelerator=cuda

batch="#!/usr/bin/env bash
#SBATCH --job-name=$run
#SBATCH --nodes=$NODES
#SBATCH --ntasks-per-node=${GPUS_PER_NODE:-1}
#SBATCH --exclusive
#SBATCH --time=$TIME
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$run.%j.log
${PARTITION:+#SBATCH --partition=$PARTITION
}${GPUS_PER_NODE:+#SBATCH --gpus-per-node=$GPUS_PER_NODE
}${ACCOUNT:+#SBATCH --account=$ACCOUNT
}set -uo pipefail
cd $(launch::quote "$PWD") || exit
# JAX finds the other tasks of the step by Slurm's own variables. When one task dies Slurm ends the others, and the loop
# starts all of them again.
export POKEVLA_ACCELERATOR=$accelerator POKEVLA_RESTARTS=0
stopped=0
child=
trap 'stopped=1; kill -TERM \"\$child\"' TERM
for attempt in {0..100}; do
  srun --kill-on-bad-exit=1 --label bash launch/train.sh $(launch::quote "${TRAIN[@]}") &
  child=\$!
  while kill -0 \"\$child\" 2>/dev/null; do
    wait \"\$child\"
  done
  wait \"\$child\"
  status=\$?
  if ((stopped)); then
    scontrol requeue \"\$SLURM_JOB_ID\"
    exit 75
  fi
  ((status == 0 || status == 2)) && exit \"\$status\"
  echo \"exit status \$status; restart \$((attempt + 1))\"
  sleep 10
done
exit \"\$status\""

if ((DRY_RUN)); then
  echo "$batch"
else
  sbatch <<<"$batch"
fi
