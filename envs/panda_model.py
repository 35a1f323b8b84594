"""The Franka Panda arm on a table, in MuJoCo, for scenes of our own.

The arm's bodies, joints and meshes are those that robosuite packages; nothing of them is part of
this toolkit. They are read from the installed package, which is not imported. The arm is drawn with
the meshes that collide, which are coarse enough for software rendering.

World: metres, the table's top at z = 0, the arm's base at the origin, x away from it.
"""

import copy
import functools
import importlib.util
import pathlib
from xml.etree import ElementTree

from envs.simulation import import_suite
from errors import UserError

REQUIREMENT = "'robosuite==1.4.0'"
ARM_JOINTS = tuple(f"joint{number}" for number in range(1, 8))
FINGER_JOINTS = "finger_joint1", "finger_joint2"
TIP = "grip_site"
"""Site between the fingertips, where the gripper grasps."""
START = (0.0, -0.15, 0.0, -2.35, 0.0, 2.2, 0.7854)
"""Joint angles at the start of an episode, radians: the hand over the table, fingers down."""
OPENED = 0.04
"""Metres of an opened finger from the middle; the other one is as far on the other side."""
ARM_COLOURS = (
    "0.93 0.93 0.95 1",
    "0.76 0.78 0.82 1",
)  # links by turns, so that they are told apart
HAND_COLOUR, FINGER_COLOUR = "0.30 0.31 0.34 1", "0.16 0.17 0.19 1"
STIFFNESS = (12000, 12000, 9000, 9000, 3000, 3000, 2000)  # newton metres a radian
ROBOT_BITS = {"contype": "2", "conaffinity": "1"}
"""The arm touches the scene, not itself."""
TIMESTEP = 0.004  # seconds

SCENE = """
<mujoco model="panda">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="0.32 0.32 0.32" diffuse="0.2 0.2 0.2" specular="0 0 0"/>
    <map znear="0.02" zfar="20"/>
    <quality shadowsize="2048"/>
  </visual>
  <statistic center="0.4 0 0.1" extent="1.2"/>
  <default>
    <geom contype="1" conaffinity="3" group="1" friction="1 0.005 0.0001" condim="4"/>
    <default class="seen">
      <geom contype="0" conaffinity="0"/>
    </default>
  </default>
  <asset>
    <texture name="sky" type="skybox" builtin="gradient" rgb1="0.62 0.70 0.78" rgb2="0.30 0.36 0.44"
      width="64" height="64"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="0.34 0.36 0.38" rgb2="0.29 0.31 0.33"
      width="64" height="64"/>
    <texture name="table" type="2d" builtin="flat" rgb1="0.74 0.67 0.58" width="64" height="64"/>
    <material name="floor" texture="floor" texrepeat="6 6" reflectance="0" specular="0"/>
    <material name="table" texture="table" specular="0.1" shininess="0.1"/>
  </asset>
  <worldbody>
    <light pos="0.9 -0.6 1.8" dir="-0.35 0.4 -1" directional="true" diffuse="0.4 0.4 0.4"
      specular="0.1 0.1 0.1" castshadow="true"/>
    <camera name="front" pos="{front}" xyaxes="{front_axes}" fovy="{front_fovy}"/>
    <geom name="floor" type="plane" size="3 3 0.1" pos="0 0 -0.7" material="floor"/>
    <geom name="table" type="box" size="0.5 0.6 0.02" pos="0.3 0 -0.02" material="table"/>
    <geom name="table_leg" type="box" size="0.3 0.4 0.33" pos="0.3 0 -0.37" material="table"/>
  </worldbody>
  <actuator>{servos}</actuator>
</mujoco>
"""
FRONT = {"front": "1.18 0 0.88", "front_axes": "0 1 0 -0.70 0 0.72", "front_fovy": "46"}


def build(objects: str):
    """The compiled model of a scene; compiled once in a process and copied.

    Args:
        objects: MJCF of bodies that stand on the table, in the defaults of ``SCENE``.

    Raises:
        UserError: robosuite is not installed, or nothing can be drawn here.
    """
    return copy.copy(_compiled(objects))


