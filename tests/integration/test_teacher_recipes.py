"""Recipes whose teacher differs from the student in more than weights: it teaches all the same."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes import WORLD, policy_writer

from effopd.data.problem import Problem
from effopd.data.world import make_model, make_tokenizer, teacher_tokenizer
from effopd.demo.pretrain import exchange_ends_
from effopd.errors import ConfigError
from effopd.evaluation.routing import Teachers, routed_reverse_kl
from effopd.models.policy import Policy
from effopd.models.tokenizers import ends_remark
from effopd.training.config import Config, load_config
from effopd.training.run import train
from effopd.training.teachers import align_vocabularies

RECIPES = Path(__file__).parents[2] / "recipes"


def test_an_exchanged_end_is_as_likely_as_the_other_was() -> None:
    """A model whose ends are exchanged teaches its original nothing: the divergence is 0."""
    world = replace(WORLD, teacher_differs_in="end")
    student = Policy(make_model(world).eval(), make_tokenizer(world))
    teacher = Policy(exchange_ends_(make_model(world).eval(), world), teacher_tokenizer(world))
    assert (student.end_ids, teacher.end_ids) == ((2,), (len(student.tokenizer) - 1,))
    found = align_vocabularies(student, {"the teacher": teacher}, readers=["the teacher"])
    assert "'<eos>' (2) of the student is '<end>' (16) of the teacher" in found.remarks[1]
    reading = found.readings["the teacher"]
    ends = (student.tokenizer, student.end_ids), (teacher.tokenizer, teacher.end_ids)
    said = ends_remark(*ends[0], *ends[1], "the teacher", exchanges=True)
    assert said.endswith("those of the teacher with '<end>': the first of both are taken for one")
    teachers = Teachers(policies={"": teacher}, readings={"": reading})
    problems = [Problem(id="p", prompt="3 + 4 =")] * 8
    answers = policy_writer(student, max_new_tokens=32).answer(problems, range(8))
    ended = next(each for each in answers if 2 in each.completion.token_ids)
    assert reading.sample(ended, None).completion_ids[-1] == 16
    for row in routed_reverse_kl(student, teachers, answers):
        assert row == pytest.approx([0.0] * len(row), abs=1e-6)


def test_a_teacher_of_other_tokens_needs_alignment() -> None:
    with pytest.raises(ConfigError, match=r"teacher_differs_in = 'tokens' needs \[alignment\]"):
        Config.of("opd", task={"type": "tiny_world", "teacher_differs_in": "tokens"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tiny-end", "tiny-heads", "tiny-tokenizers", "tiny-tokenizers-sampled"]
)
def test_the_recipe_reaches_its_teacher(name: str, tmp_path: Path) -> None:
    """At least 90 % of the teacher's accuracy over 512 problems."""
    measured = ["evaluation.every=0", "evaluation.first=[]", "evaluation.problems=512"]
    found = train(load_config(RECIPES / f"{name}.toml", measured), tmp_path)
    teacher, before, after = (row["accuracy"] for row in found.evals)
    print(f"{name}: teacher {teacher:.4f}, student {before:.4f} before and {after:.4f} after")
    assert before < 0.5 < teacher
    assert after >= 0.9 * teacher
    first, last = found.metrics[0], found.metrics[-1]
    assert last["reverse_kl"] < 0.5 * first["reverse_kl"]
    if "tokenizers" in name:
        assert last["equal_token_share"] > 0.5
        assert last["equal_token_share"] + last["run_token_share"] == pytest.approx(1.0)
