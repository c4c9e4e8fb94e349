"""Starting verl with the plug-in's trainer."""

from typing import Any

import hydra
import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from effopd.integrations.verl.settings import read_settings
from effopd.integrations.verl.support import TRAINER_MODE, check_supported


@ray.remote
class SearchingTaskRunner(TaskRunnerV1.__ray_actor_class__):
    """verl's task runner, which knows the plug-in's trainer."""

    def run(self, config: DictConfig) -> None:
        """Trains."""
        import effopd.integrations.verl.trainer  # noqa: F401 (registers the trainer in this process)

        with open_dict(config):
            config.trainer.v1.trainer_mode = TRAINER_MODE
        super().run(config)


@hydra.main(config_path="pkg://verl.trainer.config", config_name="ppo_trainer", version_base=None)
def launch(config: DictConfig) -> None:
    """Trains as `verl.trainer.main_ppo` does, with the search."""
    auto_set_device(config)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    check_supported(plain, read_settings(plain.get("effopd")))
    validate_config(
        config=config,
        use_reference_policy=need_reference_policy(config),
        use_critic=need_critic(config),
    )
    run_ppo(config, task_runner_class=SearchingTaskRunner)
