"""PNG figures of a reproduction: the paper's figures, drawn from the records of the tiny world."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.paper.page import Measurements

from effopd.records import Row
from effopd.reports.png import save_figure

METHOD_COLORS = {"grpo": "#c44e52", "dapo": "#dd8452", "opd": "#55a868"}
METHOD_NAMES = {"grpo": "GRPO", "dapo": "DAPO", "opd": "OPD"}

_WIDTH, _HEIGHT = 5.2, 3.8

Drawing = tuple[str, str, int, Callable[[Sequence[Any], Measurements], None]]
"""File name, caption, number of panels, and what draws into the panels."""


def write_reproduction_pngs(measurements: Measurements, directory: Path) -> list[tuple[Path, str]]:
    """Draws every figure.

    Args:
        measurements: What was measured.
        directory: Where the files go; made if needed.

    Returns:
        The files with their captions.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, caption, panels, draw in _DRAWINGS:

        def fill(figure: Any, draw: Any = draw, panels: int = panels) -> None:
            draw(figure.subplots(1, panels, squeeze=False)[0], measurements)

        path = directory / f"{name}.png"
        save_figure(path, fill, (_WIDTH * panels, _HEIGHT))
        written.append((path, caption))
    return written


def _norms(axes: Sequence[Any], measurements: Measurements) -> None:
    for method in ("grpo", "opd"):
        _cloud(axes[0], measurements["scaling"], method)
    for method in ("grpo", "dapo", "opd"):
        _cloud(axes[1], measurements["progress"], method)
    for panel, title in zip(axes, ("2a: final update, scaled", "2b, 9: checkpoints"), strict=True):
        _labels(panel, title, "norm of the update", "accuracy")


def _cloud(panel: Any, records: Sequence[Row], method: str) -> None:
    """One thin line a seed."""
    for seed, record in enumerate(records):
        series = record[method]
        order = sorted(range(len(series["norm"])), key=lambda i: series["norm"][i])
        panel.plot(
            [series["norm"][i] for i in order],
            [series["accuracy"][i] for i in order],
            color=METHOD_COLORS[method],
            label=METHOD_NAMES[method] if seed == 0 else None,
            linewidth=1.2,
            marker="o",
            markersize=2.5,
            alpha=0.8,
        )


def _windows(axes: Sequence[Any], measurements: Measurements) -> None:
    records = measurements["windows"]
    layers = list(range(1, len(records[0]["opd"]["norms"]["mlp"]) + 1))
    for method in ("grpo", "opd"):
        for block, style in (("mlp", "-"), ("attention", "--")):
            look = {"color": METHOD_COLORS[method], "linestyle": style, "marker": "o"}
            name = f"{METHOD_NAMES[method]}, {block}"
            norms = _mean_series([record[method]["norms"][block] for record in records])
            axes[0].plot(layers, norms, label=name, markersize=3, **look)
            gained = _mean_series([record[method][block] for record in records])
            axes[1].plot(layers, gained, label=name, markersize=3, **look)
    _labels(axes[0], "3b: norm of the update", "layer", "Frobenius norm")
    _labels(axes[1], "3b, 10b: updates of a window alone", "centre of the window", "accuracy")


def _ranks(axes: Sequence[Any], measurements: Measurements) -> None:
    records = measurements["ranks"]
    for method in ("grpo", "opd"):
        for panel, part in zip(axes, ("top", "bottom"), strict=True):
            shares = sorted(records[0][method][part], key=float)
            heights = _mean_series([[r[method][part][s] for s in shares] for r in records])
            places = [100 * float(share) for share in shares]
            look = {"color": METHOD_COLORS[method], "label": METHOD_NAMES[method]}
            panel.plot(places, heights, marker="o", **look)
    for panel in axes:
        panel.axhline(
            fmean([r["base"] for r in records]), color="grey", linestyle=":", label="base"
        )
    _labels(axes[0], "4a: leading directions, same norm", "% of the rank", "accuracy")
    _labels(axes[1], "4b: last directions", "% of the rank", "accuracy")


