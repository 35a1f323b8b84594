"""The pictures that masks and pixels are predicted as, their losses and their reading."""

import pytest
import torch
import torch.nn.functional as F

from mask_classes import NAMES, UNLABELLED
from world_models.video_targets import MaskVideoTarget, PixelVideoTarget, make_video_target

B, V, FUTURE, SIZE = 2, 1, 5, 16


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def frames(future, valid=None):
    shape = future.shape[0], future.shape[2]
    valid = torch.ones(shape, dtype=torch.bool) if valid is None else valid
    return {"future": future, "future_valid": valid}


def test_every_class_comes_back_from_its_own_corner_of_the_colour_cube():
    target = MaskVideoTarget()
    ids = torch.arange(len(NAMES), dtype=torch.uint8).view(1, 1, 2, 2, 2)
    picture = target.encode(frames(ids))
    assert picture.shape == (1, 1, 2, 2, 2, 3)
    assert (picture.abs() == 1).all()
    assert len({tuple(c) for c in picture.view(-1, 3).tolist()}) == len(NAMES)
    decoded = target.decode(picture)
    assert decoded.dtype == torch.uint8
    assert torch.equal(decoded, ids)
    assert torch.equal(target.to_image(picture), target.palette[ids.long()])


def test_decoding_is_the_nearest_of_the_eight_colours():
    target = MaskVideoTarget()
    corners = target.encode(frames(torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 2, 4)))
    picture = 3 * torch.randn(1000, 3, generator=seeded())
    nearest = torch.cdist(picture, corners.view(8, 3)).argmin(-1)
    assert torch.equal(target.decode(picture).long(), nearest)


def test_mask_loss_is_l1_plus_cross_entropy_over_squared_distances_rare_classes_weighted():
    target = MaskVideoTarget().double()
    ids = torch.randint(0, 8, (1, 1, 2, 3, 3), generator=seeded()).to(torch.uint8)
    batch = frames(ids)
    picture = torch.randn(1, 1, 2, 3, 3, 3, generator=seeded(), dtype=torch.float64)
    corners = target.encode(frames(torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 2, 4)))
    logits = -(picture.view(-1, 1, 3) - corners.view(1, 8, 3)).square().sum(-1)
    share = torch.bincount(ids.flatten().int(), minlength=8).double() / ids.numel()
    weight = share[ids.flatten().long()].rsqrt()
    error = F.cross_entropy(logits, ids.flatten().long(), reduction="none")
    error = error + (picture - target.encode(batch)).abs().mean(-1).flatten()
    expected = (weight * error).sum() / weight.sum()
    torch.testing.assert_close(target.loss(picture, batch), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["masks", "pixels"])
def test_frames_behind_the_episodes_end_and_unlabelled_pixels_count_in_no_loss(name):
    target = make_video_target(name)
    shape = (B, V, FUTURE, SIZE, SIZE) + ((3,) if name == "pixels" else ())
    future = torch.randint(0, 8, shape, generator=seeded()).to(torch.uint8)
    batch = frames(future)
    batch["future_valid"][0, 3:] = False
    if name == "masks":
        batch["future"][1, 0, 2, :8] = UNLABELLED
    picture = torch.zeros(B, V, FUTURE, SIZE, SIZE, 3, requires_grad=True)
    target.loss(picture + 0.1, batch).backward()
    assert (picture.grad[0, :, 3:] == 0).all()
    assert (picture.grad[0, :, :3] != 0).any(-1).all()
    if name == "masks":
        assert (picture.grad[1, 0, 2, :8] == 0).all()
        assert target.encode(batch)[1, 0, 2, :8].abs().max() == 0  # drawn in the cube's centre
        ids = torch.where(batch["future"] == UNLABELLED, 0, batch["future"])
        exact = target.encode(batch | {"future": ids})
        assert target.measure(exact, batch)["iou/mean"] == 1


def test_pictures_come_back_as_they_were_and_their_loss_is_the_mean_difference():
    target = PixelVideoTarget()
    batch = frames(
        torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16, 1).expand(*[-1] * 5, 3)
    )
    picture = target.encode(batch)
    assert (picture.min(), picture.max()) == (-1, 1)
    assert torch.equal(target.decode(picture), batch["future"])
    assert torch.equal(target.to_image(picture), batch["future"])
    torch.testing.assert_close(target.loss(picture + 0.25, batch), torch.tensor(0.25))
