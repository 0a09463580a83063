"""Where a reward's workers run: the `worker:` section of a reward, and the command that starts one."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rewards.environments import interpreter
from rewards.registry import registered
from rewards.worker_listen import TOKEN_VARIABLE

WORKER = Path(__file__).with_name("worker.py")
# a library that finds these would wait for the other processes of the training
_OF_TRAINING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
# a Python that finds these would look for its packages in another one's folders
_OF_OUR_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass(frozen=True)
class WorkerSettings:
    """The `worker:` section of a reward.

    python: interpreter that has the reward's packages; None is the running one.
    environment: instead of python, the name of one that `align rewards env` built.
    number: processes to start, for each process of the training.
    devices: CUDA_VISIBLE_DEVICES of each of them; None: all see the GPU that this process uses.
    addresses: instead of processes, running workers, as unix:/path or http://host:port.
    token_file: holds the token for HTTP; None: the variable ALIGN_REWARD_TOKEN does.
    images: what the function is given, torch or numpy; auto: torch where it is installed.
    batch_size: images of a call at most; max_megabytes: those of a message to a process of our own (servers tell theirs).
    call_timeout, start_timeout: seconds for a call's answer, and for loading.
    expect: {versions: {package: version}, weights: {setting: sha256}} that each worker must have.
    """

    python: str | None = None
    environment: str | None = None
    number: int = 1
    devices: tuple[str, ...] | None = None
    addresses: tuple[str, ...] = ()
    token_file: str | None = None
    images: str = "auto"
    batch_size: int = 32
    max_megabytes: int = 64
    call_timeout: float = 60.0
    start_timeout: float = 600.0
    expect: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("number", "batch_size", "max_megabytes", "call_timeout", "start_timeout"):
            value, whole = getattr(self, name), not name.endswith("timeout")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value > 0:
                raise ValueError(f"worker.{name} is {value!r}; it must be a {'whole ' * whole}number above 0")
        if sum(map(bool, (self.python, self.environment, self.addresses))) > 1:
            raise ValueError("worker has several of python, environment and addresses; one says where the reward runs")
        if self.images not in ("auto", "torch", "numpy"):
            raise ValueError(f"worker.images is {self.images!r}; known: auto, torch, numpy")
        if self.devices is not None and len(self.devices) != self.number:
            raise ValueError(f"worker.devices names {len(self.devices)} of worker.number={self.number}: one for each")
        for address in self.addresses:
            if not address.startswith(("unix:", "http://")):
                raise ValueError(f"worker.addresses has {address!r}; allowed: unix:/path, http://host:port")
        if unknown := sorted(set(self.expect) - {"versions", "weights"}):
            raise ValueError(f"worker.expect has {unknown[0]!r}; known: versions, weights")

    @staticmethod
    def read(section: Mapping[str, Any]) -> WorkerSettings:
        """From a section of a configuration.

        Raises:
            ValueError: an unknown setting, or a value that is not allowed.
        """
        known = [entry.name for entry in fields(WorkerSettings)]
        if unknown := sorted(set(section) - set(known)):
            raise ValueError(f"unknown setting worker.{unknown[0]}; known: {', '.join(known)}")
        given = dict(section)
        for name in ("devices", "addresses"):
            if given.get(name) is not None:
                if isinstance(given[name], str):
                    raise ValueError(f"worker.{name} is {given[name]!r}; it must be a list")
                given[name] = tuple(map(str, given[name]))
        return WorkerSettings(**given)

    def interpreter(self) -> str:
        """Path of the Python that the workers run in.

        Raises:
            ValueError: an environment that is unknown or was not built.
        """
        if self.environment:
            return str(interpreter(self.environment))
        return str(Path(self.python).expanduser()) if self.python else sys.executable


def worker_command(name: str, kwargs: Mapping[str, Any], python: str) -> list[str]:
    """The command that starts a worker, which serves its parent unless more words say otherwise.

    Args:
        name: as in `load_reward`, or package.module:function, which need not be importable here.
        kwargs: the reward's settings; what JSON can hold, and paths.

    Raises:
        ValueError: a name that is neither, a file that is not there, or settings that cannot be handed over.
    """
    try:
        settings = json.dumps(kwargs, default=_path)
    except TypeError as error:
        raise ValueError(f"the settings of reward {name!r} do not fit into JSON for its worker: {error}") from error
    return [python, str(WORKER), "--reward", _target(name, python), "--kwargs", settings]


def _path(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return str(value)
    raise TypeError(f"{value!r:.60} is of type {type(value).__name__}")


def _target(name: str, python: str) -> str:
    where, _, attribute = name.rpartition(":")
    if where.endswith(".py"):
        if not Path(where).exists():
            raise ValueError(f"there is no file {where} to load the reward {attribute!r} from")
        return f"{Path(where).absolute()}:{attribute}"
    if where:
        return name
    points = registered().get(name, [])
    if len(points) != 1:
        raise ValueError(
            f"{len(points)} rewards are registered as {name!r}; known: {', '.join(sorted(registered()))}. For a worker also path/to/file.py:function, or package.module:function of the other Python"
        )
    if python == sys.executable:
        return points[0].value
    # another Python may lack the package that registers it, and can still read its file
    spec = importlib.util.find_spec(points[0].module)
    return f"{spec.origin}:{points[0].attr}" if spec and spec.origin else points[0].value


def process_environment(python: str, device: str | None) -> dict[str, str]:
    """The variables of a worker's process: ours, without what ties them to this training and this Python."""
    hidden = _OF_TRAINING if python == sys.executable else (*_OF_TRAINING, *_OF_OUR_PYTHON)
    variables = {
        key: value
        for key, value in os.environ.items()
        if key not in hidden and not key.startswith(("TORCHELASTIC_", "ACCELERATE_"))
    }
    return variables if device is None else {**variables, "CUDA_VISIBLE_DEVICES": device}


def read_token(file: str | None) -> str:
    """The token of HTTP workers.

    Raises:
        ValueError: there is none.
    """
    token = (Path(file).expanduser().read_text() if file else os.environ.get(TOKEN_VARIABLE, "")).strip()
    if not token:
        raise ValueError(f"workers over HTTP want their token: set worker.token_file, or the variable {TOKEN_VARIABLE}")
    return token
