#!/usr/bin/env bash
# On-policy distillation with the search in verl 0.9.1, hyper-parameters of arXiv 2605.11739 (section 4.2, appendix D.2).
#
#   STUDENT=... TEACHER=... TRAIN=... VAL=... examples/verl/opd.sh                     # 4 nodes of 8 GPUs, 1 for the teacher
#   NODES=1 GPUS=4 TEACHER_NODES=1 TEACHER_GPUS=4 ... examples/verl/opd.sh             # one node of 8 GPUs
#   ... examples/verl/opd.sh effopd.preset=default                                     # any override, last one wins
#
# Run it on the head node of a Ray cluster (cluster.yaml), or on one machine without one.
# docs/verl.md says what differs from the paper's launch, whose teacher shares the training GPUs.
set -euo pipefail

PYTHON=${PYTHON:-python}
STUDENT=${STUDENT:-Qwen/Qwen3-4B}
TEACHER=${TEACHER:-models/qwen3-4b-rl}      # docs/recipes.md: how a teacher is made
TRAIN=${TRAIN:-data/deepmath/train.parquet}
VAL=${VAL:-data/aime24/test.parquet}
OUT=${OUT:-runs/verl-opd}
NODES=${NODES:-4}
GPUS=${GPUS:-8}
TEACHER_NODES=${TEACHER_NODES:-1}
TEACHER_GPUS=${TEACHER_GPUS:-8}
STUDENT_TP=${STUDENT_TP:-1}                 # GPUs of one rollout server
TEACHER_TP=${TEACHER_TP:-1}                 # GPUs of one teacher server

DATA=(
  data.train_files="$TRAIN"
  data.val_files="$VAL"
  data.train_batch_size=1024
  data.max_prompt_length=2048
  data.max_response_length=16384
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
  actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.0
  actor_rollout_ref.actor.ppo_mini_batch_size=1024
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1
  actor_rollout_ref.actor.use_dynamic_bsz=True
  actor_rollout_ref.actor.ppo_max_token_len_per_gpu=22000
  actor_rollout_ref.actor.entropy_coeff=0
)
ROLLOUT=(
  actor_rollout_ref.rollout.name=vllm
  actor_rollout_ref.rollout.n=1
  actor_rollout_ref.rollout.temperature=1.0
  actor_rollout_ref.rollout.top_p=1.0
  actor_rollout_ref.rollout.gpu_memory_utilization=0.6
  actor_rollout_ref.rollout.max_num_batched_tokens=22000
  actor_rollout_ref.rollout.tensor_model_parallel_size="$STUDENT_TP"
  actor_rollout_ref.rollout.val_kwargs.n=32
  actor_rollout_ref.rollout.val_kwargs.temperature=1.0
  actor_rollout_ref.rollout.val_kwargs.top_p=1.0
)
# The advantage of a sampled token is minus its log-ratio to the teacher; no task reward, no KL term. verl's YAML and its
# dataclasses have different defaults here, so everything that matters is set.
OBJECTIVE=(
  algorithm.adv_estimator=grpo
  algorithm.rollout_correction.rollout_is=token
  algorithm.rollout_correction.rollout_is_threshold=5.0
  actor_rollout_ref.actor.use_kl_loss=False
  distillation.enabled=True
  distillation.distillation_loss.loss_mode=k1
  distillation.distillation_loss.use_policy_gradient=True
  distillation.distillation_loss.use_task_rewards=False
  distillation.distillation_loss.loss_max_clamp=null
  distillation.distillation_loss.log_prob_min_clamp=null
  distillation.nnodes="$TEACHER_NODES"
  distillation.n_gpus_per_node="$TEACHER_GPUS"
  distillation.teacher_models.teacher_model.model_path="$TEACHER"
  distillation.teacher_models.teacher_model.inference.tensor_model_parallel_size="$TEACHER_TP"
  distillation.teacher_models.teacher_model.inference.max_model_len=18433
  distillation.teacher_models.teacher_model.inference.max_num_batched_tokens=22000
)
TRAINER=(
  trainer.nnodes="$NODES"
  trainer.n_gpus_per_node="$GPUS"
  trainer.total_epochs=3
  trainer.save_freq=2
  trainer.test_freq=2
  trainer.max_actor_ckpt_to_keep=2
  trainer.project_name=effopd
  trainer.experiment_name=opd
  trainer.default_local_dir="$OUT"
  trainer.logger='[console]'
)
# 50 training prompts, scored by their rewards; candidates 3, 5, 7, 9, 11 after steps 1, 2, 4, 8, ...
SEARCH=(
  +effopd.preset=paper
  +effopd.seed=42
  +effopd.validation.prompts=50
)

exec "$PYTHON" -m effopd.integrations.verl.main \
  "${DATA[@]}" "${ACTOR[@]}" "${ROLLOUT[@]}" "${OBJECTIVE[@]}" "${TRAINER[@]}" "${SEARCH[@]}" "$@"
