"""Policies whose parameters lie in pieces on several processes (FSDP2, DeepSpeed ZeRO-3), as accelerate is configured.

The wrapped forward puts a block together while it runs, and frees it again. What else the generator does (sampling token
by token, above all) would pay that for every token. It runs on a whole twin instead: the plain generator, empty as long
as nobody needs it, filled by one all-gather for a phase, without the wrapper's hooks.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from align.generators.base import Generator

FSDP_WANTED = "ACCELERATE_USE_FSDP"  # set by accelerate launch


@dataclass(frozen=True)
class _Twin:
    """part: what is wrapped; plain: the same without a wrapper; hollow: tensors of its shapes that take no memory."""

    part: Generator
    plain: Generator
    hollow: dict[str, Tensor]

    def fill(self, tensors: dict[str, Tensor]) -> None:
        self.plain.load_state_dict(tensors, strict=False, assign=True)


class Shards:
    """What of a training is in pieces, and how to have it whole.

    Raises:
        ValueError: the first version of FSDP.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        plugin = accelerator.state.fsdp_plugin if _wants_fsdp(accelerator) else None
        if plugin is not None and plugin.fsdp_version != 2:
            raise ValueError(
                f"fsdp_version is {plugin.fsdp_version}; parameters are sharded by FSDP2 here: set fsdp_version: 2 in fsdp_config of "
                "accelerate's configuration, or use recipes/launch/fsdp2.yaml"
            )
        self.fsdp = plugin
        zero = accelerator.state.deepspeed_plugin
        self.zero3 = zero is not None and zero.zero_stage == 3
        if zero is not None and accelerator.mixed_precision == "bf16":
            warnings.warn(
                "DeepSpeed's bf16 rounds the policy's own weights, while its reference keeps float32: gaps start at that noise. "
                "FSDP2 keeps both; for DeepSpeed without it set trainer.precision=fp32",
                stacklevel=2,
            )
        self._twins: list[_Twin] = []

    def __bool__(self) -> bool:
        return self.fsdp is not None or self.zero3

    def part(self, generator: Generator) -> Generator:
        """A second object with the same parameters, to be wrapped and cut up; the given one stays plain, and is its twin.

        The generator itself where nothing is sharded.
        """
        if not self:
            return generator
        if self.fsdp is not None:
            self.fsdp.transformer_cls_names_to_wrap = [generator.block_class]
            # autocast alone decides on precision, as in a training that is not sharded
            self.fsdp.mixed_precision_policy = None
        shared = {id(part): part for part in [*generator.companions(), *generator.parameters()]}
        in_parts = copy.deepcopy(generator, shared)
        names = dict(generator.named_parameters(remove_duplicate=False))
        hollow = {name: torch.empty_like(parameter, device="meta") for name, parameter in names.items()}
        twin = _Twin(in_parts, generator, hollow)
        # detached: DeepSpeed changes parameters in place
        twin.fill({name: parameter.detach() for name, parameter in names.items()})
        self._twins.append(twin)
        return in_parts

    def shard(self, frozen: Generator) -> None:
        """Cut up a model that is not trained, the way the policy was. Only FSDP does: in ZeRO-3 it stays whole."""
        if self.fsdp is not None:
            from accelerate.utils.fsdp_utils import fsdp2_prepare_model

            fsdp2_prepare_model(self.accelerator, frozen)

    def empty_twins(self) -> None:
        """Once the parts are cut up: give back the memory of the whole."""
        for twin in self._twins:
            twin.fill(twin.hollow)

    @contextlib.contextmanager
    def whole(self, generator: Generator) -> Iterator[Generator]:
        """The generator to do anything with but to train it: its whole twin, or itself where it is not in pieces.

        To be entered and left by all processes together.
        """
        if not is_sharded(generator):
            yield generator
            return
        self.fill_twin(generator)
        twin = self._twin(generator)
        try:
            yield twin.plain
        finally:
            twin.fill(twin.hollow)

    def fill_twin(self, generator: Generator) -> None:
        """Copy all parameters, and buffers, from all processes into the plain generator. Nothing where it is whole."""
        if is_sharded(generator):
            twin = self._twin(generator)
            twin.plain.train(generator.training)
            twin.fill(self.state(generator))

    def state(self, generator: Generator) -> dict[str, Tensor]:
        """The whole state_dict, on every process; to be called by all together."""
        if not is_sharded(generator):
            return generator.state_dict()
        return _gathered(generator) | dict(generator.named_buffers())

    def _twin(self, generator: Generator) -> _Twin:
        return next(twin for twin in self._twins if twin.part is generator)


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds but a part of its parameters now."""
    return isinstance(model, FSDPModule) or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def _wants_fsdp(accelerator: Accelerator) -> bool:
    """Whether accelerate is configured for FSDP; on CPUs, where it would pass that over, it is told to shard as well."""
    state: Any = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and os.environ.get(FSDP_WANTED, "").lower() == "true":
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # both, as accelerate does: each copies it from the other now and then
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
    return state.distributed_type == DistributedType.FSDP


def _gathered(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, whole, on every process: gathered module by module, so that little lies there twice."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        with _unsharded(module) as own:
            found |= {f"{prefix}.{name}" if prefix else name: tensor.detach().clone() for name, tensor in own.items()}
    return found


@contextlib.contextmanager
def _unsharded(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The parameters that are put together with this module, by their names in it."""
    if isinstance(module, FSDPModule):
        module.unshard()
        named = module.named_parameters(remove_duplicate=False)
        yield {name: parameter for name, parameter in named if not isinstance(parameter, DTensor)}
        module.reshard()
        return
    own = {name: p for name, p in module.named_parameters(recurse=False) if hasattr(p, "ds_id")}
    if not own:
        yield {}
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(own.values())):
        yield dict(own)
