"""Loaded by verl in every process (VERL_USE_EXTERNAL_MODULES): makes the CPU a platform of it."""
# ruff: noqa: E402 (one line has to come before the other imports)

import functools

import verl.utils.distributed as distributed

# The one line of verl that has to change: it asks for "cpu:gloo,cpu:gloo", which PyTorch rejects.
distributed.initialize_global_process_group_ray = functools.partial(
    distributed.initialize_global_process_group_ray, backend="cpu:gloo"
)

from verl.plugin.platform import PlatformRegistry
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from verl_rig.platform import PlatformCPU

ENGINE = "hf"
"""Name of the rollout engine."""


def _replica() -> type:
    from verl_rig.replica import HFReplica

    return HFReplica


PlatformRegistry.register("cpu")(PlatformCPU)
for name in (ENGINE, "sglang"):  # verl asks a teacher for several tokens under known names alone
    RolloutReplicaRegistry.register(name, _replica)
_ROLLOUT_REGISTRY[ENGINE, "async"] = "verl_rig.rollout.HFAdapter"

from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead  # needs the platform

EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")(
    FSDPEngineWithLMHead
)
