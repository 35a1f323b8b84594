"""export: what acts of a run, as a small folder to keep, share and upload."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from commands.command_line import parse
from commands.run_options import Trust
from errors import UserError


@dataclass(frozen=True)
class Export:
    """Write what acts of a run into a folder of its own: weights as safetensors, configuration, and
    a model card. `run.py evaluate`, `run.py serve` and `agents.load` take it as they take the run,
    and the Hugging Face hub takes it as a model."""

    logdir: str
    """Run folder."""
    out: str
    """Folder to make; one of an earlier export is replaced."""
    weights: Literal["float16", "float32"] = "float16"
    """Numbers of the weights' file. float16 has half the size; the card says how much it changes
    actions."""
    onnx: bool = False
    """Also write policy.onnx, the acting path as an ONNX graph (docs/acting.md)."""
    task: str | None = None
    """The task that the ONNX graph does, of an agent of imitate that was told several."""
    license: str = "mit"
    """Licence of the weights, by its name on the Hugging Face hub."""
    trust: Trust = ()
    """What the run's configuration may load from outside the toolkit, once for each."""


def export(arguments: Sequence[str]) -> None:
    """`run.py export`. Raises UserError."""
    options = parse(Export, arguments, "run.py export")
    if options.task is not None and not options.onnx:
        raise UserError("--task says what an --onnx graph does; a folder keeps all tasks")
    if not re.fullmatch(r"[\w.+-]+", options.license, re.ASCII):
        raise UserError(
            f"--license is {options.license!r:.60}; give its name on the Hugging Face hub, such as"
            " mit or cc-by-4.0"
        )

    from agents.exporting import export as write

    report = write(
        options.logdir,
        options.out,
        options.weights == "float16",
        options.onnx,
        options.license,
        options.task,
        options.trust,
    )
    print(
        f"{report.parameters:,} numbers that act, {report.size / 1e6:.1f} MB as {options.weights};"
        f" first actions differ by at most {report.difference:.2g} from the run's own"
    )
    if report.onnx is not None:
        shapes = ", ".join(f"{name} {shape}" for name, shape in report.onnx.inputs.items())
        print(f"ONNX: {shapes}; actions differ by at most {report.onnx.difference:.2g}")
    print(*report.files, sep="\n")
