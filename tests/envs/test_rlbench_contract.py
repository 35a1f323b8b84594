"""Whether RLBench has what our adapter calls, by its real source, which is read and never imported.

RLBENCH_SOURCE names a folder with checkouts of stepjam/RLBench and stepjam/PyRep. Without it, the
tests of the contract are skipped, and say so.
"""

import ast
import os
from pathlib import Path

import pytest

from envs import rlbench, rlbench_demonstrations, rlbench_package
from tests.envs.package_source import Packages

ADAPTER = ast.parse(Path(rlbench_package.__file__).read_text(encoding="utf-8"))

ACTION_MODES = "rlbench.action_modes"
CALLS = {
    # what: arguments by position, by name
    (f"{ACTION_MODES}.action_mode", "MoveArmThenGripper"): (
        0, ("arm_action_mode", "gripper_action_mode"),
    ),
    (f"{ACTION_MODES}.arm_action_modes", "JointPosition"): (0, ("absolute_mode",)),
    (f"{ACTION_MODES}.gripper_action_modes", "Discrete"): (0, ()),
    ("rlbench.environment", "Environment"): (0, ("action_mode", "obs_config", "headless")),
    ("rlbench.environment", "Environment.launch"): (0, ()),
    ("rlbench.environment", "Environment.shutdown"): (0, ()),
    ("rlbench.environment", "Environment.get_task"): (1, ()),
    ("rlbench.observation_config", "ObservationConfig"): (0, (
        "joint_velocities", "joint_positions", "joint_forces", "gripper_open", "gripper_pose",
        "task_low_dim_state",
    )),
    ("rlbench.observation_config", "CameraConfig.set_all"): (1, ()),
    ("rlbench.task_environment", "TaskEnvironment.variation_count"): (0, ()),
    ("rlbench.task_environment", "TaskEnvironment.set_variation"): (1, ()),
    ("rlbench.task_environment", "TaskEnvironment.reset"): (0, ()),
    ("rlbench.task_environment", "TaskEnvironment.step"): (1, ()),
    ("rlbench.task_environment", "TaskEnvironment.get_demos"): (
        1, ("live_demos", "callable_each_step", "max_attempts"),
    ),
    ("rlbench.backend.task", "Task.success"): (0, ()),
    ("rlbench.backend.task", "Task.reward"): (0, ()),
    ("rlbench.backend.task", "Task.get_base"): (0, ()),
    ("rlbench.utils", "name_to_task_class"): (1, ()),
    ("pyrep.robots.arms.panda", "Panda.get_tip"): (0, ()),
    ("pyrep.robots.arms.panda", "Panda.get_name"): (0, ()),
    ("pyrep.objects.joint", "Joint.get_joint_position"): (0, ()),
    ("pyrep.objects.object", "Object.get_handle"): (0, ()),
    ("pyrep.objects.object", "Object.get_name"): (0, ()),
    ("pyrep.objects.object", "Object.get_parent"): (0, ()),
    ("pyrep.objects.object", "Object.get_position"): (0, ()),
    ("pyrep.objects.object", "Object.still_exists"): (0, ()),
    ("pyrep.pyrep", "PyRep.get_objects_in_tree"): (0, ("object_type", "exclude_base")),
}  # fmt: skip
"""Every call that the adapter makes of the two packages."""
ATTRIBUTES = {
    ("rlbench.observation_config", "CameraConfig"): {"rgb", "mask", "image_size", "render_mode"},
    ("rlbench.task_environment", "TaskEnvironment"): {"_task"},
    ("rlbench.backend.task", "Task"): {"pyrep", "robot"},
    ("rlbench.backend.robot", "Robot"): {"arm", "gripper"},
    ("rlbench.tasks.push_button", "PushButton"): {"target_topPlate", "joint"},
    ("pyrep.const", "ObjectType"): {"SHAPE"},
}
"""Every attribute that it reads or sets."""
NAMED_AT_RUN_TIME = {
    ("rlbench.observation_config", "ObservationConfig"): {
        f"{name}_camera" for name in rlbench_package.CAMERAS
    },
    ("rlbench.backend.observation", "Observation"): {
        *(f"{name}_{kind}" for name in rlbench_package.CAMERAS for kind in ("rgb", "mask")),
        "joint_positions", "gripper_open", "gripper_pose", "misc",
    },
    ("rlbench.backend.task", "Task"): set(rlbench_package.NOT_OWN),
    ("pyrep.const", "RenderMode"): set(rlbench_package.RENDERING.values()),
    ("rlbench.demo", "Demo"): {"__len__", "__getitem__"},
}  # fmt: skip
"""Those whose names are put together, or that Python asks for, or that `envs/rlbench.py` reads."""
CLASSES = {
    ("pyrep.errors", "PyRepError"),
    ("pyrep.errors", "IKError"),
    ("pyrep.errors", "ConfigurationPathError"),
    ("pyrep.objects", "Shape"),
    ("rlbench.backend.exceptions", "InvalidActionError"),
    ("rlbench.backend.exceptions", "TaskEnvironmentError"),
    ("rlbench.utils", "InvalidTaskName"),
    ("pyrep.const", "RenderMode"),
}
"""Classes that it names without calling them."""


