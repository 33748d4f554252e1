"""Frames of videos, decoded with PyAV."""

from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.typing import UInt8

_MAX_FRAMES = 200_000


def decode_span(path: Path, first: int, count: int, fps: float) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields ``count`` frames from number ``first`` on, RGB; frame n is the one shown at n / ``fps`` seconds.

    Raises:
        Reject: when the file is missing, broken or too short.
    """
    import av

    if not path.is_file():
        raise Reject("missing image", str(path))
    frame: Any
    expected = first
    try:
        with av.open(str(path)) as container:
            stream: Any = container.streams.video[0]
            stream.thread_type = "NONE"
            if first:
                # To the key frame before it; what lies between is decoded and dropped.
                container.seek(int(first / fps / stream.time_base), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = round(float(frame.pts * stream.time_base) * fps)
                if number < expected:
                    continue
                if number > expected:
                    raise Reject("broken image", f"{path} has no frame {expected}")
                yield frame.to_ndarray(format="rgb24")
                expected += 1
                if expected == first + count:
                    return
    except (av.FFmpegError, IndexError, TypeError) as error:
        raise Reject("broken image", f"{path}: {error}") from error
    raise Reject("truncated shard", f"{path} ends at frame {expected} of {first + count}")


def spread_frames(path: Path, count: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """``count`` frames, evenly spread over the video, in order."""
    import av

    if not path.is_file():
        raise Reject("missing image", str(path))
    try:
        with av.open(str(path)) as container:
            total = 0
            for packet in container.demux(container.streams.video[0]):
                total += packet.size > 0
                if total > _MAX_FRAMES:
                    raise Reject("wrong size", f"{path} has more than {_MAX_FRAMES} frames")
        if not total:
            raise Reject("broken image", f"{path} holds no frame")
        wanted = {(2 * i + 1) * total // (2 * count) for i in range(count)}
        chosen = []
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    chosen.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        raise Reject("broken image", f"{path}: {error}") from error
    if len(chosen) < len(wanted):
        raise Reject("truncated shard", f"{path} ends before frame {max(wanted)}")
    return chosen


def encode(path: Path, frames: Sequence[np.ndarray] | Iterator[np.ndarray], fps: int, **options: Any) -> int:
    """Writes frames as an H.264 file and returns their number; 4:2:0 as players want it, a key frame every 2 frames."""
    import av

    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                # Few frames depend on each other: training reads them at random.
                chosen = {"g": "2", "crf": "18", **{key: str(value) for key, value in options.items()}}
                stream = container.add_stream("libx264", rate=fps, options=chosen)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count
