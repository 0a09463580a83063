"""The contract that every generator keeps, and that samplers, objectives and trainers rely on."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.generators.deferred import DeferredLogits
from align.generators.recompute import Recompute
from align.types import Condition

# eager: operation by operation; graphs: by CUDA graphs; native: by a kernel of our own on a CPU; auto: graphs or native
# where they are possible, else eager; jacobi: many tokens at once by guessing, other images of the same distribution
ENGINES = ("auto", "eager", "graphs", "native", "jacobi")
# what is made of the logits before they exist
Readout = Callable[[DeferredLogits], Any]


@dataclass(frozen=True)
class TokenLayout:
    """How an image's tokens are drawn: in blocks, each given all those before it.

    A raster generator has `length` blocks of one token; a next-scale one has a block per scale.
    """

    block_sizes: tuple[int, ...]

    @property
    def length(self) -> int:
        return sum(self.block_sizes)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(start, end) of each block."""
        start = 0
        for size in self.block_sizes:
            yield start, start + size
            start += size


class Generator(nn.Module, ABC):
    """A pretrained autoregressive image generator: policy or reference.

    An adapter owns its off-by-one, its null condition, its masks and its published names; nobody else knows them.
    It never drops labels by itself, in train mode either: that is a mask made by the trainer.
    """

    family: str
    layout: TokenLayout
    vocab_size: int
    num_classes: int | None = None  # None: not class-conditional
    size_name: str | None = None  # the published size that this is (XL, d16); None for any other
    undecayed: tuple[
        str, ...
    ] = ()  # parts of names that the authors exempt from weight decay, beside all of one dimension
    engine: str = "auto"  # how samples are drawn, one of ENGINES
    engines: tuple[str, ...] = ()  # those it has beside eager
    block_class: str  # the class of module that the network repeats: what FSDP puts together and frees again
    gradient_checkpointing: Recompute = False  # which activations the backward pass computes again: see `run_block`

    @abstractmethod
    def encode_condition(self, raw: Any) -> Condition:
        """Class ids, prompts, or what else a family reads, to a condition on the generator's device.

        Raises ValueError for what it does not know.
        """

    @abstractmethod
    def null_condition(self, like: Condition) -> Condition:
        """The unconditional twin of `like`: same rows, same shapes."""

    def forward(
        self,
        tokens_BL: Tensor,
        condition: Condition,
        *,
        context_BL: Tensor | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """Teacher forcing: float32 logits [B, L, V] where logits[:, i] scores tokens[:, i].

        Args:
            context_BL: replaces the tokens as the network's input (VA-π's noised context); every scored token still sees
                only the blocks before its own.
            readout: its result is returned instead. It is given the logits deferred, to read them without ever holding
                them all. Here and not outside, since wrappers (DDP, FSDP) know of what happens within `forward` alone.

        Raises:
            ValueError: another number of tokens than an image has.
        """
        inputs_BL = tokens_BL if context_BL is None else context_BL
        if inputs_BL.shape[1] != self.layout.length:
            raise ValueError(f"got {inputs_BL.shape[1]} tokens an image; this generator has {self.layout.length}")
        logits = self.teacher_force(inputs_BL, condition)
        return logits.whole() if readout is None else readout(logits)

    @abstractmethod
    def teacher_force(self, inputs_BL: Tensor, condition: Condition) -> DeferredLogits:
        """The network over a whole image's tokens, up to its output layer."""

    @abstractmethod
    def new_cache(self, rows: int) -> Any:
        """Empty state for sampling `rows` sequences."""

    @abstractmethod
    def start(self, condition: Condition, cache: Any) -> Tensor:
        """Feed the condition; float32 logits [B, n, V] of the first block."""

    @abstractmethod
    def step(self, tokens_Bn: Tensor, cache: Any) -> Tensor:
        """Feed the block just drawn; float32 logits [B, n', V] of the next one."""

    @abstractmethod
    def select_rows(self, cache: Any, rows_B: Tensor) -> None:
        """Make a started cache that of these of its sequences, int64 [B] on the generator's device.

        They may be fewer (the null branch is forgotten once guidance has ended), in another order, or repeated; what is
        fed to one of them later is not seen by the others. The memory of the others is given back.
        """

    @abstractmethod
    def encode(self, images_BHWC: Tensor) -> Tensor:
        """uint8 images [B, H, W, 3] to tokens int64 [B, L]."""

    @abstractmethod
    def decode(self, tokens_BL: Tensor) -> Tensor:
        """Tokens to uint8 images [B, H, W, 3], rounded as the authors' sampler does."""

    def decode_first_blocks(self, tokens_Bl: Tensor) -> Tensor | None:
        """uint8 images [B, H, W, 3] of what the first blocks alone say, whole ones; None for a generator whose unfinished
        images show nothing yet, as of raster ones, which know some places and nothing of the others."""
        return None

    @abstractmethod
    def decode_soft(self, weights_BLV: Tensor) -> Tensor:
        """Mixtures of codes to pixels, differentiable: float [B, 3, H, W], about [-1, 1] and not clamped.

        `weights_BLV` are convex weights over the codebook for every token; one-hot ones give what `decode` rounds.
        """

    @abstractmethod
    def embed_tokens(self, tokens_BL: Tensor) -> Tensor:
        """Codebook vectors of the tokens, float [B, L, C]: how alike two tokens look."""

    @abstractmethod
    def add_beta_embedding(self, sampling_beta: float) -> None:
        """Give the network one more input, the beta of guidance-free training (arXiv 2501.15420), which changes nothing
        until it is trained. Conditions then carry `beta` [B]: `sampling_beta` unless set, and 1 for the null condition."""

    @abstractmethod
    def save_published(self, path: Path | str) -> None:
        """Write the weights in the format that the original authors' code reads."""

    def companions(self) -> list[Any]:
        """What copies of the generator share: frozen networks beside it, the file it came from."""
        return []

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run in eval mode without gradients, and leave the mode as it was."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
