"""Settings of servers and engines: what contradicts itself is refused before anything is asked."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from effopd.cli.main import app
from effopd.config.reading import to_toml
from effopd.errors import ConfigError
from effopd.rollouts.settings import RolloutSettings
from effopd.servers.settings import ServerSettings
from effopd.training.config import load_config, make_config

SERVER = {"url": "http://127.0.0.1:8000", "model": "teacher", "api_key_env": "TEACHER_KEY"}
TAUGHT: dict[str, Any] = {
    "method": "opd",
    "objective": {"type": "sampled_token"},
    "evaluation": {"divergence": False},
    "teacher_server": SERVER,
}
SECRET = "canary-5521"


def refusal(changes: dict[str, Any], raw: dict[str, Any] = TAUGHT) -> str:
    with pytest.raises(ConfigError) as error:
        make_config(raw | changes)
    return str(error.value)


def test_a_teacher_server_is_a_section_that_is_read_back(tmp_path: Path) -> None:
    config = make_config(TAUGHT)
    assert config.teacher_server == ServerSettings(**SERVER)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config
    assert 'api_key_env = "TEACHER_KEY"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"type": "full_kl"}}, "objective.type = 'full_kl' needs a distribution"),
        (
            {"evaluation": {"divergence": True}},
            "alone: set teacher_server.top_k, as 20, or set it to",
        ),
        (
            {"method": "effopd"},
            "validation.type = 'importance_kl' needs a distribution at every token",
        ),
        (
            {"method": "effopd", "validation": {"type": "teacher_kl"}},
            "validation.type = 'teacher_kl' needs a distribution at every token",
        ),
        (
            {
                "teacher_server": SERVER | {"top_k": 20},
                "objective": {"type": "full_kl", "reward_scale": 1.25},
            },
            "objective.reward_scale must be 1 in 'full_kl' with teacher_server.top_k, got 1.25",
        ),
        (
            {
                "teacher_server": SERVER | {"top_k": 20},
                "objective": {"type": "full_kl", "teacher_temperature": 0.5},
            },
            "objective.teacher_temperature must be 1 with teacher_server",
        ),
        (
            {"objective": {"type": "exopd", "teacher_temperature": 0.5}},
            "objective.teacher_temperature must be 1 with teacher_server",
        ),
        ({"teacher": {"path": "t"}}, "teacher_server takes the place of [teacher]"),
        ({"self_teacher": {"decay": 0.9}}, "teacher_server takes the place of [teacher]"),
        ({"teacher_server": SERVER | {"urk": "x"}}, "did you mean 'url'?"),
        ({"teacher_server": {"url": "http://h"}}, "teacher_server.model is missing"),
        ({"teacher_server": SERVER | {"flavor": "tgi"}}, "teacher_server.flavor must be"),
        ({"teacher_server": SERVER | {"url": "file:///x"}}, "url must be http://host:port"),
        (
            {"teacher_server": SERVER | {"flavor": "effopd"}},
            "evaluation.teacher needs a server that writes answers",
        ),
    ],
)
def test_what_a_server_cannot_do_is_refused(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(changes)


def test_what_a_server_can_do() -> None:
    for changes in (
        {"objective": {"type": "exopd"}},
        {"method": "effopd", "validation": {"type": "accuracy"}},
        {"evaluation": {"problems": 0}},
        {"method": "grpo", "objective": {"type": "policy_gradient", "distillation": 0.1},
         "train": {"responses_per_prompt": 4}},
    ):  # fmt: skip
        assert make_config(TAUGHT | changes).teacher_server is not None


@pytest.mark.parametrize(
    "url", [f"http://user:{SECRET}@h", f"http://h?token={SECRET}", f"http://h:{SECRET}"]
)
def test_secrets_in_a_url_reach_no_message(url: str, tmp_path: Path) -> None:
    assert SECRET not in refusal({"teacher_server": SERVER | {"url": url}})
    recipe = tmp_path / "run.toml"
    recipe.write_text(f'[teacher_server]\nurl = "{url}"\nmodel = "m"\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["train", str(recipe), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert SECRET not in result.output


def test_the_settings_in_the_documentation_are_settings() -> None:
    text = (Path(__file__).parents[1] / "docs" / "servers.md").read_text(encoding="utf-8")
    taught, ours, served, local = [
        tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    ]
    assert make_config(taught).teacher_server is not None
    assert make_config(ours).evaluation.teacher is False
    assert make_config(served).rollouts.engine == "server"
    assert make_config(local).rollouts.engine == "vllm"


# Engines ------------------------------------------------------------------------------------------


def test_the_live_model_writes_by_default() -> None:
    assert make_config({}).rollouts == RolloutSettings(engine="hf")


def test_engines_are_read_back(tmp_path: Path) -> None:
    server = {"url": "http://127.0.0.1:8001", "model": "student"}
    for section in (
        {"engine": "server", "server": server, "weights_directory": "/shared"},
        {"engine": "vllm", "vllm": {"gpu_memory": 0.3, "sleep": False}},
    ):
        config = make_config({"rollouts": section})
        path = tmp_path / "config.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        assert load_config(path) == config


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"engine": "server"}, "engine = 'server' needs server.url"),
        (
            {"engine": "server", "server": {"url": "http://h", "model": "m"}},
            "weights_directory must be a directory that the server sees too",
        ),
        ({"engine": "tgi"}, "rollouts.engine must be"),
        (
            {
                "engine": "server",
                "server": {"url": "http://h", "model": "m", "flavor": "effopd"},
                "weights_directory": "/shared",
            },
            "server.flavor must be 'vllm' or 'sglang'",
        ),
        ({"engine": "vllm", "vllm": {"gpu_memory": 2.0}}, "gpu_memory must be above 0"),
    ],
)
def test_engines_that_cannot_follow_the_student(section: dict[str, Any], message: str) -> None:
    assert message in refusal({"rollouts": section}, {})


def test_adapters_write_with_the_live_model() -> None:
    raw = {"student": {"path": "s", "lora": {"r": 4}}, "rollouts": {"engine": "vllm"}}
    assert "rollouts.engine = 'vllm' takes whole weights" in refusal(raw, {})
