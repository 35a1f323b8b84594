"""The tables of results/benchmarks/benchmark.py."""

from __future__ import annotations

from typing import Any

from results.benchmarks.public_code import public_table


def markdown(result: dict[str, Any]) -> str:
    """The tables."""
    options = result["options"]
    modes = options["compare"]
    times = result["parts"]["milliseconds"]
    arithmetic = result["arithmetic"]
    operations = arithmetic["operations_per_update"]
    lines = [
        f"# Benchmark: {options['task']}, preset {options['preset']}, {result['device']}",
        "",
        f"`{result['command']}` at {result['commit']}",
        "",
        f"Hardware: {result['hardware']}. Versions: "
        + ", ".join(f"{name} {v}" for name, v in result["versions"].items())
        + ".",
        "",
        "Medians of milliseconds over calls taken in turns, quartiles in brackets; an update of "
        "which the autoencoder's part is due every other time is a mean over whole periods.",
        "",
        "| part | " + " | ".join(modes) + " | "
        + " | ".join(f"{modes[0]} / {mode}" for mode in modes[1:]) + " |",
        "|---" * (2 * len(modes)) + "|",
    ]  # fmt: skip
    for name in times[modes[0]]:
        kind = "mean" if name == "whole update" else "median"
        cells = [
            f"{times[m][name][kind]:.1f} ({times[m][name]['low']:.1f} to "
            f"{times[m][name]['high']:.1f})"
            for m in modes
        ]
        ratios = [f"{times[modes[0]][name][kind] / times[m][name][kind]:.2f}" for m in modes[1:]]
        lines.append("| " + " | ".join([name, *cells, *ratios]) + " |")
    first = ", ".join(
        f"{mode} {seconds:.0f} s"
        for mode, seconds in result["parts"]["first_calls_seconds"].items()
    )
    lines += ["", f"Until every part has run twice, compiling included: {first}.", ""]
    rates = arithmetic["matrix_product_per_second"]
    floor = 1e3 * operations / max(rates.values())  # ms
    lines += [
        f"An update is {operations / 1e9:.1f} G floating-point operations in matrix products and "
        "convolutions (the autoencoder's share averaged). A large matrix product here does "
        + ", ".join(f"{rate / 1e9:,.0f} G a second in {name}" for name, rate in rates.items())
        + ": at the better rate "
        f"{floor:.0f} ms an update. Share of that rate: "
        + ", ".join(f"{m} {100 * floor / times[m]['whole update']['mean']:.0f} %" for m in modes)
        + ".",
        "",
    ]
    sources = result["sources"]
    lines += ["| frames of an update from | ms (median) | disk / this |", "|---|---|---|"]
    for name, spread in sources.items():
        ratio = sources["disk"]["median"] / spread["median"]
        lines.append(f"| {name} | {spread['median']:.1f} | {ratio:.2f} |")
    lines.append("")
    if "public" in result:
        lines += [*public_table(result["public"]), ""]
    if "loops" in result:
        lines += [*_loops(result), ""]
    names = next(iter(result["environments"].values()))
    lines += ["| environment (ms) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for task, values in result["environments"].items():
        cells = [f"{values[name]:.2f}" for name in names]
        lines.append("| " + " | ".join([task, *cells]) + " |")
    lines += _pictures(result["pictures"])
    lines += [
        "",
        "| replay, frames | on disk | windows (ms) | single frames (ms) | own memory | growth |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["replay"]:
        lines.append(
            f"| {row['frames']:,} | {row['disk_bytes'] / 2**30:.2f} GiB | "
            f"{row['windows_milliseconds']:.2f} | {row['frames_milliseconds']:.2f} | "
            f"{row['own_memory']:,.0f} MiB | {row['own_memory_growth']:.1f} MiB |"
        )
    if "loading" in result:
        lines += _loading(result["loading"])
    return "\n".join(lines) + "\n"


PROJECTED = 500_000
"""Environment steps that a projection is for: the paper's budget of an easy Meta-World task."""


def _loops(result: dict[str, Any]) -> list[str]:
    """The whole loop, and where its time goes."""
    loops = result["loops"]
    shares = list(next(iter(loops.values()))["share"])
    lines = [
        f"The loop, one mode after the other. {PROJECTED:,} environment steps are projected from"
        " it, without pretraining and evaluations.",
        "",
        f"| the loop | environment steps a second | updates a second | an update and its agent"
        f" steps (ms) | {PROJECTED:,} steps (hours) | " + " | ".join(shares) + " |",
        "|---" * (5 + len(shares)) + "|",
    ]
    for mode, loop in loops.items():
        steps, updates = loop["environment_steps_per_second"], loop["updates_per_second"]
        cells = [
            f"{steps:.1f}", f"{updates:.2f}", f"{1e3 / updates:.1f}",
            f"{PROJECTED / steps / 3600:.2f}",
            *(f"{100 * share:.1f} %" for share in loop["share"].values()),
        ]  # fmt: skip
        lines.append("| " + " | ".join([mode, *cells]) + " |")
    last = list(loops.values())[-1]
    return [
        *lines,
        "",
        f"From start to the first step {last['start_up_seconds']:.1f} s; `run.py --help`"
        f" {result['help_seconds']:.2f} s. Memory of the process in the end: "
        + ", ".join(f"{name} {value:,.0f} MiB" for name, value in last["memory"].items())
        + ".",
    ]


def _pictures(found: dict[str, dict[str, float]]) -> list[str]:
    """Where the time of a picture goes."""
    names = list(next(iter(found.values())))
    lines = [
        "",
        "Pictures in parts, milliseconds for all cameras: `full, no shadows` is without"
        " reflections and haze too; of `fast`, `poses` is what is where, `geoms` drawing them,"
        " `empty` a picture without any, `reading` the buffer. Faces: of the meshes in the scene.",
        "",
        "| pictures | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for task, values in found.items():
        cells = [f"{v:,.0f}" if n.startswith("faces") else f"{v:.2f}" for n, v in values.items()]
        lines.append("| " + " | ".join([task, *cells]) + " |")
    return lines


def _loading(found: dict[str, Any]) -> list[str]:
    """How fast windows of demonstrations are read."""
    plain = found["windows_per_second"]["plain h5py"]
    lines = [
        "",
        f"Windows of {found['episodes']} demonstrations ({found['frames']} frames a window, "
        f"{found['size']} pixels; {found['bytes'] / 2**20:.1f} MiB of files), read in turns:",
        "",
        "| reader | windows a second | over plain h5py |",
        "|---|---|---|",
    ]
    for name, rate in found["windows_per_second"].items():
        lines.append(f"| {name} | {rate:,.0f} | {rate / plain:.2f} |")
    return lines
