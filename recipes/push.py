"""Put a run's aligned generator on the Hugging Face Hub, with a model card that is filled from what the run recorded.

The repository gets the weights as they were exported (the published form, which the authors' own code reads), adapter/ if
there is one, run.json, results.jsonl, report.html, the sample grids, and README.md. All of it is put together in the run's
push/ first, and stays there: dry_run=true does no more than that. run.json and report.html show the paths that you gave.
For example: align push runs/mnist/cca repo_id=user/mnist-cca private=true
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.files import write_text
from align.fingerprints import sha256_of_file
from align.inspection import inspect
from align.tensor_files import SUFFIXES, read_tensors
from evaluation.results import ResultRow, append_result, read_results
from recipes.config import compose
from recipes.exports import find_export
from recipes.model_card import Export, model_card
from recipes.run import refuse_many_processes, say

FOLDER = "push"
ADAPTER_FOLDER = "adapter"
RESULTS = "results.jsonl"
WHAT = {
    "adapter/": "the LoRA adapters by themselves, as the package peft saves them",
    "run.json": "the run's settings, versions, hashes and times",
    RESULTS: "the evaluations, a line each, by protocol, sampling seed and hash of the weights",
    "report.html": "the run's report; open it in a browser",
    "samples/": "uncurated images: the first ones of a sampling seed",
}


def main(arguments: list[str]) -> None:
    refuse_many_processes("`align push`")
    # a path by itself is the run
    config = compose("push", [word if "=" in word else f"run={word}" for word in arguments])
    push_to_hub(
        config.run,
        config.repo_id,
        private=config.private,
        adapter_only=config.adapter_only,
        license=config.license,
        base_model=config.base_model,
        dry_run=config.dry_run,
    )


def push_to_hub(
    run_folder: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    adapter_only: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
) -> Path:
    """Put a finished training on the Hub; the folder that holds what was uploaded.

    Args:
        repo_id: user/name; made if there is none, and added to if there is.
        adapter_only: the adapters without the merged weights.
        license, base_model: for the card's front matter.
        dry_run: put everything together and upload nothing.
        token: None is the one that `hf auth login` or HF_TOKEN left.

    Raises:
        FileNotFoundError: the folder is no run's.
        ValueError: an unfinished run, another command's run, no adapters, a repository's name that cannot be, no token.
        OSError: the Hub cannot be reached, or refuses. The folder stays, and is named.
    """
    from huggingface_hub.utils import validate_repo_id

    folder = Path(run_folder)
    if repo_id.count("/") != 1:
        raise ValueError(f"repo_id is {repo_id!r}; it must be user/name, as you have it on the Hub")
    validate_repo_id(repo_id)
    record = _finished(folder)
    if not dry_run:
        _require_token(token)
    put = _put_together(folder, record, repo_id, adapter_only=adapter_only, license=license, base_model=base_model)
    size = sum(path.stat().st_size for path in put.rglob("*") if path.is_file())
    if dry_run:
        say(
            f"{put}: {size / 1e6:.1f} MB, nothing uploaded. Read its README.md, then leave out dry_run (the card is then "
            f"written anew), or edit it and upload the folder as it is: hf upload {repo_id} {put}"
        )
        return put
    say(f"uploading {size / 1e6:.1f} MB to {repo_id}")
    say(f"uploaded: {_upload(put, repo_id, record['name'], private=private, token=token)}")
    return put


def _finished(folder: Path) -> dict[str, Any]:
    """run.json of a training that came to its end."""
    if not (folder / "run.json").exists():
        raise FileNotFoundError(f"{folder} is not a run's folder: it has no run.json")
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    if record["kind"] != "train":
        inside = [str(path.parent) for path in sorted(folder.glob("*/run.json"))]
        hint = (
            f"push one of its trainings: {', '.join(inside[:4])}" if inside else "give the folder of an `align train`"
        )
        raise ValueError(f"{folder} holds a run of `align {record['kind']}`; {hint}")
    if record["status"] != "finished":
        raise ValueError(
            f"{folder} is not finished ({record['status']}); go on with it, then push: {record['command']} resume=auto"
        )
    return record


def _require_token(token: str | None) -> None:
    from huggingface_hub import get_token

    if token is None and get_token() is None:
        raise ValueError(
            "no token of the Hugging Face Hub; log in by `hf auth login`, or set HF_TOKEN to one that may write. "
            "dry_run=true puts everything together without one"
        )


def _put_together(
    folder: Path,
    record: dict[str, Any],
    repo_id: str,
    *,
    adapter_only: bool,
    license: str | None,
    base_model: str | None,
) -> Path:
    exported, adapter = find_export(folder), folder / ADAPTER_FOLDER
    if exported is None:
        raise ValueError(f"{folder} is finished but its exported weights are gone; train it again with overwrite=true")
    if adapter_only and not adapter.is_dir():
        raise ValueError(f"{folder} has no {ADAPTER_FOLDER}/: it trained all weights; leave out adapter_only")
    put = folder / FOLDER
    shutil.rmtree(put, ignore_errors=True)
    put.mkdir()
    rows = _results(folder, record)
    names = [ADAPTER_FOLDER, "run.json", RESULTS, "report.html", *_grids(folder, rows)]
    names = [name for name in names if (folder / name).exists()]
    for name in [*names, *([] if adapter_only else [exported.name])]:
        _link(folder / name, put / name)
    if rows and RESULTS not in names:
        names.append(RESULTS)
        for row in rows:
            append_result(put / RESULTS, row)
    tops = [name.partition("/")[0] for name in names]
    card = model_card(
        record,
        rows,
        None if adapter_only else _describe(exported),
        repo_id=repo_id,
        files={name: what for name, what in WHAT.items() if name.removesuffix("/") in tops},
        license=license,
        base_model=base_model,
    )
    write_text(put / "README.md", card)
    return put


def _results(folder: Path, record: dict[str, Any]) -> list[ResultRow]:
    """A run's evaluations: its own, or the study's of which it is one training, known by the hash of its weights, with
    the base's on the same sampling seed."""
    if own := read_results(folder / RESULTS):
        return own
    weights = record["hashes"]["aligned"][:16]
    shared = read_results(folder.resolve().parent / RESULTS)
    seeds = {row.seed for row in shared if row.checkpoint == weights}
    return [row for row in shared if row.seed in seeds and (row.label == "base" or row.checkpoint == weights)]


