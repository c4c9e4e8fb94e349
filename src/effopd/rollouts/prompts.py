"""From problems to prompt tokens."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from string import Formatter
from typing import Any, ClassVar, Literal

from jinja2 import Environment, TemplateError, meta

from effopd.data.problem import Counts, Message, Problem, Task
from effopd.errors import ConfigError
from effopd.models.tokenizers import TEMPLATE_ERRORS, end_token_remarks, token_names

_RESERVED = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation",
    "documents", "max_length", "messages", "padding", "return_assistant_tokens_mask",
    "return_dict", "return_tensors", "sanitize_control_tokens", "self", "strftime_now", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip
"""Arguments of `apply_chat_template` that are not the template's, or not the settings'."""
_DATE_FORMS = [
    f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdeDfFHIjmMpSTuUVwWxXyYGZz%"
]
"""What `strftime` may be asked for."""
UNLIMITED = 2**31 - 1
"""Tokens of a prompt without a limit of its own."""
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question with its answer, shown before the question that is asked.

    Attributes:
        prompt: The question.
        answer: The answer to it.
    """

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """How a problem becomes prompt tokens.

    Nothing is ever cut: a question that is cut is another question.

    Attributes:
        chat: Wrap the prompt as a user message with the tokenizer's chat template; False tokenizes
            the bare text.
        enable_thinking: Passed to chat templates that know it (Qwen3).
        template_kwargs: More arguments of the chat template: `{thinking = true}` (DeepSeek,
            Granite), `{reasoning_effort = "low"}` (gpt-oss). One that the student's template never
            reads is refused.
        date: The day, "2026-01-31", that chat templates with a date in them write; None for the
            day on which the run starts, which is kept in run.json.
        system: System message before every prompt; "" for none.
        examples: Questions with answers before every prompt: earlier turns of the chat; in bare
            text `prompt` and `answer` joined as they are, with a blank line after each.
        max_tokens: Longest prompt allowed.
        too_long: What becomes of problems with a longer prompt: "refuse" stops, "drop" leaves them
            out when the run starts and says how many.
    """

    chat: bool = True
    enable_thinking: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    system: str = ""
    examples: tuple[Example, ...] = ()
    max_tokens: int = 2048
    too_long: Literal["refuse", "drop"] = "refuse"

    section: ClassVar[str] = "prompt"
    """Where recipes have it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        for name, given in (("system", self.system), ("template_kwargs", self.template_kwargs)):
            if given and not self.chat:
                raise ConfigError(f"{name} needs chat = true: bare text has no {name}")
        if "enable_thinking" in self.template_kwargs:
            raise ConfigError(
                "template_kwargs must not hold 'enable_thinking', a setting of its own: set "
                f"{self.section}.enable_thinking"
            )
        if reserved := sorted(_RESERVED & self.template_kwargs.keys()):
            raise ConfigError(f"template_kwargs must not hold {reserved[0]!r}, which effopd sets")
        try:
            date.fromisoformat(self.date or "2026-01-31")
        except ValueError:
            raise ConfigError(
                f'date must be a day such as "2026-01-31", got {self.date!r}'
            ) from None

    def encode(self, tokenizer: Any, problem: Problem) -> tuple[int, ...]:
        """Prompt tokens of one problem."""
        ids = self._ids(tokenizer, problem)
        self._check_read(tokenizer, problem, ids)
        if not 0 < len(ids) <= self.max_tokens:
            raise ConfigError(
                f"prompt {problem.id} has {len(ids)} tokens; allowed are 1 to {self.max_tokens} "
                f"({self.section}.max_tokens, {self.section}.too_long)"
            )
        return ids

    def short_enough(self, tokenizer: Any, problems: Sequence[Problem]) -> list[Problem]:
        """The problems whose prompts are within `max_tokens`, in order."""
        return [p for p in problems if len(self._ids(tokenizer, p)) <= self.max_tokens]

    def unread(self, tokenizer: Any) -> list[str]:
        """The names in `template_kwargs` that the tokenizer's chat template never reads."""
        if not self.template_kwargs or tokenizer.chat_template is None:
            return []
        try:
            text = _GENERATION_TAG.sub("", tokenizer.get_chat_template())
            parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
        except (TemplateError, ValueError):
            return []  # rendering says what is wrong
        return sorted(self.template_kwargs.keys() - meta.find_undeclared_variables(parsed))

    def check_arguments(self, tokenizer: Any) -> None:
        """Refuses arguments that the student's chat template never reads."""
        if unread := self.unread(tokenizer):
            raise ConfigError(
                f"{self.section}.template_kwargs has {unread[0]!r}, which the chat template of "
                f"{_named(tokenizer)} never reads: correct the name, or remove it"
            )

    def rendered(self, tokenizer: Any, problem: Problem) -> str:
        """The prompt of one problem before it is tokens, by the chat template."""
        return str(self._applied(tokenizer, problem, self._messages(problem), tokenize=False))

    def _ids(self, tokenizer: Any, problem: Problem) -> tuple[int, ...]:
        messages = self._messages(problem)
        if not self.chat:
            shown = "".join(f"{each.prompt}{each.answer}\n\n" for each in self.examples)
            return tuple(tokenizer(shown + problem.prompt)["input_ids"])
        return tuple(self._applied(tokenizer, problem, messages)["input_ids"])

    def _applied(
        self, tokenizer: Any, problem: Problem, messages: Any, *, tokenize: bool = True
    ) -> Any:
        """The tokenizer's encoding of the messages in the chat template, or their text."""
        tools = [dict(tool) for tool in problem.tools] or None
        if tokenizer.chat_template is None:
            raise ConfigError(
                f"{_named(tokenizer)} has no chat template: set {self.section}.chat = false, or "
                "write one to chat_template.jinja in its directory"
            )
        try:
            return tokenizer.apply_chat_template(
                messages,
                tools=tools,
                add_generation_prompt=True,
                enable_thinking=self.enable_thinking,
                chat_template=self._dated(tokenizer),
                tokenize=tokenize,
                return_dict=tokenize,
                **self.template_kwargs,
            )
        except TEMPLATE_ERRORS as error:
            remedy = ""
            if problem.system or self.system:
                own = f"{self.section}.system = ''"
                setting = "task.train.system = 'drop'" if problem.system else own
                remedy = f" (without the prompt's system message: {setting})"
            raise ConfigError(
                f"the chat template of {_named(tokenizer)} refuses prompt {problem.id}: "
                f"{error}{remedy}"
            ) from None

    def _check_read(self, tokenizer: Any, problem: Problem, ids: tuple[int, ...]) -> None:
        """Refuses a chat template that leaves out tools, their calls, or their results."""

        def changed(message: Message) -> Message:
            calls = tuple({**call, "name": f"{call['name']}0"} for call in message.tool_calls)
            said = f"{message.content} 0" if message.role == "tool" else message.content
            return replace(message, content=said, tool_calls=calls)

        others: dict[str, Problem] = {}
        if problem.tools:
            others["tools"] = replace(problem, tools=())
        for what, is_own in (
            ("results of tools", lambda message: message.role == "tool"),
            ("calls of tools", lambda message: bool(message.tool_calls)),
        ):
            turns, after = (
                tuple(changed(message) if is_own(message) else message for message in part)
                for part in (problem.turns, problem.after)
            )
            if (turns, after) != (problem.turns, problem.after):
                others[what] = replace(problem, turns=turns, after=after)
        for what, other in others.items():
            if self._ids(tokenizer, other) == ids:
                raise ConfigError(
                    f"the chat template of {_named(tokenizer)} does not write the {what} of prompt "
                    f"{problem.id}: use a model whose template knows tools, or leave them out"
                )

    def _dated(self, tokenizer: Any) -> str | None:
        """The chat template with its clock stopped at the date; None where it has no clock.

        Transformers passes a template no functions, so a macro takes the place of `strftime_now`.
        """
        text = str(tokenizer.get_chat_template())
        if "strftime_now" not in text:
            return None
        day = date.fromisoformat(self.date) if self.date else date.today()
        written = [(form, f"{datetime.combine(day, time()):{form}}") for form in _DATE_FORMS]
        replaced = "".join(f"|replace({form!r},{value!r})" for form, value in written)
        return f"{{% macro strftime_now(form) %}}{{{{ form{replaced} }}}}{{% endmacro %}}\n{text}"

    def _messages(self, problem: Problem) -> list[dict[str, Any]]:
        """The chat: a system message of the settings or of the data, earlier turns, the prompt."""
        if problem.system and (self.system or not self.chat):
            raise ConfigError(
                f"prompt {problem.id} brings a system message of its own, "
                + (
                    f"so does {self.section}.system"
                    if self.system
                    else "which bare text has no place for"
                )
                + ": leave out one of them (task.train.system = 'drop')"
            )
        if (problem.turns or problem.after or problem.tools) and not self.chat:
            raise ConfigError(
                f"prompt {problem.id} is a conversation of several turns or with tools, which bare "
                f"text has no place for: set {self.section}.chat = true"
            )
        system = problem.system or self.system
        found = [{"role": "system", "content": system}] if system else []
        for shown in self.examples:
            found += [
                {"role": "user", "content": shown.prompt},
                {"role": "assistant", "content": shown.answer},
            ]
        return [*found, *(message.for_template() for message in problem.messages)]


