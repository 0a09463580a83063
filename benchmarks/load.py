"""What loading a checkpoint of 3 billion parameters takes in memory: at most 1.2 times its file.

    python benchmarks/load.py [--folder DIR]      # DIR has room for 12.4 GB

A LlamaGen-3B with random weights is written in the published form, then loaded by a fresh process, which says its peak
after loading and after it has read every weight once. Mapped weights count as its memory when they are read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from align.checkpoints import empty_generator
from recipes.speed.models import published_sizes

LIMIT = 1.2
CHILD = """
import json, resource, sys, time, torch, align, align.checkpoints
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
generator = align.load_generator("llamagen", sys.argv[1], grid=(24, 24))
seconds, loaded = time.perf_counter() - start, peak()
total = sum(float(parameter.sum()) for parameter in generator.parameters())
print(json.dumps({"imports": before, "seconds": seconds, "loaded": loaded, "read": peak()}))
"""


def make_file(path: Path) -> None:
    sizes = published_sizes("llamagen", "3B", grid=(24, 24))
    generator = empty_generator("llamagen", sizes).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.fill_(0.01)  # numbers do not matter, that they are written does
    generator.save_published(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make is not None:
        make_file(arguments.make)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "c2i_3B_384.pt"
        # not in this process: a child's peak begins with what its parent had
        subprocess.run([sys.executable, __file__, "--make", str(path)], check=True)
        size = path.stat().st_size
        start = time.perf_counter()
        found = json.loads(
            subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, capture_output=True, text=True).stdout
        )
        print(f"file                    {size / 1e9:6.2f} GB")
        print(f"imports                 {found['imports'] / 1e9:6.2f} GB")
        print(f"loaded                  {found['loaded'] / 1e9:6.2f} GB in {found['seconds']:.1f} s")
        print(
            f"every weight read       {found['read'] / 1e9:6.2f} GB in {time.perf_counter() - start:.0f} s with imports"
        )
        print(
            f"peak over the file's size: {found['read'] / size:.2f}, {found['read'] / size / LIMIT:.2f} of the limit of {LIMIT}"
        )


if __name__ == "__main__":
    main()
