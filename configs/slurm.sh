#!/bin/sh
# One OUT by a Slurm array: sbatch --array=0-7 slurm.sh ROWS... --output=OUT [-c FILE]
#
# Task i of N takes the parts k with k % N = i, and 1/N of the rates; the last to end writes
# _SUCCESS. A task that is preempted or runs out of time is drained and, requeued, goes on where it
# stopped: its state is in OUT, on a file system that locks (or --state-dir on a disk of the node's,
# which a requeued task must find again). To give some tasks again by themselves, with
# BATCHRANK_SHARDS=8 set: sbatch --array=3,5 …
#SBATCH --job-name=batchrank
#SBATCH --array=0-7
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
exec batchrank run "$@" --shard auto
