"""`python -m studies.paper`, from the repository's root; `--help` lists the options."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from studies.paper.reproduce import reproduce
from studies.paper.study import Study, long_study, quick_study

from effopd.errors import EffopdError

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m studies.paper",
        description="Train and measure every figure and table of the paper in the tiny world. "
        "What is there already is kept.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="runs, records")
    parser.add_argument("--page", type=Path, default=Path("docs/reproduction.md"), help="Markdown")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="minutes; verdicts mean little")
    sizes.add_argument("--long", action="store_true", help="hours: smaller rate, more updates")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[], help="hidden widths for figure 8; hours each"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="only the first N seeds")
    parser.add_argument(
        "--patience", type=int, default=5, help="steps without a better reward that end RL (5)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread (2)")
    asked = parser.parse_args()
    make = quick_study if asked.quick else long_study if asked.long else lambda out: Study(out=out)
    try:
        study = replace(make(asked.out), sizes=tuple(asked.sizes), patience=asked.patience)
        study = replace(study, seeds=study.seeds[: asked.seeds])
        reproduce(study, asked.page, asked.workers)
    except EffopdError as error:
        sys.exit(f"error: {error}")
