"""Weights in the format of open_clip: one file of tensors, and an architecture that has to be named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_open_clip(weights: Path, architecture: str, quick_gelu: bool | None, device: torch.device) -> dict[str, Any]:
    """What a ClipModel is made of, from a file of open_clip's.

    Args:
        weights: a .safetensors file, or one of torch.save that holds the tensors or has them under "state_dict".
        architecture: one of `open_clip.list_models()`, or the path of a .json file like those in its model_configs.
        quick_gelu: the activation: x * sigmoid(1.702 x) for weights of OpenAI, MetaCLIP and DFN, else GELU. The same tensors
            fit both, and the wrong one gives plausible, wrong scores; so where open_clip has an architecture both ways it
            must be told, here or by the name that ends in -quickgelu.

    Raises:
        ValueError: open_clip is not installed, an architecture that is unknown or no plain CLIP, an activation that was not
            told, or tensors that do not fit.
    """
    open_clip = import_open_clip()
    config = _config(open_clip, architecture, quick_gelu)
    with torch.device("meta"):  # drawing a billion random numbers, to be overwritten, takes half a minute
        model = open_clip.CLIP(**config)
    tensors = read_tensors(weights)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    misshaped = [name for name in expected.keys() & tensors.keys() if tensors[name].shape != expected[name]]
    if missing or unexpected or misshaped:
        raise ValueError(
            f"{weights} is no {architecture} of open_clip: missing {shown(missing)}; unexpected {shown(unexpected)}; of another shape {shown(misshaped)}"
        )
    model.load_state_dict(tensors, assign=True)
    # of all its tensors the mask alone is not in the file
    model.attn_mask = torch.full(model.attn_mask.shape, -torch.inf).triu(1)
    model = model.float().eval().requires_grad_(False).to(device)
    tokenize = open_clip.SimpleTokenizer(context_length=model.context_length)

    def embed_texts(part: list[str]) -> Tensor:
        return model.encode_text(tokenize(part).to(device))

    return {
        "embed_pixels": model.encode_image,
        "embed_texts": embed_texts,
        "image_size": config["vision_cfg"]["image_size"],
        "width": config["embed_dim"],
        "scale": model.logit_scale.exp().item(),
    }


def import_open_clip() -> Any:
    """The package.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            f"this model is read by the package open_clip, which does not import ({error}); try: pip install 'ar-align[rewards]'"
        ) from error
    return open_clip


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of torch.save, at its top or under "state_dict".

    Raises:
        ValueError: it holds more than tensors, or is no such file.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is not a file of tensors alone ({str(error).splitlines()[0]}); programs are not run from it. OpenAI's own .pt files are programs: take the same weights as .safetensors, or transformers' folder of them"
        ) from error
    tensors = content.get("state_dict", content)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def shown(names: Collection[str]) -> str:
    """A few of many names, for an error."""
    some = ", ".join(sorted(names)[:3]) or "none"
    return f"{some} and {len(names) - 3} more" if len(names) > 3 else some


def _config(open_clip: Any, architecture: str, quick_gelu: bool | None) -> dict[str, Any]:
    if architecture.endswith(".json"):
        path = Path(architecture).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"there is no architecture {path} (relative to {Path.cwd()})")
        config = json.loads(path.read_text())
    else:
        known = open_clip.list_models()
        if architecture not in known:
            raise ValueError(
                f"unknown architecture {architecture!r}; known are open_clip.list_models(), such as ViT-B-32, ViT-L-14, ViT-H-14, or the path of a .json file like those"
            )
        config = open_clip.get_model_config(architecture)
        if quick_gelu is None and f"{architecture}-quickgelu" in known:
            raise ValueError(
                f"{architecture} may be with GELU or with QuickGELU, and the tensors fit both: add quick_gelu=true for weights of OpenAI, MetaCLIP or DFN, quick_gelu=false for others"
            )
    plain = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
    special = [
        key for tower in ("vision_cfg", "text_cfg") for key in config.get(tower, ()) if key.startswith(("hf_", "timm_"))
    ]
    if not plain - {"quick_gelu"} <= config.keys() <= plain or special:
        raise ValueError(
            f"the architecture {architecture} is no plain CLIP (a vision and a text transformer of open_clip's own); it has {', '.join([*config, *special])}"
        )
    if quick_gelu is False and architecture.endswith("-quickgelu"):
        raise ValueError(f"{architecture} is with QuickGELU, and quick_gelu=false says without; take one of both away")
    if quick_gelu is not None:
        config["quick_gelu"] = quick_gelu
    return config
