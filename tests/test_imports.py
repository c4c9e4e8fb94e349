"""What gets imported when: `import effopd` and `effopd --help` must stay light."""

import os
import subprocess
import sys

import pytest
from tests.support.commands import commands

HEAVY = {"transformers", "trl", "verl", "vllm", "pydantic", "matplotlib", "plotly"}
COMMANDS = [[], *(name.split() for name in commands())]


def imported_by(*arguments: str) -> set[str]:
    """Top-level modules that `python ARGUMENTS` imports, listed by the interpreter itself."""
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
        check=False,
    )
    lines = finished.stderr.splitlines()
    other = [line for line in lines if not line.startswith("import time:")]
    assert finished.returncode == 0, "\n".join(other)
    names = [line.rsplit("|", maxsplit=1)[-1].strip() for line in lines if line not in other]
    return {name.split(".", maxsplit=1)[0] for name in names}


def test_import_is_light() -> None:
    assert sorted(imported_by("-c", "import effopd") & HEAVY) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "effopd")
def test_help_does_without_torch(command: list[str]) -> None:
    modules = imported_by("-m", "effopd.cli.main", *command, "--help")
    assert "typer" in modules
    heavy = {"torch", *HEAVY} - {"pydantic"}  # Typer converts arguments with it
    assert sorted(modules & heavy) == []


def test_public_names_exist_and_are_documented() -> None:
    import effopd

    assert len(set(effopd.__all__)) == len(effopd.__all__)
    undocumented = [name for name in effopd.__all__ if not getattr(effopd, name).__doc__]
    assert not undocumented
