"""The video model of masks learns: where things that move will be."""

import torch
from torch import nn

from world_models.mask_dynamics import MaskDynamics, MaskDynamicsConfig
from world_models.video_transformer import TransformerConfig
from world_models.video_vae import VideoVAEConfig

CAPTION = 6


def moving_squares(size=32, history=2, future=3, copies=4):
    """One clip, `copies` times over: two squares of two classes, moving in opposite directions."""
    edge, generator = size // 4, torch.Generator().manual_seed(3)
    steps = history + future
    image = torch.randint(60, 120, (size, size, 3), generator=generator).to(torch.uint8)
    image = image.repeat(steps, 1, 1, 1)
    mask = torch.zeros(steps, size, size, dtype=torch.uint8)
    for t in range(steps):
        along = round((size - edge) * t / (steps - 1))
        for label, row, column in ((2, 4, along), (3, size - edge - 4, size - edge - along)):
            image[t, row : row + edge, column : column + edge] = 40 * label
            mask[t, row : row + edge, column : column + edge] = label
    return {
        "image": image[None, None, :history].repeat(copies, 1, 1, 1, 1, 1),
        "future": mask[None, None, history:].repeat(copies, 1, 1, 1, 1),
        "future_valid": torch.ones(copies, future, dtype=torch.bool),
        "text": torch.zeros(copies, 1, CAPTION),
        "text_mask": torch.ones(copies, 1, dtype=torch.bool),
    }


def test_it_learns_where_the_squares_will_be():
    torch.manual_seed(0)
    config = MaskDynamicsConfig(
        vae=VideoVAEConfig(16, widths=(16,), blocks=(0, 0), scaling=(True,)),
        transformer=TransformerConfig(layers=2, heads=2, head_width=32),
        future_frames=3,
        jitter=0.0,
    )
    model, batch = MaskDynamics(config, 1, CAPTION).train(), moving_squares()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, fused=True)
    generator, flow = torch.Generator().manual_seed(3), []
    for _ in range(100):
        loss, metrics = model.loss(batch, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        flow.append(metrics["flow"])
    assert torch.stack(flow[-30:]).mean() < 0.5 * torch.stack(flow[:30]).mean()
    seen = (batch[name] for name in ("image", "text", "text_mask"))
    picture = model.eval().predict(*seen, generator=torch.Generator().manual_seed(3))
    assert model.target.measure(picture, batch)["iou/mean"] > 0.8
