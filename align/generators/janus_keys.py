"""Names of Janus-Pro's tensors in its two published layouts, and what they are called here.

The converted layout is that of transformers (deepseek-community/Janus-Pro-1B and -7B); the generator's own names are the
same. The original one is the authors' (deepseek-ai/Janus-Pro-1B and -7B). The image tokenizer is LlamaGen's under either,
with other names in the converted layout. What generates no images (the SigLIP tower and its aligner, the text head) stays
in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from align.generators.beta import PREFIX as BETA_PREFIX
from align.generators.published import describe

CONVERTED, ORIGINAL = "converted", "original"
# a tensor that files of the layout have, and no others
SIGNS = {CONVERTED: "model.generation_embeddings.weight", ORIGINAL: "gen_embed.weight"}

# (here and converted, original), by prefix
_PREFIXES = (
    ("model.language_model.", "language_model.model."),
    ("model.generation_embeddings.", "gen_embed."),
    ("model.generation_aligner.", "gen_aligner."),
    ("model.generation_head.proj_out.", "gen_head.output_mlp_projector."),
    ("model.generation_head.vision_head.", "gen_head.vision_head."),
)
_TOKENIZER_PREFIX = {CONVERTED: "model.vqmodel.", ORIGINAL: "gen_vision_model."}
# what the converted layout calls the tokenizer's parts, and what LlamaGen does
_TOKENIZER_PARTS = (
    (re.compile(r"^encoder\.down\."), "encoder.conv_blocks."),
    (re.compile(r"^decoder\.up\."), "decoder.conv_blocks."),
    (re.compile(r"(?<=\d)\.block\."), ".res."),
    (re.compile(r"\.mid\.block_1\."), ".mid.0."),
    (re.compile(r"\.mid\.attn_1\."), ".mid.1."),
    (re.compile(r"\.mid\.block_2\."), ".mid.2."),
)
# usage statistics of the tokenizer's training, which the converted layout lacks
_STATISTICS = "quantize.codebook_used"
# learned positions of the SigLIP tower, one for each patch of the image: as many as there are tokens in one
_POSITIONS = {
    CONVERTED: "model.vision_model.embeddings.position_embedding.weight",
    ORIGINAL: "vision_model.vision_tower.pos_embed",
}
# a table of constants that older versions of transformers kept among the weights
_CONSTANT = "rotary_emb.inv_freq"


def layout_of(tensors: Mapping[str, Tensor]) -> str:
    """Which of the two layouts a file has.

    Raises:
        ValueError: neither.
    """
    for layout, sign in SIGNS.items():
        if sign in tensors:
            return layout
    raise ValueError(f"this is not a Janus generator; {describe(tensors)}")


def published_name(name: str, layout: str) -> str:
    """What a layout calls one of the generator's tensors."""
    for here, original in _PREFIXES if layout == ORIGINAL else ():
        if name.startswith(here):
            rest = name.removeprefix(here)
            return original + (_aligner_layer(rest) if original == "gen_aligner." else rest)
    return name


def _aligner_layer(name: str) -> str:
    """fc1, hidden_layers.0, hidden_layers.1, ... to layers 0, 2, 4, ... of a sequence with activations between them."""
    part, _, leaf = name.rpartition(".")
    return f"layers.{0 if part == 'fc1' else 2 * int(part.removeprefix('hidden_layers.')) + 2}.{leaf}"


def others(tensors: Mapping[str, Tensor]) -> set[str]:
    """The names in a file of either layout that are none of the generator's."""
    column = 0 if layout_of(tensors) == CONVERTED else 1
    own = (BETA_PREFIX, *(prefixes[column] for prefixes in _PREFIXES))
    return {name for name in tensors if not name.startswith(own) or name.endswith(_CONSTANT)}


def count_layers(tensors: Mapping[str, Tensor], leaf: str) -> int:
    """How many layers have a tensor of that name under `model.language_model.layers.N.`."""
    prefix = published_name("model.language_model.layers.", layout_of(tensors))
    return sum(name.startswith(prefix) and name.endswith(f".{leaf}") for name in tensors)


def count_aligner_layers(tensors: Mapping[str, Tensor]) -> int:
    prefix = "model.generation_aligner." if layout_of(tensors) == CONVERTED else "gen_aligner."
    return sum(name.startswith(prefix) and name.endswith(".weight") for name in tensors)


def tokenizer_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tokenizer's part of a file by LlamaGen's names; empty where it has none.

    Without its usage statistics, so that one tokenizer is the same in both layouts.
    """
    prefix = _TOKENIZER_PREFIX[layout_of(tensors)]
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix) and name != prefix + _STATISTICS:
            name = name.removeprefix(prefix)
            for part, llamagens in _TOKENIZER_PARTS:
                name = part.sub(llamagens, name)
            found[name] = tensor
    return found


def patches(tensors: Mapping[str, Tensor]) -> int | None:
    """How many patches the file's SigLIP tower cuts an image into, where it has one."""
    positions = tensors.get(_POSITIONS[layout_of(tensors)])
    return None if positions is None else positions.shape[-2]
