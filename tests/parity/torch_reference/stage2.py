"""PokeVLA's whole stage-2 forward pass and its losses in PyTorch, written from their description.

Names are those of the exported PyTorch model. Samples are computed one by one, without padding. ``wrong`` names one
deliberate mistake, for tests that must be able to fail.
"""

import math

import torch
import transformers
from torch import nn
from torch.nn import functional

from tests.parity.torch_reference import action_head
from tests.parity.torch_reference import sam
from tests.parity.torch_reference import vggt

# What goes wrong, and an output that shows it.
MISTAKES = {
    "towers_swapped": "aligned",
    "last_block": "actions",
    "no_causal_mask": "aligned",
    "views_swapped": "actions",
    "gate_lost": "actions",
    "released_rotary": "actions",
    "coarse_prompt_lost": "mask_logits",
    "sam_not_scaled": "coarse_logits",
}
LOSS_MISTAKES = {
    "padding_counted": "action",
    "alpha_swapped": "focal",
    "empty_view_counted": "kld",
    "kld_turned": "kld",
    "teacher_turned": "geometry",
}


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))


class Tower(nn.Module):
    """timm's vision transformer, read at a block's raw output."""

    def __init__(self, config, vision, *, wrong=None):
        super().__init__()
        self.config, self.wrong, width = config, wrong, config.width
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, vision.num_patches, width))
        self.patch_embed = vggt.PatchProjection(width, vision.patch_size)
        self.blocks = nn.ModuleList([self._block(config) for _ in range(config.depth)])

    def _block(self, config):
        block = vggt.Block(config.width, config.num_heads, config.mlp_dim, qk_norm=False, eps=1e-6)
        block.ls1 = Scale(config.width) if config.layer_scale else None
        block.ls2 = Scale(config.width) if config.layer_scale else None
        return block

    def forward(self, images):
        """Images [b, 3, h, w] in [0, 1] to [b, patches, width]."""
        mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (self.config.image_mean, self.config.image_std))
        x = self.patch_embed((images - mean) / std) + self.pos_embed
        prefix = [
            getattr(self, name).expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if hasattr(self, name)
        ]
        x = torch.cat([*prefix, x], dim=1)
        count = sum(p.shape[1] for p in prefix)
        last = len(self.blocks) if self.wrong == "last_block" else len(self.blocks) + 1 + self.config.feature_block
        for block in self.blocks[:last]:
            for branch, scale in (
                (lambda y, block=block: block.attn(block.norm1(y)), block.ls1),
                (lambda y, block=block: block.mlp(block.norm2(y)), block.ls2),
            ):
                y = branch(x)
                x = x + (y if scale is None else y * scale.scale_factor)
        return x[:, count:]