def _grids(folder: Path, rows: list[ResultRow]) -> list[str]:
    """Sample grids of the shown results; without any, the last one of the training."""
    shown = [row.samples for row in rows if row.split == "report" and row.samples]
    last = [f"samples/{path.name}" for path in sorted((folder / "samples").glob("step-*.png"))[-1:]]
    return list(dict.fromkeys(shown)) or last


def _describe(exported: Path) -> Export:
    return Export(
        name=exported.name,
        tensors=list(read_tensors(exported).tensors),
        form=inspect(exported).form,
        hashes=[
            (str(path.relative_to(exported.parent)), path.stat().st_size, sha256_of_file(path))
            for path in _weights(exported)
        ],
    )


def _weights(exported: Path) -> Iterator[Path]:
    if exported.is_dir():
        yield from sorted(path for path in exported.iterdir() if path.suffix in SUFFIXES)
    else:
        yield exported


def _link(source: Path, target: Path) -> None:
    """The same file or folder under another name, so that weights take their place once; a copy where that cannot be."""
    for file in [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]:
        linked = target / file.relative_to(source)
        linked.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, linked)
        except OSError:
            shutil.copyfile(file, linked)


def _upload(put: Path, repo_id: str, name: str, *, private: bool, token: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    api = HfApi(token=token, library_name="ar-align")
    stays = f"everything is in {put}; the same command tries again"
    try:
        url = api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=repo_id, folder_path=put, repo_type="model", commit_message=f"Upload {name}, trained by ar-align"
        )
    except HfHubHTTPError as error:
        raise OSError(
            f"the Hub refused to write {repo_id}: {error}. Is the token one that may write there? {stays}"
        ) from error
    except (OSError, HTTPError) as error:
        raise OSError(
            f"the Hub cannot be reached ({error}); {stays}, or from elsewhere: hf upload {repo_id} {put}"
        ) from error
    return str(url)
