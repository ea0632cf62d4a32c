#!/bin/bash
# Made by: python /clone/launch/submit.py --to=slurm --experiment=tldr_rlaif --site=site.toml --nodes=2 --gpus=8 --accelerator=h100 --time=24:00:00 --set qos=high --set partition=gpu,long --set=grace=600 --set mem=500G mesh.fsdp=-1
# To run it:
#   sbatch runs/tldr_rlaif-micro-s0.job/slurm.sh
# scancel JOB ends it. scancel --signal=TERM JOB has it save and wait in the queue again.
#SBATCH --job-name=tldr_rlaif-micro-s0
#SBATCH --account=lab
#SBATCH --partition=gpu,long
#SBATCH --qos=high
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=h100:8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/here/runs/tldr_rlaif-micro-s0.job/slurm-%j.log
#SBATCH --mem=500G
#SBATCH --exclusive

cd /here || exit 2
module load cuda
export HF_HOME=/shared/hf
# Processes look for each other by name, which a proxy cannot answer. Models are best fetched beforehand.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
export JAX_COMPILATION_CACHE_DIR=/shared/programs  # a run that comes back on other machines finds its programs

run=(python /clone/launch/run.py --experiment=tldr_rlaif mesh.fsdp=-1 --workdir=runs/tldr_rlaif-micro-s0 --stages=runs/stages)
job=$SLURM_JOB_ID

# A task a GPU. They stop together, but not at the same moment: the first to end must not end one that still saves. What
# a task that failed leaves behind is ended two minutes later. The status is the highest of all.
srun --kill-on-bad-exit=0 --wait=120 --distribution=block:block ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \
    --container-image=nvcr.io/nvidia/jax:latest \
    --container-mounts=/here:/here,/shared:/shared \
    --container-workdir=/here \
    "${run[@]}"
status=$?

case $status in
0 | 2) ;;  # done; or bad input, which another try makes no better
130) scontrol requeue "$job" ;;  # stopped and saved: it goes on from there
*)  # a machine that is gone, or an error; retries: 3
    tries=runs/tldr_rlaif-micro-s0.job/tries-$job
    echo "$(date) status $status" >> "$tries"
    [ "$(wc -l < "$tries")" -gt 3 ] || scontrol requeue "$job"
    ;;
esac
exit $status
