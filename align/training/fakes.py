"""A stored pool of the reference's own samples: cheaper than drawing them online, and memorised sooner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.files import sha256_of_tensors, write_atomically
from align.generators.base import Generator
from align.progress import progress_bar
from align.sampling import sample
from align.types import SamplingConfig

_DRAW = 3  # separates this random stream from others of the same seed


@dataclass(frozen=True)
class FakePool:
    """tokens_KNL: int64 [classes + 1, N, L], N samples of each class and, last, of the unconditional model;
    reference: sha256 of the weights that drew them; seed: of the drawing."""

    tokens_KNL: Tensor
    reference: str
    seed: int

    @staticmethod
    def compute(generator: Generator, *, per_class: int, seed: int, batch_size: int) -> FakePool:
        """Plain samples (no guidance, no filters), equally many for each class.

        Raises:
            ValueError: the generator has no classes, or per_class is below 1.
        """
        if generator.num_classes is None:
            raise ValueError(
                "a pool of fakes is stored by class, and this generator has none; set fakes.per_class=null (drawn online)"
            )
        if per_class < 1:
            raise ValueError(f"fakes.per_class is {per_class}; it must be at least 1")
        config = SamplingConfig(seed=seed)
        bar = progress_bar(total=(generator.num_classes + 1) * per_class, description="fakes", unit="img")
        classes = []
        for row in range(generator.num_classes + 1):
            parts = []
            for start in range(0, per_class, batch_size):
                index_B = torch.arange(start, min(start + batch_size, per_class)) + row * per_class
                condition = generator.encode_condition([min(row, generator.num_classes - 1)] * len(index_B))
                if row == generator.num_classes:
                    condition = generator.null_condition(condition)
                parts.append(sample(generator, condition, config, index_B=index_B).tokens_BL.cpu())
                bar.update(len(index_B))
            classes.append(torch.cat(parts))
        bar.close()
        return FakePool(torch.stack(classes), sha256_of_tensors(generator.state_dict()), seed)

    def draw(self, label_B: Tensor, dropped_B: Tensor, position_B: Tensor) -> Tensor:
        """int64 [B, L]: one sample a row, a pure function of the position."""
        classes = torch.where(dropped_B, len(self.tokens_KNL) - 1, label_B).cpu()
        number = self.tokens_KNL.shape[1]
        rows = [int(np.random.default_rng([_DRAW, self.seed, int(p)]).integers(number)) for p in position_B]
        return self.tokens_KNL[classes, torch.tensor(rows)].to(label_B.device)

    def save(self, path: Path) -> None:
        metadata = {"reference": self.reference, "seed": str(self.seed)}
        tensors = {"tokens": self.tokens_KNL.to(torch.int32).contiguous()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))

    @staticmethod
    def load(path: Path, reference: Generator) -> FakePool:
        """Raises ValueError when the file is no pool, or was drawn from other weights than the reference's."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata, tokens = file.metadata() or {}, file.get_tensor("tokens").long()
            pool = FakePool(tokens, metadata["reference"], int(metadata["seed"]))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is not a pool of fakes ({error}); delete it, and it is drawn anew") from error
        if pool.reference != (now := sha256_of_tensors(reference.state_dict())):
            raise ValueError(
                f"the fakes in {path} were drawn from another reference ({pool.reference[:12]}, now {now[:12]}); "
                "the log-ratio would score them wrongly. Delete the file to draw them anew, or name another"
            )
        return pool
