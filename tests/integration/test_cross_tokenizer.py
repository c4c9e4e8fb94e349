"""A student in other tokens than its teacher has: it starts as the tiny base, and it learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import WORLD, tiny_model
from tests.support.merged_world import (
    merged_demonstrations,
    merged_model,
    merged_tokenizer,
    pretrain_merged,
)

from effopd.data.world import TinyWorld, demonstrations, make_tokenizer
from effopd.errors import ConfigError
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


def across(
    method: str = "opd",
    *,
    steps: int,
    problems: int,
    epochs: int,
    prompts: int = 128,
    task: TinyWorld | None = None,
    least_equal: float = 0.5,
    objective: str = "sampled_token",
) -> Config:
    """Distillation from a teacher with another tokenizer, on whole vocabularies if so asked."""
    return Config.of(
        method,
        device="cpu",
        alignment={"least_equal": least_equal},
        task=task or TinyWorld(),
        objective={"type": objective},
        train={"steps": steps, "prompts_per_step": prompts, "epochs": epochs},
        optimizer={"lr": 3e-4},
        evaluation={"every": 0, "first": [], "problems": problems},
    )


@pytest.mark.parametrize("method", ["opd", "effopd"])
@pytest.mark.parametrize("objective", ["sampled_token", "full_kl"])
def test_a_run_across_tokenizers_resumes_exactly(
    tmp_path: Path, method: str, objective: str
) -> None:
    """Four steps at once, or two and two: the same metrics; the shares are in every row."""

    def run(name: str, steps: int) -> list[dict[str, Any]]:
        small = across(
            method, steps=steps, problems=2, epochs=2, prompts=4, task=WORLD, least_equal=0.0,
            objective=objective,
        )  # fmt: skip
        student = merged_model(WORLD), merged_tokenizer(WORLD)
        teacher = tiny_model(1), make_tokenizer(WORLD)
        return train(small, tmp_path / name, model=student, teacher=teacher).metrics

    whole = run("whole", 4)
    run("parts", 2)
    assert run("parts", 4) == whole
    for row in whole:
        assert row["equal_token_share"] + row["run_token_share"] == pytest.approx(1.0)
        if objective == "full_kl":
            assert row["compared_token_share"] == 1.0
            assert row["divergence" if row["reverse_kl"] is None else "reverse_kl"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"objective": {"type": "exopd"}}, "'full_kl' or 'sampled_token', not 'exopd'"),
        (
            {"objective": {"type": "full_kl", "reward_scale": 1.25}},
            "leaves no logits that could be mixed with those of a reference",
        ),
        ({"self_teacher": {}}, "the student's, which self_teacher has: remove it"),
        ({"environment": {"name": "x:Y"}}, "environment writes parts of them: keep one"),
        (
            {
                "teacher_server": {"url": "http://127.0.0.1:1", "model": "t", "top_k": 4},
                "evaluation": {"teacher": False},
            },
            "a server is asked in the student's tokens",
        ),
    ],
)
def test_what_is_not_learned_across_tokenizers_is_refused(
    more: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {
        "method": "opd",
        "alignment": {},
        "objective": {"type": "sampled_token"},
        "evaluation": {"divergence": False},
    }
    with pytest.raises(ConfigError, match=message):
        Config(**(settings | more))


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "steps"), [("sampled_token", 60), ("full_kl", 24)])
def test_a_student_in_other_tokens_reaches_its_teacher(
    tmp_path: Path, objective: str, steps: int
) -> None:
    """`effopd.train` across tokenizers: at least 90 % of the teacher's accuracy over 512 problems.

    Steps of 128 prompts, four updates a batch. With equal tokenizers 60 such steps end at 0.96.
    """
    world = TinyWorld()
    student = pretrain_merged(world, world.load()), merged_tokenizer(world)
    settings = across(steps=steps, problems=512, epochs=4, objective=objective)
    found = train(settings, tmp_path / "run", model=student)
    teacher, before, after = (row["accuracy"] for row in found.evals)
    print(f"teacher {teacher:.4f}, student {before:.4f} before and {after:.4f} after")
    assert before < 0.5 < teacher
    assert after >= 0.9 * teacher
    last = found.metrics[-1]
    assert last["equal_token_share"] > 0.5
    assert last["equal_token_share"] + last["run_token_share"] == pytest.approx(1.0)
    assert last["reverse_kl"] < 0.5 * found.metrics[0]["reverse_kl"]
