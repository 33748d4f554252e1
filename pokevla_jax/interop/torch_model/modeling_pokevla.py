"""PokeVLA in PyTorch: two views, an instruction and the robot's state to a chunk of actions.

``AutoModel.from_pretrained(folder, trust_remote_code=True)`` loads it and ``predict_action`` runs it. Parameters have
the names of the public code that each part comes from: timm's ViTs, Prismatic's projector, Qwen2, VLA-Adapter's head.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import nn
from transformers import PreTrainedModel

from .action_head_pokevla import ActionHead
from .action_head_pokevla import Context
from .action_head_pokevla import proprio_projector
from .backbone_pokevla import LanguageModel
from .backbone_pokevla import Projector
from .backbone_pokevla import VisionBackbone
from .configuration_pokevla import PokeVLAConfig
from .configuration_pokevla import namespace
from .processing_pokevla import PokeVLAProcessor
from .training_parts_pokevla import AlignProjector
from .training_parts_pokevla import KeypointHead
from .training_parts_pokevla import MaskStage
from .training_parts_pokevla import image_encoder
from .training_parts_pokevla import seg_projection

DEFECTS = {"missing_keys": "lacks", "unexpected_keys": "has a surplus", "mismatched_keys": "has a misshaped"}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")

Observation = tuple[Sequence[np.ndarray], str, Sequence[float]]
"""Images in the order of the views, instruction, robot state."""


class PokeVLA(PreTrainedModel):
    """The network with what stands around it (``processor``)."""

    processor: Any
    language_model: Any
    config_class = PokeVLAConfig
    main_input_name = "images"
    _supports_sdpa = True
    _no_split_modules = ["ViTBlock", "LanguageLayer", "Block"]

    def __init__(self, config: PokeVLAConfig):
        super().__init__(config)
        network = namespace(config.network)
        self.network, self.processor = network, None  # made by ``from_pretrained``
        vision, width = network.vision, network.language.width
        self.vision_backbone = VisionBackbone(vision)
        self.projector = Projector(vision.dinov2.width + vision.siglip.width, vision.projector_dim, width)
        self.language_model = nn.ModuleDict({"model": LanguageModel(network.language)})
        self.action_queries = nn.Embedding(network.action_head.num_queries, width)
        self.seg_token = nn.Embedding(1, width) if network.seg_token else None
        self.action_head = ActionHead(network)
        self.proprio_projector = proprio_projector(network)
        self.has_masks = config.training_parts and network.segmentation.weight > 0
        if self.has_masks:
            self.text_hidden_fcs = seg_projection(network)
            # Trained on precomputed image features, it holds no encoder that could make them of other images.
            inside = getattr(network.segmentation, "source", "inside") == "inside"
            self.image_encoder = image_encoder(network) if inside else None
            self.coarse = MaskStage(network.segmentation, mask_prompt=False)
            self.fine = MaskStage(network.segmentation, mask_prompt=True)
        has_align, has_keypoints = network.geometry.weight > 0, network.keypoint.weight > 0
        self.align_projector = AlignProjector(network) if config.training_parts and has_align else None
        self.keypoint_head = KeypointHead(network) if config.training_parts and has_keypoints else None
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """The network of an exported folder or hub repository, in evaluation mode.

        Raises:
            ValueError: when the weights are not exactly those that the configuration asks for.
        """
        wants_info = options.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(name, *args, output_loading_info=True, **options)
        model, info = loaded
        for kind, what in DEFECTS.items():
            if info.get(kind):
                raise ValueError(f"{name} {what} tensor {sorted(map(str, info[kind]))[0]}; export the network again")
        hub = {key: options[key] for key in HUB_OPTIONS if key in options}
        model.processor = PokeVLAProcessor.from_pretrained(name, model.config.preprocessing, **hub)
        return (model, info) if wants_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is initialised: weights are always loaded."""

    def predict_action(
        self, images: Sequence[np.ndarray], instruction: str, state: Sequence[float], *, environment: bool = False
    ) -> np.ndarray:
        """Un-normalised actions, float32 [t, a], for one observation.

        Args:
            images: one uint8 array [h, w, 3] per view, in the order of ``config.preprocessing["views"]``, of any size.
            instruction: what the robot shall do.
            state: the robot's state as recorded, not normalised.
            environment: clip to [-1, 1] and make the gripper -1 or +1, as LIBERO's controller takes them.
        """
        return self.predict_actions([(images, instruction, state)], environment=environment)[0]

    def predict_actions(self, observations: Sequence[Observation], *, environment: bool = False) -> np.ndarray:
        """``predict_action`` of several observations at once, [b, t, a]."""
        with torch.inference_mode():
            normalized = self(**self.prepare(observations)).cpu().numpy()
        if not np.isfinite(normalized).all():
            raise ValueError("The network returned actions that are not finite; the weights are broken")
        actions = self.processor.actions(normalized)
        if environment:
            actions = np.clip(actions, -1, 1)
            actions[..., -1] = np.where(actions[..., -1] > 0, 1, -1)
        return actions

    def predict_masks(self, observations: Sequence[Observation]) -> np.ndarray:
        """Probability that a pixel shows one of the instruction's objects, [b, v, m, m]; needs the training parts."""
        if not self.has_masks:
            raise ValueError("This network has no mask decoder; export it with --include-training-parts")
        if self.image_encoder is None:
            raise ValueError("This network was trained on precomputed image features and holds no encoder to make them")
        with torch.inference_mode():
            record: dict[str, Tensor] = {}
            self(**self.prepare(observations), record=record, training_parts=True)
            return record["mask logits"].sigmoid().cpu().numpy()

    def prepare(self, observations: Sequence[Observation]) -> dict[str, Tensor | None]:
        """The inputs of ``forward`` for a batch of observations; prompts are padded to the longest."""
        rows = [self.processor(*observation) for observation in observations]
        length = max(len(row["tokens"]) for row in rows)
        tokens = np.stack([np.pad(row["tokens"], (0, length - len(row["tokens"]))) for row in rows])
        mask = np.stack([np.arange(length) < len(row["tokens"]) for row in rows])
        batch: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in ("images", "proprio")}
        batch |= {"tokens": tokens, "token_mask": None if mask.all() else mask}
        return {k: v if v is None else torch.from_numpy(v).to(self.device) for k, v in batch.items()}

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        proprio: Tensor,
        token_mask: Tensor | None = None,
        *,
        record: dict[str, Tensor] | None = None,
        training_parts: bool = False,
    ) -> Tensor:
        """Normalised actions, float32 [b, t, a].

        Args:
            images: uint8 [b, v, h, w, 3], cropped and resized to the network's size.
            tokens: the prompt's ids [b, l], right padded.
            proprio: normalised robot state [b, r].
            token_mask: which ids are real [b, l]; None if all are.
            record: takes the output of every part, by name.
            training_parts: whether to record the outputs of the training-only parts too.
        """
        record = {} if record is None else record
        b, v = images.shape[:2]
        flat = images.flatten(0, 1)
        features = [self.vision_backbone.featurizer(flat), self.vision_backbone.fused_featurizer(flat)]
        vision = self.projector(torch.cat(features, dim=-1)).reshape(b, -1, self.network.language.width)
        record |= {"DINOv2": features[0], "SigLIP": features[1], "projector": vision}
        states = self._language(vision, tokens, token_mask, record)
        contexts = self._contexts(states, vision.shape[1], tokens.shape[1], token_mask, proprio)
        actions = self.action_head(contexts, record=record).float()
        record["actions"] = actions
        if training_parts:
            self._training_parts(states[-1], vision.shape[1], images, record)
        return actions

    @property
    def _vision_start(self) -> int:
        return 0 if self.network.vision_position == "first" else 1

    def _language(
        self, vision: Tensor, tokens: Tensor, token_mask: Tensor | None, record: dict[str, Tensor]
    ) -> list[Tensor]:
        """Hidden states [b, s, d] after every layer."""
        (b, n, _), start = vision.shape, self._vision_start
        own = [token.weight for token in (self.seg_token, self.action_queries) if token is not None]
        model, learned = self.language_model["model"], torch.cat(own).expand(b, -1, -1)
        prompt = model.embed_tokens(tokens)
        sequence = torch.cat([prompt[:, :start], vision, prompt[:, start:], learned], dim=1)
        length, mask = sequence.shape[1], None
        positions = torch.arange(length, device=sequence.device)[None]
        if token_mask is not None:
            ones = token_mask.new_ones(b, length - token_mask.shape[1])
            seen = torch.cat([token_mask[:, :start], ones[:, :n], token_mask[:, start:], ones[:, n:]], dim=1)
            # Padding takes no position and is seen by nobody but itself.
            positions = seen.cumsum(-1) - 1
            square = torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
            mask = (square & (seen[:, None] | torch.eye(length, dtype=torch.bool, device=seen.device)))[:, None]
        states = model(sequence, positions, mask)
        record |= {f"language layer {index}": state for index, state in enumerate(states)}
        return states

    def _contexts(
        self, states: list[Tensor], num_vision: int, prompt_length: int, token_mask: Tensor | None, proprio: Tensor
    ) -> list[Context]:
        """What the head's blocks attend to: of every layer in turn, or of the last alone."""
        head, b = self.network.action_head, len(proprio)
        state = self.proprio_projector(proprio.to(states[0].dtype))[:, None]
        contexts = []
        for layer in states if head.context == "layerwise" else states[-1:]:
            start, first = self._vision_start, layer.shape[1] - head.num_queries
            queries = layer[:, first:]
            if head.shifted_context:
                # One position early: the token in front of the patches, the last one in front of the queries.
                start -= 1
                if self.seg_token is not None or token_mask is None:
                    before = layer[:, first - 1 : first]
                else:
                    last = num_vision + token_mask.sum(-1) - 1
                    before = layer[torch.arange(b, device=layer.device), last][:, None]
                queries = torch.cat([before, queries[:, :-1]], dim=1)
            context = {"query": torch.cat([queries, state], dim=1), "vision": layer[:, start : start + num_vision]}
            if head.inject_seg:
                context["seg"] = layer[:, first - 1 : first]
            contexts.append(context)
        return contexts

    def _training_parts(self, last: Tensor, num_vision: int, images: Tensor, record: dict[str, Tensor]) -> None:
        first, start = last.shape[1] - self.network.action_head.num_queries, self._vision_start
        if self.has_masks and self.image_encoder is not None:
            b, v = images.shape[:2]
            features = self.image_encoder(images.flatten(0, 1))
            embedding = self.text_hidden_fcs[0](last[:, first - 1]).repeat_interleave(v, dim=0)
            coarse = self.coarse(features, embedding)
            fine = self.fine(features, embedding, coarse)
            record |= {"coarse mask logits": coarse.unflatten(0, (b, v)), "mask logits": fine.unflatten(0, (b, v))}
        if self.align_projector is not None:
            record["align projector"] = self.align_projector(last[:, start : start + num_vision]).float()
        if self.keypoint_head is not None:
            record["keypoint head"] = self.keypoint_head(last[:, first - 1]).float().unflatten(-1, (-1, 3))
