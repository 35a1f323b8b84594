"""The planner: what a plan token may depend on, and what it is asked to foretell."""

import numpy as np
import pytest
import torch

from errors import UserError
from mask_classes import HAND, OBJECT, ROBOT, UNLABELLED
from world_models.plan_targets import (
    PLANS,
    FeaturePlan,
    MaskPlan,
    PointPlan,
    TrajectoryPlan,
    plan_target_class,
)
from world_models.planner import CausalTransformerConfig, PictureEncoder, Planner, PlannerConfig
from world_models.resnet import ResNet18, ResNetConfig

S, H, W, B = 16, 4, 16, 2
RESNET = ResNetConfig(width=4, pool_stem=False)
CONFIG = PlannerConfig(RESNET, CausalTransformerConfig(W, 2, 2, dropout=0.0))
STEPS = [-3, -2, -1, 0]


def pictures(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


@pytest.fixture
def planner():
    torch.manual_seed(0)
    return Planner(CONFIG, H, S, 5).eval()


def batch():
    return {"view": pictures(B, H, S, S, 3), "goal": pictures(B, S, S, 3, seed=1)}


def test_no_future_leaks_into_a_plan(planner):
    """Gradient of each step's plan with respect to what the encoder sees at each step."""
    picture = torch.randn(1, H, W, requires_grad=True)
    plan = planner.transformer(picture[:, :, None], torch.randn(1, 1, W))[:, :, 0]
    for step in range(H):
        (gradient,) = torch.autograd.grad(plan[0, step, 0], picture, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 0
        assert seen.tolist() == [other <= step for other in range(H)]


def test_a_plan_depends_on_the_goal_and_not_on_the_neighbour(planner):
    one = batch()
    plan, _ = planner(one)
    other = {**one, "goal": torch.stack([one["goal"][0], pictures(S, S, 3, seed=2)])}
    changed, _ = planner(other)
    torch.testing.assert_close(changed[0], plan[0])
    assert (changed[1] - plan[1]).abs().max() > 1e-3


def test_the_plan_of_a_step_is_the_same_whatever_comes_after(planner):
    one = batch()
    later = one["view"].clone()
    later[:, -1] = 0
    plan, _ = planner(one)
    changed, _ = planner({**one, "view": later})
    torch.testing.assert_close(changed[:, :-1], plan[:, :-1])


def test_an_instruction_can_say_the_task_instead():
    torch.manual_seed(0)
    config = PlannerConfig(RESNET, CONFIG.transformer, task="instruction")
    planner = Planner(config, H, S, 5).eval()
    text = torch.randn(B, 3, 5)
    words = {"text": text, "text_mask": torch.ones(B, 3, dtype=torch.bool)}
    plan, _ = planner({"view": batch()["view"], **words})
    other, _ = planner({"view": batch()["view"], **words, "text": text + 1})
    assert plan.shape == (B, H, W)
    assert not torch.allclose(plan, other)


# -------------------------------------------------------------------------------- ResNet-18


def test_resnet_18_has_the_published_parameters():
    """11,689,512 with the classifier of 1000 classes (torchvision)."""
    network = ResNet18(ResNetConfig())
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 513_000
    assert network(pictures(1, 64, 64, 3)).shape == (1, 512, 2, 2)
    assert ResNetConfig().grid(224) == 7
    assert {"conv1.weight", "layer1.0.bn2.bias", "layer4.0.downsample.0.weight"} <= set(
        network.state_dict()
    )


def test_weights_of_a_file_load_without_the_classifier(tmp_path):
    torch.manual_seed(0)
    state = ResNet18(ResNetConfig()).state_dict()
    path = tmp_path / "resnet18.pth"
    torch.save({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, path)
    loaded = ResNet18(ResNetConfig(weights=str(path))).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"cannot load weights of ResNet-18 from .*resnet18\.pth"):
        ResNet18(ResNetConfig(weights=str(path)))
    with pytest.raises(UserError, match="width 64"):
        ResNetConfig(width=16, weights=str(path))


def test_an_encoder_keeps_where_things_are():
    torch.manual_seed(0)
    encoder = PictureEncoder(RESNET, S, W).eval()
    image = torch.zeros(2, S, S, 3, dtype=torch.uint8)
    image[0, :4, :4], image[1, -4:, -4:] = 255, 255
    left, right = encoder(image)
    assert (left - right).abs().max() > 0.1


# ------------------------------------------------------------------------------ plan targets


def test_objects_are_the_first_that_are_there():
    target = MaskPlan(W, S, objects=("robot", "object", "goal"), most=2)
    mask = torch.zeros(2, S, S, dtype=torch.uint8)
    mask[0, 0, :2] = torch.tensor([ROBOT, HAND])
    mask[0, 5, 5] = OBJECT
    mask[1, 3, 3] = OBJECT
    now, then, there = target.chosen(mask, torch.stack([mask, 0 * mask], 1))
    assert there.tolist() == [[True, True], [True, False]]
    assert now.sum((-2, -1)).tolist() == [[2, 1], [1, 0]]
    assert torch.equal(now, then[:, :, 0])
    assert not then[:, :, 1].any()


def test_a_mask_target_reads_now_and_ahead():
    assert MaskPlan(W, S, ahead=(4, 8)).reads(STEPS) == {
        "mask": ("mask", STEPS, [0]),
        "mask_ahead": ("mask", STEPS, [4, 8]),
    }


def masks(seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.choice([0, ROBOT, OBJECT], (B, H, S, S)).astype(np.uint8))


def mask_batch():
    return {**batch(), "mask": masks(0), "mask_ahead": masks(1)}


def listened_to(target):
    """The arguments and results of a target's logits, as they are made; gradients are kept."""
    made, logits = [], target.logits

    def listening(*arguments):
        made.append((*arguments, logits(*arguments)))
        if made[-1][-1].requires_grad:
            made[-1][-1].retain_grad()
        return made[-1][-1]

    target.logits = listening
    return made


def test_unlabelled_pixels_count_in_no_loss():
    torch.manual_seed(0)
    target, one = MaskPlan(W, S), mask_batch()
    one["mask_ahead"][..., :8] = UNLABELLED
    made = listened_to(target)
    loss, _ = target.loss(torch.randn(B, H, W), one, None)
    loss.backward()
    ((*_, logits),) = made
    assert (logits.grad[..., :8] == 0).all()
    assert (logits.grad[..., 8:] != 0).any()


def test_every_instant_is_compared_with_its_own_mask(monkeypatch):
    target = MaskPlan(W, S, ahead=(1, 2), objects=("robot", "object"))
    now = torch.full((1, 1, S, S), ROBOT, dtype=torch.uint8)
    now[..., S // 2 :] = OBJECT
    both = torch.stack([now[:, 0], now[:, 0].flip(-1)], 1)
    _, then, _ = target.chosen(now[:, 0], both)
    right = torch.cat([torch.zeros(1, 1, 2, S, S), then.float()], 1) * 40 - 20

    def found(logits):
        monkeypatch.setattr(target, "logits", lambda *_: logits)
        one = {"mask": now, "mask_ahead": both}
        loss, metrics = target.loss(torch.zeros(1, 1, W), one, None)
        return loss.item(), metrics["iou/objects"].item(), metrics["iou/still"].item()

    assert found(right) == pytest.approx((0.0, 1.0, 0.5), abs=1e-3)
    assert found(right.flip(2))[:2] == pytest.approx((41.0, 0.0), abs=1.0)


def test_masks_are_decoded_of_as_many_steps_as_asked():
    """Each with the plan of its own step: foretold masks of steps are told apart by their size."""
    target = MaskPlan(W, S, objects=("robot",), decoded=2)
    made = listened_to(target)
    mask = torch.zeros(B, H, S, S, dtype=torch.uint8)
    for step in range(H):
        mask[:, step, : step + 1] = ROBOT
    plan = torch.arange(H).float()[None, :, None].expand(B, H, W)

    for _ in range(20):
        target.loss(plan, {"mask": mask, "mask_ahead": mask}, None)
    for plans, objects, _, logits in made:
        assert torch.equal(objects[:, 0, :, 0].sum(1), plans[:, 0].long() + 1)
        assert plans.shape == (B * 2, W)
        assert logits.shape == (B * 2, 2, 1, S, S)
    steps = torch.stack([plans for plans, *_ in made])[..., 0].view(20, B, 2)
    assert (steps[..., 0] != steps[..., 1]).all()
    assert set(steps.flatten().tolist()) == set(range(H))


def tracks_batch():
    rng = np.random.default_rng(0)

    def of(*shape):
        return torch.from_numpy(rng.uniform(0, S, shape)).float()

    return {
        **batch(),
        "effector_ahead": of(B, H * 9, 2),
        "tracks": of(B, H, 6, 2),
        "visible": torch.ones(B, H, 6, dtype=torch.bool),
        "tracks_ahead": of(B, H * 4, 6, 2),
        "view_ahead": pictures(B, H, S, S, 3, seed=4),
    }


@pytest.mark.parametrize("name", list(PLANS))
def test_every_target_learns_one_batch_by_heart(planner, name):
    torch.manual_seed(0)
    target, one = PLANS[name](W, S), {**mask_batch(), **tracks_batch()}
    assert set(target.reads(STEPS)) <= set(one)
    encode = PictureEncoder(RESNET, S, W).eval()
    optimizer = torch.optim.Adam([*planner.parameters(), *target.parameters()], 3e-3)
    losses = []
    for _ in range(60):
        plan, _ = planner(one)
        loss, metrics = target.loss(plan, one, encode)
        assert all(value.shape == () for value in metrics.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    one["encoded_ahead"] = encode(one["view_ahead"][:, -1])
    drawn = target.draw(plan, one)
    assert len(drawn) == 2
    for pictures_ in drawn:
        assert pictures_.dtype == torch.uint8
        assert pictures_.shape == (B, 1, S, S, 3)
    if hasattr(target, "film"):
        assert target.film(plan[:, -1], one).shape == (B, 1, S, S, 3)


def test_a_point_that_is_hidden_counts_in_no_loss():
    torch.manual_seed(0)
    target, one = PointPlan(W, S), tracks_batch()
    one["visible"][:, :, 3] = False
    plan = torch.randn(B, H, W)
    before, _ = target.loss(plan, one, None)
    one["tracks_ahead"][:, :, 3] = 1e6
    torch.testing.assert_close(target.loss(plan, one, None)[0], before)


def test_paths_are_measured_in_picture_edges():
    """Foretold is the middle of the picture; half of the path is a quarter of it away."""
    target = TrajectoryPlan(W, S, instants=1)
    torch.nn.init.zeros_(target.head[-1].weight)
    torch.nn.init.zeros_(target.head[-1].bias)
    path = torch.full((B, H, 2, 2), S / 2)
    path[:, :, 1] += S / 4
    loss, metrics = target.loss(torch.randn(B, H, W), {"effector_ahead": path.flatten(1, 2)}, None)
    assert loss.item() == pytest.approx(0.125)
    assert metrics["still"].item() == pytest.approx(0.125)


def test_features_tell_whether_the_encoder_has_collapsed():
    target = FeaturePlan(W, S)
    plan, one = torch.randn(B, H, W), tracks_batch()
    _, metrics = target.loss(plan, one, lambda image: torch.ones(*image.shape[:-3], W))
    assert metrics["spread"].item() == pytest.approx(0.0, abs=1e-6)
    _, metrics = target.loss(plan, one, lambda image: torch.randn(*image.shape[:-3], W))
    assert metrics["spread"] > 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mask", "use one of masks, features"),
        ("nowhere:Plan", "cannot be imported: ModuleNotFoundError"),
        ("pathlib:Path", "lacks reads, loss, draw"),
    ],
)
def test_a_plan_that_is_none_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        plan_target_class(name)


def test_a_users_own_plan_is_found_by_name():
    assert plan_target_class("world_models.plan_targets:PointPlan") is PointPlan
