"""Small enough to see whole: limits on the length of files and functions in src/effopd."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "effopd"
LONGEST_FILE = 450
LONGEST_FUNCTION = 60
LOOP = "training/loop.py"
LONGEST_LOOP = 300


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


def test_lengths_of_a_known_source() -> None:
    source = '''
def one(): return 1

class C:
    async def two(self):
        """First line.

        Last line.
        """
        def inner():
            return 1

        return inner
'''
    assert function_lengths(source) == {"one:2": 1, "two:5": 5, "inner:10": 2}


def test_file_lengths_of_a_known_folder(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("a = 1\n")
    (tmp_path / "package" / "long.py").write_text("a = 1\n" * 401)
    assert file_lengths(tmp_path) == {"package/long.py": 401}
