"""How much of PPO's returns a critic can know in the tiny world, and how much ours knows.

    python bench/critic.py [--json] [--steps 20] [--problems 2048]

The oracle knows before every token whether all tokens so far are those of the right answer, and how
many there are; its value is the mean reward of that state. Nothing that sees the tokens alone can
explain more of the returns (gamma = lambda = 1), up to the overfitting of some sixty means. What is
left is which of the answers that are right so far will go wrong later. Ours is the critic's
explained variance in the last quarter of the steps. About three minutes of one core.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from effopd.data.problem import Problem
from effopd.data.world import apply
from effopd.evaluation.statistics import mean
from effopd.models.loading import ModelSettings
from effopd.objectives.advantages import explained_variance
from effopd.records import list_checkpoints, read_jsonl
from effopd.training.build import build_parts
from effopd.training.config import Config, make_config
from effopd.training.run import train


def settings(steps: int) -> dict[str, Any]:
    """PPO as `recipes/tiny-rl.toml` tells it to learn."""
    return {
        "method": "ppo",
        "optimizer": {"lr": 2e-4},
        "train": {"steps": steps, "updates_per_step": 4},
        "objective": {"critic_lr": 3e-3, "gae_lambda": 1.0, "value_clip": 10.0},
        "evaluation": {"every": 0, "problems": 0, "teacher": False},
        "checkpoint": {"every": steps},
    }


def right_tokens(problem: Problem, modulus: int) -> list[str]:
    """The one answer with every step written and right."""
    value, *rest = problem.prompt.removesuffix("=").split()
    tokens = []
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        result = str(apply(operator, int(value), int(operand)) % modulus)
        tokens += [value, operator, operand, "=", result, ";"]
        value = result
    return [*tokens, "#", value, "<eos>"]


def oracle(config: Config, student: Path | None, problems: int) -> tuple[float, float]:
    """Accuracy of a student, and the variance of its returns that the oracle explains."""
    if student is not None:
        config = config.model_copy(update={"student": ModelSettings(path=str(student))})
    parts = build_parts(config, print)
    chosen = list(parts.task.train[:problems])
    states, returns, rewards = [], [], []
    for rollout in parts.writer(parts.student).answer(chosen, range(len(chosen))):
        (reward,) = parts.verifier.rewards([rollout.answer])
        rewards.append(reward)
        right, is_right = right_tokens(rollout.problem, config.task.modulus), True
        tokens = parts.student.tokenizer.convert_ids_to_tokens(rollout.completion.token_ids)
        for place, token in enumerate(tokens):
            states.append((is_right, place))
            returns.append(reward)
            is_right = is_right and place < len(right) and token == right[place]
    of_state = defaultdict(list)
    for state, value in zip(states, returns, strict=True):
        of_state[state].append(value)
    values = torch.tensor([mean(of_state[state]) for state in states], dtype=torch.float64)
    found = explained_variance(torch.tensor(returns, dtype=torch.float64), values)
    assert found is not None
    return mean(rewards), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--steps", type=int, default=20, help="steps of PPO")
    parser.add_argument("--problems", type=int, default=2048, help="answers the oracle sees")
    arguments = parser.parse_args()
    config = make_config(settings(arguments.steps))
    with tempfile.TemporaryDirectory() as folder:
        train(config, folder)
        rows = read_jsonl(Path(folder) / "metrics.jsonl")
        known = mean([row["explained_variance"] for row in rows[-max(1, arguments.steps // 4) :]])
        students = {"base": None, "end": list_checkpoints(Path(folder) / "checkpoints")[0]}
        for name, student in students.items():
            accuracy, bound = oracle(config, student, arguments.problems)
            ours = known if name == "end" else 0.0  # the first values are 0 everywhere
            row = {"name": "critic", "setting": name, "ours": ours, "peer": bound}
            row |= {"peer_name": "oracle", "peer_version": "", "unit": "explained variance"}
            if arguments.json:
                print(json.dumps(row | {"ratio": ours / bound}))
            else:
                print(f"{name}: accuracy {accuracy:.3f}, critic {ours:.3f}, oracle {bound:.3f}")


if __name__ == "__main__":
    main()
