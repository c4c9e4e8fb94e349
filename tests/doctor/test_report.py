"""What the doctor finds, and that what it lets pass is what runs."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import ROWS, make, save, write_problems
from transformers import AutoTokenizer
from typer.testing import CliRunner

from effopd.cli.main import app
from effopd.doctor import Finding, check_file
from effopd.doctor.footprint import CONTEXT_BYTES
from effopd.doctor.smoke import byte_tokenizer
from effopd.errors import ConfigError
from effopd.models.gpus import card_of, gpu_named
from effopd.models.policy import Policy
from effopd.servers.served_model import TeacherServerSettings
from effopd.servers.teacher_server import TeacherServer
from effopd.training.config import load_config
from effopd.training.observer import Observer
from effopd.training.run import train

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    save(tmp_path / "student", "qwen3")
    save(tmp_path / "teacher", "qwen3", seed=1, rows=ROWS + 5)
    write_problems(tmp_path / "problems.jsonl")
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
[student]
path = "{tmp_path / "student"}"
[teacher]
path = "{tmp_path / "teacher"}"
[task]
type = "dataset"
test_size = 2
[task.train]
path = "{tmp_path / "problems.jsonl"}"
"""
    )
    return path


def found(recipe: Path, *overrides: str, gpu: str | None = None) -> list[Finding]:
    card = gpu_named(gpu) if gpu else None
    return list(check_file(recipe, overrides, offline=True, gpu=card).findings)


def problems(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(each.check, each.text) for each in findings if each.level == "problem"]


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_a_served_teachers_width_is_what_it_says_or_unknown(recipe: Path, tmp_path: Path) -> None:
    """Asked once where the doctor may; offline, and without an answer, nothing is made up."""
    raw = recipe.read_text().replace(f'[teacher]\npath = "{tmp_path / "teacher"}"\n', "")
    policy = Policy(make("qwen3", hidden_size=24), byte_tokenizer())

    def said(**how: Any) -> list[str]:
        rows = check_file(recipe, **how).findings
        return [each.text for each in rows if each.check == "teacher_server"]

    with TeacherServer(policy, TeacherServerSettings(port=0, max_tokens=64)) as server:
        recipe.write_text(
            f'{raw}\n[teacher_server]\nurl = "{server.url}"\nmodel = "teacher"\n'
            'flavor = "effopd"\n[evaluation]\nteacher = false\n'
        )
        assert "its hidden states have 24 numbers" in said()
        assert "is unknown (not asked offline)" in said(offline=True)[-1]
    assert "is unknown (it did not answer)" in said()[-1]


def test_a_teacher_that_moves_with_the_student_is_warned_of() -> None:
    recipe = PAPER.with_name("tiny-prompt-distillation.toml")
    for weights, warned in (("base", False), ("current", True)):
        findings = check_file(recipe, [f"self_teacher.weights={weights}"], offline=True).findings
        said = [(each.level, each.remedy) for each in findings if each.check == "self_teacher"]
        assert bool(said) == warned
        assert all("weights = 'base'" in remedy for _, remedy in said)


def test_a_sound_run_has_no_problem(recipe: Path) -> None:
    findings = found(recipe, gpu="80GB")
    assert problems(findings) == []
    text = "\n".join(map(str, findings))
    assert "tokenizers: teacher has the student's tokens" in text
    assert "heads have 259, 264 rows" in text
    assert "10 to train on, 2 held out" in text
    for remedy in ("memory.master_weights=true", "student.lora={r=2}"):
        assert problems(found(recipe, "student.dtype=float16", remedy)) == []


def sandbox(*overrides: str, offline: bool = True) -> list[Finding]:
    """What is said of the sandbox for a recipe that runs programs."""
    findings = check_file(PAPER / "code-4b.toml", overrides, offline=offline).findings
    return [each for each in findings if each.check == "sandbox"]


