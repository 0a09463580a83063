"""The commands with a protocol of prompts, on a tiny generator of text: GenEval's rules, and the shapes world's detector."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run
from PIL import Image
from tiny_runs import CAPTIONS, checkpoint

from align.checkpoints import load_generator
from align.types import SamplingConfig
from evaluation.geneval.grammar import colors, counting, two_object
from evaluation.prompted import PromptProtocol
from evaluation.protocol import Protocol
from evaluation.results import ResultRow, read_results
from recipes.image_folders import FolderWriter, check_folder, score_folder
from recipes.judge import Judge
from recipes.protocols import make_class_protocol, make_protocol
from recipes.tasks import PromptTask

# what GenEval would ask for, under the prompts that the tiny generator has text features of
ROWS = [
    {**row, "prompt": caption}
    for row, caption in zip(
        (two_object("circle", "cross"), counting("square", 2), colors("circle", "red")), CAPTIONS, strict=True
    )
]
GENEVAL = {
    "kind": "geneval", "name": "geneval-shapes", "prompts": "prompts_test.jsonl", "images_per_prompt": 12,
    "detector": {"name": "shapes"}, "colors": {"name": "shapes"},
}  # fmt: skip
SHAPES = ["evaluation=geneval", "evaluation.protocol.name=geneval-shapes", "evaluation.protocol.detector.name=shapes",
          "evaluation.protocol.colors.name=shapes", "evaluation.images_per_prompt=2"]  # fmt: skip


@pytest.fixture
def generator() -> list[str]:
    """Settings of the tiny generator, and of what it is judged on; prompts.jsonl lies in the folder."""
    write_rows(Path("prompts.jsonl"), ROWS)
    _, settings = checkpoint("llamagen-t2i", Path())
    return ["generator=llamagen-t2i", *settings]


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


JUDGED = [*SHAPES, "prompts=prompts.jsonl"]
TRAINED = [*SHAPES, "evaluation.protocol.prompts=prompts.jsonl", "evaluation.guidance_scales=[2.0]",
           "evaluation.temperatures=[]", "evaluation.aligned_guidance_scales=[]"]  # fmt: skip


@pytest.mark.slow
def test_eval_writes_row_verdicts_grid_and_record(generator: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run("eval", *generator, *JUDGED, "output_dir=scored", "label=base")
    (row,) = read_results(Path("scored/results.jsonl"))
    assert (row.label, row.protocol, row.n, row.reference_n) == ("base", "geneval-shapes", 6, 3)
    assert {"geneval_geneval-shapes_6", "counting_geneval-shapes_6"} <= row.metrics.keys()
    verdicts = [json.loads(line) for line in Path("scored", row.verdicts).read_text().splitlines()]
    assert [verdict["row"] for verdict in verdicts] == [0, 0, 1, 1, 2, 2]
    assert Image.open(Path("scored", row.samples)).info["Description"].splitlines() == CAPTIONS
    told = json.loads(Path("scored/run.json").read_text())["evaluation"]
    assert told["prompts"] == CAPTIONS
    assert (told["images_per_prompt"], told["fingerprint"]) == (2, row.extractor_fingerprint)
    assert told["judges"][0]["detector"]["name"] == "shapes"
    assert "geneval-shapes" in capsys.readouterr().out


@pytest.mark.slow
def test_prompts_of_ones_own_are_scored_by_rewards(generator: list[str]) -> None:
    Path("own.py").write_text("def letters(images, conditions):\n    return [len(c['prompt']) for c in conditions]\n")
    Path("mine.txt").write_text("\n".join(CAPTIONS))
    run("eval", *generator, "prompts=mine.txt", "rewards=[{name: 'own.py:letters'}]", "output_dir=scored")
    (row,) = read_results(Path("scored/results.jsonl"))
    mean = sum(map(len, CAPTIONS)) / 3
    assert next(iter(row.metrics.values())) == pytest.approx(mean)
    assert (row.n, row.protocol) == (3, "prompts-mine")
    assert len(Path("scored", row.verdicts).read_text().splitlines()) == 3


@pytest.mark.slow
def test_saved_images_score_as_those_that_were_drawn(generator: list[str]) -> None:
    run("eval", *generator, *JUDGED, "output_dir=scored", "save_images=true", "evaluation.batch_size=4")
    assert Image.open("scored/images/00001/samples/0001.png").size == (12, 12)
    assert json.loads(Path("scored/images/00002/metadata.jsonl").read_text()) == ROWS[2]
    run("eval", *JUDGED, "images=scored/images", "output_dir=again", "label=theirs")
    (drawn,), (read,) = (read_results(Path(folder, "results.jsonl")) for folder in ("scored", "again"))
    assert read.metrics == drawn.metrics
    assert (read.n, read.label, read.checkpoint, read.forwards_per_image) == (6, "theirs", None, None)
    assert read.extractor_fingerprint == drawn.extractor_fingerprint
    written = [Path(folder, row.verdicts).read_text() for folder, row in (("scored", drawn), ("again", read))]
    assert written[0] == written[1]


def task() -> PromptTask:
    write_rows(Path("prompts.jsonl"), ROWS)
    protocol = make_protocol({**GENEVAL, "prompts": "prompts.jsonl", "images_per_prompt": 2})
    assert not isinstance(protocol, Protocol)
    return PromptTask(protocol)


def scored(*, batch_size: int = 4) -> ResultRow:
    judge = Judge(task(), batch_size, Path("scored"))
    check_folder(Path("drawn"), judge.task)
    return score_folder(judge, Path("drawn"), "theirs", SamplingConfig())


def folder(prompts: int = 3, images: int = 2, *, other: dict[str, object] | None = None) -> None:
    rng = np.random.default_rng(0)
    for number in range(prompts):
        samples = Path(f"drawn/{number:05}/samples")
        samples.mkdir(parents=True)
        row = ROWS[number % 3] | (other if other and number == 1 else {})
        write_rows(samples.parent / "metadata.jsonl", [row])
        for image in range(images):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(samples / f"{image:04}.png")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"images": 1}, "drawn/00000/samples has 1 images; 2 are needed"),
        ({"prompts": 2}, "drawn has 2 prompts, and protocol geneval-shapes asks for 3"),
        ({"prompts": 4}, "drawn has 4 prompts, and protocol geneval-shapes asks for 3"),
        (
            {"other": {"prompt": "a dog"}},
            'drawn has at number 1 the prompt "a dog", and protocol geneval-shapes asks for',
        ),
        ({"other": {"exclude": None}}, "drawn has at number 1 the exclude null, and protocol geneval-shapes asks for"),
    ],
)
def test_folders_that_are_not_what_is_asked_for(made: dict[str, object], message: str) -> None:
    folder(**made)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        scored()
    assert not Path("scored").exists()


def test_a_broken_image_is_named_and_nothing_scored() -> None:
    folder()
    Path("drawn/00002/samples/0001.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="drawn/00002/samples/0001.png cannot be read as an image"):
        scored()
    assert not Path("scored").exists()


def test_images_are_scored_in_order_whatever_the_batch_and_their_sizes() -> None:
    folder()
    row = scored(batch_size=4)
    assert (row.n, row.samples) == (6, "samples/theirs_images_geneval-shapes_g1_t1_seed0.png")
    verdicts = Path("scored", row.verdicts).read_text()
    assert verdicts == Path("scored", scored(batch_size=1).verdicts).read_text()
    Image.new("RGB", (20, 30)).save("drawn/00001/samples/0000.png")
    other = scored(batch_size=4)
    assert (other.n, other.samples) == (6, None)  # images of several sizes make no grid
    assert Path("scored", other.verdicts).read_text().splitlines()[3:] == verdicts.splitlines()[3:]


def test_images_are_not_written_among_others() -> None:
    folder()
    with pytest.raises(ValueError, match="drawn holds images already"):
        FolderWriter(Path("drawn"), task()).begin(Path("own"), resumed=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {**ROWS[1], "tag": "size"},
            "row 1, 'a picture of two', cannot be judged by the detector 'shapes': the tag is 'size'",
        ),
        ({**ROWS[1], "include": [{"class": "dog", "count": 1}]}, "row 1, .*asks for the class 'dog'"),
    ],
)
def test_prompts_that_cannot_be_judged_are_named(wrong: dict[str, object], message: str) -> None:
    write_rows(Path("prompts.jsonl"), [ROWS[0], wrong, ROWS[2]])
    with pytest.raises(ValueError, match=message):
        make_protocol({**GENEVAL, "prompts": "prompts.jsonl"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("eval", ["generator=mnist-llamagen", *JUDGED], "judges images of prompts, and a llamagen generator draws images of classes"),
        ("train", ["generator=mnist-llamagen", *TRAINED], "judges images of prompts, and a llamagen generator draws"),
        ("study", ["experiment=mnist/cca", *TRAINED], "judges images of prompts, and a llamagen generator draws"),
        ("sweep", ["generator=mnist-llamagen", *TRAINED], "judges images of prompts, and a llamagen generator draws"),
        ("eval", [*JUDGED, "classes=[1]"], "classes are given, and protocol geneval-shapes is one of prompts"),
        ("eval", [*JUDGED, "evaluation.num_images=10"], "unknown key 'evaluation.num_images'"),
        ("eval", [*JUDGED, "evaluation.images_per_prompt=0"], "evaluation.images_per_prompt is 0; it must be at least 1"),
        ("eval", ["evaluation=none"], "evaluation=none measures nothing"),
        ("eval", ["evaluation=mnist-cnn", "prompts=prompts.jsonl"], "prompts= is given, and this evaluation has prompts of its own"),
        ("eval", ["prompts=prompts.jsonl"], "give both: prompts=FILE"),
        ("eval", ["images=drawn"], "drawn holds images of prompts, as GenEval's folders do, and this protocol judges images of classes"),
        ("eval", [*SHAPES, "evaluation.protocol.kind=genival"], "unknown kind of protocol 'genival'; known: features, file, geneval, rewards"),
        ("eval", [*SHAPES, "+evaluation.protocol.threshhold=0.4"], "has the unknown setting 'threshhold'"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_drawn(
    capsys: pytest.CaptureFixture[str], command: str, settings: list[str], message: str
) -> None:
    write_rows(Path("prompts.jsonl"), ROWS)
    folder(prompts=1)
    assert message in fails(capsys, command, *settings)
    assert not list(Path().rglob("results.jsonl"))


@pytest.mark.slow
def test_a_protocol_of_classes_on_a_generator_of_text_is_refused(
    generator: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("eval", "sweep"):
        message = fails(capsys, command, *generator, "evaluation=mnist-cnn")
        assert (
            "protocol mnist-cnn judges images of classes, and a llamagen-t2i generator draws images of prompts"
            in message
        )
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_prompt_without_features_is_refused_before_drawing(
    generator: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(Path("prompts.jsonl"), [*ROWS, {**ROWS[0], "prompt": "a picture of ten"}])
    assert "row 3 ('a picture of ten') is no prompt for this generator" in fails(capsys, "eval", *generator, *JUDGED)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_sweep_and_a_training_are_judged_by_prompts(generator: list[str]) -> None:
    run("sweep", *generator, *TRAINED, "guidance_scales=[1,2]", "temperatures=[1.0]", "output_dir=swept")
    assert [row.guidance_scale for row in read_results(Path("swept/results.jsonl"))] == 2 * [1, 2]
    Path("own.py").write_text("def bright(images, conditions):\n    return images.float().mean(dim=(1, 2, 3))\n")
    few = [
        *(
            "trainer.max_steps=1",
            "trainer.per_device_train_batch_size=4",
            "trainer.sample_every=0",
            "rollout.num_generations=2",
        ),
        *("reward.rewards=[{name: 'own.py:bright'}]", "data.prompts=prompts.jsonl", "trainer.warmup_steps=0"),
    ]
    run("train", *generator, *TRAINED, "objective=grpo", *few, "output_dir=run")
    rows = [row for row in read_results(Path("run/results.jsonl")) if row.split == "report"]
    assert [(row.label, row.guidance_scale) for row in rows] == [("base", 1), ("base", 2), ("aligned", 1)]
    assert {row.protocol for row in rows} == {"geneval-shapes"}
    assert json.loads(Path("run/run.json").read_text())["evaluation"]["prompts"] == CAPTIONS


# ---- zoo entries with a protocol


def entry(path: Path, protocol: object) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"family": "llamagen-t2i", "protocol": protocol}))
    write_rows(path / "prompts_test.jsonl", ROWS)
    return f"zoo:{path}"


def test_a_zoo_entry_names_its_protocol_of_prompts(tmp_path: Path) -> None:
    setting = entry(tmp_path / "shapes", GENEVAL)
    protocol = make_protocol(setting)
    assert not isinstance(protocol, Protocol)
    assert (protocol.name, protocol.images_per_prompt, [row["prompt"] for row in protocol.rows]) == (
        "geneval-shapes",
        12,
        CAPTIONS,
    )
    fewer: PromptProtocol = make_protocol(setting, images_per_prompt=3, max_prompts=2)  # type: ignore[assignment]
    assert (fewer.images_per_prompt, [row["prompt"] for row in fewer.rows]) == (3, CAPTIONS[:2])
    assert fewer.fingerprint != protocol.fingerprint
    with pytest.raises(ValueError, match="comes with the protocol geneval-shapes of prompts; one of classes is needed"):
        make_class_protocol(setting)
    assert make_protocol(entry(tmp_path / "other", setting)).name == "geneval-shapes"


def test_an_entry_without_a_protocol_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"family": "var"}')
    with pytest.raises(ValueError, match="comes without a protocol; its config.json has family"):
        make_protocol(f"zoo:{tmp_path}")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("detector", "has no detector"), ("images_per_prompt", "set evaluation.images_per_prompt")],
)
def test_what_a_protocol_lacks_is_named(missing: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_protocol({name: value for name, value in GENEVAL.items() if name not in (missing, "prompts")})


def test_subsets_are_spread_over_all_tags() -> None:
    section = {**GENEVAL, "prompts": None, "detector": {"name": "toy.py:detector"}, "colors": {"name": "toy.py:colors"}}
    Path("toy.py").write_text(
        "from evaluation.geneval.coco import COCO_NAMES, COLORS\n"
        "class Toy:\n    name, labels, colors = 'toy', COCO_NAMES, COLORS\n"
        "def detector(): return Toy()\ndef colors(): return Toy()\n"
    )
    whole, part = (make_protocol(section, max_prompts=number) for number in (None, 12))
    assert not isinstance(whole, Protocol)
    assert not isinstance(part, Protocol)
    assert len(whole.rows) == 553
    assert {row["tag"] for row in part.rows} == {row["tag"] for row in whole.rows}
    assert len(part.rows) == 12


def test_the_digits_protocol_has_no_prompts() -> None:
    assert make_class_protocol("zoo:mnist-llamagen").name == make_class_protocol("zoo:mnist-var").name == "mnist-cnn"
    with pytest.raises(ValueError, match="evaluation.max_prompts is 3; .* protocols of classes have none"):
        make_protocol("zoo:mnist-llamagen", max_prompts=3)
    assert load_generator("mnist-llamagen").num_classes == 10
