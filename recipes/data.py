"""Make training data.

align data encode: images to token codes, once, for a tokenizer.
For example: align data encode imagenet/train generator=llamagen generator.tokenizer_checkpoint=vq_ds16_c2i.pt image_size=256

align data show: some token codes as images again, to see that they are what they should be.
For example: align data show runs/codes generator=llamagen generator.tokenizer_checkpoint=vq_ds16_c2i.pt

align data captions: caption features for a generator that reads text, once, for a text encoder.
For example: align data captions prompts.txt text_encoder=flan-t5-xl output_dir=runs/captions

align data pairs: preference pairs of the generator's own images, the best and the worst of each condition by a reward.
For example: align data pairs num_prompts=2000 margin=1.0 winners=runs/pairs/winners.safetensors

align data stats: statistics of real images, which generated ones are measured against.
For example: align data stats imagenet/val extractor.path=weights-inception-2015-12-05-6726825d.pth output=val.npz
"""

from __future__ import annotations

from recipes.kinds import module_of_kind

# each module has main(overrides), and a configuration of its name in conf/
KINDS = {
    "encode": "recipes.data_encode",
    "show": "recipes.data_show",
    "captions": "recipes.data_captions",
    "pairs": "recipes.data_pairs",
    "stats": "recipes.data_stats",
}


def main(words: list[str]) -> None:
    module_of_kind("data", KINDS, words).main(words[1:])