def test_programs_need_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without Landlock."""
    monkeypatch.setattr("effopd.rewards.sandbox.opening.landlock_abi", lambda: 0)
    (away,) = sandbox()
    (here,) = sandbox(offline=False)
    assert (away.level, here.level) == ("warning", "problem")
    assert "Landlock" in here.text
    assert not sandbox("task.verifier=none", "validation.type=teacher_kl")


def test_a_sandbox_elsewhere_is_not_tried() -> None:
    (finding,) = sandbox("code.sandbox.kind=url", "code.sandbox.url=http://127.0.0.1:9")
    assert (finding.level, finding.text) == ("warning", "not tried: http://127.0.0.1:9")


def test_a_card_that_is_too_small(recipe: Path) -> None:
    assert {check for check, _ in problems(found(recipe, gpu="1000"))} == {
        "writing",
        "scoring",
        "update",
        "evaluation of the teacher",
    }


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 10**9), ("num_hidden_layers", -1)])
def test_impossible_sizes_are_problems(recipe: Path, name: str, value: int) -> None:
    path = recipe.parent / "student" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    said = [text for _, text in problems(found(recipe))]
    assert any(
        "numbers, its config.json describes" in text or "cannot load" in text for text in said
    )


def end_prompts(directory: Path, text: str) -> None:
    template = directory / "chat_template.jinja"
    template.write_text(template.read_text() + text)


def swap_weights(recipe: Path) -> None:
    save(recipe.parent / "other", "qwen3", num_hidden_layers=3)
    weights = recipe.parent / "other" / "model.safetensors"
    weights.rename(recipe.parent / "student" / "model.safetensors")


def leak_a_problem(recipe: Path) -> None:
    path = recipe.parent / "problems.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[-1], *lines]) + "\n")


def add_a_token(recipe: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(recipe.parent / "teacher")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    tokenizer.save_pretrained(recipe.parent / "teacher")


def end_with_a_token(recipe: Path) -> None:
    """An end of the generation settings counts."""
    path = recipe.parent / "student" / "generation_config.json"
    path.write_text('{"eos_token_id": [2, 61]}')
    for name in ("student", "teacher"):
        end_prompts(recipe.parent / name, byte_tokenizer().decode([61]))


CHANGES: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "another template": (lambda r: end_prompts(r.parent / "teacher", "!"), "warning",
                         "chat template", "teacher would get another prompt"),
    "other weights": (swap_weights, "problem", "student", "its config.json describes"),
    "a leak": (leak_a_problem, "problem", "problems",
               "1 test problems are among the training problems"),
    "other tokens": (add_a_token, "warning", "tokenizers", "only the teacher has '<think>'"),
    "an end": (lambda r: end_prompts(r.parent / "student", "<eos>"), "problem", "prompt",
               "prompts end with '<eos>', at which answers end; the chat template"),
    "another end": (end_with_a_token, "problem", "prompt", "at which answers end"),
    "no file": (lambda r: (r.parent / "problems.jsonl").unlink(), "problem", "problems",
                "problems.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_on_the_disk_is_found(recipe: Path, name: str) -> None:
    change, level, check, text = CHANGES[name]
    change(recipe)
    findings = found(recipe, "task.filters.repeated=keep")
    assert [e for e in findings if (e.level, e.check) == (level, check) and text in e.text]


WRONG = {
    "train.steps=0": ("settings", "train.steps must be at least 1, got 0"),
    "teacher.path=nobody/nothing": ("teacher", "no directory on this disk"),
    "student.dtype=float16": ("settings", "memory.master_weights"),
    "task.train.path=nowhere.jsonl": ("problems", "nowhere.jsonl"),
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_in_the_settings_is_found(recipe: Path, override: str) -> None:
    check, text = WRONG[override]
    assert (check, True) in [
        (each, text in said) for each, said in problems(found(recipe, override))
    ]
    for remedy in ("memory.master_weights=true", "student.lora={r=2}"):
        assert problems(found(recipe, "student.dtype=float16", remedy)) == []


def test_the_command_prints_the_report(recipe: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["doctor", str(recipe), "--offline", *arguments])

    report = run("--json", "--gpu", "80GB")
    assert report.exit_code == 0
    rows = json.loads(report.stdout)
    assert {"level", "check", "text", "remedy"} == rows["findings"][0].keys()
    assert rows["phases"][0]["name"] == "writing"
    assert rows["phases"][0]["memory"]["device"] > CONTEXT_BYTES
    refused = run("train.steps=0")
    assert (refused.exit_code, refused.stdout.splitlines()[-1]) == (1, "1 problem")
    unknown = run("--gpu", "abacus")
    assert (unknown.exit_code, "--gpu must be" in unknown.stderr) == (2, True)


# Any architecture ---------------------------------------------------------------------------------


def student(recipe: Path, kind: str, **sizes: Any) -> Path:
    """The recipe with another architecture as student and teacher."""
    for name in ("student", "teacher"):
        shutil.rmtree(recipe.parent / name)
        save(recipe.parent / name, kind, seed=int(name == "teacher"), **sizes)
    return recipe


OTHERS: dict[str, dict[str, Any]] = {
    "olmo2": {},
    "phi3": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_architecture_without_a_formula_is_looked_at_like_any(recipe: Path, kind: str) -> None:
    findings = found(student(recipe, kind, **OTHERS[kind]), gpu="H100")
    assert problems(findings) == []
    named = {each.check: each.text for each in reversed(findings)}
    assert {"student", "tokenizers", "prompt", "problems", "writing", "update", "time"} <= {*named}
    count = sum(p.numel() for p in make(kind, **OTHERS[kind]).parameters())
    assert f"{count / 1e9:.3g} billion parameters" in named["student"]


@pytest.mark.parametrize("code", [{}, {"auto_map": {"AutoModelForCausalLM": "own.Own"}}])
def test_an_architecture_that_nobody_knows_is_one_problem(
    recipe: Path, code: dict[str, Any]
) -> None:
    path = recipe.parent / "teacher" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "own"} | code))
    findings = found(recipe, gpu="80GB")
    ((check, text),) = problems(findings)
    assert (check, "knows no model_type 'own'" in text) == ("teacher", True)
    assert ("never run" in text) == bool(code)
    assert {"device", "student", "problems"} <= {each.check for each in findings}


def test_attention_that_an_architecture_does_not_have(recipe: Path) -> None:
    changed = student(recipe, "gpt_oss", num_local_experts=4, num_experts_per_tok=2, head_dim=8)
    assert problems(found(changed)) == []
    assert "GptOssForCausalLM runs with attention 'eager'" in [e.text for e in found(changed)]
    ((check, text),) = problems(found(changed, "student.attention=sdpa"))
    assert check == "student"
    assert "has no attention 'sdpa'; it has flash_attention_2, eager" in text
    flash = problems(found(changed, "student.attention=flash_attention_2"))
    assert [text.split(",")[0] for _, text in flash] == [
        "flash_attention_2 computes in bfloat16 or float16"
    ]


def test_logits_that_are_capped(recipe: Path) -> None:
    assert problems(found(student(recipe, "gemma2", head_dim=8))) == []


@pytest.mark.parametrize(
    ("kind", "answer", "level"),
    [("qwen3", 100, None), ("qwen3", 257, "warning"), ("gpt2", 257, "problem")],
)
def test_lengths_against_positions(recipe: Path, kind: str, answer: int, level: str | None) -> None:
    changed = student(recipe, kind, **OTHERS.get(kind, {}))
    findings = found(changed, "prompt.max_tokens=100", f"sampling.max_new_tokens={answer}")
    said = [each.level for each in findings if "beyond its 256 positions" in each.text]
    assert said == ([] if level is None else [level, level])


def test_precisions_that_cannot_learn(recipe: Path) -> None:
    small = found(recipe, "student.dtype=bfloat16", "optimizer.lr=1e-6")
    assert any("round updates of 1e-06 away" in each.text for each in small)
    said: list[str] = []
    short = ("method=opd", "train.steps=1", "train.prompts_per_step=2", "sampling.max_new_tokens=2")
    config = load_config(recipe, ["student.dtype=bfloat16", "optimizer.lr=1e-6", *short])
    assert train(
        config, recipe.parent / "run", callbacks=[Observer(on_message=said.append)]
    ).finished
    assert "bfloat16 weights round updates of 1e-06 away" in said[0]


# Devices and cards --------------------------------------------------------------------------------


def device(recipe: Path, *overrides: str, offline: bool = False, gpu: str | None = None) -> Finding:
    card = gpu_named(gpu) if gpu else None
    findings = check_file(recipe, overrides, offline=offline, gpu=card).findings
    return next(each for each in findings if each.check == "device")


def test_the_device_is_said(recipe: Path) -> None:
    here = device(recipe)
    assert (here.level, "device = 'auto'" in here.text) == ("ok", True)
    assert here.text.startswith("cuda" if torch.cuda.is_available() else "cpu")
    assert device(recipe, "device=cuda:77").level == "problem"
    assert device(recipe, "device=cuda:77", offline=True).level == "warning"
    judged = device(recipe, "device=cuda:77", gpu="H100 80GB")
    assert (judged.level, "judged for H100 80GB" in judged.text) == ("ok", True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_card_of_a_machine_without_one() -> None:
    with pytest.raises(ConfigError, match="--gpu auto takes the card of this machine, which has"):
        card_of("cpu")


# What makes a run fit -----------------------------------------------------------------------------

LARGE = PAPER / "math-4b.toml"


@pytest.mark.parametrize(
    "overrides",
    [
        ("memory.offload_optimizer=false",),
        ("rollouts.engine=hf", "memory.generation_tokens=0"),
        ("student.dtype=float32", "memory.master_weights=false", "memory.offload_optimizer=false"),
        ("student.gradient_checkpointing=false", "train.micro_batch_tokens=200000"),
        ("rollouts.vllm.gpu_memory=0.95",),
        ("rollouts.vllm.gpu_memory=0.05",),
        ("memory.scoring_tokens=4000000",),
        ("method=exopd", "memory.anchor_device=student", "memory.offload_optimizer=false"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_the_settings_named_make_it_fit(overrides: tuple[str, ...]) -> None:
    findings = found(LARGE, *overrides, gpu="H100 80GB")
    remedies = {each.remedy for each in findings if each.level == "problem"}
    assert len(remedies) == 1
    (remedy,) = remedies
    assert remedy.startswith("set ")
    after = found(LARGE, *overrides, *remedy.removeprefix("set ").split(), gpu="H100 80GB")
    assert problems(after) == []


def test_what_no_setting_fits_goes_to_several_cards() -> None:
    findings = found(LARGE, gpu="RTX 4090 8GB")
    remedies = {each.remedy for each in findings if each.level == "problem"}
    assert any("examples/verl" in remedy for remedy in remedies)


def test_longer_answers_take_more_of_everything() -> None:
    def numbers(*overrides: str) -> dict[str, float]:
        texts = {each.check: each.text for each in found(LARGE, *overrides, gpu="H100 80GB")}
        phases = ("scoring", "update", "evaluation of the teacher")
        return {name: float(texts[name].split()[0]) for name in phases}

    short, long = numbers(), numbers("sampling.max_new_tokens=34000", "memory.generation_tokens=0")
    assert all(long[name] > short[name] for name in short)
    beyond = found(LARGE, "sampling.max_new_tokens=40000", gpu="H100 80GB")
    assert (
        "student",
        "prompts of 2048 and answers of 40000 tokens go beyond its 40960 positions",
    ) in problems(beyond)


# Plans, missing files and the page ----------------------------------------------------------------


def test_a_plan_is_looked_at_run_by_run(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    text = """
name = "p"
seeds = [0, 1]
lrs = [1e-4]
[worlds.w.task]
type = "tiny_world"
[methods.opd]
settings = { method = "opd" }
[methods.bad]
settings = { method = "opd", train = { steps = 0 } }
"""
    path.write_text(text)
    findings = found(path)
    assert [check for check, _ in problems(findings)] == [
        f"w/bad/lr-1e-04/seed-{seed}" for seed in (0, 1)
    ]
    path.write_text(text.split("[methods.bad]")[0])
    assert problems(found(path)) == []
    assert any("a plan of 2 runs" in each.text for each in found(path))
    assert problems(found(path, "seed=3")) != []
    path.write_text(text.replace('name = "p"', ""))
    assert [check for check, _ in problems(found(path))] == ["settings"]


def test_files_that_are_not_there(recipe: Path) -> None:
    assert problems(found(recipe.with_name("other.toml")))[0][0] == "settings"
    overrides = ("task.train.hub=false", "task.train.path=nowhere.jsonl")
    away = found(PAPER / "math-4b.toml", *overrides)
    assert any(each.text == "no file at nowhere.jsonl" for each in away)


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    exec(example.replace('"recipes/', f'"{PAPER.parent}/'), {})
    assert capsys.readouterr().out.splitlines()[0].startswith("True [")
