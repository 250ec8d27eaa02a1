"""One criterion over several heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DeepSupervisionLoss as MonaiDeepSupervisionLoss
from monai.losses import DiceCELoss

from medseg.errors import ConfigError
from medseg.training.losses import DeepSupervisionLoss, build_loss, strided_target

STRIDES = ((1, 1, 1), (2, 2, 2), (4, 4, 4))


def example(seed=0):
    source = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3, (2, 1, 8, 8, 8), generator=source)
    heads = [torch.randn(2, 3, 8 // s, 8 // s, 8 // s, generator=source) for s, _, _ in STRIDES]
    return heads, target


def monai_criterion():
    return DiceCELoss(to_onehot_y=True, softmax=True)


def test_one_head_has_the_loss_of_monai():
    heads, target = example()
    ours = build_loss(((1, 1, 1),), (1.0,), dice_weight=1.0, cross_entropy_weight=1.0)
    assert torch.equal(ours(heads[0], target), monai_criterion()(heads[0], target))


def test_dice_and_cross_entropy_are_weighted():
    heads, target = example()
    ours = build_loss(((1, 1, 1),), (1.0,), dice_weight=0.0, cross_entropy_weight=2.0)
    expected = 2 * torch.nn.functional.cross_entropy(heads[0], target[:, 0])
    assert torch.allclose(ours(heads[0], target), expected)


def test_several_heads_have_the_loss_of_monai_where_the_targets_agree():
    heads, _ = example()
    # constant in blocks of 4 voxels: every way of nearest downsampling gives the same
    blocks = torch.randint(0, 3, (2, 1, 2, 2, 2), generator=torch.Generator().manual_seed(1))
    target = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    weights = (0.5, 0.3, 0.2)
    ours = build_loss(STRIDES, weights, dice_weight=1.0, cross_entropy_weight=1.0)
    theirs = MonaiDeepSupervisionLoss(monai_criterion(), weights=list(weights))
    assert torch.allclose(ours(heads, target), theirs(heads, target.float()))


@given(st.integers(0, 100))
@settings(max_examples=10)
def test_a_head_of_weight_zero_does_not_count(seed):
    heads, target = example(seed)
    loss = build_loss(STRIDES, (0.7, 0.3, 0.0), dice_weight=1.0, cross_entropy_weight=1.0)
    spoilt = [*heads[:2], torch.full_like(heads[2], float("nan"))]
    assert torch.equal(loss(heads, target), loss(spoilt, target))


def test_a_target_is_thinned_from_its_first_voxel():
    target = torch.arange(4 * 4 * 4).reshape(1, 1, 4, 4, 4)
    thin = strided_target(target, (2, 1, 4))
    assert thin.shape == (1, 1, 2, 4, 1)
    assert thin[0, 0, :, 1, 0].tolist() == [4, 36]


def test_low_precision_logits_are_judged_in_float32():
    heads, target = example()
    loss = build_loss(((1, 1, 1),), (1.0,), dice_weight=1.0, cross_entropy_weight=1.0)
    assert loss(heads[0].bfloat16(), target).dtype == torch.float32
    assert loss([heads[0].bfloat16()], target).dtype == torch.float32


def test_numbers_of_heads_that_differ_are_refused():
    heads, target = example()
    with pytest.raises(ConfigError, match="one weight for each of 3 heads, found 2"):
        DeepSupervisionLoss(monai_criterion(), STRIDES, (1.0, 0.0))
    loss = DeepSupervisionLoss(monai_criterion(), STRIDES, (0.5, 0.3, 0.2))
    with pytest.raises(ConfigError, match="expected 3 heads, found 2"):
        loss(heads[:2], target)
