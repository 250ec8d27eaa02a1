"""Whether 8-bit integers serve 3D segmentation networks on a CPU.

First one convolution, in every arithmetic that torch and ONNX Runtime have for it, and whether the
integer ones compute the same. Then whole networks, trained here for a few minutes on made volumes:
seconds per window, and how far the labels agree with those in float32. The paths take turns; the
least time of each counts. A path that cannot run says why in one line. What the integer paths need
to know of the activations they get from made windows that are neither trained on nor measured.

    python -m benchmarks.int8 [--quick] [--weights FOLDER] [NETWORK ...]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.sliding_window import Job, Triple, build_dynunet, dice, made_volume, train
from medseg.models.inference_form import to_inference_form
from medseg.models.network import arrange_weights
from medseg.models.table import build_network, build_settings
from pipelines.tables import print_table

FULL = Job(training_steps=150)
QUICK = Job(
    window=(16, 16, 16),
    classes=3,
    filters=(8, 16, 16, 16),
    training_steps=20,
    training_crop=(16, 16, 16),
    training_dtype=torch.float32,
)
"""Seconds in all; says nothing of speed."""

NETWORKS = ("dynunet", "neunet", "revunet")

FP32 = "torch fp32"
BF16 = "torch bf16 channels last"
OURS = "medseg bf16"

Path_ = Callable[[Tensor], Tensor]
"""From an image ``(1, 1, i, j, k)`` float32 to its logits ``(1, n, i, j, k)`` float32."""


class CannotRunError(Exception):
    """Why a path does not run here, in one line."""


@dataclass(frozen=True)
class Convolution:
    """One 3x3x3 convolution that keeps the extents."""

    channels: int
    extents: Triple

    @property
    def macs(self) -> int:
        """Multiplications."""
        return 27 * self.channels**2 * int(np.prod(self.extents))


CONVOLUTIONS = (Convolution(32, (64, 96, 96)), Convolution(64, (32, 48, 48)))
QUICK_CONVOLUTIONS = (Convolution(16, (8, 8, 8)),)


@dataclass(frozen=True)
class Row:
    """One path of one network; ``dice`` and ``equal_voxels`` are against float32."""

    network: str
    path: str
    seconds: tuple[float, ...]
    equal_voxels: float
    dice: tuple[float, ...]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters and quantisers say of their own use of deprecated things."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def optional(name: str, package: str) -> Any:  # noqa: ANN401 - a module
    """A module that the project does without.

    Raises:
        CannotRunError: If it is not there.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        raise CannotRunError(f"{error}; pip install {package}") from error


def least_seconds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall-clock times of each work, in turn; one run of each before is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if turn:
                taken[name].append(time.perf_counter() - began)
    return taken


def reason(error: Exception) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160]


# --- integers of torch ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Of 8 bits without sign: ``(number / step) + zero``."""

    step: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Scale:
        """From the least and the largest number, of which zero is always one."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = max(high - low, 1e-12) / 255
        return cls(step, min(255, max(0, round(-low / step))))

    def quantised(self, x_bcijk: Tensor) -> Tensor:
        """As torch's quantised tensor, in the layout of ``x_bcijk``."""
        return torch.quantize_per_tensor(x_bcijk.float(), self.step, self.zero, torch.quint8)


def weight_steps(weight: Tensor) -> Tensor:
    """Step of each output channel of symmetric 8-bit weights."""
    return weight.float().abs().amax(dim=(1, 2, 3, 4)).clamp_min(1e-12) / 127


def _shape_of(conv: nn.Conv3d) -> tuple[Any, ...]:
    return (
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )


