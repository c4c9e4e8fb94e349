"""Time of a planned run: steps, searches, and how many steps a search has to save."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from effopd.cli.planning_memory import COMPUTE_BYTES, Job, MemoryPlan, TrafficPlan
from effopd.cli.planning_searches import SimulatedSearch, simulated_searches
from effopd.config.planning import PlanConfig
from effopd.errors import ConfigError
from effopd.evaluation.importance_kl import ImportanceKLValidation
from effopd.evaluation.validators import AccuracyValidation
from effopd.models.footprint import Gpu, cache_bytes, forward_seconds, writing_seconds
from effopd.models.sharding import received_bytes

USABLE = 0.9
"""Share of a card's memory that an inference engine may fill, what else is there included."""


@dataclass(frozen=True, kw_only=True)
class TimePlan:
    """Seconds of the phases, and what the search has to save.

    Attributes:
        rollout_gpus: GPUs of one inference engine.
        writing_s: The answers of a step.
        scoring_s: By the teacher.
        update_s: Passes with gradient.
        step_s: A step without a search.
        trial_s: One scored point.
        moving_s: Of one search that accepts all it may, on the host's bus.
        release_moving_s: Of the released code's, on the network and on the host's bus.
        evaluations: Fewest and most points that the first search scores.
        searches: Searches in `steps` steps.
        rejected_share: What the searches add to `steps` steps, if all reject at once.
        accepted_share: The same, if all go as far as they may.
        must_save: Steps of `steps` that a run must save to pay for searches that go as far as they
            may; None if it cannot.
        speedup: Of a run of `steps_with_search` steps whose searches go as far as they may.
    """

    rollout_gpus: int
    writing_s: float
    scoring_s: float
    update_s: float
    step_s: float
    trial_s: float
    moving_s: float
    release_moving_s: float
    evaluations: tuple[int, int]
    searches: int
    rejected_share: float
    accepted_share: float
    must_save: int | None
    speedup: float


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What one student takes."""

    job: Job
    memory: MemoryPlan
    traffic: TrafficPlan
    time: TimePlan


def time_plan(job: Job, memory: MemoryPlan, traffic: TrafficPlan) -> TimePlan:
    """How long phases take on a card of known speed.

    Raises:
        ConfigError: No inference engine fits beside what training keeps.
    """
    config, shape = job.config, job.student
    engine = rollout_gpus(job, memory)
    sync = received_bytes(shape.parameters * COMPUTE_BYTES, config.gpus) / _network(config)
    writing = _writing(job, memory, engine, config.answers, config.max_new_tokens)
    a_rank = config.answers // config.gpus * config.longest
    scoring = forward_seconds(job.teacher, a_rank, job.gpu, config.longest)
    passes = (4 if config.gradient_checkpointing else 3) * config.epochs
    update = passes * forward_seconds(shape, a_rank, job.gpu, config.longest)
    step = sync + writing + scoring + update
    once, trial = _trial(job, memory, engine, sync)
    moving = traffic.host / _host(config)
    costs = {}
    for helpful in (False, True):
        found = list(simulated_searches(config.search, config.steps, helpful=helpful))
        costs[helpful] = [(s, (once + s.evaluations * trial + moving) / step) for s in found]
    least, most = ([s.evaluations for s, _ in costs[helpful]] for helpful in (False, True))
    spent = _Spent(costs[True])
    return TimePlan(
        rollout_gpus=engine,
        writing_s=writing,
        scoring_s=scoring,
        update_s=update,
        step_s=step,
        trial_s=trial,
        moving_s=moving,
        release_moving_s=traffic.release_network / _network(config)
        + traffic.release_host / _host(config),
        evaluations=(least[0], most[0]) if least and most else (0, 0),
        searches=len(costs[True]),
        rejected_share=_Spent(costs[False]).until(config.steps) / config.steps,
        accepted_share=spent.until(config.steps) / config.steps,
        must_save=steps_to_save(spent, config.steps),
        speedup=config.steps / (config.steps_with_search + spent.until(config.steps_with_search)),
    )


class _Spent:
    """What searches cost, in steps.

    Args:
        costs: Each search and its cost, in order.
    """

    def __init__(self, costs: Iterable[tuple[SimulatedSearch, float]]) -> None:
        pairs = [(search.step, cost) for search, cost in costs]
        self._steps = [step for step, _ in pairs]
        self._totals = [0.0, *accumulate(cost for _, cost in pairs)]

    def until(self, steps: int) -> float:
        """Cost of those in the first `steps` steps."""
        return self._totals[bisect_right(self._steps, steps)]


def steps_to_save(spent: _Spent, steps: int) -> int | None:
    """Fewest steps that, saved of `steps`, pay for the searches in those that are left."""
    for saved in range(steps):
        left = steps - saved
        if left + spent.until(left) <= steps:
            return saved
    return None


def rollout_gpus(job: Job, memory: MemoryPlan) -> int:
    """GPUs of one engine: as set, or the fewest whose free half holds the weights.

    Raises:
        ConfigError: There are none, or those set have no room for the weights and one answer.
    """
    config = job.config
    sizes = [config.rollout_gpus] if config.rollout_gpus else _divisors(config.gpus)
    for size in sizes:
        weights = job.student.parameters * COMPUTE_BYTES
        share = 1.0 if config.rollout_gpus else 0.5
        if weights <= share * _free(job, memory, size) and _width(job, memory, size) >= 1:
            return size
    raise ConfigError(
        f"{job.name}: an engine of {sizes[-1]} {job.gpu.name} has no room for its weights and one "
        f"answer of {config.longest} tokens beside what training keeps: raise gpus or rollout_gpus"
    )


def _divisors(gpus: int) -> list[int]:
    """Powers of two that divide the number of GPUs."""
    return [2**i for i in range(gpus.bit_length()) if gpus % 2**i == 0]


def _free(job: Job, memory: MemoryPlan, engine: int) -> float:
    """Bytes that training leaves to an engine."""
    kept = memory.weights + memory.teacher
    if job.config.anchor_device == "student":
        kept += memory.anchor_and_tip
    return engine * (USABLE * job.gpu.memory_bytes - kept)


def _width(job: Job, memory: MemoryPlan, engine: int) -> int:
    """Answers that one engine writes at a time, all as long as they may be."""
    room = _free(job, memory, engine) - job.student.parameters * COMPUTE_BYTES
    return int(room // cache_bytes(job.student, job.config.longest, COMPUTE_BYTES))


def _writing(job: Job, memory: MemoryPlan, engine: int, answers: int, tokens: int) -> float:
    """Seconds until all engines have written their answers."""
    gpu = job.gpu
    group = Gpu(
        name=gpu.name,
        memory_bytes=gpu.memory_bytes * engine,
        flops=gpu.flops * engine,
        bandwidth=gpu.bandwidth * engine,
    )
    own = math.ceil(answers / (job.config.gpus // engine))
    width = _width(job, memory, engine)
    return writing_seconds(job.student, own, tokens, width, COMPUTE_BYTES, group)


def _trial(job: Job, memory: MemoryPlan, engine: int, sync: float) -> tuple[float, float]:
    """Seconds once a search, and for each point that is scored."""
    validation, config = job.config.validation, job.config
    if isinstance(validation, AccuracyValidation):
        tokens = config.max_new_tokens
        return 0.0, sync + _writing(job, memory, engine, validation.prompts, tokens)
    tokens = config.max_new_tokens
    length = config.prompt_tokens + tokens
    own = job.validation_answers * length
    scoring = forward_seconds(job.student, own, job.gpu, length)
    scoring += forward_seconds(job.teacher, own, job.gpu, length)
    writing = sync + _writing(job, memory, engine, validation.prompts, tokens)
    if not isinstance(validation, ImportanceKLValidation):
        return 0.0, writing + scoring
    return (writing if validation.source == "fresh" else 0.0), scoring


def _network(config: PlanConfig) -> float:
    return config.network_gb_s * 1e9


def _host(config: PlanConfig) -> float:
    return config.host_gb_s * 1e9
