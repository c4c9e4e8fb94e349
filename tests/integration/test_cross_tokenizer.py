"""A student in other tokens than its teacher has: it starts as the tiny base, and it learns."""

from pathlib import Path

import pytest
import torch
from tests.fakes import WORLD
from tests.support.merged_world import merged_demonstrations, merged_tokenizer, pretrain_merged

from effopd.data.world import TinyWorld, demonstrations, make_tokenizer
from effopd.models.alignment import Aligner, AlignmentSettings, SpanCounts
from effopd.training.config import Config
from effopd.training.run import train


def test_merged_tokens_write_the_same_demonstrations() -> None:
    """The text is the world's; its results and semicolons are one token, which runs match."""
    own, merged = make_tokenizer(WORLD), merged_tokenizer(WORLD)
    pairs = [
        make(WORLD, 8, torch.Generator().manual_seed(0))
        for make in (demonstrations, merged_demonstrations)
    ]
    aligner, counts = Aligner(merged, own), SpanCounts()
    for (ids, labels), (merged_ids, merged_labels) in zip(
        *(zip(*pair, strict=True) for pair in pairs), strict=True
    ):
        assert own.decode(ids[ids > 0]) == merged.decode(merged_ids[merged_ids > 0])
        answer, cut = ids[labels >= 0].tolist(), merged_ids[merged_labels >= 0].tolist()
        text = merged.decode(cut, skip_special_tokens=True)
        assert merged(text, add_special_tokens=False)["input_ids"] == cut[:-1]
        found = aligner.align(cut)
        assert found.teacher_ids == tuple(answer)
        assert found.counts.run == answer.count(own.convert_tokens_to_ids(";"))
        assert not found.counts.unscored
        counts += found.counts
    AlignmentSettings().check(counts, "the teacher")


def across(*, steps: int, problems: int, epochs: int) -> Config:
    """Vanilla distillation on the sampled tokens from a teacher with another tokenizer."""
    return Config.of(
        "opd",
        device="cpu",
        alignment={},
        objective={"type": "sampled_token"},
        train={"steps": steps, "prompts_per_step": 128, "epochs": epochs},
        optimizer={"lr": 3e-4},
        evaluation={"every": 0, "first": [], "problems": problems, "divergence": False},
    )


@pytest.mark.slow
def test_a_student_in_other_tokens_reaches_its_teacher(tmp_path: Path) -> None:
    """`effopd.train` across tokenizers: at least 90 % of the teacher's accuracy over 512 problems.

    60 steps of 128 prompts, four updates a batch.
    """
    world = TinyWorld()
    student = pretrain_merged(world, world.load()), merged_tokenizer(world)
    found = train(across(steps=60, problems=512, epochs=4), tmp_path / "run", model=student)
    teacher, before, after = (row["accuracy"] for row in found.evals)
    print(f"teacher {teacher:.4f}, student {before:.4f} before and {after:.4f} after")
    assert before < 0.5 < teacher
    assert after >= 0.9 * teacher
    last = found.metrics[-1]
    assert last["equal_token_share"] > 0.5
    assert last["equal_token_share"] + last["run_token_share"] == pytest.approx(1.0)
    assert last["reverse_kl"] < 0.5 * found.metrics[0]["reverse_kl"]
