"""Several processes of one test file, as ranks of one group on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import effopd


def run_ranks(script: str, folder: Path, ranks: int) -> None:
    """Runs `script RANK FOLDER` once a rank, and asserts that all of them end well."""
    source, root = Path(effopd.__file__).parents[1], Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (source, root))),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)
