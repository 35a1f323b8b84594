"""From a simulator's bodies to the class ids of every mask.

Two things decide a class: which body a geom or site belongs to, and what part that body plays in
the task (`mask_classes.py` lists the parts). Table, floor, sky and the retaining walls are
background.
"""

from collections.abc import Mapping, Sequence

import mujoco
import numpy as np

from mask_classes import BACKGROUND, FIXTURE, GOAL, HAND, OBJECT, OTHER, ROBOT, SECOND

# Meta-World: bodies of the base scene, and the obstacle of the *-wall tasks.
METAWORLD_SCENE = {"tablelink": BACKGROUND, "RetainingWall": BACKGROUND, "wall": OTHER}
# Bodies whose part the rule (moves: object, does not: fixture) does not tell, by their own name.
METAWORLD_PARTS = {
    "assembly": {"peg": GOAL},
    "basketball": {"basket_goal": GOAL},
    "bin-picking": {"bin_goal": GOAL},
    "box-close": {"boxbody": GOAL},
    "coffee-button": {"obj": SECOND},
    "coffee-pull": {"cmbutton": FIXTURE},
    "coffee-push": {"cmbutton": FIXTURE},
    "door-lock": {"door_link": FIXTURE, "lock_link": OBJECT},
    "door-unlock": {"door_link": FIXTURE, "lock_link": OBJECT},
    "hammer": {"nail_link": SECOND},
    "peg-insert-side": {"box": GOAL},
    "plate-slide": {"puck_goal": GOAL},
    "plate-slide-side": {"puck_goal": GOAL},
    "shelf-place": {"shelf": GOAL},
    "soccer": {"goal_whole": GOAL},
    "stick-pull": {"object": SECOND},
    "stick-push": {"object": SECOND},
}
METAWORLD_MARKERS = (
    "goal",
    "goal_lock",
    "goal_unlock",
    "goal_open",
    "goal_close",
    "goalPress",
    "goalPull",
    "pegTop",
    "coffee_goal",
    "mug_goal",
    "hole",
)
# Markers that stand in a task's file and mark another task's goal.
METAWORLD_IDLE_MARKERS = {
    "coffee-button": "mug_goal",
    "handle-press": "goalPull",
    "handle-press-side": "goalPull",
    "handle-pull": "goalPress",
    "handle-pull-side": "goalPress",
    "peg-unplug-side": "hole",
}

# DMC: bodies that are not the agent, by name; everything below them follows.
DMC_PARTS = {
    "ball": OBJECT,
    "spinner": OBJECT,
    "peg": OBJECT,
    "box0": OBJECT,
    "box1": SECOND,
    "box2": FIXTURE,
    "box3": OTHER,
    "target": GOAL,
    "target_ball": GOAL,
    "target_peg": GOAL,
    "slot": FIXTURE,
    "unnamed_model/": OBJECT,  # lift_large_box
    "pedestal/": GOAL,  # place_*: where the object is put
}
DMC_HANDS = {
    "manipulator": ("hand",),
    "stacker": ("hand",),
    "reacher": ("finger",),
}
GEOM, SITE, SKIN, TENDON = (
    int(kind)
    for kind in (
        mujoco.mjtObj.mjOBJ_GEOM,
        mujoco.mjtObj.mjOBJ_SITE,
        mujoco.mjtObj.mjOBJ_SKIN,
        mujoco.mjtObj.mjOBJ_TENDON,
    )
)


def metaworld_classes(task: str, model: mujoco.MjModel) -> dict[int, np.ndarray]:
    """Class ids of a Meta-World task's geoms and sites.

    The robot is everything under the body ``base``, its hand everything under ``right_hand`` (the
    electric gripper). Of the bodies the task adds, those that move are the object, those that do
    not the fixture, except as ``METAWORLD_PARTS`` says.

    Args:
        task: name without suite and version, ``window-close``.
        model: its model.

    Returns: uint8 arrays of class ids, (ngeom,) and (nsite,), under ``mjOBJ_GEOM``, ``mjOBJ_SITE``.
    """
    named = {"base": ROBOT, "right_hand": HAND, "mocap": ROBOT}
    named |= METAWORLD_SCENE | METAWORLD_PARTS.get(task, {})
    bodies = np.zeros(model.nbody, np.uint8)
    for body in range(1, model.nbody):
        parent = model.body_parentid[body]
        name = model.body(body).name
        if name in named:
            bodies[body] = named[name]
        elif parent != 0 and bodies[parent] != FIXTURE:
            bodies[body] = bodies[parent]
        elif parent == 0 and not name:
            bodies[body] = BACKGROUND  # the table of the tasks that have a hole in it
        else:
            bodies[body] = FIXTURE if model.body_weldid[body] == 0 else OBJECT
    sites = bodies[model.site_bodyid]
    for site in range(model.nsite):
        name = model.site(site).name
        if name in METAWORLD_MARKERS:
            sites[site] = OTHER if METAWORLD_IDLE_MARKERS.get(task) == name else GOAL
    return {GEOM: bodies[model.geom_bodyid], SITE: sites}


