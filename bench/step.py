"""One step of on-policy distillation, against TRL's `DistillationTrainer`.

    python bench/step.py [--json] [--setting tiny] [--mode given] [--precision highest] [--rounds 2]
        [--steps 3]

Student and teacher are untrained models of the same shape; reverse KL over the whole vocabulary,
AdamW, fp32, one thread. `given`: the same prompts and the same answers, so what is timed is the
teacher's pass, the student's, the loss, the gradient and the update; loss and gradient norm of the
first step have to agree. `generate`: the student writes the answers first; each side has random
numbers of its own, so what is compared is the time per written token. The models have many end
tokens, so that the lengths of answers vary as they do in training. `reuse`: four passes over the
given answers; the teacher's hidden states are kept from one to the next, and the peer is ours with
`memory.teacher_states_gb = 0`, whose teacher reads in every pass; losses have to be equal.

Each side runs in a process of its own: one step to warm up, `--steps` that are timed. Seconds are
CPU seconds of the process, the least of the steps of all rounds. Memory is the growth of the peak
resident set over the timed steps, over what the process held after the first.

ratio: how many times better ours is.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from effopd.data.problem import Problem
from effopd.data.world import TinyWorld, make_tokenizer
from effopd.evaluation.kept_states import DEFAULT_GB, KeptStates
from effopd.evaluation.routing import Teachers
from effopd.methods import Batch, FullVocabularyKL, Resources
from effopd.models.policy import Policy
from effopd.rollouts.engine import Completion, Request, Sampling
from effopd.rollouts.hf import HFEngine
from effopd.rollouts.rollout import Rollout
from effopd.training.settings import LoopSettings, OptimizerSettings, TrainSettings
from effopd.training.update import Updater

PRECISIONS, MODES = ["highest", "medium"], ["given", "generate", "reuse"]
RATE, FIRST_WORD, PASSES = 1e-5, 3, 4
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Setting:
    """A model and a batch; answers have `mean` tokens on average, `longest` at most."""

    vocabulary: int
    width: int
    layers: int
    prompts: int
    prompt: int
    mean: int
    longest: int
    steps: int = 3


SETTINGS = {
    "tiny": Setting(20, 96, 4, prompts=128, prompt=12, mean=20, longest=32),
    "qwen3-50m": Setting(151_936, 256, 8, prompts=16, prompt=64, mean=64, longest=128),
}


def model(setting: Setting, seed: int) -> Any:
    """An untrained Qwen3; of 0.4 and of 48 million parameters."""
    torch.manual_seed(seed)
    made = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=setting.vocabulary,
            hidden_size=setting.width,
            intermediate_size=3 * setting.width,
            num_hidden_layers=setting.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=setting.width // 4,
            max_position_embeddings=1024,
            tie_word_embeddings=setting.vocabulary > 1000,
            initializer_range=setting.width**-0.5,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    ends = list(range(2, setting.vocabulary, setting.mean))
    made.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=ends)
    return made


def prompts(setting: Setting) -> list[str]:
    """Words of the tiny world: one token each, and one for the start."""
    words = [*map(str, range(7)), "+", "-", "*", "="]
    rng = random.Random("prompts")
    low = setting.prompt // 2
    return [
        " ".join(rng.choices(words, k=rng.randint(low, setting.prompt - 1)))
        for _ in range(setting.prompts)
    ]


def answers(setting: Setting) -> list[list[int]]:
    """Random answers of random lengths."""
    rng = random.Random("answers")
    lengths = [
        min(setting.longest, 1 + int(rng.expovariate(1 / setting.mean)))
        for _ in range(setting.prompts)
    ]
    return [rng.choices(range(FIRST_WORD, setting.vocabulary), k=length) for length in lengths]


# Both sides ---------------------------------------------------------------------------------------


@dataclass
class Found:
    """CPU seconds and tokens of the timed steps, loss and gradient norm of the first one."""

    seconds: list[float]
    tokens: list[int]
    loss: float
    norm: float
    mebibytes: float
    teacher_tokens: int = 0


def ours(setting: Setting, mode: str, gigabytes: float = DEFAULT_GB) -> Found:
    tokenizer, words = make_tokenizer(TinyWorld()), prompts(setting)
    student, teacher = (Policy(model(setting, seed), tokenizer) for seed in (0, 1))
    teacher.model.requires_grad_(False)
    teachers = Teachers(policies={"": teacher}, kept=KeptStates(gigabytes))
    passes = PASSES if mode == "reuse" else 1
    learner = FullVocabularyKL().learner(
        Resources(student=student, teachers=teachers, epochs=passes)
    )
    settings = LoopSettings(
        optimizer=OptimizerSettings(lr=RATE), train=TrainSettings(epochs=passes)
    )
    updater = Updater(student, learner, settings)
    engine = HFEngine(student.model, tokenizer)
    sampling = Sampling(max_new_tokens=setting.longest)
    ids = [tuple(tokenizer(text)["input_ids"]) for text in words]
    problems = [Problem(id=str(i), prompt=text, answer="") for i, text in enumerate(words)]

    def step(number: int) -> tuple[int, float, float]:
        if mode != "generate":
            written = [
                Completion(
                    token_ids=tuple(each),
                    log_probs=(0.0,) * len(each),
                    finish_reason="stop",
                    text="",
                )
                for each in answers(setting)
            ]
        else:
            seeds = range(number * len(ids), (number + 1) * len(ids))
            requests = [Request(prompt_ids=p, seed=s) for p, s in zip(ids, seeds, strict=True)]
            written = engine.generate(requests, sampling)
        rollouts = tuple(
            Rollout(problem=problem, prompt_ids=prompt, completion=completion)
            for problem, prompt, completion in zip(problems, ids, written, strict=True)
        )
        tokens = sum(len(each.token_ids) for each in written)
        updater.set_lr_(number)
        learner.prepare(
            Batch(step=number, rollouts=rollouts, rewards=(), responses=1, written_tokens=tokens)
        )
        row = updater.update_(rollouts, number)
        learner.release()
        return tokens, row["loss"], row["grad_norm"]

    seconds: list[float] = []
    tokens: list[int] = []
    for number in range(1, setting.steps + 2):
        start = time.process_time()
        count, loss, norm = step(number)
        seconds.append(time.process_time() - start)
        tokens.append(count)
        if number == 1:
            first, before = (loss, norm), settled()
    peak = resident_mebibytes("VmHWM") - before
    return Found(seconds[1:], tokens[1:], *first, peak, teachers.tokens_read)


def trl(setting: Setting, mode: str) -> Found:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    words, given = prompts(setting), answers(setting)
    seconds: list[float] = []
    tokens: list[int] = []

    class Given(DistillationTrainer):
        """Writes the answers that are given, where they are."""

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            if mode == "given":
                known = {
                    tuple(tokenizer(t)["input_ids"]): a for t, a in zip(words, given, strict=True)
                }
                written = [known[tuple(ids)] for ids in prompt_ids]
            else:
                written = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            tokens.append(sum(map(len, written)))
            return written

    class Clock(TrainerCallback):
        before = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds.append(time.process_time() - self.start)
            if state.global_step == 1:
                self.before = settled()

    tokenizer, clock = make_tokenizer(TinyWorld()), Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Given(
            model=model(setting, 0),
            teacher_model=model(setting, 1),
            args=DistillationConfig(
                output_dir=folder,
                max_steps=setting.steps + 1,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                adam_beta2=0.95,
                beta=1.0,
                per_device_train_batch_size=setting.prompts,
                max_completion_length=setting.longest,
                activation_checkpointing=False,
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": words}),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    row = next(row for row in trainer.state.log_history if "loss" in row)
    peak = resident_mebibytes("VmHWM") - clock.before
    return Found(seconds[1:], tokens[1:], row["loss"], row["grad_norm"], peak)


SIDES = {"ours": ours, "trl": trl, "anew": partial(ours, gigabytes=0.0)}


def resident_mebibytes(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return float(line.split()[1]) / 1024


def settled() -> float:
    """What the process holds now, from which the peak is counted."""
    CLEAR_REFS.write_text("5")  # resets VmHWM to VmRSS
    return resident_mebibytes("VmRSS")


# Output -------------------------------------------------------------------------------------------


def rows(name: str, mode: str, precision: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Time and memory of one setting."""
    command = [sys.executable, __file__, "--setting", name, "--mode", mode]
    command += ["--steps", str(steps), "--precision", precision, "--side"]
    other, peer_name = ("anew", "read anew") if mode == "reuse" else ("trl", "TRL")
    found: dict[str, list[Found]] = {"ours": [], other: []}
    for _ in range(rounds):
        for side, each in found.items():
            run = subprocess.run([*command, side], stdout=subprocess.PIPE, text=True, check=True)
            each.append(Found(**json.loads(run.stdout.splitlines()[-1])))
    first, peer = found["ours"][0], found[other][0]
    if mode != "generate":
        torch.testing.assert_close(first.loss, peer.loss, rtol=1e-3, atol=0.0)  # TRL rounds its log
        torch.testing.assert_close(first.norm, peer.norm, rtol=1e-3, atol=0.0)
    best: dict[str, dict[str, float]] = {}
    for side, runs in found.items():
        timed = [pair for run in runs for pair in zip(run.seconds, run.tokens, strict=True)]
        best[side] = {
            "CPU s": min(seconds for seconds, _ in timed),
            "CPU ms/token": min(1e3 * seconds / count for seconds, count in timed),
            "MiB": min(run.mebibytes for run in runs),
            "teacher tokens": runs[0].teacher_tokens,
        }
    units = {"given": ["CPU s", "MiB"], "generate": ["CPU ms/token", "MiB"]}
    return [
        {
            "name": f"step, {mode}",
            "setting": f"{name}, matmul {precision}, 1 thread",
            "ours": round(best["ours"][unit], 3),
            "peer": round(best[other][unit], 3),
            "peer_name": peer_name,
            "peer_version": version("effopd" if other == "anew" else "trl"),
            "unit": unit,
            "ratio": round(best[other][unit] / best["ours"][unit], 2),
        }
        for unit in units.get(mode, ["CPU s", "MiB", "teacher tokens"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="default: all")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: all")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=2, help="processes a side (default 2)")
    parser.add_argument("--steps", type=int, default=3, help="timed of each (default 3)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    settings, modes = asked.setting or list(SETTINGS), asked.mode or MODES
    if asked.side:
        torch.set_num_threads(1)
        torch.set_float32_matmul_precision(asked.precision[0])
        setting = replace(SETTINGS[settings[0]], steps=asked.steps)
        print(json.dumps(SIDES[asked.side](setting, modes[0]).__dict__))
        return
    if not asked.json:
        print("| step | setting | unit | ours | peer | | ratio |\n|---|---|---|---|---|---|---|")
    for name in settings:
        for mode in modes:
            for precision in asked.precision or PRECISIONS:
                for row in rows(name, mode, precision, asked.rounds, asked.steps):
                    cells = [
                        row[key] for key in ("name", "setting", "unit", "ours", "peer", "peer_name")
                    ]
                    table = "| " + " | ".join(map(str, cells)) + f" | {row['ratio']}x |"
                    print(json.dumps(row) if asked.json else table, flush=True)


if __name__ == "__main__":
    main()
