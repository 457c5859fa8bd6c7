"""Divide a model's weights among processes with FSDP2 of torch, and put them together again."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf_core.distributed import count, rank, share_weights


def divide(model: PreTrainedModel) -> None:
    """Leave each process a part of every weight of ``model``, those of the first process; layer by layer."""
    share_weights(model.parameters())
    mesh = init_device_mesh(model.device.type, (count(),))
    for module in [*reversed(_layers(model)), model]:  # inner ones first
        divided = fully_shard(module, mesh=mesh)
        divided.set_gradient_divide_factor(1.0)  # a sum: losses are divided by the tokens of all processes already
        divided.set_force_sum_reduction_for_comms(True)
        divided.set_reduce_scatter_unused_params(True, recurse=False)
    with torch.no_grad():  # makes the model itself, and none of its layers, the root of what is divided
        ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=ids, attention_mask=ids + 1, use_cache=False)
    reshard(model)


def original_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """The class of a model, which another one stands before while its weights are divided."""
    kinds = type(model).__mro__
    return cast(type[PreTrainedModel], kinds[2] if FSDPModule in kinds else kinds[0])


def local(tensor: Tensor) -> Tensor:
    """This process's part of a divided tensor, in the same memory; any other tensor itself."""
    if not isinstance(tensor, DTensor):
        return tensor
    part: Tensor = tensor.to_local().detach()
    return part


def own_rows(whole: Tensor, like: Tensor) -> Tensor:
    """The rows of ``whole`` that this process holds of ``like``; all of them where that is not divided."""
    if not isinstance(like, DTensor):
        return whole
    rows = -(-len(whole) // count())
    return whole[rows * rank() : rows * (rank() + 1)]


def weights_of(model: PreTrainedModel) -> list[DTensor]:
    """The parameters of a divided model, in order."""
    return [cast(DTensor, weight) for weight in model.parameters()]


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that transformers itself never splits: blocks of attention and MLP."""
    names = set(cast(Any, model)._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _divided(model: PreTrainedModel) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def gather(model: PreTrainedModel) -> None:
    """Put the whole model together in every process, until ``reshard``."""
    for module in _divided(model):
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)


def reshard(model: PreTrainedModel) -> None:
    """Leave each process its part again.

    The order of earlier passes is forgotten, of which other processes made more or fewer: layers are gathered ahead of
    their turn in that order, and all processes must gather the same ones.
    """
    root: Any = model
    root.reset_iter_state()
    for module in _divided(model):
        module.set_reshard_after_forward(module is not root, recurse=False)


def like(weight: DTensor, part: Tensor) -> DTensor:
    """A tensor that is divided as ``weight`` is, from this process's ``part``."""
    return DTensor.from_local(
        part, weight.device_mesh, weight.placements, run_check=False, shape=weight.shape, stride=weight.stride()
    )


def whole_on_first(tensor: DTensor) -> Tensor:
    """The whole of it, on the CPU of the first process; an empty tensor in the others."""
    whole: Tensor = tensor.full_tensor().detach()
    return whole.cpu() if rank() == 0 else whole.new_empty(0)
