"""From problems to prompt tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from effopd.errors import ConfigError
from effopd.tasks.problem import Problem


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a problem becomes prompt tokens.

    Nothing is ever cut: a question that is cut is another question.

    Attributes:
        chat: Wrap the prompt as a user message with the tokenizer's chat template; False tokenizes
            the bare text.
        enable_thinking: Passed to chat templates that know it (Qwen3).
        system: System message before every prompt; "" for none.
        max_tokens: Longest prompt allowed.
        too_long: What becomes of problems with a longer prompt: "refuse" stops, "drop" leaves them
            out when the run starts and says how many.
    """

    chat: bool = True
    enable_thinking: bool = False
    system: str = ""
    max_tokens: int = 2048
    too_long: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.system and not self.chat:
            raise ConfigError("system needs chat = true: bare text has no system message")

    def encode(self, tokenizer: Any, problem: Problem) -> tuple[int, ...]:
        """Prompt tokens of one problem.

        Raises:
            ConfigError: No chat template, one that refuses the messages, an empty prompt, or one
                longer than `max_tokens`.
        """
        ids = self._ids(tokenizer, problem)
        if not 0 < len(ids) <= self.max_tokens:
            raise ConfigError(
                f"prompt {problem.id} has {len(ids)} tokens; allowed are 1 to {self.max_tokens} "
                "(prompt.max_tokens, prompt.too_long)"
            )
        return ids

    def short_enough(self, tokenizer: Any, problems: Sequence[Problem]) -> list[Problem]:
        """The problems whose prompts are within `max_tokens`, in order."""
        return [p for p in problems if len(self._ids(tokenizer, p)) <= self.max_tokens]

    def _ids(self, tokenizer: Any, problem: Problem) -> tuple[int, ...]:
        messages = self._messages(problem)
        if not self.chat:
            return tuple(tokenizer(problem.prompt)["input_ids"])
        if tokenizer.chat_template is None:
            raise ConfigError("the tokenizer has no chat template: set prompt.chat = false")
        try:
            encoded = tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                enable_thinking=self.enable_thinking,
                return_dict=True,
            )
        except TemplateError as error:
            raise ConfigError(
                f"the chat template of the tokenizer refuses prompt {problem.id}: {error}"
            ) from None
        return tuple(encoded["input_ids"])

    def _messages(self, problem: Problem) -> list[dict[str, str]]:
        """The chat: a system message of the settings or of the data, and the prompt."""
        if problem.system and (self.system or not self.chat):
            raise ConfigError(
                f"prompt {problem.id} brings a system message of its own, "
                + ("so does prompt.system" if self.system else "which bare text has no place for")
                + ": leave out one of them (task.train.system = 'drop')"
            )
        system = problem.system or self.system
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": problem.prompt}]
