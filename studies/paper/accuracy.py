"""Measurements that evaluate changed models: figures 2 to 5c, 8 to 10 and 14.

Each takes a scene and gives a record of plain numbers; `claims.py` reads them.
"""

import math
from collections.abc import Sequence

import torch
from studies.paper.study import ALGORITHMS, BOTH, Scene

from effopd.analysis.interventions import (
    EmbeddingReplacement,
    NormScaling,
    WholeScaling,
    sliding_windows,
)
from effopd.analysis.modules import layer_count, module_norms, update_norm
from effopd.analysis.ranks import BottomRank, TopRank
from effopd.linalg.singular_values import tail_singular_values
from effopd.models.layout import matrices, module_tensors
from effopd.models.updates import Update, read_module
from effopd.records import Row

SCALES = (0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
BETAS = (0.0, 0.4, 0.8, 1.0, 1.2, 1.6, 2.0)

BASE = WholeScaling(scale=0.0)
FULL = WholeScaling(scale=1.0)


def progress(scene: Scene, methods: Sequence[str] = BOTH) -> Row:
    """Norm and accuracy of every checkpoint (2b)."""
    record: Row = {}
    for method in methods:
        found = scene.accuracies(method)
        record[method] = {
            "steps": [*found],
            "norm": [update_norm(scene.update(method, step)) for step in found],
            "accuracy": [*found.values()],
        }
    return record


def algorithms(scene: Scene) -> Row:
    """The same of DAPO and PPO and of the distillations from them (9)."""
    return progress(scene, ALGORITHMS)


def sizes(scene: Scene) -> Row:
    """`scaling` of the other sizes of the study, by hidden width (8)."""
    return {
        "sizes": {
            str(hidden): scaling(Scene(scene.study.of_size(hidden), scene.seed))
            for hidden in scene.study.sizes
        }
    }


def scaling(scene: Scene) -> Row:
    """Accuracy of the scaled final update against its norm (2a, 8)."""
    record: Row = {}
    for method in BOTH:
        update = scene.update(method)
        norm = update_norm(update)
        record[method] = {
            "norm": [scale * norm for scale in SCALES],
            "accuracy": [scene.accuracy(update, WholeScaling(scale=scale)) for scale in SCALES],
        }
    return record


def embeddings(scene: Scene) -> Row:
    """Accuracy with the base's embeddings, and of the tuned embeddings in the base (3a, 10a)."""
    record: Row = {"base": scene.accuracy(scene.update("opd"), BASE)}
    for method in BOTH:
        update = scene.update(method)
        without = EmbeddingReplacement(part="embeddings", into="tuned")
        alone = EmbeddingReplacement(part="embeddings", into="base")
        record[method] = {
            "full": scene.accuracy(update, FULL),
            "base_embeddings": scene.accuracy(update, without),
            "embeddings_alone": scene.accuracy(update, alone),
        }
    return record


def windows(scene: Scene) -> Row:
    """Norms by layer, and the accuracy of a window's update alone (3b, 10b)."""
    layers, half_width = layer_count(scene.update("opd")), scene.study.half_width
    count = min(layers, scene.study.windows or layers)
    places = [round(i * (layers - 1) / max(1, count - 1)) for i in range(count)]
    record: Row = {
        "half_width": half_width,
        "layers": [place + 1 for place in places],
        "is_whole": [half_width <= place < layers - half_width for place in places],
    }
    for method in BOTH:
        update = scene.update(method)
        found: Row = {"norms": layer_norms(update, layers)}
        around = {
            "mlp": sliding_windows(layers, block="mlp", half_width=half_width),
            "attention": sliding_windows(layers, block="attention", half_width=half_width),
            "single": sliding_windows(layers, block="mlp", half_width=0),
        }
        for name, of_layer in around.items():
            found[name] = [scene.accuracy(update, of_layer[place]) for place in places]
        record[method] = found
    return record


def layer_norms(update: Update, layers: int) -> dict[str, list[float]]:
    """Frobenius norm of each layer's update, by block."""
    norms, found = module_norms(update), module_tensors(update.shapes)

    def norm(block: str, layer: int) -> float:
        inside = [module for module in found if (module.block, module.layer) == (block, layer)]
        return math.hypot(*(norms[module.label] for module in inside))

    return {b: [norm(b, layer) for layer in range(layers)] for b in ("mlp", "attention")}


def ranks(scene: Scene) -> Row:
    """Accuracy of leading parts, all at the norm of OPD's matrices, and of last parts (4a, 4b)."""
    opd = scene.update("opd")
    record: Row = {"base": scene.accuracy(opd, BASE)}
    norms, found = module_norms(opd), matrices(module_tensors(opd.shapes))
    whole = math.hypot(*(norms[module.label] for module in found))
    study = scene.study
    for method in BOTH:
        update = scene.update(method)
        leading = {s: TopRank(share=s, norm=whole) for s in (*study.top_shares, 1.0)}
        tops = {str(s): scene.accuracy(update, part) for s, part in leading.items()}
        last = {s: BottomRank(share=s) for s in study.bottom_shares}
        bottoms = {str(s): scene.accuracy(update, part) for s, part in last.items()}
        record[method] = {
            "full": scene.accuracy(update, FULL),
            "top": tops,
            "bottom": bottoms,
            **tail(update),
        }
    as_good = scene.step_as_good("grpo", "opd")
    record["matched"] = {"step": as_good, **tail(scene.update("grpo", as_good))}
    return record


def tail(update: Update) -> Row:
    """Frobenius norm of the last half of the singular components of all matrices, and its share."""
    tails, wholes = [], []
    for module in matrices(module_tensors(update.shapes)):
        matrix, p = read_module(update, module), min(module.shape)
        last = tail_singular_values(matrix, p - p // 2)
        tails.append(torch.linalg.vector_norm(last).item())
        wholes.append(torch.linalg.vector_norm(matrix).item())
    found, whole = math.hypot(*tails), math.hypot(*wholes)
    return {"tail_norm": found, "tail_share": found / whole}


def rescaling(scene: Scene) -> Row:
    """The early checkpoint with larger norms, module by module (5c, 14)."""
    record: Row = {"base": scene.accuracy(scene.update("opd"), BASE)}
    for method in BOTH:
        early, last = scene.early(method), scene.update(method)
        final = module_norms(last)
        found = {
            str(beta): scene.accuracy_and_kl(early, NormScaling(final=final, beta=beta))
            for beta in BETAS
        }
        record[method] = {
            "accuracy": {beta: accuracy for beta, (accuracy, _) in found.items()},
            "kl": {beta: kl for beta, (_, kl) in found.items()},
            "early": found["0.0"][0],
            "rescaled": found["1.0"][0],
            "final": scene.accuracy(last, FULL),
        }
    # How early a checkpoint may be: each at the final norms.
    final = module_norms(scene.update("opd"))
    steps = scene.study.moment_steps("opd", scene.seed)
    record["course"] = {
        "steps": steps,
        "rescaled": [
            scene.accuracy(scene.update("opd", step), NormScaling(final=final)) for step in steps
        ],
    }
    return record
