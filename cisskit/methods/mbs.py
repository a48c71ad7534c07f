"""MBS. "Mitigating Background Shift in Class-Incremental Semantic Segmentation", ECCV 2024.

Idea: the background shifts twice. Old objects that the old model misses are trained as background: so ignore background
pixels where the old model sees some object but no class surely, and trust its features only where it is reliable. And new
classes, born from the background, stay confused with it: so hand the old model's background probability to the new class
where its label is, and turn new class tokens away from all others.

    L = CE(z, y-) + L_patch + L_cls + λ L_od + L_ort
    y- = argmax q where y = 0 and max q >= τ is an old class; 255 where still 0 and q_0 < Σ_c q_c; y elsewhere       q = softmax ẑ
    L_patch = Σ r |F - F̂|² / (D #{r > 0})     r = q_0 of the old low-resolution logits where y- = 0, 1 on old classes, 0 else
    L_cls = mean |E_old - Ê|²      L_od = - mean q~ log softmax z, q~ = q with q_0 moved to the label where y is new
    L_ort = n/C mean |cos(e_i, stopgrad e_j)|, i new, j any other       n, C new and all classes
    F decoder patches   E projected class embeddings   e class tokens   λ lambda_od   τ tau

Follows the released code. Where it differs from the paper's figure, and what is ours:
- r uses the low-resolution logits before any upsampling; L_od divides by C: λ = 25 with C = 17 acts like 1.5 on a sum.
- New classes are also turned away from each other. No patch to trust: L_patch is 0 here, NaN when released.
- On a CNN [kit's own reading]: F the map before the classifier, e the classifier's rows, no E and so no L_cls.
- The released learning rate is constant. Kept: the last weights; the released code keeps the best on the new classes of
  TEST images.
"""

from typing import Literal

from cisskit.losses import (
    binary_cross_entropy,
    class_embeddings,
    cross_entropy,
    label_guided_distillation,
    orthogonality,
    output_distillation,
    reliability,
    reliable_patches,
)  # fmt: skip
from cisskit.method import STRICT, Method, Recipe, dataclass
from cisskit.models.heads import copy_background
from cisskit.pseudo import selective

VOC = (
    Recipe(epochs=32, batch_size=16, lr=1e-3, schedule="constant", weight_decay=1e-5, augment="shorter_scale"),
    Recipe(epochs=32, batch_size=16, lr=1e-4, schedule="constant", weight_decay=1e-5, augment="shorter_scale"),
)
ADE = (
    Recipe(epochs=64, batch_size=8, lr=1e-3, schedule="constant", weight_decay=1e-5, augment="shorter_scale"),
    Recipe(epochs=64, batch_size=8, lr=5e-4, schedule="constant", weight_decay=1e-5, augment="shorter_scale"),
)


@dataclass(frozen=True, config=STRICT)
class MBS(Method):
    tau: float = 0.7
    alpha: float = 1.0
    lambda_od: float = 25.0
    base_loss: Literal["ce", "bce"] = "ce"
    spl: bool = True  # ignore what the old model misses; else plain pseudo-labels
    afd_weighting: bool = True  # r; else 1 everywhere
    lgod: bool = True  # else output distillation over the old channels
    ortho: bool = True
    bwt: bool = True  # births from the background token; else at random

    title = "MBS"
    paper = "Mitigating Background Shift in Class-Incremental Semantic Segmentation, ECCV 2024"
    recipes = {"voc": VOC, "ade": ADE}
    on = {"ade": {"lambda_od": 50.0}}
    families = ("segmenter", "cnn")
    ablations = {
        "no-spl": {"spl": False},
        "no-afd-weighting": {"afd_weighting": False},
        "no-lgod": {"lgod": False},
        "no-ortho": {"ortho": False},
        "no-bwt": {"bwt": False},
        "baseline": {"spl": False, "afd_weighting": False, "lgod": False, "ortho": False},  # the release's own
        "bce": {"base_loss": "bce"},
    }

    def grow(self, model, step):
        model.add_head(step.n_new, init=copy_background if self.bwt else None)

    def targets(self, batch, teacher, ctx):
        if teacher is None:
            return batch.label
        activation = "softmax" if self.base_loss == "ce" else "sigmoid"
        return selective(batch.label, teacher.logits, threshold=self.tau, activation=activation, ignore_objects=self.spl)

    def losses(self, batch, student, teacher, ctx):
        y, z, step = self.targets(batch, teacher, ctx), student.logits, ctx.step
        base = cross_entropy(z, y, reduction="valid") if self.base_loss == "ce" else binary_cross_entropy(z, y)
        if teacher is None:
            return {self.base_loss: base}
        r = reliability(teacher.scores, y) if self.afd_weighting else None
        terms = {
            self.base_loss: base,
            "afd_patch": reliable_patches(student.features["decoder"], teacher.features["decoder"], r),
        }
        if "classes" in student.features:
            terms["afd_cls"] = class_embeddings(student.features["classes"], teacher.features["classes"])
        if self.lgod:
            terms["lgod"] = self.lambda_od * label_guided_distillation(z, teacher.logits, batch.label, alpha=self.alpha)
        else:
            terms["kd"] = self.lambda_od * output_distillation(z, teacher.logits, alpha=self.alpha)
        if self.ortho:
            terms["ortho"] = orthogonality(ctx.model.class_rows(), new=step.new)
        return terms

    def base_key(self):
        return {"loss": f"mbs {self.base_loss}"}


METHOD = MBS
