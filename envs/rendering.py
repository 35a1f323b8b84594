"""MuJoCo cameras: RGB pictures and segmentation at a chosen quality, in one GL context per process.

``full`` draws what the suites publish: shadows, reflections, multisampling, full meshes.
``fast`` draws the same scene without them, for machines that render in software, and ``smooth``
the same with four samples a pixel, so that a move of less than a pixel changes the picture too
(``results/render_quality.md`` holds what each costs and how far apart they are).
"""

import atexit
import contextlib
import copy
import os
import weakref
from collections.abc import Sequence

import numpy as np

from envs.environment_config import Quality
from errors import UserError
from mask_classes import OTHER


def no_graphics(error: Exception) -> UserError:
    """What to tell someone whose machine cannot draw, given what OpenGL's libraries said."""
    backend = os.environ.get("MUJOCO_GL") or "unset"
    return UserError(
        f"cannot draw with OpenGL (MUJOCO_GL={backend}: {error}); on Linux install Mesa's EGL with"
        " `apt-get install libegl1 libgl1 libgl1-mesa-dri`, or set MUJOCO_GL to what this machine"
        " has: egl, osmesa or glfw"
    )


try:
    import mujoco
except ModuleNotFoundError:
    raise
except Exception as error:  # whatever a backend raises when its library is not there
    raise no_graphics(error) from error

# Metres, for a 64-pixel picture; finer in proportion for a larger one. By itself it changes a
# Meta-World picture by 0.7 of 255 on average, and halves what the renderer takes.
DECIMATION_GRID = 0.010
DECIMATION_MIN_FACES = 200  # smaller meshes cost nothing, and thin parts would suffer
SMOOTH_SAMPLES = 2  # in either direction
MAX_GEOMS = 10_000  # mujoco.Renderer's own capacity; the largest DMC scene has a few hundred

_gl_context = None
_open_renderers: "weakref.WeakSet[Renderer]" = weakref.WeakSet()


def _current_gl_context():
    """The process's GL context, made on first use and made current.

    Raises:
        UserError: no context can be made (no EGL library, no driver).
    """
    global _gl_context
    if _gl_context is None:
        backend = os.environ.get("MUJOCO_GL", "")
        try:
            if backend == "egl":
                # mujoco chooses its backend when it is first imported, which may have been before
                # MUJOCO_GL was set; asking for EGL by name does not depend on that order.
                from mujoco.egl import GLContext
            else:
                from mujoco import GLContext

            class Context(GLContext):
                _context = None  # mujoco's __del__ reads it even where its __init__ has failed

                def free(self) -> None:
                    try:
                        super().free()
                    except Exception:  # dm_control shut EGL down first: nothing is left to free
                        self._context = None

            _gl_context = Context(1, 1)
            _gl_context.make_current()
        except Exception as error:
            _gl_context = None
            raise no_graphics(error) from error
    else:
        _gl_context.make_current()
    return _gl_context


def _close_all_first_at_exit() -> None:
    """Put ``_close_all`` before whatever is registered by now.

    Both mujoco and dm_control shut EGL down at exit; freeing anything after that prints errors.
    """
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    """Free every renderer and the process's GL context; runs at exit, while GL is still alive."""
    global _gl_context
    for renderer in list(_open_renderers):
        renderer.close()
    if _gl_context is not None:
        _gl_context.free()
        _gl_context = None


