"""Segmenter: a vision transformer and a decoder in which one token per class meets the patches. MBS and AMIS use it.

    image ─ patches ─ encoder blocks ─┬─ decoder blocks ─┬─ patches ── F ─┐
                                      │                  │                cosine ─ mask norm ─ scores
    class tokens, one group per step ─┘                  └─ classes ── E ─┘

As in the released MBS and AMIS code: pre-norm blocks, every LayerNorm with eps 1e-5, exact GELU, scores normalised over the
classes, so that every score depends on how many classes there are. AMIS adds a global token that all tokens of a decoder block
may look at. `segmenter` is their ViT-B/16; `toy_segmenter` is small enough for the embedded scenes.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cisskit.errors import KitError
from cisskit.models.base import HeadInit, Model, Output
from cisskit.models.deeplab import imagenet_state, read_state
from cisskit.models.toy import STAGE_CHANNELS, ToyBackbone

EPS = 1e-5
AUGREG = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_384.npz"
AUGREG_URL = f"https://storage.googleapis.com/vit_models/augreg/{AUGREG}"


class Attention(nn.Module):
    """Multi-head self-attention with a joint linear map for query, key and value: (B, N, D) -> (B, N, D).

    global_token: the N tokens also look at one more, (1, 1, D), which is projected by the same output map and has a LayerNorm of
    its own; it has no query, so nothing is updated in it.
    """

    def __init__(self, dim: int, heads: int, *, global_token: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=EPS) if global_token else None

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        y = F.scaled_dot_product_attention(*self._qkv(x, token))
        return self.proj(y.transpose(1, 2).flatten(2))

    def attention_map(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        """(B, heads, N, N), or (B, heads, N, N + 1) with the global token last: where each token looks; rows sum to 1."""
        q, k, _ = self._qkv(x, token)
        return (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)

    def _qkv(self, x: Tensor, token: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, heads, N, D/heads), key and value with one more row if there is a token."""
        batch, _, dim = x.shape
        q, k, v = self._split(self.qkv(x), 3)
        if token is not None:
            assert self.norm is not None
            seen = self.norm(self.proj(token))
            extra = self._split(F.linear(seen, self.qkv.weight[dim:], self.qkv.bias[dim:]), 2)
            k, v = (torch.cat([rows, row.expand(batch, -1, -1, -1)], dim=2) for rows, row in zip((k, v), extra, strict=True))
        return q, k, v

    def _split(self, x: Tensor, n: int) -> tuple[Tensor, ...]:
        return x.unflatten(2, (n, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (B, N, D) -> (B, N, D).

    drop_path: chance that a sample skips a branch in training; the others are divided by what is left (stochastic depth).
    global_token: see `Attention`.
    """

    def __init__(self, dim: int, heads: int, hidden: int, *, drop_path: float = 0.0, global_token: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads, global_token=global_token)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), token))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attention_map(self, x: Tensor, token: Tensor | None = None) -> Tensor:
        """As `Attention.attention_map`, for the input of the block."""
        return self.attn.attention_map(self.norm1(x), token)


class Encoder(nn.Module):
    """A vision transformer: image (B, 3, H, W), H and W multiples of the patch -> {"layer4": (B, dim, H/patch, W/patch)}.

    grid: patches (rows, columns) of the training size; for any other NUMBER of patches the position embedding is resized,
    bilinearly.
    """

    def __init__(self, *, patch: int, grid: tuple[int, int], dim: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.embed = nn.Conv2d(3, dim, patch, patch)
        # the classification token: the patches look at it, nothing else reads it
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + grid[0] * grid[1], dim), std=0.02))
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        initialise(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        rows, columns = image.shape[2] // self.patch, image.shape[3] // self.patch
        return {"layer4": self.tokens(image)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))}

    def tokens(self, image: Tensor) -> Tensor:
        """(B, 1 + patches, dim) after the last norm, classification token first, patches row by row."""
        return self.encode(self.embed(image))

    def encode(self, embedded: Tensor) -> Tensor:
        """`tokens` from the embedded patches (B, dim, rows, columns)."""
        x = torch.cat([self.token.expand(len(embedded), -1, -1), embedded.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._position(embedded.shape[2], embedded.shape[3])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def _position(self, rows: int, columns: int) -> Tensor:
        if rows * columns + 1 == self.position.shape[1]:
            return self.position
        return resized(self.position, self.grid, (rows, columns), "bilinear")


def resized(position: Tensor, grid: tuple[int, int], size: tuple[int, int], mode: str) -> Tensor:
    """A position embedding (1, 1 + rows * columns, D) at another grid; its first entry stays. mode: of `F.interpolate`."""
    first, rest = position[:, :1], position[:, 1:]
    maps = rest.transpose(1, 2).unflatten(2, grid)
    maps = F.interpolate(maps, size=size, mode=mode, align_corners=False)
    return torch.cat([first, maps.flatten(2).transpose(1, 2)], dim=1)


class TokenHead(nn.Module):
    """The classes of one step: their tokens (1, n, D), and scale and shift (n,) of their scores in the mask norm."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, classes, channels), std=0.02))
        self.weight = nn.Parameter(torch.ones(classes))
        self.bias = nn.Parameter(torch.zeros(classes))


class MaskDecoder(nn.Module):
    """Patches (B, inputs, h, w) and class tokens (C, D) -> F (B, D, h, w) and E (B, C, D), both before normalisation.

    Patches and class tokens look at each other freely, classes after the patches. drop_path grows linearly from 0 over the
    blocks. global_token: AMIS's, the same for all images, blocks and steps; no block updates it.
    """

    def __init__(
        self, inputs: int, dim: int, *, blocks: int, heads: int, hidden: int, drop_path: float = 0.1, global_token: bool = False
    ) -> None:
        super().__init__()
        self.dim = dim
        self.proj_dec = nn.Linear(inputs, dim)
        self.blocks = nn.ModuleList(
            Block(dim, heads, hidden, drop_path=rate, global_token=global_token)
            for rate in torch.linspace(0, drop_path, blocks, device="cpu").tolist()
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=EPS)
        self.proj_patch = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)
        self.proj_classes = nn.Parameter(torch.randn(dim, dim) * dim**-0.5)
        self.global_token = nn.Parameter(torch.randn(1, 1, dim)) if global_token else None
        initialise(self)

    def forward(self, features: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = features["layer4"].shape[2:]
        x = self._joined(features["layer4"], tokens)
        for block in self.blocks:
            x = block(x, self.global_token)
        patches, classes = self.decoder_norm(x).split([rows * columns, len(tokens)], dim=1)
        patches = self.refine(patches.transpose(1, 2).unflatten(2, (rows, columns)), features)
        projected = patches.flatten(2).transpose(1, 2) @ self.proj_patch
        return projected.transpose(1, 2).unflatten(2, patches.shape[2:]), classes @ self.proj_classes

    def refine(self, patches: Tensor, features: dict[str, Tensor]) -> Tensor:
        """What happens to the patches (B, D, h, w) before their projection: nothing."""
        return patches

    def attention_maps(self, features: dict[str, Tensor], tokens: Tensor) -> list[Tensor]:
        """Of each block, (B, heads, hw + C, hw + C), patches first; one more column, the last, for a global token."""
        x, maps = self._joined(features["layer4"], tokens), []
        for block in self.blocks:
            assert isinstance(block, Block)
            maps.append(block.attention_map(x, self.global_token))
            x = block(x, self.global_token)
        return maps

    def _joined(self, patches: Tensor, tokens: Tensor) -> Tensor:
        x = self.proj_dec(patches.flatten(2).transpose(1, 2))
        return torch.cat([x, tokens.expand(len(x), -1, -1)], dim=1)


def mask_norm(masks: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise over the classes: masks (B, C, ..) minus their mean over C, over their deviation (unbiased, plus 1e-5).

    Then scale and shift, (C,) each. At least two classes.
    """
    deviation, mean = torch.std_mean(masks, dim=1, keepdim=True)
    shape = (-1, *[1] * (masks.ndim - 2))
    return (masks - mean) / (deviation + 1e-5) * weight.view(shape) + bias.view(shape)


class Segmenter(Model):
    """Encoder, `MaskDecoder` and one `TokenHead` per step.

    Images are padded with 0 at the bottom and right to whole patches; `Output.logits` covers the image only.
    features: "backbone" the encoder's map (B, inputs, h, w), "decoder" F (B, D, h, w) and "classes" E (B, C, D), the last two
    before their normalisation. scores: cosines of F and E after the mask norm. Class tokens are `class_rows`.
    """

    backbone: Encoder
    decoder: MaskDecoder

    def __init__(self, encoder: Encoder, decoder: MaskDecoder) -> None:
        super().__init__(encoder, decoder, decoder.dim, TokenHead)

    def add_head(self, classes: int, *, init: HeadInit | None = None, detached: bool = False, unknown: bool = False) -> nn.Module:
        """As in `Model`. Raises `KitError` for a detached or unknown head."""
        if detached or unknown:
            raise KitError(
                "class tokens shape the features of all patches, so a Segmenter has no detached and no unknown head. Use a CNN."
            )
        return super().add_head(classes, init=init)

    def class_rows(self) -> Tensor:
        """(C, D): the class tokens of all heads in channel order; gradients flow to the heads."""
        return torch.cat([head.get_parameter("token")[0] for head in self.heads])

    def trunk(self, image: Tensor) -> dict[str, Tensor]:
        return self.backbone(self._padded(image))

    def read(self, trunk: dict[str, Tensor], size: tuple[int, int]) -> Output:
        decoded, classes = self.decoder(trunk, self.class_rows())
        with torch.autocast(decoded.device.type, enabled=False):  # float32 from here on, as in every network
            unit = F.normalize(classes.float(), dim=2)
            masks = torch.einsum("bdhw,bcd->bchw", F.normalize(decoded.float(), dim=1), unit)
            scores = mask_norm(masks, *(torch.cat([getattr(head, name) for head in self.heads]) for name in ("weight", "bias")))
        named = {"backbone": trunk["layer4"], "decoder": decoded, "classes": classes}
        rows, columns = trunk["layer4"].shape[2:]
        return Output(scores, size, named, padded=(rows * self.backbone.patch, columns * self.backbone.patch))

    def attention_maps(self, image: Tensor) -> list[Tensor]:
        """Of each decoder block, see `MaskDecoder.attention_maps`; heads and patches as `forward` uses them."""
        return self.decoder.attention_maps(self.trunk(image), self.class_rows())

    def _padded(self, image: Tensor) -> Tensor:
        patch = self.backbone.patch
        height, width = image.shape[2:]
        return F.pad(image, (0, -width % patch, 0, -height % patch))


def initialise(part: nn.Module) -> None:
    """Linear weights truncated normal with deviation 0.02, their biases 0."""
    for module in part.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


# --- pretrained weights ---


def load_augreg(encoder: Encoder, path: Path | str) -> None:
    """Fill the encoder from an AugReg ``.npz`` file (see `AUGREG`); its position grid is resized, bicubically.

    Raises `KitError`, naming the file to fetch, when it is missing, cannot be read or is of another network.
    """
    path, fetch = Path(path), f"Fetch {AUGREG_URL}"
    if not path.is_file():
        raise KitError(f"no weights at {path}. {fetch}, then pass its path; or pass 'imagenet', or 'none' for random weights.")
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]).float() for name in file.files}
    except Exception as error:  # numpy and zipfile raise many kinds for a damaged file; all mean the same here
        raise KitError(f"{path} cannot be read as an .npz file ({type(error).__name__}: {error}). {fetch}.") from error
    try:
        state = _from_augreg(arrays, len(encoder.blocks))
    except (KeyError, RuntimeError) as error:
        raise KitError(
            f"{path} holds no AugReg vision transformer of {len(encoder.blocks)} blocks ({error}). {fetch}."
        ) from error
    _fill(encoder, state, f"{path}: these weights are of another network", fetch)


def _from_augreg(a: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
    """AugReg's names and shapes -> those of `Encoder`. Kernels are stored with the inputs first."""
    state = {
        "token": a["cls"],
        "position": a["Transformer/posembed_input/pos_embedding"],
        "embed.weight": a["embedding/kernel"].permute(3, 2, 0, 1),
        "embed.bias": a["embedding/bias"],
        "norm.weight": a["Transformer/encoder_norm/scale"],
        "norm.bias": a["Transformer/encoder_norm/bias"],
    }
    for i in range(depth):
        old, new = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = f"{old}MultiHeadDotProductAttention_1/"
        parts = ("query", "key", "value")
        state[f"{new}attn.qkv.weight"] = torch.cat([a[f"{attention}{part}/kernel"].flatten(1).T for part in parts])
        state[f"{new}attn.qkv.bias"] = torch.cat([a[f"{attention}{part}/bias"].flatten() for part in parts])
        state[f"{new}attn.proj.weight"] = a[f"{attention}out/kernel"].flatten(0, 1).T
        state[f"{new}attn.proj.bias"] = a[f"{attention}out/bias"]
        for ours, theirs in {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}.items():
            state[f"{new}{ours}.weight"], state[f"{new}{ours}.bias"] = a[f"{old}{theirs}/scale"], a[f"{old}{theirs}/bias"]
        for ours, theirs in {"mlp.0": "Dense_0", "mlp.2": "Dense_1"}.items():
            layer = f"{old}MlpBlock_3/{theirs}/"
            state[f"{new}{ours}.weight"], state[f"{new}{ours}.bias"] = a[f"{layer}kernel"].T, a[f"{layer}bias"]
    return state


TORCHVISION = {
    "class_token": "token",
    "encoder.pos_embedding": "position",
    "conv_proj.": "embed.",
    "encoder.ln.": "norm.",
    "encoder.layers.encoder_layer_": "blocks.",
    ".ln_1.": ".norm1.",
    ".ln_2.": ".norm2.",
    ".self_attention.in_proj_": ".attn.qkv.",
    ".self_attention.out_proj.": ".attn.proj.",
    ".mlp.3.": ".mlp.2.",
    ".mlp.linear_1.": ".mlp.0.",  # names of torchvision's older files
    ".mlp.linear_2.": ".mlp.2.",
}
"""Parts of names: torchvision's vision transformer -> `Encoder`."""


def load_torchvision(encoder: Encoder, state: Mapping[str, Tensor], *, where: str = "the state dict") -> None:
    """Fill the encoder from the state dict of torchvision's vision transformer; its position grid is resized, bicubically.

    The fallback where the AugReg file is not at hand [kit's own choice, the numbers differ]. where: how an error names the state.
    Raises `KitError` when it is of another network.
    """
    renamed = {}
    for name, value in state.items():
        if not name.startswith("heads."):
            for theirs, ours in TORCHVISION.items():
                name = name.replace(theirs, ours)
            renamed[name] = value.float()
    _fill(encoder, renamed, f"{where}: these are not the weights of torchvision's vit_b_16", f"Better still, fetch {AUGREG_URL}")


def _fill(encoder: Encoder, state: dict[str, Tensor], fault: str, advice: str) -> None:
    position = state.get("position")
    if position is not None and position.ndim == 3 and position.shape[1] != encoder.position.shape[1]:
        side = round((position.shape[1] - 1) ** 0.5)
        if side * side + 1 == position.shape[1]:
            state["position"] = resized(position, (side, side), encoder.grid, "bicubic")
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise KitError(f"{fault}: {' '.join(str(error).splitlines()[:3])} {advice}.") from error


# --- the two networks ---


def segmenter(weights: str | None = "imagenet", *, decoder_blocks: int = 2, global_token: bool = False) -> Segmenter:
    """Segmenter with ViT-B/16 and a training size of 512 x 512, without heads.

    weights: "imagenet" (torchvision downloads its vit_b_16), a path to the AugReg file (``.npz``, what the released code starts
    from, see `AUGREG`) or to a state dict of torchvision's vit_b_16 (``.pth`` or ``.safetensors``), or None (random).
    decoder_blocks, global_token: 2 and False for MBS, 4 and True for AMIS. Raises `KitError` when the weights cannot be had or do
    not fit.
    """
    state = None
    if weights == "imagenet":
        state = imagenet_state("vit_b_16")
    elif weights and not weights.endswith(".npz"):
        state = read_state(Path(weights))
    encoder = Encoder(patch=16, grid=(32, 32), dim=768, depth=12, heads=12, hidden=3072)
    if state is not None:
        load_torchvision(encoder, state, where=str(weights))
    elif weights:
        load_augreg(encoder, weights)
    return Segmenter(encoder, MaskDecoder(768, 768, blocks=decoder_blocks, heads=12, hidden=3072, global_token=global_token))


class ToyEncoder(Encoder):
    """A convolutional stem, then two blocks of width 64 on tokens of 8x8 pixels.

    The stem are the stages "layer1" .. "layer3" of the scenes' convolutional network: 1600 scenes teach a transformer of raw
    patches neither edges nor textures, convolutions learn them in seconds. "layer2" (B, 32, H/4, W/4) goes to the decoder.
    """

    def __init__(self) -> None:
        super().__init__(patch=8, grid=(8, 8), dim=64, depth=2, heads=2, hidden=128)
        stages = ToyBackbone()
        self.stem, self.layer1, self.layer2, self.layer3 = stages.stem, stages.layer1, stages.layer2, stages.layer3
        self.embed = nn.Conv2d(STAGE_CHANNELS["layer3"], 64, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        near = F.relu(self.layer2(F.relu(self.layer1(self.stem(image)))))
        embedded = self.embed(F.relu(self.layer3(near)))
        tokens = self.encode(embedded)[:, 1:]
        return {"layer2": near, "layer4": tokens.transpose(1, 2).unflatten(2, embedded.shape[2:])}


class ToyMaskDecoder(MaskDecoder):
    """Its patches are refined to a quarter of the image's resolution, where objects of ten pixels have an outline."""

    def __init__(self, *, blocks: int, global_token: bool) -> None:
        super().__init__(64, 64, blocks=blocks, heads=2, hidden=128, global_token=global_token)
        near = nn.Conv2d(STAGE_CHANNELS["layer2"], 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(near.weight)
        self.skip = nn.Sequential(near, nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 1))

    def refine(self, patches: Tensor, features: dict[str, Tensor]) -> Tensor:
        near = features["layer2"]
        return self.skip(near) + F.interpolate(patches, size=near.shape[2:], mode="bilinear", align_corners=False)


def toy_segmenter(*, decoder_blocks: int = 2, global_token: bool = False) -> Segmenter:
    """A Segmenter for the embedded scenes, without heads: 0.3 M parameters, trained from scratch in seconds on one CPU core.

    The same parts as `segmenter`, but a convolutional stem in front of the encoder (see `ToyEncoder`) and, added to the decoder's
    patches, a path from that stem: F and the scores have a quarter of the image's resolution, the encoder's map an eighth.
    """
    return Segmenter(ToyEncoder(), ToyMaskDecoder(blocks=decoder_blocks, global_token=global_token))
