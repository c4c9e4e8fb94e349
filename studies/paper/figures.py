"""The paper's figures from the records of the tiny world, as plotly dicts and PNG files."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from studies.paper.page import Measurements

from effopd.records import Row
from effopd.reports.figures import Figure, marked_line, titled_layout
from effopd.reports.png import write_sheets
from effopd.reports.style import Style

METHODS = {
    "grpo": Style(label="GRPO", color="#C44E52", symbol="circle", dash="solid"),
    "dapo": Style(label="DAPO", color="#DD8452", symbol="circle", dash="solid"),
    "ppo": Style(label="PPO", color="#8172B3", symbol="circle", dash="solid"),
    "opd": Style(label="OPD", color="#55A868", symbol="circle", dash="solid"),
    "opd_dapo": Style(label="OPD of DAPO", color="#55A868", symbol="square", dash="dash"),
    "opd_ppo": Style(label="OPD of PPO", color="#55A868", symbol="diamond", dash="dot"),
}
BOTH = ("grpo", "opd")
ALGORITHMS = ("dapo", "opd_dapo", "ppo", "opd_ppo")

_SIZE = (5.2, 3.8)


def write_reproduction_pngs(measurements: Measurements, directory: Path) -> list[tuple[Path, str]]:
    """Draws every figure, 6 and 7 where they are measured; returns files with their captions."""
    drawn = {n: d for n, d in _DRAWINGS.items() if n != "methods" or n in measurements}
    sheets = {name: [draw(measurements)] for name, (_, draw) in drawn.items()}
    captions = [caption for caption, _ in drawn.values()]
    return list(zip(write_sheets(sheets, directory, _SIZE), captions, strict=True))


def panel(lines: Sequence[Figure], title: str, x: str, y: str) -> Figure:
    return {"data": list(lines), "layout": titled_layout(x, y) | {"meta": title}}


def line(points: Iterable[Sequence[float]], method: str, label: str = "") -> Figure:
    """One curve of a method; attention is dashed."""
    look = METHODS[method]
    dash = "dash" if label == "attention" else "solid"
    name = f"{look.label}, {label}" if label else look.label
    style = Style(label=name, color=look.color, symbol=look.symbol, dash=dash)
    return marked_line([(x, y) for x, y in points], [], style)


def mean_series(series: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*series, strict=True)]


def norms(measurements: Measurements) -> list[Figure]:
    """One thin line a seed."""

    def clouds(name: str, methods: Sequence[str]) -> list[Figure]:
        lines = []
        for method in methods:
            for seed, record in enumerate(measurements[name]):
                pairs = zip(record[method]["norm"], record[method]["accuracy"], strict=True)
                trace = line(sorted(pairs), method)
                trace["line"]["width"], trace["marker"]["size"] = 1.7, 4
                lines.append(trace | {"showlegend": seed == 0})
        return lines

    axes = ("norm of the update", "accuracy")
    panels = [
        panel(clouds("scaling", BOTH), "2a: final update, scaled", *axes),
        panel(clouds("progress", BOTH), "2b: checkpoints", *axes),
    ]
    if "algorithms" in measurements:
        panels.append(panel(clouds("algorithms", ALGORITHMS), "9: each with its own", *axes))
    return panels


def windows(measurements: Measurements) -> list[Figure]:
    records = measurements["windows"]
    layers = range(1, len(records[0]["opd"]["norms"]["mlp"]) + 1)
    norms, gained, alone = [], [], []
    for method in BOTH:
        for block in ("mlp", "attention"):
            heights = mean_series([record[method]["norms"][block] for record in records])
            norms.append(line(zip(layers, heights, strict=True), method, block))
            heights = mean_series([record[method][block] for record in records])
            gained.append(line(zip(layers, heights, strict=True), method, block))
        heights = mean_series([record[method]["single"] for record in records])
        alone.append(line(zip(layers, heights, strict=True), method, "mlp"))
    title = "3b, 10b: updates of a window alone"
    return [
        panel(norms, "3b: norm of the update", "layer", "Frobenius norm"),
        panel(gained, title, "centre of the window", "accuracy"),
        panel(alone, "updates of a single layer alone", "layer", "accuracy"),
    ]


def over_keys(records: Sequence[Row], part: str, factor: float) -> list[Figure]:
    """Mean over seeds against the keys of a measurement, which are numbers."""
    lines = []
    for method in BOTH:
        keys = sorted(records[0][method][part], key=float)
        heights = mean_series([[record[method][part][key] for key in keys] for record in records])
        places = [factor * float(key) for key in keys]
        lines.append(line(zip(places, heights, strict=True), method))
    return lines


def ranks(measurements: Measurements) -> list[Figure]:
    records, panels = measurements["ranks"], []
    base = fmean([record["base"] for record in records])
    look = Style(label="base", color="#808080", symbol="circle", dash="dot")
    for part, title in (
        ("top", "4a: leading directions, same norm"),
        ("bottom", "4b: last directions"),
    ):
        lines = over_keys(records, part, 100)
        places = [x for trace in lines for x in trace["x"]]
        level = marked_line([(min(places), base), (max(places), base)], [], look)
        panels.append(panel([*lines, level], title, "% of the rank", "accuracy"))
    return panels


def subspaces(measurements: Measurements) -> list[Figure]:
    records, cosines, paths = measurements["geometry"], [], []
    for method in BOTH:
        steps = records[0][method]["steps"]
        heights = mean_series([record[method]["cosine_to_final"] for record in records])
        places = [100 * (i + 1) / len(steps) for i in range(len(steps))]
        cosines.append(line(zip(places, heights, strict=True), method))
        paths.append(line(records[0][method]["points"], method))
    title = f"5a: leading vector of {records[0]['pictured']}"
    mean = "mean over k = 1 to 20"
    return [
        panel(cosines, "5b: cosine to the final subspaces", "% of training", mean),
        panel(paths, title, "first", "second component"),
    ]


def heat_maps(measurements: Measurements) -> list[Figure]:
    records, panels = measurements["geometry"], []
    for key, title in (("first_last_map", "12: first against last"), ("evr_map", "13: EVR")):
        for method in BOTH:
            maps = [record[method][key] for record in records]
            heights = [mean_series(rows) for rows in zip(*maps, strict=True)]
            trace = {
                "type": "heatmap",
                "x": list(range(1, len(heights[0]) + 1)),
                "y": records[0]["projections"],
                "z": heights,
                "zmin": 0,
                "zmax": 1,
                "colorbar": {"title": {"text": ""}},
            }
            panels.append(panel([trace], f"{title}, {METHODS[method].label}", "layer", ""))
            panels[-1]["layout"]["showlegend"] = False
    return panels


def rescaling(measurements: Measurements) -> list[Figure]:
    records = measurements["rescaling"]
    kl = "KL to the teacher, nats a token"
    steps = records[0]["course"]["steps"]
    heights = mean_series([record["course"]["rescaled"] for record in records])
    course = [line(zip([100 * s / steps[-1] for s in steps], heights, strict=True), "opd")]
    return [
        panel(over_keys(records, "accuracy", 1), "14a: rescaled early", "beta", "accuracy"),
        panel(over_keys(records, "kl", 1), "14b", "beta", kl),
        panel(course, "5c: each checkpoint at the final norms", "% of training", "accuracy"),
    ]


def methods(measurements: Measurements) -> list[Figure]:
    """One dot a seed, and a ring around their mean."""
    records, panels = measurements["methods"], []
    titles = records[0]["titles"]
    look = Style(label="", color="#4C72B0", symbol="circle", dash="solid")
    for cost in ("steps", "seconds"):
        points, means = [], []
        for place, name in enumerate(titles):
            values = [record[name][cost] for record in records]
            points += [(value, float(place)) for value in values]
            means.append((fmean(values), float(place)))
        dots, middle = marked_line(points, [], look), marked_line(means, [], look)
        dots["marker"]["opacity"] = 0.6
        middle["marker"] |= {"color": "rgba(0,0,0,0)", "size": 17}
        middle["marker"]["line"] = {"color": "#000000", "width": 2}
        traces = [trace | {"mode": "markers", "showlegend": False} for trace in (dots, middle)]
        title = f"6, 7: {cost}, one dot a seed"
        panels.append(panel(traces, title, f"{cost} to 90% of the teacher", ""))
        ticks = {"tickvals": list(range(len(titles))), "ticktext": list(titles.values())}
        panels[-1]["layout"]["yaxis"] |= ticks
    return panels


_DRAWINGS: dict[str, tuple[str, Callable[[Measurements], list[Figure]]]] = {
    "norms": ("Figures 2a, 2b, 8 and 9: accuracy against the norm of the update", norms),
    "windows": ("Figures 3b and 10b: where the updates are, and what they do", windows),
    "ranks": ("Figures 4a and 4b: parts of the update by rank", ranks),
    "subspaces": ("Figures 5a and 5b: leading directions during training", subspaces),
    "heat-maps": ("Figures 12 and 13: layer by projection", heat_maps),
    "rescaling": ("Figures 5c and 14: early checkpoints with larger norms", rescaling),
    "methods": ("Figures 6, 7a and 7c: how soon each method is there", methods),
}
