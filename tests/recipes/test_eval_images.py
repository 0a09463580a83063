"""`align data stats` and `align eval images=...`: anybody's images, by a protocol of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run
from PIL import Image

from evaluation import Reference
from evaluation.results import read_results

EXTRACTOR = """
import torch
from evaluation import ExtractorOutput

class Colours:
    name, fingerprint = "colours", "0123456789abcdef"

    def __call__(self, images):
        features = images.float().mean(dim=(1, 2)) / 255
        return ExtractorOutput(features, 10 * features)
"""
PROTOCOL = """
name: colours
extractor: ../own.py:Colours
reference: real.npz
metrics: [fid, kid, is, precision, recall, accuracy]
"""
STATS = ["extractor.name=classifier", "extractor.path=x.safetensors"]


def pictures(number: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.broadcast_to(rng.integers(0, 256, (number, 1, 1, 3), np.uint8), (number, 4, 4, 3)).copy()


def write_folder(folder: Path, images: np.ndarray, suffix: str = ".png") -> None:
    for number, image in enumerate(images):
        place = folder / str(image.reshape(-1, 3).sum(0).argmax())
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03}{suffix}")


@pytest.fixture(autouse=True)
def protocol(in_a_folder_of_its_own: None) -> None:
    Path("own.py").write_text(EXTRACTOR)
    Path("protocols").mkdir()
    Path("protocols/mine.yaml").write_text(PROTOCOL)
    np.savez("real_images.npz", arr_0=pictures(60, seed=0))
    write_folder(Path("theirs"), pictures(30, seed=1))


def reference() -> Reference:
    run("data", "stats", "real_images.npz", "extractor.name=own.py:Colours", "output=protocols/real.npz", "name=real")
    return Reference.load("protocols/real.npz")


def test_a_folder_and_an_npz_of_the_same_images_score_alike(capsys: pytest.CaptureFixture[str]) -> None:
    real = reference()
    run("eval", "images=theirs", "protocol=protocols/mine.yaml", "label=theirs", "evaluation.batch_size=8")
    paths = sorted(Path("theirs").rglob("*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.savez("theirs.npz", arr_0=images, arr_1=np.array([int(path.parent.name) for path in paths]))
    run("eval", "images=theirs.npz", "protocol=protocols/mine.yaml", "label=npz", "output_dir=again")
    (row,), (again,) = (read_results(Path(folder, "results.jsonl")) for folder in ("runs/eval", "again"))
    assert row.metrics == again.metrics
    assert {"fid_colours_30", "kid_colours_30", "accuracy_colours_30"} <= row.metrics.keys()
    assert row.metrics["accuracy_colours_30"] == 1  # folders are classes
    assert (row.n, row.reference_n, row.protocol) == (30, 60, "colours")
    assert (row.reference_hash, row.extractor_fingerprint) == (real.hash, "0123456789abcdef")
    assert (row.checkpoint, row.forwards_per_image, row.images_per_second) == (None, None, None)
    assert Image.open(Path("runs/eval", row.samples)).size == (10 * 6 - 2, 3 * 6 - 2)
    assert (row.images, again.images) == ("theirs", "theirs.npz")
    told = json.loads(Path("runs/eval/run.json").read_text())["evaluation"]["representations"]
    assert told[0]["extractor"] == "colours"
    assert "theirs" in capsys.readouterr().out
    assert not Path("runs/eval/partial").exists()
    # nothing but the result is left
    assert not [path for path in Path("runs/eval").iterdir() if path.name.startswith(".")]


def test_real_images_against_themselves() -> None:
    reference()
    run("eval", "images=real_images.npz", "protocol=protocols/mine.yaml", "label=real")
    (row,) = read_results(Path("runs/eval/results.jsonl"))
    assert row.metrics["fid_colours_60"] == pytest.approx(0, abs=1e-6)
    assert row.metrics["precision_colours_60"] == row.metrics["recall_colours_60"] == 1
    assert "accuracy: not measured, the images came without labels" in row.remarks


def test_jpegs_are_scored_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    reference()
    write_folder(Path("lossy"), pictures(12, seed=2), ".jpg")
    run("eval", "images=lossy", "protocol=protocols/mine.yaml", "label=lossy")
    (row,) = read_results(Path("runs/eval/results.jsonl"))
    assert row.remarks[0].startswith("12 of 12 images are JPEG or WebP: compression shifts FID")
    assert "note: 12 of 12 images are JPEG" in capsys.readouterr().err
    assert "12 of 12 images are JPEG" in Path("runs/eval/report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=nowhere"], "there is no folder or file nowhere; images are a folder, or an npz file with arr_0"),
        (["images=protocols/real.npz"], "it has no arr_0, which holds the images; found mu, sigma"),
        (["images=mixed"], "mixed has images of mixed sizes: "),
        (["images=one"], "one has 1 images, and statistics need at least 2"),
        (["images=theirs", "classes=[0]"], "classes= are of images that are drawn"),
        (["images=theirs", "save_images=true"], "images= are written already; leave it out"),
        (["images=theirs", "protocol=nothing.yaml"], "there is no protocol file nothing.yaml"),
        (["images=theirs", "protocol=adm"], "unknown protocol 'adm'; known: adm256-50k, geneval"),
        (["images=theirs", "protocol=adm256-50k"], "this protocol of features has no reference"),
        (
            ["images=theirs", "evaluation=mnist-cnn"],
            "protocol= chooses the evaluation's section; leave evaluation= out",
        ),
    ],
)
def test_what_cannot_be_scored_is_told_and_leaves_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reference()
    capsys.readouterr()
    for folder, sizes in (("mixed", (4, 5)), ("one", (4,))):
        Path(folder).mkdir()
        for size in sizes:
            Image.new("RGB", (size, size)).save(f"{folder}/{size}.png")
    chosen = [] if any(word.startswith("protocol=") for word in arguments) else ["protocol=protocols/mine.yaml"]
    error = fails(capsys, "eval", *chosen, *arguments)
    assert message in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_reference_of_another_extractor_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    reference()
    Path("own.py").write_text(EXTRACTOR.replace("0123", "3210"))
    error = fails(capsys, "eval", "images=theirs", "protocol=protocols/mine.yaml")
    assert "'real' was made by extractor 0123456789abcdef, but this one (colours) is 3210456789abcdef" in error


def test_nan_features_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    reference()
    Path("own.py").write_text(EXTRACTOR.replace("/ 255", "/ 0 * 0"))
    error = fails(capsys, "eval", "images=theirs", "protocol=protocols/mine.yaml")
    assert "the features of extractor colours are NaN or infinite for" in error
    assert not Path("runs/eval/results.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[{extractor: ../own.py:Colours}]", "a part of `more` has no reference"),
        (
            "[{extractor: x, reference: y, metric: [fid]}]",
            "has the unknown setting 'metric'; known: extractor, reference, metrics",
        ),
        (
            "[{extractor: ../own.py:Colours, reference: real.npz, metrics: fid}]",
            "metrics is 'fid'; it must be a list, as [fid]",
        ),
        ("[{extractor: {name: inception, path: null}, reference: real.npz}]", "path of extractor inception is None"),
        ("[{extractor: ../own.py:Colours, reference: real.npz}]", "a protocol needs extractors of different names"),
    ],
)
def test_parts_of_a_protocol_that_are_wrong(more: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    reference()
    Path("protocols/mine.yaml").write_text(f"{PROTOCOL}more: {more}\n")
    assert message in fails(capsys, "eval", "images=theirs", "protocol=protocols/mine.yaml")


def test_statistics_of_ones_own_images(capsys: pytest.CaptureFixture[str]) -> None:
    digits = np.random.default_rng(0).integers(0, 256, (70, 28, 28, 3), np.uint8)
    np.savez("digits.npz", arr_0=digits)
    from align.zoo_entries import zoo_entry

    classifier = next(zoo_entry("mnist-llamagen").glob("*.safetensors"))
    chosen = ["extractor.name=classifier", f"extractor.path={classifier}", "output=stats/digits.npz"]
    run("data", "stats", "digits.npz", *chosen, "keep=10", "keep_images=true", "batch_size=33")
    made = Reference.load("stats/digits.npz")
    assert (made.name, made.n, made.features.shape) == ("digits", 70, (10, 64))
    assert made.hash in capsys.readouterr().err
    with np.load("stats/digits.npz") as archive:
        np.testing.assert_array_equal(archive["arr_0"], digits[6::7])
    assert "stats/digits.npz is there already" in fails(capsys, "data", "stats", "digits.npz", *chosen)
    assert "keep=0 keeps none" in fails(
        capsys, "data", "stats", "digits.npz", *chosen[:2], "output=x.npz", "keep=0", "keep_images=true"
    )
    # statistics in ADM's format are of the published Inception alone
    np.savez("adm.npz", arr_0=digits, mu=np.zeros(64), sigma=np.eye(64))
    run("data", "stats", "adm.npz", *chosen[:2], "output=own.npz")
    assert (
        "the statistics in adm.npz are of another extractor; these are of its images alone" in capsys.readouterr().err
    )
    np.testing.assert_allclose(Reference.load("own.npz").mu, made.mu, rtol=1e-6)
