"""The tiny world: a language, a task and a small Qwen3 model that learn in minutes on a CPU.

The task is a left-to-right chain of modular arithmetic. The prompt is `x op b op b ... =`; a good
answer writes every step, `a op b = v ;`, and then `# v`. The base model is trained on noisy
demonstrations, so it knows arithmetic (greedy decoding is right) but samples badly: the knowledge
is there and has to be sharpened, which is what reinforcement learning and distillation do.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from effopd.data.problem import Answer, Problem, Task
from effopd.errors import ConfigError

OPERATORS = ("+", "-", "*")
SPECIAL = ("<pad>", "<bos>", "<eos>")
PUNCTUATION = ("=", ";", "#")
TEACHER_END = "<end>"
_CALL = re.compile(r"(\d+) ([-+*]) (\d+) =\s*\Z")
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True, kw_only=True)
class TinyWorld:
    """Settings of the world; its content is a pure function of them.

    Attributes:
        modulus: Numbers are 0 .. modulus - 1, one token each.
        operations: Length of the chain, or of the longest one.
        shortest: Length of the shortest chain, lengths up to `operations` being equally likely; 0
            makes every chain `operations` long.
        wrong_step: Probability that a demonstrated step has a wrong result.
        direct_answer: Share of demonstrations that answer without steps.
        layers: Decoder layers.
        hidden: Hidden width.
        train_problems: Size of the training set.
        test_problems: Size of the held-out set.
        seed: Seed of everything random.
        base_steps: Cap on pre-training updates.
        base_greedy: Greedy accuracy at which clean pre-training ends.
        noise_steps: Updates on noisy demonstrations after that, with linear decay.
        careful_prompt: Words before a question that ask for care, such as "# ": after them the base
            goes on writing every step as it is, while without them it is noisy. "" for a base that
            knows no such words.
        teacher_steps: Cap on reinforcement-learning updates of the teacher.
        teacher_lr: Learning rate of the teacher's updates.
        teacher_accuracy: Sampled accuracy at which the teacher is done.
        calculator: The teacher leaves its steps to a calculator, `Calculator` as environment: it
            writes `a op b =`, is told `v ;`, and goes on.
        teacher_differs_in: What else than weights sets the teacher apart. "end": it ends answers
            with `<end>`, the base with `<eos>`; both tokenizers have both. "tokens": a result and
            the semicolon behind it are one token of the base's, `3 ;`. "head": the base is a
            Gemma-2, whose logits are soft-capped, the teacher a Granite, whose logits are scaled.
    """

    type: Literal["tiny_world"] = "tiny_world"
    modulus: int = 7
    operations: int = 4
    shortest: int = 0
    wrong_step: float = 0.3
    direct_answer: float = 0.2
    layers: int = 4
    hidden: int = 96
    train_problems: int = 8192
    test_problems: int = 512
    seed: int = 0
    base_steps: int = 900
    base_greedy: float = 0.97
    noise_steps: int = 80
    careful_prompt: str = ""
    teacher_steps: int = 60
    teacher_lr: float = 3e-4
    teacher_accuracy: float = 0.95
    calculator: bool = False
    teacher_differs_in: Literal["", "end", "tokens", "head"] = ""

    def __post_init__(self) -> None:
        if self.modulus < 2:
            raise ConfigError(f"modulus must be at least 2, got {self.modulus}")
        for name in ("operations", "layers", "train_problems", "test_problems"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.shortest <= self.operations:
            raise ConfigError(
                f"shortest must be 0 to operations ({self.operations}), got {self.shortest}"
            )
        for name in ("wrong_step", "direct_answer"):
            if not 0 <= (share := getattr(self, name)) < 1:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {share}")
        if self.calculator and self.teacher_differs_in:
            raise ConfigError(
                "calculator and teacher_differs_in make two different teachers: keep one"
            )
        words = {*map(str, range(self.modulus)), *OPERATORS, *PUNCTUATION}
        if strange := [word for word in self.careful_prompt.split() if word not in words]:
            raise ConfigError(f"careful_prompt has {strange[0]!r}, which is no word of the world")
        if self.hidden % 16 or self.hidden < 16:
            raise ConfigError(f"hidden must be a multiple of 16, got {self.hidden}")
        # Drawing distinct problems must end, and soon: at most half of all are drawn.
        asked = self.train_problems + self.test_problems
        distinct = self.modulus * (len(OPERATORS) * self.modulus) ** self.operations
        if asked > distinct // 2:
            raise ConfigError(
                f"train_problems and test_problems must not exceed {distinct // 2} together, half "
                f"of the chains of {self.operations} operations modulo {self.modulus}, got {asked}"
            )

    @property
    def verifier(self) -> "ChainVerifier":
        """Checks the value after `#`."""
        return ChainVerifier()

    @property
    def lengths(self) -> range:
        """Lengths of chains that occur; a problem's level is the length of its chain."""
        return range(self.shortest or self.operations, self.operations + 1)

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest full answer, ends of sequence and results included."""
        return (6 + self.calculator) * self.operations + 3

    def load(self) -> Task:
        """The training and held-out problems; disjoint."""
        rng = random.Random(f"problems/{self.seed}")
        count = self.train_problems + self.test_problems
        chains: dict[str, tuple[str, int]] = {}
        while len(chains) < count:
            first = rng.randrange(self.modulus)
            length = rng.choice(self.lengths) if len(self.lengths) > 1 else self.operations
            steps = [(rng.choice(OPERATORS), rng.randrange(self.modulus)) for _ in range(length)]
            text = " ".join([str(first), *(f"{op} {b}" for op, b in steps), "="])
            value = first
            for operator, operand in steps:
                value = apply(operator, value, operand) % self.modulus
            chains[text] = (str(value), length)
        problems = [
            Problem(id=f"chain-{i}", prompt=prompt, answer=answer, level=length)
            for i, (prompt, (answer, length)) in enumerate(chains.items())
        ]
        return Task(train=problems[self.test_problems :], test=problems[: self.test_problems])


@dataclass(frozen=True, kw_only=True)
class ChainVerifier:
    """The first `# v` must be the right value and end the answer.

    A truncated answer is judged like any other: at the length cap it has said `# v` or it has not.
    """

    def rewards(self, answers: Sequence[Answer]) -> list[float]:
        """1.0 for each answer where what follows the first `#` is exactly the reference."""
        tails = [answer.completion.partition("#")[2] for answer in answers]
        pairs = zip(tails, answers, strict=True)
        return [float(tail.strip() == answer.problem.answer) for tail, answer in pairs]


@dataclass(frozen=True, kw_only=True)
class Calculator:
    """An environment: `a op b =` at the end of a turn is answered by its value, `v ;`."""

    modulus: int = TinyWorld.modulus

    def reply(self, problem: Problem, answer: str) -> str | None:
        """The value of the last step; None where the turn ends with none."""
        asked = _CALL.search(answer)
        if asked is None:
            return None
        return f"{apply(asked[2], int(asked[1]), int(asked[3])) % self.modulus} ;"


def apply(operator: str, left: int, right: int) -> int:
    """`left operator right` over the integers."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def make_tokenizer(world: TinyWorld) -> PreTrainedTokenizerFast:
    """The base's: one token per number and symbol, and a chat template that adds the start token.

    Where the teacher differs in tokens, a number before a semicolon is one token with it.
    """
    words = [*SPECIAL, *map(str, range(world.modulus)), *OPERATORS, *PUNCTUATION]
    before: Any = pre_tokenizers.WhitespaceSplit()
    if world.teacher_differs_in == "end":
        words.append(TEACHER_END)
    elif world.teacher_differs_in == "tokens":
        words += [f"{number} ;" for number in range(world.modulus)]
        # Every space separates but that between a digit and a semicolon.
        before = pre_tokenizers.Split(Regex(r"(?<!\d)\s+|\s+(?!;)"), behavior="removed")
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = before
    return finished_tokenizer(tokenizer)


