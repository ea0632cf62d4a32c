#!/bin/bash
# Made by: python /clone/launch/submit.py --to=slurm --experiment=tldr_direct --workdir=runs/one 'policy="a b"'
# To run it:
#   sbatch runs/one.job/slurm.sh
# scancel JOB ends it. scancel --signal=TERM JOB has it save and wait in the queue again.
#SBATCH --job-name=one
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/here/runs/one.job/slurm-%j.log

cd /here || exit 2
export JAX_COMPILATION_CACHE_DIR=runs/one/programs  # a run that comes back on other machines finds its programs

run=(python /clone/launch/run.py --experiment=tldr_direct 'policy="a b"' --workdir=runs/one --stages=runs/one/stages)
job=$SLURM_JOB_ID

srun --kill-on-bad-exit=0 --wait=120 --distribution=block:block ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \
    "${run[@]}"
status=$?

case $status in
0 | 2) ;;  # done; or bad input, which another try makes no better
130) scontrol requeue "$job" ;;  # stopped and saved: it goes on from there
*)  # a machine that is gone, or an error; retries: 3
    tries=runs/one.job/tries-$job
    echo "$(date) status $status" >> "$tries"
    [ "$(wc -l < "$tries")" -gt 3 ] || scontrol requeue "$job"
    ;;
esac
exit $status
