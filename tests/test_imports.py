"""What gets imported when: `import effopd` and `effopd --help` must stay light."""

import json
import subprocess
import sys

from tests.support.commands import commands

HEAVY = {"torch", "transformers", "trl", "verl", "vllm", "pydantic", "matplotlib", "plotly"}
COMMANDS = [[], *(name.split() for name in commands())]
AFTER_EACH_HELP = """
from effopd.cli.main import app
for command in COMMANDS:
    assert app([*command, "--help"], standalone_mode=False) == 0
    loaded(" ".join(command))
"""
PROGRAM = f"""
import json, sys
COMMANDS, HEAVY = {COMMANDS!r}, {HEAVY!r}
def loaded(by):
    heavy = sorted(HEAVY & {{name.partition(".")[0] for name in sys.modules}})
    print(json.dumps([by, heavy]), file=sys.stderr)
"""


def heavy_after(code: str) -> dict[str, list[str]]:
    """What of `HEAVY` a new process has imported at each call of `loaded`, by its argument."""
    command = [sys.executable, "-c", PROGRAM + code]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return dict(json.loads(line) for line in finished.stderr.splitlines())


def test_import_is_light() -> None:
    assert heavy_after("import effopd\nloaded('effopd')") == {"effopd": []}


def test_help_does_without_torch() -> None:
    found = heavy_after(AFTER_EACH_HELP)
    assert found.pop("") == []
    # Typer converts the arguments of a command with pydantic.
    assert found == {name: ["pydantic"] for name in commands()}


def test_public_names_exist_and_are_documented() -> None:
    import effopd

    assert len(set(effopd.__all__)) == len(effopd.__all__)
    undocumented = [name for name in effopd.__all__ if not getattr(effopd, name).__doc__]
    assert not undocumented
