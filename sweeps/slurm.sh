#!/bin/bash
# A sweep on a Slurm cluster, in one of two forms.  Submit from the repository's root:
#
#   sbatch --array=0-11 sweeps/slurm.sh SWEEP.yaml               one job for each point of a grid of 12
#   sbatch --array=0-3 --export=ALL,COUNT=40 sweeps/slurm.sh SWEEP.yaml
#                                                                four workers share one sweep, 40 trials in all
#
# Words after the file go to every trial: sbatch ... sweeps/slurm.sh SWEEP.yaml --training.max_epochs=20
#
# An interrupted job can be submitted again as it was: finished trials are not repeated, others go on after their last
# complete epoch.

#SBATCH --job-name=kd-sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=04:00:00
#SBATCH --output=slurm-%A_%a.out
# Preempted or out of time: the signal comes 180 seconds before the end, to this script (B:), which passes it on.  A
# trial has 120 seconds to finish its step and write its state.
#SBATCH --signal=B:USR1@180
#SBATCH --requeue

set -u
sweep=${1:?usage: sbatch --array=0-N sweeps/slurm.sh SWEEP.yaml [arguments for every trial]}
shift

if [ -d .venv ]; then
  . .venv/bin/activate
fi

if [ -z "${COUNT:-}" ]; then
  # Array form: task N runs point N of the grid (0 is the first), and the jobs share no state.  A task beyond the grid is
  # refused with a message that gives the range.  Afterwards, a plain run on one machine
  #     python sweeps/run_local.py SWEEP.yaml
  # collects the results of the finished runs, without training, and writes the table and plots.
  python sweeps/run_local.py "$sweep" --trial "${SLURM_ARRAY_TASK_ID:?submit with --array}" -- "$@" &
else
  # Workers form, for random and bayes: all workers name the same file, on a file system that all nodes see.  Workers
  # may come and go; trials of one that died are continued by the others.
  storage=${STORAGE:-$PWD/runs/sweeps/$(basename "$sweep" .yaml)/study.journal}
  python sweeps/run_local.py "$sweep" --count "$COUNT" --storage "$storage" -- "$@" &
fi
worker=$!

# bash waits for a program in the foreground before it runs a trap: so the worker runs in the background
requeue=
trap 'requeue=yes; kill -TERM "$worker" 2>/dev/null' USR1 TERM
wait "$worker"
status=$?
while kill -0 "$worker" 2>/dev/null; do # a signal ends `wait` early
  wait "$worker"
  status=$?
done

# stopped by a signal: go on where it stopped, once there is room again
if [ -n "$requeue" ] && [ "$status" -gt 128 ]; then
  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
fi
exit "$status"
