"""Who writes the student's answers."""

from dataclasses import dataclass
from typing import Literal

from effopd.errors import ConfigError
from effopd.rollouts.vllm import VLLMSettings
from effopd.servers.settings import ServerSettings


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
        if not self.weights_directory:
            raise ConfigError(
                "weights_directory must be a directory that the server sees too: the student is "
                "trained, so the server has to load its weights at every sync"
            )