@dataclass(frozen=True, kw_only=True)
class TeacherPrompt(PromptTemplate):
    r"""The prompt of a model that scores, before the same answer tokens; the student sees another.

    Attributes:
        text: What is asked, with fields of the problem in braces: `{prompt}` is the student's
            question, `{answer}` the reference, others are those of `task.train.keep_fields`, as in
            `"{prompt}\n\nA solution:\n{solution}"`. Braces of its own are doubled.
        max_tokens: Longest prompt allowed; by default as many as the model has positions for.
    """

    text: str = "{prompt}"
    max_tokens: int = UNLIMITED

    section: ClassVar[str] = "teacher_prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.too_long != "refuse":
            raise ConfigError("too_long is for the student's prompt: nothing of this one is cut")
        try:
            names = [name for _, name, *_ in Formatter().parse(self.text) if name is not None]
        except ValueError as error:
            raise ConfigError(f"text is no template: {error}; double braces of its own") from None
        if strange := [name for name in names if not name.isidentifier()]:
            raise ConfigError(
                f"text has {{{strange[0]}}}, which names no field: double braces of its own"
            )

    def _ids(self, tokenizer: Any, problem: Problem) -> tuple[int, ...]:
        fields = {**problem.fields, "prompt": problem.prompt, "answer": problem.answer}
        try:
            asked = self.text.format_map(fields)
        except KeyError as error:
            known = ", ".join(sorted(fields))
            raise ConfigError(
                f"{self.section}.text names {error}, which problem {problem.id} does not have "
                f"(known are {known}): add it to task.train.keep_fields, or double its braces"
            ) from None
        return super()._ids(tokenizer, replace(problem, prompt=asked))


