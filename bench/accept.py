"""How often a search accepts a candidate that is no better, and how often one that is.

    python bench/accept.py [--json] [--point 0.25] [--trials 500] [--quick]

A search is the paper's: candidates at s = 3, 5, 7, 9, 11, up to the first rejection, each compared
with the best so far on 50 training prompts. A rule is a score and an accept rule. The tip is a
point on the segment from the tiny world's base (0) to its teacher (1). Four conditions:

- `noise`: the candidates are the tip itself with other random numbers, so all differences are
  noise. The worst case, and the one of the published rules, which sample every candidate anew.
- `neutral`: the tip plus (s - 1) random directions, each of the size of one Adam step at learning
  rate 1e-4 over the tensors the search moves (a sign step: every element 1e-4 on average), with
  common random numbers. Such a direction may help or harm a little; on average it does neither.
- `gain`: truly better candidates, the named share of the remaining way to the teacher at s = 3,
  twice as far at s = 5 and so on, with common random numbers.
- `gain, fresh numbers`: the same with random numbers of their own for every candidate.

Every model writes one answer a prompt on a pool of prompts (in `noise` six, one for each of tip and
candidates), scored once. Searches are bootstrapped: each draws its prompts from the pool without
replacement, and in `noise` it also shuffles the six answers of every prompt, which are
exchangeable. An answer depends on its own prompt and seed alone, so a search on drawn prompts with
stored scores is a search that samples. All rules see the same searches. What searches share is the
pool, and in `neutral` the directions: rates are good to about 3 points, in `neutral` to 5 and with
fresh numbers, where one lucky set of answers serves all searches, to 10.

`importance_kl` scores candidates on the tip's answers; candidates beyond its trust bounds count as
rejected. In `noise` it has nothing to score: equal weights have equal scores.

ratio: how many times less often than the paper's rule a search accepts what is no better (a rate
below one search counts as one search), and how many times more often what is.
"""

import argparse
import functools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effopd import AtLeast, PairedMargin, Search, Strict
from effopd.data.world import TinyWorld
from effopd.demo.cache import world_models
from effopd.demo.pretrain import world_writer
from effopd.evaluation.importance_kl import (
    ImportanceKLValidation,
    outside_trust_region,
    weighted_kl,
)
from effopd.evaluation.logprobs import completion_log_probs, completion_reverse_kl
from effopd.models.loading import ModelSettings, load_model, load_tokenizer
from effopd.models.policy import Policy
from effopd.rollouts.engine import derive_seed
from effopd.rollouts.rollout import Rollout
from effopd.search.line_search import LineSearch
from effopd.search.scales import LadderScales
from effopd.search.selection import select_parameters
from effopd.search.validation import AcceptRule, Score

SCALES = (3.0, 5.0, 7.0, 9.0, 11.0)
PROMPTS = 50
LEARNING_RATE = 1e-4
GAINS = (0.002, 0.02, 0.1)
PAPER = "accuracy >="
PEER_VERSION = "arXiv 2605.11739 v1"

Rows = list[tuple[float, ...]]
ScoreAt = Callable[[int], Score]
"""0 for the tip, k for the k-th candidate -> score."""


# Statistics ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Scores of single answers: [model][prompt], the tip first."""

    values: Sequence[Sequence[float]]
    exchangeable: bool = False

    @property
    def prompts(self) -> int:
        return len(self.values[0])

    def score_at(self, model: int, prompts: Sequence[int], rng: random.Random) -> Score:
        """The score on drawn prompts; `rng` decides which of exchangeable answers is whose."""
        if not self.exchangeable:
            return mean_score([self.values[model][i] for i in prompts])
        models = range(len(self.values))
        return mean_score([self.values[rng.sample(models, len(models))[model]][i] for i in prompts])


@dataclass(frozen=True)
class Cached:
    """Log-probabilities and divergences of all models on the tip's answers."""

    log_probs: Sequence[Rows]
    kl_nats: Sequence[Rows]
    settings: ImportanceKLValidation = ImportanceKLValidation()

    @property
    def prompts(self) -> int:
        return len(self.kl_nats[0])

    def score_at(self, model: int, prompts: Sequence[int], rng: random.Random) -> Score:
        """The score on drawn prompts, NaN beyond trust; nothing here is random."""
        ours, tip, kl = (
            [rows[i] for i in prompts]
            for rows in (self.log_probs[model], self.log_probs[0], self.kl_nats[model])
        )
        if model and outside_trust_region(ours, tip, self.settings):
            return Score(value=math.nan)
        nats = weighted_kl(ours, tip, kl, self.settings.reduce).per_answer_nats
        return mean_score([-value for value in nats])


