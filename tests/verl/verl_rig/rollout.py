"""The worker's side of the rollout engine: hands whole weights to the server of its replica."""

import os
from collections.abc import Iterator
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout


def server_name(replica_rank: int) -> str:
    return f"hf_server_{replica_rank}"


class HFAdapter(BaseRollout):
    """One server a rank, as with tensor_model_parallel_size 1."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, **kwargs: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(kwargs.get("replica_rank", os.environ["RANK"]))

    @property
    def _server(self) -> Any:
        return ray.get_actor(server_name(self.replica_rank))

    async def resume(self, tags: list[str]) -> None:
        await self._server.wake_up.remote(tags)

    async def release(self) -> None:
        await self._server.sleep.remote()

    async def update_weights(
        self,
        weights: Iterator[tuple[str, torch.Tensor]],
        global_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        whole = {name: tensor.detach().clone() for name, tensor in weights}
        await self._server.load_weights.remote(whole, global_steps)
