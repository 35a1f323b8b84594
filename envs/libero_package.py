"""LIBERO's package: imported without its questions and downloads, its assets found."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import runpy
from collections.abc import Sequence
from xml.etree import ElementTree

from envs.simulation import import_suite
from errors import UserError

REQUIREMENT = "hf-libero==0.1.4 robosuite==1.4.0"
SHOWN = 200
"""Characters of a model's own words in a message."""
ASSETS = ("scenes", "articulated_objects", "stable_scanned_objects", "stable_hope_objects")

ELEMENTS = (
    "mujoco", "actuator", "asset", "body", "camera", "compiler", "connect", "contact", "default",
    "equality", "exclude", "fixed", "force", "freejoint", "general", "geom", "inertial", "joint",
    "light", "map", "material", "mesh", "motor", "option", "pair", "position", "sensor", "site",
    "size", "tendon", "texture", "torque", "touch", "velocity", "visual", "weld", "worldbody",
)  # fmt: skip
"""What a recorded model is made of. Others read further models, load code, or make many of one."""
NAMING_FILES = ("mesh", "texture")
"""Elements whose attributes may name files."""
FOLDERS = ("meshdir", "texturedir", "assetdir", "strippath")
"""Attributes that say what relative names of files are relative to; those here are absolute."""
SIZES = ("njmax", "nconmax")
"""Sizes that a model may ask for: MuJoCo makes room for whatever the others say."""
MOST_ELEMENTS = 20_000
"""Of a model; LIBERO's have some 600."""
LARGEST_TEXTURE = 4096
"""Pixels a side of a texture that a model asks for; LIBERO's have 512."""


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
            written.write_text(json.dumps(paths, indent=2), encoding="utf-8")  # JSON is YAML
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
        configured = yaml.safe_load(config_file.read_text(encoding="utf-8"))["assets"]
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
    """A recorded model (MJCF) whose meshes and textures are those of this machine.

    It may be anybody's: it names files in the folders of LIBERO's and robosuite's assets only, and
    is written anew, so that MuJoCo reads what was looked at here.

    Raises:
        UserError: it names another file, is made of other elements than LIBERO's, or is no XML.
    """
    import libero.libero
    import robosuite

    package = pathlib.Path(robosuite.__file__).parent
    assets = pathlib.Path(libero.libero.get_assets_path())
    places = [(assets, assets), (package, package / "models" / "assets")]

    tree = parsed_model(model_file)
    for element in tree.iter():
        _check(element)
        if element.tag == "compiler":
            for name in FOLDERS:
                element.attrib.pop(name, None)
        for name, path in element.attrib.items():
            if name.startswith("file"):
                element.set(name, str(_local(path, places)))
    return ElementTree.tostring(tree, encoding="unicode")


def _check(element: ElementTree.Element) -> None:
    """Refuse what no recorded model of LIBERO's has."""
    refused = [name for name in element.attrib if name.startswith("file")]
    if element.tag in NAMING_FILES:
        refused = []
    if element.tag == "size":
        refused += [name for name in element.attrib if name not in SIZES]
    if element.tag == "texture":
        refused += [name for name in ("width", "height") if _large(element.get(name, "0"))]
    if element.tag not in ELEMENTS or refused:
        what = " ".join([str(element.tag), *refused[:1]])
        raise UserError(f"the recorded model has {what[:SHOWN]!r}, which LIBERO's models have not")


def _large(pixels: str) -> bool:
    digits = pixels.strip()
    return not digits.isdecimal() or len(digits) > 9 or int(digits) > LARGEST_TEXTURE


def parsed_model(model_file: str) -> ElementTree.Element:
    """A recorded model as a tree.

    Raises:
        UserError: it is no XML, declares entities (which can grow without end), or is nested too
            deeply to be a model.
    """
    if "<!DOCTYPE" in model_file or "<!ENTITY" in model_file:
        raise UserError("the recorded model declares entities, which are not read")
    try:
        tree = ElementTree.fromstring(model_file)
        ElementTree.tostring(tree)  # recursive, as reading it again is
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise UserError(f"the recorded model is no XML of a model ({error})") from error
    if sum(1 for _ in tree.iter()) > MOST_ELEMENTS:
        raise UserError(f"the recorded model has more than {MOST_ELEMENTS:,} elements")
    return tree


def _local(path: str, places: Sequence[tuple[pathlib.Path, pathlib.Path]]) -> pathlib.Path:
    """The file of this machine that a recorded path means: the one that has the most of its end.

    Args:
        path: where the file was on the machine that recorded.
        places: folders that the end of such a path may lie in, each with the one below which files
            are read.

    Raises:
        UserError: there is none.
    """
    parts = [] if "\0" in path else path.replace("\\", "/").split("/")
    for start in range(len(parts)):
        for folder, allowed in places:
            here = (folder / "/".join(parts[start:])).resolve()
            if here.is_relative_to(allowed.resolve()) and here.is_file():
                return here
    raise UserError(
        f"the recorded model names the file {path[:SHOWN]}, which is not one of LIBERO's or"
        " robosuite's assets here"
    )


@contextlib.contextmanager
def quiet():
    """robosuite and libero print notes to developers."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
