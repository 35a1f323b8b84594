"""Layers that several world models share, and the optimiser step of the paper.

Shape legend: B batch, T time, N tokens, D width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError


def symlog(x: Tensor) -> Tensor:
    """sign(x)·ln(1+|x|): squashes large rewards so that one scale fits all tasks."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


MOST_LAYERS = 1000
"""Of one network: what a configuration may ask for."""

VIT_WAVELENGTHS = (2 * math.pi, 2 * math.pi * 10_000)
"""Shortest and longest wavelength of position rows, in tokens (Attention Is All You Need, ViT)."""


def sincos_positions(
    coordinates: Tensor, width: int, wavelengths: tuple[float, float] = VIT_WAVELENGTHS
) -> Tensor:
    """Fixed 2-D sine-cosine position rows (ViT/MAE convention).

    Args:
        coordinates: (N, 2) row and column of each token, in tokens.
        width: D, a multiple of 4; each axis gets half, half of that sine and half cosine.
        wavelengths: the shortest, and the end of the geometric series of the longer ones, tokens.

    Returns:
        (N, D) float32.

    Raises:
        UserError: the width is not a multiple of 4, or the wavelengths are not positive.
    """
    if width < 4 or width % 4:
        raise UserError(f"the width of tokens must be a multiple of 4, not {width}")
    if not 0 < wavelengths[0] <= wavelengths[1]:
        raise UserError(f"wavelengths must be positive and rising, not {wavelengths}")
    shortest, longest = wavelengths
    exponents = torch.arange(width // 4, dtype=torch.float64) / (width / 4)
    frequencies = 2 * math.pi / (shortest * (longest / shortest) ** exponents)
    angles = coordinates.double()[:, :, None] * frequencies  # (N, 2, D/4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def token_positions(
    grid: int,
    width: int,
    *,
    before: int = 0,
    after: int = 0,
    wavelengths: tuple[float, float] = VIT_WAVELENGTHS,
    views: int = 1,
) -> Tensor:
    """Position rows of `grid`×`grid` token squares with special tokens before and after them.

    The square of each further view lies below the one before. A special token sits outside, on the
    first square's diagonal, so that its row equals no other.

    Returns:
        (before + views · grid² + after, width) float32.
    """
    rows, columns = torch.meshgrid(torch.arange(views * grid), torch.arange(grid), indexing="ij")
    square = torch.stack([rows.flatten(), columns.flatten()], dim=-1)
    first = torch.arange(-before, 0)[:, None].expand(before, 2)
    last = torch.arange(grid, grid + after)[:, None].expand(after, 2)
    return sincos_positions(torch.cat([first, square, last]), width, wavelengths)


class TransformerBlock(nn.Module):
    """Pre-norm ViT block: multi-head self-attention, then an MLP with GELU. (B, N, D) → same."""

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        if heads < 1 or width % heads:
            raise UserError(f"the width of tokens, {width}, must be a multiple of heads, {heads}")
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, mlp_ratio * width)
        self.contract = nn.Linear(mlp_ratio * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.query_key_value(self.norm_attention(tokens))
        qkv = qkv.view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D/heads)
        if qkv.device.type == "cpu" and (qkv.requires_grad or qkv.dtype == torch.bfloat16):
            # Of so few tokens two products are faster there: up to 3 times, with gradients.
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            attended = scores.softmax(-1) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.project(attended)
        return tokens + self.contract(F.gelu(self.expand(self.norm_mlp(tokens))))


class VisionTransformer(nn.Module):
    """`depth` blocks and the final LayerNorm of a pre-norm ViT. (B, N, D) → same.

    Depth 0 is the identity: no blocks leave nothing for a final norm to do.
    """

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6) if depth else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.blocks(tokens))


