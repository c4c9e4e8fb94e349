"""K9: runs with a teacher and an engine behind servers, undisturbed, disturbed and resumed."""

import random
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.fakes import TOKENIZER, WORLD, tiny_model
from tests.support.fake_server import FAULTS, FakeServer, serving, settings_of
from tests.support.tiny import metrics_of, outcome, sha256, tiny_config, train_tiny

from effopd.data.world import make_model, make_tokenizer
from effopd.errors import ServerError
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.records import list_checkpoints, read_jsonl
from effopd.training.config import Config
from effopd.training.run import train

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SECRET = "sk-canary-9043"
QUICK = [fault for fault in FAULTS if fault not in {"stall", "slow body", "restart"}]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", SECRET)


@pytest.fixture(params=["vllm", "sglang"])
def server(models: Path, request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    settings = ModelSettings(path=str(models / "teacher"))
    model, tokenizer = load_model(settings), load_tokenizer(settings)
    with serving(model, tokenizer, flavor=request.param, key=SECRET) as found:
        yield found


PLAIN: dict[str, Any] = {
    "method": "opd",
    "train.steps": 4,
    "train.prompts_per_step": 6,
    "evaluation.divergence": False,
    "evaluation.every": 2,
    "checkpoint.every": 2,
    "prompt.max_tokens": 64,
}


def served(models: Path, server: FakeServer, *, top_k: int = 0, **changes: Any) -> Config:
    """A run whose teacher is behind the server."""
    patient = {"api_key_env": "TEACHER_KEY", "retries": 30, "backoff_s": 0.002, "top_k": top_k}
    settings = asdict(settings_of(server, **patient))
    config = PLAIN | {"teacher": None, "teacher_server": settings} | changes
    return tiny_config(models, config)


def weights(run: Path) -> str:
    return sha256(list_checkpoints(run / "checkpoints")[0] / "model.safetensors")


@pytest.mark.parametrize("server", ["sglang"], indirect=True)
def test_a_served_teacher_teaches_what_a_local_one_does(
    models: Path, server: FakeServer, tmp_path: Path
) -> None:
    train_tiny(served(models, server), tmp_path / "served")
    train_tiny(tiny_config(models, PLAIN), tmp_path / "local")
    pairs = zip(metrics_of(tmp_path / "served"), metrics_of(tmp_path / "local"), strict=True)
    for ours, theirs in pairs:
        assert ours["reverse_kl"] == pytest.approx(theirs["reverse_kl"], rel=1e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-5)
        assert ours["teacher_tokens"] == theirs["teacher_tokens"]
    for run in (tmp_path / "served", tmp_path / "local"):
        assert read_jsonl(run / "evals.jsonl")[0]["model"] == "teacher"


MERGED = replace(WORLD, teacher_differs_in="tokens")


@pytest.mark.parametrize("flavor", ["vllm", "effopd"])
def test_a_served_teacher_of_another_tokenizer_teaches_as_a_local_one(
    flavor: str, tmp_path: Path
) -> None:
    """Answers are aligned with the tokenizer that the settings name."""
    for each in (TOKENIZER, tiny_model(1).config):
        each.save_pretrained(tmp_path / "tokenizer")
    settings: dict[str, Any] = {
        "device": "cpu",
        "task": MERGED,
        "objective": {"type": "sampled_token"},
        "train": {"steps": 2, "prompts_per_step": 4, "epochs": 2},
        "prompt": {"max_tokens": 16},
        "evaluation": {"problems": 4, "divergence": False, "teacher": flavor == "vllm"},
    }
    student = make_model(MERGED), make_tokenizer(MERGED)
    local = Config.of("opd", alignment={"least_equal": 0.0}, **settings)
    expected = train(local, tmp_path / "local", model=student, teacher=(tiny_model(1), TOKENIZER))
    with serving(tiny_model(1), TOKENIZER, flavor=flavor) as server:
        named = {"least_equal": 0.0, "tokenizer": str(tmp_path / "tokenizer")}
        own = asdict(settings_of(server))
        config = Config.of("opd", alignment=named, teacher_server=own, **settings)
        student = make_model(MERGED), make_tokenizer(MERGED)
        found = train(config, tmp_path / "served", model=student)
    for ours, theirs in zip(found.metrics, expected.metrics, strict=True):
        assert ours["run_token_share"] == theirs["run_token_share"] > 0
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-5)
        assert ours["teacher_tokens"] == theirs["teacher_tokens"] > ours["train_tokens"]
    assert (found.evals[0]["model"] == "teacher") == (flavor == "vllm")


