"""A network → the same network, recomputing, compiled and sharded, in this order; the model itself knows of none.

Source: composition as in torchtitan's ``parallelize.py`` (activation checkpointing, compilation by block, FSDP2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from ..layers import SSMBlock
from .config import ParallelConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parallelize(
    network: nn.Module, mesh: DeviceMesh | None, config: ParallelConfig, *, recompute: bool
) -> None:
    """Lays a network out over the processes, in place.

    Attention and MLPs are gathered in the autocast type. State-space blocks, heads, norms and tokens are gathered in
    float32: rounding A_log would shift every eigenvalue, and EinFFT and the prototypes' norm compute in float32.

    Args:
        network: A network with ``backbone.blocks``, such as student or teacher, whose other children are heads; or any
            module, which is sharded as a whole.
        mesh: Where to shard; None for one process.
        config: What to do.
        recompute: Whether there is a backward pass for which activations may be recomputed.
    """
    backbone: Any = getattr(network, "backbone", None)
    blocks: list[nn.Module] = [] if backbone is None else list(backbone.blocks)
    if config.activation_checkpointing and recompute:
        for block in blocks:
            block.forward = _recomputed(block.forward)
    if config.compile:
        for block in blocks:
            block.compile(dynamic=False)
    if mesh is None:
        return
    # gradients are reduced in float32 whatever the weights are gathered in
    float32 = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    # True also for the root, or its gathered weights would stay and no longer match the other network's shards
    shard: Callable[..., Any] = partial(fully_shard, mesh=mesh, reshard_after_forward=True)
    for block in blocks:
        if config.precision == "fp32" or isinstance(block, SSMBlock):
            shard(block, mp_policy=float32)
        else:
            # norms and LayerScale stay out, and with the root: they are few, and need float32
            halved = MixedPrecisionPolicy(
                param_dtype=DTYPES[config.precision], reduce_dtype=torch.float32, cast_forward_inputs=False
            )
            shard([block.attn, block.mlp], mp_policy=halved)
    for head in network.children() if backbone is not None else ():
        # containers have no forward that could gather their weights; the root gathers them with its own
        if head is not backbone and not isinstance(head, nn.ModuleDict | nn.ModuleList):
            shard(head, mp_policy=float32)
    shard(network, mp_policy=float32)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a forward so that only its inputs are kept; names of parameters stay as they are."""

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return recomputed
