"""A run on a cluster: memory of a rank, bytes of a search, and the steps it has to save.

Sharding is that of `torch.distributed.fsdp.fully_shard`, applied to each layer and to the rest:
every tensor is cut along its first axis into one part a rank, of which the largest are counted.
Experts may be distributed over `expert_ranks` instead; each group then gathers its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from effopd.doctor import footprint
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

    An inference engine holds a whole copy of the weights; `engine_gpus` 0 takes the fewest cards
    whose free half holds them.
    """

    gpu: Gpu  # whose speed has to be known
    gpus: int  # ranks, one a GPU, that share every tensor by `fully_shard` (FSDP2)
    engine_gpus: int = 0  # of one inference engine
    expert_ranks: int = 1  # that experts are distributed over, instead of being gathered
    network_gb_s: float = 50.0  # GB a second that a GPU receives over the network
    host_gb_s: float = 50.0  # GB a second between a GPU and its host

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
    """What the search after `step` does: the tip is one of its points."""

    step: int
    evaluations: int
    copies: int  # times the moved tensors cross the bus, to an anchor and a tip on the host


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


@dataclass(frozen=True, kw_only=True)
class ClusterEstimate:
    """Bytes of one rank and seconds of a run, every sequence as long as it may be."""

    weights_bytes: int  # weights, gradients and moments of the student
    teacher_bytes: int  # weights of teachers and of a reference model
    gathered_bytes: int  # whole weights and one layer's gradient in a pass, in both precisions
    activation_bytes: int  # of one micro-batch, and tiles of logits
    search_device_bytes: int  # anchor and tip
    search_host_bytes: int
    device_bytes: int  # the peak, of the update or of the search
    moved_bytes: int  # between a GPU and its host in a search that accepts all it may
    scored_bytes: int  # over the network for one scored point, to the engines and in passes
    engine_gpus: int  # of one inference engine
    writing_s: float  # the answers of a step
    scoring_s: float  # by teachers and a reference model
    update_s: float  # passes with gradient
    step_s: float  # without a search
    trial_s: float  # one scored point
    evaluations: tuple[int, int]  # fewest and most points that the first search scores
    searches: int  # in the run
    rejected_share: float  # what the searches add to the run if all reject at once
    accepted_share: float  # the same, if all go as far as they may
    break_even_steps: int | None  # the run must save them to pay for such searches; None: it cannot


