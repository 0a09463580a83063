"""Composing a command's configuration from YAML and key=value, and refusing what would be silently ignored."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from recipes.choices import CONF, options

KINDS = {bool: "true or false", str: "a text", list: "a list", dict: "a group of settings"}
# settings whose values are not all of the default's type
CHOICES: dict[str, tuple[object, ...]] = {"trainer.gradient_checkpointing": (False, "selective", True)}


def compose(command: str, overrides: list[str]) -> DictConfig:
    """The resolved configuration of a command.

    Raises:
        ValueError: an unknown key or option (with the near names), a value of another type than the default's, or a
            required value (`???`) that was not given.
    """
    parsed = _parse(overrides)
    _refuse_foreign_experiment(command, parsed)
    groups = [str(item.input_line) for item in parsed if _is_group(item)]
    try:
        base = _compose(command, groups)
        for item in parsed:
            _check(item, base)
        config = _compose(command, overrides)
        if missing := OmegaConf.missing_keys(config):
            raise ValueError(
                f"required and not given: {', '.join(sorted(missing))}. Add for example {min(missing)}=VALUE"
            )
        OmegaConf.resolve(config)
        _settle_accumulation(config, {item.key_or_group for item in parsed})
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_explain(error, parsed)) from error
    return config


def _settle_accumulation(config: DictConfig, given: set[str]) -> None:
    """Derive the accumulation from the global batch, so that the number of processes changes nothing else."""
    trainer = config.get("trainer")
    if trainer is None or trainer.get("global_batch_size") is None:
        return
    total, rows = trainer.global_batch_size, trainer.per_device_train_batch_size
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "trainer.gradient_accumulation_steps" in given:
        raise ValueError(
            f"trainer.global_batch_size={total} decides the accumulation; set that one, or trainer.global_batch_size=null"
        )
    if total % (rows * world):
        raise ValueError(
            f"trainer.global_batch_size={total} does not divide among {world} process(es) of trainer.per_device_train_batch_size={rows} rows; "
            + _what_divides(total, rows, world)
        )
    trainer.gradient_accumulation_steps = total // (rows * world)


def _what_divides(total: int, rows: int, world: int) -> str:
    """Which micro-batches, processes or global batches would do."""
    if total % world:
        processes = ", ".join(str(n) for n in range(1, 2 * world) if total % n == 0)
        less, more = total // world * world, -(-total // world) * world
        batches = f"{less} or {more}" if less else str(more)
        return f"start one of {processes} processes, or set trainer.global_batch_size to {batches}"
    fitting = ", ".join(str(n) for n in range(1, 2 * rows) if total // world % n == 0)
    return f"set trainer.per_device_train_batch_size to one of {fitting}"


def _compose(command: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose(command, overrides)


def _parse(overrides: list[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ValueError(
            f"cannot read {' '.join(overrides)!r}: settings are key=value, and values with blanks, brackets or commas take "
            f"quotes inside the shell's, as 'source=\"my files (1)\"'. {_first_line(error)}"
        ) from error


def _is_group(item: Override) -> bool:
    return (CONF / item.key_or_group).is_dir()


def _refuse_foreign_experiment(command: str, parsed: list[Override]) -> None:
    """Experiments under zoo/ make a generator, all others align one."""
    for item in parsed:
        choice = item.value()
        if item.key_or_group == "experiment" and isinstance(choice, str):
            wanted = "pretrain" if choice.startswith("zoo/") else "train"
            if (command == "pretrain") != (wanted == "pretrain"):
                raise ValueError(
                    f"experiment {choice!r} is not for `align {command}`; try: align {wanted} experiment={choice}"
                )


def _check(item: Override, base: DictConfig) -> None:
    """Refuse a key that nothing reads, or a value of another kind than the default."""
    if _is_group(item) or item.is_add() or item.is_delete() or item.is_force_add():
        return
    known = dict(flatten(base))
    name = item.key_or_group
    parents = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    if name not in known and name not in parents:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        leaf = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
        hints = list(dict.fromkeys([*leaf, *near]))[:3]
        raise ValueError(
            f"unknown key {name!r}"
            + (f"; near names: {', '.join(hints)}" if hints else "")
            + ". `align COMMAND --help` lists them all"
        )
    default, value = known.get(name), item.value()
    # a part of a section may be null (actions.perceptual), a section itself not
    if name in parents and not isinstance(value, dict) and (value is not None or "." not in name):
        inside = [key for key in known if key.startswith(f"{name}.")]
        raise ValueError(f"{name} is a group of settings; got {value!r}. Set one of them: {', '.join(inside)}")
    if default is None or value is None or name in parents or default == "???" or str(default).startswith("${"):
        return
    number = (int, float)
    if name in CHOICES:
        fits, kind = value in CHOICES[name], f"one of {', '.join(str(choice).lower() for choice in CHOICES[name])}"
    elif isinstance(default, number) and not isinstance(default, bool):
        fits, kind = isinstance(value, number) and not isinstance(value, bool), "a number"
    else:
        fits, kind = isinstance(value, type(default)), KINDS.get(type(default), "")
    if not fits:
        raise ValueError(f"{name} is {default!r} by default, {kind}; got {value!r}")


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, unresolved value) of every leaf."""
    content: Any = OmegaConf.to_container(config, resolve=False) if isinstance(config, DictConfig) else config
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def with_sections(config: DictConfig, **sections: Any) -> DictConfig:
    """A copy with whole sections replaced, not merged."""
    result = config.copy()
    for name, section in sections.items():
        result[name] = section
    return result


def with_path(words: list[str], key: str) -> list[str]:
    """A word that is no setting is the value of `key`: the path in `align data show PATH`."""
    return [word if "=" in word or word.startswith("-") else f"{key}={_quoted(word)}" for word in words]


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w./:~*-]+", word) else json.dumps(word, ensure_ascii=False)


def _explain(error: Exception, parsed: list[Override]) -> str:
    for item in parsed:
        if (
            _is_group(item)
            and isinstance(choice := item.value(), str)
            and choice not in (known := options(item.key_or_group))
        ):
            near = difflib.get_close_matches(choice, known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else ""
            if item.key_or_group == "reward":
                hint += " Rewards themselves are named as 'reward.rewards=[{name: NAME}]'"
            return f"unknown {item.key_or_group} {choice!r}; known: {', '.join(known)}.{hint}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return f"{_first_line(error)} ({_first_line(error.__cause__)})"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
