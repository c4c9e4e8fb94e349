"""A chat template is a program of whoever made the model, so it is tried out with limits first.

Transformers renders templates in Jinja's sandbox, which keeps them away from files and code but not
from endless loops or from all memory. A child process that may use little of either renders a short
conversation; only what ends there is rendered in this process. A template that waits for a
particular question to hang is not found out this way.
"""

import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from effopd.errors import ConfigError

MEMORY_BYTES = 2**30
_WALL_PER_CPU = 10
_QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
_OUT_OF_MEMORY = 3
TEMPLATE_ERRORS = (
    TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RuntimeError,
)  # fmt: skip
"""What rendering raises: a template refuses messages, or does with them what they do not allow."""
_known: set[str] = set()
"""Templates that have ended in time; a set of texts, so that each is tried once a process."""


def check_chat_template(path: str, tokenizer: Any, *, cpu_s: int = 5) -> None:
    """Renders a short question in a child process, with and without thinking.

    A template that refuses the question is none of our business here: what is asked later may suit
    it. Without `/proc` (not on Linux) memory cannot be limited, and nothing is tried.

    Args:
        path: The model as the user named it.
        tokenizer: Hugging Face tokenizer, with or without a template.
        cpu_s: Processor time that the child has; it is killed after ten times as much wall time.

    Raises:
        ConfigError: It did not end within the time, or with `MEMORY_BYTES` of memory.
    """
    text = repr(tokenizer.chat_template)
    if tokenizer.chat_template is None or text in _known or sys.platform != "linux":
        return
    status = _rendered(tokenizer, cpu_s)
    if status in {-signal.SIGXCPU, -signal.SIGKILL}:
        raise ConfigError(_refusal(path, f"does not end within {cpu_s} s"))
    if status == _OUT_OF_MEMORY:
        raise ConfigError(_refusal(path, f"takes more than {MEMORY_BYTES} bytes of memory"))
    _known.add(text)


def _rendered(tokenizer: Any, cpu_s: int) -> int:
    """Exit status of a child that renders.

    A bare fork: what `multiprocessing` does at the start of a child waits for a thread of ours that
    reads standard input.
    """
    with warnings.catch_warnings():  # the child touches nothing that other threads may hold
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        _render(tokenizer, cpu_s)
    deadline = time.monotonic() + _WALL_PER_CPU * cpu_s
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status)


def _refusal(path: str, why: str) -> str:
    return (
        f"the chat template of {path} {why} for a short question: replace it in "
        "chat_template.jinja or tokenizer_config.json, where its makers have a sound one"
    )


def _render(tokenizer: Any, cpu_s: int) -> None:
    """Of the child: ends it with what came of it, and without any of the parent's clean-up."""
    status = 0
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        resource.setrlimit(resource.RLIMIT_AS, 2 * (_address_space_bytes() + MEMORY_BYTES,))
        for thinking in (False, True):
            tokenizer.apply_chat_template(
                _QUESTION, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
    except MemoryError:
        status = _OUT_OF_MEMORY
    except TEMPLATE_ERRORS:
        pass
    finally:
        os._exit(status)


def _address_space_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * resource.getpagesize()
