"""The tiny world against an independent reading of its text."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tests.fakes import WORLD, tiny_policy
from tests.reference.world_twin import steps, truth

from effopd.data.problem import Answer, Problem
from effopd.data.world import TinyWorld, demonstrations, make_model, make_tokenizer
from effopd.demo.cache import content_key
from effopd.errors import ConfigError
from effopd.training.build import Given, build_parts
from effopd.training.config import Config

WORLDS = [
    TinyWorld(train_problems=400, test_problems=100),
    TinyWorld(modulus=2, operations=5, train_problems=300, test_problems=50, seed=3),
    TinyWorld(modulus=13, operations=1, train_problems=200, test_problems=50),
    TinyWorld(modulus=23, operations=9, train_problems=100, test_problems=20),
    TinyWorld(modulus=7, operations=5, shortest=2, train_problems=300, test_problems=60),
]
each_world = pytest.mark.parametrize("world", WORLDS, ids=lambda w: f"{w.modulus}-{w.operations}")


# Problems -----------------------------------------------------------------------------------------


@each_world
def test_answers_are_those_of_the_twin(world: TinyWorld) -> None:
    task = world.load()
    for problem in (*task.train, *task.test):
        assert problem.answer == truth(problem.prompt, world.modulus)
        assert len(problem.prompt.split()) == 2 * problem.level + 2
        assert problem.level in world.lengths


@each_world
def test_train_and_test_are_disjoint_and_complete(world: TinyWorld) -> None:
    task = world.load()
    problems = [*task.train, *task.test]
    assert (len(task.train), len(task.test)) == (world.train_problems, world.test_problems)
    assert len({p.prompt for p in problems}) == len({p.id for p in problems}) == len(problems)


def test_lengths_are_equally_likely_in_problems_and_demonstrations() -> None:
    world = TinyWorld(operations=5, shortest=2, train_problems=4000, test_problems=100)
    levels = [problem.level for problem in world.load().train]
    prompts = [(len(prompt.split()) - 2) // 2 for prompt, _ in read(world, 4000)]
    for drawn in (levels, prompts):
        shares = [drawn.count(length) / len(drawn) for length in range(2, 6)]
        assert shares == pytest.approx([0.25] * 4, abs=0.035)


VERDICTS = [
    ("3 + 4 = 0 ; # 3", 1.0),
    ("# 3", 1.0),
    ("#3", 1.0),
    ("  #  3  ", 1.0),
    ("3", 0.0),
    ("3 + 4 = 3 ;", 0.0),
    ("# 4", 0.0),
    ("#", 0.0),
    ("", 0.0),
    ("# 3 # 3", 0.0),
    ("# 4 # 3", 0.0),
    ("# # 3", 0.0),
    ("# 3 ;", 0.0),
    ("# 3 and more", 0.0),
    ("# 3 3", 0.0),
    ("# 03", 0.0),
    ("# 3.0", 0.0),
    ("# +3", 0.0),
    ("# -4", 0.0),
    ("# ３", 0.0),
]


@pytest.mark.parametrize(("completion", "reward"), VERDICTS, ids=lambda case: repr(case))
def test_verdicts(completion: str, reward: float) -> None:
    problem = Problem(id="p", prompt="3 + 0 =", answer="3")
    for is_truncated in (False, True):
        answer = Answer(problem=problem, completion=completion, is_truncated=is_truncated)
        assert WORLDS[0].verifier.rewards([answer]) == [reward]


def test_two_tokens_do_not_make_a_number() -> None:
    world = TinyWorld(modulus=13)
    tokenizer = make_tokenizer(world)
    one, zero, ten, mark = tokenizer.convert_tokens_to_ids(["1", "0", "10", "#"])
    problem = Problem(id="p", prompt="5 + 5 =", answer="10")
    answers = [
        Answer(problem=problem, completion=tokenizer.decode(tokens))
        for tokens in ([mark, ten], [mark, one, zero])
    ]
    assert world.verifier.rewards(answers) == [1.0, 0.0]


# Tokens and model ---------------------------------------------------------------------------------


@each_world
def test_text_and_tokens_are_the_same(world: TinyWorld) -> None:
    tokenizer = make_tokenizer(world)
    for problem in world.load().test[:20]:
        tokens = tokenizer(problem.prompt)["input_ids"]
        assert tokenizer.decode(tokens) == f"<bos> {problem.prompt}"
        assert tokenizer.decode(tokens, skip_special_tokens=True) == problem.prompt
        assert len(tokens) == 1 + len(problem.prompt.split())
    assert len(tokenizer) == make_model(world).config.vocab_size


def test_model_is_a_function_of_the_seed_and_spares_global_generators() -> None:
    world = TinyWorld(layers=1, hidden=16)
    state = torch.get_rng_state()
    first, again, other = (make_model(w) for w in (world, world, replace(world, seed=1)))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


# Demonstrations -----------------------------------------------------------------------------------


def read(world: TinyWorld, count: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Prompt and answer words of each demonstration, read back from its tokens."""
    tokenizer = make_tokenizer(world)
    ids_BT, labels_BT = demonstrations(world, count, torch.Generator().manual_seed(seed))
    found = []
    for ids, labels in zip(ids_BT.tolist(), labels_BT.tolist(), strict=True):
        words = tokenizer.convert_ids_to_tokens(ids)
        length = len(words) - words[::-1].index("<eos>")
        assert words[0] == "<bos>"
        assert set(words[length:]) <= {"<pad>"}
        first = words.index("=") + 1
        assert (first - 3) // 2 in world.lengths
        assert labels == [token if first <= i < length else -100 for i, token in enumerate(ids)], (
            "the answer is learnt, all of it and nothing else"
        )
        found.append((" ".join(words[1:first]), words[first:length]))
    return found


