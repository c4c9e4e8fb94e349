"""The settings of `effopd eval --bench`, from overrides alone."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from effopd.models.loading import ModelSettings
from effopd.rewards.code import CodeChecking
from effopd.rollouts.engine import Sampling
from effopd.rollouts.environment import EnvironmentSettings
from effopd.rollouts.prompts import PromptTemplate
from effopd.rollouts.settings import VLLMSettings


class EvalConfig(BaseModel):
    """How a model answers the questions of benchmarks.

    Attributes:
        model: The model; None for the benchmarks' own solutions.
        seed: Decides every sample, and the order of options of questions that have some.
        samples: Answers to each question.
        batch: Answers that are written, checked and recorded together: what a kill costs at most.
        device: PyTorch device of the model; "auto" is a GPU where there is one, else the CPU.
        threads: CPU threads of PyTorch.
        engine: Who writes: the model in this process ("hf"), or vLLM with its weights.
        generation_tokens: Prompt and answer tokens that "hf" decodes together, at most, every
            answer counted at its cap; 0 for no limit.
        prompt: From question to prompt.
        sampling: How answers are sampled; the defaults are those of arXiv 2605.11739.
        code: How programs are checked.
        environment: What replies to the model, which then goes on (docs/turns.md).
        vllm: How vLLM uses the GPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelSettings | None = None
    seed: int = 42
    samples: int = Field(default=1, ge=1)
    batch: int = Field(default=128, ge=1)
    device: str = "auto"
    threads: int = Field(default=1, ge=1)
    engine: Literal["hf", "vllm"] = "hf"
    generation_tokens: int = Field(default=0, ge=0)
    prompt: PromptTemplate = PromptTemplate()
    sampling: Sampling = Sampling(max_new_tokens=16384)
    code: CodeChecking = CodeChecking()
    environment: EnvironmentSettings | None = None
    vllm: VLLMSettings = VLLMSettings()
