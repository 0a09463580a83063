"""align data captions: features made once, from every kind of source, by any number of processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from data.pictures import encoded, image_folder, write_lines, write_tar
from text.tiny import save_tiny_t5

from align.text import CachedTextEncoder, T5TextEncoder, load_text_encoder
from recipes.cli import main


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_t5(tmp_path_factory.mktemp("t5")))


def captions(source: str, t5: str, *more: str) -> int:
    return main(["data", "captions", f"source={source}", f"text_encoder={t5}", "max_length=12", *more])


def store(folder: str = "runs/captions") -> CachedTextEncoder:
    found = load_text_encoder(folder)
    assert isinstance(found, CachedTextEncoder)
    return found


def test_prompts_become_features_and_further_ones_are_added(t5: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a red cat\n\nA RED cat\na very very very blue dog\n")
    assert captions("prompts.txt", t5) == 0
    said = capsys.readouterr().err
    assert "prompts.txt: 3 captions" in said
    assert "2 captions encoded" in said
    assert "1 of them cut to 12 tokens" in said
    assert "the other 1 were there already, or came twice. runs/captions holds 2" in said
    expected = T5TextEncoder(t5, max_length=12).encode(["a red cat", "a very very very blue dog"])
    assert torch.equal(store().encode(["a red cat", "a very very very blue dog"]).features_BTD, expected.features_BTD)
    before = sorted(path.name for path in Path("runs/captions").iterdir())
    assert captions("prompts.txt", t5) == 0
    assert "0 captions encoded" in capsys.readouterr().err
    assert sorted(path.name for path in Path("runs/captions").iterdir()) == before
    write_lines(Path("more.jsonl"), [{"caption": ["photo", "a red cat"]}, {"prompt": "dog"}])
    assert captions("more.jsonl", t5) == 0
    assert len(store().store) == 4
    record = json.loads(Path("runs/captions/run.json").read_text())
    assert record["status"] == "finished"
    assert {**record["this_process"], "seconds": 0} == {"captions": 3, "encoded": 2, "cut": 0, "seconds": 0}


def test_parts_make_what_one_process_makes(t5: str) -> None:
    texts = [f"cat {'abcdefghij'[row % 10]} {'klm'[row // 10]}" for row in range(30)]
    Path("prompts.txt").write_text("\n".join(texts))
    assert captions("prompts.txt", t5) == 0
    for part in ("2/3", "0/3", "1/3"):
        assert captions("prompts.txt", t5, f"part={part}", "output_dir=parts") == 0
    assert len(store("parts").store) == len(store().store) == 30
    assert torch.equal(store("parts").encode(texts).features_BTD, store().encode(texts).features_BTD)


def test_images_bring_captions_of_their_own(t5: str) -> None:
    image_folder(Path("images"), classes=1, each=3)
    rows = [{"image_path": f"images/c0/00{row}.jpg", "words": f"photo {'abc'[row]}"} for row in range(3)]
    write_lines(Path("x.jsonl"), rows)
    assert captions("x.jsonl", t5, "kind=jsonl", "columns.text=words") == 0
    assert len(store().store) == 3
    members = {"a.jpg": encoded(0), "a.txt": b"a dog", "b.jpg": encoded(1), "b.txt": b"photo a"}
    write_tar(Path("shards/0.tar"), members)
    assert captions("shards", t5) == 0
    assert len(store().store) == 4


def test_codes_of_captioned_images_bring_theirs(t5: str) -> None:
    image_folder(Path("images"), classes=1, each=2)
    rows = [{"image_path": f"images/c0/00{row}.jpg", "text": f"photo {'ab'[row]}"} for row in range(2)]
    write_lines(Path("x.jsonl"), rows)
    encode = ["data", "encode", "source=x.jsonl", "image_size=28", "crops=center", "workers=0"]
    assert main([*encode, "output_dir=codes"]) == 0
    assert captions("codes", t5) == 0
    assert len(store().store) == 2


def test_a_caption_of_ten_thousand_letters_is_cut_and_said_once(t5: str, capsys: pytest.CaptureFixture[str]) -> None:
    long = [("red cat, " * 1200)[:10_000], "a" * 10_000, "1" * 10_000 + "<b>" * 3000, "blue dog. " * 1000]
    write_lines(Path("long.jsonl"), [{"prompt": text} for text in [*long, "dog"]])
    assert captions("long.jsonl", t5) == 0
    assert capsys.readouterr().err.count("captions are cut to 12 tokens; the first that is longer has") == 1
    assert store().encode(long[:2]).mask_BT.all()
    # cut as T5's tokenizer cuts: what comes after counts for nothing
    features = store().encode([long[0]]).features_BTD
    assert torch.equal(features, T5TextEncoder(t5, max_length=12).encode(["red cat, " * 1000]).features_BTD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text_encoder=t5"], "no captions to encode: name a .txt or .jsonl"),
        (["source=prompts.txt"], "captions are encoded by T5; set text_encoder= to its folder"),
        (["source=prompts.txt", "text_encoder=t5", "dtype=file"], "unknown dtype 'file'; known: float32, bfloat16"),
        (["source=none.txt", "text_encoder=t5"], "no file of prompts or captions at none.txt"),
        (["source=prompts.txt", "text_encoder=nothing"], "no text encoder at nothing"),
        (["source=images", "text_encoder=t5"], "images holds images without captions; set columns.text"),
        (["source=prompts.txt", "text_encoder=t5", "output_dir=images"], "images holds other files than caption feat"),
        (["source=prompts.txt", "text_encoder=t5", "part=3/3"], "part is '3/3'; the parts of eight are 0/8, 1/8,"),
    ],
)
def test_mistakes_end_in_one_clear_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    Path("prompts.txt").write_text("a red cat\n")
    image_folder(Path("images"), classes=1, each=1)
    assert main(["data", "captions", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_features_of_another_encoder_are_refused(t5: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("a red cat\n")
    assert captions("prompts.txt", t5) == 0
    before = Path("runs/captions/run.json").read_text()
    assert captions("prompts.txt", t5, "clean=false") == 1
    assert "holds features of another text encoder: other clean; choose another folder" in capsys.readouterr().err
    assert Path("runs/captions/run.json").read_text() == before