class MLP(nn.Sequential):
    """`layers` × [linear, ELU], then a linear head, which `initialise` makes small.

    The small head starts rewards, values and action means near zero.
    """

    def __init__(self, inputs: int, units: int, layers: int, outputs: int):
        sizes = [inputs] + [units] * layers
        hidden: list[nn.Module] = []
        for size, next_size in zip(sizes, sizes[1:], strict=False):
            hidden += [nn.Linear(size, next_size), nn.ELU()]
        super().__init__(*hidden, nn.Linear(sizes[-1], outputs))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        return cast(nn.Linear, self[-1])


def initialise(module: nn.Module, head_scale: float = 0.1) -> None:
    """Glorot-uniform weights, zero biases, tokens N(0, 0.02²); heads of an `MLP` scaled by
    `head_scale`."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, MLP):
            with torch.no_grad():
                part.head.weight.mul_(head_scale)
    for name, parameter in module.named_parameters():
        if name.endswith("_token"):
            nn.init.normal_(parameter, std=0.02)


class RunningScale(nn.Module):
    """Running standardisation: a mean of every entry of a shape, one deviation of all of them.

    Args:
        *shape: of what is standardised.
        each: a deviation of every entry, too.

    Both are plain averages of the first 100 batches; from then on, every batch moves them by 1 %
    of the distance.
    """

    slowest = 0.01
    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, *shape: int, each: bool = False):
        super().__init__()
        self.each = each
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape if each else ()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Move towards the statistics of `values` (..., *shape)."""
        self.batches += 1
        rate = torch.clamp(1.0 / self.batches, min=self.slowest)
        values = values.flatten(0, -1 - self.mean.ndim)
        self.mean.lerp_(values.mean(0), rate)
        squares = (values - self.mean).square()
        self.variance.lerp_(squares.mean(0) if self.each else squares.mean(), rate)

    def standardise(self, values: Tensor) -> Tensor:
        """Values (..., *shape) minus the mean, over the deviation."""
        return (values - self.mean) * torch.rsqrt(self.variance + 1e-8)

    def denormalise(self, scaled: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return self.mean + scaled * torch.sqrt(self.variance + 1e-8)


@contextlib.contextmanager
def without_gradients(module: nn.Module) -> Iterator[None]:
    """Context in which no gradients of a module's weights are computed; they still pass through to
    its inputs."""
    learned = [weight for weight in module.parameters() if weight.requires_grad]
    for weight in learned:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learned:
            weight.requires_grad_(True)


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam as the paper's code used it."""

    learning_rate: float = 3e-4
    """Step size of Adam (paper Table 1: 3e-4 for both models; DreamerV2: 1e-4 for behaviour)."""
    epsilon: float = 1e-5
    """Adam's epsilon (DreamerV2)."""
    clip: float = 100.0
    """Largest global gradient norm (DreamerV2)."""
    weight_decay: float = 1e-6
    """Share of every weight matrix removed per update, not multiplied by the learning rate."""
    warmup: int = 0
    """Updates over which the learning rate rises linearly from 0 (paper E.1: 2,500)."""
    anneal: int = 0
    """Updates after the warm-up over which it then falls linearly to `final` (paper: none)."""
    final: float = 1.0
    """Share of the learning rate that is left after that."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay of the gradient's mean and of its square."""
    epsilon_hat: bool = False
    """Add epsilon before the bias correction, as TensorFlow does and with it the published code
    (the "epsilon hat" of Adam's paper): it then counts as epsilon / √(1 − β₂ᵗ) in update t, which
    is 32 times as much in the first, 1.26 times in the 1,000th."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon", "clip", "weight_decay", "warmup", "anneal"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be at least 0, not {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must be at least 0 and below 1, not {self.betas}")

    def share(self, update: int) -> float:
        """The share of the learning rate that update number `update` uses, counted from 1."""
        if update < self.warmup:
            return update / self.warmup
        if update < self.warmup + self.anneal:
            return 1.0 - (1.0 - self.final) * (update - self.warmup) / self.anneal
        return self.final if self.anneal else 1.0


class Optimizer:
    """Adam with global-norm clipping, a linear schedule and decay of weight matrices only.

    Decay is w ← (1 − weight_decay)·w before each step, never on biases, norms, tokens or
    positions (the authors' code decays those in one of its optimisers).
    """

    def __init__(self, modules: Iterable[nn.Module], config: OptimizerConfig):
        self.config = config
        self.named: list[tuple[str, nn.Parameter]] = []
        for index, module in enumerate(modules):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    self.named.append((f"{index}.{name}", parameter))
        self.parameters = [parameter for _, parameter in self.named]
        self.decayed: list[Tensor] = [
            p for name, p in self.named if p.ndim >= 2 and not name.endswith("_token")
        ]
        self.updates = 0
        self.adam = torch.optim.Adam(
            self.parameters,
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            fused=True,
        )

    def step(self, loss: Tensor) -> Tensor:
        """One update that lowers `loss` (scalar). Returns the gradient norm before clipping, ()."""
        return step_together(loss, self)[0]

    def accumulate(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (scalar) to what `apply` will use: batches larger than memory.

        A parameter that the loss does not reach gets zeros.
        """
        gradients = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def apply(self) -> Tensor:
        """One update with the accumulated gradient. Returns its norm before clipping, ()."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip, foreach=True)
        self.updates += 1
        share = self.config.share(self.updates)
        self.adam.param_groups[0]["lr"] = self.config.learning_rate * share
        if self.config.epsilon_hat:
            correction = 1.0 - self.config.betas[1] ** self.updates
            self.adam.param_groups[0]["eps"] = self.config.epsilon / math.sqrt(correction)
        if self.config.weight_decay:
            with torch.no_grad():
                torch._foreach_mul_(self.decayed, 1.0 - self.config.weight_decay)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict:
        """Adam's moments and the number of updates."""
        return {"adam": self.adam.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """The inverse of `state_dict`; what is no moment stays as it was configured.

        Raises:
            TypeError, ValueError: it is no such state, or of other parameters than these.
        """
        if not (isinstance(state, dict) and isinstance(state.get("adam"), dict)):
            raise TypeError("the optimizer's state is no dict")
        (group,) = self.adam.param_groups
        configured = {name: value for name, value in group.items() if name != "params"}
        self.adam.load_state_dict(state["adam"])
        self.adam.param_groups[0].update(configured)
        for parameter, moments in self.adam.state.items():
            if any(moments[name].shape != parameter.shape for name in ("exp_avg", "exp_avg_sq")):
                raise ValueError("the optimizer's moments have other shapes than its parameters")
        self.updates = int(state["updates"])


def step_together(loss: Tensor, *optimizers: Optimizer) -> list[Tensor]:
    """One update of each that lowers `loss` (scalar), of one backward pass. Returns the gradient
    norms before clipping, ()."""
    weights = [weight for optimizer in optimizers for weight in optimizer.parameters]
    gradients = torch.autograd.grad(loss, weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    return [optimizer.apply() for optimizer in optimizers]


@torch.no_grad()
def move_average(average: nn.Module, latest: nn.Module, decay: float, updates: int) -> None:
    """Move averaged weights towards the latest; buffers are copied, what is frozen is left alone.

    Args:
        average, latest: of the same class and sizes.
        decay: of the moving average, at least 0 and below 1.
        updates: made so far; early averages forget faster.
    """
    decay = min(decay, (1 + updates) / (10 + updates))
    pairs = zip(average.parameters(), latest.parameters(), strict=True)
    moving = [(kept, new.detach()) for kept, new in pairs if new.requires_grad]
    kept_ones: list[Tensor] = [kept for kept, _ in moving]
    torch._foreach_lerp_(kept_ones, [new for _, new in moving], 1.0 - decay)
    for kept, new in zip(average.buffers(), latest.buffers(), strict=True):
        kept.copy_(new)
