"""Films: what is in a frame, and that files are whole."""

import contextlib
import stat

import numpy as np
import pytest
from PIL import Image

from envs.atari import PROTOCOLS
from envs.sequence import Task
from experiments import harness
from experiments.harness import film
from experiments.harness.film import Shot, write_gif, write_video
from experiments.harness.stage import Stage, action_names
from experiments.play import Camera

SCREEN = np.zeros((30, 40, 3), np.uint8)
SCREEN[5, 7] = (250, 10, 20)
VIEW = np.full((84, 84), 200, np.uint8)
SHOTS = [
    Shot(SCREEN, VIEW, np.array([0.5, -0.25], np.float32), 0, 1.0),
    Shot(SCREEN, VIEW, np.array([0.0, 1.0], np.float32), 1, 2.0),
    Shot(SCREEN, VIEW, None, -1, 3.0),
]


def frames(path) -> list[np.ndarray]:
    with Image.open(path) as shown:
        found = []
        for number in range(shown.n_frames):
            shown.seek(number)
            found.append(np.asarray(shown.convert("RGB")))
        return found


def bar_lengths(frame: np.ndarray, colour: tuple[int, int, int]) -> list[int]:
    """Of each row of pixels in which a bar of a colour is."""
    hit = (frame == colour).all(axis=-1)
    return [int(row.sum()) for row in hit if row.sum() > 2]


def test_a_frame_has_the_games_colours_the_agents_view_and_a_bar_for_each_action(tmp_path):
    write_gif(tmp_path / "film.gif", SHOTS, ["left", "right"], 15)
    first, second, last = frames(tmp_path / "film.gif")
    assert (first[12 + 2 * 5, 12 + 2 * 7] == (250, 10, 20)).all()
    assert (first[20, 12 + 80 + 12 + 20] == 200).all()
    # The values 0.5 and 1.0 were chosen, on one scale from -0.25 to 1.
    one, two = (max(bar_lengths(frame[200:], film._CHOSEN)) for frame in (first, second))
    assert two == pytest.approx(2 * one, abs=3) and two > 60
    assert not bar_lengths(last[200:], film._CHOSEN) and not bar_lengths(last[200:], film._BAR)


def test_a_game_of_ale_is_filmed_under_its_protocol():
    stage = Stage(Task("pong", 0), 4, PROTOCOLS["machado"], 0.0)
    decide = lambda params, observations, epsilon, key, step: (np.array([2]), np.arange(6.0)[None])  # noqa: E731
    with contextlib.closing(stage.open(1, 0, filmed=True)) as environments:
        assert action_names(environments)[:2] == ["noop", "fire"]
        camera = Camera(environments, decide, longest=5)
        time_step = camera.reset(0)
        for _ in range(8):
            camera.send(camera.play(None, time_step.observation, 0.0, None, 0))
            time_step = camera.recv()
    assert [shot.screen.shape for shot in camera.shots] == 5 * [(210, 160, 3)]
    assert [(shot.view.shape, shot.action) for shot in camera.shots] == 5 * [((84, 84), 2)]


def test_without_ffmpeg_a_video_is_refused_and_one_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(harness.UserError, match="--video needs ffmpeg"):
        write_video(tmp_path / "film.mp4", SHOTS, ["left", "right"], 15)
    (tmp_path / "bin").mkdir()
    ffmpeg = tmp_path / "bin" / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\necho no such codec >&2\nexit 1\n", encoding="utf-8")
    ffmpeg.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    with pytest.raises(harness.UserError, match=r"film\.mp4: no such codec"):
        write_video(tmp_path / "film.mp4", SHOTS, ["left", "right"], 15)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_ffmpeg_is_given_every_frame(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    ffmpeg = tmp_path / "bin" / "ffmpeg"
    ffmpeg.write_text(
        '#!/bin/sh\nfor last in "$@"; do :; done\necho "$@" > "$last.told"\ncat > "$last"\n', encoding="utf-8"
    )
    ffmpeg.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    write_video(tmp_path / "film.mp4", SHOTS, ["left", "right"], 15)
    told = (tmp_path / "film.mp4.draft.told").read_text(encoding="utf-8").split()
    width, height = map(int, told[told.index("-s") + 1].split("x"))
    assert width % 2 == 0 and height % 2 == 0 and told[told.index("-r") + 1] == "15"
    pixels = np.frombuffer((tmp_path / "film.mp4").read_bytes(), np.uint8).reshape(-1, height, width, 3)
    assert len(pixels) == 3 and (pixels[0][12 + 2 * 5, 12 + 2 * 7] == (250, 10, 20)).all()
