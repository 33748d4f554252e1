"""Every kind of source: told by its names, translated, resampled; and every bad one refused in one sentence."""

import json
import pickle

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import save_file

from pokevla_jax.interop import dialects
from pokevla_jax.interop import names
from pokevla_jax.interop.plan_import import plan
from pokevla_jax.interop.readers import SourceError
from pokevla_jax.interop.readers import open_file
from pokevla_jax.interop.sources import collect
from pokevla_jax.interop.sources import open_source
from pokevla_jax.models import image_encoders
from pokevla_jax.sharding import flatten
from tests.interop import fakes
from tests.interop import published
from tests.parity import mappings
from tests.parity import references
from tests.parity import test_sam as sam_parity
from tests.parity import test_vggt as vggt_parity
from tests.parity.compare import randomise

DINOV2, SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
SMALL_SAM = image_encoders.SamSize(8, 2, 2, 1, window=2)


def read(*paths):
    """All tensors of some sources by their names here, with their values."""
    tensors, origins = collect([open_source(path) for path in paths])
    return {name: tensor.read() for name, tensor in tensors.items()}, origins


def planned(config, *paths):
    tensors, _ = collect([open_source(path) for path in paths])
    return plan(config.model, tensors)


def write(path, tensors):
    save_file(tensors, path)
    return path


def in_parts(*parts):
    return {name for name in names.table(fakes.make_config().model).names if names.part_of(name) in parts}


def made(todo, part):
    """The imported parameters of a part, by path within it."""
    return {
        entry.path.removeprefix(f"{part}/"): entry.from_torch((t.read() for t in found), np.float32)
        for entry, found in todo.imported
        if entry.path.startswith(f"{part}/")
    }


def assert_equal(ours, theirs):
    theirs = flatten(theirs)
    assert set(ours) == set(theirs)
    for path, array in theirs.items():
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


def test_qwen_from_hugging_face_single_and_sharded(tmp_path):
    config = transformers.Qwen2Config(
        vocab_size=fakes.VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="8KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    expected = {f"language_model.{k}": v.numpy() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for folder in ("one", "many"):
        found, (origin,) = read(tmp_path / folder)
        assert origin.kind == "Qwen2 (Hugging Face)"
        assert set(found) == set(expected) == in_parts("language model")
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_tied_head_is_dropped_and_an_untied_one_refused(tmp_path):
    tensors = fakes.draw(published.qwen(**fakes.QWEN))
    table = tensors["model.embed_tokens.weight"]
    tied = write(tmp_path / "tied.safetensors", tensors | {"lm_head.weight": table.copy()})
    assert not planned(fakes.make_config(), tied).carried
    untied = write(tmp_path / "untied.safetensors", tensors | {"lm_head.weight": table + 1})
    with pytest.raises(SourceError, match=r"lm_head.weight .* differs from the input embedding"):
        planned(fakes.make_config(), untied)


def hugging_face_dinov2():
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=12, patch_size=4
    )
    model = transformers.Dinov2WithRegistersModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_dinov2_from_hugging_face_and_its_positions(tmp_path):
    model = hugging_face_dinov2()
    model.save_pretrained(tmp_path)
    found, (origin,) = read(tmp_path)
    assert (origin.kind, origin.left_out) == ("DINOv2 (Hugging Face)", 1)
    assert set(found) >= in_parts("DINOv2")
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    # Where names allow no doubt; q, k and v have theirs in the order of timm.
    layer = "encoder.layer.1.attention"
    qkv = np.concatenate([state[f"{layer}.{kind}_proj.weight"] for kind in "qkv"])
    np.testing.assert_array_equal(found[f"{DINOV2}blocks.1.attn.qkv.weight"], qkv)
    # The class token takes its position along; patches keep theirs (3 x 3 here, resampled to the network's 2 x 2).
    positions = state["embeddings.position_embeddings"]
    np.testing.assert_allclose(found[f"{DINOV2}cls_token"], state["embeddings.cls_token"] + positions[:, :1])
    todo = planned(fakes.make_config(), tmp_path)
    (resampled,) = (t for entry, (t, *_) in todo.imported if entry.path == "vision/dinov2/pos_embed")
    grid = torch.from_numpy(positions[:, 1:]).reshape(1, 3, 3, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (2, 2), mode="bicubic", antialias=True, align_corners=False)
    np.testing.assert_allclose(resampled.read()[0], expected[0].flatten(1).T.numpy(), atol=1e-5)
    assert {name.removeprefix(DINOV2).split(".")[0] for name in todo.carried} == {"blocks", "norm"}


