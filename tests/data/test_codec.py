import io

import msgpack
import numpy as np
import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from pokevla_jax.data.codec import FORMAT
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.codec import chroma
from pokevla_jax.data.codec import decode_frame
from pokevla_jax.data.codec import encode_frame
from pokevla_jax.data.codec import encode_jpeg
from tests.data import synthetic

ENCODED = encode_frame(synthetic.episode(0, length=1, size=16)[1][0])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_masks_are_exact_and_depth_is_within_half_a_millimetre(height, width, seed):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 256, (height, width), dtype=np.uint8)
    depth = rng.uniform(1e-3, 10, (height, width)).astype(np.float32)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    frame = decode_frame(encode_frame(Frame({"a": image}, {"a": mask}, {"a": depth})))
    np.testing.assert_array_equal(frame.masks["a"], mask)
    assert frame.depth["a"].dtype == np.float32
    # 0.5 mm, and the rounding of float32 at 10 m.
    assert np.abs(frame.depth["a"].astype(np.float64) - depth).max() <= 0.5e-3 + 1e-6
    assert frame.images["a"].shape == image.shape


def test_rendered_images_keep_35_db_and_their_channel_order():
    _, frames = synthetic.episode(0)
    frame = decode_frame(encode_frame(frames[0]))
    for view in synthetic.VIEWS:
        assert psnr(frame.images[view], frames[0].images[view]) > 35


@pytest.mark.parametrize(("size", "stored"), [((191, 256), "4:4:4"), ((192, 256), "4:2:0")])
def test_colour_is_stored_at_the_resolution_that_is_stated(size, stored):
    with Image.open(io.BytesIO(encode_jpeg(np.zeros((*size, 3), np.uint8)))) as image:
        # (component, horizontal factor, vertical factor, table): brightness has twice the samples of halved colours.
        factors = [layer[1:3] for layer in image.layer]
    assert factors == [(1, 1) if stored == "4:4:4" else (2, 2), (1, 1), (1, 1)]
    assert chroma(size) == stored


def test_depth_without_a_surface_in_range_is_zero():
    depth = np.array([[0, -1, np.inf, np.nan, 65.5, 65.6, 4e-4]], np.float32)
    image = np.zeros((1, 7, 3), np.uint8)
    stored = decode_frame(encode_frame(Frame({"a": image}, None, {"a": depth}))).depth["a"]
    np.testing.assert_allclose(stored, [[0, 0, 0, 0, 65.5, 0, 0]])


def test_parts_are_decoded_on_request_only():
    _, frames = synthetic.episode(0)
    data = encode_frame(frames[0])
    assert decode_frame(data, masks=False).masks is None
    assert decode_frame(data, depth=False).depth is None
    bare = decode_frame(encode_frame(Frame(frames[0].images)))
    assert bare.masks is None
    assert bare.depth is None


def _png_claiming(width: int, height: int) -> bytes:
    mask = {"a": np.zeros((2, 2), np.uint8)}
    entry = msgpack.unpackb(encode_frame(Frame({"a": np.zeros((2, 2, 3), np.uint8)}, mask)))
    png = entry["masks"]["a"]
    entry["masks"]["a"] = png[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:]
    return msgpack.packb(entry)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04\x95garbage", "msgpack|images"),
        (b"", "msgpack"),
        (msgpack.packb([1, 2]), "no images"),
        (msgpack.packb({"format": FORMAT + 1, "images": {}}), f"frame format {FORMAT + 1}"),
        (msgpack.packb({"format": FORMAT, "images": {"a": b"\xff\xd8\xff"}}), "no JPEG"),
        (msgpack.packb({"format": FORMAT, "images": {"a": "text"}}), "no JPEG"),
        (msgpack.packb({"format": FORMAT, "images": {}, "masks": 3}), "not a map"),
        (_png_claiming(100_000, 100_000), "100000x100000"),
        (_png_claiming(0, 5), "0x5"),
    ],
)
def test_foreign_bytes_are_refused_in_a_sentence(data, message):
    with pytest.raises(DataError, match=message):
        decode_frame(data)


@settings(max_examples=200, deadline=2000)
@given(position=st.integers(0, 2**16), value=st.integers(0, 255))
@example(position=ENCODED.index(b"IDAT") - 4, value=247)
def test_a_changed_byte_quickly_gives_a_frame_or_a_data_error(position, value):
    """Quickly: a chunk length of 4 GB must not be believed."""
    data = bytearray(ENCODED)
    data[position % len(data)] = value
    try:
        frame = decode_frame(bytes(data))
    except DataError:
        return
    assert all(image.dtype == np.uint8 for image in frame.images.values())


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (Frame({"a": np.zeros((4, 4, 3), np.float32)}), "image of view 'a' is float32"),
        (Frame({"a": np.zeros((4, 4), np.uint8)}), r"store uint8 \[h, w, 3\]"),
        (Frame({"a": np.zeros((4, 4, 3), np.uint8)}, {"a": np.zeros((4, 4), bool)}), "mask of view 'a' is bool"),
        (Frame({"a": np.zeros((4, 4, 3), np.uint8)}, None, {"a": np.zeros((4, 4))}), "depth of view 'a' is float64"),
    ],
)
def test_wrong_arrays_are_refused_before_writing(frame, message):
    with pytest.raises(DataError, match=message):
        encode_frame(frame)
