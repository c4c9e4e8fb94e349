"""From problems to prompt tokens."""

from dataclasses import dataclass
from typing import Any

from effopd.errors import ConfigError
from effopd.tasks.problem import Problem


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a problem becomes prompt tokens.

    Attributes:
        chat: Wrap the prompt as a user message with the tokenizer's chat template; False tokenizes
            the bare text.
        enable_thinking: Passed to chat templates that know it (Qwen3).
        max_tokens: Longest prompt allowed.
    """

    chat: bool = True
    enable_thinking: bool = False
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")

    def encode(self, tokenizer: Any, problem: Problem) -> tuple[int, ...]:
        """Prompt tokens of one problem.

        Raises:
            ConfigError: No chat template, an empty prompt, or one longer than `max_tokens`.
        """
        if not self.chat:
            ids = tokenizer(problem.prompt)["input_ids"]
        elif tokenizer.chat_template is None:
            raise ConfigError("the tokenizer has no chat template: set prompt.chat = false")
        else:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": problem.prompt}],
                add_generation_prompt=True,
                enable_thinking=self.enable_thinking,
                return_dict=True,
            )["input_ids"]
        if not 0 < len(ids) <= self.max_tokens:
            raise ConfigError(
                f"prompt {problem.id} has {len(ids)} tokens; allowed are 1 to {self.max_tokens} "
                "(prompt.max_tokens)"
            )
        return tuple(ids)