class OneDnnConv(nn.Conv3d):
    """Integer convolution by the operator that torch's inductor calls, result in bfloat16.

    Args:
        conv: With one group and zero padding.
        scale: Of the input.
    """

    def __init__(self, conv: nn.Conv3d, scale: Scale) -> None:
        super().__init__(*_shape_of(conv))
        # what a network may ask of a convolution beside its result
        self.weight, self.bias = conv.weight, conv.bias
        self.scale = scale
        self.steps = weight_steps(conv.weight)
        self.zeros = torch.zeros(conv.out_channels, dtype=torch.int8)
        self.shifts = None if conv.bias is None else conv.bias.detach().float()
        self.form = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        weight = (conv.weight.float() / self.steps.view(-1, 1, 1, 1, 1)).round().to(torch.int8)
        self.packed = torch.ops.onednn.qconv_prepack(
            weight.contiguous(), self.steps, scale.step, scale.zero, *self.form, None
        )

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """The convolution of the rounded input."""
        step, zero = self.scale.step, self.scale.zero
        answer: Tensor = torch.ops.onednn.qconv_pointwise(
            self.scale.quantised(x_bcijk).int_repr(),
            step,
            zero,
            self.packed,
            self.steps,
            self.zeros,
            self.shifts,
            *self.form,
            1.0,
            0,
            torch.bfloat16,
            "none",
            [],
            "",
        )
        return answer


class EagerConv(nn.Conv3d):
    """``torch.ao.nn.quantized.Conv3d`` between float32 neighbours.

    Args:
        conv: With one group and zero padding.
        scale: Of the input.
        output: Of the result.
    """

    def __init__(self, conv: nn.Conv3d, scale: Scale, output: Scale) -> None:
        super().__init__(*_shape_of(conv))
        self.weight, self.bias = conv.weight, conv.bias
        self.scale = scale
        self.conv = torch.ao.nn.quantized.Conv3d(*_shape_of(conv))  # type: ignore[no-untyped-call]
        zeros = torch.zeros(conv.out_channels, dtype=torch.int64)
        steps = weight_steps(conv.weight).double()
        weight = torch.quantize_per_channel(conv.weight.float(), steps, zeros, 0, torch.qint8)
        bias = None if conv.bias is None else conv.bias.float()
        self.conv.set_weight_bias(weight, bias)
        self.conv.scale, self.conv.zero_point = output.step, output.zero

    def forward(self, x_bcijk: Tensor) -> Tensor:
        """The convolution of the rounded input, rounded and in float32 again."""
        answer: Tensor = self.conv(self.scale.quantised(x_bcijk)).dequantize()
        return answer


@dataclass(frozen=True)
class Seen:
    """What a convolution takes and gives."""

    inputs: Scale
    outputs: Scale


def observed(network: nn.Module, images: list[Tensor]) -> dict[str, Seen]:
    """Ranges at every convolution that integers may stand in for, by the name of the module.

    These have one group and at least eight channels on either side, and are not the last one: the
    first and the last layer of a network stay as they are, as is usual.
    """
    convs = {
        name: module
        for name, module in network.named_modules()
        if type(module) is nn.Conv3d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    }
    ranges: dict[str, list[float]] = {}
    narrowest: dict[str, int] = {}

    def watch(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found = [float(inputs[0].min()), float(inputs[0].max())]
        found += [float(output.min()), float(output.max())]
        known = ranges.pop(name, found)
        # popped and put back, so that the last one called comes last
        ranges[name] = [
            pick(one, other)
            for pick, one, other in zip((min, max, min, max), known, found, strict=True)
        ]
        narrowest[name] = min(inputs[0].shape[1], output.shape[1])

    hooks = [conv.register_forward_hook(partial(watch, name)) for name, conv in convs.items()]
    with torch.inference_mode():
        for image in images:
            network(image)
    for hook in hooks:
        hook.remove()
    last = next(reversed(ranges), "")
    return {
        name: Seen(Scale.of(*found[:2]), Scale.of(*found[2:]))
        for name, found in ranges.items()
        if name != last and narrowest[name] >= 8
    }


def exchanged(network: nn.Module, seen: dict[str, Seen], make: Callable[..., nn.Module]) -> None:
    """Put the integer convolutions in their places.

    Raises:
        CannotRunError: If there is none to exchange.
    """
    if not seen:
        raise CannotRunError("no convolution that integers could stand in for")
    for name, found in seen.items():
        parent, _, last = name.rpartition(".")
        conv = network.get_submodule(name)
        setattr(network.get_submodule(parent), last, make(conv, found))


# --- paths of whole networks ----------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A trained network and the windows that the integer paths learn ranges from."""

    name: str
    network: nn.Module
    images: list[Tensor]
    folder: Path


def torch_path(network: nn.Module, *, layout: bool, narrow: bool) -> Path_:
    """As torch runs it."""

    def run(x_bcijk: Tensor) -> Tensor:
        if layout:
            x_bcijk = x_bcijk.to(memory_format=torch.channels_last_3d)
        with (
            torch.inference_mode(),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow),
        ):
            answer: Tensor = network(x_bcijk)
        return answer.float()

    return run