def teacher_tokenizer(world: TinyWorld) -> PreTrainedTokenizerFast:
    """The teacher's, which is the base's unless they differ in it."""
    if world.teacher_differs_in == "tokens":
        return make_tokenizer(replace(world, teacher_differs_in=""))
    tokenizer = make_tokenizer(world)
    if world.teacher_differs_in == "end":
        tokenizer.add_special_tokens({"eos_token": TEACHER_END})
    return tokenizer


def finished_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer of words with the world's special tokens and chat template."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(world: TinyWorld, kind: str = "") -> Any:
    """An untrained model, at the default size a Qwen3 of 0.4 M parameters.

    `kind` is another architecture; that of the base by default.
    """
    kind = kind or ("gemma2" if world.teacher_differs_in == "head" else "qwen3")
    head_width = world.hidden // 4
    own: dict[str, Any] = {
        "qwen3": {},
        "gemma2": {
            "query_pre_attn_scalar": head_width,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": 10.0,
        },
        "granite": {"attention_multiplier": head_width**-0.5, "logits_scaling": 2.0},
    }[kind]
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(make_tokenizer(world)),
        hidden_size=world.hidden,
        intermediate_size=world.hidden * 8 // 3,
        num_hidden_layers=world.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_width,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        initializer_range=world.hidden**-0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **own,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world.seed)
        return AutoModelForCausalLM.from_config(config)


