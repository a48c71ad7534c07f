"""LAG's interpretability: one score per class, and what Captum makes of it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cisskit.attribution import Scores, ablation, class_scores, grad_cam, lrp, upsample
from cisskit.losses.contrast import merged
from families.pieces import Arrays, Outputs


class Tiny(nn.Module):
    """The recorded network: two 3x3 convolutions, a 1x1 head, bilinear to the size of the image."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name in ("conv1", "conv2", "head"):
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.add_module(name, conv)
        self.conv2.stride = (2, 2)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, image: Tensor) -> Tensor:
        x = self.head(self.relu2(self.conv2(self.relu1(self.conv1(image)))))
        return F.interpolate(x, size=image.shape[2:], mode="bilinear", align_corners=False)


def wrapper(meta: Any, a: Arrays) -> Outputs:
    logits = a.tensor("logits")
    if meta["args"]["unknown_merged"] != "no":
        logits = merged(logits)
    mask = a.tensor("out_max")[:, 0]
    return {"class_scores": class_scores(logits, mask)}


def attribution(meta: Any, a: Arrays) -> Outputs:
    net = Tiny({name.removeprefix("w__"): a.tensor(name) for name in a if name.startswith("w__")})
    scores, image, target = Scores(net), a.tensor("image"), meta["args"]["target"]
    with torch.no_grad():
        logits = scores.logits(image)
    mask = logits.argmax(dim=1)
    layer = scores.net.get_submodule(meta["args"]["layer"])
    cam = grad_cam(scores, image, mask, target, layer=layer)
    return {
        "logits": logits,
        "out_max": mask[:, None],
        "class_scores": scores(image, mask),
        "gradcam": cam,
        "gradcam_up": upsample(cam, (image.shape[2], image.shape[3])),
        "ablation": ablation(scores, image, mask, target, mask[0]),
        "lrp": lrp(scores, image, mask, target, equal=True),
    }


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {"lag/attribution": attribution, "lag/wrapper": wrapper}
