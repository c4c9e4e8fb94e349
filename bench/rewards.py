"""Verdicts on mathematical answers per second, on one core, against math-verify in the process.

    python bench/rewards.py [--json] [--data ../shared/data] [--answers 500] [--repeats 3]
    python bench/rewards.py --pairs 10 [--json]

Five sets of completions, each judged against its reference:

- `numbers`: the answers of GSM8K, right ones with a currency sign and decimals, wrong ones off by
  one digit. Text and exact arithmetic decide them.
- `same`: the reference answers of MATH-500 as its reference solutions box them. Text decides.
- `rewritten`: the reference answers of MATH-500 that are formulas, each as 0 plus itself, so that
  algebra has to decide.
- `samples`: eight answers in a row to each of those formulas, 0 to 7 plus itself.
- `other`: the same formulas against the answer of the next problem, mostly wrong.

Ours is a warm `MathVerifier` with one worker process, the parent and the worker pinned to one core;
the peer is `verify(parse(reference), parse(completion))` of math-verify in this process, warm too,
with its default timeouts, which work in a main thread alone. Both judge all answers of a set in one
call; the best of the repeats. `correct` and `peer_correct` count what each accepts, `unjudged` what
timed out or could not be read. Ours compares equal answers once, so a set has no two equal pairs.

The lines `start` and `hang` are seconds: until the first verdict of a new worker, and from a
hanging answer at a wall of one second to the next verdict.

ratio: how many times more verdicts a second than the peer.

`--pairs` measures accuracy instead, on the hard pairs of `tests/support/answer_pairs.py`, each
pattern so many times with other numbers: a line for each group with the right answers, how many of
them each side accepts, the wrong answers, and how many of those.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from math_verify import parse, verify

from effopd.data.problem import Answer, Problem
from effopd.rewards.math import MathVerifier
from effopd.rewards.mathematics.decide import decide
from effopd.rewards.workers import WorkerSettings

DATA = Path(__file__).parents[2] / "shared" / "data"
HANGING = r"\sin(\pi^{10^{8}})"
SHOWN = ("setting", "answers", "ours", "peer", "ratio", "correct", "peer_correct", "unjudged")

ACCURACY = ("setting", "right", "right_ours", "right_peer", "wrong", "wrong_ours", "wrong_peer")

Answers = list[Answer]


def read(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def answer_sets(data: Path, size: int) -> dict[str, Answers]:
    """Name of a set -> its completions."""
    numbers = [str(row["answer"]) for row in read(data / "gsm8k.jsonl")]
    math = read(data / "math.jsonl")
    formulas = [str(row["answer"]) for row in math]
    formulas = [text for text in formulas if isinstance(decide(text, f"0+{text}"), tuple)]
    written = [(n, rf"\${n}.00" if i % 2 else f"{n}1") for i, n in enumerate(numbers)]
    solved = [answer_to(str(row["answer"]), str(row["solution"])) for row in math]
    shifted = list(zip(formulas, formulas[1:] + formulas[:1], strict=True))
    return {
        "numbers": unique([answer_to(n, boxed(text)) for n, text in written])[:size],
        "same": solved[:size],
        "rewritten": unique([answer_to(f, boxed(f"0+{f}")) for f in formulas])[:size],
        "samples": [answer_to(f, boxed(f"{k}+{f}")) for f in formulas for k in range(8)][:size],
        "other": unique([answer_to(f, boxed(text)) for f, text in shifted])[:size],
    }


def answer_to(reference: str, completion: str) -> Answer:
    return Answer(problem=Problem(id="p", prompt="", answer=reference), completion=completion)


def boxed(answer: str) -> str:
    return rf"The answer is \boxed{{{answer}}}."


def unique(answers: Answers) -> Answers:
    return list({(each.problem.answer, each.completion): each for each in answers}.values())


def peer_verdicts(answers: Answers) -> list[bool]:
    return [verify(parse(boxed(each.problem.answer)), parse(each.completion)) for each in answers]


def best_s(judge: Callable[[], Sequence[object]], repeats: int) -> float:
    """Seconds of the fastest repeat."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        judge()
        times.append(time.perf_counter() - began)
    return min(times)


