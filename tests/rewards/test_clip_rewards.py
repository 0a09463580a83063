"""Rewards of CLIP models give the published numbers: held against the libraries' own code, on tiny models in their formats."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.weights import fingerprint_of
from rewards.registry import load_reward
from rewards.tiny import clip as tiny

# resized to 28 rows: 31 columns, of which transformers cuts out other ones than open_clip does
IMAGES = torch.randint(0, 256, (5, 45, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", "A cat on the red mat, it's 3 o'clock", "", "a cat", "word " * 100]
ROWS = [{"prompt": prompt, "label": 0} for prompt in PROMPTS]
MAKERS = {
    "clip-score": tiny.make_clip_score,
    "pickscore": tiny.make_pickscore,
    "aesthetic": tiny.make_aesthetic,
    "hpsv2": tiny.make_hpsv2,
}
SLOW_HPSV2 = pytest.param("hpsv2", marks=pytest.mark.slow)  # importing open_clip takes two seconds
ALL = ["clip-score", "pickscore", "aesthetic", SLOW_HPSV2]
Score = Callable[..., Tensor]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The settings of a tiny reward, whose files are written once."""
    made: dict[str, dict[str, Any]] = {}

    def make(name: str) -> dict[str, Any]:
        if name not in made:
            made[name] = MAKERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return make


@pytest.fixture(scope="module")
def score(settings: Callable[[str], dict[str, Any]]) -> Score:
    kept = []  # so that their models are loaded once

    def call(name: str, images: Tensor = IMAGES, rows: list[dict[str, Any]] = ROWS, **more: Any) -> Tensor:
        kept.append(load_reward(name, **{**settings(name), **more}))
        return kept[-1](images, rows)

    return call


def by_transformers(folder: str, images: Tensor) -> Any:
    """The outputs of CLIPModel for these images and PROMPTS, as its documentation asks for them."""
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pixels = processor([Image.fromarray(image.numpy()) for image in images], return_tensors="pt")
    tokens = CLIPTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    assert tokens["input_ids"][:, -1].tolist() == [513] * 5  # texts that are cut end in the sign as well
    with torch.no_grad():
        return CLIPModel.from_pretrained(folder).eval()(**tokens, **pixels)


def test_pickscore_is_the_logit_of_transformers(score: Score, settings: Callable[[str], dict[str, Any]]) -> None:
    expected = by_transformers(settings("pickscore")["model"], IMAGES).logits_per_image.diagonal()
    torch.testing.assert_close(score("pickscore"), expected, rtol=0, atol=1e-3)
    assert expected.std() > 1


