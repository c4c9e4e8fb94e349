"""`examples/opd_loop.py`: the file to read and copy is short, and trains."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tests.fakes import tiny_model
from tests.support.tiny import write_models
from transformers import AutoModelForCausalLM

LOOP = Path(__file__).parents[1] / "examples" / "opd_loop.py"


def test_it_fits_on_a_few_screens() -> None:
    assert len(LOOP.read_text("utf-8").splitlines()) <= 200


def test_the_student_learns_and_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = write_models(tmp_path)
    problems = tmp_path / "problems.jsonl"
    rows = [{"prompt": f"{i % 10} + {i // 10} ="} for i in range(100)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--steps", "16", "--batch", "64", "--validation", "32", "--longest", "6"]
    paths = [str(models / "student"), str(models / "teacher"), str(problems)]
    out = tmp_path / "trained"
    monkeypatch.setattr(sys, "argv", [str(LOOP), *paths, "--out", str(out), "--lr", "3e-3", *words])
    runpy.run_path(str(LOOP), run_name="__main__")
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"kl (\S+) nats", printed)]
    searched = re.findall(r"step (\d+) .* search: scale (\S+) kept", printed)
    assert len(losses) == 16
    assert losses[-1] < losses[0] / 2
    assert [int(step) for step, _ in searched] == [1, 2, 4, 8, 16]
    assert max(float(scale) for _, scale in searched) > 1
    trained = AutoModelForCausalLM.from_pretrained(out)
    before = AutoModelForCausalLM.from_pretrained(models / "student")
    assert not torch.equal(trained.lm_head.weight, before.lm_head.weight)


def test_the_loss_is_the_divergence_of_whole_distributions() -> None:
    """Against sums over the vocabulary in float64, from full logits without padding."""
    loop = runpy.run_path(str(LOOP))
    student, teacher = tiny_model(0), tiny_model(1, 2.0)
    ids = torch.tensor([[0, 5, 6, 7, 2], [4, 5, 6, 8, 9]])
    attended = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    counts = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    found = loop["reverse_kl"](student, teacher, loop["Answers"](ids, attended, counts))
    with torch.no_grad():
        for row, start in ((0, 1), (1, 0)):
            alone = ids[row : row + 1, start:]
            ours, theirs = (m(alone).logits[0].double().log_softmax(-1) for m in (student, teacher))
            whole = (ours.exp() * (ours - theirs)).sum(-1)
            expected = whole[1 - start : 4 - start] * counts[row]
            torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-6)