def estimate_cluster(
    config: Config, shapes: Mapping[str, ModelShape], cluster: Cluster
) -> ClusterEstimate:
    """What a run takes on a cluster that shards student and teachers over all its GPUs."""
    run = _Run(config=config, shapes=shapes, cluster=cluster)
    gpus, gpu, validation, steps = cluster.gpus, cluster.gpu, config.validation, config.train.steps
    rank, shape, longest = run.memory(), run.shape, run.longest
    engine, width = run.engines(rank)
    group = replace(gpu, flops=gpu.flops * engine, bandwidth=gpu.bandwidth * engine)

    def received(parameters: int) -> int:  # bytes that a rank gathers: all but its own part
        return parameters * COMPUTE_BYTES * (gpus - 1) // gpus

    sent = received(shape.parameters)  # weights to the engines
    sync = sent / (cluster.network_gb_s * 1e9)

    def written(answers: int) -> float:
        own, new = math.ceil(answers / (gpus // engine)), config.sampling.max_new_tokens
        return footprint.writing_seconds(shape, own, new, width, COMPUTE_BYTES, group)

    def scored(each: ModelShape, answers: int) -> float:
        return footprint.forward_seconds(each, answers * longest, gpu, longest)

    writing, own = written(run.answers), run.answers // gpus
    scoring = sum(scored(each, own) for each, _ in run.scoring)
    update = run.passes * scored(shape, own)
    step = sync + writing + scoring + update  # without a search
    # A scored point: answers are written for each, once a search, or not at all; then scored.
    once, trial, network, own = 0.0, 0.0, 0, math.ceil(validation.prompts / gpus)
    if validation.type != "importance_kl":
        trial, network = sync + written(validation.prompts), sent
    elif validation.source == "fresh":
        once = sync + written(validation.prompts)
    if validation.type != "accuracy":
        teachers = [each for each, _ in run.teachers]
        trial += sum(scored(each, own) for each in (shape, *teachers))
        network += own * (sent + received(sum(each.parameters for each in teachers)))
    # What searches cost: all of them rejecting, and all accepting as much as they may.
    rejecting, accepting = (
        search_costs(config.search, steps, helpful=helpful) if config.searches else []
        for helpful in (False, True)
    )
    host = rank["search_host_bytes"] // 2 * max((cost.copies for cost in accepting), default=0)
    each_s = once + host / (cluster.host_gb_s * 1e9)

    def spent(costs: list[SearchCost], until: int) -> float:  # in the first steps, in steps
        return sum(cost.evaluations * trial + each_s for cost in costs if cost.step <= until) / step

    return ClusterEstimate(
        **rank,
        moved_bytes=host, scored_bytes=network, engine_gpus=engine, writing_s=writing,
        scoring_s=scoring, update_s=update, step_s=step, trial_s=trial,
        evaluations=(rejecting[0].evaluations, accepting[0].evaluations) if accepting else (0, 0),
        searches=len(accepting),
        rejected_share=spent(rejecting, steps) / steps,
        accepted_share=spent(accepting, steps) / steps,
        break_even_steps=next((n for n in range(steps) if spent(accepting, steps - n) <= n), None),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Run(Sized):
    """A run on a cluster."""

    cluster: Cluster

    def __post_init__(self) -> None:
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

    def memory(self) -> dict[str, int]:
        """Bytes of a rank by their name in the estimate; the peak is of the update or the search.

        Of a search it is where both ends of one tensor come to the device.
        """
        config, memory, tensors = self.config, self.config.memory, self.shape.tensors
        gpus, ranks = self.cluster.gpus, self.cluster.expert_ranks

        def sharded(shape: ModelShape) -> int:  # numbers of a model on one rank
            return sum(shard_elements(*each, gpus, ranks) for each in shape.tensors.items())

        axes = {name: len(sizes) for name, sizes in tensors.items()}
        names = selected_names(axes, config.search.parameters) if config.searches else ()
        moved = [shard_elements(name, tensors[name], gpus, ranks) for name in names]
        number = 4 if self.student.dtype == "float32" or memory.master_weights else COMPUTE_BYTES
        weights = footprint.trained_bytes(sharded(self.shape), number).device
        teachers = COMPUTE_BYTES * sum(sharded(each) for each, _ in self.scoring)
        on_device = memory.anchor_device == "student"
        ends = footprint.search_bytes(sum(moved), number, masters=False, on_device=on_device)
        root, layer = gathered_elements(self.shape, ranks)
        gathered = COMPUTE_BYTES * (root + 2 * layer) + (COMPUTE_BYTES + 4) * layer
        tokens = max(self.longest, config.train.micro_batch_tokens)
        kept = self.student.gradient_checkpointing
        active = footprint.activation_bytes(self.shape, tokens, COMPUTE_BYTES, checkpointing=kept)
        active += footprint.tile_bytes(self.shape, tokens)
        moving = 2 * number * max(moved, default=0) if ends.host else 0
        peak = weights + teachers + ends.device + max(gathered + active, moving)
        return {
            "weights_bytes": weights, "teacher_bytes": teachers, "gathered_bytes": gathered,
            "activation_bytes": active, "search_device_bytes": ends.device,
            "search_host_bytes": ends.host, "device_bytes": peak,
        }  # fmt: skip

    def engines(self, rank: Mapping[str, int]) -> tuple[int, int]:
        """GPUs of one engine, as set or the fewest whose free half holds the weights; its width.

        The width is how many answers it writes at a time, all as long as they may be, beside what
        training keeps on every card.
        """
        kept = rank["weights_bytes"] + rank["teacher_bytes"] + rank["search_device_bytes"]
        gpu, gpus, given = self.cluster.gpu, self.cluster.gpus, self.cluster.engine_gpus
        powers = [2**i for i in range(gpus.bit_length()) if gpus % 2**i == 0]
        sizes, share = ([given], 1.0) if given else (powers, 0.5)
        weights = self.shape.parameters * COMPUTE_BYTES
        answer = footprint.cache_bytes(self.shape, self.longest, COMPUTE_BYTES)
        for size in sizes:
            room = size * (USABLE * gpu.memory_bytes - kept)
            width = int((room - weights) // answer)
            if weights <= share * room and width >= 1:
                return size, width
        raise ConfigError(
            f"an engine of {sizes[-1]} {gpu.name} has no room for the student's "
            f"weights and one answer of {self.longest} tokens beside what training keeps: raise "
            "--gpus or --engine-gpus"
        )
