"""Figures of an analysis as plotly JSON, from its tables alone.

Text from tables is escaped, because plotly reads a subset of HTML in every label.
"""

from collections.abc import Sequence

from effopd.reports.analysis import Analysis, TableRows, numbers
from effopd.reports.figures import Figure, marked_line, plotly_text, titled_layout
from effopd.reports.style import Style, blended
from effopd.reports.table_files import Cell

_COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A", "#720BD9",
)  # fmt: skip
_MARKS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "pentagon")
FROM_0: Figure = {"rangemode": "tozero"}
EARLY, LATE = "#C9C9C9", "#0072B2"
"""First and last checkpoint of a trajectory."""
COORDINATES = {"pca": "principal component", "tsne": "t-SNE coordinate"}
SPECTRA = {
    "spectral_norm": "spectral norm",
    "spectral_share": "spectral norm / Frobenius norm",
    "effective_rank": "effective rank",
    "top_1_ratio": "norm of the top 1% / all",
    "top_5_ratio": "norm of the top 5% / all",
}
"""Columns of Table 1 and what they are."""


def styles(names: Sequence[str]) -> list[Style]:
    """A look for each of several curves that have no method."""
    found = []
    for index, name in enumerate(names):
        color, symbol = _COLORS[index % len(_COLORS)], _MARKS[index % len(_MARKS)]
        dash = "solid" if index < len(_COLORS) else "dot"
        found.append(Style(label=name, color=color, symbol=symbol, dash=dash))
    return found


_BLOCKS = {
    "whole": "whole model", "mlp": "MLP", "attention": "attention", "norm": "norms",
    "embedding": "embeddings", "head": "head", "other": "other tensors",
}  # fmt: skip
BLOCKS = dict(zip(_BLOCKS, styles(list(_BLOCKS.values())), strict=True))
"""Looks of the whole model and its blocks, the same in every figure."""


def curve(
    analysis: Analysis, rows: TableRows, name: str, style: Style, key: str = "checkpoint"
) -> Figure:
    """A column against the checkpoints, without those that have none."""
    _, places = analysis.axis
    where = {"base": 0.0, **places}
    points = [
        (where[str(row[key])], value, str(row[key]))
        for row, value in zip(rows, numbers(rows, name), strict=True)
        if value is not None
    ]
    shown = {"base": "base", **analysis.shown}
    hovers = [
        f"<b>{plotly_text(style.label)}</b><br>{plotly_text(shown[label])}<br>{value:.4g}"
        for _, value, label in points
    ]
    return marked_line([(x, y) for x, y, _ in points], hovers, style)


# Norms --------------------------------------------------------------------------------------------


def norm_figure(analysis: Analysis, name: str, title: str) -> Figure:
    """A column of the sums against the checkpoints: the whole model and its blocks."""
    rows = analysis.rows("norm_sums", grouping="whole")
    curves = [curve(analysis, rows, name, BLOCKS["whole"])]
    blocks = dict.fromkeys(row["block"] for row in analysis.rows("norm_sums", grouping="block"))
    for block in blocks:
        rows = analysis.rows("norm_sums", grouping="block", block=block)
        curves.append(curve(analysis, rows, name, BLOCKS[str(block)]))
    y_axis = FROM_0 if name != "step_cosine" else {}
    return {"data": curves, "layout": titled_layout(analysis.axis[0], title, FROM_0, y_axis)}


def accuracy_figure(analysis: Analysis) -> Figure:
    """Accuracy of every checkpoint against the norm of its update; figure 2b."""
    norms = {row["checkpoint"]: row for row in analysis.rows("norm_sums", grouping="whole")}
    points, own = [], dict[Cell, dict[str, Cell]]()
    for row in analysis.rows("divergences"):  # one a model: how it answers in its own text
        if row["text"] == "own" or row["label"] == "base":
            own.setdefault(row["label"], row)
    for row in own.values():
        accuracy = numbers([row], "accuracy")[0]
        norm = numbers([norms[row["label"]]], "frobenius_norm")[0] if row["label"] in norms else 0.0
        if accuracy is not None and norm is not None:
            points.append((norm, accuracy, str(row["label"])))
    hovers = [f"{plotly_text(label)}<br>norm {x:.4g}<br>{y:.1%}" for x, y, label in points]
    style = styles(["checkpoints"])[0]
    y_axis = FROM_0 | {"tickformat": ".0%"}
    figure = titled_layout("Frobenius norm of the update", "accuracy", FROM_0, y_axis)
    line = marked_line([(x, y) for x, y, _ in points], hovers, style)
    return {"data": [line], "layout": figure | {"showlegend": False}}


def layer_figure(analysis: Analysis, checkpoint: str) -> Figure:
    """Norm of each layer's attention and MLP update as bars; figure 3b, left."""
    rows = analysis.rows("norm_sums", grouping="layer and block", checkpoint=checkpoint)
    bars = []
    for block in ("attention", "mlp"):
        style = BLOCKS[block]
        own = [row for row in rows if row["block"] == block and row["layer"] is not None]
        bars.append({
            "type": "bar", "name": style.label, "marker": {"color": style.color},
            "x": [row["layer"] for row in own], "y": numbers(own, "frobenius_norm"),
            "hovertemplate": f"layer %{{x}}, {style.label}<br>%{{y:.4g}}<extra></extra>",
        })  # fmt: skip
    figure = titled_layout("layer", "Frobenius norm of the update")
    return {"data": bars, "layout": figure | {"barmode": "group"}}


# Spectra and directions ---------------------------------------------------------------------------