def plain(subject: Subject, *, narrow: bool) -> Path_:
    """float32, contiguous; or bfloat16, channels-last, under autocast."""
    network = copy.deepcopy(subject.network)
    arrange_weights(network, channels_last=narrow)
    return torch_path(network, layout=narrow, narrow=narrow)


def ours(subject: Subject) -> Path_:
    """The inference form of medseg in bfloat16."""
    form = to_inference_form(subject.network, torch.bfloat16)
    return torch_path(form, layout=False, narrow=False)


def ours_in_integers(subject: Subject) -> Path_:
    """The inference form of medseg with oneDNN's integer convolutions."""
    form = to_inference_form(subject.network, torch.bfloat16)
    seen = observed(subject.network, subject.images)
    exchanged(form.network, seen, lambda conv, found: OneDnnConv(conv, found.inputs))
    print(f"  {subject.name}: oneDNN, {len(seen)} integer convolutions")
    return torch_path(form, layout=False, narrow=False)


def eager(subject: Subject) -> Path_:
    """The inference form of medseg in float32 with torch.ao's integer convolutions."""
    form = to_inference_form(subject.network)
    seen = observed(subject.network, subject.images)
    exchanged(form.network, seen, lambda conv, found: EagerConv(conv, found.inputs, found.outputs))
    engine = torch.backends.quantized.engine
    print(f"  {subject.name}: torch.ao, {len(seen)} integer convolutions, engine {engine}")
    return torch_path(form, layout=False, narrow=False)


