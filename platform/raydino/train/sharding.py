"""Parameters, gradients and moments shared out among the workers (FSDP2), for networks that do not fit on each of them.

Every rank holds its rows of every parameter. A block's parameters are gathered before it computes and dropped after it; its
gradients are summed over ranks and cut up as soon as they are there. Student and teacher are cut alike, so the moving average and
the optimiser work on what a rank has, and a checkpoint, which holds whole tensors, can be taken up by any number of workers.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from raydino import collectives
from raydino.methods.method import Method, Network
from raydino.nn.backbone import Backbone

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shard_method(
    method: Method, device: torch.device, *, compute: Literal["bf16", "fp32"], reduce: Literal["bf16", "fp32"]
) -> None:
    """Shard student, teacher and other networks over all ranks, in place: each block, what else their backbones have, each head.

    Parameters stay in float32 and are gathered in the precision of `compute`; gradients are averaged in that of `reduce`. Groups
    move to `device` one at a time, so a network that fits on no device alone can still be sharded.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # A backbone's tokens are views of one tensor; nothing changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (collectives.world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=None if compute == "fp32" else DTYPES[compute], reduce_dtype=DTYPES[reduce]
    )
    for network in method.networks():
        for part in _parts(network):
            fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(method, mesh=mesh)  # without parameters of its own: it ties the others together


def _parts(network: Network) -> Iterator[nn.Module]:
    """What is gathered at a time, inner parts first."""
    yield from network.backbone.blocks()
    yield network.backbone
    yield network.head
    if network.ibot_head is not None:
        yield network.ibot_head


def groups(network: Network) -> list[list[nn.Parameter]]:
    """The parameters that are gathered together."""
    seen: set[nn.Parameter] = set()
    out = []
    for part in _parts(network):
        out.append([parameter for parameter in part.parameters() if parameter not in seen])
        seen.update(out[-1])
    return out


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are shared out among the ranks."""
    return any(collectives.is_sharded(parameter) for parameter in module.parameters())


@torch.no_grad()
def part_of(tensor: Tensor, *, like: Tensor) -> Tensor:
    """`tensor`, whole on every rank, cut up as `like` is, which may be not at all."""
    if not collectives.is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a module, sharded or not, whose `state_dict` has the same names and shapes."""
    for name, own in module.state_dict().items():
        own.copy_(part_of(tensors[name], like=own))


def whole_encoder(encoder: Backbone, blank: Callable[[], Backbone]) -> Backbone:
    """The encoder for evaluations: itself, or of a sharded one a copy gathered in float32, into the network that `blank` builds.

    Every rank has it, so one of them may draw pictures alone. All ranks call it together.
    """
    if not is_sharded(encoder):
        return encoder
    device = collectives.shard(next(encoder.parameters())).device
    with torch.device("meta"):
        copy = blank()
    state: dict[str, Any] = {
        name: collectives.whole(tensor).to(device) for name, tensor in encoder.state_dict().items()
    }
    copy.load_state_dict(state, assign=True)
    return copy.requires_grad_(requires_grad=False)
