"""A run on a cluster: memory of a rank, bytes of a search, and the steps it has to save.

Sharding is that of `torch.distributed.fsdp.fully_shard`, applied to each layer and to the rest:
every tensor is cut along its first axis into one part a rank, of which the largest are counted.
Experts may be distributed over `expert_ranks` instead; each group then gathers its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

from effopd.doctor.footprint import (
    Bytes,
    activation_bytes,
    cache_bytes,
    forward_seconds,
    search_bytes,
    tile_bytes,
    trained_bytes,
    writing_seconds,
)
from effopd.doctor.phases import Sized
from effopd.doctor.sizes import ModelShape, layer_of
from effopd.errors import ConfigError
from effopd.models.gpus import Gpu
from effopd.search.line_search import LineSearch
from effopd.search.scales import PastSearch
from effopd.search.selection import selected_names
from effopd.search.settings import Search
from effopd.search.validation import Score
from effopd.training.config import Config

USABLE = 0.9
"""Share of a card's memory that an inference engine may fill, what else is there included."""
COMPUTE_BYTES = 2
"""Of a number in bfloat16: gathered weights, activations, teachers, inference engines."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines that share a run.

    Attributes:
        gpu: Card, whose speed has to be known.
        gpus: Ranks, one a GPU, that share every tensor by `fully_shard` (FSDP2).
        engine_gpus: GPUs of one inference engine, which hold a whole copy of the weights; 0 takes
            the fewest whose free half holds them.
        expert_ranks: Ranks that experts are distributed over, instead of being gathered.
        network_gb_s: What a GPU receives over the network, GB a second.
        host_gb_s: What a GPU exchanges with its host, GB a second.
    """

    gpu: Gpu
    gpus: int
    engine_gpus: int = 0
    expert_ranks: int = 1
    network_gb_s: float = 50.0
    host_gb_s: float = 50.0

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"--gpus must be 1 or more, got {self.gpus}")
        if not (self.gpu.flops and self.gpu.bandwidth):
            raise ConfigError(
                f"--gpu {self.gpu.name!r:.60} has no known speed, which --gpus needs: name a card, "
                "such as 'H100 80GB'"
            )
        for name in ("engine_gpus", "expert_ranks"):
            value = getattr(self, name)
            if value < 0 or (value and self.gpus % value):
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{option} must divide --gpus {self.gpus}, got {value}")


@dataclass(frozen=True, kw_only=True)
class SearchCost:
    """What one search does.

    Attributes:
        step: After which step.
        evaluations: Points scored, the tip among them.
        copies: Times that as much as the moved tensors goes over the bus between a GPU and its
            host, where anchor and tip are on the host.
    """

    step: int
    evaluations: int
    copies: int


def search_costs(search: Search, steps: int, *, helpful: bool) -> list[SearchCost]:
    """The searches of a run of `steps` steps, by running the search on made-up scores.

    With `helpful` each point scores higher than all before it, so that a search goes as far as it
    may; otherwise each scores lower, and nothing is accepted.
    """
    past, found = list[PastSearch](), list[SearchCost]()
    for step in range(1, steps + 1):
        if not search.schedule.is_due(step, past):
            continue
        line, scored, value = LineSearch(search, step, past), list[float](), 0.0
        while (draw := line.ask()) is not None:
            scored.append(draw.scale)
            value += 1.0 if helpful else -1.0
            line.tell(Score(value=value, per_prompt=(value, value)))
        result = line.result
        # The tip is captured; a point is one end of the ray alone, or read from both; the anchor
        # moves on to the accepted point.
        copies, here, scale = 1, 1.0, result.accepted_scale
        for point in (*scored, scale):
            copies += 0 if point == here else 1 if point in {0.0, 1.0} else 2
            here = point
        following = search.direction.anchor_scale(scale)
        copies += following not in {0.0, 1.0} and following == here
        found.append(SearchCost(step=step, evaluations=len(scored), copies=copies))
        past.append(result.as_past)
    return found


# What is on a rank, and what it receives ----------------------------------------------------------


