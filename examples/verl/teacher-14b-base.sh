#!/usr/bin/env bash
# Runs on: 32 x H20 96GB, 4 nodes of 8; at most 0.6 hours a step.
# Qwen/Qwen3-14B-Base becomes a teacher by DAPO: rl.sh with the sizes of arXiv 2605.11739, appendix D.2.
set -euo pipefail

export METHOD=dapo
export STUDENT=${STUDENT:-Qwen/Qwen3-14B-Base}
export TRAIN=${TRAIN:-[data/deepmath/train.parquet,data/math_12k/train.parquet]}
export VAL=${VAL:-data/aime24/test.parquet}
export OUT=${OUT:-runs/verl-teacher-14b-base}
export NODES=${NODES:-4} GPUS=${GPUS:-8} STUDENT_TP=${STUDENT_TP:-1}

exec "$(dirname "$0")/rl.sh" "$@"
