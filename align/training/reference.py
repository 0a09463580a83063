"""The reference that the policy is measured against and held near to.

Five kinds, one interface: a frozen copy; a snapshot that is refreshed or averaged towards the policy; the policy itself
with its adapters off; and log-probs computed once, so that the reference can leave memory.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from accelerate.utils import gather_object
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from align.data.stream import Stream
from align.files import sha256_of_tensors, write_atomically
from align.generators.base import Generator, evaluating
from align.progress import progress_bar
from align.training.adapters import adapters_off, has_adapters
from align.training.inputs import Batch, ModelInput, Scoring, conditions, model_inputs
from align.types import Condition


class Reference(Protocol):
    """Gives what an objective asks of the reference for a batch."""

    fingerprint: str  # sha256 of the weights that the reference starts with

    def inputs(
        self, batch: Batch, given: Mapping[str, Condition], wanted: Sequence[ModelInput], scoring: Scoring
    ) -> dict[str, Tensor]:
        """The wanted inputs by name, without gradient."""

    @property
    def generator(self) -> Generator | None:
        """The model to sample from or to ask for logits; None where there are only stored numbers."""


class FrozenReference:
    """A copy of the generator as it is now, in eval mode, never trained.

    With `sync_steps` it is a snapshot: every so many steps it moves to mixup * policy + (1 - mixup) * itself (TRL's
    ref_model_sync_steps and ref_model_mixup_alpha; mixup 1 replaces it, a small one every step is an average).

    dropout: it drops out as a policy does while it trains, as CCA's released code has it; gaps then start at that noise.
    """

    def __init__(
        self, generator: Generator, *, sync_steps: int | None = None, mixup: float = 1.0, dropout: bool = False
    ) -> None:
        if sync_steps is not None and sync_steps < 1:
            raise ValueError(f"reference.sync_steps is {sync_steps}; it must be at least 1, or null for never")
        if not 0 < mixup <= 1:
            raise ValueError(f"reference.mixup is {mixup}; it must be in (0, 1]")
        shared = {id(part): part for part in generator.companions()}
        self.generator = copy.deepcopy(generator, shared).eval().requires_grad_(False)
        self.fingerprint = sha256_of_tensors(self.generator.state_dict())
        self.generator.train(dropout)
        self.sync_steps = sync_steps
        self.mixup = mixup

    def inputs(
        self, batch: Batch, given: Mapping[str, Condition], wanted: Sequence[ModelInput], scoring: Scoring
    ) -> dict[str, Tensor]:
        self.generator.to(batch["dropped"].device)
        with torch.no_grad():
            return model_inputs(
                self.generator, self.generator, batch, given, wanted, replace(scoring, null_branch="trains")
            )

    def sync(self, policy: Generator, step: int) -> bool:
        """Move towards the policy if it is time; whether it moved."""
        if self.sync_steps is None or step % self.sync_steps:
            return False
        self.generator.to(policy.device)
        with torch.no_grad():
            for own, new in zip(self.generator.parameters(), policy.parameters(), strict=True):
                own.lerp_(new.detach().to(own.dtype), self.mixup)  # each process its own piece where both are sharded
        return True


class AdapterOffReference:
    """The policy itself with its LoRA adapters switched off: no second copy in memory."""

    def __init__(self, generator: Generator) -> None:
        if not has_adapters(generator):
            raise ValueError(
                "reference.kind=adapter_off needs a policy that trains adapters; set trainer.lora_rank, or reference.kind=frozen"
            )
        self.policy = generator
        with adapters_off(generator):
            self.fingerprint = sha256_of_tensors(
                {name: tensor for name, tensor in generator.state_dict().items() if "lora_" not in name}
            )

    @property
    def generator(self) -> None:
        """None: sampling would have to switch the policy's adapters under its feet."""
        return None

    def inputs(
        self, batch: Batch, given: Mapping[str, Condition], wanted: Sequence[ModelInput], scoring: Scoring
    ) -> dict[str, Tensor]:
        with adapters_off(self.policy), evaluating(self.policy):
            return model_inputs(self.policy, self.policy, batch, given, wanted, replace(scoring, null_branch="trains"))