def parse(prompt: str, answer: list[str]) -> tuple[list[tuple[int, str, int, int]], int]:
    """Steps and final value of an answer, whose form is checked."""
    written, tail = steps(answer)
    mark, value, end = tail
    assert (mark, end) == ("#", "<eos>")
    return written, int(value)


def is_right(world: TinyWorld, step: tuple[int, str, int, int]) -> bool:
    a, operator, b, v = step
    return str(v) == truth(f"{a} {operator} {b} =", world.modulus)


@each_world
def test_clean_demonstrations_are_right_in_every_step(world: TinyWorld) -> None:
    clean = replace(world, wrong_step=0.0)
    for prompt, answer in read(clean, 200):
        written, value = parse(prompt, answer)
        assert str(value) == truth(prompt, world.modulus)
        assert all(is_right(world, step) for step in written)


@each_world
def test_noisy_steps_go_on_from_what_was_written(world: TinyWorld) -> None:
    for prompt, answer in read(replace(world, wrong_step=0.5), 200):
        chain, (written, value) = prompt.split(), parse(prompt, answer)
        if not written:
            assert str(value) == truth(prompt, world.modulus), "direct answers are never wrong"
            continue
        assert len(written) == len(chain) // 2 - 1
        assert [step[1] for step in written] == chain[1:-1:2]
        assert [str(step[2]) for step in written] == chain[2:-1:2]
        starts = [int(chain[0]), *(step[3] for step in written)]
        assert starts == [*(step[0] for step in written), value]
        assert all(0 <= start < world.modulus for start in starts)


@pytest.mark.parametrize(("wrong", "direct"), [(0.3, 0.2), (0.05, 0.6), (0.8, 0.0)])
def test_shares_of_wrong_steps_and_direct_answers(wrong: float, direct: float) -> None:
    world, count = TinyWorld(wrong_step=wrong, direct_answer=direct), 4000
    parsed = [parse(*demonstration) for demonstration in read(world, count)]
    directly = sum(not written for written, _ in parsed)
    assert abs(directly / count - direct) <= 4 * math.sqrt(direct * (1 - direct) / count)
    every = [step for written, _ in parsed for step in written]
    mistaken = sum(not is_right(world, step) for step in every)
    assert abs(mistaken / len(every) - wrong) <= 4 * math.sqrt(wrong * (1 - wrong) / len(every))


# Settings -----------------------------------------------------------------------------------------


def test_the_largest_allowed_world_is_drawn() -> None:
    world = TinyWorld(modulus=3, operations=2, train_problems=100, test_problems=21)
    assert len({p.prompt for p in (*world.load().train, *world.load().test)}) == 121
    with pytest.raises(ConfigError, match="must not exceed 121 together"):
        replace(world, train_problems=101)


CHANGES = {
    "modulus": 5, "operations": 5, "shortest": 2, "wrong_step": 0.31, "direct_answer": 0.21,
    "layers": 3, "hidden": 80, "train_problems": 8191, "test_problems": 511, "seed": 1,
    "base_steps": 901, "base_greedy": 0.96, "noise_steps": 81, "teacher_steps": 61,
    "careful_prompt": "# ", "teacher_differs_in": "head",
    "teacher_lr": 2e-4, "teacher_accuracy": 0.96,
}  # fmt: skip


def test_cached_models_are_told_apart_by_every_setting() -> None:
    world = TinyWorld()
    told_apart_by_directory = {"calculator"}  # the base is the same with it
    names = {field.name for field in fields(world)} - {"type"}
    assert set(CHANGES) == names - told_apart_by_directory
    keys = [content_key(replace(world, **{name: value})) for name, value in CHANGES.items()]
    assert len({content_key(world), *keys}) == len(CHANGES) + 1
    assert content_key(world) == content_key(TinyWorld())


def test_a_teacher_that_nothing_reads_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFOPD_CACHE", str(tmp_path))
    unread = {"evaluation": {"teacher": False, "divergence": False}, "device": "cpu"}
    config = Config.of("grpo", task=WORLD, student={"path": "given"}, **unread)
    assert build_parts(config, print, Given(student=tiny_policy())).teachers is None
    assert not [*tmp_path.iterdir()]
