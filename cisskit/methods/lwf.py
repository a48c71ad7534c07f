"""LwF. "Learning without Forgetting", ECCV 2016, as the MiB code has it for segmentation. LwF-MC: ``loss = "sigmoid"``.

Idea: whatever the labels say, keep the answers of the old model: its class probabilities are a second target for the old
channels. Nothing is done about the background, so the labels go on calling old objects background, and the two targets
quarrel.

    L = CE(z, y) + λ KD(z_old, ẑ)                      KD = - mean over pixels and old channels of softmax(ẑ) log softmax(z_old)
    L = BCE(z, y) + λ_mc BCE(z_old, sigmoid(ẑ))        LwF-MC: sums over channels, means over pixels
    z student   z_old its old channels, renormalised among themselves   ẑ teacher   λ lambda_kd   λ_mc lambda_mc

Follows the MiB code: KD divides by the number of old channels, and λ = 100 is scaled to that; every mean is over all pixels,
ignored ones included; new heads start at random. LwF-MC trains the old channels on background labels too ("combined").
Deviation: plain batch norm + ReLU with torchvision's weights instead of MiB's in-place unit.
"""

from typing import Literal

from cisskit.losses import binary_cross_entropy, cross_entropy, output_distillation, sigmoid_distillation
from cisskit.method import STRICT, Method, Recipe, dataclass

VOC = (Recipe(epochs=30, batch_size=24, lr=0.01), Recipe(epochs=30, batch_size=24, lr=0.001))
ADE = (Recipe(epochs=60, batch_size=24, lr=0.01), Recipe(epochs=60, batch_size=24, lr=0.001))


@dataclass(frozen=True, config=STRICT)
class LwF(Method):
    loss: Literal["softmax", "sigmoid"] = "softmax"  # sigmoid is LwF-MC
    lambda_kd: float = 100.0
    lambda_mc: float = 10.0

    title = "LwF"
    paper = "Learning without Forgetting, ECCV 2016 (as in MiB's code, CVPR 2020)"
    recipes = {"voc": VOC, "ade": ADE}
    ablations = {"kd-10": {"lambda_kd": 10.0}, "kd-1": {"lambda_kd": 1.0}}
    variants = {"mc": ("LwF-MC", {"loss": "sigmoid"})}

    def losses(self, batch, student, teacher, ctx):
        z, known = student.logits, ctx.step.known
        if self.loss == "sigmoid":
            terms = {"bce": binary_cross_entropy(z, batch.label, reduction="none").mean()}
            if teacher is not None:
                terms["kd"] = self.lambda_mc * sigmoid_distillation(z[:, known], teacher.logits).sum()
            return terms
        terms = {"ce": cross_entropy(z, batch.label)}
        if teacher is not None:
            terms["kd"] = self.lambda_kd * output_distillation(z, teacher.logits)
        return terms

    def base_key(self):
        return {"loss": "cross-entropy" if self.loss == "softmax" else "sum of sigmoids, all pixels"}


METHOD = LwF
