"""Runs of students with adapters: they learn, and every command reads what they leave."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny import Raw, metrics_of, search_rows, tiny_config, train_tiny

from effopd.analysis.run_theory import run_theory
from effopd.cli.evaluate import evaluate_checkpoint
from effopd.errors import ConfigError
from effopd.evaluation.logprobs import completion_log_probs
from effopd.models.checkpoints import verify_checkpoint
from effopd.models.policy import Sample
from effopd.models.updates import AdapterUpdate, open_update
from effopd.records import list_checkpoints, read_jsonl
from effopd.training.build import build_parts
from effopd.training.engines import started_from

pytest.importorskip("peft")

SETTINGS: Raw = {
    "train.steps": 16,
    "optimizer.lr": 1e-2,
    "student.lora": {"r": 4, "alpha": 8.0},
    "objective": {"type": "full_kl"},
    "search.scales": {"type": "geometric", "ratio": 2.0, "cap": 8.0},
    "validation": {"type": "teacher_kl", "prompts": 16},
    "evaluation.every": 8,
    "evaluation.problems": 6,
}


@pytest.fixture(scope="module")
def run(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "run"
    assert train_tiny(tiny_config(models, SETTINGS), directory)[0]
    return directory


def test_a_student_with_adapters_learns_and_its_searches_help(run: Path) -> None:
    rows = metrics_of(run)
    assert rows[-1]["reverse_kl"] < 0.7 * rows[0]["reverse_kl"]
    jumps = [row["accepted_scale"] for row in rows if row["accepted_scale"] not in {None, 1.0}]
    assert jumps
    tried = [row["truncation"] for row in search_rows(run) if row["kind"] == "candidate"]
    assert max(error for error in tried if error is not None) > 0


def test_a_checkpoint_holds_the_adapter_alone(models: Path, run: Path) -> None:
    last = list_checkpoints(run / "checkpoints")[0]
    verify_checkpoint(last)
    names = {path.relative_to(last).as_posix() for path in last.rglob("*")}
    assert {"adapter_config.json", "adapter_model.safetensors"} < names
    assert "trainer/optimizer.safetensors" in names
    assert [path.name for path in last.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert "model.safetensors" not in names
    config = json.loads((last / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, str(models / "student"))
    factors = load_file(last / "adapter_model.safetensors")
    assert len(factors) == 2 * 7
    update = open_update(models / "student", last)
    assert isinstance(update, AdapterUpdate)


def test_an_evaluation_of_a_checkpoint_is_that_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_checkpoint(run, None, None)
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    (recorded,) = [
        row
        for row in read_jsonl(run / "evals.jsonl")
        if row["step"] == 16 and row["model"] == "student"
    ]
    assert shown["reverse_kl"] == format(recorded["reverse_kl"], ".4g")
    assert shown["mean_length"] == format(recorded["mean_length"], ".4g")


def test_the_untrained_student_is_the_student_without_its_adapters(models: Path, run: Path) -> None:
    own = {"objective": {"type": "full_kl", "reward_scale": 1.25}}
    config = tiny_config(models, SETTINGS | own)
    trained = started_from(config, list_checkpoints(run / "checkpoints")[0])
    samples = [Sample(prompt_ids=(1, 4, 5), completion_ids=(6, 2))]
    plain = build_parts(tiny_config(models), print).student
    parts = build_parts(config, print)
    assert parts.reference is not None
    assert parts.reference.model is parts.student.model, "no second copy"
    for parameter in parts.student.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    assert completion_log_probs(parts.reference, samples) == completion_log_probs(plain, samples)
    assert completion_log_probs(parts.student, samples) != completion_log_probs(plain, samples)
    kept = build_parts(trained, print)
    assert kept.reference is not None
    assert kept.reference.model is not kept.student.model, "untrained is with the first adapter"
    assert completion_log_probs(kept.reference, samples) == completion_log_probs(
        kept.student, samples
    )


def test_what_is_of_weights_alone_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="that of weights, this run trains adapters"):
        run_theory(run, tmp_path)
