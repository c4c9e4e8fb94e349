"""Rollout and teacher servers: Ray actors with a Hugging Face model, which remember what they did.

A server writes its weights to disk when it first generates with them, and one line a request. So
what a test reads is what text was really generated with, not what was sent.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from effopd.records import SCHEMA
from verl_rig.rollout import server_name


class HFServer:
    """One model that samples, or scores given tokens.

    Args:
        path: Model directory.
        name: Folder below EFFOPD_RIG_DIR for its records.
        seed: Of its own generator, which requests without a seed are sampled from.
        is_teacher: Whether it keeps the weights of `path`; others start empty and asleep.
        longest: Most tokens of an answer.
    """

    def __init__(self, path: str, name: str, seed: int, is_teacher: bool, longest: int) -> None:
        torch.set_num_threads(1)
        if is_teacher:
            self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        else:
            self.model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
            for parameter in self.model.parameters():
                torch.nn.init.constant_(parameter, float("nan"))
        self.model.float().eval()
        self.eos = self.model.config.eos_token_id
        self.is_teacher, self.longest = is_teacher, longest
        self.generator = torch.Generator().manual_seed(seed)
        self.folder = Path(os.environ["EFFOPD_RIG_DIR"]) / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.version = len(list(self.folder.glob("*.safetensors")))
        self.is_asleep, self.is_written, self.global_steps = False, True, None

    async def ready(self) -> bool:
        return True

    async def sleep(self) -> None:
        self.is_asleep = True

    async def wake_up(self, tags: list[str]) -> None:
        if "weights" in tags and not self.is_asleep:
            raise RuntimeError("weights were sent to a server that was not put to sleep")
        self.is_asleep = False

    async def load_weights(self, weights: dict[str, torch.Tensor], global_steps: int) -> None:
        self.model.load_state_dict(weights, strict=True)
        self.global_steps, self.is_written = global_steps, False

    async def generate(
        self, prompt_ids: list[int], sampling_params: dict[str, Any], **kwargs: Any
    ) -> TokenOutput:
        if self.is_asleep:
            raise RuntimeError("a request reached a server that is asleep")
        if (likeliest := sampling_params.get("prompt_logprobs")) is not None:
            return self._score(list(prompt_ids), likeliest)
        self._write_weights()
        tokens, log_probs = self._sample(list(prompt_ids), sampling_params)
        self._write_request(list(prompt_ids), tokens, sampling_params)
        return TokenOutput(
            token_ids=tokens,
            log_probs=log_probs if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": self.global_steps},
        )

    def _logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].float()

    def _score(self, ids: list[int], likeliest: int) -> TokenOutput:
        """As vLLM's prompt_logprobs in verl: row i scores token i + 1, the last row is zeros.

        0 scores the token itself, k the k likeliest in its place.
        """
        scores = self._logits(ids).log_softmax(-1)[:-1]
        if likeliest:
            log_probs, tokens = scores.topk(likeliest)
        else:
            tokens = torch.tensor(ids[1:])[:, None]
            log_probs = scores.gather(-1, tokens)
        last = [0] * max(likeliest, 1)
        fields = {
            "prompt_ids": [*tokens.tolist(), last],
            "prompt_logprobs": [*log_probs.tolist(), [float(zero) for zero in last]],
            "global_steps": None,
        }
        return TokenOutput(token_ids=[0], stop_reason="completed", extra_fields=fields)

    def _sample(self, prompt: list[int], params: dict[str, Any]) -> tuple[list[int], list[float]]:
        seed = params.get("seed")
        generator = self.generator if seed is None else torch.Generator().manual_seed(seed)
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < self.longest and (not tokens or tokens[-1] != self.eos):
            scores = self._logits(prompt + tokens)[-1].log_softmax(-1)
            if params["temperature"] == 0:
                token = int(scores.argmax())
            else:
                probabilities = (scores / params["temperature"]).softmax(-1)
                token = int(torch.multinomial(probabilities, 1, generator=generator))
            tokens.append(token)
            log_probs.append(scores[token].item())
        return tokens, log_probs

    def _write_weights(self) -> None:
        if not self.is_written:
            tensors = {n: p.detach().contiguous() for n, p in self.model.named_parameters()}
            self.version += 1
            save_file(tensors, self.folder / f"{self.version:03d}.safetensors")
            self.is_written = True

    def _write_request(self, prompt: list[int], tokens: list[int], params: dict[str, Any]) -> None:
        state = self.generator.get_state().numpy().tobytes()
        row = {
            "schema": SCHEMA,
            "version": self.version,
            "step": self.global_steps,
            "prompt": prompt,
            "tokens": tokens,
            "seed": params.get("seed"),
            "temperature": params["temperature"],
            "generator": hashlib.sha256(state).hexdigest(),
        }
        with (self.folder / "requests.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


class HFReplica(RolloutReplica):
    """One server, on the node of the trainer."""

    async def launch_servers(self) -> None:
        model = self.model_config
        path = model["path"] if OmegaConf.is_config(model) else model.path
        name = f"teacher_{self.replica_rank}" if self.is_teacher_model else None
        name = name or server_name(self.replica_rank)
        server = (
            ray.remote(HFServer)
            .options(name=name, num_cpus=0, max_concurrency=64)
            .remote(
                path, name, self.replica_rank, self.is_teacher_model, self.config.response_length
            )
        )
        await server.ready.remote()
        self.servers = [server]
        self._server_handle, self._server_address = server, name
