"""What is known of latents: their statistics and their divergence."""

import numpy as np
import torch

from world_models.video_vae import LatentStatistics, kl

C = 5


def seeded():
    return torch.Generator().manual_seed(3)


def test_statistics_are_those_of_all_latents_seen_and_stop_when_frozen():
    statistics = LatentStatistics(C).double()
    generator, seen = seeded(), []
    for size in (1, 7, 3, 20):
        latents = 5 + size * torch.randn(size, 2, C, generator=generator, dtype=torch.float64)
        statistics.update(latents)
        seen.append(latents.view(-1, C).numpy())
        everything = np.concatenate(seen)
        np.testing.assert_allclose(statistics.mean, everything.mean(0))
        np.testing.assert_allclose(statistics.variance.sqrt(), everything.std(0))
    before = {name: value.clone() for name, value in statistics.state_dict().items()}
    statistics.frozen.fill_(True)
    statistics.update(100 * torch.ones(4, C, dtype=torch.float64))
    for name in ("mean", "variance", "count"):
        assert torch.equal(statistics.state_dict()[name], before[name])


def test_latents_return_from_normalisation():
    statistics = LatentStatistics(C)
    latents = 3 + 2 * torch.randn(50, C, generator=seeded())
    statistics.update(latents)
    normalised = statistics.normalise(latents)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(C), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(C))
    torch.testing.assert_close(statistics.denormalise(normalised), latents)


def test_divergence_sums_over_all_axes_of_a_clip():
    mean, logvar = torch.randn(2, 3, C, 2, 2, 2, generator=seeded())
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (0.5 * logvar).exp()), normal(torch.zeros(()), torch.ones(()))
    )
    torch.testing.assert_close(kl((mean, logvar)), expected.sum((1, 2, 3, 4)).mean())
