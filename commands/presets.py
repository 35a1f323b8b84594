"""presets: how the presets of train and of imitate differ, as Markdown tables."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from atomic_file import atomic_file
from commands.command_line import parse
from regular_file import read_text

METAWORLD_TASK, DMC_TASK = "metaworld/window-close", "dmc/walker-walk"
EPISODIC_TASK = "rlbench/reach_target"
"""Stand for their suites, on which presets depend."""
NOT_SET_BY_PRESETS = ("task", "data")


@dataclass(frozen=True)
class Presets:
    """Print every option in which presets of one command differ, as Markdown tables."""

    write: pathlib.Path | None = None
    """Put the tables into this Markdown file instead, between its comments that name them."""


def presets(arguments: Sequence[str]) -> None:
    """`run.py presets`: how the presets differ. Raises UserError."""
    options = parse(Presets, arguments, "run.py presets")
    if options.write is None:
        print("\n\n".join(f"{name}:\n\n{table}" for name, table in tables().items()))
        return
    text = filled(read_text(options.write))
    with atomic_file(options.write) as file:
        file.write(text.encode())
    print(options.write)


def tables() -> dict[str, str]:
    """A Markdown table each: ``train`` (on Meta-World), ``dmc`` (what differs on DeepMind Control),
    ``episodic`` (what differs where episodes can terminate), ``dreamer`` (on Meta-World),
    ``imitate`` (Mask World Model) and ``mask2act``."""
    from agents import imitation_presets
    from agents import presets as online_presets

    metaworld = {n: online_presets.preset(n, METAWORLD_TASK) for n in online_presets.PRESETS}
    dmc = {n: online_presets.preset(n, DMC_TASK) for n in online_presets.PRESETS}
    episodic = {n: online_presets.preset(n, EPISODIC_TASK) for n in online_presets.PRESETS}
    dreamer = {
        f"`{n}`": online_presets.preset(n, METAWORLD_TASK, "dreamer")
        for n in online_presets.PRESETS
    }
    imitation, mask2act = (
        {f"`{n}`": imitation_presets.preset(n, method) for n in imitation_presets.PRESETS}
        for method in ("mask-world-model", "mask2act")
    )
    return {
        "train": table({f"`{n}`": config for n, config in metaworld.items()}),
        "dmc": beside(metaworld, "DMC", dmc),
        "episodic": beside(metaworld, "RLBench", episodic),
        "dreamer": table(dreamer),
        "imitate": table(imitation),
        "mask2act": table(mask2act),
    }


def beside(metaworld: Mapping[str, Any], title: str, others: Mapping[str, Any]) -> str:
    """Markdown: what presets set otherwise in another suite than on Meta-World.

    Args:
        metaworld, others: configurations by the name of the preset.
        title: of the other suite.
    """
    configs = {
        f"`{name}`, {suite}": of[name]
        for name in metaworld
        for suite, of in (("Meta-World", metaworld), (title, others))
    }
    options = {o for name in others for o in differences([metaworld[name], others[name]])}
    return table(configs, options)


def filled(text: str) -> str:
    """Markdown whose tables between ``<!-- presets: NAME -->`` and ``<!-- end -->`` are new."""
    for name, lines in tables().items():
        place = rf"(<!-- presets: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(place, rf"\g<1>\n{lines}\n\n\g<2>", text, flags=re.DOTALL)
    return text


def table(configs: Mapping[str, Any], only: set[str] | None = None) -> str:
    """Markdown: a row for every option in which `configs` differ, or for those of `only`.

    Args:
        configs: configuration of the same class by the title of its column.
        only: dotted option names.
    """
    values = [values_of(config) for config in configs.values()]
    rows = differences(list(configs.values()))
    lines = [f"| option | {' | '.join(configs)} |", "|---" * (1 + len(configs)) + "|"]
    for option in rows:
        if only is None or option in only:
            cells = " | ".join(written(each[option]) for each in values)
            lines.append(f"| `--{option}` | {cells} |")
    return "\n".join(lines)


def differences(configs: Sequence[Any]) -> list[str]:
    """Dotted names of the options in which configurations differ, in the order of their fields."""
    values = [values_of(config) for config in configs]
    return [
        option
        for option in values[0]
        if option not in NOT_SET_BY_PRESETS and any(v[option] != values[0][option] for v in values)
    ]


def values_of(config: Any) -> dict[str, Any]:
    """The values of a configuration by option, ``{"agent.mask-ratio": 0.5}``."""
    from experiment.config_record import flat

    return {name.replace("_", "-"): value for name, value in flat(asdict(config)).items()}


def written(value: Any) -> str:
    """A value as it is given on the command line; yes and no for a flag."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return " ".join(map(written, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
