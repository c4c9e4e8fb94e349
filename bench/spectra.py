"""Spectra of updates: ours against whole decompositions, weightwatcher and modeldelta.

bench/README.md says how to install the peers, what is measured and how.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from effopd.analysis.spectra import spectral_metrics
from effopd.analysis.updates import module_statistics
from effopd.models.layout import matrices, module_tensors
from effopd.models.updates import PairUpdate, read_module
from effopd.models.weights import open_weights

PRECISIONS = ["highest", "medium"]
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
LAYERS = 28
LAYER = {
    "self_attn.q_proj": (1536, 1536), "self_attn.k_proj": (256, 1536),
    "self_attn.v_proj": (256, 1536), "self_attn.o_proj": (1536, 1536),
    "mlp.gate_proj": (8960, 1536), "mlp.up_proj": (8960, 1536), "mlp.down_proj": (1536, 8960),
}  # fmt: skip
"""Matrices of a decoder layer of Qwen2.5-1.5B."""
SMALL = {"q": (512, 512), "k": (128, 512), "gate": (1408, 512), "down": (512, 1408)}
"""Matrices of the small pair that the tools compare."""


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


def row(
    name: str, setting: str, unit: str, ours: float, peer: float, peer_name: str, package: str
) -> Row:
    known = "-" if package == "goal" else version(package)
    values = (float(f"{number:.4g}") for number in (ours, peer))
    ratio = float(f"{peer / max(ours, 2**-52):.3g}")
    return Row(name, setting, *values, peer_name, known, unit, ratio)


# Updates ------------------------------------------------------------------------------------------


def spiky(rows: int, columns: int, seed: int) -> Tensor:
    """An update of Table 1's kind: 85% of the energy in a head of 2% of the rank, a flat tail."""
    rng = torch.Generator().manual_seed(seed)
    rank = max(4, min(rows, columns) // 50)
    left = torch.randn(rows, rank, generator=rng) / math.sqrt(rows)
    right = torch.randn(rank, columns, generator=rng) / math.sqrt(columns)
    sizes = torch.arange(1, rank + 1) ** -0.5
    head = (left * (sizes * (0.85**0.5 / sizes.norm()))) @ right
    tail = torch.randn(rows, columns, generator=rng)
    return head.add_(tail, alpha=math.sqrt(0.15 / (rows * columns))).mul_(1e-2)


def layer_updates(layer: int) -> Iterator[Tensor]:
    """The updates of a layer, one at a time."""
    for index, shape in enumerate(LAYER.values()):
        yield spiky(*shape, seed=100 * layer + index)


# Measuring ----------------------------------------------------------------------------------------


def cpu_seconds(call: Callable[[], object], repeats: int) -> float:
    """Least CPU seconds of a call."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def resident_mebibytes(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return float(line.split()[1]) / 1024


def growth_of_peak(call: Callable[[], object]) -> float:
    """MiB by which a call raises the peak resident set of this process over what it held."""
    before = resident_mebibytes("VmRSS")
    CLEAR_REFS.write_text("5")  # resets VmHWM to VmRSS
    call()
    return resident_mebibytes("VmHWM") - before


def peak_in_its_own_process(what: str) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "--peak-of", what]
    return float(subprocess.check_output(command, text=True).splitlines()[-1])


def relative(found: float | None, true: float | None) -> float:
    assert found is not None
    assert true
    return abs(found / true - 1)


# One matrix ---------------------------------------------------------------------------------------


def whole_svd(update: Tensor) -> object:
    """What the released code does: all vectors, in fp32."""
    return torch.linalg.svd(update, full_matrices=False)


def effective_rank(values: Tensor) -> float:
    shares = values.double() / values.double().sum()
    return math.exp(torch.special.entr(shares).sum().item())


def spectrum(precision: str, repeats: int) -> Iterator[Row]:
    """All Table-1 metrics of 1536 x 8960 and, for LAPACK another matter, of its transpose."""
    wide = spiky(1536, 8960, seed=0)
    true = effective_rank(torch.linalg.svdvals(wide.T.double()))
    peers = {"full SVD": whole_svd, "svdvals": torch.linalg.svdvals}
    for update in (wide, wide.T.contiguous()):
        ours = cpu_seconds(lambda update=update: spectral_metrics(update), 2 * repeats)
        error = relative(spectral_metrics(update).effective_rank, true)
        assert error < 1e-9, f"effective rank off by {error:.1e}"
        setting = f"{update.shape[0]} x {update.shape[1]} fp32 matmul {precision}, 1 thread"
        for name, peer in peers.items():
            seconds = cpu_seconds(lambda peer=peer, update=update: peer(update), repeats)
            yield row("spectrum", setting, "CPU s", ours, seconds, name, "torch")
        theirs = relative(effective_rank(torch.linalg.svdvals(update)), true)
        yield row("spectrum", setting, "error of eff. rank", error, theirs, "svdvals", "torch")


# Models -------------------------------------------------------------------------------------------


def table1(precision: str, repeats: int) -> Iterator[Row]:
    """All metrics of a 1.5 B model; the peer is measured on one layer and multiplied."""
    ours = peer = 0.0
    for layer in range(LAYERS):
        for update in layer_updates(layer):
            ours += cpu_seconds(lambda update=update: spectral_metrics(update), 1)
            if layer == 0:
                peer += cpu_seconds(lambda update=update: whole_svd(update), 1)
    setting = f"{LAYERS} layers fp32 matmul {precision}, 1 thread"
    name = f"full SVD, one layer x {LAYERS}"
    yield row("table1-1.5b", setting, "CPU s", ours, LAYERS * peer, name, "torch")
    peak = peak_in_its_own_process("table1-1.5b")
    yield row("table1-1.5b", setting, "MiB of process", peak, 1536, "goal", "goal")


def layer_32b(precision: str, repeats: int) -> Iterator[Row]:
    """One matrix of a 32 B model: memory of the whole process."""
    peak = peak_in_its_own_process("32b-layer")
    yield row("32b-layer", "5120 x 27648", "MiB of process", peak, 12 * 1024, "goal", "goal")


def measure_one_layer() -> None:
    """The longest part of what a whole model needs: base and tuned of each matrix of a layer."""
    for update in layer_updates(0):
        base = torch.randn(update.shape) * 0.02
        spectral_metrics((base + update) - base)


# Tools --------------------------------------------------------------------------------------------

Measured = dict[str, dict[str, float | None]]  # tensor -> metric -> value


def write_pair(directory: Path) -> None:
    """A base and a tuned model of a few matrices, in the layout that the tools read."""
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(0)
    base = {f"model.layers.0.mlp.{n}_proj.weight": s for n, s in SMALL.items()}
    base = {n: torch.randn(s, generator=rng) * 0.02 for n, s in base.items()}
    tuned = {n: t + spiky(*t.shape, seed=i) for i, (n, t) in enumerate(base.items())}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (directory / name).mkdir()
        (directory / name / "config.json").write_text("{}")
        save_file(tensors, directory / name / "model.safetensors", metadata={"format": "pt"})


def by_ours(directory: Path) -> Measured:
    base, tuned = (open_weights(directory / name) for name in ("base", "tuned"))
    update = PairUpdate(base, tuned)
    found = {}
    for module in matrices(module_tensors(update.shapes)):
        statistics = module_statistics(update, module)
        metrics = spectral_metrics(read_module(update, module))
        found[module.name] = asdict(metrics) | {"relative_norm": statistics.relative_norm}
    return found


def by_modeldelta(directory: Path) -> Measured:
    from modeldelta.core.weight_diff import compare_models
    from modeldelta.utils.model_loader import get_tensor_map

    maps = [get_tensor_map(str(directory / name)) for name in ("base", "tuned")]
    results, _ = compare_models(*maps)
    return {
        r["name"]: {
            "effective_rank": r["effective_rank"],
            "spectral_norm": r["top_singular_values"][0],
        }
        for r in results
    }


def by_weightwatcher(directory: Path) -> Measured:
    import weightwatcher

    models = []
    for name in ("tuned", "base"):
        weights = open_weights(directory / name)
        model = nn.ModuleDict()
        for tensor in weights.shapes:
            rows, columns = weights.shapes[tensor]
            layer = nn.Linear(columns, rows, bias=False)
            layer.weight.data.copy_(weights.read(tensor))
            model[tensor.replace(".", "_")] = layer
        models.append(model)
    with redirect_stdout(sys.stderr):  # it prints remarks
        table = weightwatcher.WeightWatcher(model=models[0], base_model=models[1]).analyze()
    return {
        name: {"spectral_norm": norm, "stable_rank": rank}
        for name, norm, rank in zip(
            open_weights(directory / "tuned").shapes,
            table["spectral_norm"],
            table["stable_rank"],
            strict=True,
        )
    }


TOOLS = {"ours": by_ours, "modeldelta": by_modeldelta, "weightwatcher": by_weightwatcher}


def worst(found: Measured, true: Measured, metric: str) -> float:
    return max(relative(found[name][metric], true[name][metric]) for name in true)


def tools(precision: str, repeats: int) -> Iterator[Row]:
    """A small pair on disk, and what the tools say about updates that are out of the ordinary."""
    setting = f"4 matrices, 512 wide fp32 matmul {precision}, 1 thread"
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_pair(directory)
        found = {name: tool(directory) for name, tool in TOOLS.items()}  # warms up, too
        true = true_metrics(directory)
        seconds = {n: cpu_seconds(lambda t=t: t(directory), repeats) for n, t in TOOLS.items()}
    peaks = {name: peak_in_its_own_process(name) for name in TOOLS}
    for name in list(TOOLS)[1:]:
        yield row("tools", setting, "CPU s", seconds["ours"], seconds[name], name, name)
        yield row("tools", setting, "MiB", peaks["ours"], peaks[name], name, name)
    for metric, name in (
        ("effective_rank", "modeldelta"),
        ("spectral_norm", "modeldelta"),
        ("stable_rank", "weightwatcher"),
        ("spectral_norm", "weightwatcher"),
    ):
        errors = [worst(found[tool], true, metric) for tool in ("ours", name)]
        yield row("tools", setting, f"error of {metric}", *errors, name, name)
    if precision == PRECISIONS[0]:  # no fp32 product plays a part there
        yield from extraordinary()


def true_metrics(directory: Path) -> Measured:
    """From singular values of the whole matrices in float64."""
    base, tuned = (open_weights(directory / name) for name in ("base", "tuned"))
    true: Measured = {}
    for name in base.shapes:
        values = torch.linalg.svdvals((tuned.read(name) - base.read(name)).double())
        true[name] = {
            "effective_rank": effective_rank(values),
            "spectral_norm": values[0].item(),
            "stable_rank": (values.square().sum() / values[0] ** 2).item(),
        }
    return true


def extraordinary() -> Iterator[Row]:
    """Effective ranks where the update is wide, batched over experts, or zero."""
    from modeldelta.core.weight_diff import analyze_delta

    def theirs(update: Tensor) -> float:
        return analyze_delta(torch.zeros_like(update), update.clone())["effective_rank"]

    wide = torch.eye(8200)
    ours, unit = spectral_metrics(wide).effective_rank, "error of effective_rank"
    errors = relative(ours, 8200), relative(theirs(wide), 8200)
    yield row("tools", "8200 x 8200 identity", unit, *errors, "modeldelta", "modeldelta")
    experts = torch.stack([torch.eye(64, 128)] * 8)
    found = [spectral_metrics(expert).effective_rank for expert in experts]
    errors = max(relative(each, 64) for each in found), relative(theirs(experts), 64)
    yield row("tools", "8 experts of rank 64", unit, *errors, "modeldelta", "modeldelta")
    still = spectral_metrics(torch.zeros(64, 128))
    said = theirs(torch.zeros(64, 128))
    assert still.never_moved
    print(f"zero update: ours never moved, modeldelta effective rank {said}", file=sys.stderr)


# Output -------------------------------------------------------------------------------------------

BENCHMARKS = {
    "spectrum": spectrum,
    "table1-1.5b": table1,
    "32b-layer": layer_32b,
    "tools": tools,
}


def peak_of(what: str) -> float:
    """MiB: of the whole process for our matrices, growth for the tools."""
    if what in TOOLS:
        with tempfile.TemporaryDirectory() as folder:
            write_pair(Path(folder))
            return growth_of_peak(lambda: TOOLS[what](Path(folder)))
    if what == "32b-layer":
        spectral_metrics(torch.randn(5120, 27648))
    else:
        measure_one_layer()
    return resident_mebibytes("VmHWM")


def print_row(found: Row, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(found)), flush=True)
        return
    peer = f"{found.peer_name} {found.peer_version}"
    print(
        f"{found.name:12} {found.setting:52} {found.unit:24}"
        f"{found.ours:10.4g} {found.peer:10.4g} {found.ratio:9.3g}x  {peer}",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--setting", choices=BENCHMARKS, action="append", help="default: all")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="default: both")
    parser.add_argument("--repeats", type=int, default=2, help="timed rounds (default 2)")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.peak_of:
        print(peak_of(arguments.peak_of))
        return
    if not arguments.json:
        head = f"{'name':12} {'setting':52} {'unit':24}{'ours':>10} {'peer':>10} {'ratio':>10}"
        print(f"{head}  peer")
    for setting in arguments.setting or list(BENCHMARKS):
        for precision in arguments.precision or PRECISIONS:
            torch.set_float32_matmul_precision(precision)
            for found in BENCHMARKS[setting](precision, arguments.repeats):
                print_row(found, arguments.json)


if __name__ == "__main__":
    main()
