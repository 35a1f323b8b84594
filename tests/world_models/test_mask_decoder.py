"""Mask2Act's decoder and its losses, by hand where a hand can do it."""

import math

import pytest
import torch

from errors import UserError
from world_models.mask_decoder import (
    MaskDecoder,
    bootstrapped_cross_entropy,
    dice_loss,
    soft_aggregation,
)


def test_soft_aggregation_by_hand():
    """Two objects of probabilities .9 and .2: background .1 · .8 = .08, odds in proportion."""
    probability = torch.tensor([0.9, 0.2])
    logits = soft_aggregation(torch.logit(probability)[None, :, None, None])
    odds = torch.tensor([0.08 / 0.92, 0.9 / 0.1, 0.2 / 0.8])
    torch.testing.assert_close(logits.softmax(1)[0, :, 0, 0], odds / odds.sum())


def test_an_object_that_is_not_there_changes_nothing():
    alone = soft_aggregation(torch.tensor([[0.3]]))
    beside = soft_aggregation(torch.tensor([[0.3, -torch.inf]]))
    torch.testing.assert_close(beside.softmax(1)[:, :2], alone.softmax(1))


def test_sure_objects_have_finite_losses_and_gradients():
    logits = torch.tensor([[[[80.0]], [[-80.0]]]], requires_grad=True)
    loss = bootstrapped_cross_entropy(soft_aggregation(logits), torch.tensor([[[2]]]), 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_only_the_hardest_pixels_count():
    wrong = torch.tensor([2.0, 0.0, -1.0, -3.0])  # of the true class, against 0 of the other
    logits = torch.stack([wrong, torch.zeros(4)])[None, :, None]
    label = torch.zeros(1, 1, 4, dtype=torch.long)
    each = torch.log1p(torch.exp(-wrong))
    torch.testing.assert_close(bootstrapped_cross_entropy(logits, label, 1.0), each.mean())
    torch.testing.assert_close(bootstrapped_cross_entropy(logits, label, 0.5), each[2:].mean())
    label[..., 3] = -1  # nobody knows
    torch.testing.assert_close(bootstrapped_cross_entropy(logits, label, 0.25), each[2])


def test_dice_by_hand():
    probability = torch.tensor([[[[0.5, 1.0]], [[0.7, 0.7]]]])
    mask = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
    there = torch.tensor([[True, False]])
    expected = 1 - (2 * 0.5 + 1) / (1.5 + 1 + 1)
    assert dice_loss(probability, mask, there).item() == pytest.approx(expected)


def test_any_number_of_objects_gives_the_same_mask_for_the_same_object():
    torch.manual_seed(0)
    decoder, plan = MaskDecoder(8, 16, instants=2, channels=4), torch.randn(3, 8)
    masks = (torch.rand(3, 5, 16, 16) > 0.7).float()
    together = decoder(plan, masks)
    assert together.shape == (3, 5, 2, 16, 16)
    for count in (1, 2, 5):
        torch.testing.assert_close(decoder(plan, masks[:, :count]), together[:, :count])
    backwards = decoder(plan, masks.flip(1)).flip(1)
    torch.testing.assert_close(backwards, together)


def test_the_future_mask_depends_on_plan_and_mask():
    torch.manual_seed(0)
    decoder = MaskDecoder(8, 16, channels=4)
    plan, mask = torch.randn(1, 8, requires_grad=True), torch.rand(1, 1, 16, 16, requires_grad=True)
    decoder(plan, mask).square().sum().backward()
    assert (plan.grad != 0).all()
    assert (mask.grad != 0).any()


def test_size_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match="60 pixels"):
        MaskDecoder(8, 60)


def test_a_decoder_learns_to_move_a_square():
    """The plan says which way; the mask says what."""
    torch.manual_seed(0)
    decoder = MaskDecoder(2, 16, channels=8)
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    ways = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    for _ in range(150):
        now = torch.zeros(16, 1, 16, 16)
        then = torch.zeros(16, 1, 16, 16)
        way = torch.randint(4, (16,))
        for row in range(16):
            x, y = torch.randint(4, 9, (2,)).tolist()
            dx, dy = (3 * ways[way[row]]).int().tolist()
            now[row, 0, y : y + 4, x : x + 4] = 1
            then[row, 0, y + dy : y + dy + 4, x + dx : x + dx + 4] = 1
        logits = soft_aggregation(decoder(ways[way], now)[:, :, 0])
        loss = bootstrapped_cross_entropy(logits, then[:, 0].long(), 1.0)
        loss = loss + dice_loss(logits.softmax(1)[:, 1:], then, torch.ones(16, 1, dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    overlap = ((logits.argmax(1) > 0) & (then[:, 0] > 0)).sum() / then.sum()
    assert overlap > 0.9
    assert not math.isnan(loss.item())
