"""Sampling by CUDA graphs: the kernels of a step are recorded once and replayed, without Python between them.

With a small batch an eager step spends most of its time on launching kernels. Recorded are the functions that
`loop.Drawing` runs: of a raster generator one token, at a place that a tensor tells; of one of few blocks the whole image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from align.generators.base import Generator, evaluating
from align.sampling.logits import guide
from align.sampling.loop import Drawing, block_scales, draw_tokens, sample_uniforms
from align.types import Condition, Rollout, SamplingConfig

# a recorded step reads a multiple of so many cells of the cache: few recordings against little idle reading
BUCKET = 128

Work = Callable[[], None]
Record = Callable[[Work], Work]  # does the work once, and gives something that repeats it


@runtime_checkable
class StaticSteps(Protocol):
    """What a raster generator offers beside `step` for its steps to be recorded."""

    def static_step(self, tokens_Bn: Tensor, cache: Any, cells_Bn: Tensor, length: int) -> Tensor:
        """`step` over n tokens at places that a tensor tells: the same kernels whatever the places.

        Args:
            cells_Bn: int64 [B, n], or [1, n] for the same ones of all rows: the consecutive cells of the cache that the
                tokens go to; all cells before them are filled, and what is in them is replaced.
            length: how many cells are read; of those a token sees its own and the ones before.

        Returns:
            float32 logits [B, n, V], after each of the tokens.
        """

    def first_rows(self, cache: Any, rows: int) -> Any:
        """A cache of the first sequences alone, in the same memory."""


class RecordedSampler(ABC):
    """One image for each row of a condition, in memory of its own that every call fills anew.

    It serves conditions of one shape and settings that differ in their seed alone.
    """

    def __init__(self, generator: Generator, condition: Condition, config: SamplingConfig, record: Record) -> None:
        self.config = config
        self.condition = Condition({name: tensor.clone() for name, tensor in condition.tensors.items()})
        shape, device = (len(condition), generator.layout.length), generator.device
        self.uniforms_Bn = torch.zeros(len(condition), self._numbers(generator), dtype=torch.float64, device=device)
        self.tokens_BL = torch.zeros(shape, dtype=torch.long, device=device)
        self.logprobs_BL = torch.zeros(shape, device=device)
        self.forwards_per_image = 0.0
        self.recorded = self._record(generator, record)

    def _numbers(self, generator: Generator) -> int:
        """How many random numbers an image takes."""
        return generator.layout.length

    @abstractmethod
    def _record(self, generator: Generator, record: Record) -> list[Work]:
        """What draws an image, one after another."""

    def _draw_images(self) -> None:
        for work in self.recorded:
            work()

    def __call__(self, condition: Condition, config: SamplingConfig, index_B: Tensor) -> Rollout:
        for name, tensor in self.condition.tensors.items():
            tensor.copy_(condition.tensors[name])
        self.uniforms_Bn.copy_(sample_uniforms(config.seed, index_B, self.uniforms_Bn.shape[1]))
        self._draw_images()
        return Rollout(
            self.tokens_BL.clone(), self.logprobs_BL.clone(), condition, config, index_B, self.forwards_per_image
        )


class WholeImage(RecordedSampler):
    """All blocks in one recording: for next-scale generators."""

    def _record(self, generator: Generator, record: Record) -> list[Work]:
        def draw_all() -> None:
            drawing = Drawing(generator, self.condition, self.config, uniforms_BL=self.uniforms_Bn)
            while not drawing.done:
                drawing.draw_block()
            self.tokens_BL.copy_(drawing.tokens_Bl)
            self.logprobs_BL.copy_(drawing.logprobs_Bl)
            self.forwards_per_image = drawing.rows_run / len(self.condition)

        return [record(draw_all)]


class TokenByToken(RecordedSampler):
    """A recording for each length of the cache that is read, with and without the null branch: for raster generators."""

    def _record(self, generator: Generator, record: Record) -> list[Work]:
        assert isinstance(generator, StaticSteps)
        blocks, rows = generator.layout.length, len(self.condition)
        scales = block_scales(self.config, blocks)
        guided = 1 + max((k for k, scale in enumerate(scales) if scale != 1.0), default=-1)  # blocks with a null branch
        self.scales_L = torch.tensor(scales, device=generator.device)
        self.block_1 = torch.zeros(1, dtype=torch.long, device=generator.device)
        self.cell_1 = torch.zeros_like(self.block_1)
        self.cache = generator.new_cache(2 * rows if guided else rows)
        found = [record(lambda: self._first(generator, guided > 0))]
        prefix = self.cache.position
        steps: dict[tuple[int, bool], Work] = {}
        for block in range(1, blocks):
            length = min(-(-(prefix + block) // BUCKET) * BUCKET, prefix + blocks - 1)
            key = (length, block < guided)
            if key not in steps:
                steps[key] = record(partial(self._step, generator, *key))
            found.append(steps[key])
        self.forwards_per_image = float(blocks + guided)
        return found

    def _first(self, generator: Generator, guided: bool) -> None:
        self.cache.position = 0
        both = [self.condition, generator.null_condition(self.condition)] if guided else [self.condition]
        logits = generator.start(Condition.cat(both), self.cache)
        self.block_1.zero_()
        self.cell_1.fill_(self.cache.position)
        self._draw(logits)

    def _step(self, generator: StaticSteps, length: int, guided: bool) -> None:
        cache = self.cache if guided else generator.first_rows(self.cache, len(self.condition))
        tokens_B1 = self.tokens_BL.index_select(1, self.block_1 - 1).repeat(2 if guided else 1, 1)
        logits = generator.static_step(tokens_B1, cache, self.cell_1[None], length)
        self.cell_1 += 1
        self._draw(logits)

    def _draw(self, logits: Tensor) -> None:
        rows = len(self.condition)
        if len(logits) > rows:
            scale = self.scales_L[self.block_1]
            cond, null = logits[:rows], logits[rows:]
            logits = torch.where(scale == 1.0, cond, guide(cond, null, scale))
        tokens, logprobs = draw_tokens(logits, self.config, self.uniforms_Bn.index_select(1, self.block_1))
        self.tokens_BL.index_copy_(1, self.block_1, tokens)
        self.logprobs_BL.index_copy_(1, self.block_1, logprobs)
        self.block_1 += 1


# the newest sampler of each generator, with what it was made for, and the bytes that it holds
_samplers: WeakKeyDictionary[Generator, tuple[Any, RecordedSampler, int]] = WeakKeyDictionary()


def can_record(generator: Generator) -> bool:
    """Whether its steps may be recorded here: made for it, on an NVIDIA GPU, with weights that are whole and stay in place."""
    weight = next(generator.parameters())
    return "graphs" in generator.engines and weight.is_cuda and type(weight).__name__ != "DTensor"


def sample_recorded(
    kind: type[RecordedSampler], generator: Generator, condition: Condition, config: SamplingConfig, index_B: Tensor
) -> Rollout:
    """As `sample`; the first call for a batch's shape and settings records, which takes about as long as an eager image."""
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in condition.tensors.items())
    # moved weights need a new recording
    weights = tuple(tensor.data_ptr() for tensor in generator.state_dict().values())
    key = (kind, shapes, replace(config, seed=0), weights)
    known = _samplers.get(generator)
    with evaluating(generator):
        if known is not None and known[0] == key:
            return known[1](condition, config, index_B)
        _samplers.pop(generator, None)
        del known
        before = torch.cuda.memory_allocated()
        sampler = kind(generator, condition, config, _cuda_recorder())
        rollout = sampler(condition, config, index_B)
        _samplers[generator] = (key, sampler, torch.cuda.memory_allocated() - before)
        return rollout


def release_recordings(share: float = 0.1) -> None:
    """Give back the memory of recordings, their caches above all, that hold more than this share of their device's."""
    for generator, (_, _, held) in list(_samplers.items()):
        if held > share * torch.cuda.get_device_properties(generator.device).total_memory:
            del _samplers[generator]


def _cuda_recorder() -> Record:
    """Records into graphs that share their memory; the order of replaying must be that of recording."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(work: Work) -> Work:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()  # libraries set themselves up at the first call, which must not be recorded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            work()
        return graph.replay

    return record
