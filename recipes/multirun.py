"""Trainings over a grid of settings, by hydra's multirun and its launchers: one after another, or as jobs of Slurm.

    python -m recipes.multirun -m experiment=mnist/cca seed=1,2,3 objective.lambda_=3,5
    python -m recipes.multirun -m hydra/launcher=submitit_slurm hydra.launcher.partition=gpu \\
        hydra.launcher.gpus_per_node=1 experiment=llamagen/cca_b seed=1,2,3 ...

Each job is `align train` with its settings, in one process; its run is in run/ of the job's folder (hydra.sweep.dir), and
`align report` makes a leaderboard of them. The second needs the package hydra-submitit-launcher.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from omegaconf import DictConfig

from recipes import train
from recipes.choices import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(_: DictConfig) -> None:
    job = HydraConfig.get()
    settings = [*job.overrides.task, f"output_dir={Path(job.runtime.output_dir) / 'run'}"]
    state = Singleton.get_state()
    GlobalHydra.instance().clear()  # the settings are composed again, and checked, as the command does
    try:
        train.main(settings)
    finally:
        Singleton.set_state(state)


if __name__ == "__main__":
    main()
