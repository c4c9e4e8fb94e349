"""Small tokenizers of every known kind, trained on a few sentences."""

import json
from typing import Any, Literal

from tests.support.chat import CHATML
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = (
    "It is 12 + 34 = 46, so the answer is 46.",
    "the sum of the two numbers is 1234; the other one is 5678",
    "été naïve \u4f60\u597d\u4e16\u754c \U0001f600\U0001f680 ok",
    "def f(x):\n    return x * 2\n\n",
)
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(
    size: int,
    *,
    special: tuple[str, ...] = CHAT,
    eos: str = "<|im_end|>",
    form: Literal["NFC", "NFKC"] | None = None,
    digits: int = 3,
    prefix_space: bool = False,
    texts: tuple[str, ...] = SENTENCES,
    template: str | None = CHATML,
) -> Any:
    """Byte-level BPE of `size` tokens besides the special ones, numbers cut into `digits`."""
    inner = Tokenizer(models.BPE())
    if form is not None:
        inner.normalizer = getattr(normalizers, form)()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"\d{{1,{digits}}}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=True),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts * 3,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    return _chat(inner, special, eos, template)


def pieces(
    size: int,
    *,
    special: tuple[str, ...] = ("<unk>", "<s>", "</s>"),
    kind: Literal["bpe", "unigram"] = "bpe",
    legacy: bool = False,
) -> Any:
    """SentencePiece in Hugging Face's form; `legacy`: a normaliser puts a space before a text."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "bpe":
        inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer: Any = trainers.BpeTrainer(
            vocab_size=256 + size, special_tokens=["<unk>"], show_progress=False
        )
    else:
        inner = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=size, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    inner.train_from_iterator(SENTENCES * 3, trainer)
    # The bytes stand before the pieces, as SentencePiece has them.
    state: Any = json.loads(inner.to_str())
    if kind == "bpe":
        order = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
        names = ["<unk>", *fallback, *(t for t in order if t != "<unk>")]
        merges = [tuple(each) for each in state["model"]["merges"]]
        inner = Tokenizer(
            models.BPE(
                {t: i for i, t in enumerate(names)}, merges,
                unk_token="<unk>", byte_fallback=True, fuse_unk=True,
            )
        )  # fmt: skip
    else:
        rows = [tuple(each) for each in state["model"]["vocab"] if each[0] != "<unk>"]
        inner = Tokenizer(
            models.Unigram(
                [("<unk>", 0.0), *((t, -20.0) for t in fallback), *rows], 0, byte_fallback=True
            )
        )
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if legacy:
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return _chat(inner, special, "</s>", None)


def words(*names: str) -> Any:
    """Whole words between spaces; those that are not named are `<pad>`."""
    listed = ("<pad>", "<eos>", *names)
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(listed)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def _chat(inner: Tokenizer, special: tuple[str, ...], eos: str, template: str | None) -> Any:
    found = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, pad_token=special[0])
    found.add_special_tokens({"additional_special_tokens": list(special)})
    found.chat_template = template
    return found
