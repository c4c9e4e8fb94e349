"""Several processes of one test file, as ranks of one group on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import effopd


def torchrun(script: str, folder: Path, ranks: int) -> str:
    """Runs `script FOLDER` under torchrun, to a good end; what it printed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finished = subprocess.run(
        [*launcher, "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}", script, str(folder)],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_ranks(script: str, folder: Path, ranks: int) -> None:
    """Runs `script RANK FOLDER` once a rank, and asserts that all of them end well."""
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(folder)],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)


def _environment() -> dict[str, str]:
    source, root = Path(effopd.__file__).parents[1], Path(__file__).parents[2]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (source, root))),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
