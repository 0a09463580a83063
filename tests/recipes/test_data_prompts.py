"""Images with captions to codes to training, and rollouts and pairs for prompts, by the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from code_runs import encode, llamagen, losses, t2i, train
from command_line import fails, run
from data.pictures import encoded, write_lines, write_tar
from janus_files import save_janus
from PIL import Image
from text.tiny import save_tiny_t5

from align.checkpoints import load_tokenizer
from align.data import PreferencePairs, open_codes
from align.data.shard_codes import ShardCodes

CAPTIONS = ["a red cat", "a blue dog", "photo, a", "photo, b"]


def as_jsonl() -> str:
    Path("pictures").mkdir()
    for row in range(4):
        Path(f"pictures/{row}.jpg").write_bytes(encoded(row))
    rows = [{"image_path": f"pictures/{row}.jpg", "text": caption} for row, caption in enumerate(CAPTIONS)]
    return str(write_lines(Path("pictures.jsonl"), rows))


def as_parquet() -> str:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": encoded(row), "path": None} for row in range(4)]
    pq.write_table(pa.table({"image": images, "text": CAPTIONS}), "pictures.parquet")
    return "pictures.parquet"


def as_tar() -> str:
    members = {f"{row}.jpg": encoded(row) for row in range(4)}
    members |= {f"{row}.txt": caption.encode() for row, caption in enumerate(CAPTIONS)}
    return str(write_tar(Path("pictures.tar"), dict(sorted(members.items()))))


def as_dataset() -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    images = [{"bytes": encoded(row), "path": None} for row in range(4)]
    datasets.Dataset.from_dict({"image": images, "text": CAPTIONS}, features=features).save_to_disk("pictures")
    return "pictures"


@pytest.mark.parametrize("write", [as_jsonl, as_parquet, as_tar, as_dataset])
def test_every_layout_brings_the_same_images_and_captions(write: Callable[[], str]) -> None:
    run(*encode(write(), "crops=center", "output_dir=codes"))
    codes = open_codes("codes")
    assert isinstance(codes, ShardCodes)
    assert list(codes.labels_N) == CAPTIONS
    expected = load_tokenizer("vq_0.pt").encode_images(_center(encoded(2)))
    assert torch.equal(codes[2, 0], expected[0])


def _center(data: bytes) -> torch.Tensor:
    from align.data.crops import Crop
    from align.data.readers.base import decode_image

    return torch.from_numpy(Crop("center", 12).views(decode_image(data, "x")))


@pytest.mark.slow
def test_a_generator_of_text_trains_on_captions_of_codes_with_features_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(*encode(as_jsonl(), "crops=center", "output_dir=codes"))
    t5 = save_tiny_t5(Path("t5"))
    run("data", "captions", "source=codes", f"text_encoder={t5}", "max_length=12")
    settings = [*t2i(), "data=codes", "data.codes=codes"]
    assert "loaded without a text encoder" in fails(capsys, *train(settings, "cca", "output_dir=none"))
    run(*train(settings, "cca", "generator.text_encoder=runs/captions"))
    by_features = losses()
    run(*train(settings, "cca", f"generator.text_encoder={t5}", "output_dir=run", "overwrite=true"))
    assert losses() == pytest.approx(by_features, abs=1e-6)
    grid = Image.open("run/samples/step-000002.png")
    captions = grid.info["Description"].splitlines()
    assert sorted(captions[:4]) == sorted(CAPTIONS)
    assert captions == captions[:4] * 4
    assert grid.width == 4 * 144 + 3 * 2  # a column for each caption, images enlarged to the width of a line
    error = fails(capsys, *train([*llamagen(), *settings[-2:]], "cca", "output_dir=other"))
    assert "codes holds images with a caption; a label was asked for" in error


@pytest.mark.slow
def test_a_janus_folder_encodes_by_the_tokenizer_that_it_holds() -> None:
    folder = save_janus(Path("janus"), "converted")
    settings = ["generator=janus", f"generator.checkpoint={folder}"]
    run("data", "encode", as_jsonl(), *settings, "image_size=12", "crops=center", "workers=0", "output_dir=codes")
    run(*train(settings, "sft", "data=codes", "data.codes=codes"))
    assert len(losses()) == 2
    run("data", "show", "codes", *settings)
    assert np.asarray(Image.open("runs/show/codes.png")).shape == (4 * 12 + 3 * 2, 12, 3)


REWARD = "def inked(images, rows):\n    return [float(image.float().mean()) for image in images]\n"


@pytest.mark.slow
def test_rollouts_are_drawn_for_prompts_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(REWARD)
    Path("prompts.txt").write_text(f"a red cat\na blue dog\n{('photo, ' * 1500)[:10_000]}\n")
    settings = [
        *t2i(),
        f"generator.text_encoder={save_tiny_t5(Path('t5'))}",
        "data=prompts",
        "data.prompts=prompts.txt",
    ]
    rewards = "reward.rewards=[{name: 'mine.py:inked'}]"
    group = ["rollout.num_generations=2", "trainer.per_device_train_batch_size=4", rewards]
    run(*train(settings, "grpo", *group))
    assert len(losses()) == 2
    assert capsys.readouterr().err.count("captions are cut to 12 tokens; the first that is longer has") == 1
    error = fails(capsys, *train(settings[:-1], "grpo", *group, "output_dir=other"))
    assert "draws images of prompts, and there are none; set prompts= (data.prompts= of `align train`)" in error
    run("sample", *settings[:-2], "prompts=prompts.txt", "output_dir=sample", "columns=3")
    with np.load("sample/images.npz") as file:
        assert file["arr_0"].shape == (3, 12, 12, 3)
        assert file["arr_1"].tolist()[:2] == ["a red cat", "a blue dog"]


@pytest.mark.slow
def test_pairs_are_drawn_for_prompts_and_train(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(REWARD)
    Path("prompts.txt").write_text("a red cat\na blue dog\nphoto, a\n")
    settings = [*t2i(), f"generator.text_encoder={save_tiny_t5(Path('t5'))}"]
    drawn = ["prompts=prompts.txt", "num_prompts=4", "num_generations=3", "reward.rewards=[{name: 'mine.py:inked'}]"]
    run("data", "pairs", *settings, *drawn)
    pairs = PreferencePairs.load("runs/pairs/pairs.safetensors")
    assert list(pairs.labels_N) == ["a red cat", "a blue dog", "photo, a", "a red cat"]
    assert (pairs.chosen_reward_N > pairs.rejected_reward_N).all()
    run(*train([*settings, "data=prompts"], "dpo", "pairs.file=runs/pairs/pairs.safetensors"))
    assert len(losses()) == 2
    message = "pairs.safetensors holds pairs of images of prompts; a llamagen generator takes classes"
    classes = [*llamagen(), "data=prompts"]
    assert message in fails(
        capsys, *train(classes, "dpo", "pairs.file=runs/pairs/pairs.safetensors", "output_dir=other")
    )
