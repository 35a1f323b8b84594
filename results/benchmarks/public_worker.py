"""Updates of sheeprl's DreamerV2, timed on behalf of results/benchmarks/public_code.py.

Runs with the Python of another environment, one that has sheeprl, and imports nothing of this
project. The sizes come as one JSON argument ({}: only say
the version); then every line on standard input is a number of
updates to make, answered with their milliseconds as one JSON list. The first answer says what was
built. DreamerV2 sees with a convolutional network: it gets the channels that bring its world model
nearest to the wanted number of parameters.
"""

import json
import os
import sys
import time

CHANNELS = (4, 8, 16, 24, 32, 48, 64, 96)
"""Multipliers of the channels that are tried; DreamerV2's own is 48."""


def main(sizes: dict) -> None:
    """Build the agent, then answer."""
    import numpy as np
    import sheeprl
    import torch
    from gymnasium import spaces
    from lightning.fabric import Fabric
    from sheeprl.algos.dreamer_v2 import dreamer_v2
    from sheeprl.algos.dreamer_v2.agent import build_agent
    from torch.utils.flop_counter import FlopCounterMode

    if not sizes:
        answer({"sheeprl": sheeprl.__version__})
        return
    torch.set_num_threads(sizes["threads"])
    precision = "bf16-mixed" if sizes["bfloat16"] else "32-true"
    fabric = Fabric(accelerator=sizes["accelerator"], devices=1, precision=precision)
    size, action = sizes["size"], sizes["action"]
    seen = spaces.Dict({"rgb": spaces.Box(0, 255, (3, size, size), np.uint8)})
    nearest = None
    for multiplier in CHANNELS:
        config = configured(sizes, multiplier)
        agent = build_agent(fabric, [action], True, config, seen)
        distance = abs(count(agent[0]) - sizes["parameters"])
        if nearest is None or distance < nearest[0]:
            nearest = distance, multiplier, config, agent
    _, channels, config, (world_model, actor, critic, target_critic, _) = nearest
    parts = [(world_model, "world_model"), (actor, "actor"), (critic, "critic")]
    optimizers = fabric.setup_optimizers(
        *(
            dreamer_v2.build_optimizer(config.algo[name].optimizer, module.parameters())
            for module, name in parts
        )
    )
    frames = sizes["window"], sizes["batch"]
    device = fabric.device
    data = {
        "rgb": torch.randint(0, 256, (*frames, 3, size, size), device=device).float(),
        "actions": torch.rand(*frames, action, device=device) * 2 - 1,
        "rewards": torch.rand(*frames, 1, device=device),
        "terminated": torch.zeros(*frames, 1, device=device),
        "truncated": torch.zeros(*frames, 1, device=device),
        "is_first": torch.zeros(*frames, 1, device=device),
    }

    def update() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        dreamer_v2.train(
            fabric, world_model, actor, critic, target_critic, *optimizers,
            dict(data), None, config, [action],
        )  # fmt: skip
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    for _ in range(2):
        update()
    with FlopCounterMode(display=False) as counter:
        update()
    answer(
        {
            "sheeprl": sheeprl.__version__,
            "torch": torch.__version__,
            "parameters": count(world_model),
            "channels": channels,
            "operations": counter.get_total_flops(),
        }
    )
    for line in sys.stdin:
        answer([update() for _ in range(int(line))])


def configured(sizes: dict, channels: int):
    """sheeprl's own configuration of DreamerV2, with these sizes."""
    import hydra
    from omegaconf import OmegaConf
    from sheeprl.utils.utils import dotdict

    model = "algo.world_model"
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        config = hydra.compose(
            "config",
            [
                "exp=dreamer_v2",
                "env=dummy",
                "metric.log_level=0",
                "algo.cnn_keys.encoder=[rgb]",
                "algo.mlp_keys.encoder=[]",
                f"algo.per_rank_batch_size={sizes['batch']}",
                f"algo.per_rank_sequence_length={sizes['window']}",
                f"algo.horizon={sizes['horizon']}",
                f"algo.mlp_layers={sizes['layers']}",
                f"algo.dense_units={sizes['units']}",
                f"algo.compile.enabled={sizes['compiled']}",
                "algo.compile.mode=default",
                f"{model}.encoder.cnn_channels_multiplier={channels}",
                f"{model}.stochastic_size={sizes['variables']}",
                f"{model}.discrete_size={sizes['classes']}",
                f"{model}.recurrent_model.recurrent_state_size={sizes['deterministic']}",
                f"{model}.transition_model.hidden_size={sizes['hidden']}",
                f"{model}.representation_model.hidden_size={sizes['hidden']}",
            ],
        )
    return dotdict(OmegaConf.to_container(config, resolve=True, throw_on_missing=False))


def count(module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def answer(value: object) -> None:
    """One line of JSON, which nothing else of this process writes among."""
    OUT.write(json.dumps(value) + "\n")
    OUT.flush()


if __name__ == "__main__":
    OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    main(json.loads(sys.argv[1]))