def mean_score(values: Sequence[float]) -> Score:
    return Score(value=math.fsum(values) / len(values), per_prompt=tuple(values))


def search_scores(table: "Stored | Cached", rng: random.Random) -> ScoreAt:
    """The scores of one search on freshly drawn prompts, each computed once."""
    drawn, seed = rng.sample(range(table.prompts), PROMPTS), rng.random()

    @functools.cache
    def score_at(model: int) -> Score:
        return table.score_at(model, drawn, random.Random(seed))

    return score_at


def accepts(score_at: ScoreAt, rule: AcceptRule) -> bool:
    """Whether a search leaves the tip."""
    search = LineSearch(Search(scales=LadderScales(scales=SCALES), accept=rule, guard=None), 1)
    while (draw := search.ask()) is not None:
        search.tell(score_at(1 + SCALES.index(draw.scale) if draw.is_candidate else 0))
    return search.result.accepted_scale != 1.0


def acceptance_rates(
    tables: Sequence[Stored | Cached], rules: Mapping[str, AcceptRule], trials: int
) -> dict[str, float]:
    """Rule -> share of searches that accept a candidate.

    Each search is on one of the tables, and the same for all rules.
    """
    rng = random.Random(0)
    accepted = dict.fromkeys(rules, 0)
    for _ in range(trials):
        score_at = search_scores(rng.choice(tables), rng)
        for name, rule in rules.items():
            accepted[name] += accepts(score_at, rule)
    return {name: count / trials for name, count in accepted.items()}


# Answers and their scores -------------------------------------------------------------------------


@dataclass(frozen=True)
class Tables:
    """One direction's scores by each measure."""

    accuracy: Stored
    dense: Stored
    cached: Cached | None


class Bench:
    """The tiny world's student, moved about between base and teacher."""

    def __init__(self, point: float, report: Callable[[str], None]) -> None:
        self.world = TinyWorld()
        models = world_models(self.world, report)
        self.student, self.teacher = (_policy(str(path)) for path in (models.base, models.teacher))
        self.problems = list(self.world.load().train)
        goal = dict(self.teacher.model.named_parameters())
        self._live = dict(self.student.model.named_parameters())
        with torch.no_grad():
            self.tip = {n: torch.lerp(p, goal[n], point) for n, p in self._live.items()}
            self.to_teacher = {n: goal[n] - tip for n, tip in self.tip.items()}

    def random_direction(self, seed: int) -> dict[str, Tensor]:
        """Normal numbers of the size of one Adam step on the tensors that a search moves."""
        rng = torch.Generator().manual_seed(seed)
        moved = select_parameters(self.student.model, "attention_mlp")
        return {
            name: LEARNING_RATE * torch.randn(tip.shape, generator=rng)
            for name, tip in self.tip.items()
            if name in moved
        }

    @torch.no_grad()
    def move_(self, direction: dict[str, Tensor], length: float) -> None:
        for name, live in self._live.items():
            live.copy_(self.tip[name])
            if name in direction:
                live.add_(direction[name], alpha=length)

    def answers(self, prompts: int, numbers: str) -> list[Rollout]:
        seeds = [derive_seed("accept", numbers, i) for i in range(prompts)]
        return world_writer(self.world, self.student.model).answer(self.problems[:prompts], seeds)

    def rewards(self, rollouts: Sequence[Rollout]) -> list[float]:
        return self.world.verifier.rewards([rollout.answer for rollout in rollouts])

    def kl(self, rollouts: Sequence[Rollout]) -> Rows:
        samples = [r.sample for r in rollouts]
        return completion_reverse_kl(self.student, self.teacher, samples)

    def log_probs(self, rollouts: Sequence[Rollout]) -> Rows:
        return completion_log_probs(self.student, [r.sample for r in rollouts])

    def noise(self, prompts: int) -> Tables:
        """The tip six times over, with other random numbers."""
        self.move_({}, 0.0)
        answers = [self.answers(prompts, f"noise-{k}") for k in range(1 + len(SCALES))]
        rewards = [self.rewards(each) for each in answers]
        dense = [per_token(self.kl(each)) for each in answers]
        return Tables(Stored(rewards, True), Stored(dense, True), None)

    def along(
        self, direction: dict[str, Tensor], lengths: Sequence[float], prompts: int, *, fresh: bool
    ) -> Tables:
        """The tip, and candidates at `lengths` along a direction."""
        tip_answers: list[Rollout] = []
        rewards, dense, log_probs, kl = [], [], [], []
        for k, length in enumerate((0.0, *lengths)):
            self.move_(direction, length)
            answers = self.answers(prompts, f"{k}" if fresh else "common")
            tip_answers = tip_answers or answers
            rewards.append(self.rewards(answers))
            dense.append(per_token(self.kl(answers)))
            if not fresh:
                log_probs.append(self.log_probs(tip_answers))
                kl.append(self.kl(tip_answers))
        return Tables(Stored(rewards), Stored(dense), None if fresh else Cached(log_probs, kl))


