"""What `effopd reproduce` does: trains, measures, and writes the page; goes on where it was."""

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from effopd.cli.reproduction.study import METHODS, REWARDED, Study, quick_study
from effopd.records import Row, write_json_atomic
from effopd.reports.claims import CLAIMS
from effopd.reports.reproduction import load_measurements, write_reproduction
from effopd.reports.reproduction_figures import write_reproduction_pngs

WORKERS = 2

Unit = tuple[Study, str, int]
"""Study, what to do, seed (of a world: its place)."""

SETUP = """A Qwen3 model of {parameters} parameters ({layers} layers) is taught modular arithmetic
from noisy demonstrations: it samples badly what it knows. GRPO and DAPO sharpen it; OPD distils
each GRPO run's last checkpoint into the same base. All take {steps} updates of {answers} answers
at learning rate {lr:g}, with {n} seeds. Accuracy is over {problems} held-out problems, {passes}
sampled answers each."""


def reproduce(out: Path, page: Path, *, quick: bool) -> None:
    """Trains and measures what is missing below `out`, then writes page and figures.

    Args:
        out: Directory of runs and measurements.
        page: Markdown file to write; figures go to `assets/reproduction` beside it.
        quick: Small and short; for checking that everything works.
    """
    reproduce_study(quick_study(out) if quick else Study(out=out), page)


def reproduce_study(study: Study, page: Path) -> None:
    """The same for a study of any size."""
    _hide_progress()
    _train(study)
    _measure(study)
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


def _train(study: Study) -> None:
    """The worlds' models, reinforcement learning, distillation from it, the comparison."""
    from effopd.cli.reproduction.methods import compare_methods
    from effopd.cli.reproduction.runs import worlds

    _in_parallel(_make_world, [(study, "world", i) for i in range(len(worlds(study)))])
    for stage in (REWARDED, [name for name in METHODS if name not in REWARDED]):
        _in_parallel(_train_one, [(study, name, seed) for name in stage for seed in study.seeds])
    compare_methods(study)


def _measure(study: Study) -> None:
    units = [(study, name, seed) for name in measures(study) for seed in study.seeds]
    _in_parallel(_measure_one, [u for u in units if not study.measurement(*u[1:]).is_file()])


def measures(study: Study) -> dict[str, Callable[..., Row]]:
    """Name of each measurement -> what takes it from a scene."""
    from effopd.cli.reproduction import accuracy, geometry, methods

    found: dict[str, Callable[..., Row]] = {
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
    from effopd.cli.reproduction.runs import worlds
    from effopd.demo.cache import world_models

    study, _, index = unit
    world_models(worlds(study)[index], print)
    return f"made the models of world {index + 1}"


def _train_one(unit: Unit) -> str:
    from effopd.cli.reproduction.runs import train_run

    study, method, seed = unit
    train_run(study, method, seed)
    return f"trained {method}, seed {seed}"


def _measure_one(unit: Unit) -> str:
    from effopd.cli.reproduction.scene import Scene

    study, name, seed = unit
    record = measures(study)[name](Scene(study, seed))
    write_json_atomic(study.measurement(name, seed), {"schema": 1, **record})
    return f"measured {name}, seed {seed}"


def _hide_progress() -> None:
    """A unit is one line of progress; bars of reading and writing its models would hide it."""
    from transformers.utils import logging

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
    from effopd.data.world import TinyWorld, make_model

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
