"""Runs in an environment: they resume exactly, and the tiny student learns to use a tool."""

from pathlib import Path
from typing import Any

import pytest
from tests.support.tiny import outcome, tiny_config, train_tiny

from effopd.data.problem import Problem
from effopd.data.world import Calculator
from effopd.errors import ConfigError
from effopd.evaluation.statistics import mean
from effopd.records import read_jsonl
from effopd.training.config import Config, load_config
from effopd.training.run import train

ECHO = "tests.integration.test_turns:Echo"


class Echo:
    """Replies with a number that depends on all that was said, twice at most."""

    def reply(self, problem: Problem, answer: str) -> str | None:
        said = len(problem.after) // 2
        return None if said == 2 else f"{(len(answer) + said) % 7} ;"


SETTINGS: dict[str, Any] = {
    "environment": {"name": ECHO, "max_turns": 4},
    "sampling.max_new_tokens": 16,
    "sampling.stop": ["="],
    "validation.type": "teacher_kl",
    "validation.prompts": 8,
    "evaluation.problems": 4,
    "evaluation.recorded": 4,
    "train.steps": 4,
    "train.prompts_per_step": 8,
    "train.micro_batch_tokens": 512,
    "checkpoint.every": 2,
}


@pytest.mark.parametrize("objective", ["sampled_token", "full_kl"])
def test_a_run_in_an_environment_resumes_exactly(
    models: Path, tmp_path: Path, objective: str
) -> None:
    config = tiny_config(models, SETTINGS | {"objective": {"type": objective}})
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train_tiny(config, whole)[0]
    rows = read_jsonl(whole / "metrics.jsonl")
    assert mean([row["environment_replies"] for row in rows]) > 0.1
    assert all(row["environment_tokens"] == 2 * row["environment_replies"] for row in rows)
    shown = [row for row in read_jsonl(whole / "rollouts.jsonl") if "masked" in row]
    assert shown
    for row in shown:
        masked = {i for start, end in row["masked"] for i in range(start, end)}
        assert {i for i, nats in enumerate(row["kl_nats"]) if nats is None} == masked
        assert len(row["tokens"]) == len(row["kl_nats"])
    assert not train_tiny(config, halves, stop_after=2)[0]
    assert train_tiny(config, halves)[0]
    assert outcome(halves) == outcome(whole)


def test_an_object_takes_the_place_of_the_name(models: Path, tmp_path: Path) -> None:
    named = {key: value for key, value in SETTINGS.items() if key != "environment"}
    bare = tiny_config(models, named | {"train.steps": 1})
    run = train(bare, tmp_path / "given", environment=Echo())
    text = (tmp_path / "given" / "config.toml").read_text()
    assert f'name = "{ECHO}"' in text
    assert run.metrics[0]["environment_tokens"] >= 0
    run = train(bare, tmp_path / "function", environment=lambda problem, answer: None)
    assert "__main__:environment" in (tmp_path / "function" / "config.toml").read_text()
    assert {row["environment_replies"] for row in run.metrics} == {0.0}


def test_settings_that_contradict_an_environment(models: Path) -> None:
    with pytest.raises(ConfigError, match=r"environment needs prompt\.chat = true"):
        tiny_config(models, SETTINGS | {"prompt.chat": False})
    with pytest.raises(ConfigError, match=r"task\.calculator needs environment\.name"):
        Config(task={"type": "tiny_world", "calculator": True})


def test_the_calculator_answers_the_last_step() -> None:
    problem, calculator = Problem(id="p", prompt="3 + 4 ="), Calculator()
    asked = {"3 + 4 =": "0 ;", "1 + 1 = 2 ; 2 - 6 =": "3 ;", "5 * 6 = ": "2 ;"}
    assert {text: calculator.reply(problem, text) for text in asked} == asked
    for text in ("# 0", "3 + 4 = 0 ;", "3 + =", "", "+ 4 ="):
        assert calculator.reply(problem, text) is None
    assert Calculator(modulus=5).reply(problem, "3 - 4 =") == "4 ;"


@pytest.mark.slow
def test_the_student_learns_to_use_the_calculator(tmp_path: Path) -> None:
    """It never calls it at first, and is right in a third of its answers."""
    recipe = Path(__file__).parents[2] / "recipes" / "tiny-calculator.toml"
    assert train(load_config(recipe), tmp_path).finished
    rows = [row for row in read_jsonl(tmp_path / "evals.jsonl") if row["model"] == "student"]
    first, last = rows[0], rows[-1]
    assert first["accuracy"] < 0.4
    assert first["environment_replies"] < 0.05
    assert last["accuracy"] > 0.9
    assert last["environment_replies"] > 3.5, "a call for each of four steps"
    assert last["environment_tokens"] == pytest.approx(2 * last["environment_replies"])
