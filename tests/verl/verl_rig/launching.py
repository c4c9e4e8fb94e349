"""Runs `python -m effopd.integrations.verl.main` as a user would, on the rig."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

RIG = Path(__file__).parent
RANKS = 2
TIMEOUT_S = 900
STUDENT, ROLLOUT = "actor_rollout_ref.model", "actor_rollout_ref.rollout"
ACTOR, TEACHER = "actor_rollout_ref.actor", "distillation.teacher_models.teacher_model"


def settings(world: Path, out: Path) -> dict[str, object]:
    """Overrides of verl's configuration: 2 FSDP2 ranks, 2 rollout servers, a teacher."""
    return {
        "data.train_files": world / "train.parquet",
        "data.val_files": world / "train.parquet",
        "data.train_batch_size": 8,
        "data.max_prompt_length": 16,
        "data.max_response_length": 8,
        "data.dataloader_num_workers": 0,
        f"{STUDENT}.path": world / "student",
        f"{STUDENT}.use_remove_padding": False,
        f"{STUDENT}.enable_gradient_checkpointing": False,
        f"+{STUDENT}.override_config.attn_implementation": "eager",
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.optim.lr": 0.003,
        f"{ACTOR}.ppo_mini_batch_size": 8,
        f"{ACTOR}.ppo_micro_batch_size_per_gpu": 4,
        f"{ACTOR}.use_torch_compile": False,
        f"{ACTOR}.fsdp_config.use_torch_compile": False,
        f"+{ACTOR}.fsdp_config.mixed_precision": "{param_dtype:fp32,reduce_dtype:fp32}",
        f"{ROLLOUT}.name": "hf",
        f"{ROLLOUT}.dtype": "float32",
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": 4,
        f"{ROLLOUT}.agent.num_workers": 1,
        "algorithm.adv_estimator": "grpo",
        "distillation.enabled": True,
        "distillation.n_gpus_per_node": 1,
        "distillation.nnodes": 1,
        "distillation.distillation_loss.loss_mode": "k1",
        "distillation.distillation_loss.use_task_rewards": False,
        "distillation.distillation_loss.use_policy_gradient": True,
        f"{TEACHER}.model_path": world / "teacher",
        f"{TEACHER}.inference.tensor_model_parallel_size": 1,
        "reward.num_workers": 1,
        "reward.custom_reward_function.path": RIG / "reward.py",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "trainer.device": "cpu",
        "trainer.n_gpus_per_node": RANKS,
        "trainer.nnodes": 1,
        "trainer.logger": "[console]",
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.default_local_dir": out / "checkpoints",
        "+ray_kwargs.ray_init.num_gpus": RANKS + 1,
        "ray_kwargs.ray_init.num_cpus": 32,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.object_store_memory": 300_000_000,
    }


def launch(world: Path, out: Path, overrides: Mapping[str, object]) -> str:
    """Runs the launcher to its end.

    Args:
        world: What `write_world` wrote.
        out: Folder for checkpoints and the servers' records.
        overrides: On top of `settings`.

    Returns:
        Everything it printed.
    """
    arguments = [f"{k}={v}" for k, v in {**settings(world, out), **overrides}.items()]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("a+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "effopd.integrations.verl.main", *arguments],
            env=environment(out),
            cwd=out,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
        text = (out / "log.txt").read_text()
    assert code == 0, text[-8000:]
    return text


def environment(out: Path) -> dict[str, str]:
    """Of the launcher and of every process that Ray starts."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(_paths()),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_rig.register",
        "EFFOPD_RIG_DIR": str(out / "servers"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(out / "datasets"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HYDRA_FULL_ERROR": "1",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(RANKS + 1))),  # Ray counts them
    }


def _paths() -> Sequence[str]:
    found = os.environ.get("PYTHONPATH", "")
    return [str(RIG.parent), *filter(None, found.split(os.pathsep))]
