"""The library from Python: train, compare and draw as a user calls them."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny import outcome, write_models
from transformers import AutoModelForCausalLM, AutoTokenizer

import effopd
from effopd.data.problem import Problem
from effopd.errors import ConfigError
from effopd.training.signals import StopRequest

SMALL: dict[str, Any] = {
    "train": {"steps": 2, "prompts_per_step": 2},
    "sampling": {"max_new_tokens": 4},
    "prompt": {"chat": False},
    "evaluation": {"problems": 2, "every": 2},
    "checkpoint": {"every": 2},
    "optimizer": {"lr": 1e-2},
}
ROWS = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def reward(problem: Problem, answer: str) -> float:
    return float(answer.startswith(problem.answer))


def pair(directory: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def test_train_from_python(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []
    threads = torch.get_num_threads()
    run = effopd.train(
        effopd.Config.of("opd", **SMALL, threads=threads + 1),
        tmp_path / "run",
        model=models / "student",
        teacher=str(models / "teacher"),
        problems=ROWS,
        reward=reward,
        callbacks=[effopd.Observer(on_step=lambda metrics, timing: steps.append(metrics["step"]))],
    )
    assert run.finished
    assert steps == [1, 2]
    assert len(run.to_pandas("metrics")) == 2
    assert run.checkpoint == tmp_path / "run" / "checkpoints" / "step-00002"
    assert (capsys.readouterr().out, torch.get_num_threads()) == ("", threads)


def test_model_objects_are_trained_in_place_and_a_teacher_stays(
    models: Path, tmp_path: Path
) -> None:
    (student, tokenizer), teacher = pair(models / "student"), pair(models / "teacher")
    before = {name: p.clone() for name, p in teacher[0].named_parameters()}
    run = effopd.train(
        {"method": "opd", **SMALL},
        tmp_path,
        model=(student, tokenizer),
        teacher=teacher,
        problems=ROWS,
        reward=reward,
    )
    assert run.checkpoint is not None
    saved = load_file(run.checkpoint / "model.safetensors")
    live = {n: p for n, p in student.named_parameters() if n in saved}
    assert live
    assert all(torch.equal(saved[name], p.detach()) for name, p in live.items())
    start = AutoModelForCausalLM.from_pretrained(models / "student").get_parameter("lm_head.weight")
    assert not torch.equal(student.get_parameter("lm_head.weight"), start)
    assert all(torch.equal(before[name], p) for name, p in teacher[0].named_parameters())


@pytest.mark.parametrize("objects", [False, True], ids=["paths", "objects"])
def test_a_run_goes_on_bit_for_bit_with_what_is_given_again(
    models: Path, tmp_path: Path, objects: bool
) -> None:
    def train(out: str, stop_after: int | None = None) -> bool:
        stop = StopRequest()

        def on_step(metrics: dict[str, Any], timing: dict[str, Any]) -> None:
            stop.signal_number = 15 if metrics["step"] == stop_after else None

        student, teacher = models / "student", models / "teacher"
        return effopd.train(
            effopd.Config.of("effopd", **SMALL),
            tmp_path / out,
            model=pair(student)[0] if objects else student,
            teacher=pair(teacher) if objects else teacher,
            problems={"train": datasets.Dataset.from_list(ROWS), "test": ROWS[:4]},
            reward="tests.test_api:reward",
            callbacks=[effopd.Observer(on_step=on_step)],
            stop=stop,
        ).finished

    assert train("whole")
    assert not train("parts", stop_after=1)
    assert train("parts")
    assert train("parts"), "a finished run is left alone"
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_the_settings_of_a_run_name_what_was_given(models: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": models / "student", "teacher": models / "teacher"}
    config = effopd.Config.of("opd", **SMALL)
    effopd.train(config, tmp_path, problems=ROWS, reward=reward, **given)
    with pytest.raises(ConfigError, match=r"task\.train\.path: 12 problems in memory") as caught:
        effopd.train(config, tmp_path, problems=ROWS[:11], reward=reward, **given)
    assert "choose another directory" in str(caught.value)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"model": 3}, "a model must be a directory, .* got int"),
    ({"problems": {"training": ROWS}}, r"problems has the parts \['training'\], expected train"),
    ({"problems": ROWS[:1]}, "1 problems .* too few to hold out"),
    ({"problems": [{"q": "1+1="}]}, "question"),
    ({"reward": "math:nothing"}, "math:nothing"),
    ({"reward": 3}, "reward"),
    ({"config": {"method": "opd", "trains": {}}}, "trains"),
    ({"config": Path("nowhere.toml")}, "nowhere.toml"),
]


@pytest.mark.parametrize("case", range(len(REFUSALS)))
def test_what_cannot_be_trained_is_refused_with_a_remedy(
    models: Path, tmp_path: Path, case: int
) -> None:
    change, message = REFUSALS[case]
    given: dict[str, Any] = {
        "config": effopd.Config.of("opd", **SMALL),
        "model": models / "student",
        "teacher": models / "teacher",
        "problems": ROWS,
        "reward": reward,
    } | change
    with pytest.raises(ConfigError, match=message):
        effopd.train(given.pop("config"), tmp_path, **given)
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_a_model_without_anything_to_train_is_refused(models: Path, tmp_path: Path) -> None:
    model, tokenizer = pair(models / "student")
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"no parameter .*requires_grad_"):
        effopd.train(
            effopd.Config.of("opd", **SMALL),
            tmp_path,
            model=(model, tokenizer),
            teacher=models / "teacher",
            problems=ROWS,
            reward=reward,
        )
