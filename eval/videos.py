"""Episode videos, rendered after the episode from its stored simulator states.

So the episode itself is the same with and without a video, and ``failures`` costs nothing for the successes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

import numpy as np

from pokevla_jax.sim.tasks import CONTROL_HZ
from pokevla_jax.typing import UInt8

CAPTION_HEIGHT = 32
COLORS = {"success": (46, 160, 67), "failure": (207, 34, 46)}


@dataclass(frozen=True)
class VideoOptions:
    """Which episodes are filmed and how.

    Attributes:
        mode: ``all`` or ``failures``.
        folder: where the files go, named by episode id.
        stride: every how many control steps a frame is rendered; the film plays in real time either way.
        scale: integer enlargement of the simulator's images.
    """

    mode: Literal["failures", "all"]
    folder: Path
    stride: int = 1
    scale: int = 2

    def wants(self, outcome: str) -> bool:
        """Whether an episode with this outcome is filmed."""
        return self.mode == "all" or outcome == "failure"


def write_video(
    environment: Any, states: Sequence[np.ndarray], path: Path, *, caption: str, options: VideoOptions
) -> None:
    """Writes an H.264 mp4 of both views side by side under a caption, 20 frames per second at stride 1."""
    frames = []
    banner = None
    for state in [*states[:: options.stride], states[-1]]:
        environment.set_sim_state(state)
        views = [environment.render(view).rgb for view in ("agentview", "wrist")]
        image = np.concatenate(views, axis=1).repeat(options.scale, axis=0).repeat(options.scale, axis=1)
        if banner is None:
            banner = caption_banner(caption, image.shape[1])
        frames.append(np.concatenate([banner, image], axis=0))
    # The last frame stands for a second, so that the outcome can be seen.
    fps = max(CONTROL_HZ // options.stride, 1)
    encode(frames + frames[-1:] * fps, path, fps)


def caption_banner(caption: str, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A strip with the caption in one or two lines; the word before the colon decides its colour."""
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont

    strip = Image.new("RGB", (width, CAPTION_HEIGHT), (24, 26, 31))
    draw = ImageDraw.Draw(strip)
    draw.rectangle((0, 0, 5, CAPTION_HEIGHT), fill=COLORS.get(caption.partition(":")[0], (110, 118, 129)))
    font = ImageFont.load_default(size=12)
    words, lines = caption.split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width - 16:
            lines[-1] = longer
        else:
            lines.append(word)
    for row, line in enumerate(lines[:2]):
        draw.text((12, 2 + 14 * row), line, fill=(230, 237, 243), font=font)
    return np.asarray(strip)


def encode(frames: Sequence[UInt8[np.ndarray, "h w 3"]], path: Path, fps: int) -> None:
    """Writes frames of equal, even size to ``path`` through a temporary name; the file starts playing at once."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.mp4")
    height, width = frames[0].shape[:2]
    with av.open(str(temporary), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "26", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width - width % 2, height - height % 2, "yuv420p"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    temporary.replace(path)