def test_dinov2_of_timm_and_of_its_authors(tmp_path):
    config = fakes.make_config()
    timm = fakes.draw(published.dinov2(**fakes.DINOV2))
    found, (origin,) = read(write(tmp_path / "timm.safetensors", timm))
    assert origin.kind == "DINOv2 (timm or original)"
    assert set(found) == set(published.under(DINOV2, published.dinov2(**fakes.DINOV2, scale="scale_factor")))
    np.testing.assert_array_equal(found[f"{DINOV2}blocks.0.ls2.scale_factor"], timm["blocks.0.ls2.gamma"])
    # The authors' file: the class position inside, registers under another name, a mask token.
    authors = {k: v for k, v in timm.items() if k not in ("reg_token", "pos_embed")}
    authors |= fakes.draw({"register_tokens": (1, 4, 8), "pos_embed": (1, 10, 8), "mask_token": (1, 8)}, seed=1)
    fakes.save_torch(tmp_path / "authors.pth", authors)
    found, (origin,) = read(tmp_path / "authors.pth")
    assert origin.left_out == 1
    np.testing.assert_allclose(found[f"{DINOV2}cls_token"], timm["cls_token"] + authors["pos_embed"][:, :1])
    np.testing.assert_array_equal(found[f"{DINOV2}pos_embed"], authors["pos_embed"][:, 1:])
    assert planned(config, tmp_path / "authors.pth")


def test_siglip_of_timm_and_hugging_face_agree(tmp_path):
    config = transformers.SiglipVisionConfig(
        hidden_size=12, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20, image_size=8, patch_size=4
    )
    model = transformers.SiglipVisionModel(config)
    model.save_pretrained(tmp_path / "bare")
    state = {name.removeprefix("vision_model."): value.numpy() for name, value in model.state_dict().items()}
    whole = {f"vision_model.{name}": value for name, value in state.items()}
    whole |= fakes.draw({"logit_scale": (1,), "logit_bias": (1,), "text_model.head.weight": (4, 4)})
    write(tmp_path / "whole.safetensors", whole)
    expected = published.under(SIGLIP, published.siglip(**fakes.SIGLIP))
    for path, left_out in ((tmp_path / "bare", 0), (tmp_path / "whole.safetensors", 3)):
        found, (origin,) = read(path)
        assert (origin.kind, origin.left_out) == ("SigLIP (Hugging Face)", left_out)
        assert {name: array.shape for name, array in found.items()} == expected
        np.testing.assert_array_equal(found[f"{SIGLIP}pos_embed"][0], state["embeddings.position_embedding.weight"])
        # torch's in_proj holds q, k, v; timm's pooling has q alone and k with v.
        pool = state["head.attention.in_proj_weight"]
        np.testing.assert_array_equal(found[f"{SIGLIP}attn_pool.q.weight"], pool[:12])
        np.testing.assert_array_equal(found[f"{SIGLIP}attn_pool.kv.weight"], pool[12:])
    # The same once more under timm's names.
    timm = {name.removeprefix(SIGLIP): array for name, array in found.items()}
    again, (origin,) = read(write(tmp_path / "timm.safetensors", timm))
    assert origin.kind == "SigLIP (timm)"
    assert set(again) == set(found)
    assert len(planned(fakes.make_config(), tmp_path / "timm.safetensors").carried) == 12 + 2 + 13


def test_prismatic(tmp_path):
    state = {
        "projector": {f"projector.{2 * i}.{kind}": None for i in range(3) for kind in ("weight", "bias")},
        "llm_backbone": fakes.draw(published.under("llm.", published.qwen(**fakes.QWEN))),
        "vision_backbone": fakes.draw(
            {
                **published.under("dino_featurizer.", published.dinov2(**fakes.DINOV2)),
                **published.under("siglip_featurizer.", published.siglip(**fakes.SIGLIP)),
            }
        ),
    }
    fused = fakes.draw(published.projector(20, 24, fakes.WIDTH), seed=4)
    state["projector"] = {
        f"projector.{2 * i}.{kind}": fused[f"fc{i + 1}.{kind}"] for i in range(3) for kind in ("weight", "bias")
    }
    state["llm_backbone"]["llm.lm_head.weight"] = state["llm_backbone"]["llm.model.embed_tokens.weight"]
    tensors = {part: {k: torch.from_numpy(v) for k, v in entries.items()} for part, entries in state.items()}
    torch.save({"model": tensors, "epoch": 1, "optimizer": None}, tmp_path / "step.pt")
    found, (origin,) = read(tmp_path / "step.pt")
    assert origin.kind == "Prismatic"
    assert {names.part_of(name) for name in found} == {"DINOv2", "SigLIP", "projector", "language model"}
    np.testing.assert_array_equal(found["projector.fc2.weight"], fused["fc2.weight"])
    todo = planned(fakes.make_config(), tmp_path / "step.pt")
    assert {entry.path.split("/")[0] for entry, _ in todo.imported} == {"vision", "language"}


