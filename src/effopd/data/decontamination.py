"""Training problems that overlap with benchmarks, by sequences of words."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

from effopd.data.fields import conversation_at
from effopd.data.rows import Row, file_rows, local_files
from effopd.errors import ConfigError

_WORD = re.compile(r"[^\W_]+")
_QUESTION_FIELDS = ("problem", "question", "prompt", "question_content")


def words(text: str) -> list[str]:
    r"""Runs of letters and digits, compatibility forms and case undone.

    Punctuation, markup and layout do not count: `\frac{1}{2}` is `frac 1 2`.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class Overlap:
    """The texts that share `ngram` consecutive words with one of a collection.

    A text of the collection with fewer words than that is shared by the texts that have exactly
    its words.
    """

    def __init__(self, texts: Iterable[str], ngram: int) -> None:
        """Remembers the sequences of the collection.

        Args:
            texts: The collection.
            ngram: Words in a row that count as overlap.
        """
        self._ngram = ngram
        self._sequences: set[str] = set()
        self._short: set[str] = set()
        for text in texts:
            found = words(text)
            if len(found) < ngram:
                self._short.add(" ".join(found))
            else:
                self._sequences.update(_sequences(found, ngram))

    def __contains__(self, text: str) -> bool:
        """Whether a text overlaps with one of the collection."""
        found = words(text)
        if len(found) < self._ngram:
            return " ".join(found) in self._short
        return any(each in self._sequences for each in _sequences(found, self._ngram))


def benchmark_questions(pattern: str) -> Iterator[str]:
    """Questions of benchmark files, from the first of the usual fields that a row has.

    Args:
        pattern: Path of a `.jsonl` or `.parquet` file, or a pattern.

    Yields:
        The questions.

    Raises:
        ConfigError: A file or a question cannot be read.
    """
    for path in local_files(pattern):
        for row in file_rows(path):
            try:
                yield conversation_at(row.values, _question_field(row)).asked
            except ConfigError as error:
                raise ConfigError(f"{row.place}: {error}") from None


def _question_field(row: Row) -> str:
    for field in _QUESTION_FIELDS:
        if field in row.values:
            return field
    raise ConfigError(f"a benchmark needs one of the fields {', '.join(_QUESTION_FIELDS)}")


def _sequences(found: list[str], ngram: int) -> Iterator[str]:
    return (" ".join(found[i : i + ngram]) for i in range(len(found) - ngram + 1))