def test_clip_score_is_the_cosine(score: Score, settings: Callable[[str], dict[str, Any]]) -> None:
    square = IMAGES[:, :, :45]
    expected = by_transformers(settings("clip-score")["model"], square).logits_per_image.diagonal() / 100
    torch.testing.assert_close(score("clip-score", square), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_aesthetic_is_the_published_stack(score: Score, settings: Callable[[str], dict[str, Any]]) -> None:
    square, kwargs = IMAGES[:, :, :45], settings("aesthetic")
    linear = [torch.nn.Linear(*widths) for widths in itertools.pairwise((16, 12, 10, 8, 4, 1))]
    drop = torch.nn.Dropout(0.5)
    published = torch.nn.ModuleDict(
        {"layers": torch.nn.Sequential(linear[0], drop, linear[1], drop, linear[2], drop, linear[3], linear[4])}
    )
    published.load_state_dict(torch.load(kwargs["head"], weights_only=True))
    embeddings_BD = by_transformers(kwargs["model"], square).image_embeds
    expected = published.eval()["layers"](embeddings_BD).flatten().detach()
    torch.testing.assert_close(score("aesthetic", square), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.005


def test_the_first_aesthetic_predictor_is_one_layer(
    score: Score, settings: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    square, weight_D = IMAGES[:, :, :45], torch.arange(16.0)
    torch.save({"weight": weight_D[None], "bias": torch.tensor([3.0])}, tmp_path / "linear.pth")
    embeddings_BD = by_transformers(settings("aesthetic")["model"], square).image_embeds
    scores = score("aesthetic", square, head=str(tmp_path / "linear.pth"))
    torch.testing.assert_close(scores, embeddings_BD @ weight_D + 3, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("antialias", [True, False])
def test_hpsv2_is_the_cosine_of_open_clip(
    score: Score, settings: Callable[[str], dict[str, Any]], antialias: bool
) -> None:
    import open_clip
    from torchvision import transforms

    kwargs = settings("hpsv2")
    model = open_clip.CLIP(**tiny.OPEN_CLIP, output_dict=True).eval()
    checkpoint = torch.load(Path(kwargs["model"]) / "HPS_v2.1_compressed.pt", weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    published = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(28, transforms.InterpolationMode.BICUBIC, antialias=antialias),
            transforms.CenterCrop(28),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    with torch.no_grad():
        pixels = torch.stack([published(Image.fromarray(image.numpy())) for image in IMAGES])
        outputs = model(pixels, open_clip.tokenize(PROMPTS))
    expected = (outputs["image_features"] @ outputs["text_features"].T).diagonal()
    torch.testing.assert_close(score("hpsv2", antialias=antialias), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("name", ALL)
def test_a_score_depends_on_its_own_image_and_row_alone(score: Score, name: str) -> None:
    whole = score(name)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(score(name, IMAGES[order], [ROWS[row] for row in order])[:2], whole[[3, 1]])
    torch.testing.assert_close(score(name, batch_size=2), whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat([score(name, IMAGES[i : i + 1], ROWS[i : i + 1]) for i in range(5)]), whole)
    assert whole.dtype == torch.float32
    assert len(whole.unique()) == 5
    assert score(name, IMAGES[:0], []).shape == (0,)


@pytest.mark.parametrize("name", ALL)
def test_lower_precision_is_close(score: Score, name: str) -> None:
    exact, rounded = score(name), score(name, dtype="bfloat16")
    # bfloat16 has 8 bits, and a cosine is a sum of 16 products of numbers below 1
    assert 0 < (rounded - exact).abs().max() < 0.01 * (100 if name == "pickscore" else 1)


@pytest.mark.parametrize("name", ["clip-score", "pickscore", SLOW_HPSV2])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 3, "text": "a"}, r"row 1 has no text as 'prompt', it has \['label', 'text'\]; .*give each row one"),
        ({"prompt": None}, r"row 1 has no text as 'prompt', it is None"),
    ],
)
def test_a_row_without_a_prompt_is_refused(score: Score, name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(name, rows=[ROWS[0], row, *ROWS[2:]])


def test_a_class_is_told_by_its_name(score: Score) -> None:
    named = score("clip-score", rows=[{"label": 3, "class_name": "hen"}] * 5)
    assert torch.equal(named, score("clip-score", rows=[{"prompt": "a photo of a hen"}] * 5))


def test_aesthetic_reads_no_row(score: Score) -> None:
    assert torch.equal(score("aesthetic", rows=[{}] * 5), score("aesthetic"))


def test_fingerprints_are_of_the_weights(settings: Callable[[str], dict[str, Any]]) -> None:
    for name in ("clip-score", "pickscore", "aesthetic"):
        folder = Path(settings(name)["model"])
        files = [folder / "model.safetensors"] + ([folder / "head.pth"] if name == "aesthetic" else [])
        assert load_reward(name, **settings(name)).fingerprint == fingerprint_of(files)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, "reads embeddings of 768 numbers, but .* makes 16"),
        ({"fc.weight": torch.zeros(1, 16)}, "no aesthetic predictor of LAION: it has fc.weight; expected are weight"),
        (  # with activations the places of the layers differ
            {f"layers.{i}.{part}": torch.zeros(1, 1) for i in (0, 3, 6, 8, 9) for part in ("weight", "bias")},
            "it has layers.0.bias, .*layers 0, 2, 4, 6, 7.*activations",
        ),
    ],
)
def test_other_heads_are_refused(score: Score, tmp_path: Path, head: dict[str, Tensor], message: str) -> None:
    torch.save(head, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=message):
        score("aesthetic", head=str(tmp_path / "head.pth"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ALL)
def test_the_gpu_agrees(score: Score, name: str) -> None:
    on_gpu = {dtype: score(name, device="cuda", dtype=dtype) for dtype in ("float32", "auto")}
    scale = 100 if name == "pickscore" else 1
    torch.testing.assert_close(on_gpu["float32"], score(name), rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(on_gpu["auto"], score(name), rtol=0, atol=0.01 * scale)
