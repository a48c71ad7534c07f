"""The Segmenter: attention with a global token, mask norm, padding, births, pretrained weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from cisskit.errors import KitError
from cisskit.models import create
from cisskit.models.heads import copy_background
from cisskit.models.segmenter import (
    AUGREG,
    Attention,
    Block,
    Encoder,
    MaskDecoder,
    Segmenter,
    TokenHead,
    load_augreg,
    load_torchvision,
    mask_norm,
    resized,
    segmenter,
    toy_segmenter,
)

TINY = {"patch": 8, "grid": (4, 4), "dim": 16, "depth": 2, "heads": 2, "hidden": 24}


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, every parameter away from its birth, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return module.eval()


def tiny(*, blocks: int = 2, global_token: bool = False, heads: tuple[int, ...] = (3, 1)) -> Segmenter:
    torch.manual_seed(0)
    model = Segmenter(Encoder(**TINY), MaskDecoder(16, 16, blocks=blocks, heads=2, hidden=24, global_token=global_token))
    for classes in heads:
        model.add_head(classes)
    stirred(model)
    return model


# --- attention ---


def test_a_global_token_is_one_more_row_that_asks_nothing():
    block = stirred(Block(12, 3, 16, global_token=True))
    x, token = torch.randn(2, 5, 12), torch.randn(1, 1, 12)
    seen = block.attn.norm(block.attn.proj(token)).expand(2, -1, -1)
    everyone = block.attn(torch.cat([block.norm1(x), seen], dim=1))  # its row, too, as the release computes it
    y = x + everyone[:, :5]
    assert torch.allclose(block(x, token), y + block.mlp(block.norm2(y)), atol=1e-6)
    assert not torch.allclose(block(x, token), block(x), atol=1e-3)


def test_attention_maps_are_what_the_block_uses():
    attention = stirred(Attention(12, 3, global_token=True))
    x, token = torch.randn(2, 5, 12), torch.randn(1, 1, 12)
    for extra in (None, token):
        rows = attention.attention_map(x, extra)
        assert rows.shape == (2, 3, 5, 5 if extra is None else 6) and torch.allclose(rows.sum(3), torch.ones(2, 3, 5))
        _, _, v = attention._qkv(x, extra)
        assert torch.allclose(attention.proj((rows @ v).transpose(1, 2).flatten(2)), attention(x, extra), atol=1e-6)


def test_attention_maps_of_the_whole_network():
    model, image = tiny(blocks=3, global_token=True), torch.randn(2, 3, 24, 30)
    maps = model.attention_maps(image)
    patches, classes = 3 * 4, 4
    assert [m.shape for m in maps] == [(2, 2, patches + classes, patches + classes + 1)] * 3
    block, joined = (
        model.decoder.blocks[0],
        model.decoder._joined(model.backbone(model._padded(image))["layer4"], model.class_rows()),
    )
    assert torch.equal(maps[0], block.attention_map(joined, model.decoder.global_token))


def test_stochastic_depth_is_for_training_and_the_decoder_only():
    model = tiny(blocks=4)
    assert [block.drop_path.p for block in model.decoder.blocks] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])
    assert all(block.drop_path.p == 0 for block in model.backbone.blocks)
    block, x = stirred(Block(8, 2, 8, drop_path=0.5)), torch.randn(400, 3, 8)
    with torch.no_grad():
        want = block(x)
        assert torch.equal(block(x), want)
        block.train()
        skipped = (block(x) == x).all(dim=(1, 2)).float().mean()
        assert 0.15 < skipped < 0.35  # both branches: a quarter
        block.mlp.requires_grad_(False)
        for p in block.mlp.parameters():
            p.zero_()
        block.eval()
        step = block(x) - x
        block.train()
        taken = block(x) - x
    kept = taken.abs().sum(dim=(1, 2)) > 0
    assert torch.allclose(taken[kept], 2 * step[kept], atol=1e-5)  # divided by the chance to be kept


# --- scores ---


def test_mask_norm_by_hand():
    masks = torch.tensor([[1.0, -1.0]])
    assert torch.allclose(mask_norm(masks, torch.ones(2), torch.zeros(2)), masks / 2**0.5, atol=1e-5)
    masks = torch.tensor([[1.0, 2, 3]])
    assert torch.allclose(
        mask_norm(masks, torch.tensor([1.0, 2, 3]), torch.tensor([0, 0, 5.0])), torch.tensor([[-1.0, 0, 8]]), atol=1e-4
    )


def test_scores_are_normalised_cosines():
    model, image = tiny(), torch.randn(2, 3, 32, 40)
    output = model(image)
    f, e = output.features["decoder"], output.features["classes"]
    assert f.shape == (2, 16, 4, 5) and e.shape == (2, 4, 16) and output.features["backbone"].shape == (2, 16, 4, 5)
    cosine = F.cosine_similarity(f[:, None], e[..., None, None], dim=2)
    weight, bias = (torch.cat([getattr(h, name) for h in model.heads]) for name in ("weight", "bias"))
    assert torch.allclose(output.scores, mask_norm(cosine, weight, bias), atol=1e-5)


def test_images_are_padded_to_whole_patches_and_logits_cut_back():
    model, image = tiny(), torch.randn(1, 3, 30, 37)
    output, whole = model(image), model(F.pad(image, (0, 3, 0, 2)))
    assert output.scores.shape == (1, 4, 4, 5) and output.size == (30, 37) and output.padded == (32, 40)
    assert torch.equal(output.scores, whole.scores)
    assert torch.equal(output.logits, whole.logits[:, :, :30, :37]) and output.logits is output.logits


def test_another_number_of_patches_resizes_the_position_embedding():
    encoder = stirred(Encoder(**TINY))
    grid = encoder.position[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    want = F.interpolate(grid, size=(3, 5), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    found = resized(encoder.position, (4, 4), (3, 5), "bilinear")
    assert torch.equal(found[:, 1:], want) and torch.equal(found[:, :1], encoder.position[:, :1])
    assert encoder(torch.randn(1, 3, 24, 40))["layer4"].shape == (1, 16, 3, 5)
    # the NUMBER decides: 2 x 8 patches take the 4 x 4 grid as it is, as in the released code
    assert encoder._position(2, 8) is encoder.position


def test_scores_are_single_precision_under_autocast():
    model = tiny(global_token=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.randn(1, 3, 32, 32))
    assert output.scores.dtype == torch.float32 and output.features["decoder"].dtype == torch.bfloat16
    output.scores.sum().backward()


# --- classes ---


def test_a_birth_copies_the_background_token_alone():
    model, image = tiny(), torch.randn(1, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    old_scores = model(image).scores
    new = model.add_head(2, init=copy_background)
    assert torch.equal(new.token, model.heads[0].token[:, :1].expand(-1, 2, -1))
    assert torch.equal(new.weight, torch.ones(2)) and torch.equal(new.bias, torch.zeros(2))
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(model.class_rows(), torch.cat([h.token[0] for h in model.heads])) and len(model.class_rows()) == 6
    scores = model(image).scores
    assert scores.shape[1] == 6 and not torch.allclose(scores[:, :4], old_scores, atol=1e-3)  # the mask norm couples classes


def test_every_parameter_gets_a_gradient():
    for model in (tiny(global_token=True), toy_segmenter(decoder_blocks=4, global_token=True)):
        if not len(model.heads):
            model.add_head(3)
        model.train()
        model(torch.randn(2, 3, 32, 32)).scores.square().mean().backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_births_of_parameters():
    torch.manual_seed(0)
    head, decoder = TokenHead(64, 50), MaskDecoder(64, 64, blocks=2, heads=2, hidden=64, global_token=True)
    assert head.token.std().item() == pytest.approx(0.02, rel=0.1) and head.token.abs().max() < 2
    assert decoder.global_token.std().item() == pytest.approx(1, rel=0.3)
    assert decoder.proj_patch.std().item() == pytest.approx(64**-0.5, rel=0.1)
    assert decoder.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not decoder.blocks[0].attn.qkv.bias.any()


def test_detached_and_unknown_heads_are_refused():
    for kind in ("detached", "unknown"):
        with pytest.raises(KitError, match="Use a CNN"):
            tiny().add_head(1, **{kind: True})


# --- the two networks ---


def test_the_network_of_the_papers():
    from torchvision.models import vit_b_16

    with torch.device("meta"):  # shapes only
        model, reference = segmenter(None), vit_b_16()
        amis = segmenter(None, decoder_blocks=4, global_token=True)
    count = sum(p.numel() for p in model.backbone.parameters())
    head, positions = 768 * 1000 + 1000, (32 * 32 - 14 * 14) * 768
    assert count == sum(p.numel() for p in reference.parameters()) - head + positions
    assert len(model.decoder.blocks) == 2 and model.decoder.global_token is None
    assert len(amis.decoder.blocks) == 4 and amis.decoder.global_token.shape == (1, 1, 768)


def test_the_network_of_the_scenes():
    model = create("toy_segmenter")
    model.add_head(6)
    assert sum(p.numel() for p in model.parameters()) < 300_000
    output = model(torch.randn(2, 3, 64, 64))
    assert output.scores.shape == (2, 6, 16, 16) and output.features["decoder"].shape == (2, 64, 16, 16)
    assert output.features["backbone"].shape == (2, 64, 8, 8) and output.features["classes"].shape == (2, 6, 64)
    assert model.eval()(torch.randn(1, 3, 97, 90)).logits.shape == (1, 6, 97, 90)
    model.train()
    model.freeze("bn")
    before = model.backbone.stem[1].running_mean.clone()
    model(torch.randn(2, 3, 64, 64))
    assert torch.equal(before, model.backbone.stem[1].running_mean)


# --- pretrained weights ---


def tiny_torchvision(size: int) -> VisionTransformer:
    torch.manual_seed(1)
    vit = VisionTransformer(size, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=3)
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # torchvision has 1e-6
    stirred(vit)
    return vit


def torchvision_tokens(vit: VisionTransformer, image: Tensor) -> Tensor:
    x = vit._process_input(image)
    return vit.encoder(torch.cat([vit.class_token.expand(len(x), -1, -1), x], dim=1))


def test_torchvision_weights_give_torchvisions_tokens():
    vit, encoder, image = tiny_torchvision(32), Encoder(**TINY), torch.randn(2, 3, 32, 32)
    load_torchvision(encoder.eval(), vit.state_dict())
    assert torch.allclose(encoder.tokens(image), torchvision_tokens(vit, image), atol=1e-5)
    older = {n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v for n, v in vit.state_dict().items()}
    load_torchvision(Encoder(**TINY), older)


def test_another_position_grid_is_resized_bicubically():
    vit, encoder = tiny_torchvision(16), Encoder(**TINY)
    load_torchvision(encoder, vit.state_dict())
    old = vit.encoder.pos_embedding
    grid = F.interpolate(old[:, 1:].transpose(1, 2).unflatten(2, (2, 2)), size=(4, 4), mode="bicubic", align_corners=False)
    assert torch.allclose(encoder.position[:, 1:], grid.flatten(2).transpose(1, 2)) and torch.equal(
        encoder.position[:, :1], old[:, :1]
    )


def augreg_arrays(side: int) -> dict[str, np.ndarray]:
    """A tiny file of that kind: dim 16, 2 heads, 2 blocks, patch 8."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls": (1, 1, 16),
        "embedding/kernel": (8, 8, 3, 16),
        "embedding/bias": (16,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + side**2, 16),
        "Transformer/encoder_norm/scale": (16,),
        "Transformer/encoder_norm/bias": (16,),
        "head/kernel": (16, 5),
        "head/bias": (5,),
    }
    for i in range(2):
        block = f"Transformer/encoderblock_{i}/"
        for part in ("query", "key", "value"):
            shapes[f"{block}MultiHeadDotProductAttention_1/{part}/kernel"] = (16, 2, 8)
            shapes[f"{block}MultiHeadDotProductAttention_1/{part}/bias"] = (2, 8)
        shapes[f"{block}MultiHeadDotProductAttention_1/out/kernel"] = (2, 8, 16)
        shapes[f"{block}MultiHeadDotProductAttention_1/out/bias"] = (16,)
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}{norm}/scale": (16,), f"{block}{norm}/bias": (16,)}
        shapes |= {f"{block}MlpBlock_3/Dense_0/kernel": (16, 24), f"{block}MlpBlock_3/Dense_0/bias": (24,)}
        shapes |= {f"{block}MlpBlock_3/Dense_1/kernel": (24, 16), f"{block}MlpBlock_3/Dense_1/bias": (16,)}
    return {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def augreg_tokens(arrays: dict[str, np.ndarray], image: Tensor) -> Tensor:
    """The network of such a file, written out from the layout of its arrays: inputs first, heads apart."""
    a = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (16,), a[f"{name}/scale"], a[f"{name}/bias"], 1e-5)

    cells = image.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, 3, rows, columns, 8, 8)
    x = torch.einsum("bchwij,ijcd->bhwd", cells, a["embedding/kernel"]).flatten(1, 2) + a["embedding/bias"]
    x = torch.cat([a["cls"].expand(len(x), -1, -1), x], dim=1) + a["Transformer/posembed_input/pos_embedding"]
    for i in range(2):
        block = f"Transformer/encoderblock_{i}/"
        attention, mlp = f"{block}MultiHeadDotProductAttention_1/", f"{block}MlpBlock_3/"
        y = norm(x, f"{block}LayerNorm_0")
        q, k, v = (
            torch.einsum("bnd,dhk->bnhk", y, a[f"{attention}{part}/kernel"]) + a[f"{attention}{part}/bias"]
            for part in ("query", "key", "value")
        )
        look = torch.einsum("bnhk,bmhk->bhnm", q, k).div(8**0.5).softmax(3)
        y = torch.einsum("bhnm,bmhk->bnhk", look, v)
        x = x + torch.einsum("bnhk,hkd->bnd", y, a[f"{attention}out/kernel"]) + a[f"{attention}out/bias"]
        y = norm(x, f"{block}LayerNorm_2") @ a[f"{mlp}Dense_0/kernel"] + a[f"{mlp}Dense_0/bias"]
        x = x + F.gelu(y) @ a[f"{mlp}Dense_1/kernel"] + a[f"{mlp}Dense_1/bias"]
    return norm(x, "Transformer/encoder_norm")


