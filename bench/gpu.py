"""What needs a GPU: one training step, the divergence against its peers, the search, and learning.

    python bench/gpu.py [--json] [--only step kl search] [--peers naive trl liger]
    python bench/gpu.py --only learning                      # eight minutes, models included
    python bench/gpu.py --device cpu --small --peers naive trl

`--small` runs the same code at a size that a CPU finishes in seconds; its numbers mean nothing.
bench/README.md says what is measured. Seconds are wall seconds between synchronizations, the best
of the repeats; MiB are the growth of the peak of what the device has allocated.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from kl import CLEAR_REFS, LOSSES, MEBIBYTE, PACKAGES, Inputs, Setting, resident_mebibytes
from kl import step as kl_step
from transformers import Qwen3Config, Qwen3ForCausalLM

import effopd
from effopd.data.problem import Problem
from effopd.data.world import TinyWorld, make_tokenizer
from effopd.demo.cache import world_models
from effopd.evaluation.routing import Teachers
from effopd.methods import Batch, FullVocabularyKL, Resources
from effopd.models.policy import Policy
from effopd.reports.summary import method_summary, teacher_accuracy
from effopd.rollouts.engine import Completion
from effopd.rollouts.rollout import Rollout
from effopd.training.settings import LoopSettings, MemorySettings, TrainSettings
from effopd.training.update import Updater
from search import PEER, PEER_VERSION, Ours, Released, Tensors, endpoints, ignore

SPARE_BYTES = 6 * 2**30
"""What activations and the divergence may take; the logits of one model would take 9.3 GiB."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of everything; those of the models are Qwen3-0.6B and Qwen3-1.7B."""

    vocabulary: int = 151_936
    student: tuple[int, int, int] = (1024, 3072, 28)  # width, width of the MLP, layers
    teacher: tuple[int, int, int] = (2048, 6144, 28)
    sequences: int = 8
    length: int = 2048
    prompt: int = 128
    searched: int = 1_720_000_000

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


