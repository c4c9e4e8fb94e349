#!/usr/bin/env bash
# Runs on: the CPU, in hours; a GPU computes the spectra sooner. Downloads four models of 3.6 GB.
# What reinforcement learning changed in one base, by GRPO (JustRL), PPO (BroRL) and DAPO (ProRL): figure 3b and Table 1 at 1.5B.
set -euo pipefail

BASE=${BASE:-deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B}
PRORL=nvidia/Nemotron-Research-Reasoning-Qwen-1.5B
OUT=${OUT:-runs/analysis}

# BroRL is a branch of ProRL's repository.
hf download "$PRORL" --revision brorl --local-dir models/brorl-1.5b
for pair in justrl=hbx/JustRL-DeepSeek-1.5B brorl=models/brorl-1.5b "prorl=$PRORL"; do
  effopd analyze "$BASE" "${pair#*=}" --what norms,spectra --out "$OUT-${pair%%=*}" "$@"
done
