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


def _environment() -> dict[str, str]:
    source, root = Path(effopd.__file__).parents[1], Path(__file__).parents[2]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (source, root))),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
