"""The notebooks of docs run from a fresh directory and cache, and come to something."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1] / "docs" / "notebooks"
LAST = {
    "distil": "[run.evals[1]['accuracy'], run.evals[-1]['accuracy'], run.finished]",
    "understand": "[run.evals[1]['reverse_kl'], run.evals[-1]['reverse_kl'], len(found) == 6]",
    "search": "[0, min(run.evals[-1]['accuracy'] for run in runs.values()), len(runs) == 5]",
}
"""Name -> what is looked at when all cells have run: before, after, and whether all is there."""


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in ROOT.glob("*.ipynb")} == set(LAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAST)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("EFFOPD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)  # kernel and client meet at a path that is relative to it
    notebook: Any = nbformat.read(ROOT / f"{name}.ipynb", as_version=4)
    last = f"import json\nprint(json.dumps({LAST[name]}))"
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    client = nbclient.NotebookClient(notebook, timeout=None)
    client.create_kernel_manager().transport = "ipc"  # no port is opened
    client.execute()
    before, after, whole = json.loads(notebook.cells[-1].outputs[0].text)
    assert whole
    assert after < before if name == "understand" else after > before
