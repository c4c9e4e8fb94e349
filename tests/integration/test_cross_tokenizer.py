"""A student in other tokens than its teacher has."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.fakes import WORLD, tiny_model

from effopd.data.world import demonstrations, make_model, make_tokenizer, with_merged_tokens
from effopd.errors import ConfigError
from effopd.models.alignment import Aligner, AlignmentSettings, SpanCounts
from effopd.training.config import Config
from effopd.training.run import train

MERGED = replace(WORLD, teacher_differs_in="tokens")


def test_merged_tokens_write_the_same_demonstrations() -> None:
    """The text is the world's; its results and semicolons are one token, which runs match."""
    own, merged = make_tokenizer(WORLD), make_tokenizer(MERGED)
    plain = demonstrations(WORLD, 8, torch.Generator().manual_seed(0))
    pairs = plain, with_merged_tokens(*plain, merged)
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


@pytest.mark.parametrize("method", ["opd", "effopd"])
@pytest.mark.parametrize("objective", ["sampled_token", "full_kl"])
def test_a_run_across_tokenizers_resumes_exactly(
    tmp_path: Path, method: str, objective: str
) -> None:
    """Four steps at once, or two and two: the same metrics; the shares are in every row."""

    def run(name: str, steps: int) -> list[dict[str, Any]]:
        small = Config.of(
            method,
            device="cpu",
            alignment={"least_equal": 0.0},
            task=MERGED,
            objective={"type": objective},
            train={"steps": steps, "prompts_per_step": 4, "epochs": 2},
            optimizer={"lr": 3e-4},
            evaluation={"every": 0, "first": [], "problems": 2},
        )
        student = make_model(MERGED), make_tokenizer(MERGED)
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
        ({"environment": {"name": "x:Y"}}, "in the student's chat template: keep one"),
        (
            {
                "teacher_server": {"url": "http://127.0.0.1:1", "model": "t", "top_k": 4},
                "evaluation": {"teacher": False},
            },
            "set alignment.tokenizer to its directory or repository",
        ),
        (
            {
                "alignment": {"tokenizer": "t"},
                "teacher_server": {"url": "http://127.0.0.1:1", "model": "t", "top_k": 4},
                "evaluation": {"teacher": False, "divergence": True, "problems": 4},
            },
            "'vllm' compares the sampled tokens alone, since likely tokens leave out part",
        ),
        (
            {"alignment": {"tokenizer": "t"}},
            "a local teacher brings its own",
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


def test_hidden_states_of_a_server_are_learned_across_tokenizers() -> None:
    server = {"url": "http://127.0.0.1:1", "model": "t", "flavor": "effopd"}
    named = {"alignment": {"tokenizer": "t"}, "teacher_server": server}
    assert Config.of("effopd", **named, evaluation={"teacher": False}).compares_vocabularies