def decimate(model: "mujoco.MjModel", grid: float) -> None:
    """Thin the drawn faces of every large mesh of ``model``, in place.

    Vertices that share a cell of a cubic grid are drawn as the one nearest the cell's mean; faces
    that collapse or coincide are dropped. Vertices, normals, convex hulls and inertias are left
    alone; do this to a copy that is only drawn.

    Args:
        model: the model, edited in place (``mesh_face*`` arrays).
        grid: edge of a cell, metres.
    """
    for mesh in range(model.nmesh):
        vertices = _rows(model.mesh_vert, model.mesh_vertadr[mesh], model.mesh_vertnum[mesh])
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        if count < DECIMATION_MIN_FACES:
            continue
        cells = np.floor(vertices / grid).astype(np.int64)
        _, cell = np.unique(cells, axis=0, return_inverse=True)
        cell = cell.reshape(-1)
        members = np.bincount(cell)
        mean = np.stack([np.bincount(cell, vertices[:, k]) / members for k in range(3)], axis=1)
        distance = np.linalg.norm(vertices - mean[cell], axis=1)
        by_cell = np.lexsort((distance, cell))
        nearest = by_cell[np.concatenate(([0], np.cumsum(members)[:-1]))]

        faces = cell[_rows(model.mesh_face, start, count)]
        a, b, c = faces.T
        solid = np.flatnonzero((a != b) & (b != c) & (c != a))
        # One corner order per triangle and orientation, so that only true duplicates coincide.
        first = np.argmin(faces[solid], axis=1)
        ordered = np.take_along_axis(faces[solid], (first[:, None] + np.arange(3)) % 3, axis=1)
        _, unique = np.unique(ordered, axis=0, return_index=True)
        keep = start + np.sort(solid[unique])
        if len(keep) == 0:
            continue
        end = start + len(keep)
        model.mesh_face[start:end] = nearest[cell[model.mesh_face[keep]]]
        model.mesh_facenormal[start:end] = model.mesh_facenormal[keep]
        model.mesh_facetexcoord[start:end] = model.mesh_facetexcoord[keep]
        model.mesh_facenum[mesh] = len(keep)


def _rows(array: np.ndarray, start: int, count: int) -> np.ndarray:
    return array[start : start + count]


