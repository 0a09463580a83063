"""Which of GenEval's names a detector of COCO means by its own."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.clip.open_clip_files import shown
from evaluation.geneval.coco import COCO_NAMES

# other names of COCO's classes that are in use -> GenEval's
ALIASES = {
    "aeroplane": "airplane",
    "cellphone": "cell phone",
    "diningtable": "dining table",
    "doughnut": "donut",
    "hair dryer": "hair drier",
    "keyboard": "computer keyboard",
    "mobile phone": "cell phone",
    "motorbike": "motorcycle",
    "mouse": "computer mouse",
    "pottedplant": "potted plant",
    "remote": "tv remote",
    "sofa": "couch",
    "television": "tv",
    "tv monitor": "tv",
    "tvmonitor": "tv",
}


def coco_labels(names: Mapping[int, str]) -> list[str]:
    """GenEval's name of each class, by the names that a model's config.json has for them.

    Raises:
        ValueError: a name that is none of COCO's 80 as far as can be told, one that is missing, or two for the same.
    """
    plain = {index: name.lower().replace("_", " ").replace("-", " ").strip() for index, name in names.items()}
    known = {index: ALIASES.get(name, name) for index, name in plain.items()}
    strange = [names[index] for index, name in known.items() if name not in COCO_NAMES]
    missing = [name for name in COCO_NAMES if name not in known.values()]
    twice = sorted({name for name in known.values() if list(known.values()).count(name) > 1})
    if strange or missing or twice or sorted(known) != list(range(len(known))):
        raise ValueError(
            f"the classes in config.json (id2label) are not COCO's 80: unknown {shown(strange)}; missing {shown(missing)}; named twice {shown(twice)}. Instance segmentation of COCO is needed, such as facebook/mask2former-swin-small-coco-instance; if they are COCO's classes under other names, correct them there"
        )
    return [known[index] for index in range(len(known))]
