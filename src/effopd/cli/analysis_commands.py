"""The commands that look at checkpoints; imports wait until one runs."""

from pathlib import Path
from typing import Annotated

import typer

from effopd.cli.options import Debug, errors


def analyze(
    base: Annotated[
        str,
        typer.Argument(help="Model before training (directory or hub), or a run.", metavar="BASE"),
    ],
    out: Annotated[Path, typer.Option(help="Directory of tables, figures and page.")],
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(help="Models, LoRA adapters, or a run.", metavar="CKPT..."),
    ] = None,
    final: Annotated[
        str | None, typer.Option(help="What the series is compared with; its last by default.")
    ] = None,
    what: Annotated[
        str | None, typer.Option(help="norms,spectra,subspaces,trajectories,behavior or some.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Problems and teacher for behavior; the run's by default.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="PyTorch device that computes; auto is a GPU where there is one.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Tensors at a time; one per core, 4 at most.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure what training changed, place by place: tables, figures and a page. Resumes."""
    with errors(debug):
        from effopd.analysis.study import analyze as run
        from effopd.progress import Terminal
        from effopd.reports.analysis_tables import table_1_text

        found = run(
            base, checkpoints or [], what, out=out, final=final, recipe=recipe, device=device,
            workers=workers, display=Terminal(),
        )  # fmt: skip
        if found.tables.get("table1"):
            print(f"\n{table_1_text(found)}\n")
        print(f"page: {out / 'report.html'}\ntables: {out / 'tables'}\nfigures: {out / 'figures'}")


def intervene(
    base: Annotated[str, typer.Argument(help="Model before training.", metavar="BASE")],
    tuned: Annotated[
        str, typer.Argument(help="Model directory, or LoRA adapter of BASE.", metavar="TUNED")
    ],
    kind: Annotated[
        str,
        typer.Option(help="scale, norm, embeddings, window, top_rank, bottom_rank or swap."),
    ],
    out: Annotated[Path, typer.Option(help="Where checkpoints and tables go.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Of the kind, for example scale=0.5,1,1.5.")
    ] = None,
    other: Annotated[
        str | None, typer.Option(help="Second tuned model, whose norms or tensors are taken.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Evaluate in memory, as this recipe says.")
    ] = None,
    passes: Annotated[int, typer.Option(min=1, help="Evaluations of each.")] = 4,
    problems: Annotated[
        int | None, typer.Option(help="Test problems; the recipe's number by default.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write checkpoints too when evaluating.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Scale, remove or exchange parts of an update; write checkpoints or evaluate them. Resumes."""
    with errors(debug):
        from effopd.analysis.sweeps import intervene as run
        from effopd.analysis.sweeps import sweep_cells
        from effopd.progress import Terminal
        from effopd.reports.tables import text_table

        rows = run(
            base, tuned, kind, settings or [], out=out, other=other, recipe=recipe, passes=passes,
            problems=problems, write=write, display=Terminal(),
        )  # fmt: skip
        if recipe is not None:
            print(f"\n{text_table(sweep_cells(rows))}\n")
            print(f"table: {out / 'tables' / 'interventions.csv'}")


def extrapolate(
    anchor: Annotated[
        Path, typer.Argument(help="Model directory of an earlier step.", metavar="ANCHOR")
    ],
    tip: Annotated[
        Path, typer.Argument(help="Model directory, or LoRA adapter of ANCHOR.", metavar="TIP")
    ],
    scale: Annotated[
        list[float], typer.Option(help="How far: 1 is TIP, 3 twice as far again; repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="Model directory to write; of several, the parent.")],
    select: Annotated[
        str, typer.Option(help="What moves: attention_mlp, matrices, all or re:PATTERN.")
    ] = "attention_mlp",
    debug: Debug = False,
) -> None:
    """Write ANCHOR + scale * (TIP - ANCHOR): the search's step, on any trainer's checkpoints."""
    with errors(debug):
        from effopd.cli.extrapolate import extrapolate as write_points

        write_points(anchor, tip, scale, out, select=select)


def local_theory(
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Directory of the tables.")],
    rank: Annotated[int, typer.Option(help="Leading eigenpairs of the curvature.")] = 16,
    contexts: Annotated[int, typer.Option(help="Contexts of the base model's answers.")] = 2048,
    steps: Annotated[int, typer.Option(help="Steps of gradient descent to predict.")] = 32,
    debug: Debug = False,
) -> None:
    """Predict a distillation run from the local theory of its base model; compare."""
    with errors(debug):
        from effopd.analysis.run_theory import run_theory, theory_text
        from effopd.progress import Terminal

        found = run_theory(run, out, rank=rank, contexts=contexts, steps=steps, display=Terminal())
        print(f"\n{theory_text(found)}\n\nwritten to {out}")
