"""Run a reward's worker for other processes and machines, which name it as `worker: {addresses: [...]}`."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from rewards.worker_listen import TOKEN_VARIABLE
from rewards.worker_settings import WorkerSettings, process_environment, worker_command


def serve(
    name: str,
    kwargs: Mapping[str, Any],
    listen: str,
    token_file: str | None = None,
    *,
    settings: WorkerSettings | None = None,
    device: str | None = None,
    allow_remote: bool = False,
) -> NoReturn:
    """Become a worker: this process is replaced by it, and ends as it does.

    Args:
        name, kwargs: as in `rewards.registry.load_reward`.
        listen: unix:/path for processes of this user, or http://host:port for who knows the token.
        token_file: holds it; is made, with a new token, where there is none. None: the variable ALIGN_REWARD_TOKEN does.
        settings: whose interpreter, images and max_megabytes are used.
        device: CUDA_VISIBLE_DEVICES of the worker; None: what this process sees.
        allow_remote: listen also where other machines can reach it. Neither images nor token are encrypted on their way.

    Raises:
        ValueError: a reward that cannot be named to the other Python, or no token.
    """
    settings = settings or WorkerSettings()
    python = settings.interpreter()
    words = ["--listen", listen, "--images", settings.images, "--max-megabytes", str(settings.max_megabytes)]
    if listen.startswith("http://"):
        if token_file is None and not os.environ.get(TOKEN_VARIABLE):
            raise ValueError(
                f"whoever scores over HTTP has to know a token: give token_file=PATH (it is made if it is not there), or set {TOKEN_VARIABLE}"
            )
        if token_file is not None:
            words += ["--token-file", str(_token_file(Path(token_file).expanduser()))]
    command = [*worker_command(name, kwargs, python), *words, *(["--allow-remote"] if allow_remote else [])]
    os.execve(python, command, process_environment(python, device))


def _token_file(path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # nobody else may read it
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_hex(32) + "\n")
    return path.absolute()
