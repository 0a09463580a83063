"""From images to codes to training, by the commands: every layout, stopped and resumed, shared out, looked at, refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_runs import SHORT, encode, llamagen, losses, train, var
from command_line import fails, run
from data.pictures import GARBAGE, encoded, image_folder, picture, tokenizer_file
from PIL import Image

from align.checkpoints import load_tokenizer
from align.data import open_codes
from align.data.shard_codes import ShardCodes
from align.data.shards import MANIFEST, ShardWriter
from align.files import sha256_of_tensors
from recipes.cli import main
from recipes.config import compose
from recipes.parts import make_generator
from recipes.training_data import make_codes


def files_of(folder: str) -> dict[str, bytes]:
    """All but run.json, which has times in it."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != "run.json"}


# --- encoding


def test_a_folder_with_a_broken_image_becomes_shards(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("images"), classes=3, each=3, broken={4: encoded(4, cut=True)})
    run(*encode("images", "shard_rows=4", "output_dir=codes"))
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "images: 9 images (folder) with class labels, 3 classes (c0, c1, c2)"
    assert "8 images encoded in 20 view(s) each, 1 skipped" in " ".join(said)
    assert said[-2] == "codes: 8 images in 20 view(s) of 9 tokens, 3 shard(s), 1 skipped"
    assert said[-1].startswith("  skipped c1/004.jpg: OSError: ")
    manifest = json.loads(Path("codes", MANIFEST).read_text())
    assert manifest["tokenizer"] == sha256_of_tensors(load_tokenizer("vq_0.pt").state_dict())
    assert manifest["crop"] == {"kind": "ten_crop", "enlarged": [1.1, 1.05]}
    assert (manifest["rows"], manifest["views"], manifest["images"], manifest["skipped"]) == (8, 20, 160, 1)
    record = json.loads(Path("codes/run.json").read_text())
    assert (record["status"], record["this_process"]["encoded"], record["this_process"]["skipped"]) == (
        "finished",
        8,
        1,
    )
    # the views of ten_crop hold those of center only if the image is not enlarged; the mirror image is flip's second
    for crops in ("center", "flip"):
        run(*encode("images", f"crops={crops}", f"output_dir={crops}"))
    center, flip = open_codes("center"), open_codes("flip")
    assert isinstance(center, ShardCodes)
    assert isinstance(flip, ShardCodes)
    assert (center.shape, flip.shape) == ((8, 1, 9), (8, 2, 9))
    assert torch.equal(center[3, 0], flip[3, 0])


