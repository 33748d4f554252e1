"""A small dataset whose geometry is known exactly: a ball on a table, seen by a fixed and a moving camera.

Every pixel is ray-traced, so that masks, depth and points can be checked against the ball's position.
"""

import dataclasses
from pathlib import Path

import numpy as np

from pokevla_jax.config import AugmentConfig
from pokevla_jax.config import Config
from pokevla_jax.config import DataConfig
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import KeypointConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.data.records import Episode
from pokevla_jax.data.records import Frame
from pokevla_jax.data.records import write_shard
from pokevla_jax.models import presets

VIEWS = ("agentview", "wrist")
RADIUS = 0.05
NO_AUGMENTATION = AugmentConfig(crop_area=1.0, brightness=0, contrast=0, saturation=0, hue=0)


def config(*, augment: AugmentConfig = NO_AUGMENTATION, **data) -> Config:
    """The tiny network with every label switched on, and views smaller than their source, so that all is resampled."""
    tiny = presets.tiny()
    model = dataclasses.replace(
        tiny,
        vision=dataclasses.replace(tiny.vision, image_size=96),
        segmentation=SegmentationConfig(image_encoder="small", feature_grid=16),
        geometry=GeometryConfig(teacher="depth"),
        keypoint=KeypointConfig(weight=0.3),
    )
    return Config(model=model, data=DataConfig(augment=augment, **data), batch_size=8, seed=5)


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """base_from_camera of a camera (x right, y down, z forward) with the base's z axis upwards in the image."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose[:3, 3] = position
    return pose


def intrinsics(size: int) -> np.ndarray:
    return np.array([[1.2 * size, 0, size / 2], [0, 1.2 * size, size / 2], [0, 0, 1]])


def render(pose: np.ndarray, ball: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """RGB, mask of the ball and depth (0 above the horizon) of the ball on the table z = 0."""
    u, v = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics(size)).T @ pose[:3, :3].T
    origin = pose[:3, 3]
    # |origin + depth * ray - ball| = radius; rays have unit length along the optical axis, so their factor is depth.
    b, c = rays @ (origin - ball), (origin - ball) @ (origin - ball) - RADIUS**2
    a = (rays**2).sum(-1)
    discriminant = b**2 - a * c
    mask = discriminant > 0
    ball_depth = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    table_depth = np.where(rays[..., 2] < -1e-6, -origin[2] / np.minimum(rays[..., 2], -1e-6), 0)
    depth = np.where(mask, ball_depth, table_depth)
    shade = np.clip(60 + 60 * depth, 0, 255)[..., None] * [0.6, 0.8, 1.0]
    rgb = np.where(mask[..., None], [220.0, 30.0, 30.0], shade)
    return rgb.astype(np.uint8), mask.astype(np.uint8), depth.astype(np.float32)


def episode(
    number: int, *, length: int = 20, size: int = 128, every: int = 4, labels: bool = True
) -> tuple[Episode, dict[int, Frame]]:
    """Episode ``number`` with every ``every``-th step rendered; a random burst invalidates chunks across step 10."""
    rng = np.random.default_rng([7, number])
    ball = np.array([0.6 + rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), RADIUS])
    hand = np.linspace([0.4, 0.2, 0.5], ball + [0.02, 0.01, 0.3], length)
    poses = np.stack([[look_at(np.array([1.4, 0.05, 0.6]), np.array([0.6, 0, 0.0])), look_at(p, ball)] for p in hand])
    state = np.concatenate([hand, 0.1 * rng.standard_normal((length, 3)), np.tile([0.04, -0.04], (length, 1))], axis=1)
    action = rng.uniform(-0.8, 0.8, (length, 7))
    action[:, 5] = 0.3  # never rotates about the vertical: a near-constant dimension
    action[:, 6] = np.where(np.arange(length) < length // 2, -1, 1)
    ends = np.where(np.arange(length) < 10, min(10, length), length)
    info = Episode(
        id=f"ball-{number:04d}",
        suite="synthetic",
        task=number % 2,
        instruction=("Pick up the red ball", "push the red ball to the left")[number % 2],
        success=True,
        source={"ball": ball.tolist()},
        views=VIEWS,
        intrinsics=np.stack([intrinsics(size)] * 2),
        state=state.astype(np.float32),
        action=action.astype(np.float32),
        executed=(action + 0.01).astype(np.float32),
        chunk_end=ends.astype(np.int32),
        base_from_camera=poses.astype(np.float32),
        keypoints=np.tile(np.stack([ball, [0.6, 0.3, 0.0]]), (length, 1, 1)).astype(np.float32),
    )
    frames = {}
    for step in range(0, length, every):
        rgb, masks, depth = zip(*(render(pose, ball, size) for pose in poses[step]), strict=True)
        frames[step] = Frame(
            images=dict(zip(VIEWS, rgb, strict=True)),
            masks=dict(zip(VIEWS, masks, strict=True)) if labels else None,
            depth=dict(zip(VIEWS, depth, strict=True)) if labels else None,
        )
    return info, frames


def write(directory: Path, *, num_episodes: int = 6, **arguments) -> Path:
    """A dataset of two shards at ``directory``."""
    for shard in range(2):
        chosen = range(shard, num_episodes, 2)
        write_shard(
            directory, f"shard-{shard}", (episode(n, **arguments) for n in chosen), settings={"renderer": "rays"}
        )
    return directory
