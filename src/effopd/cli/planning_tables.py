"""The tables of `effopd plan` as Markdown."""

from collections.abc import Iterator, Sequence

from effopd.cli.planning_time import Planned
from effopd.config.planning import PlanConfig

GB = 1e9


def page(rows: Sequence[Planned], config: PlanConfig) -> str:
    """Three tables: memory, bytes moved, time."""
    parts = [
        "**Memory of a rank while it trains, GB.** On " + _cluster(config) + ".",
        _table(_memory(rows)),
        "**Bytes of one search, GB a rank**, where it accepts all it may.",
        _table(_traffic(rows)),
        "**Time**, every sequence as long as it may be.",
        _table(_time(rows, config)),
    ]
    return "\n\n".join(parts)


def _cluster(config: PlanConfig) -> str:
    answers = f"{config.answers} answers a step"
    tokens = f"{config.prompt_tokens} + {config.max_new_tokens} tokens"
    validation = f"{config.validation.prompts} answers for validation ({config.validation.type})"
    return f"{config.gpus} x {config.gpu}; {answers} of {tokens}; {validation}"


def _memory(rows: Sequence[Planned]) -> Iterator[Sequence[str]]:
    yield (
        "model", "parameters", "without a search", "with ours", "ours, host",
        "released code", "released code, host", "host of a node, ours", "released code",
    )  # fmt: skip
    for row in rows:
        memory, config = row.memory, row.job.config
        ranks = min(config.gpus, config.gpus_per_node)
        yield (
            row.job.name,
            f"{row.job.student.parameters / 1e9:.2f} B",
            _device(memory.without_search, row),
            _device(memory.with_search, row),
            _gb(memory.search_host),
            _device(memory.release, row),
            _gb(memory.release_host),
            _gb(ranks * memory.search_host),
            _gb(ranks * memory.release_host),
        )


def _traffic(rows: Sequence[Planned]) -> Iterator[Sequence[str]]:
    yield (
        "model", "network, ours", "network, released code", "host, ours", "host, released code",
        "network, for each scored point", "seconds of moving, ours", "released code",
    )  # fmt: skip
    for row in rows:
        traffic, time = row.traffic, row.time
        yield (
            row.job.name,
            _gb(traffic.network),
            _gb(traffic.release_network),
            _gb(traffic.host),
            _gb(traffic.release_host),
            _gb(traffic.scoring),
            _number(time.moving_s),
            _number(time.release_moving_s),
        )


def _time(rows: Sequence[Planned], config: PlanConfig) -> Iterator[Sequence[str]]:
    steps = config.steps
    yield (
        "model", "GPUs of an engine", "a step, minutes", "a scored point, minutes",
        "the same, of a step", "points of a search", f"searches in {steps} steps",
        "added if all reject", "added if all accept", "steps to save",
        f"speed-up if {config.steps_with_search} steps do",
    )  # fmt: skip
    for row in rows:
        time = row.time
        fewest, most = time.evaluations
        yield (
            row.job.name,
            str(time.rollout_gpus),
            _number(time.step_s / 60),
            _number(time.trial_s / 60),
            _percent(time.trial_s / time.step_s),
            f"{fewest} to {most}",
            str(time.searches),
            _percent(time.rejected_share),
            _percent(time.accepted_share),
            "never" if time.must_save is None else str(time.must_save),
            f"{time.speedup:.2f}",
        )


def _table(rows: Iterator[Sequence[str]]) -> str:
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _device(size: int, row: Planned) -> str:
    """GB, marked where a card has less."""
    return _gb(size) + (" (too much)" if size > row.job.gpu.memory_bytes else "")


def _gb(size: float) -> str:
    return _number(size / GB)


def _number(value: float) -> str:
    """Three digits, or all in front of the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
