"""The example is a configuration that verl and the plug-in accept."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from effopd import Search
from effopd.integrations.verl.settings import RewardValidation, read_settings
from effopd.integrations.verl.support import check_supported, lookup

EXAMPLES = Path(__file__).parents[2] / "examples" / "verl"
PAPER = {
    "data.train_batch_size": 1024,
    "data.max_prompt_length": 2048,
    "data.max_response_length": 16384,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 1024,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 22000,
    "actor_rollout_ref.rollout.n": 1,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "algorithm.rollout_correction.rollout_is": "token",
    "algorithm.rollout_correction.rollout_is_threshold": 5.0,
    "distillation.distillation_loss.loss_mode": "k1",
    "distillation.distillation_loss.use_policy_gradient": True,
    "trainer.total_epochs": 3,
    "trainer.nnodes": 4,
    "trainer.n_gpus_per_node": 8,
}


def resolved(*overrides: str, **variables: str) -> dict[str, Any]:
    """What verl would run: Hydra prints it instead of running it."""
    finished = subprocess.run(
        ["bash", str(EXAMPLES / "opd.sh"), *overrides, "--cfg", "job", "--resolve"],
        env={**os.environ, "PYTHON": sys.executable, "HYDRA_FULL_ERROR": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    text = finished.stdout
    return yaml.safe_load(text[text.index("actor_rollout_ref:") :])


@pytest.fixture(scope="module")
def configuration() -> dict[str, Any]:
    return resolved()


def test_it_has_the_numbers_of_the_paper(configuration: dict[str, Any]) -> None:
    assert {key: lookup(configuration, key) for key in PAPER} == PAPER


def test_it_has_the_search_of_the_paper(configuration: dict[str, Any]) -> None:
    settings = read_settings(configuration["effopd"])
    assert settings.search == Search.paper()
    assert settings.validation == RewardValidation(prompts=50)
    check_supported(configuration, settings)


def test_one_node_with_the_default_search(tmp_path: Path) -> None:
    sizes = {"NODES": "1", "GPUS": "4", "TEACHER_NODES": "1", "TEACHER_GPUS": "4"}
    config = resolved("effopd.preset=default", **sizes)
    assert lookup(config, "trainer.n_gpus_per_node") == 4
    assert lookup(config, "distillation.n_gpus_per_node") == 4
    settings = read_settings(config["effopd"])
    assert settings.validation.type == "teacher_kl"
    check_supported(config, settings)


def test_the_cluster_has_the_nodes_that_the_launch_asks_for(configuration: dict[str, Any]) -> None:
    cluster = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    nodes = 1 + len(cluster["provider"]["worker_ips"])
    asked = lookup(configuration, "trainer.nnodes") + lookup(configuration, "distillation.nnodes")
    assert nodes == asked
    assert cluster["min_workers"] == cluster["max_workers"] == nodes - 1
