"""Networks by name."""

from typing import Any

from cisskit.errors import KitError, unknown
from cisskit.models.base import Kept, Model, Output, trainable
from cisskit.models.deeplab import BACKBONES, deeplab
from cisskit.models.heads import conv_head, linear_head
from cisskit.models.segmenter import Segmenter, segmenter, toy_segmenter
from cisskit.models.toy import CHANNELS, ToyBackbone, ToyDecoder

FAMILIES = {
    "cnn": ("toy", *(f"deeplabv3_{name}" for name in BACKBONES)),
    "segmenter": ("toy_segmenter", "segmenter_vit_b16"),
}
"""Architectures by what they are made of. The first of each is for the embedded scenes, the second the papers' own."""
ARCHITECTURES = tuple(name for names in FAMILIES.values() for name in names)

__all__ = ["ARCHITECTURES", "FAMILIES", "Kept", "Model", "Output", "Segmenter", "create", "family", "trainable"]


def family(arch: str) -> str:
    """ "cnn" or "segmenter". Raises `KitError` for an unknown architecture."""
    for name, members in FAMILIES.items():
        if arch in members:
            return name
    raise unknown("architecture", arch, ARCHITECTURES)


def create(arch: str, weights: str | None = "imagenet", **form: Any) -> Model:
    """A network without heads.

    weights: see `deeplab` and `segmenter`; the networks of the scenes have none and ignore it. form: what a method changes
    inside: ``conv_heads`` and ``taps`` of a CNN (see `deeplab`), ``decoder_blocks`` and ``global_token`` of a Segmenter.
    Raises `KitError` for an unknown architecture or one that has no such form.
    """
    known = {"cnn": ("conv_heads", "taps"), "segmenter": ("decoder_blocks", "global_token")}[family(arch)]
    for name in form:
        if name not in known:
            raise KitError(f"{arch} cannot be built with {name}; it knows {', '.join(known)}. Choose another architecture.")
    if arch == "toy":
        head = conv_head if form.get("conv_heads") else linear_head
        return Model(ToyBackbone(), ToyDecoder(taps=form.get("taps", False)), CHANNELS, head)
    if arch == "toy_segmenter":
        return toy_segmenter(**form)
    if arch == "segmenter_vit_b16":
        return segmenter(weights, **form)
    return deeplab(arch.removeprefix("deeplabv3_"), weights, **form)
