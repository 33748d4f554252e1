"""The stage-2 objective: L1 on actions + 0.2 segmentation + 0.4 geometry (+ keypoints).

Every term is a mean over its *valid* entries in the whole global batch. The number of valid entries depends on the
batch alone, so it is counted first (``count_valid``) and each term is a sum divided by that count: a batch that is
cut over devices or accumulated in micro-batches gives the same loss and the same gradient as one that is not.
"""

import jax
import jax.numpy as jnp

from pokevla_jax.config import ModelConfig
from pokevla_jax.models import geometry
from pokevla_jax.models.pokevla import Outputs
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

Scalars = dict[str, Float[Array, ""]]

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
EPSILON = 1e-12


def count_valid(batch: Batch, config: ModelConfig) -> Scalars:
    """Valid entries per loss term in ``batch``, at least 1 each, as float32."""
    counts = {"action": jnp.sum(batch["action_mask"]) * config.action_dim}
    if config.segmentation.weight:
        counts["focal"] = jnp.sum(batch["mask_valid"])
        counts["kld"] = jnp.sum(has_target(batch["masks"], batch["mask_valid"]))
    if config.geometry.weight:
        counts["geometry"] = jnp.sum(geometry.valid_tokens(config, batch))
    if config.keypoint.weight:
        counts["keypoint"] = jnp.sum(batch["keypoints_valid"]) * 3
    return {name: jnp.maximum(count.astype(jnp.float32), 1.0) for name, count in counts.items()}


def compute_losses(
    outputs: Outputs, batch: Batch, config: ModelConfig, counts: Scalars | None = None
) -> tuple[Float[Array, ""], Scalars]:
    """The weighted total and its unweighted parts, float32.

    Args:
        outputs: of this batch, with the training-only parts.
        batch: labels, as in ``data.schema.batch_spec``.
        config: weights; a part of weight 0 is not computed.
        counts: ``count_valid`` of the global batch where ``batch`` is one micro-batch of it; its own by default.
    """
    counts = count_valid(batch, config) if counts is None else counts
    parts = {"action": action_loss(outputs.actions, batch["actions"], batch["action_mask"]) / counts["action"]}
    total = parts["action"]
    if config.segmentation.weight:
        segmentation = config.segmentation
        masks, valid = batch["masks"], batch["mask_valid"]
        focal, kld = segmentation_losses(_present(outputs, "mask_logits"), masks, valid)
        parts |= {"focal": focal / counts["focal"], "kld": kld / counts["kld"]}
        seg = segmentation.focal_weight * parts["focal"] + segmentation.kld_weight * parts["kld"]
        if segmentation.coarse_weight:
            focal, kld = segmentation_losses(_present(outputs, "coarse_logits"), masks, valid)
            parts |= {"coarse_focal": focal / counts["focal"], "coarse_kld": kld / counts["kld"]}
            coarse = segmentation.focal_weight * parts["coarse_focal"] + segmentation.kld_weight * parts["coarse_kld"]
            seg += segmentation.coarse_weight * coarse
        total += segmentation.weight * seg
    if config.geometry.weight:
        inside = geometry.computes_teacher(config.geometry)
        target = _present(outputs, "teacher") if inside else geometry.batch_targets(config, batch)
        valid = geometry.valid_tokens(config, batch)
        parts["geometry"] = geometry_loss(_present(outputs, "aligned"), target, valid) / counts["geometry"]
        total += config.geometry.weight * parts["geometry"]
    if config.keypoint.weight:
        target = geometry.scale_keypoints(batch["keypoints"], config)
        parts["keypoint"] = (
            keypoint_loss(_present(outputs, "keypoints"), target, batch["keypoints_valid"]) / counts["keypoint"]
        )
        total += config.keypoint.weight * parts["keypoint"]
    return total, parts


def _present(outputs: Outputs, part: str) -> Array:
    """The output ``part``; absent, it has weight and yet was not computed, which is a mistake of the caller."""
    value = getattr(outputs, part)
    if value is None:
        raise ValueError(f"Outputs have no {part}, whose loss has weight; run the model with train=True")
    return value


def action_loss(
    predicted: Float[Array, "b t a"], actions: Float[Array, "b t a"], mask: Bool[Array, "b t"]
) -> Float[Array, ""]:
    """Sum of absolute errors over the valid steps of the chunks (normalised actions)."""
    error = jnp.abs(predicted.astype(jnp.float32) - actions.astype(jnp.float32))
    return jnp.sum(error * mask[..., None])


def has_target(masks: UInt8[Array, "b v h w"], valid: Bool[Array, "b v"]) -> Bool[Array, "b v"]:
    """Views whose label exists and shows a pixel of the target: elsewhere it has no distribution over pixels."""
    return valid & jnp.any(masks > 0, axis=(-2, -1))


def segmentation_losses(
    logits: Float[Array, "b v h w"], masks: UInt8[Array, "b v h w"], valid: Bool[Array, "b v"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums over views of the sigmoid focal loss (mean over pixels) and of KL(target || prediction).

    Focal loss: Lin et al. 2017 with alpha 0.25, gamma 2. KLD: the sigmoid map and the target are each divided by
    their sum over the view, as in GLOVER++; views without a target pixel count for the focal loss alone.
    """
    logits = logits.astype(jnp.float32)
    target = (masks > 0).astype(jnp.float32)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    log_pt = jnp.where(target > 0, log_p, log_not_p)
    alpha = jnp.where(target > 0, FOCAL_ALPHA, 1.0 - FOCAL_ALPHA)
    focal = jnp.mean(-alpha * (1.0 - jnp.exp(log_pt)) ** FOCAL_GAMMA * log_pt, axis=(-2, -1))

    # The normalised sigmoid map in log space: exact where the map is almost zero and an added epsilon would bias it.
    log_map = log_p - jax.nn.logsumexp(log_p, axis=(-2, -1), keepdims=True)
    distribution = target / jnp.maximum(jnp.sum(target, axis=(-2, -1), keepdims=True), 1.0)
    kld = jnp.sum(distribution * (jnp.log(distribution + EPSILON) - log_map), axis=(-2, -1))
    return jnp.sum(focal * valid), jnp.sum(kld * has_target(masks, valid))


def geometry_loss(
    predicted: Float[Array, "b n f"], target: Float[Array, "b n f"], valid: Bool[Array, "b n"]
) -> Float[Array, ""]:
    """Sum over valid vision tokens of 1 - cosine(prediction, teacher); the teacher receives no gradient (eq. 5)."""
    predicted = predicted.astype(jnp.float32)
    target = jax.lax.stop_gradient(target.astype(jnp.float32))
    # max(|x|², eps) under the root: a zero vector (an invalid point) must not turn its masked gradient into NaN.
    scale = jax.lax.rsqrt(
        jnp.maximum(jnp.sum(predicted**2, -1), EPSILON) * jnp.maximum(jnp.sum(target**2, -1), EPSILON)
    )
    distance = 1.0 - jnp.sum(predicted * target, -1) * scale
    return jnp.sum(distance * valid)


def keypoint_loss(
    predicted: Float[Array, "b k 3"], target: Float[Array, "b k 3"], valid: Bool[Array, "b k"]
) -> Float[Array, ""]:
    """Sum of absolute errors of the valid keypoints' scaled coordinates."""
    return jnp.sum(jnp.abs(predicted.astype(jnp.float32) - target) * valid[..., None])
