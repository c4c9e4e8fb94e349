"""Colours and marks: the same method looks the same in every figure.

Colours are Okabe and Ito's, and beyond those the ones that are farthest from all others in CIELAB
as readers with full colour vision, protanopia, deuteranopia and tritanopia see them; all stand out
on white and on dark grey. Mark and line style repeat the distinction without colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from effopd.records import Run
from effopd.reports.series import unique_labels, unique_lines

BETTER, NEUTRAL, WORSE = "#0072B2", "#C9C9C9", "#D55E00"
"""Ends and middle of the diverging scale: blue is better, vermillion is worse."""

_METHODS = {
    "opd": ("#0072B2", "circle"),
    "paper": ("#009E73", "square"),
    "release": ("#CC79A7", "triangle-up"),
    "effopd": ("#D55E00", "diamond"),
    "slope": ("#E69F00", "triangle-down"),
    "exopd": ("#720BD9", "triangle-left"),
    "alphaopd": ("#73481D", "triangle-right"),
    "expo": ("#BFAE56", "hexagon"),
    "grpo": ("#F20C59", "star"),
    "dapo": ("#836DF2", "octagon"),
    "ppo": ("#8C2346", "diamond-tall"),
    "dr_grpo": ("#9EBF7C", "hexagram"),
}
_OTHERS = (("#56B4E9", "cross"), ("#8A8A8A", "x"), ("#4038A8", "pentagon"))
_RATE_MARKS = ("circle", "square", "triangle-up", "triangle-down", "pentagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a run or a setting is drawn: its printable name, and plotly's names for the look."""

    label: str
    color: str
    symbol: str
    dash: str


def run_styles(runs: Sequence[Run]) -> list[Style]:
    """One style per run, colour and mark by method, line style by order within the method."""
    methods = [str(run.info.get("method")) for run in runs]
    unknown = [method for method in dict.fromkeys(methods) if method not in _METHODS]
    looks = _METHODS | dict(zip(unknown, cycle(_OTHERS)))
    styles = []
    for index, (label, method) in enumerate(zip(unique_labels(runs), methods, strict=True)):
        color, symbol = looks[method]
        dash = _DASHES[methods[:index].count(method) % len(_DASHES)]
        styles.append(Style(label=label, color=color, symbol=symbol, dash=dash))
    return styles


def method_styles(names: Sequence[str], methods: Sequence[str]) -> list[Style]:
    """One style per method of a comparison, no two alike.

    A name that is a known method looks like it; the first other name of a known method takes its
    look; all others, variants for instance, take the looks of unknown methods.
    """
    free = {method for method in methods if method in _METHODS} - {*names}
    others, styles = 0, []
    for label, name, method in zip(unique_lines(names), names, methods, strict=True):
        look, dash = _METHODS.get(name), "solid"
        if look is None and method in free:
            free.remove(method)
            look = _METHODS[method]
        if look is None:
            look, dash = _OTHERS[others % len(_OTHERS)], _DASHES[others // len(_OTHERS) % 5]
            others += 1
        styles.append(Style(label=label, color=look[0], symbol=look[1], dash=dash))
    return styles


def rate_styles(labels: Sequence[str]) -> list[Style]:
    """Styles of one method at growing learning rates: from light to dark blue."""
    styles = []
    for index, label in enumerate(labels):
        share = 1.0 if len(labels) < 2 else 0.15 + 0.85 * index / (len(labels) - 1)
        color, symbol = blended(NEUTRAL, BETTER, share), _RATE_MARKS[index % len(_RATE_MARKS)]
        styles.append(Style(label=label, color=color, symbol=symbol, dash="solid"))
    return styles


def faded(color: str, opacity: float) -> str:
    """A hexadecimal colour as a CSS `rgba()` colour of the given opacity in [0, 1]."""
    return f"rgba({','.join(map(str, _channels(color)))},{opacity:g})"


def blended(start: str, end: str, share: float) -> str:
    """The hexadecimal colour `share` in [0, 1] of the way from `start` to `end`."""
    pairs = zip(_channels(start), _channels(end), strict=True)
    return "#" + "".join(f"{round(low + share * (high - low)):02X}" for low, high in pairs)


def _channels(color: str) -> bytes:
    return bytes.fromhex(color[1:])
