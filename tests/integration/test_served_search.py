"""A teacher behind a server trains with the default search as the local one does."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.support.fake_server import serving, settings_of

from effopd.data.world import TinyWorld
from effopd.demo.cache import world_models
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.policy import Policy
from effopd.records import read_jsonl
from effopd.servers.served_model import TeacherServerSettings
from effopd.servers.teacher_server import TeacherServer
from effopd.training.config import load_config
from effopd.training.run import train

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny-effopd.toml"
PROBLEMS, INTERVAL, LIKELY = 256, 0.05, 8
MEASURED = [
    "evaluation.every=0", "evaluation.first=[]", f"evaluation.problems={PROBLEMS}",
    "evaluation.teacher=false", "prompt.max_tokens=128",
]  # fmt: skip

Rows = list[dict[str, Any]]


def trained(out: Path, *settings: str) -> tuple[Rows, Rows]:
    train(load_config(RECIPE, [*MEASURED, *settings]), out)
    return read_jsonl(out / "evals.jsonl"), read_jsonl(out / "metrics.jsonl")


def of(settings: dict[str, Any]) -> list[str]:
    """A section as overrides of a command line."""
    texts = {
        key: f'"{value}"' if isinstance(value, str) else value for key, value in settings.items()
    }
    return [f"teacher_server.{key}={text}" for key, text in texts.items()]


def test_served_teachers_teach_as_the_local_one(tmp_path: Path) -> None:
    """Hidden states of our server, and the 8 likeliest tokens of vLLM's: the same accuracy."""
    path = str(world_models(TinyWorld(), print).teacher)
    load: Callable[[], Any] = lambda: load_model(ModelSettings(path=path))  # noqa: E731
    tokenizer = load_tokenizer(ModelSettings(path=path))
    runs = {"local": trained(tmp_path / "local")}
    with TeacherServer(
        Policy(load(), tokenizer), TeacherServerSettings(port=0, max_tokens=256)
    ) as server:
        own = {"url": server.url, "model": "teacher", "flavor": "effopd", "concurrency": 64}
        runs["states"] = trained(tmp_path / "states", *of(own))
    with serving(load(), tokenizer) as fake:
        named = asdict(settings_of(fake, top_k=LIKELY))
        runs["likely"] = trained(tmp_path / "likely", *of(named))
    for name, (evals, metrics) in runs.items():
        print(name, [row["accuracy"] for row in evals], metrics[-1].get("teacher_covered"))
        assert evals[0]["accuracy"] < 0.4
        # A batch is read once, by the search and by all updates together.
        assert metrics[-1]["teacher_tokens"] == metrics[-1]["train_tokens"]
        assert abs(evals[-1]["accuracy"] - runs["local"][0][-1]["accuracy"]) <= INTERVAL
        assert any(row["accepted_scale"] not in {None, 1.0} for row in metrics)
        covered = [row.get("teacher_covered") for row in metrics]
        assert all((value is not None) == (name == "likely") for value in covered)
        assert name != "likely" or min(covered) > 0.9