@pytest.fixture
def masked(monkeypatch):
    """A network whose SAM is small."""
    monkeypatch.setitem(image_encoders.SAM_SIZES, "vit_b", SMALL_SAM)
    return fakes.with_masks(fakes.make_config())


def sam(grid=4):
    side = {"width": 8, "depth": 4, "global_blocks": (1, 3), "head_dim": 4, "outputs": 8, "window": 2}
    return {
        **published.under("image_encoder.", published.sam_image_encoder(grid=grid, **side)),
        **published.under("prompt_encoder.", published.sam_prompt_encoder(8)),
        **published.under("mask_decoder.", published.sam_mask_decoder(8, 2, 12)),
    }


def test_sam_goes_to_both_stages(tmp_path, masked):
    tensors = fakes.draw(sam())
    fakes.save_torch(tmp_path / "sam.pth", tensors)
    found, (origin,) = read(tmp_path / "sam.pth")
    assert origin.kind == "SAM (segment-anything)"
    for stage in ("coarse", "fine"):
        np.testing.assert_array_equal(
            found[f"{stage}.mask_decoder.mask_tokens.weight"], tensors["mask_decoder.mask_tokens.weight"]
        )
    todo = planned(masked, tmp_path / "sam.pth")
    made = {entry.path for entry, _ in todo.imported}
    assert made == {
        entry.path
        for entry in names.table(masked.model).entries
        if entry.path.startswith("segmentation/") and "seg_projection" not in entry.path
    }
    # Points in both stages, masks in the first, "no mask" in the second: what an embedded prompt never uses.
    assert len(todo.carried) == 2 * 5 + 10 + 1


def test_sam_of_hugging_face_is_the_same(tmp_path, masked):
    vision = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 64, "mlp_dim": 32}
    vision |= {"global_attn_indexes": [1, 3], "window_size": 2, "output_channels": 8, "num_pos_feats": 4}
    decoder = {"hidden_size": 8, "mlp_dim": 12, "num_attention_heads": 2, "iou_head_hidden_dim": 8}
    config = transformers.SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 8, "image_size": 64, "image_embedding_size": 4},
        mask_decoder_config=decoder,
    )
    model = transformers.SamModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "hf")
    found, (origin,) = read(tmp_path / "hf")
    assert origin.kind == "SAM (Hugging Face)"
    expected = {name: shape for name, shape in sam().items() if name.startswith("image_encoder.")}
    rest = {name: shape for name, shape in sam().items() if name not in expected}
    expected |= published.under("coarse.", rest) | published.under("fine.", rest)
    assert {name: array.shape for name, array in found.items()} == expected
    # And every parameter is what the parity tests, whose mapping was written apart, make of the same model.
    size = image_encoders.SAM_SIZES["vit_b"]
    theirs = {
        "image_encoder/vit": sam_parity.encoder_params(model.vision_encoder, size),
        "coarse_decoder": sam_parity.decoder_params(model.mask_decoder, dim=8),
        "coarse_prompt": sam_parity.prompt_params(model.prompt_encoder, mask_prompt=False),
        "fine_prompt": sam_parity.prompt_params(model.prompt_encoder, mask_prompt=True),
    }
    theirs["fine_decoder"] = theirs["coarse_decoder"]
    todo = planned(masked, tmp_path / "hf")
    for part, params in theirs.items():
        assert_equal(made(todo, f"segmentation/{part}"), params)


def test_sam_on_another_grid_is_resampled(tmp_path, masked):
    tensors = fakes.draw(sam(grid=6))
    path = write(tmp_path / "sam.safetensors", tensors)
    todo = planned(masked, path)
    made = {entry.path: found for entry, found in todo.imported}
    base = "segmentation/image_encoder/vit"
    grid = torch.from_numpy(tensors["image_encoder.pos_embed"]).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic", antialias=True)
    np.testing.assert_allclose(made[f"{base}/pos_embed"][0].read()[0], expected[0].permute(1, 2, 0), atol=1e-5)
    old = torch.from_numpy(tensors["image_encoder.blocks.1.attn.rel_pos_h"])
    expected = torch.nn.functional.interpolate(old.T[None], 7, mode="linear")[0].T
    np.testing.assert_allclose(made[f"{base}/groups/full/attention/rel_pos_h"][0].read(), expected, atol=1e-5)


