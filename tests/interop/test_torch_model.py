"""The exported PyTorch code computes what the JAX network computes, for every choice of the head."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pokevla_jax import config as config_lib
from pokevla_jax.config import AugmentConfig
from pokevla_jax.data import tokenize
from pokevla_jax.data import transforms
from pokevla_jax.data.normalize import ColumnStatistics
from pokevla_jax.data.normalize import normalize
from pokevla_jax.data.normalize import unnormalize
from pokevla_jax.interop.jax_outputs import outputs
from pokevla_jax.interop.torch_model import action_head_pokevla
from pokevla_jax.interop.torch_model import processing_pokevla
from pokevla_jax.interop.torch_model import training_parts_pokevla
from pokevla_jax.interop.torch_model.backbone_pokevla import MLP
from pokevla_jax.interop.torch_model.configuration_pokevla import PokeVLAConfig
from pokevla_jax.interop.torch_model.configuration_pokevla import namespace
from pokevla_jax.interop.torch_model.modeling_pokevla import PokeVLA
from pokevla_jax.models import image_encoders
from pokevla_jax.models import stacking
from pokevla_jax.models import vla_adapter
from pokevla_jax.models.action_head import ActionHead
from tests.interop import small

# A compilation is most of a test's time, and the mathematics does not depend on how well it is optimised.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TOLERANCE = 1e-5
PROMPT = "Pick up the Alphabet soup, and place it in the basket! "


def jit(function):
    return jax.jit(function, compiler_options=QUICK)


def assert_close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    rms = np.sqrt(np.mean(np.square(ours)))
    assert rms > 1e-3  # a comparison of zeros would prove nothing
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=tolerance * rms)


def as_tensors(batch):
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    return tensors | {"tokens": tensors["tokens"].long()}


HEADS = {
    "default": {},
    "original block": {"block": "original"},
    "layerwise": {"context": "layerwise"},
    "one attention per source": {"concat": "outputs"},
    "gated seg": {"gate": "vision_and_seg"},
    "no gate": {"gate": "none"},
    "no seg": {"inject_seg": False},
    "VLA-Adapter's positions": {"rotary": "vla_adapter"},
    "projected latents": {"latents": "projected"},
    "original, layerwise, outputs, gated": {
        "block": "original",
        "concat": "outputs",
        "gate": "vision_and_seg",
        "context": "layerwise",
    },
}


@pytest.mark.parametrize("choice", HEADS)
def test_the_head_with_every_choice(choice):
    model = small.make_model(**HEADS[choice])
    params = small.make_params(model)
    rng = np.random.default_rng(1)
    lead = (model.language.num_layers,) if model.action_head.context == "layerwise" else ()
    width = model.language.width
    shapes = {"vision": (2, 7, width), "seg": (2, width), "queries": (2, 5, width)}
    states = {name: rng.normal(size=(*lead, *shape)).astype(np.float32) for name, shape in shapes.items()}
    proprio = rng.uniform(-1, 1, (2, model.proprio_dim)).astype(np.float32)
    if not model.action_head.inject_seg:
        states["seg"] = None
    head = stacking.fill(ActionHead(model), jax.tree.map(jnp.asarray, params["action_head"]))
    ours = jit(lambda s, p: head(s["vision"], s["seg"], s["queries"], p))(states, proprio)

    network = namespace(config_lib.to_dict(model))
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in small.to_torch(model, params).items()}
    theirs, state = action_head_pokevla.ActionHead(network), action_head_pokevla.proprio_projector(network)
    assert isinstance(state, MLP)
    for module, prefix in ((theirs, "action_head."), (state, "proprio_projector.")):
        own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        module.load_state_dict(own)
    contexts = []
    token = state(torch.from_numpy(proprio))[:, None]
    for index in range(lead[0] if lead else 1):
        one = {name: torch.from_numpy(x[index] if lead else x) for name, x in states.items() if x is not None}
        context = {"vision": one["vision"], "query": torch.cat([one["queries"], token], dim=1)}
        contexts.append(context | ({"seg": one["seg"][:, None]} if "seg" in one else {}))
    assert_close(ours, theirs(contexts))


def test_sams_image_encoder(monkeypatch):
    """The frozen encoder of ``pokevla``, with fewer and narrower blocks: windows that do not divide the map."""
    monkeypatch.setitem(image_encoders.SAM_SIZES, "vit_b", image_encoders.SamSize(24, 2, 2, 1, window=3))
    monkeypatch.setitem(
        training_parts_pokevla.SAM_SIZES, "vit_b", training_parts_pokevla.SamSize(24, 4, 2, period=2, window=3)
    )
    model = small.make_model()
    model = dataclasses.replace(model, segmentation=dataclasses.replace(model.segmentation, image_encoder="sam"))
    params, images = small.make_params(model), small.make_batch(model)["images"][:, 0]
    encoder = stacking.fill(
        image_encoders.SamEncoder(model), jax.tree.map(jnp.asarray, params["segmentation"]["image_encoder"])
    )
    ours = jit(encoder)(images)

    prefix = "image_encoder."
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in small.to_torch(model, params).items()}
    theirs = training_parts_pokevla.image_encoder(namespace(config_lib.to_dict(model)))
    theirs.load_state_dict({n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)})
    with torch.inference_mode():
        features = theirs(torch.from_numpy(images)).permute(0, 2, 3, 1)
        assert_close(ours, features)
        for block in theirs.blocks:
            block.attn.rel_pos_h.zero_()
        with pytest.raises(AssertionError):
            assert_close(ours, theirs(torch.from_numpy(images)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("kind", ["pokevla", "vla_adapter"])
def test_the_whole_network_part_by_part(kind):
    model = small.make_model() if kind == "pokevla" else small.make_vla_adapter()
    params, batch = small.make_params(model), small.make_batch(model)
    ours = jit(lambda p, b: outputs(model, p, b, training_parts=True))(params, batch)
    network = PokeVLA(PokeVLAConfig(network=config_lib.to_dict(model), training_parts=True)).eval()
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in small.to_torch(model, params).items()}
    assert network.load_state_dict(tensors).missing_keys == []
    record = {}
    with torch.inference_mode():
        theirs = network(**as_tensors(batch), record=record, training_parts=True)
        # A prompt by itself takes the path without a mask; padding changes nothing.
        alone = {name: x[1:] for name, x in as_tensors(batch).items()}
        alone["tokens"] = alone["tokens"][:, : int(alone.pop("token_mask").sum())]
        unpadded = network(**alone)
    assert set(ours) <= set(record)
    for part, values in ours.items():
        if not part.startswith("language layer"):  # padding rows have no meaning there
            assert_close(values, record[part], 1e-4)
    assert_close(ours["actions"], theirs)
    assert_close(ours["actions"][1:], unpadded)
    vision = slice(0, model.num_vision_tokens)
    assert_close(ours["language layer 1"][:, vision], record["language layer 1"][:, vision])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vla_adapters_positions_round_as_the_reference_does(dtype):
    """In bfloat16 positions above 256 fall together, which float32 would not show."""
    x = np.random.default_rng(0).normal(size=(1, 300, 2, 8)).astype(np.float32)
    ours = vla_adapter.rotate(jnp.asarray(x, dtype)).astype(jnp.float32)
    tensor = torch.from_numpy(x).to(getattr(torch, dtype)).transpose(1, 2)
    rotary = action_head_pokevla.vla_adapter_rotary(torch.arange(300), 8, tensor.dtype)
    theirs = action_head_pokevla.vla_adapter_turn(tensor, rotary).float().transpose(1, 2)
    assert_close(ours, theirs, 1e-6 if dtype == "float32" else 2e-2)
    together = bool((rotary[0][256] == rotary[0][257]).all())
    assert together == (dtype == "bfloat16")


@pytest.mark.parametrize("size", [(256, 256), (480, 640), (100, 90), (224, 224), (128, 200), (448, 448), (333, 512)])
@pytest.mark.parametrize("area", [0.9, 1.0])
def test_images_are_prepared_as_in_training(size, area):
    """To the bit, but for a rounding of the last kind in one pixel of ten thousand."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    window = transforms.central_window(AugmentConfig(crop_area=area))
    for target in (128, 224):
        ours = transforms.crop_image(image, window, target)
        theirs = processing_pokevla.prepare_image(image, target, area)
        assert theirs.dtype == np.uint8 and theirs.shape == ours.shape
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 1
        assert np.mean(difference > 0) <= 1e-4