def test_a_stopped_encoding_goes_on_to_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(Path("images"), broken={7: GARBAGE})
    run(*encode("images", "crops=flip", "shard_rows=4", "output_dir=whole"))
    write, written = ShardWriter.write, []

    def write_one(self: ShardWriter, shard: int, *arguments: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", write_one)
        assert main(encode("images", "crops=flip", "shard_rows=4", "output_dir=codes")) == 130
    assert not Path("codes", MANIFEST).exists()
    assert "codes is not whole: 2 of 3 shards are missing" in fails(
        capsys, "train", *llamagen(), "objective=sft", "data=codes", "data.codes=codes", *SHORT
    )
    run(*encode("images", "crops=flip", "shard_rows=4", "output_dir=codes"))
    assert "1 of 3 shards are there already; going on" in capsys.readouterr().err
    assert files_of("codes") == files_of("whole")
    run(*encode("images", "crops=flip", "shard_rows=4", "output_dir=codes"))  # nothing is left to do
    assert files_of("codes") == files_of("whole")


def test_parts_make_what_one_process_makes(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("images"), broken={7: GARBAGE})
    run(*encode("images", "crops=center", "shard_rows=4", "output_dir=whole"))
    run(*encode("images", "crops=center", "shard_rows=4", "output_dir=codes", "part=1/2"))
    assert "part 1/2 is done; shards of other parts are missing in codes" in capsys.readouterr().err
    run(*encode("images", "crops=center", "shard_rows=4", "output_dir=codes", "part=0/2"))
    assert files_of("codes") == files_of("whole")


@pytest.mark.slow
def test_torchrun_makes_what_one_process_makes() -> None:
    image_folder(Path("images"), broken={7: GARBAGE})
    run(*encode("images", "crops=center", "shard_rows=4", "output_dir=whole"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recipes.cli"]
    command = [*launch, *encode("images", "crops=center", "shard_rows=4", "output_dir=codes")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(2):  # begun anew, and with nothing left to do
        subprocess.run([sys.executable, *command], check=True, timeout=120, env=environment)
        assert files_of("codes") == files_of("whole")
    assert json.loads(Path("codes/run.json").read_text())["status"] in ("finished", "part finished")


# --- looking


def test_a_grid_shows_every_view_of_some_images(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("images"), classes=3, each=3)
    run(*encode("images", "crops=flip", "output_dir=codes"))
    capsys.readouterr()
    run("data", "show", "codes", *encode("x")[3:5], "num_images=3", "verify=true")
    said = capsys.readouterr().err
    assert "codes: 9 images in 2 view(s) of 9 tokens" in said
    assert "flip, 12 px, for llamagen, 1 shard(s)" in said
    assert Path("runs/show/codes.txt").read_text() == "0: class 0 c0\n4: class 1 c1\n8: class 2 c2\n"
    codes, tokenizer = open_codes("codes"), load_tokenizer("vq_0.pt")
    sheet = np.asarray(Image.open("runs/show/codes.png"))
    assert sheet.shape == (3 * 12 + 2 * 2, 2 * 12 + 2, 3)
    shown = sheet[14:26, 14:26]  # the second image's mirror image
    assert np.array_equal(shown, tokenizer.decode_images(codes[4, 1][None], (3, 3))[0].numpy())  # type: ignore[index, call-arg]


def test_another_tokenizer_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("images"), classes=1)
    run(*encode("images", "crops=center", "output_dir=codes"))
    tokenizer_file(Path("other.pt"), seed=1)
    error = fails(capsys, "data", "show", "codes", "generator=llamagen", "generator.tokenizer_checkpoint=other.pt")
    assert "codes was made by another tokenizer (" in error


# --- training


def test_cca_trains_on_shards_and_refuses_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("images"))
    run(*encode("images", "crops=flip", "output_dir=codes"))
    on_codes = ["data=codes", "data.codes=codes"]
    run(*train(llamagen(), "cca", *on_codes))
    assert len(losses()) == 2
    assert Path("run/generator.pt").exists()
    grid = np.asarray(Image.open("run/samples/step-000002.png"))
    assert grid.shape == (4 * 12 + 3 * 2, 4 * 12 + 3 * 2, 3)
    error = fails(capsys, *train(llamagen(seed=1), "cca", *on_codes, "output_dir=other"))
    assert "codes was made by another tokenizer (" in error
    assert "make it again with this one" in error


@pytest.mark.slow
def test_codes_of_another_size_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """As those of 384 px for a generator of 256 px, and the other way round."""
    image_folder(Path("images"), classes=1)
    for size in (12, 16):
        run(*encode("images", "crops=center", f"output_dir=codes_{size}", f"image_size={size}"))
    error = "images of {} tokens; this generator takes {}: were they encoded at another image_size"
    for settings, size, message in (
        (llamagen(4), 12, error.format("9 (3x3)", "16 (4x4)")),
        (llamagen(3), 16, error.format("16 (4x4)", "9 (3x3)")),
        (var(), 16, error.format("16 (4x4)", "14 in 3 scales")),
    ):
        generator = make_generator(compose("train", settings).generator)
        with pytest.raises(ValueError, match=re.escape(message)):
            make_codes(compose("train", ["data=codes", f"data.codes=codes_{size}"]).data, generator)


def test_grids_without_a_tokenizer_are_refused_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("images"), classes=1)
    run(*encode("images", "crops=center", "output_dir=codes"))
    settings = [*llamagen(), "generator.tokenizer_checkpoint=null"]
    error = fails(capsys, *train(settings, "sft", "data=codes", "data.codes=codes"))
    assert (
        "this generator has no tokenizer to make them with; set generator.tokenizer_checkpoint, or trainer.s" in error
    )
    assert not Path("run/metrics.jsonl").exists()
    # nothing was made, so that the mended command needs no overwrite=true
    error = fails(capsys, *train(settings, "sft", "data=codes", "data.codes=none", "trainer.sample_every=0"))
    assert "no token codes at none" in error


@pytest.mark.slow
def test_llamagens_own_layout_trains_and_says_what_it_does_not_tell(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("imagenet256_codes", "imagenet256_labels"):
        Path("own", name).mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for row in range(6):
        np.save(f"own/imagenet256_codes/{row}.npy", numbers.integers(16, size=(1, 10, 9)))
        np.save(f"own/imagenet256_labels/{row}.npy", np.array([row % 4]))
    run(*train(llamagen(), "sft", "data=codes", "data.codes=own"))
    assert "own: this layout does not say which tokenizer made the codes, so that was not checked" in (
        capsys.readouterr().err
    )
    np.save("own/imagenet256_codes/5.npy", np.full((1, 10, 9), 16))
    error = fails(capsys, *train(llamagen(), "sft", "data=codes", "data.codes=own", "output_dir=other"))
    assert "5.npy holds tokens from 16 to 16; the generator knows 0 to 15" in error


@pytest.mark.parametrize("family", [var, pytest.param(llamagen, marks=pytest.mark.slow)])
def test_images_are_encoded_on_the_way(family: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(Path("images"), broken={2: GARBAGE})
    run(*train(family(), "cca", "data=images", "data.images=images", "trainer.max_steps=6"))
    assert "cannot be read, the next image stands in: c0/002.jpg: not an image" in capsys.readouterr().err
    assert len(losses()) == 6


def test_pictures_differ() -> None:
    """What the tests above compare would else be equal whatever is read."""
    assert len({picture(row).tobytes() for row in range(4)}) == 4
