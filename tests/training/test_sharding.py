"""What can be told about sharding without several processes; test_ranks.py has the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config import load_config_from_file
from accelerate.utils import DistributedType
from conftest import tiny_infinity, tiny_janus, tiny_llamagen, tiny_var

import recipes
from align.generators import Generator
from align.training.contact import lost_contact
from align.training.sharding import Shards, is_sharded

LAUNCH = Path(recipes.__path__[0], "launch")


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_accelerates(path: Path) -> None:
    kind = yaml.safe_load(path.read_text())["distributed_type"]
    assert load_config_from_file(str(path)).distributed_type == DistributedType(kind)


def accelerator(version: int) -> SimpleNamespace:
    plugin = SimpleNamespace(fsdp_version=version)
    state = SimpleNamespace(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin, deepspeed_plugin=None)
    return SimpleNamespace(state=state)


def test_the_first_version_of_fsdp_is_refused() -> None:
    with pytest.raises(ValueError, match="fsdp_version is 1; .* set fsdp_version: 2"):
        Shards(accelerator(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [tiny_llamagen, tiny_var])
def test_a_twin_shares_its_weights_until_it_is_emptied(make: type) -> None:
    generator = make()
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    shards = Shards(accelerator(2))  # type: ignore[arg-type]
    part = shards.part(generator)
    assert part is not generator and part.tokenizer is generator.tokenizer and not is_sharded(part)
    assert shards.fsdp.transformer_cls_names_to_wrap == ["_Block"]
    pairs = list(zip(part.parameters(), generator.parameters(), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    shards.empty_twins()
    assert all(parameter.is_meta for parameter in generator.parameters())
    torch.testing.assert_close(dict(part.state_dict()), before, atol=0, rtol=0)
    with shards.whole(part) as whole:
        assert whole is part  # not yet cut up


@pytest.mark.parametrize("make", [tiny_llamagen, tiny_var, tiny_janus, tiny_infinity])
def test_every_family_tells_its_blocks(make: Callable[[], Generator]) -> None:
    generator = make()
    assert sum(type(module).__name__ == generator.block_class for module in generator.modules()) > 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4"), True),
        (torch.distributed.DistBackendError("NCCL error in: ..."), True),
        (RuntimeError("CUDA out of memory"), False),
        (OSError("Connection closed by peer"), False),
    ],
)
def test_lost_contact_is_told_from_own_errors(error: Exception, lost: bool) -> None:
    assert lost_contact(error) is lost