@functools.cache
def _compiled(objects: str):
    mujoco = import_suite("mujoco", "mujoco")
    servos = "".join(
        f'<position name="{joint}" joint="{joint}" kp="{stiffness}" dampratio="1"/>'
        for joint, stiffness in zip(ARM_JOINTS, STIFFNESS, strict=True)
    )
    for joint in FINGER_JOINTS:
        servos += (
            f'<position name="{joint}" joint="{joint}" kp="2000" kv="60" forcerange="-30 30"/>'
        )
    scene = ElementTree.fromstring(SCENE.format(timestep=TIMESTEP, servos=servos, **FRONT))
    world, assets = scene.find("worldbody"), scene.find("asset")
    assert world is not None
    assert assets is not None
    _add_arm(world, assets)
    world.extend(ElementTree.fromstring(f"<scene>{objects}</scene>"))
    return mujoco.MjModel.from_xml_string(ElementTree.tostring(scene, encoding="unicode"))


def _add_arm(world: ElementTree.Element, assets: ElementTree.Element) -> None:
    """Put robosuite's arm with its hand into a scene, without what a scene brings itself."""
    folder = _assets()
    arm = ElementTree.parse(folder / "robots/panda/robot.xml").getroot()
    hand = ElementTree.parse(folder / "grippers/panda_gripper.xml").getroot()
    wrist = _only(arm, ".//body[@name='right_hand']")
    wrist.append(_only(hand, "worldbody/body"))
    base = _only(arm, "worldbody/body")
    used = set()
    for body in base.iter("body"):
        body.set("gravcomp", "1")
        for part in list(body):
            name = part.get("name")
            drawn_only = part.get("contype") == part.get("conaffinity") == "0"
            pad = name is not None and name.endswith("pad_collision")
            if (
                (drawn_only and "finger" not in str(name))
                or (part.tag == "site" and name != TIP)
                or (part.tag == "camera" and name != "eye_in_hand")
            ):
                body.remove(part)
            elif part.tag == "geom":
                _dress(part, drawn_only, pad)
                used.add(part.get("mesh"))
            elif part.tag == "camera":
                # Beside the palm, tilted to the fingertips.
                part.attrib.update(name="wrist", pos="0.07 0 0", fovy="75")
            elif part.tag == "site":
                part.attrib.update(rgba="0 0 0 0", group="4", size="0.005")
            elif part.tag == "joint" and name in FINGER_JOINTS:
                part.attrib.update(damping="2", armature="0.1", frictionloss="0")
            elif part.tag == "joint":
                part.attrib.update(damping="1", armature="0.1")
    # The last link does not collide; here it is drawn as the others are.
    link = _only(base, ".//body[@name='link7']")
    link.append(
        ElementTree.Element("geom", type="mesh", mesh="link7", contype="0", conaffinity="0")
    )
    _dress(link[-1], True, False)
    used.add("link7")
    world.append(base)
    for source, root in ((arm, folder / "robots/panda"), (hand, folder / "grippers")):
        for mesh in source.iter("mesh"):
            if mesh.get("name") in used:
                mesh.set("file", str(root / str(mesh.get("file"))))
                assets.append(mesh)


def _dress(geom: ElementTree.Element, drawn_only: bool, pad: bool) -> None:
    """How one of the arm's geoms collides, and what it looks like."""
    geom.attrib.pop("material", None)
    name, mesh = str(geom.get("name")), str(geom.get("mesh"))
    # What the finger pads touch is not drawn; the fingers are, and do not collide.
    geom.set("group", "3" if pad else "1")
    geom.attrib.update({"contype": "0", "conaffinity": "0"} if drawn_only else ROBOT_BITS)
    if "finger" in name:
        geom.set("rgba", FINGER_COLOUR)
        if not drawn_only and not pad:
            geom.set("group", "3")
        if pad:
            geom.attrib.update(friction="2 0.05 0.0001", condim="4", solref="0.01 1")
    elif mesh.startswith("link"):
        geom.set("rgba", ARM_COLOURS[int(mesh[4]) % len(ARM_COLOURS)])
    else:
        geom.set("rgba", HAND_COLOUR)


def _only(root: ElementTree.Element, path: str) -> ElementTree.Element:
    """The element at a path, which is there in the release that is required.

    Raises:
        UserError: it is not.
    """
    found = root.find(path)
    if found is None:
        raise UserError(
            f"the Panda arm of the installed robosuite is another; install {REQUIREMENT}"
        )
    return found


def _assets() -> pathlib.Path:
    """The folder of robosuite's models.

    Raises:
        UserError: it is not installed.
    """
    found = importlib.util.find_spec("robosuite")
    if found is None or not found.submodule_search_locations:
        raise UserError(
            "the panda tasks need the arm's model, which robosuite brings; install it with"
            " `pip install '.[panda]'`, or by itself with `pip install robosuite==1.4.0`"
        )
    return pathlib.Path(found.submodule_search_locations[0]) / "models" / "assets"
