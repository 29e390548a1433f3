"""Weights in shards, a part on each process (FSDP2), for a denoiser that does not fit one device.

    LoRA    the frozen weights alone, over the processes of a node; adapters, their gradients, their optimizer and the
            resume state stay whole. The arithmetic is that without shards: equal bits at the same number of processes
    full    all weights, over all processes. Gradients are summed where they are cut into shards, and the reference is
            a copy of the shards; equal to float tolerance

Every forward and backward gathers weights, which all processes must do equally often and in the same order, or they
wait for each other for ever. So each runs as many forwards as the others: a row of weight 0 is run, and a process
without a row runs one of weight 0 (rl.training.trainer, rl.online.trainer); previews and checks sample equally often.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from cluster import devices


def is_possible() -> bool:
    """Whether there is a group of processes to shard over; one process alone keeps its weights whole."""
    return distributed.is_initialized()


def shard_frozen(denoiser: nn.Module, device: torch.device) -> None:
    """Shard all weights but those of LoRA adapters over the processes of this node. In place."""
    adapters = {parameter for name, parameter in denoiser.named_parameters() if ".lora_" in name}
    _shard(denoiser, node_mesh(device), adapters)
    for parameter in adapters:
        parameter.data = parameter.data.to(device)


def shard_all(denoiser: Any, device: torch.device) -> None:
    """Shard every weight over all processes, whose gradients are summed, and hold the shards' values. In place.

    The values are those of `reference`.
    """
    _shard(denoiser, init_device_mesh(device.type, (devices.world_size(),)), set())
    for module in denoiser.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no product of sums
    # A tuple is no submodule, so neither state_dict nor parameters() sees the copy.
    denoiser.reference_shards = tuple(_own(parameter).clone() for parameter in denoiser.parameters())


@contextlib.contextmanager
def reference(denoiser: Any) -> Iterator[None]:
    """Within it a denoiser of `shard_all` predicts as it was then. Call backward outside."""
    _swap(denoiser)
    try:
        yield
    finally:
        _swap(denoiser)


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The outermost members of module lists, which are gathered one after the other: a model's repeated blocks."""
    blocks: list[nn.Module] = []
    for child in denoiser.children():
        if isinstance(child, nn.ModuleList):
            blocks += [block for block in child if next(block.parameters(), None) is not None]
        else:
            blocks += blocks_of(child)
    return blocks


def node_mesh(device: torch.device) -> DeviceMesh:
    """The processes of this node, so that gathering stays within it; all, where nodes have unequal numbers."""
    world = devices.world_size()
    sizes = devices.gather_over_ranks(int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    here = sizes[0] if len(set(sizes)) == 1 and world % sizes[0] == 0 else world
    return init_device_mesh(device.type, (world // here, here), mesh_dim_names=("node", "shard"))["shard"]


def whole_copy(denoiser: Any) -> Any:
    """A denoiser of the class that was sharded, on the CPU, with all weights; None but on the first process.

    A collective: every process calls it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(denoiser, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if devices.rank() != 0:
        return None
    plain: Any = type(denoiser).__mro__[2]  # the class that fully_shard made has FSDPModule and this one as its bases
    with torch.device("meta"):
        copy = plain.from_config(denoiser.config)
    copy.load_state_dict(weights, assign=True)
    return copy


def _shard(denoiser: nn.Module, mesh: DeviceMesh, whole: set[nn.Parameter]) -> None:
    # Nothing here changes a prediction in place, which the warning is of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for block in blocks_of(denoiser):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    # Resharded after the forward: a gathered copy that stayed would not see the reference's values.
    fully_shard(denoiser, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def _swap(denoiser: Any) -> None:
    with torch.no_grad():
        for parameter, held in zip(denoiser.parameters(), denoiser.reference_shards, strict=True):
            now = _own(parameter).clone()
            _own(parameter).copy_(held)
            held.copy_(now)


def _own(parameter: Any) -> torch.Tensor:
    """This process's shard of a parameter."""
    shard: torch.Tensor = parameter.to_local().detach()
    return shard
