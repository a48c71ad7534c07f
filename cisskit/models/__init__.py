"""Networks by name."""

from cisskit.errors import unknown
from cisskit.models.base import Model, Output
from cisskit.models.deeplab import BACKBONES, deeplab
from cisskit.models.toy import CHANNELS, ToyBackbone, ToyDecoder

ARCHITECTURES = ("toy", *(f"deeplabv3_{name}" for name in BACKBONES))

__all__ = ["ARCHITECTURES", "Model", "Output", "create"]


def create(arch: str, weights: str | None = "imagenet") -> Model:
    """A network without heads. weights: see `cisskit.models.deeplab.deeplab`; the toy network has none and ignores it."""
    if arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    if arch == "toy":
        return Model(ToyBackbone(), ToyDecoder(), CHANNELS)
    return deeplab(arch.removeprefix("deeplabv3_"), weights)