def compiled(subject: Subject) -> Path_:
    """PT2E quantisation for x86 and the code that torch's inductor makes of it.

    Raises:
        CannotRunError: If torchao is absent, or its quantiser passes over 3D convolutions.
    """
    optional("torchao", "torchao (torch 2.14 has no PT2E quantisation of its own)")
    pt2e = optional("torchao.quantization.pt2e.quantize_pt2e", "torchao")
    package = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"
    x86 = optional(package, "torchao")
    quantiser = x86.X86InductorQuantizer()
    quantiser.set_global(x86.get_default_x86_inductor_quantization_config())
    image = subject.images[0]
    with quiet(), torch.no_grad():
        exported = torch.export.export(subject.network, (image,)).module()
        prepared = pt2e.prepare_pt2e(exported, quantiser)
        for x_bcijk in subject.images:
            prepared(x_bcijk)
        converted = pt2e.convert_pt2e(prepared)
    nodes = [node for node in converted.graph.nodes if node.op == "call_function"]
    convs = [node for node in nodes if "conv3d" in str(node.target)]
    integer = [node for node in convs if "dequantize" in str(node.args[0].target)]
    if not integer:
        raise CannotRunError(
            f"torchao's X86InductorQuantizer gives integers to 0 of {len(convs)} 3D convolutions "
            "(its patterns name conv2d alone)"
        )
    network = torch.compile(converted)
    print(f"  {subject.name}: PT2E, {len(integer)} of {len(convs)} convolutions in integers")

    def run(x_bcijk: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Tensor = network(x_bcijk)  # type: ignore[no-untyped-call]
        return answer.float()

    return run


def exported_file(subject: Subject) -> Path:
    """The network as an ONNX file, written once."""
    for name in ("onnx", "onnxscript"):
        optional(name, name)
    path = subject.folder / f"{subject.name}.onnx"
    if not path.exists():
        with quiet(), torch.no_grad():
            torch.onnx.export(
                subject.network,
                (subject.images[0],),
                path,
                dynamo=True,
                verbose=False,
                # onnx will not read weights beside the file again where ONNX Runtime links to them
                external_data=False,
            )
    return path


def session_of(path: Path) -> tuple[Any, Counter[str]]:
    """ONNX Runtime on its CPU provider, and the operators that are left after its rewriting."""
    onnx, runtime = optional("onnx", "onnx"), optional("onnxruntime", "onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # threads that wait in a loop would take time from whoever runs next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    rewritten = path.with_suffix(".rewritten.onnx")
    options.optimized_model_filepath = str(rewritten)
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(rewritten), load_external_data=False).graph.node
    return session, Counter(node.op_type for node in nodes)


def session_path(session: Any) -> Path_:  # noqa: ANN401 - ONNX Runtime has no types
    """A session as a path."""
    name = session.get_inputs()[0].name

    def run(x_bcijk: Tensor) -> Tensor:
        (logits,) = session.run(None, {name: x_bcijk.numpy()})
        return torch.from_numpy(logits)

    return run


def runtime_fp32(subject: Subject) -> Path_:
    """ONNX Runtime in float32."""
    session, _ = session_of(exported_file(subject))
    return session_path(session)


def runtime_int8(subject: Subject, *, only_convolutions: bool) -> Path_:
    """ONNX Runtime with static QDQ quantisation, one step per output channel of the weights."""
    quantisation = optional("onnxruntime.quantization", "onnxruntime")
    processing = optional("onnxruntime.quantization.shape_inference", "onnxruntime")
    source = exported_file(subject)
    prepared = source.with_suffix(".prepared.onnx")
    target = source.with_suffix(f".int8.{only_convolutions}.onnx")
    name = session_of(source)[0].get_inputs()[0].name

    class Reader(quantisation.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.images = iter(subject.images)

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            image = next(self.images, None)
            return None if image is None else {name: image.numpy()}

    with quiet():
        processing.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantisation.quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=quantisation.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantisation.QuantType.QUInt8,
            weight_type=quantisation.QuantType.QInt8,
            op_types_to_quantize=["Conv"] if only_convolutions else None,
        )
    session, nodes = session_of(target)
    shown = ", ".join(f"{count} {kind}" for kind, count in nodes.most_common(8))
    print(f"  {subject.name}: ONNX Runtime int8{' Conv' * only_convolutions} is left with {shown}")
    return session_path(session)


PATHS: dict[str, Callable[[Subject], Path_]] = {
    FP32: partial(plain, narrow=False),
    BF16: partial(plain, narrow=True),
    OURS: ours,
    "ONNX Runtime fp32": runtime_fp32,
    "ONNX Runtime int8, Conv": partial(runtime_int8, only_convolutions=True),
    "ONNX Runtime int8, all": partial(runtime_int8, only_convolutions=False),
    "torch.ao conv3d int8": eager,
    "medseg, oneDNN int8": ours_in_integers,
    "PT2E inductor int8": compiled,
}


def built(name: str, job: Job) -> nn.Module:
    """An untrained network with one image channel and the job's classes."""
    if name == "dynunet":
        return build_dynunet(job)
    mapping: dict[str, Any] = {"preset": "small", "in_channels": 1, "out_channels": job.classes}
    if name == "neunet":
        mapping["deep_supervision"] = False
    return build_network(name, build_settings(name, mapping))


def measure(subject: Subject, job: Job, repeats: int) -> list[Row]:
    """All paths of one network in turn, on the same window."""
    x_cijk, truth_ijk = made_volume(job, job.window, torch.Generator().manual_seed(1))
    x_bcijk = x_cijk[None].contiguous()
    paths: dict[str, Path_] = {}
    found: dict[str, npt.NDArray[np.uint8]] = {}
    for name, make in PATHS.items():
        try:
            path = make(subject)
            logits_nijk = path(x_bcijk)[0]
        except Exception as error:
            print(f"  {subject.name}: {name} does not run: {reason(error)}")
            continue
        paths[name] = path
        found[name] = logits_nijk.argmax(dim=0).to(torch.uint8).numpy()
    works: dict[str, Callable[[], object]] = {
        name: partial(path, x_bcijk) for name, path in paths.items()
    }
    seconds = least_seconds(works, repeats)
    truth = dice(found[FP32], truth_ijk.numpy().astype(np.uint8), job.classes)
    print(f"  {subject.name}: mean Dice in fp32 against the made labels {np.nanmean(truth):.3f}")
    return [
        Row(
            subject.name,
            name,
            tuple(seconds[name]),
            float((labels == found[FP32]).mean()),
            dice(labels, found[FP32], job.classes),
        )
        for name, labels in found.items()
    ]


# --- one convolution ------------------------------------------------------------------------------


def convolution_model(kind: str, x: Tensor, conv: nn.Conv3d, scales: Seen) -> Any:  # noqa: ANN401
    """An ONNX model of one convolution of this operator."""
    onnx = optional("onnx", "onnx")
    make, types = onnx.helper, onnx.TensorProto
    array = onnx.numpy_helper.from_array
    steps = weight_steps(conv.weight)
    weight = conv.weight.detach()
    integer = (weight / steps.view(-1, 1, 1, 1, 1)).round().to(torch.int8).numpy()
    constants = {
        "x_step": np.float32(scales.inputs.step),
        "x_zero": np.uint8(scales.inputs.zero),
        "w": weight.numpy() if kind == "Conv" else integer,
        "w_step": steps.detach().numpy(),
        "w_zero": np.zeros(len(integer) if kind == "QLinearConv" else (), dtype=np.int8),
        "y_step": np.float32(scales.outputs.step),
        "y_zero": np.uint8(scales.outputs.zero),
    }
    takes = {
        "Conv": ["x", "w"],
        "ConvInteger": ["x", "w", "x_zero", "w_zero"],
        "QLinearConv": ["x", "x_step", "x_zero", "w", "w_step", "w_zero", "y_step", "y_zero"],
    }[kind]
    given = types.FLOAT if kind == "Conv" else types.UINT8
    gives = {"Conv": types.FLOAT, "ConvInteger": types.INT32, "QLinearConv": types.UINT8}[kind]
    graph = make.make_graph(
        [make.make_node(kind, takes, ["y"], pads=[1] * 6)],
        kind,
        [make.make_tensor_value_info("x", given, tuple(x.shape))],
        [make.make_tensor_value_info("y", gives, None)],
        [array(np.asarray(constants[name]), name) for name in takes if name != "x"],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9)


def convolution_rows(job: Convolution, repeats: int, folder: Path) -> list[list[str]]:
    """Every arithmetic on one convolution: seconds, speed, and error against float32."""
    torch.manual_seed(0)
    conv = nn.Conv3d(job.channels, job.channels, 3, padding=1, bias=False).requires_grad_(False)
    x = torch.randn(1, job.channels, *job.extents)
    wanted = conv(x)
    low, high = torch.aminmax(wanted)
    scales = Seen(
        Scale.of(float(x.min()), float(x.max())),
        Scale.of(float(low), float(high)),
    )
    last = x.contiguous(memory_format=torch.channels_last_3d)
    narrow = copy.deepcopy(conv).to(torch.bfloat16).to(memory_format=torch.channels_last_3d)
    half = last.bfloat16()
    works: dict[str, Callable[[], Tensor]] = {
        FP32: partial(conv, x),
        BF16: partial(narrow, half),
    }
    integer = scales.inputs.quantised(x).int_repr().numpy()
    steps = weight_steps(conv.weight).view(1, -1, 1, 1, 1)

    def from_runtime(kind: str) -> Callable[[], Tensor]:
        onnx = optional("onnx", "onnx")
        path = folder / f"{kind}.onnx"
        onnx.save(convolution_model(kind, x, conv, scales), str(path))
        session = session_of(path)[0]
        feed = {"x": x.numpy() if kind == "Conv" else integer}
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    with quiet():
        quantised = scales.inputs.quantised(last)
        ready: dict[str, Callable[[], Callable[[], Tensor]]] = {
            "ONNX Runtime Conv fp32": partial(from_runtime, "Conv"),
            "ONNX Runtime ConvInteger": partial(from_runtime, "ConvInteger"),
            "ONNX Runtime QLinearConv": partial(from_runtime, "QLinearConv"),
            "torch.ao conv3d": lambda: partial(
                EagerConv(conv, scales.inputs, scales.outputs).conv, quantised
            ),
            "oneDNN int8 to bf16": lambda: partial(OneDnnConv(conv, scales.inputs), half),
        }
        for name, make in ready.items():
            try:
                work = make()
                work()
            except Exception as error:
                print(f"  {name} does not run with three spatial axes: {reason(error)}")
                continue
            works[name] = work
    taken = least_seconds(dict(works), repeats)
    rows: list[list[str]] = []
    for name, work in works.items():
        answer = work()
        if answer.is_quantized:
            answer = answer.dequantize()
        elif answer.dtype == torch.uint8:
            answer = (answer.float() - scales.outputs.zero) * scales.outputs.step
        elif answer.dtype == torch.int32:
            answer = answer * (steps * scales.inputs.step)
        away = float((answer.float() - wanted).abs().mean() / wanted.std())
        least = min(taken[name])
        rows.append(
            [
                f"{job.channels} channels, {'x'.join(map(str, job.extents))}",
                name,
                f"{1e3 * least:.1f}",
                f"{job.macs / least / 1e9:.0f}",
                f"{min(taken[BF16]) / least:.2f}",
                f"{away:.4f}",
            ]
        )
    return rows


def subject_of(name: str, job: Job, weights: Path | None, folder: Path) -> Subject:
    """The network, trained or read."""
    torch.manual_seed(0)
    network = built(name, job)
    file = None if weights is None else weights / f"{name}.pt"
    if file is not None and file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        print(f"  {name}: trained, cross-entropy {train(network, job):.3f}")
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(network.state_dict(), file)
    images = [
        made_volume(job, job.window, torch.Generator().manual_seed(seed))[0][None].contiguous()
        for seed in (2, 3)
    ]
    return Subject(name, network.eval().requires_grad_(requires_grad=False), images, folder)


def print_rows(rows: list[Row]) -> None:
    """Seconds, ratios and agreement."""
    least = {(row.network, row.path): min(row.seconds) for row in rows}
    print_table(
        [
            "network",
            "path",
            "s per window",
            "median s",
            "faster than bf16",
            "than medseg bf16",
            "equal voxels",
            "least Dice",
            "mean Dice",
        ],
        [
            [
                row.network,
                row.path,
                f"{min(row.seconds):.3f}",
                f"{statistics.median(row.seconds):.3f}",
                f"{least[row.network, BF16] / min(row.seconds):.2f}",
                f"{least[row.network, OURS] / min(row.seconds):.2f}",
                f"{100 * row.equal_voxels:.3f} %",
                f"{np.nanmin(row.dice):.4f}",
                f"{np.nanmean(row.dice):.4f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Parse the arguments, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--quick", action="store_true", help="tiny windows and networks")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each path")
    parser.add_argument("--steps", type=int, help="training steps, instead of 150")
    parser.add_argument("--weights", type=Path, help="folder: read trained weights, or keep them")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    unknown = set(arguments.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"unknown network {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}")
    job = QUICK if arguments.quick else FULL
    if arguments.steps:
        job = replace(job, training_steps=arguments.steps)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        convolutions = QUICK_CONVOLUTIONS if arguments.quick else CONVOLUTIONS
        print_table(
            ["convolution 3x3x3", "arithmetic", "ms", "GMAC/s", "faster than bf16", "mean error"],
            [
                row
                for convolution in convolutions
                for row in convolution_rows(convolution, arguments.repeats, folder)
            ],
        )
        for network in arguments.networks or NETWORKS:
            subject = subject_of(network, job, arguments.weights, folder)
            rows += measure(subject, job, arguments.repeats)
    print_rows(rows)
    window = "x".join(map(str, job.window))
    print(
        f"{torch.get_num_threads()} threads, window {window}, {job.classes} classes; least of "
        f"{arguments.repeats} runs in turn; Dice and equal voxels against {FP32}"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