class CachedReference:
    """Log-probs of a whole training stream, computed in one pass, so that the reference can leave memory.

    They belong to positions of the stream: another seed, label drop, dataset or reference makes them worthless, so a
    stored table carries the hash of all of those and is refused against others.
    """

    def __init__(self, table_NK: Tensor, names: Sequence[str], fingerprint: str) -> None:
        self.table_NK = table_NK
        self.names = list(names)
        self.fingerprint = fingerprint
        self.generator = None

    @staticmethod
    def check(wanted: Sequence[ModelInput], stream_fields: Sequence[str]) -> None:
        """Raises ValueError for inputs that cannot be computed before training."""
        bad = [item.name for item in wanted if item.shape != "B" or item.view.rows[0] not in stream_fields]
        if bad:
            raise ValueError(
                f"reference.kind=cached cannot supply {', '.join(bad)}: only log-probs of whole images that are known "
                "before training can be stored; set reference.kind=frozen"
            )

    def inputs(
        self, batch: Batch, given: Mapping[str, Condition], wanted: Sequence[ModelInput], scoring: Scoring
    ) -> dict[str, Tensor]:
        rows = self.table_NK[batch["position"].cpu()].to(batch["dropped"].device)
        return {item.name: rows[:, self.names.index(item.name)] for item in wanted}

    @staticmethod
    def compute(
        generator: Generator,
        stream: Stream,
        wanted: Sequence[ModelInput],
        *,
        batch_size: int,
        bf16: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> CachedReference:
        """One pass over the stream of the generator as it is now, in the precision that the policy will train in. There is
        no second copy of it at any time.

        Of `world` processes each computes every world-th row, from row `rank` on, and all have the whole table.
        """
        CachedReference.check(wanted, list(stream[0]))
        own = Subset(stream, range(rank, len(stream), world))
        bar = progress_bar(total=len(own), description="reference log-probs", unit="img")
        columns = [torch.empty(0, len(wanted))]  # of a process without rows
        for batch in DataLoader(own, batch_size=batch_size):
            batch = {name: x.to(generator.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            given, _ = conditions(generator, batch)
            with evaluating(generator), torch.autocast(generator.device.type, torch.bfloat16, enabled=bf16):
                found = model_inputs(generator, generator, batch, given, wanted, Scoring())
            columns.append(torch.stack([found[item.name] for item in wanted], dim=1).cpu())
            bar.update(len(batch["dropped"]))
        bar.close()
        table_NK = torch.cat(columns)
        if world > 1:
            parts, table_NK = gather_object([table_NK]), table_NK.new_empty(len(stream), len(wanted))
            for start, part in enumerate(parts):
                table_NK[start::world] = part
        return CachedReference(table_NK, [item.name for item in wanted], sha256_of_tensors(generator.state_dict()))

    @staticmethod
    def file_name(generator: Generator, stream: Stream, wanted: Sequence[ModelInput], *, bf16: bool) -> str:
        """Of the table that `compute` would make, in a folder with the tables of other runs."""
        given = [
            sha256_of_tensors(generator.state_dict()),
            stream.fingerprint,
            *(item.name for item in wanted),
            str(bf16),
        ]
        return f"logprobs-{hashlib.sha256(' '.join(given).encode()).hexdigest()[:16]}.safetensors"

    def save(self, path: Path, stream: Stream) -> None:
        metadata = {"reference": self.fingerprint, "stream": stream.fingerprint, "names": " ".join(self.names)}
        write_atomically(
            path, lambda temporary: save_file({"logprobs": self.table_NK.contiguous()}, temporary, metadata)
        )

    @staticmethod
    def load(path: Path, generator: Generator, stream: Stream, wanted: Sequence[ModelInput]) -> CachedReference:
        """Raises ValueError when the table belongs to another reference, stream or objective."""
        with safe_open(path, framework="pt") as file:
            metadata, table = file.metadata(), file.get_tensor("logprobs")
        expected = {
            "reference": sha256_of_tensors(generator.state_dict()),
            "stream": stream.fingerprint,
            "names": " ".join(item.name for item in wanted),
        }
        for name, value in expected.items():
            if metadata.get(name) != value:
                raise ValueError(
                    f"{path} was computed with another {name}: {metadata.get(name, 'unknown')[:60]}, now {value[:60]}; delete the file to compute it anew"
                )
        return CachedReference(table, metadata["names"].split(), expected["reference"])
