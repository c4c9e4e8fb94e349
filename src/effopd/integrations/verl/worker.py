"""verl's worker with a search over its shard of the parameters."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker

from effopd.errors import CheckpointError, ParameterMismatchError
from effopd.integrations.verl.asked import AskedSearch, Step
from effopd.integrations.verl.shards import load_shard, shard_path
from effopd.search.extrapolator import Extrapolator
from effopd.search.selection import select_parameters
from effopd.search.settings import Search
from effopd.search.validation import Score
from effopd.training.search_file import restore_search, save_shard, search_state


class SearchingWorker(ActorRolloutRefWorker):
    """An actor whose parameters are moved along the ray, each rank its own shard.

    The anchor is in host memory. Every rank runs the same search on the same scores, so all decide
    alike, and nothing is gathered or sent but by verl's own weight synchronisation.
    """

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def prepare_search(self, search: Search) -> None:
        """Makes the initial weights the anchor; after `init_model`, before any checkpoint."""
        engine = self.actor.engine
        device = check_sharded_masters(engine.module, search.parameters)
        self._asked = AskedSearch(device)
        self._extrapolator = Extrapolator(
            engine.module,
            self._asked.validate,
            search=search,
            optimizer=engine.optimizer,
            device="cpu",
        )

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def search_start(self, step: int) -> Step:
        """Begins the search after update `step`; see `AskedSearch.start`."""
        return self._asked.start(self._extrapolator, step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def search_tell(self, score: Score) -> Step:
        """Goes on with a score; see `AskedSearch.tell`."""
        return self._asked.tell(score)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def search_abandon(self, reason: str) -> None:
        """Puts the parameters back to the tip; see `AskedSearch.abandon`."""
        self._asked.abandon(reason)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(
        self,
        local_path: str,
        hdfs_path: str | None = None,
        global_step: int = 0,
        max_ckpt_to_keep: int | None = None,
    ) -> None:
        """The checkpoint of verl, and this rank's state of the search next to it."""
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep)
        path = shard_path(Path(local_path), self.rank, self.world_size)
        save_shard(path, search_state(self._extrapolator))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, del_local_after_load: bool = False
    ) -> None:
        """The checkpoint of verl, and this rank's state of the search.

        Raises:
            CheckpointError: There is none, or it belongs to other weights.
        """
        path = shard_path(Path(local_path), self.rank, self.world_size)
        state = load_shard(path)
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        if not restore_search(self._extrapolator, state):
            raise CheckpointError(
                f"{path} belongs to other weights than those next to it: the checkpoint was put "
                "together from several. Resume from an earlier one."
            )


def check_sharded_masters(module: nn.Module, selection: str) -> torch.device:
    """Makes sure that what would be moved are float32 shards.

    Args:
        module: The engine's model.
        selection: Which parameters a search moves.

    Returns:
        Their device.

    Raises:
        ParameterMismatchError: A parameter is no DTensor, or not in float32.
    """
    devices = set()
    for name, parameter in select_parameters(module, selection).items():
        if not isinstance(parameter, DTensor) or parameter.dtype != torch.float32:
            kind = type(parameter).__name__
            raise ParameterMismatchError(
                f"{name} is a {kind} of {parameter.dtype}, expected a DTensor of torch.float32: "
                "the actor is not sharded by FSDP2 or trains without float32 masters "
                "(actor_rollout_ref.actor.strategy=fsdp2, fsdp_config.model_dtype=fp32)"
            )
        devices.add(_local_device(parameter))
    return devices.pop()


def _local_device(parameter: Tensor) -> torch.device:
    return parameter.to_local().device if isinstance(parameter, DTensor) else parameter.device
