"""`effopd plan`: what a run with the search takes on a cluster, from sizes alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from effopd.cli.planning_memory import Job, memory_plan, traffic_plan
from effopd.cli.planning_tables import page
from effopd.cli.planning_time import Planned, time_plan
from effopd.config.planning import PlanConfig, make_plan_config
from effopd.errors import ConfigError
from effopd.models.counted import model_shape
from effopd.models.footprint import Gpu, gpu_named
from effopd.models.published import PUBLISHED
from effopd.models.shape_tensors import ModelShape
from effopd.models.sharding import is_expert
from effopd.models.weights import read_config, read_object


def plan(models: str, overrides: Sequence[str], *, as_json: bool) -> None:
    """Prints memory, traffic and time of one or several students.

    Args:
        models: Sizes of `PUBLISHED` or their repositories, model directories, or files such as
            config.json; separated by commas.
        overrides: Settings of `PlanConfig`.
        as_json: Print one JSON list, in bytes and seconds.

    Raises:
        ConfigError: A wrong setting, a model that is not known, or one that does not fit.
    """
    config = make_plan_config(overrides)
    rows = planned(models, config)
    if as_json:
        print(json.dumps([as_row(row) for row in rows], indent=2))
    else:
        print(page(rows, config))


def planned(models: str, config: PlanConfig) -> list[Planned]:
    """The estimates of each student in order.

    Raises:
        ConfigError: As `plan`.
    """
    gpu = _timed(config.gpu)
    return [_planned(name.strip(), config, gpu) for name in models.split(",")]


def as_row(row: Planned) -> dict[str, Any]:
    """The numbers of one student as JSON has them."""
    job = row.job
    return {
        "model": job.name,
        "parameters": job.student.parameters,
        "gpus": job.config.gpus,
        "gpu": job.gpu.name,
        "memory_bytes": asdict(row.memory),
        "search_bytes": asdict(row.traffic),
        "time": asdict(row.time),
    }


def named_shape(name: str) -> ModelShape:
    """The sizes of a model by size, repository, directory or configuration file.

    Raises:
        ConfigError: None of these, or a configuration without an estimate.
    """
    for size, (repository, content) in PUBLISHED.items():
        if name.casefold() in {size.casefold(), repository.casefold()}:
            return model_shape(content, repository)
    path = Path(name)
    if name and path.is_dir():
        return model_shape(read_config(path), path / "config.json")
    if path.is_file():
        return model_shape(read_object(path), path)
    raise ConfigError(
        f"no model {name!r:.80}: give a directory with a config.json, such a file, or one of "
        f"{', '.join(PUBLISHED)}"
    )


def _planned(name: str, config: PlanConfig, gpu: Gpu) -> Planned:
    student = named_shape(name)
    teacher = named_shape(config.teacher) if config.teacher else student
    for shape in (student, teacher):
        _check_experts(name, shape, config.expert_ranks)
    job = Job(name=name, student=student, teacher=teacher, config=config, gpu=gpu)
    memory, traffic = memory_plan(job), traffic_plan(job)
    return Planned(job=job, memory=memory, traffic=traffic, time=time_plan(job, memory, traffic))


def _check_experts(name: str, shape: ModelShape, ranks: int) -> None:
    """Experts divide over the ranks they are distributed over."""
    has_experts = any(is_expert(tensor) for tensor in shape.tensors())
    if ranks > 1 and has_experts and shape.experts % ranks:
        raise ConfigError(
            f"expert_ranks must divide the {shape.experts} experts of {name}, got {ranks}"
        )


def _timed(text: str) -> Gpu:
    """A card whose speed is known.

    Raises:
        ConfigError: It is not.
    """
    try:
        gpu = gpu_named(text)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--gpu", "gpu", 1)) from None
    if not (gpu.flops and gpu.bandwidth):
        raise ConfigError(
            f"gpu = {text!r:.60} has no known speed: name a card, such as 'H100 80GB'"
        )
    return gpu
