"""Memory and traffic of a planned run, with our search and with that of the released code."""

import math
from dataclasses import dataclass

from effopd.cli.planning_searches import SimulatedSearch, simulated_searches
from effopd.config.planning import PlanConfig
from effopd.errors import ConfigError
from effopd.evaluation.importance_kl import ImportanceKLValidation
from effopd.evaluation.validators import AccuracyValidation
from effopd.models.footprint import (
    Gpu,
    activation_bytes,
    search_bytes,
    tile_bytes,
    trained_bytes,
)
from effopd.models.shape_tensors import ModelShape
from effopd.models.sharding import (
    gathered_elements,
    moved_tensors,
    received_bytes,
    shard_elements,
    sharded_elements,
)
from effopd.search.settings import Search

COMPUTE_BYTES = 2
"""Of a number in bfloat16: gathered weights, activations, the teacher, inference engines."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One student on the cluster of the settings."""

    name: str
    student: ModelShape
    teacher: ModelShape
    config: PlanConfig
    gpu: Gpu

    @property
    def kept_bytes(self) -> int:
        """Bytes of one number of a weight, gradient or moment as it is kept."""
        return 4 if self.config.dtype == "float32" else 2

    @property
    def validation_answers(self) -> int:
        """Validation answers that one rank scores."""
        return math.ceil(self.config.validation.prompts / self.config.gpus)

    def sharded(self, shape: ModelShape) -> int:
        """Numbers of a model on one rank."""
        return sharded_elements(shape, self.config.gpus, self.config.expert_ranks)


# Memory -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on one rank, at the largest of the phases that there are.

    Attributes:
        weights: Weights, gradients and moments of the student.
        teacher: Weights of the teacher.
        gathered: Weights of the root and of two layers while a pass runs, and the gradient of one
            layer before it is scattered, in both precisions.
        activations: Of one micro-batch, and tiles of logits.
        anchor_and_tip: What the search keeps.
        without_search: Peak on the device.
        with_search: Peak on the device.
        search_host: Of the search on the host.
        release: Peak on the device of the released code's search, which holds two whole models.
        release_host: Of it on the host: two copies of what moves, and a shard of the base.
    """

    weights: int
    teacher: int
    gathered: int
    activations: int
    anchor_and_tip: int
    without_search: int
    with_search: int
    search_host: int
    release: int
    release_host: int


def memory_plan(job: Job) -> MemoryPlan:
    """What is on one rank.

    Departures of the released code are those of its `fsdp_workers.py`: `summon_full_params` of the
    student and of its base around every candidate, and a copy of what moves on every rank's host.
    """
    config, shape, kept = job.config, job.student, job.kept_bytes
    tensors = moved_tensors(shape, config.search.parameters)
    shards = [shard_elements(tensor, config.gpus, config.expert_ranks) for tensor in tensors]
    on_device = config.anchor_device == "student"
    ends = search_bytes(sum(shards), kept, masters=False, on_device=on_device)
    weights = trained_bytes(job.sharded(shape), kept).device
    teacher = job.sharded(job.teacher) * COMPUTE_BYTES
    root, layer = gathered_elements(shape, config.expert_ranks)
    gathered = COMPUTE_BYTES * (root + 2 * layer) + (COMPUTE_BYTES + 4) * layer
    portion = max(config.longest, config.micro_batch_tokens)
    activations = tile_bytes(shape, portion) + activation_bytes(
        shape, portion, COMPUTE_BYTES, checkpointing=config.gradient_checkpointing
    )
    update = weights + teacher + gathered + activations
    moving = 0 if on_device else 2 * kept * max(shards)  # both ends of one tensor
    released = sum(tensor.elements for tensor in moved_tensors(shape, Search.release().parameters))
    return MemoryPlan(
        weights=weights,
        teacher=teacher,
        gathered=gathered,
        activations=activations,
        anchor_and_tip=ends.device + ends.host,
        without_search=update,
        with_search=max(update + ends.device, weights + teacher + ends.device + moving),
        search_host=ends.host,
        release=max(update, weights + teacher + 2 * kept * shape.parameters),
        release_host=kept * (2 * released + job.sharded(shape)),
    )


# Traffic ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrafficPlan:
    """Bytes that one rank receives or exchanges in one search that accepts all it may.

    Attributes:
        network: Over the network, by moving weights: nothing, each rank moves its own shards.
        host: Between the GPU and its host.
        release_network: Over the network, by the released code.
        release_host: Between a GPU and its host, by the released code.
        scoring: Over the network, for one scored point: the weights of an inference engine, or
            those of the passes that score given answers. The same for the released code.
    """

    network: int
    host: int
    release_network: int
    release_host: int
    scoring: int


def traffic_plan(job: Job) -> TrafficPlan:
    """What one search moves.

    The released code gathers the student once for a first backup, student and base for each
    candidate, the student again to keep or to undo it, and the base at the end:
    `2 + 3 * candidates` whole models (its `fsdp_workers.py`, `_iterative_test_and_modify`).
    """
    config, kept = job.config, job.kept_bytes
    own, release = first_search(config.search), first_search(Search.release())
    moved = moved_tensors(job.student, config.search.parameters)
    shards = sum(shard_elements(tensor, config.gpus, config.expert_ranks) for tensor in moved)
    released = sum(t.elements for t in moved_tensors(job.student, Search.release().parameters))
    whole = received_bytes(job.student.parameters * kept, config.gpus)
    backups = 1 + release.accepted
    return TrafficPlan(
        network=0,
        host=own.copies * shards * kept if config.anchor_device == "cpu" else 0,
        release_network=(2 + 3 * release.candidates) * whole,
        release_host=(backups + 1) * released * kept,  # and into the base
        scoring=_scoring_traffic(job),
    )


def first_search(search: Search) -> SimulatedSearch:
    """The first search of a run, where it accepts all it may.

    Raises:
        ConfigError: The schedule has none in the first 100,000 steps.
    """
    found = next(simulated_searches(search, 100_000, helpful=True), None)
    if found is None:
        raise ConfigError("search.schedule has no search in 100,000 steps: search earlier")
    return found


def _scoring_traffic(job: Job) -> int:
    """Weights of the student for one point, and of the teacher where it scores."""
    validation, ranks = job.config.validation, job.config.gpus
    student = received_bytes(job.student.parameters * COMPUTE_BYTES, ranks)
    teacher = received_bytes(job.teacher.parameters * COMPUTE_BYTES, ranks)
    if isinstance(validation, AccuracyValidation):
        return student  # to the engines
    passes = job.validation_answers
    if isinstance(validation, ImportanceKLValidation):
        return passes * (student + teacher)
    return student + passes * (student + teacher)