def test_augreg_weights_by_their_layout(tmp_path):
    arrays, encoder, image = augreg_arrays(4), Encoder(**TINY).eval(), torch.randn(2, 3, 32, 32)
    np.savez(tmp_path / "w.npz", **arrays)
    load_augreg(encoder, tmp_path / "w.npz")
    assert torch.allclose(encoder.tokens(image), augreg_tokens(arrays, image), atol=1e-4)
    np.savez(tmp_path / "small.npz", **augreg_arrays(3))
    load_augreg(encoder, tmp_path / "small.npz")  # another grid: resized
    first = torch.from_numpy(augreg_arrays(3)["Transformer/posembed_input/pos_embedding"])
    assert torch.equal(encoder.position, resized(first, (3, 3), (4, 4), "bicubic"))


def test_augreg_files_that_do_not_fit(tmp_path):
    encoder, file = Encoder(**TINY), tmp_path / "w.npz"
    with pytest.raises(KitError, match=f"no weights at .*Fetch https://.*{AUGREG}"):
        load_augreg(encoder, file)
    arrays = augreg_arrays(4)
    np.savez(file, **{name: array for name, array in arrays.items() if "encoderblock_1" not in name})
    with pytest.raises(KitError, match=r"holds no AugReg vision transformer of 2 blocks \('Transformer/encoderblock_1.*Fetch"):
        load_augreg(encoder, file)
    np.savez(file, **arrays | {"embedding/bias": np.zeros(5, dtype=np.float32)})
    with pytest.raises(KitError, match="of another network.*size mismatch"):
        load_augreg(encoder, file)
    np.savez(file, **arrays | {"cls": np.array([print], dtype=object)}, allow_pickle=True)
    with pytest.raises(KitError, match="cannot be read as an .npz file"):
        load_augreg(encoder, file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(KitError, match="cannot be read as an .npz file"):
        load_augreg(encoder, file)


def test_state_dicts_that_do_not_fit():
    with pytest.raises(KitError, match=f"not the weights of torchvision's vit_b_16.*fetch https://.*{AUGREG}"):
        load_torchvision(Encoder(**TINY), {"conv1.weight": torch.zeros(1)})


def test_no_network_says_which_file_to_fetch(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(KitError, match=r"fetch vit_b_16-.*\.pth \(torchvision's ViT_B_16_Weights.IMAGENET1K_V1\).*checkpoints"):
        segmenter("imagenet")
    with pytest.raises(KitError, match="no weights at"):
        segmenter(str(tmp_path / "missing.pth"))
