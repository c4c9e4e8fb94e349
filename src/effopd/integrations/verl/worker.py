"""verl's worker with a search over its shard of the parameters."""

from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import ActorRolloutRefWorker

from effopd.errors import ParameterMismatchError
from effopd.search.extrapolator import Extrapolator, RaySearch
from effopd.search.line_search import SearchResult
from effopd.search.selection import select_parameters
from effopd.search.settings import Search
from effopd.search.slope import SlopeRate, SlopeSettings
from effopd.search.validation import Draw, Score
from effopd.training.search_checkpoint import (
    read_search,
    restore_search,
    save_search,
    search_file,
)

Step = Draw | SearchResult | None
"""What a search comes to: a question, its result, or None where none was due."""


class SearchingWorker(ActorRolloutRefWorker):
    """An actor whose parameters are moved along the ray, each rank its own shard.

    The anchor is in host memory. Every rank runs the same search on the same scores, so all decide
    alike, and nothing is gathered or sent but by verl's own weight synchronisation.
    """

    _search: RaySearch | None = None

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def prepare_search(self, search: Search) -> None:
        """Makes the initial weights the anchor; after `init_model`, before any checkpoint."""
        module = self.actor.engine.module
        check_sharded_masters(module, search.parameters)
        self._extrapolator = Extrapolator(module, search=search, device="cpu")

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def follow_slopes(self, settings: SlopeSettings) -> None:
        """Has the actor's rate follow the slopes; what it remembers is in verl's checkpoints."""
        optimizer = self.actor.engine.optimizer
        rate = SlopeRate(optimizer, settings)
        optimizer.register_step_pre_hook(lambda *_: rate.before_step_() and None)
        optimizer.register_step_post_hook(lambda *_: rate.after_step_())

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def search_start(self, step: int) -> Step:
        """The first draw of the search after update `step`, to score with the parameters as is."""
        self._search = self._extrapolator.begin(step)
        return None if self._search is None else self._next()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def search_tell(self, score: Score) -> Step:
        """Goes on with the score of the last draw; the next one, or the result."""
        assert self._search is not None, "no search waits for a score"
        self._search.tell(score)
        return self._next()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def search_abandon(self) -> None:
        """Puts the parameters back at the tip."""
        if self._search is not None:
            self._search.abandon()

    def _next(self) -> Step:
        assert self._search is not None
        draw = self._search.ask()
        return self._search.result if draw is None else draw

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
        path = search_file(Path(local_path), self.rank, self.world_size)
        save_search(path, self._extrapolator)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, del_local_after_load: bool = False
    ) -> None:
        """The checkpoint of verl, and this rank's state of the search."""
        path = search_file(Path(local_path), self.rank, self.world_size)
        state = read_search(path)
        super().load_checkpoint(local_path, hdfs_path, del_local_after_load)
        restore_search(self._extrapolator, state, path)


def check_sharded_masters(module: nn.Module, selection: str) -> None:
    """Makes sure that what would be moved are float32 shards."""
    for name, parameter in select_parameters(module, selection).items():
        if not isinstance(parameter, DTensor) or parameter.dtype != torch.float32:
            kind = type(parameter).__name__
            raise ParameterMismatchError(
                f"{name} is a {kind} of {parameter.dtype}, expected a DTensor of torch.float32: "
                "the actor is not sharded by FSDP2 or trains without float32 masters "
                "(actor_rollout_ref.actor.strategy=fsdp2, fsdp_config.model_dtype=fp32)"
            )
