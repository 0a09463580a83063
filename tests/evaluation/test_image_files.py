"""Images of any tool: folders and npz files, in a fixed order, and what is refused."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.image_files import in_parts, open_images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)  # 4 high, 6 wide


def write_folder(folder: Path, names: list[str]) -> Path:
    """PNG images, of these names in turn `PIXELS`."""
    for name, pixels in zip(names, PIXELS, strict=False):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# ---- folders


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    """Written in another one, and "10" comes before "9", as texts are sorted."""
    files = open_images(write_folder(tmp_path, ["9.png", "b/1.PNG", "10.png", "a/2.png"]))
    (tmp_path / "README.txt").write_text("not an image")
    wanted = PIXELS[[2, 0, 3, 1]]
    assert len(files) == 4
    assert torch.equal(files.read(0, 4), torch.from_numpy(wanted))
    assert torch.equal(files.read(1, 3), torch.from_numpy(wanted[1:3]))
    assert files.read(0, 1).dtype == torch.uint8
    assert (files.labels, files.remarks) == (None, ())


def test_other_modes_become_rgb(tmp_path: Path) -> None:
    grey, alpha, palette = (
        PIXELS[0, :, :, 0],
        np.concatenate([PIXELS[1], PIXELS[1][:, :, :1]], 2),
        PIXELS[2] // 128 * 255,
    )
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(alpha, "RGBA").save(tmp_path / "1.png")
    Image.fromarray(palette).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(tmp_path / "2.png")
    assert [Image.open(tmp_path / f"{index}.png").mode for index in range(3)] == ["L", "RGBA", "P"]
    images = open_images(tmp_path).read(0, 3).numpy()
    assert np.array_equal(images[0], np.stack([grey] * 3, 2))
    assert np.array_equal(images[1], PIXELS[1]), "alpha is dropped, not blended"
    assert np.array_equal(images[2], palette)


def test_sub_folders_called_by_numbers_are_classes(tmp_path: Path) -> None:
    """In the order of the paths, of which "10" comes first."""
    files = open_images(write_folder(tmp_path, ["9/a.png", "9/b.png", "10/a.png", "0003/a.png"]))
    assert files.labels is not None
    assert files.labels.dtype == np.int64
    assert files.labels.tolist() == [3, 10, 9, 9]


@pytest.mark.parametrize(
    "names", [["0/a.png", "cat/a.png"], ["0/a.png", "b.png"], ["a.png", "b.png"], ["-1/a.png", "-1/b.png"]]
)
def test_other_names_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    assert open_images(write_folder(tmp_path, names)).labels is None


def test_mixed_sizes_name_one_file_of_each(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a.png", "b.png"])
    Image.fromarray(PIXELS[0, :, :5]).save(tmp_path / "c.png")
    with pytest.raises(ValueError, match="mixed sizes") as error:
        open_images(tmp_path)
    assert f"6x4 ({tmp_path / 'a.png'}), 5x4 ({tmp_path / 'c.png'})" in str(error.value)
    assert "resize them first" in str(error.value)


def test_lossy_images_are_remarked(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a.png", "b.png"])
    for name in ("c.jpg", "d.png"):  # what counts is what it is, not what it is called
        Image.fromarray(PIXELS[0]).save(tmp_path / name, "JPEG")
    Image.fromarray(PIXELS[0]).save(tmp_path / "e.webp")
    (remark,) = open_images(tmp_path).remarks
    assert remark.startswith("3 of 5 images are JPEG or WebP: compression shifts FID")


def test_a_text_file_that_is_called_png_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a.png", "b.png"])
    (tmp_path / "c.png").write_text("hello")
    with pytest.raises(ValueError, match=f"{tmp_path / 'c.png'} is no image that can be read"):
        open_images(tmp_path)


def test_an_image_that_was_cut_off_is_named(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:6000])
    files = open_images(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path / 'b.png'} is damaged"):
        files.read(0, 2)


def test_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a.png"])
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=f"{tmp_path / 'b.png'} has more than 8 bits a channel; write 8-bit RGB"):
        open_images(tmp_path).read(0, 2)


@pytest.mark.parametrize("names", [[], ["a.png"]])
def test_a_folder_of_fewer_than_two_images_is_refused(tmp_path: Path, names: list[str]) -> None:
    write_folder(tmp_path, names)
    (tmp_path / "x.gif").touch()
    with pytest.raises(
        ValueError, match=f"has {len(names)} images, and statistics need at least 2; known endings: .png"
    ):
        open_images(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder or file .*missing; images are a folder, or an npz"):
        open_images(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_the_identity_changes_where_the_files_do(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        source = write_folder(tmp_path / "images", ["a.png", "b.png"])
        touched = source / "b.png"
    else:
        source = touched = write_npz(tmp_path / "images.npz", arr_0=PIXELS)
    before = open_images(source).identity
    assert before == open_images(source).identity
    os.utime(touched, ns=(1, 1))
    assert before != open_images(source).identity


# ---- npz files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_parts_of_an_npz_are_the_array(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.npz", PIXELS)
    files = open_images(tmp_path / "x.npz")
    assert (len(files), files.labels, files.remarks) == (7, None, ())
    parts = list(in_parts(files, 3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), torch.from_numpy(PIXELS))
    assert parts[0].dtype == torch.uint8
    for start, stop in ((5, 7), (0, 2), (1, 2), (6, 7)):  # back and forth
        assert torch.equal(files.read(start, stop), torch.from_numpy(PIXELS[start:stop]))
    parts[0].zero_()  # they are the reader's own
    assert torch.equal(files.read(0, 3), torch.from_numpy(PIXELS[:3]))


def test_images_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To skip bytes of a zip's member is to read them: were it opened for every part, 50,000 images would take hours."""
    many = np.zeros((400, 32, 32, 3), np.uint8)
    files = open_images(write_npz(tmp_path / "x.npz", arr_0=many))
    told, original = [], zipfile.ZipExtFile.read

    def counted(self: zipfile.ZipExtFile, n: int) -> bytes:  # a seek calls it too
        data = original(self, n)
        told.append(len(data))
        return data

    monkeypatch.setattr(zipfile.ZipExtFile, "read", counted)
    assert sum(len(part) for part in in_parts(files, 10)) == 400
    assert many.nbytes <= sum(told) <= 1.1 * many.nbytes


