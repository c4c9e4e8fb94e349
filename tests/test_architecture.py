"""The layers and the house rules, read from the syntax tree of every file in src/effopd.

Each rule is a function from a source text to the violations found in it, so that each is itself
tested on a text that breaks it.
"""

import ast
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "effopd"
FILES = sorted(SOURCE.rglob("*.py"))

_BELOW_EVALUATION = {
    "errors", "precision", "records", "progress", "workspace", "config", "linalg", "search",
    "objectives", "data", "models", "rewards", "servers", "rollouts",
}  # fmt: skip
_BELOW_TRAINING = _BELOW_EVALUATION | {"evaluation", "methods"}
_BELOW_BUILD = _BELOW_TRAINING | {"training", "demo"}
_BELOW_ANALYSIS = _BELOW_BUILD | {"reports", "figures", "training/build", "training/run"}
_BELOW_CLI = _BELOW_ANALYSIS | {
    "evaluation/benchmarks", "analysis", "comparison", "doctor", "hub",
}  # fmt: skip

MAY_IMPORT = {
    "__init__": _BELOW_CLI,
    "errors": set(),
    "records": {"errors"},
    "precision": set(),
    "progress": {"records"},
    "workspace": {"errors", "records"},
    "linalg": {"errors", "precision"},
    "search": {"errors", "precision", "linalg"},
    "objectives": {"errors", "precision"},
    "data": {"errors"},
    "config": {"errors"},
    "models": {"errors", "precision", "records", "linalg", "search", "objectives"},
    "rewards": {"errors", "data"},
    "servers": {"errors", "precision", "linalg", "search", "objectives", "models"},
    "rollouts": {"errors", "search", "data", "models", "servers"},
    "reports": {"errors", "records"},
    "figures": {"errors", "records", "reports"},
    "evaluation": _BELOW_EVALUATION,
    "methods": _BELOW_EVALUATION | {"evaluation"},
    "training": _BELOW_TRAINING,
    "integrations": _BELOW_TRAINING | {"training"},
    "demo": _BELOW_TRAINING | {"training"},
    "training/build": _BELOW_BUILD,
    "training/run": _BELOW_BUILD | {"training/build"},
    "evaluation/benchmarks": _BELOW_ANALYSIS,
    "analysis": _BELOW_ANALYSIS,
    "comparison": _BELOW_ANALYSIS,
    "doctor": _BELOW_ANALYSIS | {"comparison"},
    "hub": _BELOW_ANALYSIS,
    "cli": _BELOW_CLI | {"__init__"},
}
"""Package, or part of one that is a layer of its own -> the others it may import.

Siblings of one layer always may. The longest entry that a path begins with is its layer.
"""

READER = "effopd.config.reading"
"""The reader of settings, which knows none of them: any file may import it."""

THIRD_PARTY = {
    "__init__": set(),
    "errors": set(),
    "precision": {"torch"},
    "linalg": {"torch", "jaxtyping", "scipy"},
    "search": {"torch", "jaxtyping", "numpy"},
    "objectives": {"torch", "jaxtyping"},
}
"""Where the list of third-party packages is closed."""

WITHOUT_TORCH = {
    f"search/{name}.py"
    for name in (
        "schedule", "scales", "validation", "line_search", "direction", "settings",
    )
}  # fmt: skip
FORBIDDEN_FILE_NAMES = {"utils", "helpers", "common", "util", "misc"}

Rule = Callable[[str, str], list[str]]
"""(path below src/effopd, source text) -> one line per violation."""


@functools.cache
def nodes_of(source: str) -> list[ast.AST]:
    """Every node of a source text."""
    return list(ast.walk(ast.parse(source)))


# What a file imports ------------------------------------------------------------------------------


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, wherever in the file it stands."""
    package = ["effopd", *Path(path).parts[:-1]]
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def layer_of_file(path: str) -> str:
    """The layer of a path below src/effopd; its first part where the table has none."""
    parts = path.removesuffix(".py").split("/")
    longest_first = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((layer for layer in longest_first if layer in MAY_IMPORT), parts[0])


def layer_of_import(name: str) -> str | None:
    """The layer that `effopd.x...` belongs to; None for what is not effopd's."""
    root, *rest = name.split(".")
    if root != "effopd":
        return None
    layer = layer_of_file("/".join(rest)) if rest else ""
    return layer if layer in MAY_IMPORT else "__init__"


