"""One criterion over several heads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DeepSupervisionLoss as MonaiDeepSupervisionLoss
from monai.losses import DiceCELoss, DiceLoss

from medseg.errors import ConfigError
from medseg.training.losses import (
    IGNORED_CLASS,
    DeepSupervisionLoss,
    LossOptions,
    OverlapLoss,
    build_loss,
    strided_target,
)

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
    ours = build_loss(((1, 1, 1),), (1.0,), LossOptions())
    torch.testing.assert_close(ours(heads[0], target), monai_criterion()(heads[0], target))


def test_dice_and_cross_entropy_are_weighted():
    heads, target = example()
    ours = build_loss(((1, 1, 1),), (1.0,), LossOptions(0.0, 2.0))
    expected = 2 * torch.nn.functional.cross_entropy(heads[0], target[:, 0])
    assert torch.allclose(ours(heads[0], target), expected)


def test_several_heads_have_the_loss_of_monai_where_the_targets_agree():
    heads, _ = example()
    # constant in blocks of 4 voxels: every way of nearest downsampling gives the same
    blocks = torch.randint(0, 3, (2, 1, 2, 2, 2), generator=torch.Generator().manual_seed(1))
    target = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    weights = (0.5, 0.3, 0.2)
    ours = build_loss(STRIDES, weights, LossOptions())
    theirs = MonaiDeepSupervisionLoss(monai_criterion(), weights=list(weights))
    assert torch.allclose(ours(heads, target), theirs(heads, target.float()))


@given(st.integers(0, 100))
@settings(max_examples=10)
def test_a_head_of_weight_zero_does_not_count(seed):
    heads, target = example(seed)
    loss = build_loss(STRIDES, (0.7, 0.3, 0.0), LossOptions())
    spoilt = [*heads[:2], torch.full_like(heads[2], float("nan"))]
    assert torch.equal(loss(heads, target), loss(spoilt, target))


def test_a_target_is_thinned_from_its_first_voxel():
    target = torch.arange(4 * 4 * 4).reshape(1, 1, 4, 4, 4)
    thin = strided_target(target, (2, 1, 4))
    assert thin.shape == (1, 1, 2, 4, 1)
    assert thin[0, 0, :, 1, 0].tolist() == [4, 36]


def test_low_precision_logits_are_judged_in_float32():
    heads, target = example()
    loss = build_loss(((1, 1, 1),), (1.0,), LossOptions())
    assert loss(heads[0].bfloat16(), target).dtype == torch.float32
    assert loss([heads[0].bfloat16()], target).dtype == torch.float32


def test_numbers_of_heads_that_differ_are_refused():
    heads, target = example()
    with pytest.raises(ConfigError, match="one weight for each of 3 heads, found 2"):
        DeepSupervisionLoss(monai_criterion(), STRIDES, (1.0, 0.0))
    loss = DeepSupervisionLoss(monai_criterion(), STRIDES, (0.5, 0.3, 0.2))
    with pytest.raises(ConfigError, match="expected 3 heads, found 2"):
        loss(heads[:2], target)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_every_option_has_the_loss_of_monai(batch_dice, background):
    heads, target = example()
    options = LossOptions(batch_dice=batch_dice, background=background, smooth=0.3)
    theirs = DiceLoss(
        to_onehot_y=True,
        softmax=True,
        batch=batch_dice,
        include_background=background,
        smooth_nr=0.3,
        smooth_dr=0.3,
    )
    expected = theirs(heads[0], target) + torch.nn.functional.cross_entropy(heads[0], target[:, 0])
    torch.testing.assert_close(OverlapLoss(options)(heads[0], target), expected)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_regions_have_the_sigmoid_loss_of_monai(batch_dice):
    heads, target = example()
    regions = ((1, 2), (2,), (1,))
    masks = torch.cat([torch.isin(target, torch.tensor(members)) for members in regions], 1)
    dice = DiceLoss(sigmoid=True, batch=batch_dice)(heads[0], masks.float())
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(heads[0], masks.float())
    ours = OverlapLoss(LossOptions(batch_dice=batch_dice, regions=regions))(heads[0], target)
    torch.testing.assert_close(ours, dice + entropy)


@given(st.integers(0, 100), st.booleans(), st.booleans())
@settings(max_examples=15)
def test_what_a_network_answers_where_nobody_judged_changes_nothing(seed, of_regions, batch_dice):
    (logits, *_), target = example(seed)
    ignored = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    target = target.masked_fill(ignored, IGNORED_CLASS)
    regions = ((1, 2), (2,), (1,)) if of_regions else None
    loss = OverlapLoss(LossOptions(batch_dice=batch_dice, regions=regions, ignoring=True))
    other = torch.where(ignored, 5 * torch.randn_like(logits), logits).requires_grad_()
    value = loss(other, target)
    torch.testing.assert_close(value, loss(logits, target))
    value.backward()
    assert not other.grad[ignored.expand_as(other)].any()


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,), (1,))])
def test_voxels_that_nobody_judged_might_as_well_be_cut_off(regions):
    heads, target = example()
    widened = torch.nn.functional.pad(heads[0], (0, 3), value=1.5)
    unjudged = torch.nn.functional.pad(target, (0, 3), value=IGNORED_CLASS)
    loss = OverlapLoss(LossOptions(regions=regions, ignoring=True))
    plain = OverlapLoss(LossOptions(regions=regions))
    torch.testing.assert_close(loss(widened, unjudged), plain(heads[0], target))


def test_an_image_that_nobody_judged_costs_nothing_but_its_dice_of_nothing():
    logits = torch.zeros(1, 3, 2, 2, 2)
    target = torch.full((1, 1, 2, 2, 2), IGNORED_CLASS)
    for smooth in (0.0, 1e-5):
        loss = OverlapLoss(LossOptions(ignoring=True, smooth=smooth))
        assert float(loss(logits, target)) == 0.0


@pytest.mark.parametrize("options", [LossOptions(ignoring=True), LossOptions(background=False)])
def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves(options):
    heads, target = example()
    if options.ignoring:
        target[0, :, :3] = IGNORED_CLASS
    loss = OverlapLoss(options)
    halves = [loss(heads[0][n : n + 1], target[n : n + 1]) for n in (0, 1)]
    torch.testing.assert_close(loss(heads[0], target), torch.stack(halves).mean())


def test_dice_worked_on_paper():
    # two voxels, probabilities of class 1 are 1/2 and 3/4, the second voxel is of class 1:
    # class 0 has 1 - 2 (1/2) / (3/4 + 1) = 3/7, class 1 has 1 - 2 (3/4) / (5/4 + 1) = 1/3
    logits = torch.log(torch.tensor([[0.5, 0.25], [0.5, 0.75]])).reshape(1, 2, 1, 1, 2)
    target = torch.tensor([0, 1]).reshape(1, 1, 1, 1, 2)
    loss = OverlapLoss(LossOptions(cross_entropy_weight=0.0, smooth=0.0))
    assert float(loss(logits, target)) == pytest.approx((3 / 7 + 1 / 3) / 2)
