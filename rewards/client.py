"""A reward that runs elsewhere, called like a function: in processes of another Python environment, or on servers.

    rewards:
      - name: my_rewards/aesthetic.py:score
        worker: {python: envs/aesthetic/bin/python, number: 2}

A batch is cut into calls, which the workers take from one queue. A call that a worker did not answer is tried twice more,
by another one where there is another. What fails in the end is invalid, with the worker's own words; no score is made up.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.base import PartialScores
from rewards.transport import HttpLink, Link, ProcessLink, Refused, SocketLink, TransportFault
from rewards.worker import PROTOCOL
from rewards.worker_pool import Call, WorkerPool, differences, identity
from rewards.worker_settings import WorkerSettings, process_environment, read_token, worker_command


class WorkerReward:
    """A reward in workers, called like any other. It starts, compares and describes them when it is made.

    Images that could not be scored are not valid, with the words of the worker that could not: after three tries where it
    was dead, silent or out of step, at once where it said so itself. After three calls in a row that no worker answered,
    none is made for 30 seconds, then one on trial.

    kind: of the reward, as in `rewards.base`; `group` is sent in one message and never cut.
    remote: True, so that its answers are waited for beside those of other rewards.
    fingerprint: hash of all that the workers agree in: the source, its settings, weights, Python and packages.

    Raises:
        ValueError: a worker that cannot be reached or does not load, that differs from the others, or from
            `settings.expect`.
    """

    remote = True

    def __init__(self, name: str, links: Sequence[Link], settings: WorkerSettings) -> None:
        self.name = name
        self._pool = WorkerPool(links, settings)
        self._close = weakref.finalize(self, self._pool.close)  # also when the interpreter ends
        try:
            self.hello = self._compare()
        except BaseException:
            self.close()
            raise
        self.kind = str(self.hello["kind"])
        self.fingerprint = hashlib.sha256(json.dumps(identity(self.hello), sort_keys=True).encode()).hexdigest()

    def _compare(self) -> dict[str, Any]:
        self._pool.wait_until_open()
        hellos: list[dict[str, Any]] = []
        for link, hello in zip(self._pool.links, self._pool.hellos, strict=True):
            if not isinstance(hello, dict):
                raise ValueError(f"a worker of reward {self.name!r} did not start: {link.where}: {hello}") from hello
            if hello.get("protocol") != PROTOCOL:
                raise ValueError(
                    f"{link.where} speaks protocol {hello.get('protocol')!r}, and this package {PROTOCOL}; serve it with the worker.py of this version"
                )
            if hellos and (found := differences(hellos[0], hello)):
                raise ValueError(
                    f"workers of reward {self.name!r} differ: {self._pool.links[0].where} and {link.where} have {found}; they must score alike"
                )
            for section, expected in self._pool.settings.expect.items():
                for key, value in expected.items():
                    if (got := hello[section].get(key)) != value:
                        raise ValueError(
                            f"{link.where} has {section}.{key} {got}; reward {self.name!r} expects {value}"
                        )
            hellos.append(hello)
        return hellos[0]

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor | PartialScores:
        """float32 [B] of uint8 images [B, H, W, 3] and B rows, or the same with what failed marked.

        Raises:
            ValueError: rows that JSON cannot hold, or an image that is larger than a message.
        """
        if len(images) == 0:
            return torch.empty(0)
        calls = self._cut(images, conditions)
        self._pool.put(calls)
        values = torch.from_numpy(np.concatenate([call.values for call in calls if call.values is not None]))
        valid = torch.from_numpy(np.concatenate([call.valid for call in calls if call.valid is not None]))
        if bool(valid.all()):
            return values
        return PartialScores(values, valid, next((call.error for call in calls if call.error), "no reason was given"))

    def _cut(self, images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> list[Call]:
        limit = int(self.hello["limit"]) // 8 * 7  # the rest is for the rows
        fitting = limit // max(1, images[0].numel())
        if fitting < (len(images) if self.kind == "group" else 1):
            raise ValueError(
                f"{'a group of ' if self.kind == 'group' else ''}images {list(images.shape)} is above the {limit:,} bytes of a message; raise worker.max_megabytes, or that of the server"
            )
        step = len(images) if self.kind == "group" else min(fitting, self._pool.settings.batch_size)
        calls = []
        for start in range(0, len(images), step):
            part = images[start : start + step].cpu().contiguous()
            rows = [_plain(index, conditions[index]) for index in range(start, start + len(part))]
            header = {"op": "score", "id": uuid.uuid4().hex, "shape": list(part.shape), "conditions": rows}
            calls.append(Call(header, part.numpy().reshape(-1).data, len(part)))
        return calls

    def health(self) -> list[tuple[str, str]]:
        """Of each worker where it is, and `loading`, `ready`, `degraded`, or `gone` with the reason."""
        return [(link.where, _state(link)) for link in self._pool.links]

    def close(self) -> None:
        """End the processes of our own. Servers stay."""
        self._close()


def load_worker_reward(name: str, kwargs: Mapping[str, Any], settings: Mapping[str, Any]) -> WorkerReward:
    """The reward of a configuration's entry with a `worker:` section.

    Args:
        name: as in `rewards.registry.load_reward`, or package.module:function of the other environment.
        kwargs: the reward's settings; ignored for `addresses`, whose servers have their own.
        settings: see `WorkerSettings`.

    Raises:
        ValueError: as `WorkerSettings`, `worker_command` and `WorkerReward` do.
    """
    chosen = WorkerSettings.read(settings)
    if chosen.addresses:
        if kwargs:
            raise ValueError(
                f"reward {name!r} has kwargs and worker.addresses; the servers there have their own settings"
            )
        links: list[Link] = [
            SocketLink(address) if address.startswith("unix:") else HttpLink(address, read_token(chosen.token_file))
            for address in chosen.addresses
        ]
        return WorkerReward(name, links, chosen)
    python = chosen.interpreter()
    command = [
        *worker_command(name, kwargs, python),
        *("--images", chosen.images),
        *("--max-megabytes", str(chosen.max_megabytes)),
        *("--call-limit", str(chosen.call_timeout)),
    ]
    devices = chosen.devices or [_own_device()] * chosen.number
    links = [
        ProcessLink(f"worker {index} of {name}", command, process_environment(python, device))
        for index, device in enumerate(devices)
    ]
    return WorkerReward(name, links, chosen)


def _plain(index: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON has it: numbers and arrays of numpy and torch become plain ones."""

    def default(value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray | np.generic):
            return value.tolist()
        if isinstance(value, os.PathLike):
            return str(value)
        raise TypeError(f"a {type(value).__name__}")

    try:
        return json.loads(json.dumps(row, default=default))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"row {index} cannot be sent to a worker: it holds {error}; it has {sorted(row)}. Texts, numbers, lists and objects can"
        ) from error


def _own_device() -> str | None:
    """CUDA_VISIBLE_DEVICES for the GPU that this process uses; None without one: the worker sees what we see."""
    if not torch.cuda.is_available():
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    current = torch.cuda.current_device()
    return visible.split(",")[current] if visible else str(current)


def _state(link: Link) -> str:
    try:
        return link.state()
    except (TransportFault, Refused) as fault:
        return f"gone: {fault}"
