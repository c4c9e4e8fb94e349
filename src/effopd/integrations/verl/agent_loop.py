"""verl's agent loops, sampling validation prompts by seeds and asking the teacher about answers.

A validation prompt of the search carries two columns. Everything else goes through unchanged.
"""

from typing import Any

import ray
from verl.trainer.ppo.v1 import AgentLoopManagerTQ, AgentLoopWorkerTQ

SEED = "effopd_seed"
"""Column: seed of a prompt's answer."""
TEACHER = "effopd_teacher"
"""Column: whether the teacher scores the answer."""


@ray.remote
class SeededAgentLoopWorker(AgentLoopWorkerTQ.__ray_actor_class__):
    """Agent loops whose validation answers depend on weights, prompt and seed alone.

    verl samples validation by `val_kwargs`, greedily by default, from the generator that training
    rollouts are sampled from too. A seeded request has a generator of its own, and is sampled as in
    training.
    """

    async def _run_agent_loop(
        self,
        sampling_params: dict[str, Any],
        trajectory: dict[str, Any],
        *,
        effopd_seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if effopd_seed is not None:
            rollout = self.config.actor_rollout_ref.rollout
            sampling_params = {
                **sampling_params,
                "temperature": rollout.temperature,
                "top_p": rollout.top_p,
                "top_k": rollout.top_k,
                "logprobs": True,
                "seed": int(effopd_seed),
            }
        return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)

    async def _compute_teacher_logprobs(
        self,
        output: Any,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: dict[str, Any] | None = None,
    ) -> None:
        wanted = bool((sample_kwargs or {}).get(TEACHER, False))
        await super()._compute_teacher_logprobs(
            output,
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            validate=validate and not wanted,
            sample_kwargs=sample_kwargs,
        )


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with the workers above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = SeededAgentLoopWorker