def shard_elements(name: str, sizes: tuple[int, ...], ranks: int, expert_ranks: int = 1) -> int:
    """Numbers of one tensor on the rank that holds most of it."""
    rows, row = sizes[0], math.prod(sizes[1:])
    if ".mlp.experts." in name:
        rows, ranks = math.ceil(rows / expert_ranks), ranks // expert_ranks
    return row * math.ceil(rows / ranks)


def gathered_elements(shape: ModelShape, expert_ranks: int = 1) -> tuple[int, int]:
    """Numbers that are whole on a rank while a pass runs: outside of layers, of the largest."""
    rest, layers = 0, [0] * (1 + max(i for n in shape.tensors if (i := layer_of(n)) is not None))
    for name, sizes in shape.tensors.items():
        layer = layer_of(name)
        if layer is None:
            rest += math.prod(sizes)
        else:
            layers[layer] += math.prod(sizes) // (expert_ranks if ".mlp.experts." in name else 1)
    return rest, max(layers)


def received_bytes(whole_bytes: int, ranks: int) -> int:
    """What one rank receives when all gather tensors of `whole_bytes`: all but its own part."""
    return whole_bytes * (ranks - 1) // ranks


@dataclass(frozen=True, kw_only=True)
class ClusterEstimate:
    """Bytes and seconds of a run on a cluster, every sequence as long as it may be.

    Attributes:
        weights_bytes: Weights, gradients and moments of the student on one rank.
        teacher_bytes: Weights of teachers and of a reference model on one rank.
        gathered_bytes: Weights outside of layers and of two layers while a pass runs, and the
            gradient of one layer before it is scattered, in both precisions.
        activation_bytes: Of one micro-batch, and tiles of logits.
        search_device_bytes: Anchor and tip on the device.
        search_host_bytes: Anchor and tip on the host.
        device_bytes: Peak on the device, of the update or of the search.
        moved_bytes: Between a GPU and its host, in one search that accepts all it may; over the
            network a search moves nothing, each rank moves its own shards.
        scored_bytes: Over the network, for one scored point: the weights of an inference engine,
            or of the passes that score given answers.
        engine_gpus: GPUs of one inference engine.
        writing_s: The answers of a step.
        scoring_s: By teachers and a reference model.
        update_s: Passes with gradient.
        step_s: A step without a search.
        trial_s: One scored point.
        evaluations: Fewest and most points that the first search scores.
        searches: Searches in the run.
        rejected_share: What the searches add to the run if all reject at once.
        accepted_share: The same, if all go as far as they may.
        break_even_steps: Steps that the run must save to pay for searches that go as far as they
            may; None if it cannot.
    """

    weights_bytes: int
    teacher_bytes: int
    gathered_bytes: int
    activation_bytes: int
    search_device_bytes: int
    search_host_bytes: int
    device_bytes: int
    moved_bytes: int
    scored_bytes: int
    engine_gpus: int
    writing_s: float
    scoring_s: float
    update_s: float
    step_s: float
    trial_s: float
    evaluations: tuple[int, int]
    searches: int
    rejected_share: float
    accepted_share: float
    break_even_steps: int | None


