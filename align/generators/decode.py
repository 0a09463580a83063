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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from align.generators.base import Generator

SOURCE = Path(__file__).with_name("decode.cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
KERNELS = {torch.float32: "decode_step_float32", torch.bfloat16: "decode_step_bfloat16"}
# from more rows on a product is limited by arithmetic, and PyTorch's is as fast
MAX_ROWS = 32


@dataclass(frozen=True)
class StepSizes:
    """What a step's arrays are shaped by; the first of the kernel's `Sizes`, in its order.

    vocab: rows of the output layer; 0 where there is none, and the step ends with the last norm.
    halves: rotary pairs are (i, i + width / 2), as transformers has them; else neighbours, as LlamaGen has them.
    """

    layers: int
    batch: int
    dim: int
    heads: int
    hidden: int
    vocab: int
    capacity: int
    halves: bool

    def supported(self) -> bool:
        """Vectors are 16 wide, and a head at most 128."""
        head = self.dim // self.heads
        return self.batch <= MAX_ROWS and head % 16 == 0 and head <= 128 and self.hidden % 16 == 0


@dataclass(frozen=True)
class StepWeights:
    """The tensors of a decoder: float32 or bfloat16, all alike and contiguous.

    layers: of each attention_norm [C], wq, wk, wv and wo [C, C], ffn_norm [C], w1 and w3 [F, C], w2 [C, F], and its cache
        [2, B, heads, S, C / heads].
    norm, output: the last norm [C], and the output layer [V, C] where it belongs to the step.
    """

    layers: Sequence[Sequence[Tensor]]
    norm: Tensor
    output: Tensor | None
    epsilon: float


class DecodeStep:
    """The kernel bound to one cache and the weights that it is filled by.

    Args:
        visible_BS: bool [B, S], which cells may be attended to; None: all.

    Raises:
        OSError: no kernel can be had here, see `missing`.
    """

    def __init__(self, sizes: StepSizes, weights: StepWeights, visible_BS: Tensor | None) -> None:
        self.sizes, self.weights = sizes, weights  # kept: the kernel knows addresses only
        self.visible = None if visible_BS is None else visible_BS.contiguous()
        tensors = [tensor for layer in weights.layers for tensor in layer]
        self.layers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        self.threads = torch.get_num_threads()
        shared = max(3 * sizes.dim, 2 * sizes.hidden) + sizes.dim
        own = sizes.batch * sizes.dim + sizes.capacity + 16
        self.work = torch.empty(sizes.batch * shared + self.threads * own)
        library = _library()
        if isinstance(library, str):
            raise OSError(library)
        self.kernel = getattr(library, KERNELS[weights.norm.dtype])
        for tensor in tensors if weights.output is None else (*tensors, weights.output):
            library.use_huge_pages(_address(tensor), ctypes.c_int64(tensor.numel() * tensor.element_size()))

    def __deepcopy__(self, memo: object) -> None:
        """Nothing: it is bound to the memory of one cache, and a copied cache gets its own."""

    def __call__(self, x_BC: Tensor, position: int, rope: Tensor) -> Tensor:
        """float32 logits [B, 1, V], or without an output layer what it would read [B, 1, C], after x [B, C].

        Args:
            position: the cell of the cache that x goes to; all before it are filled.
            rope: float32 [C / heads / 2, 2], cosine and sine of each rotary pair there; or for each row [B, ..., 2].
        """
        sizes, x_BC = self.sizes, x_BC.float().clone()  # used up
        result = torch.empty(sizes.batch, 1, sizes.vocab or sizes.dim)
        rope = rope.contiguous()
        numbers = (*astuple(sizes), rope.stride(0) if rope.dim() == 3 else 0, position, self.threads)
        self.kernel(
            (ctypes.c_int64 * len(numbers))(*numbers),
            self.layers,
            _address(self.weights.norm),
            _address(self.weights.output),
            ctypes.c_float(self.weights.epsilon),
            _address(rope),
            _address(self.visible),
            _address(x_BC),
            _address(self.work),
            _address(result),
        )
        return result


def _address(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def bind(
    generator: Generator,
    sizes: StepSizes,
    layers: Iterable[nn.Module],
    weights: Callable[[], StepWeights],
    visible_BS: Tensor | None,
    problem: str | None = None,
) -> DecodeStep | None:
    """The kernel for a cache that was just made; None where it does not serve.

    Args:
        layers: the modules that the kernel does the work of.
        problem: why it cannot, where the caller knows already.

    Raises:
        ValueError: engine=native, and it does not.
    """
    problem = problem or _problem(generator, sizes, list(layers))
    if problem is None:
        return DecodeStep(sizes, weights(), visible_BS)
    if generator.engine == "native":
        raise ValueError(f"engine=native cannot be used: {problem}. Use engine=auto, or engine=eager")
    return None


def _problem(generator: Generator, sizes: StepSizes, layers: Sequence[nn.Module]) -> str | None:
    if generator.device.type != "cpu" or generator.engine not in ("auto", "native"):
        return f"it is for the CPU, and this generator is on {generator.device}"
    if not sizes.supported():
        return f"it is for up to {MAX_ROWS} rows and heads of 16 to 128 in steps of 16, and these are {sizes}"
    if generator.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return "it is for sampling alone, without dropout, gradients or autocast"
    parts = [part for layer in layers for part in layer.modules() if not list(part.children())]
    weights = [parameter for part in parts for parameter in part.parameters()]
    if not all(map(_is_plain, parts)) or len({weight.dtype for weight in weights}) > 1:
        return "its layers are not plain ones of one dtype (adapters are on?)"
    if weights[0].dtype not in KERNELS:
        return f"it is for float32 and bfloat16, and the weights are {weights[0].dtype}"
    return missing()


def _is_plain(part: nn.Module) -> bool:
    """Known by its very class: what derives from it may do more."""
    if type(part) is nn.Linear:
        return part.bias is None
    return isinstance(part, nn.Dropout | nn.SiLU) or type(part).__name__ in (
        "_RMSNorm",
        "LlamaRMSNorm",
        "SiLUActivation",
    )


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
