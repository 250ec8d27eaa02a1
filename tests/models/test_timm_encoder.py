"""Encoders of timm: maps, legal extents, refusals, and weights from files and from the hub."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medseg.errors import ConfigError, FormatError
from medseg.models.timm_encoder import TimmEncoder, load_timm_weights

PVT_WIDTHS = (32, 64, 160, 256)


def on_meta(name: str, **options: Any) -> TimmEncoder:
    with torch.device("meta"):
        return TimmEncoder(name, **options)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("pvt_v2_b0", PVT_WIDTHS),
        ("resnet10t", (64, 128, 256, 512)),  # with a map at stride 2 before them
        ("convnext_atto", (40, 80, 160, 320)),
        ("mambaout_femto", (48, 96, 192, 288)),  # gives channels last
        ("efficientnet_b0", (24, 40, 112, 320)),
        ("mvitv2_tiny", (96, 192, 384, 768)),  # wrapped by timm in another way
    ],
)
def test_four_maps_come_fine_to_coarse_and_channels_first(
    name: str, channels: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(name).eval()
    assert encoder.channels == channels
    assert encoder.size_multiple == 32
    with torch.inference_mode():
        maps = encoder(torch.randn(2, 3, 32, 96))
    grids = [(8, 24), (4, 12), (2, 6), (1, 3)]
    wanted = [(2, c, *grid) for c, grid in zip(channels, grids, strict=True)]
    assert [tuple(y.shape) for y in maps] == wanted


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("maxvit_tiny_tf_224", 30_139_848),
        ("maxvit_rmlp_tiny_rw_256", 28_634_872),
        ("maxvit_rmlp_small_rw_224", 64_124_508),
    ],
)
def test_maxvit_encoders_have_their_reference_number_of_weights(name: str, weights: int) -> None:
    encoder = on_meta(name)
    assert sum(weight.numel() for weight in encoder.parameters()) == weights
    # windows of 1/32 of the image size, which must divide every map
    assert encoder.size_multiple == int(name[-3:])


def test_an_encoder_of_windows_takes_multiples_of_the_size_it_was_built_for() -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder("maxvit_tiny_tf_224", image_size=64).eval()
    assert encoder.size_multiple == 64
    with torch.inference_mode():
        assert encoder(torch.randn(1, 3, 64, 128))[3].shape == (1, 512, 2, 4)
        with pytest.raises(AssertionError, match="must be divisible by window"):
            encoder(torch.randn(1, 3, 64, 96))


def test_swin_is_freed_from_its_image_size_and_turned_to_channels_first() -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder("swin_tiny_patch4_window7_224").eval()
    assert encoder.size_multiple == 32
    with torch.inference_mode():
        maps = encoder(torch.randn(1, 3, 32, 64))
    assert [tuple(y.shape[1:]) for y in maps] == [
        (96, 8, 16),
        (192, 4, 8),
        (384, 2, 4),
        (768, 1, 2),
    ]


def test_the_dry_run_leaves_weights_mode_and_statistics_as_they_were() -> None:
    encoder = TimmEncoder("resnet10t")
    assert encoder.training
    assert encoder.features.training
    assert {weight.device.type for weight in encoder.parameters()} == {"cpu"}
    counters = [b for name, b in encoder.named_buffers() if name.endswith("num_batches_tracked")]
    assert counters
    assert not any(counters)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("pvt_v2_bo", "pvt_v2_b0"),
        ("PVTv2-B0", "pvt_v2_b0"),
        ("PVTv2-B2.in1k", "pvt_v2_b2"),
        ("resnet-50", "resnet50"),
        ("ConvNeXt-Tiny", "convnext_tiny"),
    ],
)
def test_case_and_lines_do_not_hide_a_name(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"\(nearest: {nearest}\)"):
        on_meta(name)


def test_a_name_that_is_like_no_other_gets_no_list() -> None:
    with pytest.raises(ConfigError, match="expected the name of a network of timm, found"):
        on_meta("nosuch")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"nearest: pvt_v2_b2\).*timm does not know"):
        on_meta("pvt_v2_b22")
    with pytest.raises(ConfigError, match="Invalid pretrained tag"):
        on_meta("pvt_v2_b2.nowhere")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vit_tiny_patch16_224", {}, "strides 16, 16, 16, without 4, 8, 32"),
        ("levit_128s", {}, "strides 16, 32, 64, without 4, 8"),
        ("coatnet_0_224", {}, "neither those of 32 nor those of 224"),
        ("vgg11", {"drop_path": 0.1}, "; set drop_path to 0, or choose another encoder$"),
        ("resnet10t", {"image_size": 64}, "; leave the image size out, or choose another encoder$"),
        (
            "test_resnet",
            {"image_size": 64, "drop_path": 0.1},
            "; leave the image size out, or choose",
        ),
        (
            "densenet121",
            {"image_size": 64, "drop_path": 0.1},
            "; set drop_path to 0 and leave the image size out, or choose another",
        ),
    ],
)
def test_encoders_that_cannot_serve_are_refused(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        on_meta(name, **options)


def test_the_rate_of_stochastic_depth_rises_to_what_was_asked() -> None:
    encoder = on_meta("pvt_v2_b0", drop_path=0.1)
    rates = [m.drop_prob for m in encoder.modules() if type(m).__name__ == "DropPath"]
    # two residuals in each of eight blocks; the first block's rate is 0
    wanted = [0.1 * block / 7 for block in range(1, 8) for _ in range(2)]
    assert rates == pytest.approx(wanted)


def test_layers_beyond_stride_32_are_not_kept() -> None:
    encoder = on_meta("efficientnet_b0")
    assert not [name for name, _ in encoder.named_parameters() if "conv_head" in name]


def original_pvt_names(encoder: TimmEncoder) -> dict[str, Tensor]:
    """The encoder's tensors under the names of the PVT release, with a classifier."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in encoder.features.state_dict().items():
        original = re.sub(r"^patch_embed\.", "patch_embed1.", name)
        if found := re.match(r"^stages_(\d)\.", original):
            stage, rest = int(found[1]) + 1, original[found.end() :]
            rest = rest.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")
            first, _, last = rest.partition(".")
            original = {
                "downsample": f"patch_embed{stage}.{last}",
                "blocks": f"block{stage}.{last}",
                "norm": f"norm{stage}.{last}",
            }[first]
        renamed[original] = tensor.clone()
    renamed["head.weight"] = torch.zeros(1000, 256)
    renamed["head.bias"] = torch.zeros(1000)
    return renamed


