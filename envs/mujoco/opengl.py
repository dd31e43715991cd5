"""MuJoCo, imported so that an OpenGL library is opened when something is drawn and not before.

MuJoCo opens the library that MUJOCO_GL names as it is imported, and cannot be imported where that fails. Modules that
may be the first to import it take it from here; drawing then opens the library, or says what is missing.
"""

import ctypes
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from envs.core import UsageError


@contextmanager
def without_opengl() -> Iterator[None]:
    """Keep what is imported here from opening an OpenGL library."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = "disable"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
        if before is not None:
            os.environ["MUJOCO_GL"] = before


with without_opengl():
    import mujoco as mujoco  # "as": for other modules to import from here

NO_GRAPHICS = (
    "no OpenGL for drawing ({reason}); install EGL or OSMesa (Debian: libegl1 or libosmesa6) "
    "and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
)
SWITCHED_OFF = ("disable", "disabled", "off", "false", "0")  # what MuJoCo understands of MUJOCO_GL
_contexts = sys.modules[mujoco.Renderer.__module__].gl_context
_opening = threading.Lock()


def offscreen(model: mujoco.MjModel, width: int, height: int) -> mujoco.Renderer:
    """What draws pictures (height, width, 3) on the thread that calls this. Raises UsageError without OpenGL."""
    try:
        with _opening:
            _open_library()
        return mujoco.Renderer(model, height, width)
    except Exception as error:  # each OpenGL library fails in its own way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(NO_GRAPHICS.format(reason=reason)) from error


def keep(renderer: mujoco.Renderer) -> None:
    """Never free `renderer`, for those whose thread may end before they do.

    An OpenGL context may be freed by its own thread only, but garbage is collected by any, at the end of the process
    when the library's module is already gone. A reference that nobody gives back leaves it to the operating system.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(renderer))


def _open_library() -> None:
    """Have MuJoCo open the OpenGL library of MUJOCO_GL; by default EGL where there is no screen.

    Raises RuntimeError where drawing is switched off: without a context MuJoCo may end the process.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in SWITCHED_OFF:
        raise RuntimeError(f"MUJOCO_GL is {os.environ['MUJOCO_GL']}")
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY") and not chosen
    if headless:
        os.environ["MUJOCO_GL"] = "egl"
    if headless or not hasattr(_contexts, "GLContext"):
        importlib.reload(_contexts)