def estimate_cluster(
    config: Config, shapes: Mapping[str, ModelShape], cluster: Cluster
) -> ClusterEstimate:
    """What a run takes on a cluster that shards student and teachers over all its GPUs."""
    run = _Run(config=config, shapes=shapes, cluster=cluster)
    run.check()
    gpus, shape = cluster.gpus, run.shape
    # Memory of a rank: in the update, or while both ends of one tensor come to the device.
    update_bytes = run.gathered + run.activations
    moving = 2 * run.kept * max(run.moved_shards, default=0) if run.ends.host else 0
    resident = run.weights + run.teacher_weights + run.ends.device
    # Seconds of a step, and of a scored point.
    sync = received_bytes(shape.parameters * COMPUTE_BYTES, gpus) / (cluster.network_gb_s * 1e9)
    writing = run.writing(run.answers)
    pass_of = partial(
        forward_seconds,
        tokens=run.answers // gpus * run.longest,
        gpu=cluster.gpu,
        length=run.longest,
    )
    scoring = sum(pass_of(each) for each, _ in run.scoring)
    update = run.passes * pass_of(shape)
    step = sync + writing + scoring + update
    once, trial = run.trial_seconds(sync)
    # What searches cost: all of them rejecting, and all accepting as much as they may.
    rejecting, accepting = (
        search_costs(config.search, config.train.steps, helpful=helpful) if config.searches else []
        for helpful in (False, True)
    )
    moved = run.ends.host // 2 * max((cost.copies for cost in accepting), default=0)
    moving_s = moved / (cluster.host_gb_s * 1e9)

    def spent(costs: list[SearchCost], until: int) -> float:
        """What the searches of the first steps cost, in steps."""
        due = [cost.evaluations * trial + once + moving_s for cost in costs if cost.step <= until]
        return sum(due) / step

    steps = config.train.steps
    break_even = next((n for n in range(steps) if spent(accepting, steps - n) <= n), None)
    return ClusterEstimate(
        weights_bytes=run.weights,
        teacher_bytes=run.teacher_weights,
        gathered_bytes=run.gathered,
        activation_bytes=run.activations,
        search_device_bytes=run.ends.device,
        search_host_bytes=run.ends.host,
        device_bytes=resident + max(update_bytes, moving),
        moved_bytes=moved,
        scored_bytes=run.scored_bytes(),
        engine_gpus=run.engine_gpus,
        writing_s=writing,
        scoring_s=scoring,
        update_s=update,
        step_s=step,
        trial_s=trial,
        evaluations=(rejecting[0].evaluations, accepting[0].evaluations) if accepting else (0, 0),
        searches=len(accepting),
        rejected_share=spent(rejecting, steps) / steps,
        accepted_share=spent(accepting, steps) / steps,
        break_even_steps=break_even,
    )