@pytest.fixture(scope="module")
def trained() -> TimmEncoder:
    torch.manual_seed(5)
    encoder = TimmEncoder("pvt_v2_b0")
    for weight in encoder.parameters():
        nn.init.normal_(weight)
    return encoder


def assert_same(found: TimmEncoder, wanted: TimmEncoder) -> None:
    for (name, a), b in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_names_of_the_pvt_release_are_known(trained: TimmEncoder, tmp_path: Path) -> None:
    state = original_pvt_names(trained)
    for name in (
        "patch_embed1.proj.weight",
        "patch_embed4.norm.bias",
        "block1.0.attn.kv.weight",
        "block2.1.mlp.dwconv.dwconv.weight",
        "norm3.weight",
    ):
        assert name in state
    torch.save(state, tmp_path / "pvt_v2_b0.pth")
    encoder = TimmEncoder("pvt_v2_b0", drop_path=0.1)
    load_timm_weights(encoder, tmp_path / "pvt_v2_b0.pth")
    assert_same(encoder, trained)


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict"])
def test_timms_own_names_are_taken_as_they_are(
    trained: TimmEncoder, tmp_path: Path, wrapper: str
) -> None:
    whole = trained.build_timm_network()
    whole.load_state_dict(
        {
            name.replace("stages_", "stages."): tensor
            for name, tensor in trained.features.state_dict().items()
        },
        strict=False,
    )
    state = whole.state_dict()
    assert "stages.0.blocks.0.norm1.weight" in state
    assert "head.weight" in state
    path = tmp_path / ("weights.pt" if wrapper else "weights.safetensors")
    if wrapper:
        torch.save({wrapper: state, "epoch": 3}, path)
    else:
        save_file(state, path)
    encoder = TimmEncoder("pvt_v2_b0")
    load_timm_weights(encoder, path)
    assert_same(encoder, trained)


