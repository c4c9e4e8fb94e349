"""`python -m studies.paper.wide`: what the claims become on a real model, SmolLM2-135M-Instruct.

30 layers of matrices 192 to 1,536 wide, bfloat16 with float32 masters, one seed: numbers to set
beside the tiny world's, no verdicts. Reinforcement learning starts from the model after a few
supervised steps on stories and their sums, since it never gets one right before.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from studies.paper import accuracy, geometry
from studies.paper.claims import CLAIMS
from studies.paper.page import (
    SCHEMA,
    Measurements,
    claimed,
    judge,
    load_measurements,
    table_row,
    titled,
)
from studies.paper.quantities import Untested
from studies.paper.study import BOTH, Scene, Study, train_run

from effopd.data.smollm2 import SmolLM2
from effopd.demo.cache import ensure
from effopd.demo.smollm2 import SYSTEM, smollm2_models, train_teacher
from effopd.models.layout import matrices, module_tensors
from effopd.models.updates import open_update
from effopd.records import Row, write_json_atomic, write_text_atomic


@dataclass(frozen=True, kw_only=True)
class WideStudy(Study):
    """Sizes of the study of a real model: two hours of one core with bfloat16 instructions.

    Attributes:
        supervised: Steps on demonstrations that the base has behind it.
    """

    seeds: tuple[int, ...] = (0,)
    algorithm_seeds: int = 0
    rl_steps: int = 40
    patience: int = 40
    rl_prompts: int = 8
    responses: int = 16
    steps: int = 32
    answers: int = 64
    save_every: int = 8
    moments: int = 4
    lr: float = 2e-5
    problems: int = 64
    passes: int = 2
    half_width: int = 8
    windows: int | None = 8
    top_shares: tuple[float, ...] = (0.01, 0.1, 0.5)
    bottom_shares: tuple[float, ...] = (0.5,)
    supervised: int = 12

    def base(self, seed: int) -> Path:
        """The model after its supervised steps."""
        task, to = SmolLM2(task="sums", dtype="bfloat16"), self.out / "base"
        before = smollm2_models(task, print, teacher=False).base
        ensure(to, print, lambda new: train_teacher(task, before, new, print, self.supervised))
        return to

    def sections(self, seed: int) -> dict[str, Any]:
        """The real model instead of a tiny world."""
        return {
            "task": {"type": "smollm2", "task": "sums", "dtype": "bfloat16"},
            "student": {"path": str(self.base(seed)), "dtype": "bfloat16"},
            "memory": {"master_weights": True},
            "prompt": {"system": SYSTEM},
            "sampling": {"max_new_tokens": 20},
        }


def stored(scene: Scene) -> Row:
    """Table 1 of updates as they are stored, in bfloat16, and of their float32 masters."""
    record: Row = {}
    for method in BOTH:
        last = scene.study.saved_steps(method, scene.seed)[-1]
        saved = scene.study.checkpoint(method, scene.seed, last)
        exact = open_update(scene.base, masters_of(saved, scene.study.out / "masters" / method))
        modules = matrices(module_tensors(exact.shapes))
        record[method] = {"masters": geometry.table_1(exact, modules)}
        record[method]["stored"] = geometry.table_1(scene.update(method), modules)
    return record


def masters_of(checkpoint: Path, to: Path) -> Path:
    """A model directory of a checkpoint's float32 masters, by links."""
    to.mkdir(parents=True, exist_ok=True)
    there = {"model.safetensors": "trainer/masters.safetensors", "config.json": "config.json"}
    for name, file in there.items():
        (to / name).unlink(missing_ok=True)
        (to / name).symlink_to((checkpoint / file).resolve())
    return to


MEASURES = {
    "progress": accuracy.progress,
    "stored": stored,
    "rescaling": accuracy.rescaling,
    "windows": accuracy.windows,
    "ranks": accuracy.ranks,
    "scaling": accuracy.scaling,
    "embeddings": accuracy.embeddings,
    "shift": geometry.shift,
    "geometry": geometry.geometry,
}


def page(ours: Measurements, tiny: Measurements) -> str:
    """A claim a row, with its number here and the tiny world's mean and interval."""
    lines = [
        _HEAD.read_text("utf-8"),
        "| figure | claim | claimed | SmolLM2 | tiny world |",
        "|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        if claim.measurement not in ours:
            continue
        number = claim.statistic(ours[claim.measurement][0])
        found = number.reason if isinstance(number, Untested) else f"{number:.3f}"
        there = judge(claim, tiny)
        cells = [
            claim.figure,
            titled(claim),
            f"{claim.quantity} {claimed(claim)}",
            found,
            there.interval.text(3) if there.interval else there.reason,
        ]
        lines.append(table_row(cells))
    lines += ["", "| Table 1 | " + " | ".join(_COLUMNS) + " |", "|---|---|---|---|---|"]
    spectra = ours["stored"][0]
    for name in spectra["opd"]["stored"]:
        values = [spectra[method][kind][name] for method in BOTH for kind in ("masters", "stored")]
        lines.append(table_row([name.replace("_", " "), *(f"{v:.3g}" for v in values)]))
    return "\n".join([*lines, ""])


_HEAD = Path(__file__).with_name("wide.md")

_COLUMNS = ("GRPO, masters", "GRPO, stored", "OPD, masters", "OPD, stored")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains and measures what is missing, then writes the tables."""
    parser = argparse.ArgumentParser(prog="python -m studies.paper.wide", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/wide"), help="runs, records")
    parser.add_argument("--tiny", type=Path, default=Path("runs/reproduce"), help="its records")
    parser.add_argument("--page", type=Path, default=Path("docs/reproduction-wide.md"))
    asked = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    study = WideStudy(out=asked.out)
    for method in BOTH:
        train_run(study, method, 0)
        print(f"trained {method}", flush=True)
    scene = Scene(study, 0)
    for name, measure in MEASURES.items():
        if not (file := study.measurement(name, 0)).is_file():
            write_json_atomic(file, {"schema": SCHEMA, "base_model": 0} | measure(scene))
            print(f"measured {name}", flush=True)
    text = page(load_measurements(asked.out), load_measurements(asked.tiny))
    write_text_atomic(asked.page, text)
    print(asked.page)


if __name__ == "__main__":
    main()