@dataclass(frozen=True, kw_only=True)
class _Run(Sized):
    """A run on a cluster: what it keeps, and how long its engines write."""

    cluster: Cluster

    def check(self) -> None:
        """Refuses what has no estimate."""
        gpus, ranks = self.cluster.gpus, self.cluster.expert_ranks
        direction = self.config.search.direction.type
        if self.student.lora is not None:
            raise ConfigError("--gpus has no estimate for student.lora: leave one of them out")
        if self.config.searches and not direction.startswith("since_"):
            raise ConfigError(
                f"--gpus has no estimate of what search.direction = {direction!r} remembers: use "
                "'since_accepted', 'since_raw' or 'since_base'"
            )
        if self.answers % gpus:
            raise ConfigError(
                f"train.prompts_per_step must make a step's {self.answers} answers divide over "
                f"--gpus {gpus}, got {self.config.train.prompts_per_step}"
            )
        for name, shape in self.shapes.items():
            if ranks > 1 and shape.experts % ranks:
                raise ConfigError(
                    f"--expert-ranks must divide the {shape.experts} experts of {name}, got {ranks}"
                )

    @property
    def kept(self) -> int:
        """Bytes of one number of a weight, gradient or moment as it is kept."""
        whole = self.student.dtype == "float32" or self.config.memory.master_weights
        return 4 if whole else COMPUTE_BYTES

    def sharded(self, shape: ModelShape) -> int:
        """Numbers of a model on one rank."""
        cluster = self.cluster
        tensors = shape.tensors.items()
        return sum(shard_elements(*each, cluster.gpus, cluster.expert_ranks) for each in tensors)

    @cached_property
    def moved_shards(self) -> list[int]:
        """Numbers on one rank of each tensor that a search moves; none without a search."""
        if not self.config.searches:
            return []
        cluster, tensors = self.cluster, self.shape.tensors
        axes = {name: len(sizes) for name, sizes in tensors.items()}
        return [
            shard_elements(name, tensors[name], cluster.gpus, cluster.expert_ranks)
            for name in selected_names(axes, self.config.search.parameters)
        ]

    @cached_property
    def ends(self) -> Bytes:
        """Anchor and tip on one rank."""
        numbers, on_device = sum(self.moved_shards), self.config.memory.anchor_device == "student"
        return search_bytes(numbers, self.kept, masters=False, on_device=on_device)

    @cached_property
    def gathered(self) -> int:
        """Bytes that are whole on a rank while a pass runs."""
        root, layer = gathered_elements(self.shape, self.cluster.expert_ranks)
        return COMPUTE_BYTES * (root + 2 * layer) + (COMPUTE_BYTES + 4) * layer

    @cached_property
    def activations(self) -> int:
        """Bytes of one micro-batch, and tiles of logits."""
        tokens = max(self.longest, self.config.train.micro_batch_tokens)
        kept = self.student.gradient_checkpointing
        layers = activation_bytes(self.shape, tokens, COMPUTE_BYTES, checkpointing=kept)
        return layers + tile_bytes(self.shape, tokens)

    @cached_property
    def weights(self) -> int:
        """Bytes of weights, gradients and moments on one rank."""
        return trained_bytes(self.sharded(self.shape), self.kept).device

    @cached_property
    def teacher_weights(self) -> int:
        """Bytes of teachers and a reference model on one rank."""
        return COMPUTE_BYTES * sum(self.sharded(shape) for shape, _ in self.scoring)

    # Inference engines --------------------------------------------------------------------------

    def _room(self, engine: int) -> float:
        """Bytes that training leaves to an engine."""
        kept = self.weights + self.teacher_weights + self.ends.device
        return engine * (USABLE * self.cluster.gpu.memory_bytes - kept)

    def _width(self, engine: int) -> int:
        """Answers that an engine writes at a time, all as long as they may be."""
        room = self._room(engine) - self.shape.parameters * COMPUTE_BYTES
        return int(room // cache_bytes(self.shape, self.longest, COMPUTE_BYTES))

    @cached_property
    def engine_gpus(self) -> int:
        """GPUs of one engine: as set, or the fewest whose free half holds the weights."""
        given, gpus = self.cluster.engine_gpus, self.cluster.gpus
        powers = [2**i for i in range(gpus.bit_length()) if gpus % 2**i == 0]
        sizes, share = ([given], 1.0) if given else (powers, 0.5)
        weights = self.shape.parameters * COMPUTE_BYTES
        for size in sizes:
            if weights <= share * self._room(size) and self._width(size) >= 1:
                return size
        raise ConfigError(
            f"an engine of {sizes[-1]} {self.cluster.gpu.name} has no room for the student's "
            f"weights and one answer of {self.longest} tokens beside what training keeps: raise "
            "--gpus or --engine-gpus"
        )

    def writing(self, answers: int) -> float:
        """Seconds until all engines have written their answers."""
        gpu, engine = self.cluster.gpu, self.engine_gpus
        group = replace(gpu, flops=gpu.flops * engine, bandwidth=gpu.bandwidth * engine)
        own = math.ceil(answers / (self.cluster.gpus // engine))
        width, tokens = self._width(engine), self.config.sampling.max_new_tokens
        return writing_seconds(self.shape, own, tokens, width, COMPUTE_BYTES, group)

    # A scored point -----------------------------------------------------------------------------

    @property
    def _validation_answers(self) -> int:
        """Validation answers that one rank scores."""
        return math.ceil(self.config.validation.prompts / self.cluster.gpus)

    def scored_bytes(self) -> int:
        """Over the network, for one scored point: weights to the engines, and of the passes."""
        validation, gpus = self.config.validation, self.cluster.gpus
        student = received_bytes(self.shape.parameters * COMPUTE_BYTES, gpus)
        teachers = sum(shape.parameters for shape, _ in self.teachers)
        passes = student + received_bytes(teachers * COMPUTE_BYTES, gpus)
        sent = 0 if validation.type == "importance_kl" else student
        scored = 0 if validation.type == "accuracy" else self._validation_answers * passes
        return sent + scored

    def trial_seconds(self, sync: float) -> tuple[float, float]:
        """Seconds once a search, and for each point that is scored."""
        validation = self.config.validation
        writing = sync + self.writing(validation.prompts)
        if validation.type == "accuracy":
            return 0.0, writing
        shapes = [self.shape, *(shape for shape, _ in self.teachers)]
        own, gpu = self._validation_answers * self.longest, self.cluster.gpu
        scoring = sum(forward_seconds(each, own, gpu, self.longest) for each in shapes)
        if validation.type == "teacher_kl":
            return 0.0, writing + scoring
        return (writing if validation.source == "fresh" else 0.0), scoring