@pytest.mark.parametrize("name", ["test_convnext", "resnet10t", "efficientvit_b0"])
def test_classifiers_of_every_make_are_left_out(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    whole = TimmEncoder(name).build_timm_network()
    state = {k: v for k, v in whole.state_dict().items() if "num_batches_tracked" not in k}
    save_file(state, tmp_path / "whole.safetensors")
    encoder = TimmEncoder(name)
    load_timm_weights(encoder, tmp_path / "whole.safetensors")
    flat = {key.replace(".", "_"): tensor for key, tensor in state.items()}
    for key, weight in encoder.features.named_parameters():
        assert torch.equal(weight, flat[key.replace(".", "_")]), key


def test_weights_that_do_not_fit_change_nothing(trained: TimmEncoder, tmp_path: Path) -> None:
    state = trained.features.state_dict()
    path = tmp_path / "other.safetensors"
    encoder = TimmEncoder("pvt_v2_b0")
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}

    def refused(changed: dict[str, Tensor], words: str) -> None:
        save_file(changed, path)
        with pytest.raises(FormatError, match=words):
            load_timm_weights(encoder, path)
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, before[name])

    short = {name: tensor for name, tensor in state.items() if "patch_embed" not in name}
    refused(short, r"4 missing \(patch_embed.proj.weight, patch_embed.proj.bias, .*\.\.\.\)")
    refused({**state, "neck.weight": torch.zeros(2)}, r"1 unexpected \(neck.weight\)")
    reshaped = {**state, "patch_embed.proj.weight": torch.zeros(64, 3, 7, 7)}
    refused(
        reshaped,
        r"1 of another shape \(patch_embed.proj.weight \(64, 3, 7, 7\) for \(32, 3, 7, 7\)\)",
    )
    refused({"fc.weight": torch.zeros(2)}, "missing .* unexpected")
    refused(
        {name: tensor.int() for name, tensor in state.items()},
        r"of another type of numbers \(\S+ torch\.int32 for torch\.float32, ",
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_write_before_every_name_is_taken_off(
    trained: TimmEncoder, tmp_path: Path, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in trained.features.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    encoder = TimmEncoder("pvt_v2_b0")
    load_timm_weights(encoder, tmp_path / "wrapped.pth")
    assert_same(encoder, trained)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    encoder = on_meta("pvt_v2_b0")

    def refused(name: str, words: str) -> None:
        with pytest.raises(FormatError, match=words) as caught:
            load_timm_weights(encoder, tmp_path / name)
        assert str(tmp_path) not in str(caught.value)

    refused("weights.npz", r"one of .*\.safetensors, .*\.tar, found '\.npz'")
    refused("weights", "found a name without an ending")
    refused("absent.pth", "no such file")
    (tmp_path / "damaged.safetensors").write_bytes(b"not a file of tensors")
    refused("damaged.safetensors", "damaged, or something else .* copy or download it again")
    (tmp_path / "damaged.pth").write_bytes(b"neither")
    refused("damaged.pth", "damaged, or something else .* copy or download it again")
    torch.save({"weights": Payload()}, tmp_path / "code.pth")
    refused("code.pth", "holds more than tensors; whole pickled models can run code")
    torch.save({"weights": Payload()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    refused("old.pth", "holds more than tensors; whole pickled models can run code")
    torch.save({"epoch": 3}, tmp_path / "log.pt")
    refused("log.pt", "found int at 'epoch'")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    refused("list.pt", "an object of type list")


@pytest.mark.parametrize("word", ["tim", "Timm", "timmm"])
def test_the_word_timm_is_offered_to_who_misspells_it(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"or timm \(nearest: timm\), found '{word}'"):
        load_timm_weights(on_meta("pvt_v2_b0"), Path(word))


def test_an_encoder_without_listed_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="an encoder for which timm lists weights, found none"):
        load_timm_weights(on_meta("test_mambaout"), "timm")


HUB = """
import sys
import medseg.models.macmd
from medseg.errors import ResourceError
from medseg.models.timm_encoder import TimmEncoder, load_timm_weights
assert "timm" not in sys.modules
absent = TimmEncoder("test_resnet")
try:
    load_timm_weights(absent, "timm")
except ResourceError as error:
    print("refused:", error)
cached = TimmEncoder("test_convnext")
load_timm_weights(cached, "timm")
print(sum(float(w.detach().double().sum()) for w in cached.parameters()))
"""


@pytest.mark.slow
def test_timm_is_imported_late_and_its_weights_come_from_the_hubs_cache(tmp_path: Path) -> None:
    torch.manual_seed(7)
    encoder = TimmEncoder("test_convnext")
    whole = encoder.build_timm_network()
    # a cache as the hub's client lays it out
    repository = tmp_path / "hub" / "models--timm--test_convnext.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(whole.state_dict(), snapshot / "model.safetensors")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    refusal, total = done.stdout.splitlines()
    assert refusal.startswith("refused: encoder test_resnet: expected the weights that timm lists")
    kept = {name.replace(".", "_") for name in encoder.features.state_dict()}
    wanted = sum(
        float(weight.detach().double().sum())
        for name, weight in whole.named_parameters()
        if name.replace(".", "_") in kept
    )
    assert float(total) == pytest.approx(wanted, rel=1e-9)
