"""What a checkpoint restores, what it refuses, and that others can read it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.tiny import WORLD, write_models
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from effopd.data.world import make_tokenizer
from effopd.errors import CheckpointError, EffopdError, NonFiniteError
from effopd.methods.policy_gradient import Critic
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.policy import Policy, Sample
from effopd.search.extrapolator import Extrapolator, Search
from effopd.training.monitor import Monitor
from effopd.training.settings import MonitorSettings
from effopd.training.state import Progress, Saved, load_state, save_state
from effopd.training.teachers import StudentAverage, frozen_copy

PROGRESS = Progress(step=3, train_tokens=7, offsets={"metrics": 12})


def mixture_of_experts() -> Policy:
    config = Qwen3MoeConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
        num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, tie_word_embeddings=False,
    )  # fmt: skip
    return Policy(Qwen3MoeForCausalLM(config).eval(), make_tokenizer(WORLD))


def student_of(directory: Path, dtype: Any = "float32") -> Policy:
    settings = ModelSettings(path=str(directory / "student"), dtype=dtype)
    return Policy(load_model(settings), load_tokenizer(settings))


class Nothing:
    """Has no state."""

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state(self, tensors: Any) -> None:
        assert not tensors


class Live:
    """A policy, its optimizer and its search, moved away from where they began.

    With `others` also a critic, a teacher that follows the policy, and a monitor.
    """

    def __init__(
        self, policy: Policy, *, seed: int, searches: bool = True, others: bool = False
    ) -> None:
        self.policy = policy
        self.critic = Critic(policy, lr=1e-2) if others else None
        self.average = StudentAverage(frozen_copy(policy), policy, 0.9) if others else None
        watched = policy.model.parameters()
        self.monitor = Monitor(watched, MonitorSettings(every=1)) if others else None
        self.optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
        self.extrapolator = (
            Extrapolator(policy.model, lambda draw: 0.0, search=Search(parameters="all"))
            if searches
            else None
        )
        generator = torch.Generator().manual_seed(seed)
        for step in range(1, 4):
            for parameter in policy.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(
                    parameter.dtype
                )
            self.optimizer.step()
            if self.average is not None:
                self.average.update_()
            if self.critic is not None:
                values_N = self.critic.values([Sample(prompt_ids=(1,), completion_ids=(seed, 3))])
                (values_N - 1).square().sum().backward()
                self.critic.update_()
            if self.monitor is not None:
                self.monitor.observe(step)
            if self.extrapolator is not None:
                self.extrapolator.step(step)

    def save(self, directory: Path) -> Path:
        directory.mkdir()
        save_state(directory, self.saved(), PROGRESS)
        return directory

    def load(self, directory: Path) -> Progress:
        return load_state(directory, self.saved())

    def saved(self) -> Saved:
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return Saved(
            policy=self.policy,
            optimizer=self.optimizer,
            moved={n: p for n, p in self.policy.model.named_parameters() if id(p) in held},
            extrapolator=self.extrapolator,
            learner=self.critic or Nothing(),
            average=self.average,
            monitor=self.monitor or Nothing(),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        named = dict(self.policy.model.state_dict())
        states = self.optimizer.state
        for name, parameter in self.policy.model.named_parameters():
            named |= {f"{name}/{key}": value for key, value in states[parameter].items()}
        if self.extrapolator is not None:
            anchor = self.extrapolator.state_dict()["anchor"]
            named |= {f"anchor {name}": value for name, value in anchor.items()}
        for part in (self.critic, self.average, self.monitor):
            if part is not None:
                named |= {f"{type(part).__name__} {n}": t for n, t in part.state().items()}
        return {name: value.clone() for name, value in named.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


POLICIES: dict[str, Callable[[Path], Policy]] = {
    "plain": lambda path: student_of(write_models(path)),
    "tied": lambda path: student_of(write_models(path, tied=True)),
    "bfloat16": lambda path: student_of(write_models(path), "bfloat16"),
    "experts": lambda path: mixture_of_experts(),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_every_tensor_comes_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    make = POLICIES[kind]
    old, new = Live(make(tmp_path / "a"), seed=0), Live(make(tmp_path / "b"), seed=1)
    directory = old.save(tmp_path / "checkpoint")
    assert not same(old.tensors(), new.tensors())
    assert new.load(directory) == PROGRESS
    assert same(old.tensors(), new.tensors())
    assert len(old.tensors()) > 40


@pytest.mark.parametrize("kind", ["plain", "tied", "bfloat16"])
def test_critic_average_and_monitor_come_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    make = POLICIES[kind]
    old, new = (Live(make(tmp_path / n), seed=s, others=True) for n, s in (("a", 0), ("b", 1)))
    directory = old.save(tmp_path / "checkpoint")
    assert not same(old.tensors(), new.tensors())
    assert new.load(directory) == PROGRESS
    assert same(old.tensors(), new.tensors())
    kinds = {name.split("/")[0].split(" ")[-1] for name in old.tensors()}
    assert {"critic", "critic-optimizer"} < kinds
    assert any(name.startswith("StudentAverage ") for name in old.tensors())


@pytest.mark.parametrize("name", ["learner", "average"])
def test_a_state_without_critic_or_average_names_the_missing_file(
    tmp_path: Path, name: str
) -> None:
    live = Live(POLICIES["plain"](tmp_path / "a"), seed=0, others=True)
    directory = live.save(tmp_path / "checkpoint")
    (directory / "trainer" / f"{name}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"{name}.safetensors cannot be read"):
        live.load(directory)


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    old, new = (Live(POLICIES["tied"](tmp_path / n), seed=s) for n, s in (("a", 0), ("b", 1)))
    new.load(old.save(tmp_path / "checkpoint"))
    model = new.policy.model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_the_search_continues_where_it_was(tmp_path: Path) -> None:
    old, new = (Live(POLICIES["plain"](tmp_path / n), seed=s) for n, s in (("a", 0), ("b", 1)))
    new.load(old.save(tmp_path / "checkpoint"))
    assert new.extrapolator is not None
    assert new.extrapolator.state_dict()["last_step"] == 3
    assert new.extrapolator.state_dict()["past"] == old.extrapolator.state_dict()["past"]  # type: ignore[union-attr]
    assert new.extrapolator.step(2) is None  # done already
    assert new.extrapolator.step(4) is not None


def test_an_optimizer_without_state_is_restored_too(tmp_path: Path) -> None:
    """When every update so far was skipped."""
    old, new = (Live(POLICIES["plain"](tmp_path / n), seed=s) for n, s in (("a", 0), ("b", 1)))
    old.optimizer.state.clear()
    new.load(old.save(tmp_path / "checkpoint"))
    assert len(new.optimizer.state) == 0


# Readable by others -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "tied", "experts"])
def test_transformers_reads_the_checkpoint_and_gives_the_same_logits(
    tmp_path: Path, kind: str
) -> None:
    live = Live(POLICIES[kind](tmp_path / "a"), seed=0)
    directory = live.save(tmp_path / "checkpoint")
    ids = torch.arange(12).view(2, 6)
    model = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        found, expected = model(ids).logits, live.policy.model(ids).logits
    assert torch.equal(found, expected)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.get_vocab() == live.policy.tokenizer.get_vocab()
    text = "3 + 4 ="
    assert tokenizer(text)["input_ids"] == live.policy.tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": text}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<bos>" + text


def test_nothing_is_pickled(tmp_path: Path) -> None:
    saved = Live(POLICIES["plain"](tmp_path / "a"), seed=0).save(tmp_path / "c")
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".txt"}
    assert {"model.safetensors", "optimizer.safetensors", "search-00000-of-00001.safetensors"} < {
        path.name for path in files
    }
    for path in files:
        start = path.read_bytes()[:2]
        assert not start.startswith((b"\x80", b"PK"))  # pickle protocols 2 and up, zip archives


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    live = Live(POLICIES["plain"](tmp_path / "a"), seed=0)
    with torch.no_grad():
        live.policy.model.model.norm.weight[3] = value
    with pytest.raises(NonFiniteError, match=r"model.norm.weight is not finite at step 3.*--out"):
        live.save(tmp_path / "checkpoint")
    assert list((tmp_path / "checkpoint").iterdir()) == []


def edited(directory: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    path = directory / "trainer_state.json"
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state))
    return directory


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "older version": (lambda s: s.update(version=0), "state version 0, this effopd reads"),
    "newer version": (lambda s: s.update(version=99), "state version 99, this effopd reads"),
    "no version": (lambda s: s.pop("version"), "is no state of a trainer"),
    "no progress": (lambda s: s.pop("progress"), "is no state of a trainer"),
    "unknown counter": (lambda s: s["progress"].update(elves=3), r"only one of them has: \['elves"),
    "missing counter": (lambda s: s["progress"].pop("step"), r"only one of them has: \['step"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_state_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    edit, message = EDITS[name]
    live = Live(POLICIES["plain"](tmp_path / "a"), seed=0)
    directory = edited(live.save(tmp_path / "checkpoint"), edit)
    with pytest.raises(EffopdError, match=message):
        live.load(directory)


def test_a_state_with_a_search_does_not_fit_a_run_without(tmp_path: Path) -> None:
    directory = Live(POLICIES["plain"](tmp_path / "a"), seed=0).save(tmp_path / "checkpoint")
    plain = Live(POLICIES["plain"](tmp_path / "b"), seed=1, searches=False)
    with pytest.raises(CheckpointError, match="with a search, this run is without one"):
        plain.load(directory)
    directory = plain.save(tmp_path / "without")
    with pytest.raises(CheckpointError, match="without a search, this run is with one"):
        Live(POLICIES["plain"](tmp_path / "c"), seed=0).load(directory)


@pytest.mark.parametrize("content", ["", "[]", "3", '{"version": 1, "progress": 3}', "{"])
def test_a_state_that_is_no_state_is_refused(tmp_path: Path, content: str) -> None:
    live = Live(POLICIES["plain"](tmp_path / "a"), seed=0)
    directory = live.save(tmp_path / "checkpoint")
    (directory / "trainer_state.json").write_text(content)
    with pytest.raises(CheckpointError, match="is no state of a trainer"):
        live.load(directory)


@pytest.mark.parametrize("name", ["trainer_state.json", "trainer/optimizer.safetensors"])
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    live = Live(POLICIES["plain"](tmp_path / "a"), seed=0)
    directory = live.save(tmp_path / "checkpoint")
    (directory / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        live.load(directory)


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    directory = Live(mixture_of_experts(), seed=0).save(tmp_path / "checkpoint")
    live = Live(POLICIES["plain"](tmp_path / "b"), seed=1)
    before = live.tensors()
    with pytest.raises(CheckpointError, match=r"weights of another model: .*mlp"):
        live.load(directory)
    assert same(before, live.tensors())


def test_a_model_of_another_size_is_refused(tmp_path: Path) -> None:
    """A single row would otherwise be broadcast into every row."""
    old, new = (Live(POLICIES["plain"](tmp_path / n), seed=s) for n, s in (("a", 0), ("b", 1)))
    directory = old.save(tmp_path / "checkpoint")
    new.policy.model.lm_head.weight = torch.nn.Parameter(torch.zeros(3, 16, 16))
    with pytest.raises(CheckpointError, match=r"lm_head.weight.*another shape"):
        new.load(directory)


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    old, new = (Live(POLICIES["plain"](tmp_path / n), seed=s) for n, s in (("a", 0), ("b", 1)))
    directory = old.save(tmp_path / "checkpoint")
    frozen = new.policy.model.lm_head.weight
    kept = [p for p in new.policy.model.parameters() if p is not frozen]
    new.optimizer = torch.optim.AdamW(kept)
    with pytest.raises(CheckpointError, match=r"does not fit the model: lm_head.weight/exp_avg"):
        new.load(directory)


# Servers and older versions -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_server_finds_the_model_and_nothing_else(tmp_path: Path, dtype: str) -> None:
    """Servers load every safetensors file of a directory without an index."""
    live = Live(student_of(write_models(tmp_path / "a"), dtype), seed=0, others=True)
    directory = live.save(tmp_path / "checkpoint")
    assert [path.name for path in directory.glob("*.safetensors")] == ["model.safetensors"]
    found = load_file(directory / "model.safetensors")
    assert found.keys() == load_file(tmp_path / "a" / "student" / "model.safetensors").keys()
    parts = {path.stem for path in (directory / "trainer").iterdir()}
    assert parts == {
        "optimizer",
        "search-00000-of-00001",
        "learner",
        "average",
        "monitor",
    }
    assert found["lm_head.weight"].dtype == getattr(torch, dtype)
    loaded = load_model(ModelSettings(path=str(directory)))
    assert torch.equal(loaded.lm_head.weight, found["lm_head.weight"].float())


def test_files_of_the_student_are_its_own(tmp_path: Path) -> None:
    """Byte for byte, as those that transformers writes have names that its past does not know."""
    student = write_models(tmp_path / "a") / "student"
    config = json.loads((student / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype")}
    (student / "config.json").write_text(json.dumps(config))
    ends = json.dumps({"eos_token_id": [2, 5], "top_p": 0.9})
    (student / "generation_config.json").write_text(ends)
    own = json.loads((student / "tokenizer_config.json").read_text())
    own |= {"tokenizer_class": "PreTrainedTokenizerFast", "a_field_of_its_own": 3}
    (student / "tokenizer_config.json").write_text(json.dumps(own))
    (student / "chat_template.jinja").write_text("{{ messages[0]['content'] }} of its own")
    (student / "additional_chat_templates").mkdir()
    (student / "additional_chat_templates" / "tools.jinja").write_text("tools")

    live = Live(student_of(tmp_path / "a", "bfloat16"), seed=0)
    directory = live.save(tmp_path / "checkpoint")
    for path in sorted(student.rglob("*")):
        if path.is_file() and path.name not in {"model.safetensors", "config.json"}:
            copied = directory / path.relative_to(student)
            assert copied.read_bytes() == path.read_bytes(), path.name
    written = json.loads((directory / "config.json").read_text())
    assert written == config | {"torch_dtype": "bfloat16"}
    again = load_model(ModelSettings(path=str(directory), dtype="bfloat16"))
    expected = live.policy.model.state_dict()
    assert same({n: t.clone() for n, t in again.state_dict().items()}, dict(expected))
    assert load_tokenizer(ModelSettings(path=str(directory))).get_vocab()


def test_a_config_that_no_longer_describes_the_model_is_not_copied(tmp_path: Path) -> None:
    write_models(tmp_path / "a")
    live = Live(student_of(tmp_path / "a"), seed=0)
    path = tmp_path / "a" / "student" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    written = json.loads((live.save(tmp_path / "checkpoint") / "config.json").read_text())
    assert written["rms_norm_eps"] == config["rms_norm_eps"]


def test_a_tokenizer_made_in_memory_is_written(tmp_path: Path) -> None:
    directory = Live(mixture_of_experts(), seed=0).save(tmp_path / "checkpoint")
    tokenizer = load_tokenizer(ModelSettings(path=str(directory)))
    assert tokenizer.get_vocab() == make_tokenizer(WORLD).get_vocab()
