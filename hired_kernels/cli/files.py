# SPDX-License-Identifier: Apache-2.0
"""The demo's files: a picture to read, and names that can be written to. What is wrong with one is
one line."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .photograph import upright

PHOTOGRAPH = Path(__file__).parents[1] / "data" / "photograph.jpg"


class DemoError(Exception):
    """What stands in the way of the demo, in one line."""


def open_picture(path: str | None) -> Image.Image:
    """The picture at `path`, or the photograph that comes along, upright and in RGB."""
    try:
        with Image.open(PHOTOGRAPH if path is None else path) as file:
            return upright(file)
    except FileNotFoundError:
        raise DemoError(f"picture {path}: no such file") from None
    except IsADirectoryError:
        raise DemoError(f"picture {path}: expected a file, got a folder") from None
    except PermissionError:
        raise DemoError(f"picture {path}: not allowed to read it") from None
    except Exception as error:
        # Decoders raise what they like, SyntaxError and struct.error among it.
        raise DemoError(f"picture {path}: {reason(error)}") from error


def writable(option: str, name: str) -> Path:
    """Its path, if a file can be written there: found out before the tower runs, not after."""
    if not name:
        raise DemoError(f"{option}: expected a file name, got ''")
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        if path.is_fifo():
            raise DemoError(f"{option} {path}: expected a file, got a pipe")
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except FileExistsError:
        raise DemoError(f"{option} {path}: expected a folder, got a file: {path.parent}") from None
    except (OSError, ValueError) as error:
        raise DemoError(f"{option} {path}: {reason(error)}") from None
    return path


def page_beside(path: Path, name: str | None) -> Path | None:
    """Where the page goes: to `name`, else beside the picture at `path`; None beside a device."""
    if name is None:
        if path.exists() and not path.is_file():
            return None
        name = str(path.with_suffix(".html"))
    page = writable("html", name)
    if page.resolve() == path.resolve():
        raise DemoError(f"html {page}: expected another file than the picture's")
    return page


def reason(error: Exception) -> str:
    """What the system says of an error of its own, without the file's name; else its first line."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