def _named(tokenizer: Any) -> str:
    return tokenizer.name_or_path or "the tokenizer"


def lend_template_(student: Any, teacher: Any) -> bool:
    """Gives a teacher's tokenizer the student's chat template where it has none; whether it did.

    The teacher scores the student's tokens whatever its template; only prompts of its own need one.
    """
    if teacher.chat_template is not None or student.chat_template is None:
        return False
    teacher.chat_template = student.chat_template
    return True


def shapes(problems: Sequence[Problem]) -> Iterator[Problem]:
    """The longest problem, and one of each shape of conversation: what may be refused is there."""
    fields = (sum(map(len, each.fields.values())) for each in problems)
    lengths = [p.characters + more for p, more in zip(problems, fields, strict=True)]
    yield problems[lengths.index(max(lengths))]
    yield from {
        (bool(p.system), bool(p.tools), *((m.role, bool(m.tool_calls)) for m in p.messages)): p
        for p in problems
    }.values()


def without_long_prompts(task: Task, template: PromptTemplate, tokenizer: Any) -> Task:
    """Leaves out, and counts, problems whose prompts are longer than the template allows."""

    def kept(name: str, problems: Sequence[Problem]) -> tuple[list[Problem], Counts]:
        short = template.short_enough(tokenizer, problems)
        if not short:
            raise ConfigError(
                f"all {len(problems)} {name} have more than prompt.max_tokens = "
                f"{template.max_tokens} tokens"
            )
        reason = f"more than {template.max_tokens} tokens"
        left_out = len(problems) - len(short)
        dropped = {reason: left_out} if left_out else {}
        return short, Counts(name=name, read=len(problems), kept=len(short), dropped=dropped)

    train, train_counts = kept("training prompts", task.train)
    test, test_counts = kept("test prompts", task.test)
    counts = (*task.counts, train_counts, test_counts)
    return replace(task, train=train, test=test, counts=counts)


def prompt_remarks(
    template: PromptTemplate,
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    ends: tuple[int, ...],
    cap: int,
    positions: int | None,
) -> Iterator[str]:
    """What would go wrong with prompts and answers without an error; a sentence and remedy each.

    Looks at the first and the longest of the problems. Answers end at `ends` (`models.end_tokens`)
    and at `cap` tokens; the model is made for so many `positions`, None for any number.
    """
    if template.chat:
        yield from end_token_remarks(tokenizer, ends)
    longest = max(problems, key=lambda problem: problem.characters)
    prompts = [template.encode(tokenizer, problem) for problem in (problems[0], longest)]
    last = next((i for i in reversed(prompts[0]) if tokenizer.decode([i]).strip()), None)
    if last in ends:
        why = (
            "the chat template pays no heed to add_generation_prompt: mend it"
            if template.chat
            else "the tokenizer adds it: set add_eos_token = false in tokenizer_config.json"
        )
        yield f"prompts end with {token_names(tokenizer, (last,))}, at which answers end; {why}"
    tokens = max(map(len, prompts))
    if positions is not None and tokens + cap > positions:
        yield (
            f"a prompt of {tokens} tokens and an answer of {cap} (sampling.max_new_tokens) take "
            f"more than the {positions} positions that the model is made for: lower "
            "sampling.max_new_tokens or prompt.max_tokens"
        )
