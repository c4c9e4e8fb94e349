"""verl's synchronous trainer with a search after the update of each step where one is due."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils.debug import marked_timer

from effopd.errors import ValidatorError
from effopd.integrations.verl.settings import read_settings
from effopd.integrations.verl.support import AGENT_LOOP_MANAGER, TRAINER_MODE, check_supported
from effopd.integrations.verl.validating import QuietValidation
from effopd.integrations.verl.worker import SearchingWorker, Step
from effopd.search.line_search import SearchResult
from effopd.search.validation import Draw, Score
from effopd.training.search_checkpoint import SearchLog


@register_trainer(TRAINER_MODE)
class SearchingTrainer(PPOTrainerSync):
    """Searches between the update of a step and its checkpoint.

    At that point the rollout servers are asleep. Each point of a search is sent to them by verl's
    own weight synchronisation, scored, and they are put to sleep again; then verl goes on as if the
    accepted point were what the optimizer had reached.
    """

    def __init__(self, config: DictConfig) -> None:
        plain: Any = OmegaConf.to_container(config, resolve=True)
        self._settings = read_settings(plain.get("effopd"))
        check_supported(plain, self._settings)
        with open_dict(config):
            config.trainer.v1.trainer_mode = "sync"  # verl asks for it by name in many places
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = AGENT_LOOP_MANAGER
        super().__init__(config)
        self._validation: QuietValidation | None = None
        self._log: SearchLog | None = None

    def _init_resource_pool_mgr(self) -> None:
        """Takes the searching worker for the actor."""
        super()._init_resource_pool_mgr()
        for role in self.role_worker_mapping:
            if "actor" in str(role):
                self.role_worker_mapping[role] = ray.remote(SearchingWorker)

    def _load_checkpoint(self) -> None:
        """Prepares the search at the initial weights, then resumes where there is a checkpoint."""
        self.actor_rollout_wg.prepare_search(self._settings.search)
        super()._load_checkpoint()
        self._validation = QuietValidation(self, self._settings)
        record = Path(self.config.trainer.default_local_dir) / "search.jsonl"
        self._log = SearchLog(record, self.global_steps)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> Any:
        """The step of verl, then the search: the checkpoint comes later, of accepted weights."""
        batch = super().step(metrics, timing_raw)
        with marked_timer("search", timing_raw, color="purple"):
            result = self._search()
        if result is not None:
            assert self._log is not None
            for index, trial in enumerate(result.trials):
                self._log.write(result.step, index, trial)
            metrics.update(search_metrics(result))
        return batch

    def _search(self) -> SearchResult | None:
        """One search of all ranks; None where none is due."""
        workers = self.actor_rollout_wg
        step = agreed(workers.search_start(self.global_steps))
        while isinstance(step, Draw):
            step = agreed(workers.search_tell(self._scored(step)))
        return step

    def _scored(self, draw: Draw) -> Score:
        """Sends the weights to the servers and scores them; on failure the tip comes back."""
        assert self._validation is not None
        is_scored = False
        try:
            self.checkpoint_manager.update_weights(self.global_steps)
            score = self._validation(draw)
            self.checkpoint_manager.sleep_replicas()
            is_scored = True
        finally:
            if not is_scored:
                self.actor_rollout_wg.search_abandon()
        return score


def agreed(steps: Sequence[Step]) -> Step:
    """What all ranks say."""
    said = {_decision(step) for step in steps}
    if len(said) != 1:
        raise ValidatorError(
            f"the ranks of one search decided differently: {sorted(map(str, said))}. Their weights "
            "do not belong together; resume from the last checkpoint."
        )
    return steps[0]


def _decision(step: Step) -> Any:
    """A step without what differs from rank to rank, the seconds."""
    if not isinstance(step, SearchResult):
        return step
    trials = tuple((trial.kind, trial.scale, trial.accepted) for trial in step.trials)
    return step.step, step.accepted_scale, trials


def search_metrics(result: SearchResult) -> dict[str, float]:
    """What verl's logger gets of a search, beside `timing_s/search`."""
    scores = {trial.scale: trial.score.value for trial in result.trials if trial.score}
    found = {
        "effopd/accepted_scale": result.accepted_scale,
        "effopd/trials": float(len(result.trials)),
        "effopd/tokens": float(result.tokens),
        "effopd/teacher_tokens": float(result.teacher_tokens),
    }
    if 1.0 in scores and result.accepted_scale in scores:
        found["effopd/tip_score"] = scores[1.0]
        found["effopd/accepted_score"] = scores[result.accepted_scale]
    return found
