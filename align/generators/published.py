"""What the families with published weight files share beside the contract: a tokenizer, pixels, and the file's form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from align.generators.base import Generator
from align.generators.beta import BetaEmbedding
from align.tensor_files import TensorFile, save_tensors
from align.tokenizers import BSQTokenizer, MultiscaleVQTokenizer, VQTokenizer
from align.types import Condition

Tokenizer = TypeVar("Tokenizer", VQTokenizer, MultiscaleVQTokenizer, BSQTokenizer)


class PublishedGenerator(Generator, Generic[Tokenizer]):
    """A generator over a frozen tokenizer's codes, which remembers the file that it came from.

    wrapper: the key that the authors save a state_dict under, for generators that came from no file.
    """

    tokenizer: Tokenizer | None
    file: TensorFile | None
    wrapper: str | None = None

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self.attach(tokenizer)
        self.file = None
        self.beta_embedding: BetaEmbedding | None = None

    def attach(self, tokenizer: Tokenizer | None) -> None:
        # kept out of the module tree: it is frozen, and must not be trained, saved or cast with the generator
        self.__dict__["tokenizer"] = tokenizer.requires_grad_(False).eval() if tokenizer is not None else None

    def companions(self) -> list[Any]:
        return [part for part in (self.tokenizer, self.file) if part is not None]

    # --- the extra input of guidance-free training

    @property
    @abstractmethod
    def condition_width(self) -> int:
        """Numbers in a condition's embedding."""

    def add_beta_embedding(self, sampling_beta: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.beta_embedding = BetaEmbedding(self.condition_width, sampling_beta).to(self.device)

    def beta_tensors(self, rows: int) -> dict[str, Tensor]:
        """What a condition of so many rows carries of it: nothing where the network has no such input."""
        if self.beta_embedding is None:
            return {}
        return {"beta": self.beta_embedding.sampling_beta.expand(rows).clone()}

    def with_beta(self, embedding: Tensor, condition: Condition) -> Tensor:
        """A condition's embedding [B, ..., C], moved by beta where the network has that input."""
        if self.beta_embedding is None:
            return embedding
        moved_BC = self.beta_embedding(condition.tensors["beta"]).to(embedding.dtype)
        return embedding + moved_BC.view(len(moved_BC), *[1] * (embedding.dim() - 2), -1)

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
        if next(self.tokenizer.parameters()).device != self.device:  # asked first: `to` goes through all of its modules
            self.tokenizer.to(self.device)
        return self.tokenizer

    # --- published format

    @property
    def suffix(self) -> str:
        """What a name for the exported weights ends in: .pt, .safetensors, or nothing where they are a folder."""
        return ".pt" if self.file is None else self.file.suffix

    def published_name(self, name: str) -> str:
        """What the authors call one of the tensors here."""
        return name

    def published_state(self) -> dict[str, Tensor]:
        """The weights under the authors' names."""
        return {self.published_name(name): tensor for name, tensor in self.state_dict().items()}

    def save_published(self, path: Path | str) -> None:
        """Write the authors' format: wrapper, names, key order, dtypes and all else that the file held, as it was read.

        A path without a file's suffix gives a folder, where the weights came from one.

        Raises:
            OSError: the disk is full or the folder cannot be written; a file that was there stays whole.
        """
        if self.file is None:
            save_tensors(Path(path), self.published_state(), self.wrapper)
        else:
            self.file.save(self.published_state(), Path(path))


def describe(tensors: Mapping[str, Tensor]) -> str:
    """A guess at what a file is instead, for error messages."""
    signs = {
        "encoder.conv_in.weight": "it looks like an image tokenizer: pass it as tokenizer_checkpoint",
        "encoder.conv_in.conv.weight": "it looks like Infinity's image tokenizer: pass it as tokenizer_checkpoint",
        "cls_embedding.uncond_embedding": "it looks like a text-to-image LlamaGen: load it as llamagen-t2i",
        "cls_embedding.embedding_table.weight": "it looks like a class-conditional LlamaGen: load it as llamagen",
        "pos_1LC": "it looks like a VAR generator: load it as var",
        "text_proj_for_sos.ca.mat_q": "it looks like an Infinity generator: load it as infinity",
        "language_model.lm_head.weight": "it looks like Janus: load it as janus",
        "model.generation_embeddings.weight": "it looks like Janus: load it as janus",
    }
    for name, meaning in signs.items():
        if name in tensors:
            return meaning
    return f"its first tensors are {list(tensors)[:4]}"
