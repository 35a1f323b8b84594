"""ResNet-18 (He et al., 2016) with torchvision's parameter names, so that its weights load.

torchvision itself cannot be imported beside a CPU build of PyTorch, for which the registry has no
wheel of it. Narrower networks of the same shape serve small pictures.

Shape legend: B pictures, S their edge in pixels, C channels of the last stage.
"""

from __future__ import annotations

import pathlib
import pickle
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from world_models.imports import weights_named
from world_models.targets import IMAGENET_MEAN, IMAGENET_STD

TORCHVISION_WIDTH = 64


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of the image encoder."""

    width: int = TORCHVISION_WIDTH
    """Channels of the first stage; the fourth has eight times as many (ResNet-18: 64)."""
    pool_stem: bool = True
    """Whether the stem halves a picture twice, as published, or once: for pictures of 64 pixels,
    of which twice leaves 2×2."""
    weights: str = ""
    """File of weights in torchvision's names (.safetensors, .pth), or a name on the Hugging Face
    hub (timm/resnet18.a1_in1k); empty: from scratch. Needs width 64."""

    LOADS: ClassVar = {"weights": weights_named}

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"the width of a ResNet must be at least 1, not {self.width}")
        if self.weights and self.width != TORCHVISION_WIDTH:
            raise UserError(
                f"weights of ResNet-18 have width {TORCHVISION_WIDTH}, not {self.width}; leave out"
                " weights, or give that width"
            )

    def grid(self, size: int) -> int:
        """Edge of the last stage's map for pictures of `size` pixels."""
        for _ in range(5 if self.pool_stem else 4):
            size = -(-size // 2)
        return size


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(features))


class ResNet18(nn.Module):
    """Pictures (B, S, S, 3) uint8 → the map of the last stage (B, C, s, s), s = `grid(S)`.

    Args:
        config: sizes.

    Raises:
        UserError: the weights cannot be read, or are of another network.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config, width = config, config.width
        self.channels = 8 * width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("deviation", 255 * torch.tensor(IMAGENET_STD), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if config.weights:
            load_weights(self, config.weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, image: Tensor) -> Tensor:
        features = ((image - self.mean) / self.deviation).permute(0, 3, 1, 2)
        features = F.relu(self.bn1(self.conv1(features)))
        if self.config.pool_stem:
            features = F.max_pool2d(features, 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(features))))


def load_weights(network: ResNet18, name: str) -> None:
    """Load weights in torchvision's names: a file, or a name on the Hugging Face hub.

    Raises:
        UserError: there is none, or it is of another network.
    """
    path = pathlib.Path(name)
    try:
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            path = pathlib.Path(hf_hub_download(name, "model.safetensors"))
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, "cpu", weights_only=True)
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        network.load_state_dict(state)
    except (OSError, ValueError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"cannot load weights of ResNet-18 from {name}: {reason}") from error
