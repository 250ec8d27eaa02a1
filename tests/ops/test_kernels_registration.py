"""The operators under what looks at a program: compilers, exporters, functional transforms."""

import io
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from medseg.ops.haar import Haar, HaarInverse, haar_forward, haar_inverse
from medseg.ops.subpixel import (
    DepthToSpace,
    SpaceToDepth,
    SubPixelConv,
    activate_and_shuffle,
    depth_to_space,
    space_to_depth,
)

OPERATORS = torch.ops.medseg
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]

# torch's own use of what it has given up, at the import of its derivative rules and its exporter
uses_script = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
# dynamo reads .grad of every tensor and silences the warning itself, too late for "error"
reads_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


class AllOperators(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.haar = Haar((2, 3, 4))
        self.grow = SubPixelConv(8, 4, (2, 2, 2), activation="tanh")
        self.pack, self.unpack = SpaceToDepth((2, 1, 2)), DepthToSpace((2, 1, 2))
        self.back = HaarInverse((2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        bands = self.haar(x)
        return self.unpack(self.pack(self.grow(bands)) * 2) + self.back(bands)


@pytest.fixture
def model() -> AllOperators:
    torch.manual_seed(0)
    return AllOperators().eval()


@reads_grad
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("operator", "rest"),
    [
        (OPERATORS.haar_forward, ([2, 4],)),
        (OPERATORS.haar_inverse, ([4, 2],)),
        (OPERATORS.depth_to_space, ([2, 1, 2],)),
        (OPERATORS.space_to_depth, ([2, 1, 2],)),
        (OPERATORS.activate_and_shuffle, ([2, 1, 2], "tanh", 0.0)),
        (OPERATORS.activate_and_shuffle, ([2, 2, 1], "leaky_relu", 0.1)),
    ],
    ids=str,
)
def test_torch_finds_nothing_wrong_with_an_operator(
    operator: Callable[..., Tensor], rest: tuple[object, ...], layout: torch.memory_format
) -> None:
    x = torch.randn(2, 8, 4, 2, 6).to(memory_format=layout).requires_grad_()
    torch.library.opcheck(operator.default, (x, *rest))


@reads_grad
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_finds_nothing_wrong_with_the_fused_derivative(layout: torch.memory_format) -> None:
    y = torch.randn(2, 2, 8, 2, 12).to(memory_format=layout).requires_grad_()
    dy = torch.randn(y.shape, requires_grad=True)
    operator = OPERATORS.activate_and_shuffle_backward.default
    torch.library.opcheck(operator, (dy, y, [2, 1, 2], "tanh", 0.0))


@reads_grad
def test_torch_compile_takes_the_whole_graph_and_agrees(model: AllOperators) -> None:
    x = torch.randn(2, 1, 4, 6, 8, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, found = model(x), compiled(x)
    torch.testing.assert_close(found, expected)
    dy = torch.randn(expected.shape)
    torch.testing.assert_close(
        torch.autograd.grad(found, x, dy), torch.autograd.grad(expected, x, dy)
    )


def test_torch_export_keeps_the_operators_and_a_free_batch(model: AllOperators) -> None:
    x = torch.randn(2, 1, 4, 6, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
    names = {str(node.target) for node in program.graph.nodes}
    assert {
        "medseg.haar_forward.default",
        "medseg.haar_inverse.default",
        "medseg.activate_and_shuffle.default",
        "medseg.depth_to_space.default",
        "medseg.space_to_depth.default",
    } <= names
    other = torch.randn(5, 1, 4, 6, 8)
    torch.testing.assert_close(program.module()(other), model(other))


@uses_script
@pytest.mark.slow
def test_onnx_runtime_computes_the_same_without_foreign_operators(model: AllOperators) -> None:
    x = torch.randn(2, 1, 4, 6, 8)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert {node.domain for node in program.model.graph} == {""}
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).detach().numpy(), atol=1e-5)


@uses_script
def test_vmap_and_forward_derivatives_take_the_plain_form() -> None:
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64)
    rows = torch.func.vmap(lambda row: haar_forward(row[None], (2, 3))[0])(x)
    torch.testing.assert_close(rows, haar_forward(x, (2, 3)))
    _, tangent = torch.func.jvp(lambda t: haar_inverse(haar_forward(t, (2,)), (2,)), (x,), (x,))
    torch.testing.assert_close(tangent, x)
    deep = torch.randn(3, 8, 2, 2, dtype=torch.float64)
    rows = torch.func.vmap(lambda row: depth_to_space(row[None], (2, 2))[0])(deep)
    torch.testing.assert_close(rows, depth_to_space(deep, (2, 2)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(deep, deep)
        grown = activate_and_shuffle(dual, (2, 2), "relu")
        tangent = torch.autograd.forward_ad.unpack_dual(grown).tangent
        packed = torch.autograd.forward_ad.unpack_dual(space_to_depth(dual, (2, 2))).tangent
    torch.testing.assert_close(tangent, depth_to_space(deep.relu(), (2, 2)))
    torch.testing.assert_close(packed, space_to_depth(deep, (2, 2)))


def test_the_plain_forms_have_the_operators_values_and_gradients() -> None:
    def squared(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: function(x).square().sum() + function(x).sin().sum()

    x = torch.randn(2, 8, 2, 4, dtype=torch.float64)
    for function in (
        lambda t: haar_forward(t, (3, 2)),
        lambda t: haar_inverse(t, (3, 2)),
        lambda t: depth_to_space(t, (1, 4)),
        lambda t: space_to_depth(t, (2, 1)),
        lambda t: activate_and_shuffle(t, (2, 2), "tanh"),
        lambda t: activate_and_shuffle(t, (2, 2), "leaky_relu", 0.3),
    ):
        loss = squared(function)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(loss)(x), gradient)
