#!/bin/bash
# Made by: python /clone/launch/submit.py --to=slurm --experiment=label --shards=3 --parallel=2 --gpus=4 input=pairs.jsonl mesh.data=-1
# To run it:
#   wave=$(sbatch --parsable --array=0-2%2 runs/label-micro-s0-080a27.job/slurm.sh)
#   sbatch --array=3%2 --dependency=afterok:${wave%;*} runs/label-micro-s0-080a27.job/slurm.sh
# scancel JOB ends it. scancel --signal=TERM JOB has it save and wait in the queue again.
#SBATCH --job-name=label-micro-s0-080a27
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/here/runs/label-micro-s0-080a27.job/slurm-%A_%a.log
#SBATCH --array=0-2%2

cd /here || exit 2
export JAX_COMPILATION_CACHE_DIR=runs/programs  # a run that comes back on other machines finds its programs

case $SLURM_ARRAY_TASK_ID in
0) run=(python /clone/launch/run.py --experiment=label input=pairs.jsonl mesh.data=-1 shard=1/3 --workdir=runs/label-micro-s0-080a27 --stages=runs/stages) ;;
1) run=(python /clone/launch/run.py --experiment=label input=pairs.jsonl mesh.data=-1 shard=2/3 --workdir=runs/label-micro-s0-080a27 --stages=runs/stages) ;;
2) run=(python /clone/launch/run.py --experiment=label input=pairs.jsonl mesh.data=-1 shard=3/3 --workdir=runs/label-micro-s0-080a27 --stages=runs/stages) ;;
3) run=(python /clone/launch/run.py --experiment=label input=pairs.jsonl mesh.data=-1 --workdir=runs/label-micro-s0-080a27 --stages=runs/stages) ;;
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
    tries=runs/label-micro-s0-080a27.job/tries-$job
    echo "$(date) status $status" >> "$tries"
    [ "$(wc -l < "$tries")" -gt 3 ] || scontrol requeue "$job"
    ;;
esac
exit $status
