"""LIBERO's package: imported without its questions and downloads, its assets found."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import runpy

from envs.simulation import import_suite
from errors import UserError

REQUIREMENT = "hf-libero==0.1.4 robosuite==1.4.0"
ASSETS = ("scenes", "articulated_objects", "stable_scanned_objects", "stable_hope_objects")


def import_libero():
    """The package ``libero.libero``, without the questions it asks and the downloads it starts.

    Raises:
        UserError: not installed, or its assets are nowhere.
    """
    config_folder = pathlib.Path(
        os.environ.get("LIBERO_CONFIG_PATH") or pathlib.Path.home() / ".libero"
    )
    config_file = config_folder / "config.yaml"
    if not config_file.exists():
        # With no such file, importing libero waits for an answer on standard input.
        spec = _find_libero()
        package = pathlib.Path(next(iter(spec.submodule_search_locations))) / "libero"
        paths = {
            "assets": str(package / "assets"),
            "bddl_files": str(package / "bddl_files"),
            "benchmark_root": str(package),
            "datasets": str(package.parent / "datasets"),
            "init_states": str(package / "init_files"),
        }
        try:
            config_folder.mkdir(parents=True, exist_ok=True)
            written = config_file.with_suffix(
                f".{os.getpid()}"
            )  # several workers may start at once
            written.write_text(json.dumps(paths, indent=2))  # JSON is YAML
            written.replace(config_file)
        except OSError as error:
            raise UserError(
                f"cannot write {config_file} ({error.strerror}); set LIBERO_CONFIG_PATH to a folder"
                " that can be written"
            ) from error
    with quiet():
        libero = import_suite("libero.libero", REQUIREMENT)
    libero._assets_path_cache = str(_find_assets(config_file, pathlib.Path(libero.__file__).parent))
    return libero


def _find_libero():
    try:
        spec = importlib.util.find_spec("libero")
    except (ImportError, ValueError):  # made unimportable
        spec = None
    if spec is None:
        raise UserError(
            f"libero is not installed; install the suite with `pip install {REQUIREMENT}`"
        )
    return spec


def _find_assets(config_file: pathlib.Path, package: pathlib.Path) -> pathlib.Path:
    """The folder of LIBERO's meshes and textures.

    Raises:
        UserError: there is none; says how to get it.
    """
    import yaml

    try:
        configured = yaml.safe_load(config_file.read_text())["assets"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{config_file} does not say where LIBERO's assets are ({error!r}); delete it, and it"
            " is written anew"
        ) from error
    downloaded = pathlib.Path.home() / ".cache" / "libero" / "assets"
    for folder in (pathlib.Path(configured), package / "assets", downloaded):
        if all((folder / part).is_dir() for part in ASSETS):
            return folder
    raise UserError(
        "LIBERO's meshes and textures are not here; download them with `python -c 'from"
        " libero.libero import get_assets_path; get_assets_path()'`, or name the folder that holds"
        f" them as assets: in {config_file}"
    )


def task_names(package: pathlib.Path) -> dict[str, list[str]]:
    """The tasks of each suite in the benchmark's order.

    The file alone: importing the package around it takes PyTorch, seconds in every worker process.
    """
    return runpy.run_path(str(package / "benchmark" / "libero_suite_task_map.py"))[
        "libero_task_map"
    ]


def with_local_assets(model_file: str) -> str:
    """A recorded model whose mesh and texture files are those of this machine."""
    import libero.libero
    import robosuite

    roots = {
        "robosuite": pathlib.Path(robosuite.__file__).parent,
        "assets": pathlib.Path(libero.libero.get_assets_path()),
    }

    def local(match: re.Match) -> str:
        path = match.group(1)
        for name in ("robosuite", "assets"):
            # the last folder of that name: robosuite/models/assets is robosuite's
            head, found, tail = path.rpartition(f"/{name}/")
            if found and (name == "assets" or (roots[name] / tail).exists()):
                return f'file="{roots[name] / tail}"'
        return match.group(0)

    return re.sub(r'file="([^"]*)"', local, model_file)


@contextlib.contextmanager
def quiet():
    """robosuite and libero print notes to developers."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