def test_classes_of_an_npz(tmp_path: Path) -> None:
    files = open_images(write_npz(tmp_path / "x.npz", arr_1=np.arange(7, dtype=np.int32), arr_0=PIXELS))
    assert files.labels is not None
    assert files.labels.dtype == np.int64
    assert files.labels.tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("labels", [np.arange(6), np.arange(7.0), np.zeros((7, 1), int), np.array(["cat"] * 7)])
def test_wrong_classes_are_refused(tmp_path: Path, labels: np.ndarray) -> None:
    path = write_npz(tmp_path / "x.npz", arr_0=PIXELS, arr_1=labels)
    with pytest.raises(ValueError, match="x.npz: arr_1 must be 7 whole numbers, the images' classes; got ") as error:
        open_images(path)
    assert str(error.value).endswith(f"{labels.dtype} {list(labels.shape)}")


def test_an_npz_without_images_names_what_it_has(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", images=PIXELS, labels=np.arange(7))
    with pytest.raises(ValueError, match="x.npz: it has no arr_0, which holds the images; found images, labels$"):
        open_images(path)
    path = write_npz(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"found mu, sigma \(statistics of real images are a reference=\)"):
        open_images(path)
    path = write_npz(tmp_path / "empty.npz")
    with pytest.raises(ValueError, match="found nothing"):
        open_images(path)


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (PIXELS.astype(np.float32), "float32 [7, 4, 6, 3]"),
        (PIXELS.astype(np.int8), "int8 [7, 4, 6, 3]"),
        (PIXELS.transpose(0, 3, 1, 2).copy(), "uint8 [7, 3, 4, 6]"),
        (PIXELS[0], "uint8 [4, 6, 3]"),
        (PIXELS[:1], "uint8 [1, 4, 6, 3]"),
        (np.asfortranarray(PIXELS), "uint8 [7, 4, 6, 3]"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray, got: str) -> None:
    path = write_npz(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(ValueError, match=r"x.npz: arr_0 must be uint8 \[N, H, W, 3\] with at least 2 images") as error:
        open_images(path)
    assert f"got {got}" in str(error.value)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", arr_0=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="arr_0 must be uint8"):
        open_images(path)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_an_npz_that_was_cut_off_is_refused(tmp_path: Path, kept: float) -> None:
    path = write_npz(tmp_path / "x.npz", arr_0=PIXELS)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(
        ValueError, match=r"x.npz is not a readable npz file \(File is not a zip file\); write it again"
    ):
        open_images(path)


def test_an_image_is_no_npz(tmp_path: Path) -> None:
    write_folder(tmp_path, ["a.png"])
    with pytest.raises(ValueError, match="a.png is not a readable npz file"):
        open_images(tmp_path / "a.png")


def test_an_array_with_fewer_images_than_it_says_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", PIXELS)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", (tmp_path / "x.npy").read_bytes()[:-1])
    files = open_images(tmp_path / "x.npz")
    assert torch.equal(files.read(0, 6), torch.from_numpy(PIXELS[:6]))
    with pytest.raises(ValueError, match="x.npz ends in the middle of arr_0; write it again"):
        files.read(6, 7)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_bytes_are_found(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "x.npz"
    save(path, RNG.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[8000] ^= 0xFF
    path.write_bytes(data)
    files = open_images(path)
    with pytest.raises(ValueError, match="x.npz is damaged in arr_0"):
        list(in_parts(files, 4))


def test_classes_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", arr_0=PIXELS, arr_1=np.arange(7))
    data = bytearray(path.read_bytes())
    data[data.rindex(np.arange(7).tobytes())] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="x.npz: arr_1 cannot be read"):
        open_images(path)
    path = write_npz(tmp_path / "x.npz", arr_0=PIXELS, arr_1=np.array([{}] * 7, dtype=object))
    with pytest.raises(ValueError, match="x.npz: arr_1 cannot be read"):
        open_images(path)