def test_vggt_without_its_heads(tmp_path):
    shapes = published.vggt(8, 2, 32, 4, 5) | {"camera_head.x.weight": (2, 2), "track_head.y.weight": (2, 2)}
    fakes.save_torch(tmp_path / "model.pt", fakes.draw(shapes))
    found, (origin,) = read(tmp_path / "model.pt")
    assert (origin.kind, origin.left_out) == ("VGGT", 2)
    config = fakes.with_teacher(fakes.make_config())
    todo = planned(config, tmp_path / "model.pt")
    aggregator = {name.removeprefix("vggt.aggregator."): torch.from_numpy(array) for name, array in found.items()}
    assert_equal(made(todo, "vggt"), vggt_parity.aggregator_params(aggregator, config.model.geometry.vggt, 1))
    # Pairs behind the one that is read, and a token for training DINOv2.
    assert {name.split(".")[2] for name in todo.carried} == {"frame_blocks", "global_blocks", "patch_embed"}
    assert len(todo.carried) == 2 * 18 + 1
    assert set(found) == {f"vggt.{name}" for name in shapes if name.startswith("aggregator.")}
    with pytest.raises(SourceError, match="belongs to the VGGT, which preset 'tiny' lacks"):
        planned(fakes.make_config(), tmp_path / "model.pt")


BAD_FOLDERS = [
    ({}, "holds no tensor file"),
    ({"a.safetensors": b"", "b.safetensors": b""}, r"holds a.safetensors, b.safetensors; give the one"),
    ({"action_head--1.pt": b"", "action_head--2.pt": b""}, r"holds 2 files action_head--\*.pt"),
]


@pytest.mark.parametrize(("files", "sentence"), BAD_FOLDERS)
def test_unclear_folders_are_refused(tmp_path, files, sentence):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=sentence):
        open_source(tmp_path)
    with pytest.raises(SourceError, match="does not exist; give a tensor file or the folder"):
        open_source(tmp_path / "nothing")


@pytest.mark.parametrize("cut", [4, 40, -1])
def test_truncated_files_are_refused(tmp_path, cut):
    tensors = fakes.draw(published.proprio_projector(8, 16))
    write(tmp_path / "a.safetensors", tensors)
    fakes.save_torch(tmp_path / "a.pt", tensors)
    for name in ("a.safetensors", "a.pt"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:cut])
        with pytest.raises(SourceError, match=rf"{name} is truncated or no|{name} holds .* is damaged"):
            open_file(tmp_path / name)


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_file_is_refused_and_never_run(tmp_path, old_format):
    trap = tmp_path / "ran"
    torch.save({"x": Command(trap)}, tmp_path / "bad.pt", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(SourceError, match=r"bad.pt holds code or objects \([\w.]+\), .* never unpickled"):
        open_file(tmp_path / "bad.pt")
    (tmp_path / "worse.bin").write_bytes(pickle.dumps(Command(trap)))
    with pytest.raises(SourceError, match=r"worse.bin"):
        open_file(tmp_path / "worse.bin")
    assert not trap.exists()


def test_a_file_of_an_old_pytorch_is_read(tmp_path):
    tensors = fakes.draw(published.proprio_projector(8, 16))
    fakes.save_torch(tmp_path / "old.pth", tensors, _use_new_zipfile_serialization=False)
    found, _ = read(tmp_path / "old.pth")
    np.testing.assert_array_equal(found["proprio_projector.fc1.weight"], tensors["fc1.weight"])


def test_an_index_does_not_lead_out_of_its_folder(tmp_path):
    tensors = fakes.draw(published.proprio_projector(8, 16))
    (tmp_path / "inside").mkdir()
    write(tmp_path / "secret.safetensors", tensors)
    index = tmp_path / "inside" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"fc1.weight": "../secret.safetensors"}}))
    with pytest.raises(SourceError, match="lies outside its folder"):
        open_file(index)
    index.write_text(json.dumps({"weight_map": {"fc1.weight": "absent.safetensors"}}))
    with pytest.raises(SourceError, match=r"shard absent\.safetensors, which is missing"):
        open_file(index)
    write(tmp_path / "inside" / "here.safetensors", tensors)
    index.write_text(json.dumps({"weight_map": {"other.weight": "here.safetensors"}}))
    with pytest.raises(SourceError, match=r"says that other\.weight is in here\.safetensors, and it is not"):
        open_file(index)
    index.write_text("[]")
    with pytest.raises(SourceError, match="no index of safetensors shards"):
        open_file(index)