class Mlp(nn.Module):
    """Linear maps with a GELU between."""

    def __init__(self, *widths):
        super().__init__()
        self.count = len(widths) - 1
        for i in range(self.count):
            setattr(self, f"fc{i + 1}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x):
        for i in range(self.count):
            x = getattr(self, f"fc{i + 1}")(x if i == 0 else functional.gelu(x))
        return x


def stage(seg, *, mask_prompt):
    parts = {
        "prompt_encoder": sam.PromptEncoder(seg.decoder_dim, seg.feature_grid, mask_prompt=mask_prompt),
        "mask_decoder": sam.MaskDecoder(seg.decoder_dim, seg.decoder_heads, seg.decoder_mlp_dim, seg.decoder_depth),
    }
    return nn.ModuleDict(parts)


class Stage2(nn.Module):
    """The network of a ``ModelConfig`` like the ``pokevla`` preset, with a SAM encoder of the given sizes."""

    def __init__(self, config, sam_sizes, *, wrong=None):
        super().__init__()
        vision, language, seg, teacher = config.vision, config.language, config.segmentation, config.geometry.vggt
        self.config, self.wrong = config, wrong
        self.vision_backbone = nn.ModuleDict(
            {
                "featurizer": Tower(vision.dinov2, vision, wrong=wrong),
                "fused_featurizer": Tower(vision.siglip, vision, wrong=wrong),
            }
        )
        width = language.width
        self.projector = Mlp(vision.dinov2.width + vision.siglip.width, vision.projector_dim, width, width)
        qwen = transformers.Qwen2Config(
            vocab_size=language.vocab_size,
            hidden_size=width,
            intermediate_size=language.mlp_dim,
            num_hidden_layers=language.num_layers,
            num_attention_heads=language.num_heads,
            num_key_value_heads=language.num_kv_heads,
            head_dim=language.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta},
            rms_norm_eps=language.norm_eps,
            attn_implementation="eager",
        )
        self.language_model = nn.ModuleDict({"model": transformers.Qwen2Model(qwen)})
        self.seg_token = nn.Embedding(1, width)
        self.action_queries = nn.Embedding(config.action_head.num_queries, width)
        head = action_head.Head(
            width=config.action_head.width,
            heads=config.action_head.num_heads,
            blocks=config.action_head.num_layers,
            actions=config.action_dim,
            horizon=config.action_horizon,
            context_width=width,
            seg=True,
            gated=() if wrong == "gate_lost" else ("task",),
            rotary="vla_adapter" if wrong == "released_rotary" else "half_split",
            latents="learned",
        )
        self.action_head = nn.ModuleDict({"model": head})
        self.proprio_projector = Mlp(config.proprio_dim, width, width)
        self.text_hidden_fcs = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, seg.decoder_dim))]
        )
        self.image_encoder = sam.ImageEncoder(grid=seg.feature_grid, outputs=seg.decoder_dim, **sam_sizes)
        self.sam_size = seg.feature_grid * sam_sizes["patch"]
        self.coarse, self.fine = stage(seg, mask_prompt=False), stage(seg, mask_prompt=True)
        self.align_projector = vggt.AlignProjector(width, config.geometry.feature_dim)
        self.vggt = nn.ModuleDict({"aggregator": vggt.Aggregator.of(teacher)})

    def see(self, images):
        """Uint8 [v, h, w, 3] to vision tokens [1, v * p, d]."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        if self.wrong == "views_swapped":
            pixels = pixels.flip(0)
        features = [self.vision_backbone[name](pixels) for name in ("featurizer", "fused_featurizer")]
        if self.wrong == "towers_swapped":
            features.reverse()
        return self.projector(torch.cat(features, dim=-1)).flatten(0, 1)[None]

    def think(self, vision, tokens):
        """Vision tokens and the prompt's valid tokens [l] to the last hidden states of all positions."""
        model = self.language_model["model"]
        parts = [
            vision,
            model.embed_tokens(tokens)[None],
            self.seg_token.weight[None],
            self.action_queries.weight[None],
        ]
        x = torch.cat(parts, dim=1)
        n = x.shape[1]
        mask = torch.full((n, n), -math.inf).triu(1)
        if self.wrong == "no_causal_mask":
            mask = torch.zeros(n, n)
        out = model(inputs_embeds=x, attention_mask=mask[None, None], position_ids=torch.arange(n)[None])
        return out.last_hidden_state

    def segment(self, images, seg):
        """Uint8 [v, h, w, 3] and the <SEG> state [1, d] to coarse and fine logits [v, m, m]."""
        with torch.no_grad():
            pixels = images.permute(0, 3, 1, 2).float()
            pixels = functional.interpolate(
                pixels, (self.sam_size, self.sam_size), mode="bilinear", align_corners=False, antialias=True
            )
            mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
            if self.wrong == "sam_not_scaled":  # to grey levels from 0 to 1
                pixels = pixels / 255
            features = self.image_encoder((pixels - mean) / std)
        embedding = self.text_hidden_fcs[0](seg).expand(len(images), -1)
        grid = self.config.segmentation.feature_grid
        coarse = self._decode(self.coarse, features, self.coarse["prompt_encoder"](), embedding, grid)
        prompt = self.fine["prompt_encoder"](coarse)
        if self.wrong == "coarse_prompt_lost":
            prompt = torch.zeros_like(prompt)
        fine = self._decode(self.fine, features, prompt, embedding, grid)
        return coarse, fine

    @staticmethod
    def _decode(parts, features, dense, embedding, grid):
        return parts["mask_decoder"](features, parts["prompt_encoder"].pe_layer(grid), dense, embedding)

    def teach(self, images):
        """Uint8 [b, v, h, w, 3] to the targets [b, n, f]."""
        geometry = self.config.geometry
        with torch.no_grad():
            return vggt.teacher_features(
                self.vggt["aggregator"],
                images,
                image_size=geometry.vggt.image_size,
                grid=self.config.vision.grid,
                layer=geometry.layer,
                add_positions=geometry.position_embedding,
            )

    def forward(self, batch):
        """Outputs of all parts, by the names of the JAX model's."""
        rows = [
            self._one(*row)
            for row in zip(*(batch[k] for k in ("images", "tokens", "token_mask", "proprio")), strict=True)
        ]
        outputs = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return outputs | {"teacher": self.teach(batch["images"])}

    def _one(self, images, tokens, valid, proprio):
        vision = self.see(images)
        n, q = vision.shape[1], self.config.action_head.num_queries
        states = self.think(vision, tokens[valid])
        h_vision, h_seg, h_query = states[:, :n], states[:, -q - 1], states[:, -q:]
        # Every block of the head reads the last layer.
        every = [x.expand(self.config.action_head.num_layers, *x.shape) for x in (h_query, h_vision, h_seg)]
        actions = self.action_head["model"](every[0], self.proprio_projector(proprio)[None], every[1], every[2])
        coarse, fine = self.segment(images, h_seg)
        return {
            "actions": actions,
            "coarse_logits": coarse[None],
            "mask_logits": fine[None],
            "aligned": self.align_projector(h_vision),
        }


