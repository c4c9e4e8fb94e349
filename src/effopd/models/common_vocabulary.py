"""Classes of tokens in which the next token of two tokenizers can be compared.

Two tokenizers that write one text cut it differently: where one has `3 ;` as a token, the other
writes `3` first. A token of one therefore goes to the class of the token with which the other's
tokenizer begins its text, and a class is what either tokenizer tells of a text by its first token.
Tokens of equal bytes that nothing else begins with are a class of two. What has no counterpart, a
special token of one side or a row without a token, is in the tail.
"""

from collections.abc import Sequence

import torch

from effopd.models.alignment import Aligner, Alignment, by_bytes
from effopd.models.token_bytes import TokenBytes
from effopd.objectives.common_vocabulary import Classes, Places, Ragged

Cut = tuple[int, ...]


def vocabulary_classes(aligner: Aligner, student_rows: int, teacher_rows: int) -> Classes:
    """How the rows of two heads go together; reads every token of both once.

    Args:
        aligner: Tokenizers of student and teacher.
        student_rows: Rows of the student's head; those without a token are in the tail.
        teacher_rows: The same of the teacher.

    Returns:
        Classes on the CPU, for `common_divergence`.
    """
    ours, theirs = by_bytes(aligner.student), by_bytes(aligner.teacher)
    in_theirs = {text: cut_of(aligner.teacher, theirs, text) for text in ours}
    in_ours = {text: cut_of(aligner.student, ours, text) for text in theirs}
    pairs = [*aligner.special.items()]
    for token in aligner.student.tokenizer.get_vocab().values():
        if cut := in_theirs.get(aligner.student.of(token)):
            pairs.append((token, cut[0]))
    for token in aligner.teacher.tokenizer.get_vocab().values():
        if cut := in_ours.get(aligner.teacher.of(token)):
            pairs.append((cut[0], token))
    # Tokens that are paired, directly or through others, are one class; rows may be fewer.
    nodes = list(range(student_rows + teacher_rows))
    for one, other in pairs:
        if one < student_rows and other < teacher_rows:
            nodes[_root(nodes, one)] = _root(nodes, student_rows + other)
    roots = [_root(nodes, node) for node in nodes]
    both = set(roots[:student_rows]) & set(roots[student_rows:])
    number = {root: i for i, root in enumerate(sorted(both))}
    found = torch.tensor([number.get(root, len(number)) for root in roots])
    # Which tokens of the student begin others, in the teacher's tokens.
    token_of = {
        cut: ours[text]
        for text, cut in in_theirs.items()
        if cut and ours[text] < student_rows and max(cut) < teacher_rows
    }
    one_more, longer, next_tokens = ([list[int]() for _ in range(student_rows)] for _ in range(3))
    for cut, token in token_of.items():
        for end in range(1, len(cut)):
            if (beginning := token_of.get(cut[:end])) is None:
                continue
            if end == len(cut) - 1:
                one_more[beginning].append(token)
                next_tokens[beginning].append(cut[end])
            else:
                longer[beginning].append(token)
    lists = map(Ragged.of, (one_more, longer, next_tokens))
    return Classes(found[:student_rows], found[student_rows:], len(number) + 1, *lists)


def cut_of(tokens: TokenBytes, known: dict[bytes, int], text: bytes) -> Cut:
    """How a tokenizer writes a text that is not the first of an answer; empty where it cannot.

    `known` are its tokens by their bytes.
    """
    if text in known:
        return (known[text],)
    # Some put a space before the first word of a text, which is not theirs in the middle of one.
    for part in (text, text.removeprefix(b" ")):
        ids, pieces = tokens.cut(part)
        if b"".join(map(tokens.of, ids)) == text:
            return tuple(ids)
        named = [known.get(piece) for piece in pieces if piece]
        whole = tuple(token for token in named if token is not None)
        if len(whole) == len(named) and b"".join(map(tokens.of, whole)) == text:
            return whole
    return ()


def _root(nodes: list[int], node: int) -> int:
    while nodes[node] != node:
        nodes[node] = nodes[nodes[node]]
        node = nodes[node]
    return node


def compared_places(
    classes: Classes, answers: Sequence[tuple[Cut, Alignment, Alignment]]
) -> Places:
    """Where the next tokens of both can be compared in some answers, one after the other.

    An answer is its tokens, their alignment with the teacher's, and that with what the student's
    own tokenizer makes of their text. Left out are tokens before which the teacher has not read the
    same text, and those that the student's tokenizer cuts so but which begin the text with another
    class than the teacher's token: the cut depends on what stands behind.
    """
    ours, theirs = classes.student_V.tolist(), classes.teacher_W.tolist()
    members = torch.bincount(classes.student_V, minlength=classes.size).tolist()
    begins = classes.one_more.starts.diff().tolist()
    rows, read = list[tuple[int, int, int, int]](), list[int]()
    first = 0
    for ids, alignment, own in answers:
        usual = {i for s in own.spans if s.is_equal for i in range(s.student_start, s.student_stop)}
        for start, stop, begin, end, _ in (s for s in alignment.spans if s.is_scored):
            token, own_class = ids[start], ours[ids[start]]
            is_alike = own_class == theirs[alignment.teacher_ids[begin]]
            if not is_alike and start in usual:
                continue
            is_whole = is_alike and stop - start == 1 and own_class < classes.size - 1
            is_told = end < len(alignment.teacher_ids) or not begins[token]
            is_split = is_whole and is_told and members[own_class] > 1
            rows.append((first + start, len(read) + begin, token, end - begin if is_split else 0))
        first += len(ids)
        read += alignment.teacher_ids
    found_N4 = torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)
    student_N, teacher_N, written_N, path_N = found_N4.unbind(1)
    return Places(student_N, teacher_N, written_N, path_N, torch.tensor(read, dtype=torch.int64))
