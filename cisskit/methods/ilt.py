"""ILT. "Incremental Learning Techniques for Semantic Segmentation", ICCV Workshops 2019, as the MiB code has it.

Idea: LwF, and the inner features shall not move either.

    L = CE(z, y) + λ KD(z_old, ẑ) + λ_f mean (f - f̂)²
    z, f student logits and last backbone map   ẑ, f̂ teacher's   λ lambda_kd   λ_f lambda_features

Follows the MiB code, the source of all "ILT" rows in later tables: f is the last backbone map after its activation, the
square is averaged over all elements; KD as in LwF. The ILT paper itself offers more (a frozen encoder, inner layers).
Deviation: plain batch norm + ReLU with torchvision's weights instead of MiB's in-place unit.
"""

import torch.nn.functional as F

from cisskit.losses import cross_entropy, output_distillation
from cisskit.method import STRICT, Method, Recipe, dataclass

VOC = (Recipe(epochs=30, batch_size=24, lr=0.01), Recipe(epochs=30, batch_size=24, lr=0.001))
ADE = (Recipe(epochs=60, batch_size=24, lr=0.01), Recipe(epochs=60, batch_size=24, lr=0.001))


@dataclass(frozen=True, config=STRICT)
class ILT(Method):
    lambda_kd: float = 100.0
    lambda_features: float = 100.0

    title = "ILT"
    paper = "Incremental Learning Techniques for Semantic Segmentation, ICCV Workshops 2019 (as in MiB's code, CVPR 2020)"
    recipes = {"voc": VOC, "ade": ADE}

    def losses(self, batch, student, teacher, ctx):
        terms = {"ce": cross_entropy(student.logits, batch.label)}
        if teacher is None:
            return terms
        f, f_old = student.features["backbone"].float(), teacher.features["backbone"].float()
        return terms | {
            "kd": self.lambda_kd * output_distillation(student.logits, teacher.logits),
            "features": self.lambda_features * F.mse_loss(f, f_old),
        }

    def base_key(self):
        return {"loss": "cross-entropy"}


METHOD = ILT
