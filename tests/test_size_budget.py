"""Small enough to see whole: limits on the length of files and functions in src/effopd."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "effopd"
LONGEST_FILE = 450
LONGEST_FUNCTION = 60
LOOP = "training/loop.py"
LONGEST_LOOP = 300
SMALL = 120
ENTRY_POINTS = {
    "cli.main", "evaluation.inspect_tasks", "figures", "integrations.slope",
    "integrations.verl.main", "rewards.worker",
}  # fmt: skip
"""Modules that are started, or imported by users, by name."""
ALONE = {
    "cli.extrapolate": "imports PyTorch, which `--help` does without",
    "integrations.verl.agent_loop": "verl's processes import it by name",
    "integrations.verl.launch": "imports verl, whose version is checked before",
    "integrations.verl.scoring": "is tested without verl",
    "integrations.verl.worker": "verl's processes import it by name",
    "objectives.distillation": "kernels know nothing of methods",
    "rewards.sandbox.inside.kernel": "runs inside the sandbox, without the rest",
}
"""Small modules with one importer, and why they are apart; this list may only shrink."""


def file_lengths(folder: Path) -> dict[str, int]:
    """Path -> lines, of every module but `__init__.py`."""
    return {
        file.relative_to(folder).as_posix(): len(file.read_text("utf-8").splitlines())
        for file in sorted(folder.rglob("*.py"))
        if file.name != "__init__.py"
    }


def function_lengths(source: str) -> dict[str, int]:
    """Name and line -> lines from `def` to the end, the docstring not counted."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return {f"{node.name}:{node.lineno}": _length(node) for node in functions}


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if ast.get_docstring(node, clean=False) is None:
        return lines
    docstring = node.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


def importers(folder: Path) -> dict[str, set[str]]:
    """Module of the package in `folder` -> modules of the package that import it, lazily or not."""
    names = {
        ".".join(file.relative_to(folder).with_suffix("").parts): file
        for file in sorted(folder.rglob("*.py"))
        if file.name != "__init__.py"
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    for file in sorted(folder.rglob("*.py")):
        own = ".".join(file.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            asked = []
            if isinstance(node, ast.Import):
                asked = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                asked = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in asked:
                if (known := name.removeprefix(f"{folder.name}.")) in found and known != own:
                    found[known].add(own)
    return found


def test_a_small_module_has_several_importers_or_a_reason() -> None:
    lengths = file_lengths(SOURCE)
    small = {
        name
        for name, users in importers(SOURCE).items()
        if len(users) < 2 and lengths[f"{name.replace('.', '/')}.py"] < SMALL
    }
    assert small - ENTRY_POINTS - ALONE.keys() == set(), "put it into the module that imports it"
    assert ALONE.keys() - small == set(), "take it off the list"


def test_files_are_short() -> None:
    lengths = file_lengths(SOURCE)
    too_long = {file: lines for file, lines in lengths.items() if lines > LONGEST_FILE}
    assert not too_long


def test_functions_are_short() -> None:
    lengths = {
        f"{file.relative_to(SOURCE).as_posix()} {function}": lines
        for file in sorted(SOURCE.rglob("*.py"))
        for function, lines in function_lengths(file.read_text("utf-8")).items()
    }
    too_long = {function: lines for function, lines in lengths.items() if lines > LONGEST_FUNCTION}
    assert not too_long


def test_the_training_loop_is_readable_in_one_sitting() -> None:
    assert file_lengths(SOURCE)[LOOP] <= LONGEST_LOOP
