"""`python -m studies.paper [--out DIR] [--page FILE] [--quick]`, from the repository's root."""

import argparse
import sys
from pathlib import Path

from studies.paper.reproduce import reproduce
from studies.paper.study import Study, quick_study

from effopd.errors import EffopdError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m studies.paper",
        description="Train and measure every figure and table of the paper in the tiny world. "
        "What is there already is kept.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="runs, records")
    parser.add_argument("--page", type=Path, default=Path("docs/reproduction.md"), help="Markdown")
    parser.add_argument("--quick", action="store_true", help="minutes; verdicts mean little")
    asked = parser.parse_args()
    try:
        reproduce(quick_study(asked.out) if asked.quick else Study(out=asked.out), asked.page)
    except EffopdError as error:
        sys.exit(f"error: {error}")