def spectrum_figure(analysis: Analysis, name: str) -> Figure:
    """A column of Table 1 against the checkpoints, and what noise would give."""
    rows = analysis.rows("table1")
    label, noise = SPECTRA[name], "noise of the same norm and shape"
    (own,) = styles([label])
    other = Style(label=noise, color="#8A8A8A", symbol="x", dash="dot")
    curves = [curve(analysis, rows, name, own), curve(analysis, rows, f"noise_{name}", other)]
    return {"data": curves, "layout": titled_layout(analysis.axis[0], label, FROM_0, FROM_0)}


def progress_figure(analysis: Analysis, end: str) -> Figure:
    """Agreement of leading directions with the final or previous ones; figure 5b."""
    names = {
        "subspace_cosine": "subspaces, mean over k",
        "direction_cosine": "directions, one by one",
        "cosine_1": "first direction",
        "captured_norm": "share of the norm captured",
    }
    rows = analysis.rows("subspace_progress")
    curves = []
    for (name, _), style in zip(names.items(), styles(list(names.values())), strict=True):
        values = zip(rows, numbers(rows, f"{end}_{name}"), strict=True)
        points = [(numbers([row], "progress")[0] or 0.0, y) for row, y in values if y is not None]
        hovers = [f"<b>{style.label}</b><br>{x:.0%} of training<br>{y:.4f}" for x, y in points]
        curves.append(marked_line(points, hovers, style))
    axes: Figure = {"range": [0, 1.02], "tickformat": ".0%"}
    figure = titled_layout("share of training", "cosine", x_axis=axes, y_axis={"range": [0, 1.02]})
    return {"data": curves, "layout": figure}


def map_figure(rows: TableRows, name: str, title: str) -> Figure:
    """A heat map of layers by projections, on the scale from 0 to 1; figures 12 and 13."""
    projections = list(dict.fromkeys(str(row["projection"]) for row in rows))
    layers = sorted({layer for layer in numbers(rows, "layer") if layer is not None})
    values = zip(rows, numbers(rows, name), strict=True)
    cells = {(row["layer"], str(row["projection"])): value for row, value in values}
    trace = {
        "type": "heatmap",
        "x": layers,
        "y": [plotly_text(projection) for projection in projections],
        "z": [[cells.get((layer, each)) for layer in layers] for each in projections],
        "zmin": 0, "zmax": 1, "colorscale": "Viridis",
        "hovertemplate": f"layer %{{x}}, %{{y}}<br>{title} %{{z:.4f}}<extra></extra>",
        "colorbar": {"title": {"text": title, "side": "right"}, "outlinewidth": 0},
    }  # fmt: skip
    figure = titled_layout("layer", "", y_axis={"autorange": "reversed"})
    return {"data": [trace] if rows else [], "layout": figure | {"showlegend": False}}


def trajectory_figure(analysis: Analysis, place: str, kind: str) -> Figure:
    """The path of a matrix's first direction in a plane, from light to dark; figures 5a, 15-28."""
    rows = analysis.rows("trajectory_points", place=place, projection_kind=kind)
    known = analysis.checkpoints
    shares = [known.index(str(row["checkpoint"])) / max(len(known) - 1, 1) for row in rows]
    trace = marked_line(
        list(zip(_numbers(rows, "x"), _numbers(rows, "y"), strict=True)),
        [plotly_text(analysis.shown[str(row["checkpoint"])]) for row in rows],
        styles([place])[0],
    )
    trace["line"] = {"color": EARLY, "width": 1.5}
    trace["marker"] = {"size": 10, "color": [blended(EARLY, LATE, share) for share in shares]}
    figure = titled_layout(f"first {COORDINATES[kind]}", f"second {COORDINATES[kind]}")
    return {"data": [trace], "layout": figure | {"showlegend": False, "meta": plotly_text(place)}}


# Behavior -----------------------------------------------------------------------------------------


def divergence_figure(analysis: Analysis) -> Figure:
    """Divergence from teacher and base, on the base's text and on the checkpoint's own."""
    names = {
        ("base", "teacher"): "from the teacher, on the base's text",
        ("own", "teacher"): "from the teacher, on its own text",
        ("base", "base"): "from the base, on the base's text",
        ("own", "base"): "from the base, on its own text",
    }
    curves = []
    for ((text, to), _), style in zip(names.items(), styles(list(names.values())), strict=True):
        rows = analysis.rows("divergences", text=text, to=to)
        if rows:
            curves.append(curve(analysis, rows, "mean_nats", style, key="label"))
    layout = titled_layout(analysis.axis[0], "mean KL per token (nats)", FROM_0, FROM_0)
    return {"data": curves, "layout": layout}


def shift_figure(analysis: Analysis, space: str, projection: str, kind: str) -> Figure:
    """Tokens of the base and of the last checkpoint in one plane; figure 11."""
    rows = analysis.rows("shift_points", space=space, projection=projection, kind=kind)
    labels = list(dict.fromkeys(str(row["label"]) for row in rows))
    traces = []
    for label, style in zip(labels, styles(labels), strict=True):
        own = [row for row in rows if row["label"] == label]
        points = list(zip(_numbers(own, "x"), _numbers(own, "y"), strict=True))
        name = analysis.shown.get(label, label)
        hovers = [f"{plotly_text(name)}, token {row['token']}" for row in own]
        trace = marked_line(points, hovers, style)
        trace |= {"mode": "markers", "name": plotly_text(name)}
        trace["marker"] = {"color": style.color, "size": 5, "symbol": style.symbol, "opacity": 0.7}
        traces.append(trace)
    name = COORDINATES[projection]
    return {"data": traces, "layout": titled_layout(f"first {name}", f"second {name}")}


def _numbers(rows: TableRows, name: str) -> list[float]:
    """A column that has a number in every row."""
    return [value for value in numbers(rows, name) if value is not None]