def _averaged(picture: np.ndarray, samples: int) -> np.ndarray:
    """Means of every ``samples`` × ``samples`` pixels, rounded: (samples·H, samples·W, 3) uint8 →
    (H, W, 3) uint8, contiguous."""
    if samples == 1:
        return np.ascontiguousarray(picture)
    height, width = (edge // samples for edge in picture.shape[:2])
    total = np.full((height, width, 3), samples**2 // 2, np.uint16)
    for row in range(samples):
        for column in range(samples):
            total += picture[row::samples, column::samples]
    total //= samples**2
    return total.astype(np.uint8)


class Renderer:
    """Pictures of one model at one size and quality.

    Usage: ``update(data, camera)`` once per frame, then ``image()`` and, if wanted, ``mask(...)``.
    The model given is never written to; drawing uses a private copy of what is uploaded. Between
    ``update`` and the drawing, ``scene`` (``mujoco.MjvScene``) may be edited.

    Args:
        model: the model to draw; kept, so that later edits of poses and colours are seen.
        width: pixels.
        height: pixels.
        quality: ``full``, ``smooth`` or ``fast`` (see the module).
        upside_down: the camera is mounted upside down: flip the rows (the picture comes out upright
            and mirrored). An attribute, for cameras that differ.
        hidden_groups: groups of geoms that are not drawn.

    Attributes:
        uploaded: the private copy of the model, as it is drawn.
        context: MuJoCo's ``MjrContext`` of that copy; None once closed.

    Raises:
        UserError: no GL context can be made.
    """

    def __init__(
        self,
        model: "mujoco.MjModel",
        width: int,
        height: int,
        quality: Quality = "full",
        upside_down: bool = False,
        hidden_groups: Sequence[int] = (),
    ):
        self.context = None
        _current_gl_context()
        _close_all_first_at_exit()
        uploaded = copy.copy(model)
        self._samples = SMOOTH_SAMPLES if quality == "smooth" else 1
        uploaded.vis.global_.offwidth = width * self._samples
        uploaded.vis.global_.offheight = height * self._samples
        self.scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        if quality != "full":
            uploaded.vis.quality.offsamples = 0
            uploaded.vis.quality.shadowsize = 0
            uploaded.vis.quality.numslices = 14  # MuJoCo's default is 28
            uploaded.vis.quality.numstacks = 8  # 16
            uploaded.vis.quality.numquads = 2  # 4
            decimate(uploaded, DECIMATION_GRID * 64 / max(width, height))
            flags = mujoco.mjtRndFlag
            for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_HAZE):
                self.scene.flags[flag] = False
        self.model, self.uploaded = model, uploaded
        self.upside_down = upside_down
        self._option = mujoco.MjvOption()
        self._option.geomgroup[list(hidden_groups)] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self.width, self.height = width, height
        try:
            self.context = mujoco.MjrContext(uploaded, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except mujoco.FatalError as error:
            raise no_graphics(error) from error
        _open_renderers.add(self)

    @property
    def graphics(self) -> str | None:
        """OpenGL's name of what draws ("llvmpipe (LLVM 19.1.7, 256 bits)" is software); None where
        it does not say."""
        _current_gl_context()
        try:
            from OpenGL import GL  # only now: MuJoCo has chosen its platform

            return GL.glGetString(GL.GL_RENDERER).decode()
        except Exception:  # a name is not worth a run
            return None

    def update(self, data: "mujoco.MjData", camera: int) -> None:
        """Take the poses of ``data`` as seen by the model's camera number ``camera``."""
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self.model,
            data,
            self._option,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self.scene,
        )

    def image(self) -> np.ndarray:
        """The picture, (height, width, 3) uint8, a new array."""
        return _averaged(self._draw(self._samples), self._samples)

    def mask(self, classes: dict[int, np.ndarray]) -> np.ndarray:
        """The class of what every pixel shows, (height, width) uint8, a new array.

        Drawn with the same geometry as the picture, one sample a pixel.

        Args:
            classes: for each MuJoCo object type that is drawn (``mjtObj``: geom, site, skin, ...) a
                uint8 array of class ids indexed by object id; what is not named is 0.
        """
        scene = self.scene
        table = np.zeros(scene.ngeom + 1, np.uint8)
        geoms = scene.geoms
        for index in range(scene.ngeom):
            geom = geoms[index]
            if geom.rgba[3] <= 0:
                geom.segid = -1  # invisible in the picture: without a number it is not drawn here
                continue
            kind = classes.get(geom.objtype)
            if kind is not None and geom.segid >= 0:
                table[geom.segid + 1] = kind[geom.objid]
            elif geom.objtype == mujoco.mjtObj.mjOBJ_UNKNOWN and geom.segid >= 0:
                table[geom.segid + 1] = OTHER  # of no model: what a shift has put into the scene
        with self._identity_colors():
            pixels = self._draw().astype(np.int32)
        return table[pixels[..., 0] | pixels[..., 1] << 8 | pixels[..., 2] << 16]

    @contextlib.contextmanager
    def _identity_colors(self):
        flags = mujoco.mjtRndFlag
        for flag in (flags.mjRND_SEGMENT, flags.mjRND_IDCOLOR):
            self.scene.flags[flag] = True
        yield
        for flag in (flags.mjRND_SEGMENT, flags.mjRND_IDCOLOR):
            self.scene.flags[flag] = False

    def _draw(self, samples: int = 1) -> np.ndarray:
        """The scene, (samples·height, samples·width, 3) uint8, row 0 on top."""
        _current_gl_context()
        height, width = samples * self.height, samples * self.width
        viewport = mujoco.MjrRect(0, 0, width, height)
        buffer = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self.context)
        mujoco.mjr_render(viewport, self.scene, self.context)
        mujoco.mjr_readPixels(buffer, None, viewport, self.context)
        # OpenGL's row 0 is the bottom one; an upside-down camera has it on top already.
        return buffer if self.upside_down else buffer[::-1]

    def upload_texture(self, texture: int, picture: np.ndarray) -> None:
        """Draw ``picture``, (height, width, channels) uint8, in place of the model's texture."""
        _current_gl_context()
        start = self.uploaded.tex_adr[texture]
        self.uploaded.tex_data[start : start + picture.size] = picture.reshape(-1)
        mujoco.mjr_uploadTexture(self.uploaded, self.context, texture)

    def upload_heightfields(self) -> None:
        """Draw the model's height fields as they now are (quadruped-escape resets its own)."""
        if self.model.nhfield:
            _current_gl_context()
            for field in range(self.model.nhfield):
                mujoco.mjr_uploadHField(self.model, self.context, field)

    def close(self) -> None:
        """Free the GPU's memory; the renderer cannot be used afterwards."""
        if self.context is not None:
            _current_gl_context()
            self.context.free()
            self.context = None
            _open_renderers.discard(self)