def losses(outputs, batch, config, *, wrong=None):
    """The total and its unweighted parts: means over the valid entries of the batch."""
    valid_steps = torch.ones_like(batch["action_mask"]) if wrong == "padding_counted" else batch["action_mask"]
    parts = {"action": (outputs["actions"] - batch["actions"]).abs()[valid_steps].mean()}
    focal, kld = [], []
    for i in range(len(batch["masks"])):
        for view in range(batch["masks"].shape[1]):
            if not batch["mask_valid"][i, view]:
                continue
            logits, target = outputs["mask_logits"][i, view], (batch["masks"][i, view] > 0).float()
            cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
            p = logits.sigmoid()
            wrongness = target * (1 - p) + (1 - target) * p
            alpha = target * 0.25 + (1 - target) * 0.75
            if wrong == "alpha_swapped":
                alpha = 1 - alpha
            focal.append((alpha * wrongness**2 * cross_entropy).mean())
            if target.sum() == 0 and wrong != "empty_view_counted":
                continue  # there is no distribution to compare with
            goal, seen = target / target.sum().clamp_min(1), p.double() / p.double().sum()
            if wrong == "kld_turned":
                goal, seen = seen, goal
            kld.append((goal * ((goal + 1e-12).log() - (seen + 1e-30).log())).sum().float())
    parts["focal"], parts["kld"] = torch.stack(focal).mean(), torch.stack(kld).mean()
    teacher = outputs["teacher"].flip(-1) if wrong == "teacher_turned" else outputs["teacher"]
    parts["geometry"] = (1 - functional.cosine_similarity(outputs["aligned"], teacher, dim=-1)).mean()
    seg = config.segmentation.focal_weight * parts["focal"] + config.segmentation.kld_weight * parts["kld"]
    total = parts["action"] + config.segmentation.weight * seg + config.geometry.weight * parts["geometry"]
    return total, parts
