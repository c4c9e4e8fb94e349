"""Trains, measures, and writes the page; goes on where it was interrupted."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from studies.paper import accuracy, geometry, methods
from studies.paper.claims import CLAIMS
from studies.paper.figures import write_reproduction_pngs
from studies.paper.page import load_measurements, write_reproduction
from studies.paper.study import METHODS, REWARDED, Scene, Study, train_run, worlds
from transformers.utils import logging

from effopd.data.world import TinyWorld, make_model
from effopd.demo.cache import world_models
from effopd.records import Row, write_json_atomic

WORKERS = 2

Unit = tuple[Study, str, int]
"""Study, what to do, seed (of a world: its place)."""

SETUP = """A Qwen3 model of {parameters} parameters ({layers} layers) is taught modular arithmetic
from noisy demonstrations: it samples badly what it knows. GRPO and DAPO sharpen it; OPD distils
each GRPO run's last checkpoint into the same base. All take {steps} updates of {answers} answers
at learning rate {lr:g}, with {n} seeds. Accuracy is over {problems} held-out problems, {passes}
sampled answers each."""


def reproduce(study: Study, page: Path) -> None:
    """Trains and measures what is missing below `study.out`, then writes page and figures.

    Figures go to `assets/reproduction` beside the page.
    """
    _hide_progress()
    # Models of the worlds, reinforcement learning, distillation from it, the comparison.
    _in_parallel(_make_world, [(study, "world", i) for i in range(len(worlds(study)))])
    for stage in (REWARDED, [name for name in METHODS if name not in REWARDED]):
        _in_parallel(_train_one, [(study, name, seed) for name in stage for seed in study.seeds])
    methods.compare_methods(study)

    units = [(study, name, seed) for name in measures(study) for seed in study.seeds]
    _in_parallel(_measure_one, [u for u in units if not study.measurement(*u[1:]).is_file()])
    measurements = load_measurements(study.out)

    claims = [claim for claim in CLAIMS if claim.measurement in measurements]
    counts = write_reproduction(
        measurements,
        page,
        setup=_setup(study),
        figures=write_reproduction_pngs(measurements, page.parent / "assets" / "reproduction"),
        claims=claims,
    )
    if left := len(CLAIMS) - len(claims):
        print(f"{left} claims were not measured in this variant")
    print(f"{page}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


def measures(study: Study) -> dict[str, Callable[[Scene], Row]]:
    """Name of each measurement -> what takes it from a scene."""
    found: dict[str, Callable[[Scene], Row]] = {
        "ranks": accuracy.ranks,
        "windows": accuracy.windows,
        "rescaling": accuracy.rescaling,
        "scaling": accuracy.scaling,
        "embeddings": accuracy.embeddings,
        "geometry": geometry.geometry,
        "progress": accuracy.progress,
        "shift": geometry.shift,
        "methods": lambda scene: methods.methods_record(scene.study, scene.seed),
    }
    if not study.quick:
        found["difficulty"] = lambda scene: methods.difficulty_record(scene.study, scene.seed)
    return found


def _make_world(unit: Unit) -> str:
    """Base and teacher of a world; cached ones are taken."""
    study, _, index = unit
    world_models(worlds(study)[index], print)
    return f"made the models of world {index + 1}"


def _train_one(unit: Unit) -> str:
    study, method, seed = unit
    train_run(study, method, seed)
    return f"trained {method}, seed {seed}"


def _measure_one(unit: Unit) -> str:
    study, name, seed = unit
    record = measures(study)[name](Scene(study, seed))
    write_json_atomic(study.measurement(name, seed), {"schema": 1, **record})
    return f"measured {name}, seed {seed}"


def _hide_progress() -> None:
    """A unit is one line of progress; bars of reading and writing its models would hide it."""
    logging.disable_progress_bar()


def _in_parallel(function: Callable[[Unit], str], units: Iterable[Unit]) -> None:
    """Runs units in processes of one thread each; the first failure ends the command."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the processes
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(WORKERS, mp_context=context, initializer=_hide_progress)
    try:
        running: list[Future[str]] = [pool.submit(function, unit) for unit in units]
        for count, future in enumerate(as_completed(running), start=1):
            print(f"[{count}/{len(running)}] {future.result()}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _setup(study: Study) -> str:
    world = TinyWorld(**study.world)
    count = sum(parameter.numel() for parameter in make_model(world).parameters())
    return SETUP.format(
        parameters=f"{count / 1e6:.2f} M",
        layers=world.layers,
        steps=study.steps,
        answers=study.answers,
        lr=study.lr,
        n=len(study.seeds),
        problems=study.problems,
        passes=study.passes,
    )