FULL = Size()
SMALL = Size(
    vocabulary=512, student=(32, 64, 2), teacher=(64, 96, 2), sequences=2, length=64, prompt=8,
    searched=400_000,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of output; `ratio` is how many times better ours is."""

    name: str
    setting: str
    ours: float
    peer: float
    peer_name: str
    peer_version: str
    unit: str
    ratio: float
    device: str


class Meter:
    """Wall time and memory of calls on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._cuda = device.startswith("cuda")
        self.name = torch.cuda.get_device_name(device) if self._cuda else "CPU"

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        best = float("inf")
        for _ in range(repeats):
            self._wait()
            start = time.perf_counter()
            call()
            self._wait()
            best = min(best, time.perf_counter() - start)
        return best

    def growth_mebibytes(self, call: Callable[[], object]) -> float:
        """How far the peak during the call is above what was held before."""
        gc.collect()
        if not self._cuda:
            before = resident_mebibytes("VmRSS")
            CLEAR_REFS.write_text("5")
            call()
            return resident_mebibytes("VmHWM") - before
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        held = torch.cuda.memory_allocated(self.device)
        call()
        self._wait()
        return (torch.cuda.max_memory_allocated(self.device) - held) / MEBIBYTE


def row(meter: Meter, name: str, setting: str, ours: float, peer: float, **rest: str) -> Row:
    return Row(
        name=name,
        setting=setting,
        ours=round(ours, 4),
        peer=round(peer, 4),
        ratio=round(peer / max(ours, 1e-9), 2),
        device=meter.name,
        **rest,
    )


# One training step --------------------------------------------------------------------------------


def random_model(size: Size, shape: tuple[int, int, int], device: str) -> Any:
    width, inner, layers = shape
    config = Qwen3Config(
        vocab_size=size.vocabulary, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=max(2, width // 128),
        num_key_value_heads=max(1, width // 256), head_dim=max(16, width // 16),
        max_position_embeddings=size.length, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        return Qwen3ForCausalLM(config).to(torch.bfloat16).eval()


def random_rollouts(size: Size) -> list[Rollout]:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(1, size.vocabulary, (size.sequences, size.length), generator=rng).tolist()
    return [
        Rollout(
            problem=Problem(id=str(i), prompt="random"),
            prompt_ids=tuple(row[: size.prompt]),
            completion=Completion(
                token_ids=tuple(row[size.prompt :]),
                log_probs=(0.0,) * (size.length - size.prompt),
                finish_reason="length",
                text="",
            ),
        )
        for i, row in enumerate(ids)
    ]


def training_step(meter: Meter, size: Size) -> Iterator[Row]:
    """bf16 student with fp32 masters, bf16 teacher, reverse KL over the whole vocabulary.

    The peer is the bound on memory: 18 bytes a parameter of the student (weights 2, masters 4,
    gradients 4, moments 8), 2 of the teacher, and `SPARE_BYTES`.
    """
    tokenizer = make_tokenizer(TinyWorld())
    rollouts = random_rollouts(size)
    found: dict[str, Any] = {}

    def step() -> None:
        student = Policy(random_model(size, size.student, meter.device), tokenizer)
        teacher = Policy(random_model(size, size.teacher, meter.device), tokenizer)
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
        resources = Resources(student=student, teachers=Teachers(policies={"": teacher}))
        learner = FullVocabularyKL().learner(resources)
        updater = Updater(
            student,
            learner,
            LoopSettings(
                train=TrainSettings(micro_batch_tokens=size.tokens),
                memory=MemorySettings(master_weights=True),
            ),
        )
        learner.prepare(
            Batch(step=1, rollouts=tuple(rollouts), rewards=(), responses=1,
                  written_tokens=size.sequences * (size.length - size.prompt))
        )  # fmt: skip
        updater.set_lr_(1)
        found["first"] = updater.update_(rollouts, 1)
        found["seconds"] = meter.seconds(lambda: updater.update_(rollouts, 2), 1)
        found["finite"] = all(bool(p.isfinite().all()) for p in student.model.parameters())
        found["counts"] = [
            sum(p.numel() for p in policy.model.parameters()) for policy in (student, teacher)
        ]

    peak = meter.growth_mebibytes(step)
    own, other = found["counts"]
    bound = (18 * own + 2 * other + SPARE_BYTES) / MEBIBYTE
    if not found["finite"]:
        raise AssertionError("a weight is not finite after two steps")
    setting = f"{own / 1e6:.0f} M from {other / 1e6:.0f} M, {size.tokens} tokens"
    yield row(meter, "step", setting, peak, bound, peer_name="bound", peer_version="", unit="MiB")
    yield row(
        meter, "step", setting, found["seconds"], found["seconds"], peer_name="itself",
        peer_version="", unit="s",
    )  # fmt: skip


# The divergence -----------------------------------------------------------------------------------


def divergence(meter: Meter, size: Size, peers: list[str], repeats: int) -> Iterator[Row]:
    """Forward and backward from hidden states in bf16, ours and each peer at its defaults."""
    setting = Setting(size.tokens, size.vocabulary, size.student[0])
    inputs = on_device(Inputs.random(setting), meter.device)
    check_same(inputs, peers)
    names = ["ours", *peers]
    seconds = {n: meter.seconds(lambda n=n: kl_step(LOSSES[n], inputs), repeats) for n in names}
    peaks = {n: meter.growth_mebibytes(lambda n=n: fresh_step(n, inputs)) for n in names}
    shape = f"N={setting.tokens} V={setting.vocabulary} H={setting.width} bf16"
    for unit, values in (("s", seconds), ("MiB", peaks)):
        for peer in peers:
            yield row(
                meter, "kl", shape, values["ours"], values[peer], peer_name=peer,
                peer_version=version(PACKAGES[peer]), unit=unit,
            )  # fmt: skip


def on_device(inputs: Inputs, device: str) -> Inputs:
    student, head, *teacher = (t.detach().to(device, torch.bfloat16) for t in inputs.tensors())
    return Inputs(student.requires_grad_(), head.requires_grad_(), *teacher)


def fresh_step(name: str, inputs: Inputs) -> None:
    """A step that starts and ends without gradients, so that they are part of its memory."""
    inputs.student_hidden.grad = inputs.student_weight.grad = None
    kl_step(LOSSES[name], inputs)
    inputs.student_hidden.grad = inputs.student_weight.grad = None


def check_same(inputs: Inputs, peers: list[str]) -> None:
    """Raises unless all losses agree up to the rounding of bf16; also warms everything up."""
    wanted = kl_step(LOSSES["ours"], inputs).float()
    for name in peers:
        found = kl_step(LOSSES[name], inputs).float()
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-3, check_dtype=False)


# The search ---------------------------------------------------------------------------------------


def search(meter: Meter, size: Size, repeats: int) -> Iterator[Row]:
    """Five accepted candidates: ours with anchor and tip on the host, and beside the weights.

    The peer makes full copies in host memory at the start and at every acceptance, as the release
    does on every rank; what it gathers for that is not counted.
    """
    base, tip = (
        {name: tensor.to(meter.device) for name, tensor in point.items()}
        for point in endpoints(size.searched, torch.bfloat16)
    )
    count = sum(tensor.numel() for tensor in base.values())
    hosted = run(Ours(base, guarded=True, anchor="cpu"), base, tip)
    beside = run(Ours(base, guarded=True, anchor=None), base, tip)
    for name, tensor in hosted.live.items():
        if not torch.equal(tensor, beside.live[name]):
            raise AssertionError(f"{name}: an anchor on the host leads elsewhere")
    seconds = {"hosted": timed(meter, hosted, base, tip, repeats)}
    seconds["beside"] = timed(meter, beside, base, tip, repeats)
    del hosted, beside
    seconds[PEER] = timed(meter, Released(base, copies="cpu"), base, tip, repeats)
    setting = f"{count / 1e6:.0f} M bf16, five candidates"
    for name, mine in (("search-host", "hosted"), ("search-device", "beside")):
        yield row(
            meter, name, setting, seconds[mine], seconds[PEER], peer_name=PEER,
            peer_version=PEER_VERSION, unit="s",
        )  # fmt: skip


def run(contender: Ours, base: Tensors, tip: Tensors) -> Ours:
    contender.reset_(base, tip)
    contender.search(ignore)
    return contender


def timed(
    meter: Meter, contender: Ours | Released, base: Tensors, tip: Tensors, repeats: int
) -> float:
    best = float("inf")
    for _ in range(repeats):
        contender.reset_(base, tip)
        best = min(best, meter.seconds(lambda: contender.search(ignore), 1))
    return best


# Learning -----------------------------------------------------------------------------------------

MIDDLE = TinyWorld(
    hidden=512, layers=12, operations=5, shortest=2, wrong_step=0.2, direct_answer=0.3,
    base_greedy=0.6, noise_steps=60, teacher_steps=80, teacher_lr=1e-4,
)  # fmt: skip
"""35 M parameters."""
TINIEST = TinyWorld(
    hidden=16, layers=1, modulus=2, operations=1, train_problems=2, test_problems=2, base_steps=20,
    base_greedy=0.0, noise_steps=1, teacher_steps=1,
)  # fmt: skip
REUSED = {"updates_per_step": 8, "epochs": 2}
CONTENDERS: dict[str, tuple[str, tuple[float, ...], dict[str, Any]]] = {
    "one update a batch": ("opd", (1e-4, 3e-4, 1e-3), {}),
    "the same updates, fixed rate": ("opd", (1e-4, 3e-4), {"train": REUSED}),
    "the same updates, Prodigy": (
        "opd", (1.0,), {"train": REUSED, "optimizer": {"type": "prodigy"}}
    ),
    "slope": ("slope", (1e-5, 1e-3), {}),
}  # fmt: skip


def learning(meter: Meter, world: TinyWorld, steps: int) -> Iterator[Row]:
    """Tokens and wall seconds to 90% of the teacher, in bfloat16 with masters; one seed.

    The peer is one update a batch at the best of its rates; a ratio of 0 says that one of the two
    was not there after the last step.
    """
    common: dict[str, Any] = {
        "device": meter.device,
        "task": asdict(world),
        "objective": {"type": "full_kl"},
        "sampling": {"max_new_tokens": 40},
        "memory": {"master_weights": True},
        "evaluation": {"every": 1, "problems": 256, "recorded": 0, "divergence": True},
        "checkpoint": {"every": steps, "keep": 1},
    }
    found: dict[tuple[str, float], dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = world_models(world, ignore, cache=Path(folder), device=meter.device)
        for part, path in (("student", models.base), ("teacher", models.teacher)):
            common[part] = {"path": str(path), "dtype": "bfloat16"}
        for label, (method, lrs, own) in CONTENDERS.items():
            for lr in lrs:
                train = {"steps": steps, "prompts_per_step": 128, "stop": {"target": 0.95}}
                sections = common | {
                    "train": train | own.get("train", {}),
                    "optimizer": {"lr": lr} | own.get("optimizer", {}),
                }
                config = effopd.Config.of(method, **sections)
                run = effopd.train(config, Path(folder, f"{label} {lr}"))
                found[label, lr] = method_summary(run, teacher_accuracy([run]))
    first = next(iter(CONTENDERS))
    for cost, unit in (("tokens", "tokens"), ("seconds", "s")):
        values = {each: summary[f"{cost}_to_90"] or 0.0 for each, summary in found.items()}
        best = min((v for (label, _), v in values.items() if label == first and v), default=0.0)
        for (label, lr), value in values.items():
            yield row(
                meter, "learning", f"{label}, {lr:g}", value, best if value else 0.0,
                peer_name=first, peer_version="", unit=unit,
            )  # fmt: skip


# Output -------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="only show that everything runs")
    parser.add_argument("--only", nargs="+", choices=["step", "kl", "search", "learning"])
    parser.add_argument("--peers", nargs="+", choices=PACKAGES, default=list(PACKAGES))
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def rows(options: argparse.Namespace) -> Iterator[Row]:
    meter, size = Meter(options.device), SMALL if options.small else FULL
    wanted = options.only or ["step", "kl", "search"]
    if "step" in wanted:
        yield from training_step(meter, size)
    if "kl" in wanted:
        yield from divergence(meter, size, options.peers, options.repeats)
    if "search" in wanted:
        yield from search(meter, size, options.repeats)
    if "learning" in wanted:
        yield from learning(meter, *((TINIEST, 1) if options.small else (MIDDLE, 30)))


def main() -> None:
    options = parse_arguments()
    for each in rows(options):
        line = asdict(each)
        print(json.dumps(line) if options.json else "  ".join(map(str, line.values())))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
