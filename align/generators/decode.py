"""A CPU kernel for one token of a few rows through a Llama-type decoder, compiled at its first use and kept.

A step of small batch is as long as reading the weights takes, and PyTorch's products of few rows read them at about half
of that speed. Where no C++ compiler is found everything works as without this.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("decode.cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
# from more rows on a product is limited by arithmetic, and PyTorch's is as fast
MAX_ROWS = 32


@dataclass(frozen=True)
class StepSizes:
    """What a step's arrays are shaped by; the kernel's `Sizes`, in its order."""

    layers: int
    batch: int
    dim: int
    heads: int
    hidden: int
    vocab: int
    capacity: int

    def supported(self) -> bool:
        """Vectors are 16 wide, and a head at most 128."""
        head = self.dim // self.heads
        return self.batch <= MAX_ROWS and head % 16 == 0 and head <= 128 and self.hidden % 16 == 0


class DecodeStep:
    """The kernel bound to one cache and the weights that it is filled by.

    Args:
        layers: of each layer attention_norm [C], wqkv [3C, C], wo [C, C], ffn_norm [C], w1 and w3 [F, C], w2 [C, F],
            and its cache [2, B, heads, S, C / heads]; float32 or bfloat16, all alike and contiguous.
        norm, output: the last norm [C], and the output layer [V, C].
        rope_SR2: float32 [S, C / heads / 2, 2], cosines and sines of every cell.
        visible_BS: bool [B, S], which cells may be attended to; None: all.

    Raises:
        OSError: no kernel can be had here, see `missing`.
    """

    def __init__(
        self,
        sizes: StepSizes,
        layers: Sequence[Sequence[Tensor]],
        norm: Tensor,
        output: Tensor,
        rope_SR2: Tensor,
        visible_BS: Tensor | None,
    ) -> None:
        self.kept = (layers, norm, output, rope_SR2, visible_BS)  # the kernel knows their addresses only
        self.sizes, self.rope = sizes, rope_SR2
        self.visible = None if visible_BS is None else visible_BS.contiguous()
        pointers = [tensor.data_ptr() for layer in layers for tensor in layer]
        self.layers = (ctypes.c_void_p * len(pointers))(*pointers)
        self.norm, self.output = norm, output
        self.threads = torch.get_num_threads()
        shared = max(3 * sizes.dim, 2 * sizes.hidden) + sizes.dim
        own = sizes.batch * sizes.dim + sizes.capacity + 16
        self.work = torch.empty(sizes.batch * shared + self.threads * own)
        name = {torch.float32: "decode_step_float32", torch.bfloat16: "decode_step_bfloat16"}[output.dtype]
        library = _library()
        if isinstance(library, str):
            raise OSError(library)
        self.kernel = getattr(library, name)
        for tensor in (output, *(tensor for layer in layers for tensor in layer)):
            bytes_held = ctypes.c_int64(tensor.numel() * tensor.element_size())
            library.use_huge_pages(ctypes.c_void_p(tensor.data_ptr()), bytes_held)

    def __deepcopy__(self, memo: object) -> None:
        """Nothing: it is bound to the memory of one cache, and a copied cache gets its own."""

    def __call__(self, x_BC: Tensor, position: int) -> Tensor:
        """float32 logits [B, 1, V] after x, float32 [B, C], which goes to this cell of the cache; x is used up."""
        logits_BV = torch.empty(self.sizes.batch, self.sizes.vocab)
        numbers = (*astuple(self.sizes), position, self.threads)
        self.kernel(
            (ctypes.c_int64 * len(numbers))(*numbers),
            self.layers,
            ctypes.c_void_p(self.norm.data_ptr()),
            ctypes.c_void_p(self.output.data_ptr()),
            ctypes.c_void_p(self.rope[position].data_ptr()),
            None if self.visible is None else ctypes.c_void_p(self.visible.data_ptr()),
            ctypes.c_void_p(x_BC.data_ptr()),
            ctypes.c_void_p(self.work.data_ptr()),
            ctypes.c_void_p(logits_BV.data_ptr()),
        )
        return logits_BV.unsqueeze(1)


def missing() -> str | None:
    """Why there is no kernel here; None where there is one."""
    found = _library()
    return found if isinstance(found, str) else None


@cache
def _library() -> ctypes.CDLL | str:
    """The compiled kernel, or why there is none."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return "no C++ compiler: neither $CXX nor g++ is found"
    try:
        # for this source, compiler and processor alone: a home may be shared by several machines
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        told = "\n".join([SOURCE.read_text(), version, *FLAGS, _processor()])
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ar-align"
        path = home / f"decode-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            command = [compiler, *FLAGS, str(SOURCE), "-o", str(temporary)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            temporary.replace(path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        return f"{compiler} could not compile {SOURCE}: {error.stderr.strip()[-300:]}"
    except OSError as error:
        return f"the compiled kernel could not be kept or loaded: {error}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
