"""What the families with published weight files share beside the contract: class labels, pixels, and the file's form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from align.files import save_tensors
from align.generators.base import Generator
from align.generators.beta import BetaEmbedding
from align.tokenizers import MultiscaleVQTokenizer, VQTokenizer
from align.types import Condition

Tokenizer = TypeVar("Tokenizer", VQTokenizer, MultiscaleVQTokenizer)


class PublishedGenerator(Generator, Generic[Tokenizer]):
    """A class-conditional generator over a frozen tokenizer's codes, which remembers the file that it came from."""

    num_classes: int  # without the null class, whose id is the number itself
    tokenizer: Tokenizer | None

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self.attach(tokenizer)
        # key order, wrapper and dtypes of the file this came from; see `save_published`
        self.published_dtypes: dict[str, torch.dtype] = {}
        self.published_extras: dict[str, Tensor] = {}
        self.published_wrapper: str | None = None
        self.beta_embedding: BetaEmbedding | None = None

    def attach(self, tokenizer: Tokenizer | None) -> None:
        # kept out of the module tree: it is frozen, and must not be trained, saved or cast with the generator
        self.__dict__["tokenizer"] = tokenizer.requires_grad_(False).eval() if tokenizer is not None else None

    # --- conditions

    def encode_condition(self, raw: Sequence[int] | Tensor) -> Condition:
        labels = torch.as_tensor(raw)
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"class labels must be a list of integers, got {raw!r:.80}")
        if labels.numel() and (labels.min() < 0 or labels.max() >= self.num_classes):
            bad = labels[(labels < 0) | (labels >= self.num_classes)][0].item()
            raise ValueError(f"class label {bad} is out of range; this generator knows 0 to {self.num_classes - 1}")
        tensors = {"label": labels.long().to(self.device)}
        if self.beta_embedding is not None:
            tensors["beta"] = self.beta_embedding.sampling_beta.expand(len(labels)).clone()
        return Condition(tensors)

    def null_condition(self, like: Condition) -> Condition:
        null = {"label": torch.full_like(like.tensors["label"], self.num_classes)}
        return Condition(
            null | {name: torch.ones_like(like.tensors[name]) for name in ("beta",) if name in like.tensors}
        )

    @property
    @abstractmethod
    def condition_width(self) -> int:
        """Numbers in a condition's embedding."""

    def add_beta_embedding(self, sampling_beta: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.beta_embedding = BetaEmbedding(self.condition_width, sampling_beta).to(self.device)

    def with_beta(self, class_BC: Tensor, condition: Condition) -> Tensor:
        """The class's embedding, moved by beta where the network has that input."""
        if self.beta_embedding is None:
            return class_BC
        return class_BC + self.beta_embedding(condition.tensors["beta"]).to(class_BC.dtype)

    # --- pixels

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels; known by the tokenizer."""

    def encode(self, images_BHWC: Tensor) -> Tensor:
        tokenizer = self.require_tokenizer()
        expected = (*self.image_size, 3)
        if images_BHWC.dtype != torch.uint8 or images_BHWC.dim() != 4 or tuple(images_BHWC.shape[1:]) != expected:
            raise ValueError(
                f"images must be uint8 [B, {', '.join(map(str, expected))}], got {images_BHWC.dtype} {list(images_BHWC.shape)}"
            )
        return tokenizer.encode_images(images_BHWC)

    def embed_tokens(self, tokens_BL: Tensor) -> Tensor:
        return self.require_tokenizer().embed(tokens_BL)

    def require_tokenizer(self, why: str = "") -> Tokenizer:
        """The tokenizer, on the generator's device. Raises ValueError, with the reason, where there is none."""
        if self.tokenizer is None:
            raise ValueError(
                f"this generator was loaded without a tokenizer{why}; pass tokenizer_checkpoint= to load_generator"
            )
        return self.tokenizer.to(self.device)

    def check_length(self, tokens_BL: Tensor) -> None:
        if tokens_BL.shape[1] != self.layout.length:
            raise ValueError(f"got {tokens_BL.shape[1]} tokens an image; this generator has {self.layout.length}")

    # --- published format

    def save_published(self, path: Path | str) -> None:
        """Write the authors' format: names, wrapper, key order, dtypes and extra tensors as they were read.

        Raises:
            OSError: the disk is full or the folder cannot be written; a file that was there stays whole.
        """
        state: dict[str, Tensor] = self.state_dict()
        names = [*self.published_dtypes, *(name for name in state if name not in self.published_dtypes)]
        tensors = {
            name: self.published_extras[name]
            if name in self.published_extras
            else state[name].to(self.published_dtypes.get(name, state[name].dtype))
            for name in names
        }
        save_tensors(Path(path), tensors, self.published_wrapper)


def describe(tensors: Mapping[str, Tensor]) -> str:
    """A guess at what a file is instead, for error messages."""
    signs = {
        "encoder.conv_in.weight": "it looks like an image tokenizer: pass it as tokenizer_checkpoint",
        "cls_embedding.uncond_embedding": "it looks like a text-to-image LlamaGen",
        "cls_embedding.embedding_table.weight": "it looks like a class-conditional LlamaGen",
        "pos_1LC": "it looks like a VAR generator",
        "language_model.lm_head.weight": "it looks like Janus",
    }
    for name, meaning in signs.items():
        if name in tensors:
            return meaning
    return f"its first tensors are {list(tensors)[:4]}"
