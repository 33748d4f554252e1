"""The whole stage-2 network of the ``pokevla`` wiring, its losses and their gradients against a PyTorch reference."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from pokevla_jax.config import Config
from pokevla_jax.config import VggtConfig
from pokevla_jax.config import validate
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.interop import names
from pokevla_jax.models import image_encoders
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.models.image_encoders import SamSize
from pokevla_jax.sharding import flatten
from pokevla_jax.training import stage2
from pokevla_jax.training.losses import compute_losses
from pokevla_jax.training.optimizer import unflatten
from tests.parity.compare import assert_far
from tests.parity.compare import assert_same
from tests.parity.compare import randomise
from tests.parity.torch_reference import stage2 as reference

SAM = SamSize(width=16, num_heads=2, num_groups=2, num_windowed=1, window=3, patch_size=4)
OUTPUTS = ("actions", "coarse_logits", "mask_logits", "aligned", "teacher")
PARTS = ("action", "focal", "kld", "geometry")


def small():
    """``pokevla`` with every number made small and no wiring changed."""
    full, replace = presets.pokevla(), dataclasses.replace
    tower = dict(width=16, depth=3, num_heads=2, mlp_dim=24)
    return replace(
        full,
        preset="small pokevla",
        vision=replace(
            full.vision,
            image_size=16,
            patch_size=4,
            dinov2=replace(full.vision.dinov2, **tower),
            siglip=replace(full.vision.siglip, **(tower | {"width": 12})),
            projector_dim=20,
        ),
        language=replace(
            full.language, vocab_size=30, width=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=40
        ),
        action_head=replace(full.action_head, num_layers=2, width=32, num_heads=4, num_queries=3),
        segmentation=replace(full.segmentation, feature_grid=5, decoder_dim=16, decoder_heads=2, decoder_mlp_dim=24),
        geometry=replace(
            full.geometry,
            vggt=VggtConfig(
                image_size=30, patch_size=5, width=24, num_heads=3, mlp_dim=40, num_registers=2, embed_depth=1, depth=2
            ),
            feature_dim=48,
        ),
        max_prompt_length=6,
        dtype="float32",
        remat="none",
    )


def make_batch(config):
    """Prompts of different lengths, padded chunks, a view without target, a view without label."""
    batch = fake_batch(Config(model=config), 3)
    batch["token_mask"][1, 4:] = False
    batch["token_mask"][2, 1:] = False
    batch["action_mask"][2, 5:] = False
    batch["masks"][0, 1] = 0
    batch["mask_valid"][2, 0] = False
    return batch


def reference_of(config, *, wrong=None):
    depth = SAM.num_groups * (SAM.num_windowed + 1)
    sizes = dict(width=SAM.width, heads=SAM.num_heads, depth=depth, window=SAM.window, patch=SAM.patch_size)
    model = reference.Stage2(config, {**sizes, "global_blocks": [1, 3]}, wrong=wrong)
    randomise(model, logit_gain=2.0)
    randomise(model.vggt["aggregator"].patch_embed, seed=1)  # by the names of a ViT of its own
    generator = torch.Generator().manual_seed(1)
    for part in (model.coarse, model.fine):
        part["prompt_encoder"].pe_layer.positional_encoding_gaussian_matrix.normal_(generator=generator)
    return model


def to_ours(table, tensors, missing=None):
    """Our parameters from PyTorch's tensors by name; where ``missing`` is given, it stands for absent ones."""
    params = {}
    for entry in table.entries:
        values = [tensors.get(name, missing) if missing is not None else tensors[name] for name in entry.names]
        values = [np.broadcast_to(value, entry.torch_shape) for value in values]
        params[entry.path] = entry.from_torch(values, np.dtype("float32"))
    return unflatten(params)


def tensors(batch):
    return {name: torch.tensor(value) for name, value in batch.items()}


@pytest.fixture(scope="module")
def both():
    """Outputs, losses and gradients of the network and of the reference, on the same weights and batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image_encoders.SAM_SIZES, "vit_b", SAM)
        config = small()
        validate(Config(model=config))
        batch, model, table = make_batch(config), reference_of(config), names.table(config)
        params = to_ours(table, {name: x.detach().numpy() for name, x in model.state_dict().items()})
        trainable = stage2.make_objective(Config(model=config)).trainable

        def loss(params):
            outputs = stacking.bind(config, params)(batch, train=True)
            total, parts = compute_losses(outputs, batch, config)
            return total, (outputs, parts)

        (total, (outputs, parts)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    their_outputs = model(tensors(batch))
    their_total, their_parts = reference.losses(their_outputs, tensors(batch), config)
    their_total.backward()
    their_grads = {name: x.grad.numpy() for name, x in model.named_parameters() if x.grad is not None}
    return SimpleNamespace(
        config=config,
        batch=batch,
        outputs=outputs,
        total=total,
        parts=parts,
        grads=flatten(grads),
        trainable=flatten(trainable),
        theirs=SimpleNamespace(
            outputs=their_outputs,
            total=their_total,
            parts=their_parts,
            grads=flatten(to_ours(table, their_grads, missing=np.zeros(()))),
        ),
    )


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_the_references(both, name):
    assert_same(getattr(both.outputs, name), both.theirs.outputs[name])


@pytest.mark.parametrize("name", PARTS)
def test_every_loss_is_the_references(both, name):
    np.testing.assert_allclose(both.parts[name], both.theirs.parts[name].detach(), rtol=1e-4)


def test_the_total_is_the_references(both):
    np.testing.assert_allclose(both.total, both.theirs.total.detach(), rtol=1e-4)


def test_gradients_are_the_references_and_frozen_parts_have_none(both):
    sizes = {name: np.sqrt(np.mean(np.square(x))) for name, x in both.theirs.grads.items() if both.trainable[name]}
    # Shared by all keys, a bias changes no softmax: its gradient is rounding, and what it is compared with a floor.
    floor = 1e-2 * np.median([size for size in sizes.values() if size])
    assert len([name for name, size in sizes.items() if size > floor]) > 100
    wrong = {}
    for name, ours in both.grads.items():
        if not both.trainable[name]:
            assert not np.any(ours), name
            continue
        difference = np.abs(ours - both.theirs.grads[name]).max() / max(sizes[name], floor)
        if difference > 1e-3:
            wrong[name] = difference
    assert wrong == {}


@pytest.mark.parametrize(("mistake", "output"), reference.MISTAKES.items())
def test_a_mistake_in_the_reference_would_be_seen(both, mistake, output):
    with torch.no_grad():
        outputs = reference_of(both.config, wrong=mistake)(tensors(both.batch))
    assert_far(outputs[output], both.theirs.outputs[output])


@pytest.mark.parametrize(("mistake", "part"), reference.LOSS_MISTAKES.items())
def test_a_mistake_in_a_loss_would_be_seen(both, mistake, part):
    _, parts = reference.losses(both.theirs.outputs, tensors(both.batch), both.config, wrong=mistake)
    for name in PARTS:
        far = abs(parts[name] / both.theirs.parts[name] - 1) > 1e-3
        assert far == (name == part)
