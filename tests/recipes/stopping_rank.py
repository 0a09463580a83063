"""Run by test_stopping.py: `align` in two processes as torchrun starts them, one of which is stopped in each phase in turn.

They are forked from this one, which has imported everything. What each says is in FOLDER/CASE/logs, and what torchrun says
at the end, with the seconds that it took, in FOLDER/CASE/summary.txt.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from align.data import TrainingStream
from align.training import trainer
from recipes import cli
from recipes.judge import Judge

PLACES: dict[str, tuple[Any, str]] = {
    "data": (TrainingStream, "__getitem__"),
    "update": (trainer.AlignTrainer, "training_step"),
    "killed": (trainer.AlignTrainer, "training_step"),
    "saving": (trainer, "save_tensors"),
    "evaluation": (Judge, "score"),
}
QUICK = ["experiment=mnist/cca", "trainer.max_steps=2", "trainer.save_steps=1", "trainer.per_device_train_batch_size=4"]
QUICK += ["trainer.sample_every=0", "preflight=false", "evaluation.num_images=200", "trainer.report_to=[]"]


def align(case: str, folder: str) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        if case == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise (OSError if case == "saving" else RuntimeError)(f"something is wrong with {case}")

    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # forked, it has the launcher's handler
    # what is saved of a replicated policy is saved by the first process
    if os.environ["RANK"] == ("0" if case == "saving" else "1"):
        setattr(*PLACES[case], stop)
    sys.argv = ["align", "train", *QUICK, f"output_dir={folder}/run"]
    cli.entry()


def main(parent: Path) -> None:
    for case in PLACES:
        folder = parent / case
        (folder / "logs").mkdir(parents=True)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=case,
            start_method="fork",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ALL),
        )
        start, summary = time.monotonic(), "nothing failed"
        try:
            elastic_launch(config, align)(case, str(folder))
        except ChildFailedError as error:
            summary = str(error)
        (folder / "summary.txt").write_text(f"{time.monotonic() - start}\n{summary}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
