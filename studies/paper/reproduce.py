"""Trains, measures, and writes the page; goes on where it was interrupted."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from studies.paper import accuracy, geometry, methods
from studies.paper.figures import write_reproduction_pngs
from studies.paper.page import SCHEMA, load_measurements, write_reproduction
from studies.paper.study import (
    ALGORITHMS,
    REWARDED,
    TEACHER_OF,
    Scene,
    Study,
    minutes,
    train_run,
    worlds,
)
from transformers.utils import logging

from effopd.data.world import TinyWorld, make_model
from effopd.demo.cache import world_models
from effopd.records import Row, write_json_atomic

Unit = tuple[Study, str, int]
"""Study, what to do, seed (of a world: its place)."""

SETUP = """A Qwen3 model of {parameters} parameters ({layers} layers) is taught modular arithmetic
from noisy demonstrations: it samples badly what it knows. {n} seeds start from {bases} bases in
turn, whose demonstrations are clean until {which} of greedy answers are right. GRPO (with {k}
seeds DAPO and PPO too) sharpens the base with {prompts} prompts of {responses} answers a step,
until the mean reward of five steps has not risen for {patience} steps, at most {rl_steps} steps.
OPD distils the last checkpoint of each such run into the same base: {steps} updates of {answers}
answers. The learning rate is {lr:g}. Accuracy is over {problems} held-out problems, {passes}
sampled answers each."""


def reproduce(study: Study, page: Path, workers: int = 2) -> None:
    """Trains and measures what is missing below `study.out`, then writes page and figures.

    Figures go to `assets/reproduction` beside the page.
    """
    _hide_progress()
    print(f"at most about {minutes(study, workers):.0f} minutes on {workers} cores, from nothing")
    # Models of the worlds, reinforcement learning, distillation from it, the comparison.
    studies = [study, *map(study.of_size, study.sizes)]
    made = [(each, "world", i) for each in studies for i in range(len(worlds(each)))]
    _in_parallel(_make_world, made, workers)
    for stage in (REWARDED, tuple(TEACHER_OF)):
        units = [(each, n, seed) for each in studies for seed in study.seeds for n in stage]
        chosen = [u for u in units if u[1] in u[0].methods(u[2])]
        _in_parallel(_train_one, chosen, workers)
    methods.compare_methods(study, workers)

    units = [(study, name, seed) for seed in study.seeds for name in measures(study, seed)]
    missing = [unit for unit in units if not study.measurement(*unit[1:]).is_file()]
    _in_parallel(_measure_one, missing, workers)
    measurements = load_measurements(study.out)

    counts = write_reproduction(
        measurements,
        page,
        setup=_setup(study),
        figures=write_reproduction_pngs(measurements, page.parent / "assets" / "reproduction"),
    )
    print(f"{page}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def measures(study: Study, seed: int) -> dict[str, Callable[[Scene], Row]]:
    """Name of each measurement of a seed -> what takes it from a scene."""
    found: dict[str, Callable[[Scene], Row]] = {
        "ranks": accuracy.ranks,
        "windows": accuracy.windows,
        "rescaling": accuracy.rescaling,
        "scaling": accuracy.scaling,
        "embeddings": accuracy.embeddings,
        "geometry": geometry.geometry,
        "progress": accuracy.progress,
        "shift": geometry.shift,
        "estimators": geometry.estimators,
        "methods": lambda scene: methods.methods_record(scene.study, scene.seed),
    }
    if ALGORITHMS[0] in study.methods(seed):
        found["algorithms"] = accuracy.algorithms
    if study.sizes:
        found["sizes"] = accuracy.sizes
    if methods.has_difficulty(study, seed):
        found["difficulty"] = lambda scene: methods.difficulty_record(scene.study, scene.seed)
    return found


def _make_world(unit: Unit) -> str:
    """Base and teacher of a world; cached ones are taken."""
    study, _, index = unit
    world, teacher = worlds(study)[index]
    world_models(world, print, teacher=teacher)
    return f"made the models of world {index + 1}"


def _train_one(unit: Unit) -> str:
    study, method, seed = unit
    train_run(study, method, seed)
    return f"trained {method}, seed {seed}"


def _measure_one(unit: Unit) -> str:
    study, name, seed = unit
    record = measures(study, seed)[name](Scene(study, seed))
    about = {"schema": SCHEMA, "base_model": study.base_of(seed)}
    write_json_atomic(study.measurement(name, seed), about | record)
    return f"measured {name}, seed {seed}"


def _hide_progress() -> None:
    """A unit is one line of progress; bars of reading and writing its models would hide it."""
    logging.disable_progress_bar()


def _in_parallel(function: Callable[[Unit], str], units: Iterable[Unit], workers: int) -> None:
    """Runs units in processes of one thread each; the first failure ends the command."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_hide_progress)
    try:
        running: list[Future[str]] = [pool.submit(function, unit) for unit in units]
        for count, future in enumerate(as_completed(running), start=1):
            print(f"[{count}/{len(running)}] {future.result()}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _setup(study: Study) -> str:
    first = TinyWorld(**study.bases[0])
    count = sum(parameter.numel() for parameter in make_model(first).parameters())
    which = [f"{TinyWorld(**base).base_greedy:.0%}" for base in study.bases]
    return SETUP.format(
        parameters=f"{count / 1e6:.2f} M",
        layers=first.layers,
        n=len(study.seeds),
        bases=len(study.bases),
        which=" and ".join(which),
        k=min(study.algorithm_seeds, len(study.seeds)),
        prompts=study.rl_prompts,
        responses=study.responses,
        rl_steps=study.rl_steps,
        patience=study.patience,
        steps=study.steps,
        answers=study.answers,
        lr=study.lr,
        problems=study.problems,
        passes=study.passes,
    )