def rows(data: Path, size: int, repeats: int) -> Iterator[dict[str, Any]]:
    with MathVerifier(WorkerSettings(processes=1, wall_s=5.0)) as verifier:
        for name, answers in answer_sets(data, size).items():
            yield row(verifier, name, answers, repeats)
    yield from waits()


def row(verifier: MathVerifier, name: str, answers: Answers, repeats: int) -> dict[str, Any]:
    verdicts = verifier.verdicts(answers)  # both are warm after their first pass
    accepted = peer_verdicts(answers)
    ours = len(answers) / best_s(lambda: verifier.verdicts(answers), repeats)
    peer = len(answers) / best_s(lambda: peer_verdicts(answers), repeats)
    return {
        "name": "rewards",
        "setting": name,
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "peer_name": "math-verify",
        "peer_version": version("math-verify"),
        "unit": "verdicts/s",
        "ratio": round(ours / peer, 2),
        "answers": len(answers),
        "correct": verdicts.count("correct"),
        "peer_correct": sum(accepted),
        "unjudged": sum(verdicts.count(kind) for kind in ("timeout", "memory", "error")),
    }


def waits() -> Iterator[dict[str, Any]]:
    """How long a new worker takes, and a hanging answer."""
    algebra = [answer_to(r"\sqrt{8}", boxed(r"2\sqrt{2}"))]
    with MathVerifier(WorkerSettings(processes=1, wall_s=1.0)) as verifier:
        start = best_s(lambda: verifier.verdicts(algebra), 1)
        hanging = [answer_to("7", boxed(HANGING))]
        hang = best_s(lambda: verifier.verdicts(hanging) + verifier.verdicts(algebra), 1)
        assert verifier.counts["timeout"] == 1
        assert verifier.counts["correct"] == 2
    for name, seconds in (("start", start), ("hang", hang)):
        nothing = dict.fromkeys(("peer", "peer_name", "peer_version", "ratio"))
        yield {"name": "rewards", "setting": name, "ours": round(seconds, 2), "unit": "s"} | nothing


def accuracies(copies: int) -> Iterator[dict[str, Any]]:
    """A line for each group of pairs, and one for all of them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.support.answer_pairs import pairs

    hard = pairs(copies)
    answers = [answer_to(pair.reference, boxed(pair.answer)) for pair in hard]
    with MathVerifier(WorkerSettings(processes=1, wall_s=5.0)) as verifier:
        ours = [verdict == "correct" for verdict in verifier.verdicts(answers)]
    judged = list(zip(hard, ours, peer_verdicts(answers), strict=True))
    for group in [*dict.fromkeys(pair.group for pair in hard), "all"]:
        chosen = [row for row in judged if group in {row[0].group, "all"}]
        right = [row for row in chosen if row[0].is_right]
        wrong = [row for row in chosen if not row[0].is_right]
        yield {
            "name": "rewards",
            "setting": group,
            "peer_name": "math-verify",
            "peer_version": version("math-verify"),
            "right": len(right),
            "right_ours": sum(ours for _, ours, _ in right),
            "right_peer": sum(peer for _, _, peer in right),
            "wrong": len(wrong),
            "wrong_ours": sum(ours for _, ours, _ in wrong),
            "wrong_peer": sum(peer for _, _, peer in wrong),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with math and gsm8k .jsonl")
    parser.add_argument("--answers", type=int, default=500, help="completions in a set, at most")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=0, help="accuracy, so many copies a pattern")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # workers inherit it
    shown, found = SHOWN, rows(options.data, options.answers, options.repeats)
    if options.pairs:
        shown, found = ACCURACY, accuracies(options.pairs)
    if not options.json:
        print("  ".join(f"{column:>12}" for column in shown))
    for each in found:
        line = "  ".join(f"{each.get(column, '')!s:>12}" for column in shown)
        print(json.dumps(each) if options.json else line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