def test_columns_are_normalised_as_in_training():
    rng = np.random.default_rng(0)
    q01 = rng.normal(size=5)
    q99 = q01 + np.array([1.0, 2.0, 1e-5, 0.0, 1.0])
    moments = {"mean": q01, "std": q01, "min": q01, "max": q99, "q01": q01, "q99": q99}
    column = ColumnStatistics(**moments, mask=np.array([True, True, True, True, False]), floor=1e-2)
    values = {name: np.asarray(getattr(column, name)).tolist() for name in ("q01", "q99", "mask", "floor")}
    theirs = processing_pokevla.Column(values)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    np.testing.assert_array_equal(theirs.normalize(x), normalize(x, column))
    np.testing.assert_array_equal(theirs.unnormalize(x), unnormalize(x, column))
    # VLA-Adapter's files have neither floor nor, for the state, a mask.
    bare = processing_pokevla.Column({"q01": values["q01"], "q99": values["q99"]})
    full = dataclasses.replace(column, floor=0.0, mask=np.ones(5, bool))
    np.testing.assert_array_equal(bare.unnormalize(x), unnormalize(x, full))


def test_prompts_have_the_same_ids_as_in_training(tmp_path):
    template = "What action should the robot take to {instruction}?"
    ours = tokenize.CompactTokenizer.from_corpus([PROMPT], template)
    settings = {"kind": "compact", "words": list(ours.words), "prompt_template": template}
    theirs = processing_pokevla._tokenizer(settings, None)
    for instruction in (PROMPT, "", "an unknown word: basket"):
        assert theirs(instruction) == ours.encode(instruction)
    if not os.environ.get("QWEN_TOKENIZER"):
        pytest.skip("set QWEN_TOKENIZER to a folder with Qwen2.5's tokenizer for the other half")
    qwen = tokenize.QwenTokenizer(os.environ["QWEN_TOKENIZER"], template)
    qwen.save(tmp_path)
    settings = {"kind": "qwen", "prompt_template": template, "chat_template": tokenize.QWEN_CHAT}
    theirs = processing_pokevla._tokenizer(settings, str(tmp_path / processing_pokevla.TOKENIZER))
    for instruction in (PROMPT, "", "café 3 < 4"):
        assert theirs(instruction) == qwen.encode(instruction)
    with pytest.raises(ValueError, match="starts a control token"):
        theirs("stop <|im_end|>")


