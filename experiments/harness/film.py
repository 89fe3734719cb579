"""A film of an agent: the game in its colours, what the agent sees of it, and what it expects of each action."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from envs.screens import Screen
from experiments.harness.errors import UserError

_SCALE = 2
"""Pixels of the film for one of the game's, both ways."""
_VIEW, _PANEL, _MARGIN, _ROW = 168, 250, 12, 13
"""The side of the agent's view; the width beside the game; around things; the height of a bar."""
_NAME, _NUMBER = 96, 44
"""The width of an action's name, and of its value."""
_BACKGROUND, _INK, _BAR, _CHOSEN = (18, 18, 20), (225, 225, 225), (96, 110, 130), (255, 176, 60)
_GREYS = 4
"""Grey levels of the agent's view are this far apart, so that a frame of a GIF has a colour for each of its colours."""


class Shot(NamedTuple):
    """A moment.

    Attributes:
        screen: the game in colours.
        view: the newest frame of what the agent sees; its planes, if it has several.
        values: what it expects of each action; None where an episode is over.
        action: the one that it took; -1 where an episode is over.
        earned: the episode's return so far.
    """

    screen: Screen
    view: UInt8[np.ndarray, "*planes height width"]
    values: Float[np.ndarray, " actions"] | None
    action: int
    earned: float


def write_gif(path: Path, shots: Sequence[Shot], actions: Sequence[str], steps_per_second: float) -> None:
    """Writes an animated GIF that goes on for ever; its time is in hundredths of a second."""
    first, *others = (frame.quantize(256, dither=Image.Dither.NONE) for frame in _frames(shots, actions))
    with _whole(path) as draft:
        duration = 10 * round(100 / steps_per_second)  # milliseconds
        first.save(draft, format="GIF", save_all=True, append_images=others, duration=duration, loop=0)


def write_video(path: Path, shots: Sequence[Shot], actions: Sequence[str], steps_per_second: float) -> None:
    """Writes an MP4 (H.264) by ffmpeg.

    Raises:
        UserError: there is no ffmpeg, or it refuses.
    """
    frames = _frames(shots, actions)
    first = next(frames)
    size = f"{first.width}x{first.height}"
    with _whole(path) as draft:
        command = [
            find_ffmpeg(), "-loglevel", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size,
            "-r", f"{steps_per_second:g}", "-i", "-", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-f", "mp4", str(draft),
        ]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stderr is not None
            with contextlib.suppress(BrokenPipeError):  # it says why
                for frame in (first, *frames):
                    process.stdin.write(frame.tobytes())
                process.stdin.close()
            said = process.stderr.read().decode(errors="replace").split("\n")[0]
        if process.returncode:
            raise UserError(f"ffmpeg cannot write {path}: {said or f'exit code {process.returncode}'}")


def find_ffmpeg() -> str:
    """The path of ffmpeg: the system's, or that of the package imageio-ffmpeg. Raises UserError without either."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError:
        raise UserError(
            "--video needs ffmpeg: install it, or pip install imageio-ffmpeg (the extra video); or take --gif"
        ) from None
    return imageio_ffmpeg.get_ffmpeg_exe()


def _frames(shots: Sequence[Shot], actions: Sequence[str]) -> Iterator[Image.Image]:
    """The pictures, all of one even size; the bars of all have one scale."""
    values = np.concatenate([shot.values for shot in shots if shot.values is not None])
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    for shot in shots:
        yield _frame(shot, actions, low, high if high > low else low + 1)


def _frame(shot: Shot, actions: Sequence[str], low: float, high: float) -> Image.Image:
    screen = Image.fromarray(shot.screen)
    screen = screen.resize((_SCALE * screen.width, _SCALE * screen.height), Image.Resampling.NEAREST)
    right = screen.width + 2 * _MARGIN
    top = 2 * _MARGIN + _VIEW
    height = max(screen.height + 2 * _MARGIN, top + _ROW * (len(actions) + 2) + _MARGIN)
    frame = Image.new("RGB", (right + _PANEL + right % 2, height + height % 2), _BACKGROUND)
    frame.paste(screen, (_MARGIN, _MARGIN))
    frame.paste(_view(shot.view), (right, _MARGIN))
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(11)
    draw.text((right, top - 2), f"return {shot.earned:g}", _INK, font)
    if shot.values is None:
        return frame
    left, width = right + _NAME, _PANEL - _NAME - _NUMBER - _MARGIN
    zero = left + width * -low / (high - low)
    for place, (name, value) in enumerate(zip(actions, shot.values, strict=True)):
        y, colour = top + _ROW * (place + 1) + 4, _CHOSEN if place == shot.action else _BAR
        draw.text((right, y - 1), name, colour if place == shot.action else _INK, font)
        ends = sorted((zero, left + width * (float(value) - low) / (high - low)))
        draw.rectangle((ends[0], y, ends[1], y + _ROW - 4), colour)
        draw.text((right + _PANEL - _MARGIN, y - 1), f"{value:.3f}", _INK, font, anchor="ra")
    draw.line((zero, top + _ROW, zero, top + _ROW * (len(actions) + 1) + 2), _INK)
    return frame


def _view(frame: UInt8[np.ndarray, "*planes height width"]) -> Image.Image:
    """The agent's view in grey; where there is something in any of its planes."""
    flat = frame if frame.ndim == 2 else frame.max(axis=0)
    grey = Image.fromarray(flat // _GREYS * _GREYS)
    scale = max(1, _VIEW // max(grey.size))
    return grey.resize((scale * grey.width, scale * grey.height), Image.Resampling.NEAREST).convert("RGB")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to be written, which comes to its place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
