"""What sampling cannot go below on a machine: the time to read weights and cache, and the time to multiply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align.generators.published import PublishedGenerator
from recipes.speed.machine import matmul_rate, read_bandwidth

# looked up by rows, not read whole
TABLES = ("embed_tokens", "tok_embeddings", "generation_embeddings", "class_emb", "cls_embedding", "pos_", "lvl_embed")
SMALLEST_MATMUL = 256  # rows from which on a product takes its arithmetic, not the reading of its matrix


@dataclass(frozen=True)
class Floor:
    """Seconds to draw a batch of images.

    reading: all matrices once a block, and the keys and values before it of every row, at the best rate of reading.
    multiplying: the matrices' and attention's operations, at the rate of a matrix product of the largest block's shape.
    """

    reading: float
    multiplying: float
    bytes_per_second: float
    flops_per_second: float

    @property
    def seconds(self) -> float:
        return max(self.reading, self.multiplying)


def floor(generator: PublishedGenerator[Any], rows: int, prompt: int) -> Floor:
    """For `rows` sequences, of both branches where there are two, after conditions of so many tokens."""
    matrices = [
        parameter
        for name, parameter in generator.named_parameters()
        if parameter.dim() == 2 and not any(table in name for table in TABLES)
    ]
    # a VAR's modulations depend on the class alone: once an image
    once = [id(p) for name, p in generator.named_parameters() if "ada_lin" in name]
    weight = matrices[0]
    sizes: Any = generator.sizes
    language = getattr(sizes, "language", {})
    width = sizes.dim * int(language.get("num_key_value_heads", sizes.num_heads)) // sizes.num_heads
    each = sum(p.numel() for p in matrices if id(p) not in once)
    first = sum(p.numel() for p in matrices if id(p) in once)
    numbers = flops = 0
    for start, end in generator.layout.spans():
        new = end - start + (prompt - 1 if start == 0 else 0)
        seen = prompt - 1 + end
        numbers += each + 2 * rows * sizes.num_layers * width * (seen - new)
        flops += 2 * rows * new * (each + 2 * sizes.num_layers * sizes.dim * seen)
    numbers, flops = numbers + first, flops + 2 * rows * first
    largest = max(SMALLEST_MATMUL, rows * max(generator.layout.block_sizes))
    bandwidth = read_bandwidth(each * weight.element_size(), weight.device, weight.dtype)
    rate = matmul_rate(largest, sizes.dim, 4 * sizes.dim, weight.device, weight.dtype)
    return Floor(numbers * weight.element_size() / bandwidth, flops / rate, bandwidth, rate)
