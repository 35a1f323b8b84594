"""What tests in several folders need."""

import hashlib
import importlib.util
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from envs.simulation import MujocoEnvironment

LIBERO_ARCHIVE = Path(__file__).resolve().parents[2] / "shared" / "libero" / "assets.tar.xz"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Fail a test that starts a simulator without the marker `simulator`; `make unit` leaves out
    those that have it.

    In this process no simulation can then be made and no environment reset or stepped, fixtures
    included. Processes that the test starts inherit a MUJOCO_GL with which mujoco cannot be
    imported.
    """
    with pytest.MonkeyPatch.context() as patch:
        if item.get_closest_marker("simulator") is None:
            if "mujoco" in sys.modules:
                patch.setattr(sys.modules["mujoco"], "MjData", refuse_simulator)
            for method in ("reset", "step"):
                patch.setattr(MujocoEnvironment, method, refuse_simulator)
            patch.setenv("MUJOCO_GL", "none: the test lacks pytest.mark.simulator")
        return (yield)


def refuse_simulator(*arguments, **options):
    pytest.fail(
        "this test starts a simulator: mark it with @pytest.mark.simulator, "
        "or its file with pytestmark = pytest.mark.simulator"
    )


@pytest.fixture(scope="session")
def libero_assets(request, tmp_path_factory):
    """The folder of LIBERO's meshes and textures, which LIBERO_CONFIG_PATH leads to meanwhile.

    Without the archive beside the repository the test is skipped: the assets are not in a package,
    and tests download nothing.
    """
    if not LIBERO_ARCHIVE.exists():
        pytest.skip("../shared/libero/assets.tar.xz is not here")
    spec = importlib.util.find_spec("libero")
    if spec is None:
        pytest.fail("hf-libero is not installed: pip install '.[libero]'")
    assets = unpacked(LIBERO_ARCHIVE, request.config.cache.mkdir("libero"))
    package = Path(spec.submodule_search_locations[0]) / "libero"
    config = tmp_path_factory.mktemp("libero")
    paths = {
        "assets": assets,
        "bddl_files": package / "bddl_files",
        "benchmark_root": package,
        "datasets": config / "datasets",
        "init_states": package / "init_files",
    }
    text = json.dumps({name: str(path) for name, path in paths.items()})
    (config / "config.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBERO_CONFIG_PATH", str(config))
        yield assets


def unpacked(archive: Path, folder: Path) -> Path:
    """The archive's content in a subfolder named by its checksum, so that it is unpacked once.

    Processes that start together may each unpack it; the first to finish gives the folder its name,
    and nobody sees half of one.
    """
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    target = folder / digest[:12]
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with tarfile.open(archive) as packed:
                packed.extractall(f"{scratch}/content", filter="data")
            try:
                os.rename(f"{scratch}/content", target)
            except OSError:
                if not target.exists():
                    raise
    return target
