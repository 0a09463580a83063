"""What a run takes of a device's memory: computed before it starts, and measured phase by phase while it goes on."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.generators.base import Generator, evaluating
from align.training.inputs import Batch, ModelInput, Scoring, conditions, model_inputs
from align.types import Average


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each part. `update` and `rollouts` are never held at once."""

    weights: int
    reference: int
    optimizer: int
    gradients: int
    update: int  # activations and logits of a micro-batch, at the peak of its forward and backward pass
    rollouts: int  # keys and values of the images that are sampled at once
    copy: int = 0  # the weights in bfloat16 that rollouts are drawn from

    @property
    def total(self) -> int:
        held = self.weights + self.reference + self.optimizer + self.copy
        return held + max(self.gradients + self.update, self.rollouts)

    @property
    def still_to_come(self) -> int:
        """Beyond what is loaded already."""
        return self.total - self.weights - self.reference

    def __str__(self) -> str:
        parts = {name: size for name, size in vars(self).items() if size}
        return f"memory {_gb(self.total)} GB: " + ", ".join(f"{name} {_gb(size)}" for name, size in parts.items())

    def warning(self, free: int) -> str | None:
        """What to do where it is more than the free bytes of the device."""
        if self.still_to_come <= free:
            return None
        knobs = ["trainer.gradient_checkpointing=selective (or true)"]
        if self.update > self.rollouts:
            knobs.insert(0, "trainer.per_device_train_batch_size (trainer.global_batch_size keeps the step as it is)")
        if self.rollouts:
            knobs.append("rollout.batch_size")
        if self.reference:
            knobs.append("reference.kind=cached or adapter_off")
        knobs.append("trainer.lora_rank")
        return (
            f"{self}. It may not fit: {_gb(self.still_to_come)} GB are still to come and {_gb(free)} are free. What "
            f"lowers it: {', '.join(knobs)}"
        )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2g}" if size < 1e10 else f"{size / 1e9:.0f}"


def estimate_memory(
    generator: Generator,
    wanted: list[ModelInput],
    raw_condition: Any,
    *,
    rows: int,
    scoring: Scoring,
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    reference: nn.Module | None,
    rollout_rows: int = 0,
    rollouts_in_bf16: bool = False,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> MemoryEstimate:
    """Of training this generator, as it stands on its device.

    Tries the forward and backward pass that the update will make on one row and on two, of random tokens, and the first
    step of a sampler; what more rows take follows. Objectives that decode with gradient (ste) take more than is seen.
    Leaves weights and random state as they were, and no gradient.

    Args:
        wanted: inputs of the policy.
        raw_condition: what a row of the data is generated from: a class, or a prompt.
        rows: of a micro-batch.
        rollout_rows: sequences sampled at once, with those of the null branch; in bfloat16 from a copy of the weights.
        autocast: the precision of the update.
    """
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    gradients = sum(parameter.nbytes for parameter in trained)
    with autocast():
        one, two = (_peak_of_update(generator, wanted, raw_condition, scoring, count) for count in (1, 2))
    return MemoryEstimate(
        weights=module_bytes(generator),
        reference=0 if reference is None else module_bytes(reference),
        optimizer=round(gradients * _state_share(make_optimizer, trained)),
        gradients=gradients,
        update=one + (rows - 1) * (two - one),
        rollouts=rollout_rows * _cache_bytes(generator, raw_condition) // (1 + rollouts_in_bf16) if rollout_rows else 0,
        copy=sum(2 * parameter.numel() for parameter in generator.parameters()) if rollouts_in_bf16 else 0,
    )


def module_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    import psutil

    return int(psutil.virtual_memory().available)


def _state_share(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], like: list[nn.Parameter]) -> float:
    """Bytes of an optimiser's state for a byte of parameters."""
    sample = nn.Parameter(torch.zeros(1024, dtype=like[0].dtype, device=like[0].device))
    sample.grad = torch.zeros_like(sample)
    optimizer = make([sample])
    optimizer.step()
    state = [value for value in optimizer.state[sample].values() if isinstance(value, Tensor) and value.numel() > 1]
    return sum(value.nbytes for value in state) / sample.nbytes


def _peak_of_update(
    generator: Generator, wanted: list[ModelInput], raw_condition: Any, scoring: Scoring, rows: int
) -> int:
    batch = _random_batch(generator, raw_condition, rows)
    for parameter in generator.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)  # as it lies there from the micro-batch before

    def update() -> None:
        given, _ = conditions(generator, batch)
        found = model_inputs(generator, generator, batch, given, wanted, scoring, generator, wanted[0].view_name)
        torch.stack([value.mean() for value in found.values() if value.requires_grad]).sum().backward()

    was_training = generator.training
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        generator.train()
        with watch_peak(generator.device) as peak:
            update()
    generator.train(was_training)
    generator.zero_grad()
    return peak()


def _cache_bytes(generator: Generator, raw_condition: Any) -> int:
    """Of one sequence, at its full length."""
    with evaluating(generator), watch_peak(generator.device) as peak:
        cache = generator.new_cache(1)
        generator.start(generator.encode_condition([raw_condition]), cache)
    return peak()


def _random_batch(generator: Generator, raw_condition: Any, rows: int) -> Batch:
    """Every field that a view may score."""
    device, shape = generator.device, (rows, generator.layout.length)
    tokens_BL = torch.randint(generator.vocab_size, shape, device=device, generator=torch.Generator(device))
    label = [raw_condition] * rows
    labels = torch.tensor(label, device=device) if generator.num_classes is not None else label
    fields = ("tokens", "fake", "chosen", "rejected", "rollout", "context")
    batch: dict[str, Any] = dict.fromkeys(fields, tokens_BL)
    batch |= {"actions": tokens_BL[:, None], "label": labels, "negative_label": labels}
    return {**batch, "dropped": torch.zeros(rows, dtype=torch.bool, device=device)}


# --- measured


@contextmanager
def watch_peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Gives a function that tells how many bytes more than at the beginning were allocated at once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        with _Allocations() as seen:
            yield lambda: seen.peak


class _Allocations(TorchDispatchMode):
    """Follows every storage that an operation makes until it is given back. What kernels use within is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage(), given)
        return result

    def _follow(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in given:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class PhasePeaks:
    """Peaks of a GPU's memory within the phases of a step, which may lie in each other; on a CPU there are none."""

    def __init__(self, log: Callable[[Mapping[str, Average]], None]) -> None:
        self.log = log
        self._outer: list[int] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Log `peak_gb/NAME`, the most that was allocated meanwhile."""
        if not torch.cuda.is_available():
            yield
            return
        self._outer = [max(peak, torch.cuda.max_memory_allocated()) for peak in self._outer] + [0]
        torch.cuda.reset_peak_memory_stats()
        try:
            yield
        finally:
            peak = max(self._outer.pop(), torch.cuda.max_memory_allocated())
            self._outer = [max(outer, peak) for outer in self._outer]
            torch.cuda.reset_peak_memory_stats()
        self.log({f"peak_gb/{name}": Average.of(torch.tensor(peak / 1e9))})
