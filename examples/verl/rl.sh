#!/usr/bin/env bash
# A teacher by reinforcement learning in verl 0.9.1 itself, without the search: hyper-parameters of arXiv 2605.11739, appendix D.2.
#
#   METHOD=grpo STUDENT=... TRAIN=... VAL=... examples/verl/rl.sh
#   METHOD=dapo ... examples/verl/rl.sh trainer.total_training_steps=100               # any override, last one wins
#
# Run it as opd.sh is run (docs/verl.md). The last checkpoint, merged by `python -m verl.model_merger`, is a TEACHER of opd.sh.
set -euo pipefail

PYTHON=${PYTHON:-python}
METHOD=${METHOD:-grpo}
STUDENT=${STUDENT:-Qwen/Qwen3-14B}
TRAIN=${TRAIN:-data/deepmath/train.parquet}
VAL=${VAL:-data/aime24/test.parquet}
OUT=${OUT:-runs/verl-rl}
NODES=${NODES:-4}
GPUS=${GPUS:-8}
STUDENT_TP=${STUDENT_TP:-1}                 # GPUs of one rollout server

DATA=(
  data.train_files="$TRAIN"
  data.val_files="$VAL"
  data.train_batch_size=32
  data.max_prompt_length=2048
  data.max_response_length=20480
  data.filter_overlong_prompts=True
  data.truncation=error
  data.seed=42
  +data.apply_chat_template_kwargs.enable_thinking=False
)
ACTOR=(
  actor_rollout_ref.model.path="$STUDENT"
  actor_rollout_ref.model.use_remove_padding=True
  actor_rollout_ref.model.enable_gradient_checkpointing=True
  actor_rollout_ref.actor.strategy=fsdp2
  actor_rollout_ref.actor.optim.lr=1e-6
  actor_rollout_ref.actor.optim.lr_warmup_steps=10
  actor_rollout_ref.actor.optim.clip_grad=1.0
  actor_rollout_ref.actor.ppo_mini_batch_size=32
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=22528
  actor_rollout_ref.actor.entropy_coeff=0
)
ROLLOUT=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=16
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.top_p=1.0
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6
  actor_rollout_ref.rollout.max_num_batched_tokens=22528
  actor_rollout_ref.rollout.tensor_model_parallel_size="$STUDENT_TP"
  actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True
  actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=22528
  actor_rollout_ref.ref.log_prob_use_dynamic_bsz=True
  actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=22528
)
case "$METHOD" in
  grpo)
    OBJECTIVE=(
      algorithm.adv_estimator=grpo
      actor_rollout_ref.actor.use_kl_loss=True
      actor_rollout_ref.actor.kl_loss_coef=0.001
      actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
    )
    ;;
  dapo)
    OBJECTIVE=(
      algorithm.adv_estimator=grpo
      algorithm.filter_groups.enable=True
      actor_rollout_ref.actor.use_kl_loss=False
      actor_rollout_ref.actor.clip_ratio_low=0.2
      actor_rollout_ref.actor.clip_ratio_high=0.28
      actor_rollout_ref.actor.loss_agg_mode=token-mean
      reward.reward_manager.name=dapo
      +reward.reward_kwargs.max_resp_len=20480
      +reward.reward_kwargs.overlong_buffer_cfg.enable=True
      +reward.reward_kwargs.overlong_buffer_cfg.len=4096
      +reward.reward_kwargs.overlong_buffer_cfg.penalty_factor=1.0
      +reward.reward_kwargs.overlong_buffer_cfg.log=False
    )
    ;;
  *)
    echo "METHOD must be grpo or dapo, got '$METHOD'" >&2
    exit 2
    ;;
esac
TRAINER=(
  trainer.nnodes="$NODES"
  trainer.n_gpus_per_node="$GPUS"
  trainer.total_training_steps=400
  trainer.save_freq=4
  trainer.test_freq=4
  trainer.project_name=effopd
  trainer.experiment_name="$METHOD"
  trainer.default_local_dir="$OUT"
  trainer.logger='[console]'
)

exec "$PYTHON" -m verl.trainer.main_ppo "${DATA[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${OBJECTIVE[@]}" "${TRAINER[@]}" "$@"