def test_broken_observations_are_refused_in_a_sentence():
    state = {"q01": [0.0, 0.0], "q99": [1.0, 1.0]}
    preprocessing = {
        "views": ["agentview", "wrist"],
        "image_size": 16,
        "crop_area": 0.9,
        "zero_images": False,
        "zero_language": False,
        "max_prompt_length": 4,
        "tokenizer": {"kind": "compact", "words": ["go"], "prompt_template": "{instruction}"},
    }
    processor = processing_pokevla.PokeVLAProcessor(preprocessing, {"d": {"proprio": state, "action": state}})
    images, values = [np.zeros((20, 30, 3), np.uint8)] * 2, [0.5, 0.5]
    row = processor(images, "Go", values)
    assert row["images"].shape == (2, 16, 16, 3) and row["tokens"].tolist() == [2, 3]
    for broken in (images[:1], [x.astype(np.float32) for x in images], [x[..., 0] for x in images]):
        with pytest.raises(ValueError, match="one for each of agentview, wrist"):
            processor(broken, "go", values)
    with pytest.raises(ValueError, match="2 finite numbers"):
        processor(images, "go", [0.5])
    with pytest.raises(ValueError, match="2 finite numbers"):
        processor(images, "go", [0.5, np.nan])
    with pytest.raises(ValueError, match="5 tokens"):
        processor(images, "go go go go", values)
