"""The order in which training sees preference pairs."""

from __future__ import annotations

from align.data.negatives import Alternatives
from align.data.pairs import PreferencePairs
from align.data.stream import Stream


class PairStream(Stream):
    """Preference pairs: each item holds chosen [L] and rejected [L], of one class or prompt, beside what every `Stream` gives.

    The negative label is that of another pair, unless one is set for all.
    """

    def __init__(
        self,
        pairs: PreferencePairs,
        *,
        length: int,
        seed: int,
        label_drop: float,
        negative_label: int | str | None = None,
        hard_negatives: Alternatives = (),
    ) -> None:
        super().__init__(
            {"chosen": pairs.chosen_NL, "rejected": pairs.rejected_NL},
            pairs.labels_N,
            source=f"{pairs.tokenizer} {pairs.policy}",
            length=length,
            seed=seed,
            label_drop=label_drop,
            negative_label=negative_label,
            hard_negatives=hard_negatives,
        )