def test_tensors_that_do_not_fit_are_named_with_the_expected_shape(tmp_path):
    config = fakes.make_config()
    good = fakes.draw(published.under("language_model.", published.qwen(**fakes.QWEN)))
    name = "language_model.model.layers.1.self_attn.k_proj.weight"

    def refused(tensors, sentence):
        with pytest.raises(SourceError, match=sentence):
            planned(config, write(tmp_path / "a.safetensors", tensors))

    refused({k: v for k, v in good.items() if k != name}, rf"lacks {name} of shape \[8, 16\], which preset 'tiny'")
    refused(good | {name: np.zeros((16, 8), np.float32)}, rf"{name} in .* has shape \[16, 8\], .* needs \[8, 16\]")
    refused(good | {"language_model.model.extra": np.zeros(2, np.float32)}, r"model.extra in .* has no place in the")
    refused(good | {"seg_token.weight": np.zeros((1, 16), np.float32)}, r"belongs to the <SEG> token, which .* lacks")
    refused(good | {name: np.zeros((8, 16), np.int32)}, rf"{name} in .* is of type i32")
    refused({"fc9.weight": np.zeros(2, np.float32)}, r"tensors such as 'fc9.weight', which no known kind has")
    refused({"a.lora_A.weight": np.zeros(2, np.float32)}, r"LoRA adapters .* into which they were merged")


@pytest.mark.parametrize("pro", [True, False])
def test_the_other_head_is_refused_by_name(tmp_path, pro):
    fakes.write_vla_adapter(tmp_path / "vla", pro=pro)
    kinds = ("pro", "original") if pro else ("original", "pro")
    with pytest.raises(
        SourceError, match=rf"is of the {kinds[0]} action head, and preset 'tiny' has the {kinds[1]} one"
    ):
        planned(fakes.make_config(pro=not pro), tmp_path / "vla")


def test_the_same_tensor_twice_is_refused(tmp_path):
    tensors = fakes.draw(published.proprio_projector(8, 16))
    paths = [write(tmp_path / name, tensors) for name in ("a.safetensors", "b.safetensors")]
    with pytest.raises(SourceError, match=r"Two sources give proprio_projector.fc1.bias: .*a.safetensors and .*b.safe"):
        read(*paths)


def test_half_of_a_fused_projection_is_refused():
    tensor = dialects.Tensor((2, 2), "float32", lambda: np.zeros((2, 2)), "q in some file")
    with pytest.raises(SourceError, match=r"q in some file has no partner .*attn.k.weight"):
        dialects.assembled({f"{SIGLIP}blocks.0.attn.q.weight": tensor})


def test_parameters_are_those_of_the_parity_tests(tmp_path):
    """The table and the dialects against mappings that were written apart from them, on models of ``transformers``."""
    config = fakes.make_config().model
    vision = config.vision
    models = {
        "language": (references.qwen2(config.language), mappings.qwen2, config.language),
        "vision/dinov2": (references.tower("dinov2", vision.dinov2, vision), mappings.dinov2, vision.dinov2),
        "vision/siglip": (references.tower("siglip", vision.siglip, vision), mappings.siglip, vision.siglip),
    }
    for part, (model, mapping, part_config) in models.items():
        model = randomise(model)
        model.save_pretrained(tmp_path / part)
        ours, theirs = made(planned(fakes.make_config(), tmp_path / part), part), mapping(model, part_config)
        assert_equal(ours, theirs)


@pytest.mark.parametrize("pro", [True, False])
def test_heads_are_those_of_the_parity_tests(tmp_path, pro):
    config = fakes.make_config(pro=pro)
    fakes.write_vla_adapter(tmp_path / "vla", pro=pro)
    found, _ = read(tmp_path / "vla")
    head = {
        name.removeprefix("action_head.model."): torch.from_numpy(x) for name, x in found.items() if "_head" in name
    }
    proprio = {k.removeprefix("proprio_projector."): torch.from_numpy(x) for k, x in found.items() if "proprio" in k}
    theirs = mappings.action_head(head, proprio, config.model)
    assert_equal(made(planned(config, tmp_path / "vla"), "action_head"), theirs)