def dmc_classes(task: str, model: mujoco.MjModel) -> dict[int, np.ndarray]:
    """Class ids of a DeepMind Control task's geoms, sites, skins and tendons.

    The world's own geoms (floor, walls, rails) are background, one of its geoms or sites named
    ``target`` is the goal, bodies are the agent's unless ``DMC_PARTS`` says otherwise.

    Args:
        task: name without suite, ``walker-walk``.
        model: its model.

    Returns: uint8 arrays of class ids by MuJoCo object type and id.
    """
    hands = DMC_HANDS.get(task.split("-")[0], ())
    named = DMC_PARTS | dict.fromkeys(hands, HAND) | {"jaco_arm/jaco_hand/": HAND}
    if task.startswith("manipulator"):
        named["cup"] = FIXTURE  # ball_in_cup's is the agent itself
    bricks = _top_bodies(model, "duplo")
    if len(bricks) > 1:
        # The second half are translucent copies that show where the bricks belong.
        parts = [OBJECT, SECOND, FIXTURE, OTHER, OTHER]
        half = len(bricks) // 2
        named |= dict(zip(bricks[:half], parts, strict=False)) | dict.fromkeys(bricks[half:], GOAL)
    elif bricks:
        named[bricks[0]] = OBJECT
    bodies = np.zeros(model.nbody, np.uint8)
    for body in range(1, model.nbody):
        parent = model.body_parentid[body]
        inherited = ROBOT if parent == 0 else bodies[parent]
        bodies[body] = named.get(model.body(body).name, inherited)
    geoms, sites = bodies[model.geom_bodyid], bodies[model.site_bodyid]
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] == 0 and model.geom(geom).name == "target":
            geoms[geom] = GOAL
    for site in range(model.nsite):
        if model.site_bodyid[site] == 0 and model.site(site).name.startswith("target"):
            sites[site] = GOAL
    return {
        GEOM: geoms,
        SITE: sites,
        SKIN: np.full(model.nskin, ROBOT, np.uint8),
        TENDON: np.full(model.ntendon, ROBOT, np.uint8),
    }


def libero_classes(objects: Sequence[str], model: mujoco.MjModel) -> dict[int, np.ndarray]:
    """Class ids of a LIBERO task's geoms and sites.

    Bodies are named after what they belong to: ``robot0_*`` and its mount, ``gripper0_*``, each
    object and fixture; what belongs to none of them is the scene.

    Args:
        objects: the task's objects of interest in its own order, classes 3 to 6.
        model: its model.

    Returns: uint8 arrays of class ids, (ngeom,) and (nsite,), under ``mjOBJ_GEOM``, ``mjOBJ_SITE``.
    """
    parts = dict(zip(objects, range(OBJECT, OTHER), strict=False))
    bodies = np.zeros(model.nbody, np.uint8)
    for body in range(1, model.nbody):
        name, parent = model.body(body).name, model.body_parentid[body]
        of_interest = [part for part in parts if name.startswith(f"{part}_")]
        if name.startswith("gripper0_"):
            bodies[body] = HAND
        elif name.startswith(("robot0_", "mount0_")):
            bodies[body] = ROBOT
        elif of_interest:
            bodies[body] = parts[max(of_interest, key=len)]
        elif parent == 0 and name.endswith("_main"):
            bodies[body] = OTHER
        elif parent != 0:
            bodies[body] = bodies[parent]
    return {GEOM: bodies[model.geom_bodyid], SITE: bodies[model.site_bodyid]}


def panda_classes(parts: Mapping[str, int], model: mujoco.MjModel) -> dict[int, np.ndarray]:
    """Class ids of a panda task's geoms and sites.

    The robot is everything under the body ``base``, its hand everything under ``right_hand``; the
    floor and the table are the world's own.

    Args:
        parts: classes of the task's bodies by their names; what is below one follows.
        model: its model.

    Returns: uint8 arrays of class ids, (ngeom,) and (nsite,), under ``mjOBJ_GEOM``, ``mjOBJ_SITE``.
    """
    named = {"base": ROBOT, "right_hand": HAND, **parts}
    bodies = np.zeros(model.nbody, np.uint8)
    for body in range(1, model.nbody):
        inherited = bodies[model.body_parentid[body]]
        bodies[body] = named.get(model.body(body).name, inherited)
    return {GEOM: bodies[model.geom_bodyid], SITE: bodies[model.site_bodyid]}


def _top_bodies(model: mujoco.MjModel, prefix: str) -> list[str]:
    children = np.flatnonzero(model.body_parentid == 0)
    names = [model.body(body).name for body in children]
    return [name for name in names if name.startswith(prefix)]
