"""Small data sets in the layouts of their publishers, and the damages that are met in them."""

import json
from pathlib import Path

import av
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WIDTH, HEIGHT = 40, 24


def picture(number: int, size=(HEIGHT, WIDTH)) -> np.ndarray:
    """A flat colour of its own with a bright corner, so that rotations show."""
    image = np.full((*size, 3), [(number * 37) % 199, (number * 91) % 197, (number * 53) % 193], np.uint8)
    image[: size[0] // 4, : size[1] // 4] = 255
    return image


def save_picture(path: Path, number: int = 0, size=(HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number, size)).save(path, quality=95)
    return path


def write_json(path: Path, values) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def conversation(*turns: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]


def write_video(path: Path, frames, fps: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "5", "g": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def llava(root: Path, count: int = 6) -> Path:
    """Good samples only: one picture, two pictures, none, several turns."""
    items = []
    for n in range(count):
        save_picture(root / f"coco/{n}.jpg", n)
        item = {"id": f"{n % 2}", "image": f"coco/{n}.jpg", "conversations": conversation(f"<image>\nq {n}", f"a {n}")}
        if n % 3 == 1:
            item["image"] = [f"coco/{n}.jpg", f"coco/{n - 1}.jpg"]
            item["conversations"] += conversation("and?", "so (0.5, 0.25)")
        if n % 3 == 2:
            del item["image"]
        items.append(item)
    write_json(root / "llava_v1_5_mix665k.json", items)
    return root


def damaged_llava(root: Path) -> dict[str, str]:
    """Good and bad samples in RoboPoint's layout; from the index of each bad one to the reason it must get."""
    save_picture(root / "images/good.jpg", 1)
    save_picture(root / "images/tiny.png", 1, (4, 4))
    save_picture(root / "images/grey.png", 1)
    Image.fromarray(picture(1)).convert("L").save(root / "images/grey.png")
    whole = save_picture(root / "images/cut.jpg", 2).read_bytes()
    (root / "images/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "images/text.jpg").write_text("no picture")
    talk = conversation("<image>\nPoint to it", "[(0.25, 0.5), (1.5, 0.5)]")
    good = {"image": "good.jpg", "conversations": talk}
    items: list[tuple[object, str | None]] = [
        (good, None),
        ({**good, "image": "gone.jpg"}, "missing image"),
        ({**good, "image": "cut.jpg"}, "broken image"),
        ({**good, "image": "text.jpg"}, "broken image"),
        ({**good, "image": "tiny.png"}, "wrong size"),
        ({**good, "width": WIDTH, "height": HEIGHT + 1}, "wrong size"),
        ({**good, "width": WIDTH, "height": HEIGHT}, None),
        ({**good, "conversations": conversation("where", " ")}, "empty answer"),
        ({**good, "conversations": conversation("where", "here", "and?")}, "empty answer"),
        ({**good, "conversations": conversation("where", "(1.2, 0.5)")}, "point outside"),
        ({**good, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": 3}]}, "wrong type"),
        ({**good, "conversations": talk[::-1]}, "malformed"),
        ({**good, "conversations": conversation("q", "a <|im_end|>")}, "malformed"),
        ({**good, "image": "../../etc/passwd"}, "malformed"),
        ({**good, "image": 7}, "wrong type"),
        ("text", "malformed"),
        ({**good, "image": "grey.png"}, None),
    ]
    write_json(root / "robopoint_1432k.json", [item for item, _ in items])
    return {str(index): reason for index, (_, reason) in enumerate(items) if reason}


def episode_numbers(number: int, length: int = 6, state: int = 8, action: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """State and action; step 2 does nothing, and the gripper (last) closes at step 3."""
    rng = np.random.default_rng(number)
    states = rng.normal(size=(length, state)).astype(np.float32)
    actions = rng.uniform(-0.9, 0.9, (length, action)).astype(np.float32)
    actions[2, :-1] = 0
    actions[:, -1] = np.where(np.arange(length) < 3, -1, 1)
    return states, actions


def libero_hdf5(path: Path, count: int = 3, **changes) -> Path:
    """``changes`` replace datasets of demo_1 by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": "open the drawer"})
        for n in range(count):
            states, actions = episode_numbers(n)
            upside_down = np.stack([picture(n * 10 + t)[::-1, ::-1] for t in range(len(actions))])
            values = {
                "actions": actions.astype(np.float64),
                "dones": np.arange(len(actions)) == len(actions) - 1,
                "obs/ee_states": states[:, :6].astype(np.float64),
                "obs/gripper_states": states[:, 6:],
                "obs/agentview_rgb": upside_down,
                "obs/eye_in_hand_rgb": upside_down // 2,
            }
            if n == 1:
                values |= changes
            for key, value in values.items():
                data.create_dataset(f"demo_{n}/{key}", data=value)
    return path


def jpeg_bytes(image: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=97, subsampling=0)
    return stream.getvalue()


def rlds(root: Path, name: str = "libero_10_no_noops", count: int = 4, shards: int = 2, **changes) -> Path:
    """``changes`` replace features of episode 1: bytes lists, or arrays of numbers."""
    import tensorflow as tf

    folder = root / name / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = folder / f"{name}-train.tfrecord-{shard:05d}-of-{shards:05d}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for n in range(shard * count // shards, (shard + 1) * count // shards):
                states, actions = episode_numbers(n)
                images = [jpeg_bytes(picture(n * 10 + t)) for t in range(len(actions))]
                features = {
                    "steps/observation/image": images,
                    "steps/observation/wrist_image": images[::-1],
                    "steps/observation/state": states,
                    "steps/action": actions,
                    "steps/is_first": (np.arange(len(actions)) == 0).astype(np.int64),
                    "steps/language_instruction": [f"do {n}".encode()] * len(actions),
                    "episode_metadata/file_path": [f"demo_{n}".encode()],
                }
                if n == 1:
                    features |= changes
                encoded = {}
                for key, value in features.items():
                    if isinstance(value, list):
                        encoded[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
                    elif value.dtype == np.int64:
                        encoded[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=value.ravel()))
                    else:
                        encoded[key] = tf.train.Feature(float_list=tf.train.FloatList(value=value.ravel()))
                writer.write(tf.train.Example(features=tf.train.Features(feature=encoded)).SerializeToString())
    return root


def lerobot(
    root: Path,
    version: str,
    *,
    count: int = 3,
    state: int = 8,
    action: int = 7,
    views=("image", "wrist_image"),
    dtype: str = "video",
    fps: int = 10,
) -> Path:
    """A dataset of version "v2.1" or "v3.0"."""
    keys = [f"observation.images.{view}" for view in views]
    features = {key: {"dtype": dtype, "shape": [HEIGHT, WIDTH, 3]} for key in keys}
    features |= {
        "observation.state": {"dtype": "float32", "shape": [state]},
        "action": {"dtype": "float32", "shape": [action]},
    }
    info = {"codebase_version": version, "fps": fps, "features": features, "chunks_size": 1000}
    tables, frames, rows, total = [], {key: [] for key in keys}, [], 0
    for n in range(count):
        states, actions = episode_numbers(n, length=5 + n, state=state, action=action)
        length = len(actions)
        pictures = {key: [picture(n * 10 + t + k) for t in range(length)] for k, key in enumerate(keys)}
        columns = {
            "observation.state": states.tolist(),
            "action": actions.tolist(),
            "episode_index": [n] * length,
            "frame_index": list(range(length)),
            "timestamp": [t / fps for t in range(length)],
        }
        if dtype == "image":
            for key in keys:
                columns[key] = [{"bytes": jpeg_bytes(image), "path": None} for image in pictures[key]]
        table = pa.table(columns)
        row = {"episode_index": n, "tasks": [f"task {n % 2}"], "length": length}
        if version == "v2.1":
            path = root / f"data/chunk-000/episode_{n:06d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path)
            if dtype == "video":
                for key in keys:
                    write_video(root / f"videos/chunk-000/{key}/episode_{n:06d}.mp4", pictures[key], fps)
        else:
            place = {"chunk_index": 0, "file_index": 0}
            row |= {f"data/{name}": value for name, value in place.items()}
            row |= {"dataset_from_index": total, "dataset_to_index": total + length, "stats/action/min": [0.0]}
            for key in keys if dtype == "video" else ():
                row |= {f"videos/{key}/{name}": value for name, value in place.items()}
                row |= {
                    f"videos/{key}/from_timestamp": total / fps,
                    f"videos/{key}/to_timestamp": (total + length) / fps,
                }
        tables.append(table)
        rows.append(row)
        total += length
        for key in keys:
            frames[key] += pictures[key]
    write_json(root / "meta/info.json", info)
    if version == "v2.1":
        (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "task 0"}\n')
        return root
    for folder in ("data/chunk-000", "meta/episodes/chunk-000"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0, 1], "task": ["task 0", "task 1"]}), root / "meta/tasks.parquet")
    if dtype == "video":
        for key in keys:
            write_video(root / f"videos/{key}/chunk-000/file-000.mp4", frames[key], fps)
    return root