def _subspaces(axes: Sequence[Any], measurements: Measurements) -> None:
    records = measurements["geometry"]
    for method in ("grpo", "dapo", "opd"):
        steps = records[0][method]["steps"]
        look = {"color": METHOD_COLORS[method], "label": METHOD_NAMES[method], "marker": "o"}
        cosines = _mean_series([r[method]["cosine_to_final"] for r in records])
        axes[0].plot([100 * step / steps[-1] for step in steps], cosines, markersize=3, **look)
        points = records[0][method]["points"]
        axes[1].plot(*zip(*points, strict=True), markersize=3, **look)
    _labels(axes[0], "5b: cosine to the final subspaces", "% of training", "mean over k = 1 to 20")
    _labels(axes[1], f"5a: leading vector of {records[0]['pictured']}", "first", "second component")


def _heat_maps(axes: Sequence[Any], measurements: Measurements) -> None:
    records = measurements["geometry"]
    panels = iter(axes)
    for key, title in (("first_last_map", "12: first against last"), ("evr_map", "13: EVR")):
        for method in ("grpo", "opd"):
            maps = [record[method][key] for record in records]
            heights = [_mean_series(rows) for rows in zip(*maps, strict=True)]
            panel = next(panels)
            image = panel.imshow(heights, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            panel.set_title(f"{title}, {METHOD_NAMES[method]}", fontsize=10)
            panel.set_yticks(range(len(records[0]["projections"])), records[0]["projections"])
            panel.set_xticks(range(len(heights[0])), range(1, len(heights[0]) + 1))
            panel.grid(visible=False)
            panel.set_xlabel("layer")
            panel.figure.colorbar(image, ax=panel)


def _rescaling(axes: Sequence[Any], measurements: Measurements) -> None:
    records = measurements["rescaling"]
    for method in ("grpo", "opd"):
        for panel, name in zip(axes, ("accuracy", "kl"), strict=True):
            betas = sorted(records[0][method][name], key=float)
            heights = _mean_series([[r[method][name][b] for b in betas] for r in records])
            look = {"color": METHOD_COLORS[method], "label": METHOD_NAMES[method], "marker": "o"}
            panel.plot([float(beta) for beta in betas], heights, **look)
    _labels(axes[0], "14a: early checkpoint, rescaled", "beta", "accuracy")
    _labels(axes[1], "14b", "beta", "KL to the teacher, nats a token")


def _methods(axes: Sequence[Any], measurements: Measurements) -> None:
    records = measurements["methods"]
    titles = records[0]["titles"]
    for panel, cost in zip(axes, ("steps", "seconds"), strict=True):
        for place, name in enumerate(titles):
            values = [record[name][cost] for record in records]
            panel.plot(values, [place] * len(values), "o", alpha=0.6, color="#4c72b0")
            panel.plot([fmean(values)], [place], "|", markersize=18, color="black")
        panel.set_yticks(range(len(titles)), list(titles.values()), fontsize=8)
        panel.set_xlabel(f"{cost} to 90 % of the teacher")
        panel.set_title(f"6, 7: {cost}, one dot a seed", fontsize=10)


def _labels(panel: Any, title: str, x: str, y: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x)
    panel.set_ylabel(y)
    panel.legend(fontsize=8)


def _mean_series(series: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*series, strict=True)]


_DRAWINGS: tuple[Drawing, ...] = (
    ("norms", "Figures 2a, 2b, 8 and 9: accuracy against the norm of the update", 2, _norms),
    ("windows", "Figures 3b and 10b: where the updates are, and what they do", 2, _windows),
    ("ranks", "Figures 4a and 4b: parts of the update by rank", 2, _ranks),
    ("subspaces", "Figures 5a and 5b: leading directions during training", 2, _subspaces),
    ("heat-maps", "Figures 12 and 13: layer by projection", 4, _heat_maps),
    ("rescaling", "Figures 5c and 14: early checkpoints with larger norms", 2, _rescaling),
    ("methods", "Figures 6, 7a and 7c: how soon each method is there", 2, _methods),
)
