"""Triton kernels against plain torch; through Triton's interpreter where there is no GPU."""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medseg.ops.haar import haar_forward, haar_inverse
from medseg.ops.kernels import dispatch
from medseg.ops.kernels.dispatch import forced
from medseg.ops.subpixel import activate_and_shuffle, depth_to_space, space_to_depth

pytest.importorskip("triton", reason="this build of torch comes without Triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels last", "sliced", "transposed"]


@pytest.fixture(autouse=True, scope="module")
def as_the_environment_says() -> Iterator[None]:
    """The collection of doctests may have imported the kernels before conftest.py was read."""
    for name in ("triton_haar", "triton_subpixel"):
        sys.modules.pop(f"medseg.ops.kernels.{name}", None)
    dispatch._loaded.cache_clear()
    yield
    dispatch._loaded.cache_clear()


def sample(shape: tuple[int, ...], layout: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers in memory as the name says."""
    generator = torch.Generator().manual_seed(3)
    if layout == "sliced":
        wide = torch.randn(shape[0], shape[1] + 3, *shape[2:], 2, generator=generator)
        return wide.to(DEVICE, dtype)[:, 2:-1, ..., 1]
    if layout == "transposed":
        turned = torch.randn(*shape[:2], *shape[:1:-1], generator=generator).to(DEVICE, dtype)
        return turned.permute(0, 1, *range(len(shape) - 1, 1, -1))
    x = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.to(memory_format=last[len(shape)]) if layout == "channels last" else x


def on_path(path: str, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient on one path."""
    with forced(path):  # type: ignore[arg-type]
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        # the gradient is read through strides of its own
        dy = torch.linspace(-1, 1, y.numel(), device=DEVICE).to(y.dtype)
        dy = dy.reshape(y.shape[::-1]).permute(*reversed(range(y.ndim)))
        (dx,) = torch.autograd.grad(y, leaf, dy)
    return y.detach(), dx


def check(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    ours, plain = on_path("triton", function, x), on_path("torch", function, x)
    for found, expected in zip(ours, plain, strict=True):
        assert found.stride() == expected.stride()
        # plain torch rounds to half precision after every step, the kernel once
        room = {"rtol": 0.1, "atol": 0.05} if found.dtype.itemsize == 2 else {}
        torch.testing.assert_close(found, expected, **room)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", [(2,), (4,), (3, 4), (4, 2), (2, 3, 4), (4, 2, 3)])
def test_haar_agrees_in_3d_for_any_axes_and_strides(axes: tuple[int, ...], layout: str) -> None:
    # 2 * 3 * 2 * 6 * 22 / 2**n points leave a remainder of every block
    check(lambda x: haar_forward(x, axes), sample((2, 3, 2, 6, 22), layout))
    check(lambda x: haar_inverse(x, axes), sample((2, 8, 1, 3, 11), layout))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 2, 4, 10), (1, 2, 2, 4, 34)])
def test_haar_agrees_in_every_rank_and_type(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    axes = range(2, len(shape))
    check(lambda x: haar_forward(x, axes), sample(shape, "contiguous", dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_haar_in_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x = sample((1, 2, 4, 6, 10), "contiguous", dtype)
    with forced("triton"):
        found = haar_forward(x, (2, 3, 4))
    exact = haar_forward(x.double(), (2, 3, 4))
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (3, 1, 2), (1, 1, 5)])
def test_shuffles_agree_in_3d_for_any_factors_and_strides(
    factors: tuple[int, ...], layout: str
) -> None:
    deep = sample((2, 2 * math.prod(factors), 2, 3, 5), layout)
    check(lambda x: depth_to_space(x, factors), deep)
    dense = sample((2, 3, 6, 4, 10), layout)
    check(lambda x: space_to_depth(x, factors), dense)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("factors", [(3,), (2, 3), (2, 1, 2)])
def test_shuffles_copy_every_type_bit_by_bit(factors: tuple[int, ...], dtype: torch.dtype) -> None:
    x = sample((2, 12, *(3 for _ in factors)), "contiguous", dtype)
    with forced("torch"):
        expected = depth_to_space(x, factors)
    with forced("triton"):
        found = depth_to_space(x, factors)
        assert torch.equal(space_to_depth(found, factors), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "sliced"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "leaky_relu"])
def test_activation_and_shuffle_agree_with_one_after_the_other(
    activation: str, layout: str, dtype: torch.dtype
) -> None:
    x = sample((2, 24, 2, 3, 5), layout, dtype)
    check(lambda t: activate_and_shuffle(t, (2, 1, 2), activation, 0.2), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_exact_to_rounding_from_the_smallest_to_the_largest(dtype: torch.dtype) -> None:
    magnitudes = torch.logspace(-9, 2, 512, dtype=torch.float64)
    x = torch.cat((magnitudes, -magnitudes, torch.tensor([0.0, torch.inf, -torch.inf])))
    x = torch.cat((x, x.new_zeros(1))).to(DEVICE, dtype).reshape(1, 4, -1)
    with forced("triton"):
        found = activate_and_shuffle(x, (2,), "tanh")
    exact = depth_to_space(x.double().tanh(), (2,))
    torch.testing.assert_close(found.double(), exact, rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_infinities_are_treated_as_torch_treats_them(activation: str) -> None:
    x = torch.tensor([torch.inf, -torch.inf, -0.5, 0.0], device=DEVICE).reshape(1, 4, 1)
    check(lambda t: activate_and_shuffle(t, (2,), activation), x)  # type: ignore[arg-type]


@pytest.mark.slow
def test_kernels_build_for_a_gpu_on_a_machine_without_one(tmp_path: Path) -> None:
    code = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from medseg.ops.kernels.triton_haar import haar_kernel
from medseg.ops.kernels.triton_subpixel import shuffle_kernel

def build(kernel, number, **constants):
    pointers = ("source", "beside", "target")
    kinds = {
        name: "*" + number if name in pointers else "constexpr" if name in constants else "i32"
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, kinds, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]

for axes, number in ((1, "bf16"), (2, "fp64"), (3, "fp32")):
    kind = tl.float64 if number == "fp64" else tl.float32
    build(haar_kernel, number, AXES=axes, SCALE=0.5, SUM=kind, WIDE=axes == 3, BLOCK=256)
for activation, number in ((0, "fp16"), (1, "fp64"), (2, "fp32"), (3, "bf16")):
    kind = tl.float64 if number == "fp64" else tl.float32
    for derives in (False, True):
        build(shuffle_kernel, number, ACTIVATION=activation, SLOPE=0.1, DERIVES=derives,
              NUMBER=kind, WIDE=derives, BLOCK=512)
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)
