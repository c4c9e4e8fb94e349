"""A row of the monitor against the same numbers from whole copies of the weights.

    python bench/monitor.py [--json] [--model tiny|small] [--repeats 5]

The peer keeps whole copies of base, last place and last displacement, and takes every inner product
over all of them. Ours follows at most 262,144 evenly spaced weights.

The share is that of a row in a step of training: one forward and backward pass over 4,096 tokens of
32-token sequences and one AdamW update. Sampling, the teacher and the search are left out, so in a
run it is smaller. With `monitor.every = n` it is an n-th of that.

The script says how far the sampled numbers are from the peer's. Times are CPU milliseconds on one
thread, both sides interleaved, the least of the repeats.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from effopd.data.world import TinyWorld, make_model
from effopd.training.monitor import Monitor
from effopd.training.settings import MonitorSettings

MODELS = {"tiny": (96, 4), "small": (512, 4)}
"""Hidden size and layers."""
SETTINGS = ("highest", "medium")
SEQUENCES, LENGTH, MICRO_BATCH = 128, 32, 32
NAMES = ("step_cosine", "displacement", "straightness")
PEER, PEER_VERSION = "whole copies", f"torch {torch.__version__}"
GOAL = 0.03

Numbers = dict[str, float]


class Whole:
    """The peer: nothing is sampled."""

    def __init__(self, model: Any) -> None:
        self._live = [parameter.detach() for parameter in model.parameters()]
        self._base = self._copy()
        self._last, self._moved, self._length = self._base, torch.zeros_like(self._base), 0.0

    def _copy(self) -> torch.Tensor:
        return torch.cat([tensor.flatten() for tensor in self._live])

    def observe(self) -> Numbers:
        now = self._copy()
        moved, distance = now - self._last, float((now - self._base).norm())
        norms = float(moved.norm()) * float(self._moved.norm())
        cosine = float(moved @ self._moved) / max(norms, 1e-30)
        self._length += float(moved.norm())
        self._last, self._moved = now, moved
        return {
            "step_cosine": cosine,
            "displacement": distance,
            "straightness": distance / self._length,
        }


class Training:
    """Steps on random tokens: only their cost matters, and that the weights move."""

    def __init__(self, hidden: int, layers: int) -> None:
        self.model: Any = make_model(replace(TinyWorld(), hidden=hidden, layers=layers))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        size = self.model.config.vocab_size
        rng = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, size, (SEQUENCES, LENGTH), generator=rng)

    def step(self) -> None:
        self.optimizer.zero_grad()
        for part in self.ids.split(MICRO_BATCH):
            (self.model(input_ids=part, labels=part).loss * len(part) / SEQUENCES).backward()
        self.optimizer.step()


def cpu_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def distances(training: Training) -> Numbers:
    """How far the sampled numbers are from the peer's after two steps."""
    whole, ours = Whole(training.model), monitor_of(training)
    for step in (1, 2):
        training.step()
        expected, found = whole.observe(), ours.observe(step)
    assert found is not None
    return {name: abs(found[name] - expected[name]) for name in NAMES}


def monitor_of(training: Training) -> Monitor:
    return Monitor(training.model.parameters(), MonitorSettings(every=1))


def rows(labels: list[str], repeats: int) -> Iterator[dict[str, object]]:
    for label in labels:
        training = Training(*MODELS[label])
        off = distances(training)
        for setting in SETTINGS:
            torch.set_float32_matmul_precision(setting)
            ours, whole = monitor_of(training), Whole(training.model)
            best = dict.fromkeys(("step", "ours", "peer"), float("inf"))
            for repeat in range(repeats + 1):  # the first is a cold start, and not counted
                taken = {
                    "step": cpu_ms(training.step),
                    "ours": cpu_ms(lambda ours=ours: ours.observe(1)),
                    "peer": cpu_ms(whole.observe),
                }
                if repeat:
                    best = {name: min(best[name], ms) for name, ms in taken.items()}
            yield {
                "name": f"monitor-{label}",
                "setting": setting,
                "ours": round(best["ours"], 2),
                "peer": round(best["peer"], 2),
                "peer_name": PEER,
                "peer_version": PEER_VERSION,
                "unit": "CPU ms/row",
                "ratio": round(best["peer"] / best["ours"], 1),
                "step": round(best["step"], 1),
                "share": round(best["ours"] / (best["step"] + best["ours"]), 4),
                "goal": GOAL,
                "off_by": {name: round(distance, 4) for name, distance in off.items()},
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--model", choices=MODELS, help="one of them only")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    shown = ("name", "setting", "ours", "peer", "ratio", "step", "share")
    if not options.json:
        print("  ".join(f"{column:>16}" for column in shown))
    labels = [options.model] if options.model else list(MODELS)
    for row in rows(labels, options.repeats):
        line = "  ".join(f"{row[column]!s:>16}" for column in shown)
        print(json.dumps(row) if options.json else f"{line}  {row['off_by']}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
