"""Which engine samples the student's answers."""

from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.servers.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class VLLMSettings:
    """How vLLM shares the GPU with the student.

    Attributes:
        gpu_memory: Share of the GPU's memory that vLLM may use, in (0, 1).
        sleep: Give the memory of weights and cache back between rollouts; the weights wait in the
            memory of the CPU.
        eager: Do without CUDA graphs: slower, but less memory and a quicker start.
        tolerance_nats: Mean difference of log-probabilities between vLLM and the student beyond
            which a sync has failed.
    """

    gpu_memory: float = 0.4
    sleep: bool = True
    eager: bool = False
    tolerance_nats: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory < 1:
            raise ConfigError(f"gpu_memory must be above 0 and below 1, got {self.gpu_memory}")
        if not self.tolerance_nats > 0:
            raise ConfigError(f"tolerance_nats must be positive, got {self.tolerance_nats}")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """The student's engine.

    Attributes:
        engine: "hf" writes with the live model itself, "vllm" with vLLM in this process, "server"
            with an inference server that loads the student's weights at every sync.
        server: The server, for "server".
        weights_directory: Where the student's weights are written for the server, which must see
            the directory at the same path.
        vllm: How vLLM shares the GPU, for "vllm".
    """

    engine: Literal["hf", "vllm", "server"] = "hf"
    server: ServerSettings | None = None
    weights_directory: str = ""
    vllm: VLLMSettings = VLLMSettings()

    def __post_init__(self) -> None:
        if self.engine != "server":
            return
        if self.server is None:
            raise ConfigError("server must say where it is: engine = 'server' needs server.url")
        if self.server.flavor == "effopd":
            raise ConfigError(
                "server.flavor must be 'vllm' or 'sglang': effopd serve-teacher writes no answers"
            )
        if not self.weights_directory:
            raise ConfigError(
                "weights_directory must be a directory that the server sees too: the student is "
                "trained, so the server has to load its weights at every sync"
            )
