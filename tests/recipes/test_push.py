"""A run goes to the Hub whole, or stays where it is, with the reason."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from hub import Hub, card_of, contents, evaluate, run_snippet, section, set_record
from huggingface_hub.errors import HfHubHTTPError

from align import load_generator
from align.fingerprints import sha256_of_file
from align.tensor_files import read_tensors
from recipes.cli import main
from recipes.push import push_to_hub

# --- what is uploaded


def test_a_run_is_uploaded_whole(run: Path, hub: Hub) -> None:
    evaluate(run)
    assert main(["push", str(run), "repo_id=user/name", "private=true"]) == 0
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]
    created, uploaded = (settings for _, settings in hub.calls)
    assert created == {"repo_id": "user/name", "private": True, "repo_type": "model", "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"], uploaded["repo_type"]) == ("user/name", run / "push", "model")
    expected = {"README.md", "run.json", "results.jsonl", "report.html", "generator.pt"}
    expected |= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    expected |= {"samples/base.png", "samples/guided.png", "samples/aligned.png"}  # and no grid of a training step
    assert hub.uploaded == expected
    assert (run / "push" / "generator.pt").read_bytes() == (run / "generator.pt").read_bytes()
    assert hub.tokens == [None]
    # once more, after the run has changed: nothing of the earlier one is left
    shutil.rmtree(run / "adapter")
    push_to_hub(run, "user/name", token="hf_own")
    assert hub.uploaded == {name for name in expected if not name.startswith("adapter/")}
    assert hub.calls[2][1]["private"] is False
    assert hub.tokens == [None, "hf_own"]


def test_a_dry_run_asks_nothing_of_the_hub(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    hub = Hub(monkeypatch)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(run), "repo_id=user/name", "dry_run=true"]) == 0
    assert hub.calls == hub.tokens == []
    assert contents(run / "push") == {
        *("README.md", "run.json", "report.html", "generator.pt", "samples/step-000002.png"),
        *("adapter/adapter_config.json", "adapter/adapter_model.safetensors"),
    }
    assert f"hf upload user/name {run / 'push'}" in capsys.readouterr().err


def test_adapters_go_by_themselves(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push_to_hub(run, "user/name", adapter_only=True)
    assert "generator.pt" not in hub.uploaded
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "README.md"} <= hub.uploaded
    card = card_of(run)
    assert "LoRA adapters for a LlamaGen image generator" in card
    assert "`generator.pt` |" not in section(card, "What is here")
    found = run_snippet(card, run / "push", monkeypatch)["generator"].state_dict()
    aligned = load_generator("mnist-llamagen", run / "generator.pt").state_dict()
    assert all(torch.equal(found[name], aligned[name]) for name in aligned)


def test_a_folder_of_shards_goes_as_a_folder(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "generator").mkdir()
    tensors = read_tensors(run / "generator.pt").tensors
    torch.save(tensors, run / "generator" / "pytorch_model.bin")
    (run / "generator" / "config.json").write_text("{}")
    (run / "generator.pt").unlink()
    push_to_hub(run, "user/name")
    assert {"generator/pytorch_model.bin", "generator/config.json"} <= hub.uploaded
    digest = sha256_of_file(run / "generator" / "pytorch_model.bin")
    assert f"`generator/pytorch_model.bin` | the generator's weights, 1.4 MB, sha256 `{digest}`" in card_of(run)
    found = run_snippet(card_of(run), run / "push", monkeypatch)["generator"].state_dict()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


# --- what cannot be pushed


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda run: set_record(run, status="interrupted"), {}, r"is not finished \(interrupted\); go on with it"),
        (lambda run: set_record(run, kind="sweep"), {}, "holds a run of `align sweep`; give the folder of"),
        (lambda run: shutil.rmtree(run / "adapter"), {"adapter_only": True}, "has no adapter/: it trained all weights"),
        (lambda run: (run / "generator.pt").unlink(), {}, "its exported weights are gone"),
    ],
)
def test_what_is_not_there_is_not_pushed(run: Path, hub: Hub, change: Any, settings: Any, message: str) -> None:
    change(run)
    with pytest.raises(ValueError, match=message):
        push_to_hub(run, "user/name", **settings)
    assert hub.calls == []
    assert not (run / "push").exists()


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "user/na me", "user/--", "user/name.git"])
def test_names_that_cannot_be_are_refused(run: Path, hub: Hub, repo_id: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repo_id)):
        push_to_hub(run, repo_id)
    assert hub.calls == []


def test_a_folder_that_is_no_runs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run's folder"):
        push_to_hub(tmp_path, "user/name")


def test_without_a_token_nothing_begins(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(run), "repo_id=user/name"]) == 1
    assert "no token of the Hugging Face Hub; log in by `hf auth login`" in capsys.readouterr().err
    assert hub.calls == []
    push_to_hub(run, "user/name", token="hf_own")
    assert [name for name, _ in hub.calls] == ["create_repo", "upload_folder"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route to host"), "the Hub cannot be reached (no route to host)"),
        (
            HfHubHTTPError("403 Forbidden", response=SimpleNamespace(headers={}, request=None)),
            "the Hub refused to write user/name: 403 Forbidden",
        ),  # type: ignore[arg-type]
    ],
)
def test_a_failed_upload_keeps_the_folder(run: Path, monkeypatch: Any, capsys: Any, error: Any, message: str) -> None:
    Hub(monkeypatch, error)
    assert main(["push", str(run), "repo_id=user/name"]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert f"everything is in {run / 'push'}; the same command tries again" in said
    assert "Traceback" not in said
    assert {"README.md", "generator.pt"} <= contents(run / "push")
    assert {"generator.pt", "run.json"} <= contents(run)


def test_the_run_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "repo_id=user/name"]) == 1
    assert "required and not given: run" in capsys.readouterr().err
