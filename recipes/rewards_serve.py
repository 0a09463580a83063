"""Run a reward's worker for other processes and machines: align rewards serve NAME listen=ADDRESS [key=value ...]

For example: align rewards serve pickscore listen=http://127.0.0.1:8400 token_file=~/.align-token
Then: a reward with worker: {addresses: ["http://127.0.0.1:8400"], token_file: ~/.align-token}

listen=ADDRESS      http://host:port, or unix:/path for this user's processes on this machine
token_file=PATH     holds the token for HTTP, and is made if it is not there; or set ALIGN_REWARD_TOKEN
kwargs.KEY=VALUE    the reward's own settings
python=PATH         the interpreter that has its packages; environment=NAME: one that `align rewards env` built
device=0            the GPU to use, as in CUDA_VISIBLE_DEVICES
images=auto         what the reward is given: torch, numpy, auto (torch where it is installed)
max_megabytes=64    a larger message is refused
allow_remote=true   listen also where other machines can reach it; what travels is not encrypted
"""

from __future__ import annotations

import yaml

from rewards.serve import serve
from rewards.worker_settings import WorkerSettings

OWN = ("listen", "token_file", "device", "allow_remote")
OF_WORKERS = ("python", "environment", "images", "max_megabytes")


def main(words: list[str]) -> None:
    names = [word for word in words if "=" not in word]
    given = {key: value for key, _, value in (word.partition("=") for word in words if "=" in word)}
    kwargs = {key[7:]: yaml.safe_load(value) for key, value in given.items() if key.startswith("kwargs.")}
    if unknown := sorted(key for key in given if key not in (*OWN, *OF_WORKERS) and not key.startswith("kwargs.")):
        raise ValueError(
            f"unknown setting {unknown[0]!r}; align rewards serve takes {', '.join((*OWN, *OF_WORKERS))} and kwargs.KEY"
        )
    if len(names) != 1 or "listen" not in given:
        raise ValueError("which reward, and where? For example: align rewards serve NAME listen=http://127.0.0.1:8400")
    serve(
        names[0],
        kwargs,
        given["listen"],
        given.get("token_file"),
        settings=WorkerSettings.read({key: yaml.safe_load(given[key]) for key in OF_WORKERS if key in given}),
        device=given.get("device"),
        allow_remote=yaml.safe_load(given.get("allow_remote", "false")) is True,
    )