def per_token(kl_nats: Rows) -> list[float]:
    """Minus the mean over the tokens of each answer."""
    return [-math.fsum(row) / len(row) for row in kl_nats]


def _policy(path: str) -> Policy:
    settings = ModelSettings(path=path)
    return Policy(load_model(settings, "cpu"), load_tokenizer(settings))


# Conditions and rules -----------------------------------------------------------------------------


def conditions(bench: Bench, quick: bool) -> Iterator[tuple[str, list[Tables]]]:
    """Name and the tables of each condition."""
    prompts, directions = (150, 3) if quick else (600, 16)
    yield "noise", [bench.noise(prompts)]
    steps = [scale - 1 for scale in SCALES]
    neutral = [bench.random_direction(seed) for seed in range(directions)]
    yield "neutral", [bench.along(each, steps, min(prompts, 300), fresh=False) for each in neutral]
    for gain in GAINS:
        lengths = [gain * (1 + k) for k in range(len(SCALES))]
        for fresh in (False, True):
            name = f"gain {gain:.1%}" + (", fresh numbers" if fresh else "")
            yield name, [bench.along(bench.to_teacher, lengths, prompts, fresh=fresh)]


def paired(measure: str) -> dict[str, AcceptRule]:
    """Accept rules for dense scores, by name."""
    margins = {f"{measure} z={z:g}": PairedMargin(z=z) for z in (1.0, 1.28, 1.65, 2.0)}
    return {f"{measure} >": Strict(), **margins}


RULES: dict[str, dict[str, AcceptRule]] = {
    "accuracy": {PAPER: AtLeast(), "accuracy >": Strict()},
    "dense": paired("dense"),
    "cached": paired("cached"),
}
"""Measure -> its rules by name."""


def rates(tables: Sequence[Tables], trials: int) -> dict[str, float]:
    """Rule -> rate; without the measures that do not apply."""
    found: dict[str, float] = {}
    for measure, rules in RULES.items():
        chosen = [getattr(each, measure) for each in tables]
        if None not in chosen:
            found |= acceptance_rates(chosen, rules, trials)
    return found


def rows(
    condition: str, point: float, found: dict[str, float], trials: int
) -> Iterator[dict[str, Any]]:
    """The rates of one condition, compared with the paper's rule."""
    is_gain, least = condition.startswith("gain"), 1 / trials
    paper = found[PAPER]
    for rule, rate in found.items():
        ours, peer = max(rate, least), max(paper, least)
        yield {
            "name": f"accept-{condition}",
            "setting": f"point {point:g}, {rule}",
            "ours": round(rate, 4),
            "peer": round(paper, 4),
            "peer_name": "the paper's rule",
            "peer_version": PEER_VERSION,
            "unit": "share of searches",
            "ratio": round(ours / peer if is_gain else peer / ours, 2),
        }


def print_table(point: float, found: dict[str, dict[str, float]]) -> None:
    """One line a rule, one column a condition; - where a score does not apply."""
    print(f"\npoint {point:g}: share of searches that accept a candidate")
    print(" ".join([f"{'rule':24}", *(f"{name:>24}" for name in found)]))
    names = [name for rules in RULES.values() for name in rules]
    for name in names:
        cells = [column.get(name) for column in found.values()]
        line = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
        print(" ".join([f"{name:24}", *(f"{cell:>24}" for cell in line)]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--point", type=float, action="append", help="default: 0.25 and 0.5")
    parser.add_argument("--trials", type=int, default=500, help="searches (default 500)")
    parser.add_argument("--quick", action="store_true", help="few prompts and directions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for point in options.point or [0.25, 0.5]:
        bench = Bench(point, lambda line: None)
        found = {}
        for condition, tables in conditions(bench, options.quick):
            found[condition] = rates(tables, options.trials)
            if options.json:
                for row in rows(condition, point, found[condition], options.trials):
                    print(json.dumps(row), flush=True)
        if not options.json:
            print_table(point, found)


if __name__ == "__main__":
    main()
