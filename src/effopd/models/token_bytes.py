"""The bytes that tokens write, and where tokens end in a text that a tokenizer normalises.

Known are byte-level BPE, SentencePiece in Hugging Face's form, and whole words between spaces.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from effopd.errors import ParameterMismatchError

_PROBE = "Is 12 + 34 = 46?\n\tYes,  \u00e9t\u00e9 \u4f60\u597d \U0001f600."
_METASPACE = "\u2581"
_FORMS: tuple[Literal["NFC", "NFKC"], ...] = ("NFC", "NFKC")
"""Normal forms that tokenizers bring text into (Qwen: NFC)."""


class TokenBytes:
    """The bytes that each token of a tokenizer writes.

    Known are byte-level BPE, SentencePiece in Hugging Face's form (metaspace, byte fallback), and
    whole words between spaces. Special tokens write nothing.

    Raises:
        ParameterMismatchError: The tokenizer is of another kind, or has no Rust backend.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._special = {*tokenizer.all_special_ids}
        added = tokenizer.added_tokens_decoder.items()
        self._special |= {i for i, token in added if token.special}
        self._added = {i: str(token.content) for i, token in added}
        # The decoder says how tokens become text.
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = backend.decoder if backend is not None else None
        kinds = [] if decoder is None else list(_flat(json.loads(decoder.__getstate__())))
        names = {each["type"] for each in kinds}
        self._is_byte_level = "ByteLevel" in names
        self._is_words = backend is not None and not names
        self._falls_back = "ByteFallback" in names
        self._strips_first_space = any(
            (each["type"] == "Strip" and each.get("start"))
            or (each["type"] == "Metaspace" and each.get("prepend_scheme") != "never")
            for each in kinds
        )
        is_piece = names <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
        if backend is None or not (self._is_byte_level or is_piece):
            raise self._unknown(f"its decoder is {sorted(names) or None}")
        self._known: dict[int, bytes] = {}
        # Whatever the decoder says, a text must come back.
        ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False, skip_special_tokens=True)
        if b"".join(self.pieces(ids)).decode("utf-8", "replace") != text:
            raise self._unknown("the bytes of its tokens do not add up to the text that it decodes")

    def _unknown(self, why: str) -> ParameterMismatchError:
        return ParameterMismatchError(
            f"cannot tell the bytes of the tokens of {self.tokenizer.name_or_path!r}: {why}. Known "
            "are byte-level BPE, SentencePiece with metaspace, and words between spaces: choose "
            "such a teacher, or one of the student's family"
        )

    def is_special(self, token_id: int | None) -> bool:
        """Whether the token stands for no text."""
        return token_id in self._special

    def of(self, token_id: int) -> bytes:
        """The bytes of a token that is not the first of a text."""
        if token_id not in self._known:
            self._known[token_id] = self._read(token_id)
        return self._known[token_id]

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token of a text; the first is without a space that decoders drop."""
        found = [self.of(each) for each in ids]
        first = next((i for i, each in enumerate(ids) if each not in self._special), None)
        if first is not None and (self._is_words or self._strips_first_space):
            found[first] = found[first].removeprefix(b" ")
        return found

    def cut(self, text: bytes) -> tuple[list[int], list[bytes]]:
        """The tokenizer's tokens of a text and their bytes; invalid UTF-8 byte by byte."""
        cut, pieces = list[int](), list[bytes]()
        for part in readable(text):
            if isinstance(part, str):
                found = self.tokenizer(part, add_special_tokens=False, split_special_tokens=True)
                written = self.pieces(found["input_ids"])
                # A tokenizer that puts a space before every text has added one.
                if b"".join(written) == b" " + part.encode():
                    i = next(i for i, piece in enumerate(written) if piece)
                    written[i] = written[i][1:]
                cut += found["input_ids"]
            else:
                single = self._byte_tokens.get(part)
                written = [] if single is None else [part]
                cut += [] if single is None else [single]
            pieces += written
        return cut, pieces

    @cached_property
    def _byte_tokens(self) -> dict[bytes, int]:
        """The tokens of a single byte."""
        ids = self.tokenizer.get_vocab().values()
        return {text: i for i in ids if len(text := self.of(i)) == 1}

    def is_fallback(self, token_id: int) -> bool:
        """Whether the token is a byte that SentencePiece writes for want of a piece."""
        text = self.tokenizer.convert_ids_to_tokens(token_id)
        return self._falls_back and _fallback_byte(text) is not None

    def _read(self, token_id: int) -> bytes:
        if token_id in self._special:
            return b""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""  # a padding row
        if self._is_byte_level:
            return b"".join(_BYTE_OF.get(sign) or sign.encode() for sign in token)
        if self._is_words:
            return b" " + token.encode()
        byte = _fallback_byte(token) if self._falls_back else None
        return token.replace(_METASPACE, " ").encode() if byte is None else byte


def _flat(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A decoder without sequences around its parts."""
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _flat(part)


def _fallback_byte(token: str) -> bytes | None:
    """The byte of `<0x0A>`; None for another token."""
    is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return bytes([int(token[3:5], 16)]) if is_byte else None


def _byte_signs() -> dict[str, bytes]:
    """Sign -> byte of byte-level BPE (GPT-2): printable bytes stand for themselves."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    signs = {chr(byte): bytes([byte]) for byte in own}
    return signs | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


_BYTE_OF = _byte_signs()


# Texts --------------------------------------------------------------------------------------------


def token_ends(pieces: Sequence[bytes], written: bytes) -> list[int | None]:
    """Where each token ends in `written`, the text of `pieces` as another tokenizer gives it back.

    None inside a word that it has normalised; where no normal form explains its bytes, inside
    everything between what both texts begin and end with.
    """
    text, ends = b"".join(pieces), list(accumulate(map(len, pieces)))
    if text == written:
        return list(ends)
    for form in _FORMS:
        places, normal, at = {0: 0}, b"", 0
        for word in _words(text):
            changed = b"".join(
                unicodedata.normalize(form, part).encode() if isinstance(part, str) else part
                for part in readable(word)
            )
            if changed == word:
                places |= {at + i: len(normal) + i for i in range(len(word))}
            at, normal = at + len(word), normal + changed
            places[at] = len(normal)
        if normal == written:
            return [places.get(end) for end in ends]
    shorter = min(len(text), len(written))
    head = next((i for i in range(shorter) if text[i] != written[i]), shorter)
    most = shorter - head
    tail = next((i for i in range(most) if text[-1 - i] != written[-1 - i]), most)
    behind, shift = len(text) - tail, len(written) - len(text)
    return [end if end <= head else end + shift if end >= behind else None for end in ends]


def _words(text: bytes) -> Iterator[bytes]:
    """A text cut before every space and line break, behind which nothing is composed."""
    start = 0
    for i, byte in enumerate(text):
        if byte in b" \n\t" and i > start:
            yield text[start:i]
            start = i
    if start < len(text):
        yield text[start:]


def readable(text: bytes) -> Iterator[str | bytes]:
    """The longest parts that are valid UTF-8, as text, and every other byte alone."""
    while text:
        try:
            yield text.decode()
        except UnicodeDecodeError as error:
            if error.start:
                yield text[: error.start].decode()
            yield from (text[i : i + 1] for i in range(error.start, error.end))
            text = text[error.end :]
        else:
            return
