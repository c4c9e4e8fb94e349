"""Run directories with plausible curves, written the way training writes them."""

import math
import random

import pytest

from effopd.records import JsonlWriter, load_run, write_json_atomic, write_text_atomic

BASE, TEACHER, STEPS = 0.082, 0.938, 48
RATE = {"opd": 0.055, "paper": 0.16, "effopd": 0.40}
JUMPS = {
    "opd": {},
    "paper": {8: 5.0, 16: 3.0, 32: 3.0},
    "effopd": {4: 8.0, 8: 4.0, 16: 2.0},
}
SCALES = {"paper": (3.0, 5.0, 7.0, 9.0, 11.0), "effopd": (2.0, 4.0, 8.0, 16.0)}
SEARCHED = {"paper": (8, 16, 24, 32, 40), "effopd": (4, 8, 16, 32)}
WORDS = "Let us add 47 and 58 . First 7 + 8 = 15 , carry 1 ; then 4 + 5 + 1 = 10 . \n The answer is 105 ."


def write_rows(path, rows):
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)


def accuracy_at(method, step, rng):
    gap = math.exp(-RATE[method] * step) * (1 if step < 4 else 0.92)
    noise = 0 if step == 0 else rng.gauss(0, 0.008)
    return min(1.0, max(0.0, TEACHER * 0.995 - (TEACHER * 0.995 - BASE) * gap + noise))


def search_rows(method, rng):
    for step in SEARCHED.get(method, ()):
        score = -0.5 * math.exp(-step / 12)
        best = JUMPS[method].get(step, 0.5)
        common = {"step": step, "tokens": 8192, "seconds": 1.31}
        yield {
            **common, "trial": 0, "kind": "incumbent", "scale": 1.0, "score": score,
            "score_se": 0.004, "accepted": None, "reason": "the tip",
        }  # fmt: skip
        for trial, scale in enumerate(SCALES[method], start=1):
            gain = 0.12 * math.exp(-step / 14) - 0.05 * abs(math.log2(scale / best)) ** 1.5
            broken = scale > 6 * max(best, 1)
            yield {
                **common, "trial": trial, "kind": "candidate", "scale": scale,
                "score": None if broken else score + gain + rng.gauss(0, 0.004),
                "score_se": None if broken else 0.005, "accepted": scale == best,
                "reason": "not finite" if broken else "best, above 2 standard errors"
                if scale == best else "below the best",
            }  # fmt: skip
        if best > 1:
            yield {
                **common, "trial": 9, "kind": "retest-candidate", "scale": best,
                "score": score + 0.03, "score_se": 0.003, "accepted": None, "reason": "fresh prompts",
            }  # fmt: skip


def rollout_rows(method, rng):
    tokens = [f"{word} " for word in WORDS.split(" ")]
    for step in (0, 16, 32, 48):
        spread = 1.4 * math.exp(-RATE[method] * step) + 0.01
        for index in range(8):
            kept = tokens[: rng.randint(18, len(tokens))]
            yield {
                "step": step, "problem_id": f"addition/{index:03d}", "prompt": "What is 47 + 58?",
                "completion": "".join(kept), "tokens": kept,
                "reward": float(len(kept) == len(tokens) or rng.random() < step / 50),
                "finish_reason": "stop" if len(kept) > 25 else "length",
                "kl_nats": [rng.expovariate(1 / spread) * (rng.random() < 0.35) for _ in kept],
            }  # fmt: skip


def write_sample_run(directory, method, *, seed=0, **info):
    """Write a whole run directory of 48 steps."""
    rng = random.Random(f"{method} {seed}")
    found = list(search_rows(method, rng))
    evals = [
        {
            "step": 0, "model": "teacher", "accuracy": TEACHER, "accuracy_se": 0.0107,
            "reverse_kl": None, "n": 512, "sampled_tokens": 0, "teacher_tokens": 0,
        }
    ]  # fmt: skip
    metrics, timing, elapsed, tokens = [], [], 0.0, 0
    for step in range(STEPS + 1):
        trials = [row for row in found if row["step"] == step]
        tokens += (step > 0) * 16384 + sum(row["tokens"] for row in trials)
        elapsed += (step > 0) * 2.6 + sum(row["seconds"] for row in trials)
        if step % 2 == 0:
            accuracy = accuracy_at(method, step, rng)
            evals.append({
                "step": step, "model": "student", "accuracy": accuracy,
                "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / 512),
                "reverse_kl": 0.9 * math.exp(-RATE[method] * step * 0.9) + 0.011 * rng.uniform(0.9, 1.1),
                "mean_length": 30.0, "truncated_share": 0.02, "n": 512, "sampled_tokens": tokens,
                "teacher_tokens": tokens,
            })  # fmt: skip
        if step:
            metrics.append({"step": step, "reverse_kl": 0.1, "sampled_tokens": tokens})
            timing.append({"step": step, "elapsed_s": elapsed, "search_s": 0.0})
    versions = {"torch": "2.13.0", "transformers": "5.23.0"}
    known = {"label": method, "method": method, "preset": "tiny", "lr": 1e-4, "seed": seed}
    write_json_atomic(directory / "run.json", {"schema": 1, **known, "versions": versions, **info})
    write_text_atomic(
        directory / "config.toml",
        f'method = "{method}"\nseed = {seed}\n\n[optim]\nlr = 1e-4\nbetas = [0.9, 0.95]\n'
        "weight_decay = 0.0\n\n[rollout]\nbatch = 64\nmax_new_tokens = 64\ntemperature = 1.0\n",
    )
    write_rows(directory / "metrics.jsonl", metrics)
    write_rows(directory / "timing.jsonl", timing)
    write_rows(directory / "evals.jsonl", evals)
    write_rows(directory / "rollouts.jsonl", rollout_rows(method, rng))
    if found:
        write_rows(directory / "search.jsonl", found)
    return load_run(directory)


@pytest.fixture(scope="session")
def sample_runs(tmp_path_factory):
    """Three runs: plain distillation, the paper's search, and ours."""
    root = tmp_path_factory.mktemp("runs")
    return [write_sample_run(root / method, method) for method in ("opd", "paper", "effopd")]
