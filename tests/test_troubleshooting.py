"""docs/troubleshooting.md has every section that a message names, and names the messages' words."""

import ast
import re
from pathlib import Path

import pytest
import torch

from effopd.errors import TROUBLESHOOTING, see
from effopd.training.rows import ADVICE, with_advice

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / TROUBLESHOOTING).read_text("utf-8")
SECTIONS = {
    heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
}


def named_sections() -> set[str]:
    """The arguments of all calls of `see` in the package, which are literals."""
    found = set()
    for file in (ROOT / "src" / "effopd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "see":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{file.name}:{node.lineno}"
                found.add(argument.value)
    return found


def test_messages_name_sections_that_exist_and_every_section_is_named() -> None:
    assert named_sections() == SECTIONS


def test_the_page_quotes_messages_of_the_package() -> None:
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src" / "effopd").rglob("*.py"))
    said = re.sub(r"[\s\"']+", " ", source)
    for words in re.findall(r"^> (.+)$", PAGE, re.MULTILINE):
        parts = re.split(
            r"`CUDA out of memory` \.\.\.|[\d.]+%?|student and teacher|the reference ", words
        )
        for part in filter(None, (part.strip(" .:") for part in parts)):
            plain = re.sub(r"[\s\"']+", " ", part)
            assert plain in said or plain.split(" to ")[0] in said, part


@pytest.mark.parametrize("words", ADVICE)
def test_an_alarm_is_said_with_its_section(words: str) -> None:
    assert with_advice(f"69% {words} x") == f"69% {words} x{ADVICE[words]}"


def test_another_sentence_is_said_as_it_is() -> None:
    assert with_advice("all is well") == "all is well"
    assert see("flat-accuracy") == " (see docs/troubleshooting.md#flat-accuracy)"


def test_a_run_out_of_memory_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effopd.training import run
    from effopd.training.config import make_config

    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "build_parts", full)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        run.train(make_config({"task": {"type": "tiny_world"}, "device": "cpu"}), tmp_path)
    (note,) = caught.value.__notes__
    assert f"effopd doctor {tmp_path}/config.toml --gpu auto" in note
    assert note.endswith("(see docs/troubleshooting.md#out-of-memory)")
