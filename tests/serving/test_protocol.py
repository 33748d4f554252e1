"""Messages: openpi's own client as the reference, and whatever a stranger may send."""

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from openpi_client import msgpack_numpy

from pokevla_jax.serving import protocol
from pokevla_jax.serving.observations import ObservationSpec
from pokevla_jax.serving.protocol import ProtocolError

SPEC = ObservationSpec(("agentview", "wrist"), 8)
VALUES = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "state": np.linspace(0, 1, 8),
    "big-endian": np.arange(3, dtype=">i4"),
    "empty": np.zeros((0, 3), np.float32),
    "none": np.array(5.0, np.float16),
    "flags": np.array([True, False]),
    "scalar": np.float32(1.5),
    "text": "pick up the milk",
    "nested": {"list": [1, 2.5, None, True]},
}


def same(mine, theirs):
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, np.ndarray | np.generic):
            assert mine[key].dtype == value.dtype
            np.testing.assert_array_equal(mine[key], value)
        else:
            assert mine[key] == value


def test_both_directions_agree_with_openpis_client():
    same(protocol.unpack(msgpack_numpy.packb(VALUES)), VALUES)
    same(msgpack_numpy.unpackb(protocol.pack(VALUES)), VALUES)
    assert protocol.pack(VALUES) == msgpack_numpy.packb(VALUES)


def array(data=b"\0" * 4, dtype=b"<f4", shape=(1,)):
    return msgpack.packb({"x": {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}})


