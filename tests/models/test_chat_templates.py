"""Chat templates are tried out in a child process before they are used."""

import os
import sys
import threading
from pathlib import Path

import pytest
from tests.fakes import TOKENIZER

from effopd.data.world import CHAT_TEMPLATE
from effopd.errors import ConfigError
from effopd.models.chat_templates import check_chat_template
from effopd.models.loading import ModelSettings, load_tokenizer

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
MEMORY = {
    "at-once": "{{ messages[0]['content'] * 1000000000 }}",
    "in-a-constant": "{{ 'a' * 100000000000 }}",
    "by-doubling": "{% set n = namespace(s='ab') %}{% for i in range(60) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
}


def tokenizer_with(template: str | None, tmp_path: Path) -> object:
    """A tokenizer of its own, since templates are attributes."""
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelSettings(path=str(with_config(tmp_path))))
    loaded.chat_template = template
    return loaded


def with_config(directory: Path) -> Path:
    (directory / "config.json").write_text('{"model_type": "qwen3"}')
    return directory


def test_a_byte_order_mark_before_a_template_is_read_over(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(with_config(tmp_path))
    (tmp_path / "chat_template.jinja").write_text("\ufeff{{ 'x' }}", encoding="utf-8")
    assert load_tokenizer(ModelSettings(path=str(tmp_path))).chat_template == "{{ 'x' }}"


def test_endless_loops_end(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(LOOPS, tmp_path)
    for _ in range(2):  # a bad one is not remembered as good
        with pytest.raises(ConfigError, match="chat template of some/model does not end within 1"):
            check_chat_template("some/model", tokenizer, cpu_s=1)


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_limited(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"of m (takes more than \d+ bytes|does not end)"):
        check_chat_template("m", tokenizer_with(MEMORY[name], tmp_path), cpu_s=5)


def test_a_model_with_such_a_template_does_not_load(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(with_config(tmp_path))
    (tmp_path / "chat_template.jinja").write_text(MEMORY["in-a-constant"])
    with pytest.raises(ConfigError, match=r"replace it in chat_template\.jinja"):
        load_tokenizer(ModelSettings(path=str(tmp_path)))


@pytest.mark.parametrize(
    "template",
    [None, CHAT_TEMPLATE, "{{ raise_exception('system first') }}", "{{ nothing.at.all }}",
     "{% for i in range(10**9) %}{% endfor %}", "{{ 1 / 0 }}", "{% if %}",
     "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os }}"],
)  # fmt: skip
def test_templates_that_end_pass_whatever_they_say(tmp_path: Path, template: str | None) -> None:
    check_chat_template("m", tokenizer_with(template, tmp_path))


def children() -> str:
    """Process ids of this thread's children."""
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()


def test_the_child_leaves_nothing_behind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = children()
    check_chat_template("m", tokenizer_with("{{ 1 }} of its own", tmp_path))
    assert children() == before
    assert capfd.readouterr() == ("", "")


def test_a_thread_that_reads_standard_input_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the processes of a comparison, which end when their input does."""
    read_end, write_end = os.pipe()
    with open(read_end) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        thread = threading.Thread(target=stream.readline, daemon=True)
        thread.start()
        check_chat_template("m", tokenizer_with("{{ 2 }} of its own", tmp_path))
        os.close(write_end)
        thread.join()