@pytest.fixture(scope="module")
def packages():
    folder = os.environ.get("RLBENCH_SOURCE")
    if not folder:
        pytest.skip(
            "the adapter was not compared with RLBench's source: set RLBENCH_SOURCE to a folder"
            " with checkouts of stepjam/RLBench and stepjam/PyRep"
        )
    return Packages(Path(folder), ("rlbench", "pyrep"))


def calls(tree: ast.AST) -> set[tuple[str, int, tuple[str, ...]]]:
    """Calls of attributes in a file: name, arguments by position, names of the others."""
    return {
        (node.func.attr, len(node.args), tuple(str(one.arg) for one in node.keywords))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }


def foreign_attributes(tree: ast.Module) -> set[str]:
    """Attributes in a file that neither it nor Python, NumPy or our own modules define."""
    ours = {"self", "np", "os", "pathlib", "importlib", "atexit", "settings"}
    defined = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner.partition(".")[0] in ours and not owner.startswith("self._"):
                continue
            found.add(node.attr)
    builtin = set(dir(str) + dir(dict) + dir(list))
    return found - builtin - (defined - {name.rpartition(".")[2] for _, name in CALLS})


def promised() -> set[str]:
    """Names that the tables of this file have."""
    names = {name.rpartition(".")[2] for _, name in CALLS} | {name for _, name in CLASSES}
    names |= {name for _, name in ATTRIBUTES}
    return names.union(*ATTRIBUTES.values())


def test_the_tables_have_all_that_the_adapter_uses():
    standard = {"util", "submodule_search_locations", "environ", "exists", "Path"}
    assert foreign_attributes(ADAPTER) - standard - promised() == set()


def test_the_adapter_makes_all_calls_of_the_tables_and_no_others_of_those_names():
    made = calls(ADAPTER)
    expected = {(name.rpartition(".")[2], *how) for (_, name), how in CALLS.items()}
    assert expected - made == set()
    names = {name for name, *_ in expected}
    assert {one for one in made if one[0] in names} - expected == set()


@pytest.mark.parametrize(("module", "name"), CALLS, ids=lambda part: part)
def test_what_is_called_takes_these_arguments(packages, module, name):
    positional, keywords = CALLS[module, name]
    owner, _, method = name.partition(".")
    found = packages.find(module, owner)
    assert found.signature(method or None).fault(positional, keywords) is None
    if name == "PyRep.get_objects_in_tree":  # which hands its arguments on
        inner = packages.find("pyrep.objects.object", "Object")
        assert inner.signature("_get_objects_in_tree").fault(1, keywords) is None


@pytest.mark.parametrize(
    ("module", "name", "attributes"),
    [(*key, names) for table in (ATTRIBUTES, NAMED_AT_RUN_TIME) for key, names in table.items()],
)
def test_what_is_read_or_set_is_there(packages, module, name, attributes):
    assert attributes - packages.find(module, name).attributes() == set()


@pytest.mark.parametrize(("module", "name"), sorted(CLASSES))
def test_what_is_named_is_a_class(packages, module, name):
    assert isinstance(packages.find(module, name).node, ast.ClassDef)


def returned(method: ast.FunctionDef) -> set[int]:
    """How many values a function returns, by its return statements."""
    values = [node.value for node in ast.walk(method) if isinstance(node, ast.Return)]
    return {len(value.elts) if isinstance(value, ast.Tuple) else 1 for value in values}


@pytest.mark.parametrize(
    ("module", "name", "method", "count"),
    [
        ("rlbench.task_environment", "TaskEnvironment", "reset", 2),
        ("rlbench.task_environment", "TaskEnvironment", "step", 3),
        ("rlbench.backend.task", "Task", "success", 2),
    ],
)
def test_what_is_taken_apart_has_so_many_values(packages, module, name, method, count):
    assert returned(packages.find(module, name).method(method)) == {count}


