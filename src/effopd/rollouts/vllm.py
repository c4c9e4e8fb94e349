"""Rollouts by vLLM in this process, beside the student on its GPU.

vLLM is imported by `open_vllm` alone; the engine itself sees an `LLM` object and a class of
sampling parameters.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from effopd.errors import MissingExtraError
from effopd.models.tokenizers import end_token_ids, unused_ids
from effopd.rollouts.engine import Completion, Request, Sampling, check_written, finished
from effopd.rollouts.server import StudentProbe
from effopd.rollouts.settings import VLLMSettings

NamedTensors = Iterable[tuple[str, Tensor]]
_NEVER = -100.0
"""The lowest bias of a logit that vLLM takes."""


class VLLMEngine:
    """Samples with a copy of the student's weights, which every sync renews and checks.

    `llm` is a `vllm.LLM` in this process, `sampling_parameters` is `vllm.SamplingParams`.
    """

    def __init__(
        self,
        llm: Any,
        sampling_parameters: Callable[..., Any],
        model: Any,
        tokenizer: Any,
        *,
        vocabulary_size: int,
        settings: VLLMSettings,
    ) -> None:
        self._llm, self._parameters = llm, sampling_parameters
        self._model, self._tokenizer, self._settings = model, tokenizer, settings
        self._vocabulary_size = vocabulary_size
        self._ends = end_token_ids(tokenizer, model)
        rows = model.get_output_embeddings().weight.shape[0]
        self._unused = {*unused_ids(tokenizer, rows), *range(vocabulary_size, rows)}
        self._probe = StudentProbe(model, vocabulary_size)
        self._asleep: set[str] = set()
        self._sleep()

    def sync_weights(self) -> None:
        """Copies the student's weights into vLLM and compares both on a fixed text.

        Weights that give NaN are not copied; the next `generate` reports them.
        """
        if not self._probe.look():
            return
        self._wake("weights")
        self._llm.collective_rpc(load_weights_, args=(list(self._model.named_parameters()),))
        self._wake("kv_cache")
        self._llm.reset_prefix_cache()
        ids = self._probe.token_ids
        parameters = self._parameters(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        (output,) = self._llm.generate([_prompt(ids)], [parameters], use_tqdm=False)
        places = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
        self._probe.check_arrived(
            [place[token].logprob for token, place in places],
            self._settings.tolerance_nats,
            setting="rollouts.vllm.tolerance_nats",
            where="vLLM does not have the student's weights after a sync",
            remedy="Its names of parameters may not be those of the student: use rollouts.engine = "
            "'hf'.",
        )

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion a request, in order; see `Engine.generate`."""
        self._probe.check_finite()
        if not requests:
            return []
        self._wake("weights", "kv_cache")
        outputs = self._llm.generate(
            [_prompt(request.prompt_ids) for request in requests],
            [
                self._parameters(
                    **sampling_arguments(
                        r.seed, r.sampling(sampling), self._ends, sorted(self._unused)
                    )
                )
                for r in requests
            ],
            use_tqdm=False,
        )
        self._sleep()
        finish = partial(finished, sampling=sampling, tokenizer=self._tokenizer, ends=self._ends)
        found = []
        for written in (output.outputs[0] for output in outputs):
            ids = tuple(written.token_ids)
            check_written("vLLM", ids, self._vocabulary_size, self._unused)
            places = zip(ids, written.logprobs, strict=True)
            log_probs = [place[token].logprob for token, place in places]
            found.append(finish(ids, log_probs, stopped=written.finish_reason == "stop"))
        return found

    def close(self) -> None:
        """Gives the GPU's memory back."""
        self._sleep()

    def _wake(self, *parts: str) -> None:
        asleep = [part for part in parts if part in self._asleep]
        if asleep:
            self._llm.wake_up(tags=asleep)
            self._asleep -= set(asleep)

    def _sleep(self) -> None:
        """Level 1: weights go to the CPU and come back as they were; the cache is forgotten."""
        if self._settings.sleep:
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}


def open_vllm(
    settings: VLLMSettings,
    path: str,
    model: Any,
    tokenizer: Any,
    *,
    vocabulary_size: int,
    longest: int,
) -> VLLMEngine:
    """Starts vLLM in this process with the model in `path`, whose weights it has until a sync.

    `longest` is the tokens of the longest prompt and answer together.
    """
    # Weights are handed over as tensors of this process, and scheduling becomes deterministic.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise MissingExtraError(
            "rollouts.engine = 'vllm' needs vLLM: pip install 'effopd[vllm]', on a machine with a "
            "GPU"
        ) from error
    llm = LLM(
        model=path,
        dtype=str(model.dtype).removeprefix("torch."),
        seed=0,
        max_model_len=longest + 1,
        gpu_memory_utilization=settings.gpu_memory,
        enable_sleep_mode=settings.sleep,
        enforce_eager=settings.eager,
        logprobs_mode="raw_logprobs",
        generation_config="vllm",  # no sampling defaults of the model
        trust_remote_code=False,
    )
    return VLLMEngine(
        llm,
        SamplingParams,
        model,
        tokenizer,
        vocabulary_size=vocabulary_size,
        settings=settings,
    )


def load_weights_(worker: Any, weights: NamedTensors) -> None:
    """Run by vLLM inside its worker: copies tensors into the model by their checkpoint names."""
    worker.model_runner.model.load_weights(iter(weights))


def sampling_arguments(
    seed: int, sampling: Sampling, ends: Sequence[int], unused: Sequence[int]
) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` for one completion, which `ends` end too.

    The head rows `unused` have no token and are never drawn; `raw_logprobs` are before their bias.
    """
    return {
        "seed": seed,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": list(sampling.stop),
        "stop_token_ids": list(ends),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "logit_bias": dict.fromkeys(unused, _NEVER) or None,
    }


def _prompt(token_ids: Sequence[int]) -> dict[str, list[int]]:
    return {"prompt_token_ids": list(token_ids)}
