#!/usr/bin/env bash
# Runs on: 40 x H20 96GB, 5 nodes of 8; at most 1.5 hours a step.
# Qwen/Qwen2.5-32B learns mathematics from its teacher: opd.sh with the sizes of arXiv 2605.11739, 32 GPUs that train and write,
# and 8 that serve the teacher. `effopd doctor MODEL --gpus` finds that it fits; docs/verl.md says how to start it.
set -euo pipefail

export STUDENT=${STUDENT:-Qwen/Qwen2.5-32B}
export TEACHER=${TEACHER:-BytedTsinghua-SIA/DAPO-Qwen-32B}
export TRAIN=${TRAIN:-data/deepmath/train.parquet}
export VAL=${VAL:-data/aime24/test.parquet}
export OUT=${OUT:-runs/verl-math-32b}
export NODES=${NODES:-4} GPUS=${GPUS:-8} STUDENT_TP=${STUDENT_TP:-2}
export TEACHER_NODES=${TEACHER_NODES:-1} TEACHER_GPUS=${TEACHER_GPUS:-8} TEACHER_TP=${TEACHER_TP:-2}

exec "$(dirname "$0")/opd.sh" "$@"
