#!/usr/bin/env bash
# Runs on: 40 x H20 96GB, 5 nodes of 8; at most 1.5 hours a step.
# Qwen/Qwen2.5-32B learns programming from its teacher: opd.sh with the sizes of arXiv 2605.11739, 32 GPUs that train and write,
# and 8 that serve the teacher. `effopd doctor MODEL --gpus` finds that it fits; docs/verl.md says how to start it.
set -euo pipefail

export STUDENT=${STUDENT:-Qwen/Qwen2.5-32B}
export TEACHER=${TEACHER:-models/qwen2.5-32b-rl-code}
export TRAIN=${TRAIN:-data/eurus/train.parquet}
export VAL=${VAL:-data/codeforces/test.parquet}
export OUT=${OUT:-runs/verl-code-32b}
export NODES=${NODES:-4} GPUS=${GPUS:-8} STUDENT_TP=${STUDENT_TP:-2}
export TEACHER_NODES=${TEACHER_NODES:-1} TEACHER_GPUS=${TEACHER_GPUS:-8} TEACHER_TP=${TEACHER_TP:-2}

exec "$(dirname "$0")/opd.sh" "$@"
