"""Steps and sampled tokens to 90 % of the teacher in TRL, with the search's callback and without.

    python bench/trl_steps.py [--json] [--rates 1e-4 1e-3] [--seeds 0 1 2] [--workers 2]
                              [--searches default keep]

TRL's `DistillationTrainer` trains the tiny world's base on its teacher: reverse KL, 128 prompts a
step, AdamW (0.9, 0.95), a constant learning rate. `EffOPDCallback` is at its defaults, or, `keep`,
with `Search()`, which leaves the learning rate alone. After every second update the student answers
256 held-out problems with fixed seeds; a run ends when it reaches 90 % of the accuracy of the
teacher, or after 64 updates. Seeds are those of the trainer: order of the prompts and sampling.
They share one base and one teacher.

Sampled tokens are those of the answers that were trained on and of those that scored candidates. A
run that does not get there has neither steps nor tokens, and counts as more than any other.

ratio: how many times fewer ours needs, at the median of the seeds; the peer is TRL without the
callback at the same rate, and in the last rows at the best of the rates, ours as well. There is no
ratio where TRL does not get there.
"""

import argparse
import functools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from effopd import Search
from effopd.data.world import TinyWorld, make_tokenizer
from effopd.demo.cache import WorldModels, world_models
from effopd.demo.pretrain import accuracy
from effopd.integrations.trl import FOLLOWING, EffOPDCallback
from effopd.records import read_jsonl

STEPS, EVERY = 64, 2
PROMPTS = 128
PROBLEMS = 256
SHARE = 0.9
WORLD = TinyWorld()
SEARCHES = {"default": FOLLOWING, "keep": Search()}


@dataclass(frozen=True)
class Run:
    """What is trained."""

    search: str | None
    rate: float
    seed: int


@dataclass(frozen=True)
class Cost:
    """Of getting there; infinite for a run that did not."""

    steps: float
    tokens: float


class Goal(TrainerCallback):
    """Ends training at an accuracy on held-out problems."""

    def __init__(self, model: Any, target: float) -> None:
        self.model, self.target = model, target
        self.reached: int | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0 and held_out(self.model) >= self.target:
            self.reached = state.global_step
            control.should_training_stop = True


@functools.cache
def models() -> WorldModels:
    return world_models(WORLD, lambda line: print(line, file=sys.stderr))


def held_out(model: Any) -> float:
    """Accuracy; the generators stay where they are."""
    with torch.random.fork_rng():
        return accuracy(WORLD, model, WORLD.load().test[:PROBLEMS], 1.0)


def loaded(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory)


def make_trainer(run: Run, output: Path) -> Any:
    messages = [[{"role": "user", "content": problem.prompt}] for problem in WORLD.load().train]
    trainer = DistillationTrainer(
        model=loaded(models().base),
        teacher_model=loaded(models().teacher),
        args=DistillationConfig(
            output_dir=str(output),
            seed=run.seed,
            max_steps=STEPS,
            learning_rate=run.rate,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            beta=1.0,
            per_device_train_batch_size=PROMPTS,
            max_completion_length=WORLD.answer_tokens,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": messages}),
        processing_class=make_tokenizer(WORLD),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def cost(run: Run, target: float) -> Cost:
    """Trains until the target is reached."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(run, Path(folder))
        if run.search is not None:
            trainer.add_callback(EffOPDCallback(trainer, search=SEARCHES[run.search]))
        goal = Goal(trainer.model, target)
        trainer.add_callback(goal)
        trainer.train()
        if goal.reached is None:
            return Cost(math.inf, math.inf)
        trials = Path(folder, "effopd", "search.jsonl")
        searched = sum(row["tokens"] for row in read_jsonl(trials)) if run.search else 0
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "loss" in row]
    return Cost(goal.reached, PROMPTS * sum(lengths) + searched)


# Rows ---------------------------------------------------------------------------------------------


Costs = dict[tuple[str | None, float], list[Cost]]
"""(search, rate) -> one a seed."""


def row(setting: str, unit: str, ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    middle, plain = statistics.median(ours), statistics.median(peer)
    return {
        "name": "to 90 % of the teacher",
        "setting": setting,
        "ours": number(middle),
        "peer": number(plain),
        "peer_name": "TRL",
        "peer_version": version("trl"),
        "unit": unit,
        "ratio": plain / middle if math.isfinite(plain) and math.isfinite(middle) else None,
        "ours_seeds": [number(value) for value in ours],
        "peer_seeds": [number(value) for value in peer],
    }


def number(value: float) -> int | None:
    return round(value) if math.isfinite(value) else None


def rows(costs: Costs, search: str, rates: Sequence[float]) -> Iterator[dict[str, Any]]:
    for unit in ("steps", "tokens"):
        ours, peer = (
            {rate: [getattr(each, unit) for each in costs[name, rate]] for rate in rates}
            for name in (search, None)
        )
        for rate in rates:
            yield row(f"{search}, {rate:g}", unit, ours[rate], peer[rate])
        best, plain = (min(of, key=lambda r: statistics.median(of[r])) for of in (ours, peer))
        setting = f"{search}, best: {best:g}, TRL {plain:g}"
        yield row(setting, unit, ours[best], peer[plain])


def shown(found: dict[str, Any]) -> str:
    ours, peer = (
        " ".join("-" if value is None else f"{value:,}" for value in found[side])
        for side in ("ours_seeds", "peer_seeds")
    )
    ratio = "-" if found["ratio"] is None else f"{found['ratio']:.2f}x"
    return f"| {found['unit']} | {found['setting']} | {peer} | {ours} | {ratio} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES), choices=SEARCHES)
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, a thread each")
    asked = parser.parse_args()
    target = SHARE * held_out(loaded(models().teacher))
    runs = [
        Run(search, rate, seed)
        for rate in asked.rates
        for search in (None, *asked.searches)
        for seed in asked.seeds
    ]
    with ProcessPoolExecutor(asked.workers, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(cost, runs, [target] * len(runs)))
    costs: Costs = {}
    for run, each in zip(runs, found, strict=True):
        costs.setdefault((run.search, run.rate), []).append(each)
    if not asked.json:
        print("| to 90 % | search, learning rate | TRL, a seed each | with the callback | ratio |")
        print("|---|---|---|---|---|")
    for search in asked.searches:
        for each in rows(costs, search, asked.rates):
            print(json.dumps(each) if asked.json else shown(each))


if __name__ == "__main__":
    main()
