"""Commands around a run: before it, beside it and after it."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from effopd.cli import Debug, Overrides, Recipe, errors
from effopd.records import display_text


def _say(text: str) -> None:
    """A line of a server, at once."""
    print(display_text(text), flush=True)


def doctor(
    target: Annotated[
        Path, typer.Argument(help="Recipe, plan, or with --gpus a model.", metavar="RUN.toml")
    ],
    overrides: Overrides = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use nothing but this disk.")] = False,
    gpu: Annotated[
        str | None, typer.Option(help="Card to fit: a name such as 'H100 80GB', bytes, or auto.")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(help="Estimate a run on so many cards, sharded by FSDP2.")
    ] = None,
    engine_gpus: Annotated[
        int, typer.Option(help="With --gpus: cards of an inference engine; 0 takes the fewest.")
    ] = 0,
    expert_ranks: Annotated[
        int, typer.Option(help="With --gpus: ranks that experts are distributed over.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
    debug: Debug = False,
) -> None:
    """Look for what would go wrong in a run, and estimate its memory and time; train nothing."""
    with errors(debug):
        from effopd.doctor import Cluster, check_file, named_card

        card, cluster = named_card(gpu or ("auto" if gpus else None)), None
        if gpus is not None and card is not None:
            cluster = Cluster(
                gpu=card, gpus=gpus, engine_gpus=engine_gpus, expert_ranks=expert_ranks
            )
        found = check_file(target, overrides or [], offline=offline, gpu=card, cluster=cluster)
        print(json.dumps(found.as_dict(), indent=2) if as_json else found.text())
        raise typer.Exit(0 if found.passes else 1)


def preview(
    recipe: Recipe,
    overrides: Overrides = None,
    problems: Annotated[
        int, typer.Option("--problems", "-n", min=0, help="Training problems to show.")
    ] = 3,
    debug: Debug = False,
) -> None:
    """Print what student and teacher are shown, and how many problems were left out, and why."""
    with errors(debug):
        from effopd.doctor import preview as look
        from effopd.training.config import load_config

        found = look(load_config(recipe, overrides or []), problems)
        print(found.text(shutil.get_terminal_size((100, 24)).columns))


def watch(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run directories, or directories of them.", metavar="RUN..."),
    ],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8765,
    debug: Debug = False,
) -> None:
    """Follow runs while they train: the page of `effopd report` in a browser, until stopped."""
    with errors(debug):
        from effopd.reports.live import watch as follow

        follow(runs, port=port, report=_say)


def serve_teacher(
    model: Annotated[str, typer.Argument(help="Model directory or repository.", metavar="MODEL")],
    name: Annotated[str, typer.Option(help="Name that students ask for.")] = "teacher",
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    key_env: Annotated[
        str, typer.Option(help="Environment variable with the key that students send.")
    ] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    device: Annotated[
        str, typer.Option(help="PyTorch device that computes; auto is a GPU where there is one.")
    ] = "auto",
    max_tokens: Annotated[int, typer.Option(help="Longest prompt and answer together.")] = 32_768,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in one forward pass.")] = 32_768,
    waiting: Annotated[int, typer.Option(help="Requests at a time; more have to come back.")] = 256,
    debug: Debug = False,
) -> None:
    """Serve a teacher's log-probabilities and hidden states to students, until stopped."""
    with errors(debug):
        from effopd.servers.settings import key_from
        from effopd.servers.teacher_server import TeacherServerSettings
        from effopd.servers.teacher_server import serve_teacher as serve

        settings = TeacherServerSettings(
            name=name, host=host, port=port, key=key_from(key_env, "--key-env"),
            max_tokens=max_tokens, batch_tokens=batch_tokens, waiting=waiting,
        )  # fmt: skip

        serve(model, settings, dtype=dtype, device=device, report=_say)


def push(
    run: Annotated[Path, typer.Argument(help="Run directory.", metavar="RUN")],
    repo: Annotated[str | None, typer.Option(help="Repository to upload to, me/model.")] = None,
    to: Annotated[Path | None, typer.Option(help="Directory to write to instead.")] = None,
    step: Annotated[
        int | None, typer.Option(help="Checkpoint; the best that was kept, else the newest.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    license: Annotated[str | None, typer.Option(help="Licence, such as apache-2.0.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Repository of the student.")] = None,
    debug: Debug = False,
) -> None:
    """Upload a checkpoint with a model card to the Hugging Face Hub, or write it to a directory."""
    with errors(debug):
        from effopd.hub import push_to_hub

        print(push_to_hub(run, repo, to=to, step=step, private=private, license=license,
                          base_model=base_model))  # fmt: skip
