"""docs/trainers.md: the callback in trainers that are installed, and two loops on stand-ins."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.architectures import save
from torch import nn

from effopd import Extrapolator, Search
from effopd.integrations.slope import SlopeCallback

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text("utf-8")


def block(containing: str) -> str:
    """The lines of the page that have a text in them."""
    blocks = re.findall(r"^```py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return found


def factors(history: list[dict[str, Any]]) -> list[float]:
    """The factor of each update: none yet at the first, then it moves."""
    found = [row["slope_factor"] for row in history if "loss" in row]
    assert found[0] == 1.0
    assert len(set(found)) == len(found)
    return found


def conversations(folder: Path) -> list[dict[str, Any]]:
    """A tiny model in `m`, and what is to be said."""
    save(folder / "m", "qwen3")
    return [{"q": f"What is {i} + {i}?", "a": str(2 * i)} for i in range(16)]


@pytest.mark.filterwarnings("ignore")
def test_gkd_of_trl_takes_the_slope_and_the_search_refuses_it(tmp_path: Path) -> None:
    pytest.importorskip("trl", minversion="1.16")
    from datasets import Dataset
    from tests.fakes import TOKENIZER, tiny_model
    from tests.support.trl import arguments
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from effopd.errors import ConfigError
    from effopd.integrations.trl import EffOPDCallback

    said = [
        [{"role": "user", "content": f"{i} + 1 ="}, {"role": "assistant", "content": f"# {i}"}]
        for i in range(8)
    ]
    settings = arguments(tmp_path, max_new_tokens=4, max_length=32, lmbda=1.0, beta=1.0)
    for name in ("max_completion_length", "activation_checkpointing"):
        del settings[name]
    trainer = GKDTrainer(
        model=tiny_model(0),
        teacher_model=tiny_model(1),
        args=GKDConfig(**settings),
        train_dataset=Dataset.from_dict({"messages": said}),
        processing_class=TOKENIZER,
    )
    with pytest.raises(ConfigError, match="GKDTrainer is neither a DistillationTrainer nor"):
        EffOPDCallback(trainer)
    trainer.add_callback(SlopeCallback())
    trainer.train()
    assert len(factors(trainer.state.log_history)) == 4


@pytest.mark.filterwarnings("ignore")
def test_llama_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llamafactory")
    yaml = pytest.importorskip("yaml")
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": r["q"], "input": "", "output": r["a"]} for r in conversations(tmp_path)]
    (tmp_path / "sums.json").write_text(json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"sums": {"file_name": "sums.json"}}))
    run = {
        "model_name_or_path": "m", "stage": "sft", "do_train": True, "finetuning_type": "full",
        "dataset": "sums", "dataset_dir": ".", "template": "default", "output_dir": "out",
        "per_device_train_batch_size": 4, "max_steps": 4, "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "cutoff_len": 64, "learning_rate": 1e-4, "use_cpu": True,
        "disable_gradient_checkpointing": True,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    exec(block("run_exp"), {"__name__": "__main__"})
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert len(factors(state["log_history"])) == 4


@pytest.mark.filterwarnings("ignore")
def test_ms_swift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swift.callbacks")
    from swift.pipelines.train.sft import sft_main

    monkeypatch.chdir(tmp_path)
    lines = (
        [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]
        for row in conversations(tmp_path)
    )
    text = "".join(json.dumps({"messages": line}) + "\n" for line in lines)
    (tmp_path / "sums.jsonl").write_text(text)
    (tmp_path / "slope_plugin.py").write_text(block("callbacks_map"))
    settings = {
        "model": "m", "model_type": "qwen3", "template": "qwen3", "dataset": "sums.jsonl",
        "tuner_type": "full", "external_plugins": "slope_plugin.py", "callbacks": "slope",
        "output_dir": "out", "max_steps": 4, "logging_steps": 1, "learning_rate": 1e-4,
        "report_to": "none", "max_length": 256, "gradient_checkpointing": False,
        "torch_dtype": "float32", "split_dataset_ratio": 0, "save_strategy": "no",
        "dataloader_num_workers": 0, "per_device_train_batch_size": 4, "use_cpu": True,
    }  # fmt: skip
    sft_main([word for key, value in settings.items() for word in (f"--{key}", str(value).lower())])
    (log,) = (tmp_path / "out").rglob("logging.jsonl")
    history = json.loads(log.read_text().splitlines()[-1])["log_history"]
    assert len(factors(history)) == 4


@pytest.mark.filterwarnings("ignore")
def test_axolotl_hands_the_callback_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pytest.importorskip("axolotl.integrations.base")
    (tmp_path / "slope_plugin.py").write_text(block("SlopePlugin"))
    monkeypatch.syspath_prepend(tmp_path)
    manager = base.PluginManager.get_instance()
    manager.register("slope_plugin.SlopePlugin")
    found = manager.add_callbacks_post_trainer({}, None)
    assert [type(each) for each in found] == [SlopeCallback]


# Loops of others, on stand-ins for the steps that they call ---------------------------------------


def bowl() -> tuple[nn.Linear, torch.optim.Optimizer, Callable[[], torch.Tensor]]:
    """A model whose loss a search can lower, its optimizer, and the loss."""
    model = nn.Linear(4, 1)
    inputs = torch.randn(64, 4)
    target = inputs.sum(1, keepdim=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return model, optimizer, lambda: (model(inputs) - target).square().mean()


def test_the_loop_of_prime_rl() -> None:
    model, optimizer, loss = bowl()
    before, sent = loss().item(), []
    names = {
        "model": model,
        "optimizer": optimizer,
        "validate": lambda draw: -loss().item(),
        "progress": SimpleNamespace(step=0),
        "config": SimpleNamespace(max_steps=6),
        "dataloader": SimpleNamespace(get_batch=lambda: [None, None]),
        "scheduler": SimpleNamespace(step=lambda: None),
        "loss_of": lambda micro_batch: loss() / 2,
        "weight_broadcast": SimpleNamespace(
            broadcast_weights=lambda model, step: sent.append((step, loss().item()))
        ),
        "Extrapolator": lambda model, validate: Extrapolator(
            model, validate, search=Search(parameters="all")
        ),
    }
    exec(block("weight_broadcast"), names)
    assert [step for step, _ in sent] == [1, 2, 3, 4, 5]
    assert sent[-1][1] < before / 3  # updates alone take off 4%: searches ran, and were sent
    assert names["progress"].step == 6


def test_the_driver_and_the_actors_of_slime() -> None:
    model, optimizer, loss = bowl()
    names: dict[str, Any] = {"ray": SimpleNamespace(get=lambda values: values)}
    exec(block("class Searching"), names)
    exec(block("_actor_handlers"), names)
    actor = names["Searching"]()
    actor.extrapolator = Extrapolator(model, search=Search(parameters="all"))

    class Handle:
        """Of an actor in Ray: methods are called by `.remote`."""

        def __getattr__(self, name: str) -> Any:
            return SimpleNamespace(remote=getattr(actor, name))

    engine: list[float] = []
    group = SimpleNamespace(
        _actor_handlers=[Handle()], update_weights=lambda: engine.append(loss().item())
    )
    before = loss().item()
    for step in range(1, 5):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        tip, asked = loss().item(), len(engine)
        names["search"](group, lambda: -engine[-1], step)  # the engines' weights are what counts
        if step == 3:  # not due
            assert len(engine) == asked
            assert loss().item() == tip
        else:
            assert loss().item() == min(engine[asked:]) <= tip
    assert loss().item() < before / 3


def test_the_plug_ins_are_whole_files() -> None:
    """They are Python, and take nothing from effopd but the callback."""
    for containing in ("run_exp", "callbacks_map", "SlopePlugin"):
        source = block(containing)
        compile(source, containing, "exec")
        assert re.findall(r"^from effopd.*", source, re.MULTILINE) == [
            "from effopd.integrations.slope import SlopeCallback"
        ]
