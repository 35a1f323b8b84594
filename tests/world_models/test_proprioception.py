"""The robot's own state beside the picture."""

import torch

from world_models.proprioception import LIMIT, Proprioception


def module(values):
    torch.manual_seed(0)
    made = Proprioception(values.shape[-1], 8)
    for _ in range(50):
        made.scale.update(values)
    return made


def test_every_number_is_standardised_by_itself():
    values = torch.randn(64, 10, 3) * torch.tensor([1e-3, 1.0, 50.0]) + torch.tensor([0.2, 0, -7])
    standard = module(values).standardise(values).flatten(0, 1)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(3), atol=0.05, rtol=0)


def test_a_number_that_never_varied_cannot_swamp_the_others():
    still = torch.cat([torch.randn(64, 10, 1), torch.full((64, 10, 1), 0.5)], -1)
    moved = module(still).standardise(torch.tensor([0.0, 0.6]))
    assert moved[1] == LIMIT


def test_it_stands_beside_the_embedding_of_the_picture():
    values, embedding = torch.randn(4, 5, 3), torch.randn(4, 5, 6)
    made = module(values)
    beside = made.beside(embedding, values)
    assert beside.shape == (4, 5, 6 + Proprioception.outputs)
    assert torch.equal(beside[..., :6], embedding)
    torch.testing.assert_close(beside[1:2, :, 6:], made(values[1:2]))


def test_a_prediction_that_is_right_costs_nothing():
    values, feature = torch.randn(16, 5, 3), torch.randn(5, 16, 8)
    made = module(values)
    untrained = made.loss(feature, values.transpose(0, 1))
    assert 1.0 < untrained < 6.0  # about 1 a number
    made.decoder = torch.nn.Sequential()  # hands on what it is given
    perfect = made.standardise(values.transpose(0, 1))
    assert made.loss(perfect, values.transpose(0, 1)) == 0