def constants(node: ast.AST) -> set:
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant)}


def test_what_the_planner_commanded_is_in_each_observation_of_a_demonstration(packages):
    scene = packages.find("rlbench.backend.scene", "Scene")
    assert rlbench_demonstrations.TARGET in constants(scene.method("_get_misc"))
    assert "_joint_position_action" in scene.attributes()


def test_the_gripper_opens_above_what_we_say(packages):
    discrete = packages.find(f"{ACTION_MODES}.gripper_action_modes", "Discrete")
    assert rlbench.OPEN_ABOVE in constants(discrete.method("action"))


def test_displacements_are_added_to_where_the_joints_are(packages):
    module = packages.find(f"{ACTION_MODES}.arm_action_modes", "JointPosition")
    source = ast.unparse(module.method("action_pre_step"))
    assert "get_joint_positions()) + action" in source


def test_the_tasks_are_the_packages(packages):
    files = (packages.folders["rlbench"] / "tasks").glob("*.py")
    assert sorted(rlbench.TASKS) == sorted(file.stem for file in files if file.stem != "__init__")


def test_the_tasks_with_a_shaped_reward_are_the_packages(packages):
    rewarded = set()
    for name in rlbench.TASKS:
        classes = [n for n in packages.tree(f"rlbench.tasks.{name}").body
                   if isinstance(n, ast.ClassDef)]  # fmt: skip
        if any(isinstance(n, ast.FunctionDef) and n.name == "reward" for c in classes
               for n in c.body):  # fmt: skip
            rewarded.add(name)
    assert rewarded == set(rlbench_package.SHAPED)


@pytest.mark.parametrize("task", rlbench.PARTS)
def test_named_parts_are_shapes_of_the_task(packages, task):
    assert set(rlbench.PARTS[task]) <= constants(packages.tree(f"rlbench.tasks.{task}"))


def test_the_five_cameras_are_all(packages):
    config = packages.find("rlbench.observation_config", "ObservationConfig")
    cameras = {name for name in config.attributes() if name.endswith("_camera")}
    assert cameras == {f"{name}_camera" for name in rlbench_package.CAMERAS}


# ---------------------------------------------------------------- the check itself can fail

SOURCE = """
from thing.other import Elsewhere
class Base:
    def inherited(self, one, *, two=2): self.kept = one
class Thing(Base):
    FIXED = 3
    def __init__(self, first, second=0): self.given: int = first
    def free(self, *arguments, **others): return 1, 2
def function(value): pass
"""


@pytest.fixture
def made_up(tmp_path):
    folder = tmp_path / "Checkout" / "thing"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "parts.py").write_text(SOURCE)
    (folder / "other.py").write_text("class Elsewhere:\n    def act(self): pass\n")
    return Packages(tmp_path, ("thing",))


def test_signatures_of_a_made_up_package(made_up):
    thing = made_up.find("thing.parts", "Thing")
    assert thing.attributes() == {"FIXED", "given", "kept", "inherited", "free", "__init__"}
    assert thing.signature().fault(1, ("second",)) is None
    assert thing.signature().fault(0, ("second",)) == "needs the argument first"
    assert thing.signature().fault(3, ()) == "takes 2 arguments, not 3"
    assert thing.signature("inherited").fault(1, ("three",)) == "knows no argument three"
    assert thing.signature("inherited").fault(1, ("two",)) is None
    assert thing.signature("free").fault(7, ("whatever",)) is None
    assert made_up.find("thing.parts", "function").signature().fault(1, ()) is None
    assert made_up.find("thing.parts", "Elsewhere").signature("act").fault(0, ()) is None
    assert returned(thing.method("free")) == {2}


def test_what_a_made_up_package_lacks_is_seen(made_up, tmp_path):
    with pytest.raises(KeyError, match="no method gone"):
        made_up.find("thing.parts", "Thing").signature("gone")
    with pytest.raises(KeyError, match="defines no Gone"):
        made_up.find("thing.parts", "Gone")
    with pytest.raises(FileNotFoundError, match="no package absent"):
        Packages(tmp_path, ("absent",))


def test_an_undeclared_call_of_the_adapter_is_seen():
    tree = ast.parse("self._task.explode()\nself._environment.step(1, now=True)\nnp.zeros(3)")
    assert "explode" in foreign_attributes(tree)
    assert ("step", 1, ("now",)) in calls(tree)
    assert "zeros" not in foreign_attributes(tree)