def top_level(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


# The rules ----------------------------------------------------------------------------------------


def layers(path: str, source: str) -> list[str]:
    layer = layer_of_file(path)
    if layer not in MAY_IMPORT:
        return [f"{path}: {layer} is not in the table of layers"]
    allowed = MAY_IMPORT[layer] | {layer}
    return [
        f"{path}:{line}: {layer} imports {name}"
        for line, name in imported(path, source)
        if layer_of_import(name) not in {None, *allowed} and not name.startswith(READER)
    ]


def third_party(path: str, source: str) -> list[str]:
    allowed = THIRD_PARTY.get(layer_of_file(path))
    if allowed is None:
        return []
    known = {*sys.stdlib_module_names, "effopd", *allowed}
    found = [(line, name) for line, name in imported(path, source) if top_level(name) not in known]
    return [f"{path}:{line}: imports {name}" for line, name in found]


def torch_stays_out(path: str, source: str) -> list[str]:
    if path not in WITHOUT_TORCH and layer_of_file(path) != "reports":
        return []
    found = [(line, name) for line, name in imported(path, source) if top_level(name) == "torch"]
    return [f"{path}:{line}: imports {name}" for line, name in found]


def pydantic_stays_in_config(path: str, source: str) -> list[str]:
    found = [
        line for line, name in imported(path, source) if top_level(name).startswith("pydantic")
    ]
    is_config = layer_of_file(path) == "config" or path.endswith("/config.py")
    return [] if is_config else [f"{path}:{line}: imports pydantic" for line in found]


def no_attribute_probing(path: str, source: str) -> list[str]:
    found = [node for node in calls(source) if dotted(node.func) == "hasattr"]
    return [f"{path}:{node.lineno}: hasattr()" for node in found]


def no_silent_catch_all(path: str, source: str) -> list[str]:
    """A handler of everything raises, or hands the error on by its name."""
    found = []
    for node in nodes_of(source):
        hands_on = False
        if isinstance(node, ast.ExceptHandler):
            caught = [None] if node.type is None else members(node.type)
            inside = [each for line in node.body for each in ast.walk(line)]
            hands_on = any(
                isinstance(each, ast.Raise) or (isinstance(each, ast.Name) and each.id == node.name)
                for each in inside
            )
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("suppress"):
            caught = [dotted(argument) for argument in node.args]
        else:
            continue
        if {None, "Exception", "BaseException"} & set(caught) and not hands_on:
            found.append(f"{path}:{node.lineno}: catches everything")
    return found


def no_pickle(path: str, source: str) -> list[str]:
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    functions = {"torch.load", "torch.save"}
    found = [
        (line, name)
        for line, name in imported(path, source)
        if top_level(name) in modules or name in functions
    ]
    renamed = module_names(source)
    for node in nodes_of(source):
        if isinstance(node, ast.Attribute):
            root, *rest = dotted(node).split(".")
            name = ".".join([renamed.get(root, root), *rest])
            if name in functions:
                found.append((node.lineno, name))
    allowed = [node for node in calls(source) if keyword(node, "allow_pickle")]
    found += [(node.lineno, "allow_pickle") for node in allowed]
    return [f"{path}:{line}: {name}" for line, name in found]


def no_remote_code(path: str, source: str) -> list[str]:
    lines = [node.lineno for node in calls(source) if keyword(node, "trust_remote_code")]
    for node in nodes_of(source):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            lines += [
                v.lineno for k, v in pairs if is_(k, "trust_remote_code") and not is_(v, False)
            ]
    return [f"{path}:{line}: trust_remote_code" for line in lines]


def no_drawer_of_odds_and_ends(path: str, source: str) -> list[str]:
    names = {part.removesuffix(".py") for part in Path(path).parts}
    return [f"{path}: name the file after its idea"] if names & FORBIDDEN_FILE_NAMES else []


# Reading syntax trees -----------------------------------------------------------------------------


def calls(source: str) -> list[ast.Call]:
    return [node for node in nodes_of(source) if isinstance(node, ast.Call)]


def dotted(node: ast.expr) -> str:
    """`a.b.c` as text; "" for what is not a chain of names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def members(node: ast.expr) -> list[str]:
    """The last names of a class or a tuple of classes, as in `except (A, b.C)`."""
    classes = node.elts if isinstance(node, ast.Tuple) else [node]
    return [dotted(each).rsplit(".", maxsplit=1)[-1] for each in classes]


def module_names(source: str) -> dict[str, str]:
    """Name in the file -> module, for `import module as name`."""
    imports = [node for node in nodes_of(source) if isinstance(node, ast.Import)]
    return {a.asname: a.name for node in imports for a in node.names if a.asname}


def keyword(node: ast.Call, name: str) -> bool:
    """Whether the call passes `name` as anything but a literal False."""
    return any(k.arg == name and not is_(k.value, False) for k in node.keywords)


def is_(node: ast.expr | None, literal: str | bool) -> bool:
    """Whether the node is that literal."""
    return isinstance(node, ast.Constant) and repr(node.value) == repr(literal)


# The source obeys ---------------------------------------------------------------------------------

RULES: list[Rule] = [
    layers,
    third_party,
    torch_stays_out,
    pydantic_stays_in_config,
    no_attribute_probing,
    no_silent_catch_all,
    no_pickle,
    no_remote_code,
    no_drawer_of_odds_and_ends,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source_obeys(rule: Rule) -> None:
    assert FILES, f"no source found below {SOURCE}"
    found = [
        violation
        for file in FILES
        for violation in rule(file.relative_to(SOURCE).as_posix(), file.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_table_of_layers_has_no_cycle() -> None:
    remaining = {layer: set(below) for layer, below in MAY_IMPORT.items()}
    while remaining:
        lowest = {layer for layer, below in remaining.items() if not below & remaining.keys()}
        assert lowest, f"layers import each other in a circle: {sorted(remaining)}"
        remaining = {layer: below for layer, below in remaining.items() if layer not in lowest}


# The rules can fail -------------------------------------------------------------------------------

BROKEN = [
    (layers, "search/ray.py", "import effopd.records"),
    (layers, "search/ray.py", "from effopd import Extrapolator"),
    (layers, "search/ray.py", "def f():\n    from effopd.models.loading import load"),
    (layers, "search/ray.py", "if TYPE_CHECKING:\n    from effopd.training import loop"),
    (layers, "search/ray.py", "from ..objectives import distillation"),
    (layers, "search/ray.py", "from .. import records"),
    (layers, "methods/opd.py", "from effopd.training.settings import TrainSettings"),
    (layers, "integrations/verl/worker.py", "from ...reports import figures"),
    (layers, "plugins/new.py", "import math"),
    (third_party, "search/ray.py", "import scipy"),
    (torch_stays_out, "search/scales.py", "def f():\n    from torch import nn"),
    (torch_stays_out, "reports/figures.py", "import torch.nn as nn"),
    (pydantic_stays_in_config, "search/line_search.py", "from pydantic import BaseModel"),
    (no_attribute_probing, "search/ray.py", "x = hasattr(y, 'z')"),
    (no_silent_catch_all, "search/ray.py", "try:\n    f()\nexcept:\n    pass"),
    (no_silent_catch_all, "search/ray.py", "try:\n    f()\nexcept Exception as e:\n    print()"),
    (
        no_silent_catch_all,
        "search/ray.py",
        "try:\n    f()\nexcept (OSError, builtins.BaseException):\n    g()",
    ),
    (no_silent_catch_all, "search/ray.py", "with contextlib.suppress(Exception):\n    f()"),
    (no_pickle, "records.py", "def f():\n    from pickle import loads"),
    (no_pickle, "records.py", "import torch\ntorch.save(x, 'f')"),
    (no_pickle, "records.py", "import torch as t\nload = t.load"),
    (no_pickle, "records.py", "from torch import load"),
    (no_pickle, "records.py", "np.load('f', allow_pickle=True)"),
    (no_remote_code, "models/loading.py", "load('m', trust_remote_code=flag)"),
    (no_remote_code, "models/loading.py", "options = {'trust_remote_code': True}"),
    (no_drawer_of_odds_and_ends, "search/utils.py", ""),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_rule_finds_the_violation(rule: Rule, path: str, source: str) -> None:
    assert len(rule(path, source)) == 1


HARMLESS = [
    (
        "search/line_search.py",
        "import math\nfrom effopd.search.scales import Trial\nfrom effopd import errors",
    ),
    ("search/ray.py", "import torch\nfrom . import search\nfrom ..errors import EffopdError"),
    ("training/config.py", "import pydantic\nfrom effopd.search.extrapolator import Search"),
    ("cli/main.py", "from effopd import __version__, records\nimport typer"),
    ("models/loading.py", "load('m', trust_remote_code=False)\nsafetensors.torch.save(x)"),
    (
        "records.py",
        "try:\n    f()\nexcept (OSError, ValueError):\n    pass\nhas = getattr(x, 'y', 0)\n"
        "try:\n    f()\nexcept Exception as error:\n    done(error)\n"
        "try:\n    f()\nexcept BaseException:\n    g()\n    raise",
    ),
    ("reports/commonplace.py", "import plotly\nfrom effopd.records import load"),
]


@pytest.mark.parametrize(("path", "source"), HARMLESS)
def test_rules_leave_good_code_alone(path: str, source: str) -> None:
    assert [violation for rule in RULES for violation in rule(path, source)] == []