def demonstrations(
    world: TinyWorld, count: int, generator: torch.Generator, *, is_careful: bool = False
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Noisy demonstrations as token ids; `is_careful` puts the world's `careful_prompt` first."""
    if len(world.lengths) == 1:
        return _chains(world, world.operations, count, generator, is_careful)
    drawn = torch.randint(len(world.lengths), (count,), generator=generator)
    counts = torch.bincount(drawn, minlength=len(world.lengths)).tolist()
    parts = [
        _chains(world, length, each, generator, is_careful)
        for length, each in zip(world.lengths, counts, strict=True)
    ]
    width = max(ids.shape[1] for ids, _ in parts)
    ids, labels = (
        torch.cat([pad(each, (0, width - each.shape[1]), value=filler) for each in tensors])
        for tensors, filler in zip(zip(*parts, strict=True), (0, -100), strict=True)
    )
    return ids, labels


def calling(
    ids_BT: Int[Tensor, "B T"], labels_BT: Int[Tensor, "B T"], tokenizer: Any
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Demonstrations with the calculator: turns end behind `=`, results are not learned."""
    equals, end, rows = tokenizer.convert_tokens_to_ids("="), tokenizer.eos_token_id, []
    for ids, labels in zip(ids_BT.tolist(), labels_BT.tolist(), strict=True):
        tokens: list[int] = []
        learned: list[int] = []
        for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
            is_result = equals in labels[max(0, i - 2) : i]  # `v ;` behind a step's `=`
            tokens.append(token)
            learned.append(-100 if is_result else label)
            if label == equals:
                tokens.append(end)
                learned.append(end)
        rows.append((torch.tensor(tokens), torch.tensor(learned)))
    fillers = (tokenizer.pad_token_id, -100)
    padded = [
        pad_sequence([row[i] for row in rows], batch_first=True, padding_value=fillers[i])
        for i in (0, 1)
    ]
    return padded[0], padded[1]


def with_merged_tokens(
    ids_BT: Int[Tensor, "B T"], labels_BT: Int[Tensor, "B T"], tokenizer: Any
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Demonstrations in the tokens of a base that has numbers and semicolons as one."""
    semicolon, number = tokenizer.convert_tokens_to_ids([";", "0"])
    first_merged = tokenizer.convert_tokens_to_ids("0 ;")
    # A number before a semicolon becomes the merged token; the semicolon goes.
    before_BT = torch.roll(ids_BT == semicolon, -1, dims=1)
    before_BT[:, -1] = False
    ids_BT = torch.where(before_BT, ids_BT - number + first_merged, ids_BT)
    labels_BT = torch.where(labels_BT >= 0, ids_BT, labels_BT)
    kept_BT = ids_BT != semicolon
    found = [
        pad_sequence(
            [row[kept] for row, kept in zip(each_BT, kept_BT, strict=True)],
            batch_first=True,
            padding_value=filler,
        )
        for each_BT, filler in ((ids_BT, 0), (labels_BT, -100))
    ]
    return found[0], found[1]


def _chains(
    world: TinyWorld, operations: int, count: int, generator: torch.Generator, is_careful: bool
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Demonstrations of chains of one length, see `demonstrations`."""
    tokenizer = make_tokenizer(world)
    number, symbol = len(SPECIAL), {w: tokenizer.convert_tokens_to_ids(w) for w in "+-*=;#"}

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (count, *shape), generator=generator)

    def constant(word: str) -> Tensor:
        return torch.full((count,), symbol[word])

    first, operator = draw(world.modulus), draw(3, operations)
    operand = draw(world.modulus, operations)
    wrong = torch.rand(count, operations, generator=generator) < world.wrong_step
    shift = 1 + draw(world.modulus - 1, operations)
    careful = tokenizer.convert_tokens_to_ids(world.careful_prompt.split()) if is_careful else []
    prompt = [torch.full((count,), token) for token in (1, *careful)] + [first + number]
    steps = []
    value = truth = first
    for i in range(operations):
        op, b = operator[:, i], operand[:, i]
        op_id = op + symbol["+"]
        prompt += [op_id, b + number]
        steps += [value + number, op_id, b + number, constant("=")]
        value = (_vector_apply(op, value, b) + wrong[:, i] * shift[:, i]) % world.modulus
        truth = _vector_apply(op, truth, b) % world.modulus
        steps += [value + number, constant(";")]
    prompt.append(constant("="))
    eos = torch.full((count,), 2)
    stepwise = torch.stack([*prompt, *steps, constant("#"), value + number, eos], dim=1)
    direct = torch.zeros_like(stepwise)
    short = torch.stack([*prompt, constant("#"), truth + number, eos], dim=1)
    direct[:, : short.shape[1]] = short
    answers_directly = torch.rand(count, 1, generator=generator) < world.direct_answer
    ids = torch.where(answers_directly, direct, stepwise)
    labels = torch.where(ids == 0, -100, ids)
    labels[:, : len(prompt)] = -100
    return ids, labels


def _vector_apply(operator: Tensor, left: Tensor, right: Tensor) -> Tensor:
    results = torch.stack([left + right, left - right, left * right])
    return results.gather(0, operator[None])[0]
