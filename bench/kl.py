"""Full-vocabulary reverse KL from hidden states, forward and backward, against its peers.

bench/README.md says how to install the peers, what is measured and how.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from effopd.objectives import fused_divergence

MEBIBYTE = 2**20
PRECISIONS = ["highest", "medium"]
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Setting:
    tokens: int
    vocabulary: int
    width: int


SETTINGS = {"kl-32k": Setting(1024, 32768, 256), "kl-152k": Setting(512, 151936, 1024)}
WARM_UP = Setting(64, 512, 64)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Inputs:
    student_hidden: Tensor
    student_weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor

    @classmethod
    def random(cls, setting: Setting) -> "Inputs":
        """Logits of standard deviation 2 on both sides, student and teacher unrelated."""
        rng = torch.Generator().manual_seed(0)
        head_scale = 2 * setting.width**-0.5

        def pair() -> tuple[Tensor, Tensor]:
            hidden = torch.randn(setting.tokens, setting.width, generator=rng)
            weight = torch.randn(setting.vocabulary, setting.width, generator=rng)
            return hidden, weight.mul_(head_scale)

        (hidden, weight), teacher = pair(), pair()
        return cls(hidden.requires_grad_(), weight.requires_grad_(), *teacher)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (self.student_hidden, self.student_weight, self.teacher_hidden, self.teacher_weight)


Loss = Callable[[Inputs], Tensor]


# Ours and the peers -------------------------------------------------------------------------------


def ours(inputs: Inputs) -> Tensor:
    return fused_divergence(*inputs.tensors(), matmul_precision=None).loss


def naive(inputs: Inputs) -> Tensor:
    log_p = (inputs.student_hidden @ inputs.student_weight.T).log_softmax(-1)
    log_q = (inputs.teacher_hidden @ inputs.teacher_weight.T).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def trl(inputs: Inputs) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student = inputs.student_hidden, inputs.student_weight, None
    teacher = inputs.teacher_hidden, inputs.teacher_weight, None
    divergences, _ = ChunkedDivergenceFunction.apply(*student, *teacher, 1.0)
    return divergences.mean()


def liger(inputs: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=False
    )
    hidden = inputs.student_hidden
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    return loss(*inputs.tensors(), labels)


LOSSES: dict[str, Loss] = {"ours": ours, "naive": naive, "trl": trl, "liger": liger}
PACKAGES = {"naive": "torch", "trl": "trl", "liger": "liger-kernel"}


def step(loss: Loss, inputs: Inputs) -> Tensor:
    """One forward and backward pass; returns the loss, leaves the gradients."""
    inputs.student_hidden.grad = inputs.student_weight.grad = None
    value = loss(inputs)
    value.backward()
    return value.detach()


# Equality -----------------------------------------------------------------------------------------


def check_equality(inputs: Inputs) -> None:
    """Raise unless every peer's loss and gradients are ours; also warms everything up."""
    trained = inputs.student_hidden, inputs.student_weight
    wanted_loss = step(ours, inputs)
    wanted = [tensor.grad.clone() for tensor in trained]
    for name in PACKAGES:
        found_loss = step(LOSSES[name], inputs)
        torch.testing.assert_close(found_loss, wanted_loss, rtol=1e-5, atol=0.0)
        for tensor, gradient in zip(trained, wanted, strict=True):
            distance = ((tensor.grad - gradient).norm() / gradient.norm()).item()
            if not distance < 1e-4:
                raise AssertionError(f"{name}: a gradient is {distance:.1e} away from ours")


# Time and memory ----------------------------------------------------------------------------------


def cpu_seconds(inputs: Inputs, repeats: int) -> dict[str, float]:
    """Least CPU seconds of a step for everyone, one after the other in every round."""
    best = dict.fromkeys(LOSSES, float("inf"))
    for _ in range(repeats):
        for name, loss in LOSSES.items():
            start = time.process_time()
            step(loss, inputs)
            best[name] = min(best[name], time.process_time() - start)
    return best


def resident_mebibytes(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return float(line.split()[1]) / 1024


def growth_of_peak(name: str, setting: str) -> float:
    """MiB by which a step raises the peak resident set of this process over what it held."""
    step(LOSSES[name], Inputs.random(WARM_UP))
    inputs = Inputs.random(SETTINGS[setting])
    before = resident_mebibytes("VmRSS")
    CLEAR_REFS.write_text("5")  # resets VmHWM to VmRSS
    step(LOSSES[name], inputs)
    return resident_mebibytes("VmHWM") - before


def peak_mebibytes(setting: str, precision: str) -> dict[str, float]:
    """`growth_of_peak` of everyone, each in a process of its own."""
    command = [sys.executable, __file__, "--setting", setting, "--precision", precision]
    return {
        name: float(subprocess.check_output([*command, "--peak-of", name], text=True))
        for name in LOSSES
    }


# Output -------------------------------------------------------------------------------------------


def measure(name: str, precision: str, repeats: int) -> list[Row]:
    setting = SETTINGS[name]
    inputs = Inputs.random(setting)
    check_equality(inputs)
    seconds = cpu_seconds(inputs, repeats)
    del inputs
    peaks = peak_mebibytes(name, precision)
    shape = f"N={setting.tokens} V={setting.vocabulary} H={setting.width}"
    return [
        Row(
            name=name,
            setting=f"{shape} fp32 matmul {precision}, 1 thread",
            ours=round(values["ours"], 3),
            peer=round(values[peer], 3),
            peer_name=peer,
            peer_version=version(package),
            unit=unit,
            ratio=round(values[peer] / values["ours"], 2),
        )
        for unit, values in (("CPU s", seconds), ("MiB", peaks))
        for peer, package in PACKAGES.items()
    ]


def print_row(row: Row, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(row)), flush=True)
        return
    peer = f"{row.peer_name} {row.peer_version}"
    print(
        f"{row.name:8} {row.setting:52} {row.unit:6}"
        f"{row.ours:9.2f} {row.peer:9.2f} {row.ratio:7.2f}x  {peer}",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--setting", choices=SETTINGS, action="append", help="default: all")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: both")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default 3)")
    parser.add_argument("--peak-of", choices=LOSSES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    settings = arguments.setting or list(SETTINGS)
    precisions = arguments.precision or PRECISIONS
    if arguments.peak_of:
        torch.set_float32_matmul_precision(precisions[0])
        print(growth_of_peak(arguments.peak_of, settings[0]))
        return
    if not arguments.json:
        print(f"{'name':8} {'setting':52} {'unit':6}{'ours':>9} {'peer':>9} {'ratio':>8}  peer")
    for setting in settings:
        for precision in precisions:
            torch.set_float32_matmul_precision(precision)
            for row in measure(setting, precision, arguments.repeats):
                print_row(row, arguments.json)


if __name__ == "__main__":
    main()
