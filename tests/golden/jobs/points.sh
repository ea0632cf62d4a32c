#!/bin/bash
# Made by: python /clone/launch/sweep.py --backend=slurm --experiment=tldr_direct 'reinforce.beta=[0.0,0.5]' '--seed=[0,1]' --workdir=runs/sweep --parallel=2
# To run it:
#   wave=$(sbatch --parsable --array=0-1%2 runs/sweep.job/slurm.sh)
#   sbatch --array=2-3%2 --dependency=afterany:${wave%;*} runs/sweep.job/slurm.sh
# Once all have ended, the table: python /clone/launch/sweep.py --experiment=tldr_direct 'reinforce.beta=[0.0,0.5]' '--seed=[0,1]' --workdir=runs/sweep
# scancel JOB ends it. scancel --signal=TERM JOB has it save and wait in the queue again.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/here/runs/sweep.job/slurm-%A_%a.log
#SBATCH --array=0-1%2

cd /here || exit 2
export JAX_COMPILATION_CACHE_DIR=runs/sweep/programs  # a run that comes back on other machines finds its programs

case $SLURM_ARRAY_TASK_ID in
0) run=(python /clone/launch/run.py --experiment=tldr_direct reinforce.beta=0.0 --seed=0 --workdir=runs/sweep/reinforce.beta=0.0,seed=0 --stages=runs/sweep/stages) ;;
1) run=(python /clone/launch/run.py --experiment=tldr_direct reinforce.beta=0.0 --seed=1 --workdir=runs/sweep/reinforce.beta=0.0,seed=1 --stages=runs/sweep/stages) ;;
2) run=(python /clone/launch/run.py --experiment=tldr_direct reinforce.beta=0.5 --seed=0 --workdir=runs/sweep/reinforce.beta=0.5,seed=0 --stages=runs/sweep/stages) ;;
3) run=(python /clone/launch/run.py --experiment=tldr_direct reinforce.beta=0.5 --seed=1 --workdir=runs/sweep/reinforce.beta=0.5,seed=1 --stages=runs/sweep/stages) ;;
*) echo "this is an array: sbatch --array=0-3" >&2; exit 2 ;;
esac
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID  # one number may name the whole array

srun --kill-on-bad-exit=0 --wait=120 --distribution=block:block ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \
    "${run[@]}"
status=$?

case $status in
0 | 2) ;;  # done; or bad input, which another try makes no better
130) scontrol requeue "$job" ;;  # stopped and saved: it goes on from there
*)  # a machine that is gone, or an error; retries: 3
    tries=runs/sweep.job/tries-$job
    echo "$(date) status $status" >> "$tries"
    [ "$(wc -l < "$tries")" -gt 3 ] || scontrol requeue "$job"
    ;;
esac
exit $status
