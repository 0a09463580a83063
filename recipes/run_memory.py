"""Whether a training will fit its device, said before it starts."""

from __future__ import annotations

from align.training.memory import MemoryEstimate, estimate_memory, free_bytes
from align.training.rollouts import Rollouts
from align.training.sources import Fakes
from align.training.trainer import AlignTrainer
from recipes.run import say


def look_at_memory(trainer: AlignTrainer) -> list[str]:
    """The estimate, with a warning where it is more than what is free; nothing where processes share one copy of the
    weights (FSDP, DeepSpeed), of which each holds a part."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return []
    estimate = estimate_of(trainer)
    warning = estimate.warning(free_bytes(trainer.args.device))
    say(str(estimate) if warning is None else f"warning: {warning}")
    return [str(estimate)]


def estimate_of(trainer: AlignTrainer) -> MemoryEstimate:
    source, reference = trainer.source, trainer.reference
    sampled, branches = 0, 1
    if isinstance(source, Rollouts):
        sampled, branches = source.micro_batches.size, 1 + (source.settings.sampling.guidance_scale != 1.0)
    elif isinstance(source, Fakes) and source.pool is None:
        sampled = source.micro_batches.size
    optimizer, settings = trainer.get_optimizer_cls_and_kwargs(trainer.args)
    return estimate_memory(
        trainer.generator,
        trainer.needs.of_model("policy"),
        trainer.raw_condition(0),
        rows=trainer.args.per_device_train_batch_size,
        scoring=source.scoring,
        make_optimizer=lambda parameters: optimizer(parameters, **settings),
        reference=None if reference is None else reference.generator,
        rollout_rows=branches * min(sampled, trainer.rows_per_step // trainer.accelerator.num_processes),
        rollouts_in_bf16=isinstance(source, Rollouts) and source.settings.bf16,
        autocast=trainer.accelerator.autocast,
    )