BAD = {
    "text": ("{}", "text"),
    "no msgpack": (b"\xc1", "not the msgpack"),
    "nothing": (b"", "not the msgpack"),
    "two messages": (b"\x80\x80", "not the msgpack"),
    "a list": (msgpack.packb([1]), "a list"),
    "an array": (msgpack_numpy.packb(np.zeros(3)), "ndarray"),
    "keys that are numbers": (msgpack.packb({1: 2}), "not the msgpack"),
    "keys that are bytes": (msgpack.packb({b"a": 2}), "map of names"),
    "no unicode": (b"\x81\xa1a\xa1\xff", "not the msgpack"),
    "extension": (msgpack.packb({"x": msgpack.ExtType(1, b"abc")}), "not the msgpack"),
    "objects": (array(dtype=b"|O"), r"dtype b'\|O'"),
    "records": (array(dtype=b"|V4"), "dtype"),
    "complex": (array(b"\0" * 8, dtype=b"<c8"), "dtype"),
    "texts": (array(dtype=b"<U1"), "dtype"),
    "dates": (array(b"\0" * 8, dtype=b"<M8[s]"), "dtype"),
    "long doubles": (array(b"\0" * 16, dtype=b"<f16"), "dtype"),
    "a dtype of several": (array(dtype=b"<f4,<f4"), "dtype"),
    "no dtype": (array(dtype=None), "dtype None"),
    "too few bytes": (array(shape=(2,)), "with 4 bytes"),
    "too many bytes": (array(shape=(0,)), "with 4 bytes"),
    "sizes whose product overflows": (array(b"", shape=(2**32, 2**32)), "with 0 bytes"),
    "negative sizes": (array(shape=(-1, -1)), "shape"),
    "many dimensions": (array(shape=(1,) * 40), "shape"),
    "fractions of sizes": (array(shape=(1.0,)), "shape"),
    "no shape": (array(shape=None), "shape None"),
    "data that is text": (array(data="abcd"), "a str"),
    "a scalar too large": (
        msgpack.packb({"x": {b"__npgeneric__": True, b"data": 300, b"dtype": b"|u1"}}),
        "no uint8",
    ),
    "a scalar that is text": (
        msgpack.packb({"x": {b"__npgeneric__": True, b"data": "3", b"dtype": b"|u1"}}),
        "a str",
    ),
    "a million lists": (b"\x81\xa1x" + b"\xdd\x00\x00\x03\xff" + b"\x90" * 1023 + b"\x90" * 10**6, "more than 1024"),
    "lists of lists": (msgpack.packb({"x": [[[]] * 40] * 40}), "more than 1024"),
    "a long list": (msgpack.packb({"x": [0] * 5000}), "not the msgpack"),
    "a deep list": (b"\x81\xa1x" + b"\x91" * 5000 + b"\x90", "not the msgpack that openpi's clients send: StackError"),
    "a size that lies": (b"\x81\xa1x\xc6\xff\xff\xff\xffab", "not the msgpack"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_sentence_for_what_cannot_be_read(name):
    message, words = BAD[name]
    with pytest.raises(ProtocolError, match=words) as error:
        protocol.unpack(message)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


DAMAGED = st.builds(
    lambda at, part: array()[:at] + part + array()[at + 1 :], st.integers(0, len(array())), st.binary(max_size=3)
)


@given(st.binary(max_size=200) | DAMAGED)
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_else(data):
    with contextlib.suppress(ProtocolError):
        assert isinstance(protocol.unpack(data), dict)


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(ValueError, match="object"):
        protocol.pack({"x": np.array([None])})
    with pytest.raises(TypeError, match="set"):
        protocol.pack({"x": {1}})


def openpi_observation():
    rng = np.random.default_rng(0)
    return {
        "observation/image": rng.integers(0, 256, (6, 5, 3), dtype=np.uint8),
        "observation/wrist_image": rng.integers(0, 256, (6, 5, 3), dtype=np.uint8),
        "observation/state": rng.uniform(-1, 1, 8),
        "prompt": "pick up the milk",
    }


def test_every_layout_gives_the_same_observation():
    sent = openpi_observation()
    image, wrist, state = (sent[f"observation/{key}"] for key in ("image", "wrist_image", "state"))
    stacked = {"images": np.stack([image, wrist]), "state": state, "prompt": sent["prompt"]}
    views = {"images": {"wrist": wrist, "agentview": image}, "state": state, "instruction": sent["prompt"]}
    for message in (sent, stacked, views, stacked | {"unknown": 1}):
        parsed = SPEC.parse(message)
        np.testing.assert_array_equal(parsed["images"], [image, wrist])
        np.testing.assert_array_equal(parsed["state"], state.astype(np.float32))
        assert parsed["prompt"] == sent["prompt"]


def test_saying_nothing_takes_saying_so():
    silent = openpi_observation() | {"prompt": ""}
    assert SPEC.parse(silent | {"no_instruction": True})["prompt"] == ""
    for message in (silent, silent | {"no_instruction": 1}, silent | {"prompt": " ", "no_instruction": True}):
        with pytest.raises(ProtocolError, match="1 to 2000 characters"):
            SPEC.parse(message)


def test_layouts_follow_the_cameras():
    assert set(SPEC.layouts()) == {"stacked", "views", "openpi-libero"}
    turned = ObservationSpec(("wrist", "agentview"), 8).parse(openpi_observation())["images"]
    np.testing.assert_array_equal(turned[0], openpi_observation()["observation/wrist_image"])
    assert set(ObservationSpec(("left", "right"), 8).layouts()) == {"stacked", "views"}
    alone = ObservationSpec(("agentview",), 8)
    assert "observation/wrist_image" not in alone.layouts()["openpi-libero"]
    assert alone.parse(openpi_observation())["images"].shape == (1, 6, 5, 3)
    with pytest.raises(ProtocolError, match="lacks 'images'"):
        ObservationSpec(("left", "right"), 8).parse(openpi_observation())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("observation/image", None, "lacks 'observation/image'"),
        ("observation/state", None, "lacks 'observation/state'"),
        ("prompt", None, "lacks 'prompt'"),
        ("observation/image", np.zeros((6, 5, 3), np.float32), r"uint8 .* got float32\[6, 5, 3\]"),
        ("observation/image", np.zeros((3, 6, 5), np.uint8), "uint8"),
        ("observation/image", np.zeros((0, 5, 3), np.uint8), "sides of 1"),
        ("observation/image", np.zeros((5000, 1, 3), np.uint8), "sides of 1 to 4096"),
        ("observation/wrist_image", np.zeros((7, 5, 3), np.uint8), "one size, got .* 6 x 5, .* 7 x 5"),
        ("observation/wrist_image", "a picture", "a text of 9 characters"),
        ("observation/state", np.zeros(7), r"8 floats, got float64\[7\]"),
        ("observation/state", np.zeros((1, 8)), "8 floats"),
        ("observation/state", np.zeros(8, np.bool_), "8 floats"),
        ("observation/state", [0.0] * 8, "8 floats, got list"),
        ("observation/state", np.array([0, 0, np.nan, 0, 0, 0, 0, 0]), "not finite, at index 2"),
        ("observation/state", np.array([0, 1e300, 0, 0, 0, 0, 0, 0]), "not finite, at index 1"),
        ("prompt", b"pick", "got bytes"),
        ("prompt", "  ", "1 to 2000 characters"),
        ("prompt", "x" * 2001, "2001 characters"),
    ],
)
def test_an_observation_that_cannot_be_used_is_one_sentence(key, value, words):
    message = openpi_observation() | {key: value}
    if value is None:
        del message[key]
    with pytest.raises(ProtocolError, match=words):
        SPEC.parse(message)


def test_stacked_images_are_checked_too():
    good = {"images": np.zeros((2, 4, 4, 3), np.uint8), "state": np.zeros(8), "prompt": "go"}
    for wrong in (np.zeros((3, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 4, 4, 3)), "x"):
        with pytest.raises(ProtocolError, match="images"):
            SPEC.parse(good | {"images": wrong})
    with pytest.raises(ProtocolError, match="lacks 'wrist'"):
        SPEC.parse(good | {"images": {"agentview": np.zeros((4, 4, 3), np.uint8)}})
