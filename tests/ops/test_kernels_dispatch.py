"""Choice of kernel: which one runs, what happens when one fails, and the switch for tests."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from medseg.errors import ConfigError
from medseg.ops.haar import haar_forward
from medseg.ops.kernels import dispatch
from medseg.ops.kernels.dispatch import Kernel, forced, run, wants_plain


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of kernels that are wrong in ways one can see."""
    made = ModuleType("kernels_under_test")

    def triple(x: Tensor) -> Tensor:
        return 3 * x

    def broken(x: Tensor) -> Tensor:
        raise ValueError("no such instruction\nand pages of assembly")

    made.triple, made.broken = triple, broken
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(dispatch, "_given_up", set())
    dispatch._loaded.cache_clear()
    yield made
    dispatch._loaded.cache_clear()


def kernel(function: str, **changes: object) -> Kernel:
    values = {"device": "cpu", "name": f"test {function}"} | changes
    return Kernel(module="kernels_under_test", function=function, **values)


def test_a_kernel_that_takes_the_tensor_runs(module: ModuleType) -> None:
    assert run((kernel("triple"),), double, torch.ones(1)).item() == 3


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cuda"},
        {"dtypes": frozenset({torch.float64})},
        {"max_rank": 0},
    ],
)
def test_a_kernel_for_other_tensors_is_passed_over(
    module: ModuleType, other: dict[str, object]
) -> None:
    assert run((kernel("triple", **other),), double, torch.ones(1)).item() == 2


def test_an_empty_tensor_is_left_to_plain_torch(module: ModuleType) -> None:
    assert run((kernel("broken"),), double, torch.ones(0)).shape == (0,)


def test_a_kernel_that_fails_is_given_up_with_one_warning(module: ModuleType) -> None:
    kernels = (kernel("broken"), kernel("triple", device="cuda"))
    with pytest.warns(
        RuntimeWarning, match="test broken failed .ValueError: no such instruction."
    ) as told:
        assert run(kernels, double, torch.ones(1)).item() == 2
    assert len(told) == 1
    assert "same results, only slower" in str(told[0].message)
    assert "assembly" not in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(kernels, double, torch.ones(1)).item() == 2


def test_a_module_that_cannot_be_imported_is_given_up_alike(module: ModuleType) -> None:
    missing = Kernel("test missing", "medseg.ops.kernels.no_such", "f", device="cpu")
    with pytest.warns(RuntimeWarning, match="test missing failed .ModuleNotFoundError"):
        assert run((missing,), double, torch.ones(1)).item() == 2


def test_an_error_that_plain_torch_shares_is_not_blamed_on_the_kernel(module: ModuleType) -> None:
    def refuses(x: Tensor) -> Tensor:
        raise RuntimeError("out of room")

    with pytest.raises(RuntimeError, match="out of room"):
        run((kernel("broken"),), refuses, torch.ones(1))
    assert dispatch._given_up == set()


def test_running_out_of_memory_is_told_and_not_hidden(module: ModuleType) -> None:
    def greedy(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    module.greedy = greedy
    with pytest.raises(torch.OutOfMemoryError):
        run((kernel("greedy"),), double, torch.ones(1))


def test_the_switch_chooses_the_path_and_is_undone(module: ModuleType) -> None:
    with forced("torch"):
        assert run((kernel("triple"),), double, torch.ones(1)).item() == 2
        with forced("fast"):
            assert run((kernel("triple"),), double, torch.ones(1)).item() == 3
            with pytest.raises(ValueError, match="no such instruction"):
                run((kernel("broken"),), double, torch.ones(1))
        assert run((kernel("triple"),), double, torch.ones(1)).item() == 2
    assert run((kernel("triple"),), double, torch.ones(1)).item() == 3


def test_a_path_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"nearest: torch.*found 'tosch'"), forced("tosch"):  # type: ignore[arg-type]
        pass


# torch's own use of what it has given up, at the import of its derivative rules
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_transforms_and_forward_derivatives_ask_for_the_plain_form() -> None:
    x = torch.ones(1)
    assert not wants_plain(x)
    assert torch.func.vmap(lambda row: row * wants_plain(row))(x).item() == 1
    with torch.autograd.forward_ad.dual_level():
        assert wants_plain(torch.autograd.forward_ad.make_dual(x, x))


def test_neither_numba_nor_triton_is_imported_before_the_first_use() -> None:
    code = (
        "import sys, torch, medseg.ops.haar as haar, medseg.ops.subpixel\n"
        "assert 'numba' not in sys.modules\n"
        "haar.haar_forward(torch.ones(1, 1, 2, 2), (2, 3))\n"
        "assert 'numba' in sys.modules\n"
        "assert 'medseg.ops.kernels.triton_haar' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_no_call_on_a_cpu_imports_compiler_or_triton() -> None:
    calls = [
        "medseg.ops.haar.haar_forward(x, (2, 3))",
        "medseg.ops.haar.haar_inverse(x, (2, 3)).sum().backward()",
        "medseg.ops.subpixel.depth_to_space(x, (2, 2))",
        "medseg.ops.subpixel.space_to_depth(x, (2, 2)).sum().backward()",
        "medseg.ops.subpixel.activate_and_shuffle(x, (2, 2)).sum().backward()",
        "medseg.ops.norm.instance_norm(large).sum().backward()",
        "medseg.ops.depthwise.DepthwiseConv3d(8)(large).sum().backward()",
    ]
    lines = [
        "import sys, torch",
        "import medseg.ops.depthwise, medseg.ops.haar, medseg.ops.norm, medseg.ops.subpixel",
        "x = torch.ones(1, 4, 2, 2, requires_grad=True)",
        "large = torch.randn(1, 12, 12, 12, 8).permute(0, 4, 1, 2, 3).requires_grad_()",
    ]
    for call in calls:
        lines += [
            call,
            "found = {'torch._dynamo', 'triton', 'sympy'} & set(sys.modules)",
            f"assert not found, ({call!r}, found)",
        ]
    code = "\n".join(lines)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_the_haar_kernel_is_used_and_not_given_up() -> None:
    with forced("fast"):
        haar_forward(torch.ones(1, 1, 2, 2), (2, 3))
    assert "haar (numba)" not in dispatch._given_up