def test_faults_change_no_bit(models: Path, server: FakeServer, tmp_path: Path) -> None:
    config = served(models, server)
    train_tiny(config, tmp_path / "undisturbed")
    rng = random.Random(0)
    plan = {number: rng.choice(QUICK) for number in range(200) if rng.random() < 0.3}
    server.strike({3: "stall", 40: "restart"} | plan)
    train_tiny(config, tmp_path / "disturbed")
    assert len(set(server.struck)) > 5
    assert outcome(tmp_path / "disturbed") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("server", ["vllm"], indirect=True)
def test_no_record_holds_the_key(
    models: Path, server: FakeServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, messages = train_tiny(served(models, server, **{"train.steps": 2}), tmp_path / "run")
    assert any("teacher tiny at http://127.0.0.1:" in message for message in messages)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 5
    everything = [path.read_bytes() for path in files]
    everything += [text.encode() for text in (*messages, *capfd.readouterr())]
    assert not [text for text in everything if SECRET.encode() in text]


@pytest.mark.parametrize("server", ["vllm"], indirect=True)
def test_a_resumed_run_recognises_its_teacher(
    models: Path, server: FakeServer, tmp_path: Path
) -> None:
    config, run = served(models, server), tmp_path / "run"
    train_tiny(served(models, server), tmp_path / "whole")
    assert train_tiny(config, run, stop_after=2)[0] is False
    last = list_checkpoints(run / "checkpoints")[0]
    assert list(load_file(last / "trainer" / "learner.safetensors")) == ["served_teacher."]
    teacher, student = server.model, ModelSettings(path=str(models / "student"))
    server.model = load_model(student)
    with pytest.raises(ServerError, match="differently when the run was started"):
        train_tiny(config, run)
    server.model = teacher
    assert train_tiny(config, run)[0] is True
    assert weights(run) == weights(tmp_path / "whole")


@pytest.mark.parametrize("server", ["vllm"], indirect=True)
def test_a_resumed_dense_run_recognises_its_teacher(
    models: Path, server: FakeServer, tmp_path: Path
) -> None:
    """The divergence is that of likely tokens, in loss, search and evaluation."""
    dense = {
        "method": "effopd",
        "objective": {"type": "full_kl"},
        "validation": {"type": "importance_kl", "source": "batch", "prompts": 6},
        "evaluation.divergence": True,
    }
    config, run = served(models, server, top_k=5, **dense), tmp_path / "run"
    train_tiny(config, tmp_path / "whole")
    assert train_tiny(config, run, stop_after=2)[0] is False
    last = list_checkpoints(run / "checkpoints")[0]
    assert list(load_file(last / "trainer" / "learner.safetensors")) == ["served_teacher."]
    teacher = server.model
    server.model = load_model(ModelSettings(path=str(models / "student")))
    with pytest.raises(ServerError, match="differently when the run was started"):
        train_tiny(config, run)
    server.model = teacher
    assert train_tiny(config, run)[0] is True
    assert outcome(run) == outcome(tmp_path / "whole")
    rows = metrics_of(run)
    assert all(0 < row["teacher_covered"] < 1 for row in rows)
    assert rows[-1]["teacher_tokens"] == rows[-1]["train_tokens"]
    assert read_jsonl(run / "evals.jsonl")[-1]["reverse_kl"] > 0


@pytest.mark.parametrize("server", ["sglang"], indirect=True)
def test_another_teacher_in_the_middle_stops_the_run(
    models: Path, server: FakeServer, tmp_path: Path
) -> None:
    config, run = served(models, server), tmp_path / "run"
    server.next_model = load_model(ModelSettings(path=str(models / "student")))
    server.strike({33: "restart"})
    with pytest.raises(ServerError, match="is not one model"):
        train_tiny(config, run)
    assert server.struck == ["restart"]


def test_a_student_written_by_a_server_learns_as_by_itself(models: Path, tmp_path: Path) -> None:
    """The server's engine is the same code with one request at a time: the texts are the same."""
    settings = ModelSettings(path=str(models / "student"))
    plain = PLAIN | {
        "train.steps": 2,
        "method": "effopd",
        "validation": {"type": "accuracy", "prompts": 4},
    }
    with serving(load_model(settings), load_tokenizer(settings)) as server:
        engine = {
            "engine": "server",
            "server": asdict(settings_of(server)),
            "weights_directory": str(tmp_path / "weights"),
        }
        train_tiny(tiny_config(models, plain | {"rollouts": engine}), tmp_path / "served")
        reloads = [path for path, _ in server.requests if path == "/collective_rpc"]
    train_tiny(tiny_config(models, plain), tmp_path / "local")
    pairs = zip(metrics_of(tmp_path / "served"), metrics_of(tmp_path / "local"), strict=True)
    for ours, theirs in pairs:
        assert ours["mean_length"] == theirs["mean_length"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-5)
    assert len(reloads) > 4
    assert len(list((tmp_path / "weights").iterdir())) == 1
