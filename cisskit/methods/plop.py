"""PLOP. "PLOP: Learning without Forgetting for Continual Semantic Segmentation", CVPR 2021.

Idea: two fixes for two shifts. Every map of the network keeps its pooled statistics, over strips at several scales (Local
POD). And background pixels of which the old model is certain, measured by entropy against a threshold per class, are
labelled again; the rest of the background is ignored, and an image counts as much as its background could be settled.

    L = mean over pixels of a_b CE(z, y~) + sqrt(C/N) mean over maps of λ_map |Φ(s²) - Φ(t²)|
    y~ = argmax ẑ where y is background and the entropy of ẑ is below τ_c; 255 where it is not     (c = argmax ẑ)
    a_b settled share of image b's background   s, t student's and teacher's maps   Φ means of rows and columns per window
    C, N all and new classes   λ_map factor_features, or factor_logits for the last map

Follows the released code. Where it differs from the paper:
- Entropies are means over classes, divided by log(old) and again by log(all); they lie in [0, 1/old]. The thresholds are called
  medians, but a running sum adds the bin index instead of the bin's count (``threshold_rule = "released"``; "median" is the
  median). In practice most become 0.005 to 0.01.
- The factor a_b multiplies the new classes too: an image without background teaches nothing.
- Windows have their side from the width on both axes; rows and columns that do not fill a window are left out.
- In the last map the new channels are added to the background, before squaring.
Deviation: plain batch norm + ReLU with torchvision's weights instead of MiB's in-place unit.
"""

from typing import Literal

import torch

from cisskit.losses import cross_entropy, pod_loss
from cisskit.method import STRICT, Method, Recipe, dataclass
from cisskit.models.heads import share_background
from cisskit.pseudo import entropy_histogram, entropy_labels, entropy_thresholds

VOC = (Recipe(epochs=30, batch_size=24, lr=0.01), Recipe(epochs=30, batch_size=24, lr=0.001))  # 10-1: later.epochs = 10
ADE = (Recipe(epochs=60, batch_size=24, lr=0.01), Recipe(epochs=60, batch_size=24, lr=0.001))
MAPS = ("layer1_sum", "layer2_sum", "layer3_sum", "layer4_sum", "decoder")  # residual sums, before their activation


@dataclass(frozen=True, config=STRICT)
class PLOP(Method):
    factor_features: float = 0.01
    factor_logits: float = 0.0005
    base_threshold: float = 0.001
    threshold_rule: Literal["released", "median"] = "released"
    pseudo: bool = True
    pod: bool = True

    title = "PLOP"
    paper = "PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021"
    recipes = {"voc": VOC, "ade": ADE}
    on = {"ade": {"factor_features": 0.001, "factor_logits": 0.00001}}
    families = ("cnn",)
    ablations = {
        "no-pseudo": {"pseudo": False},
        "no-pod": {"pod": False},
        "true-median": {"threshold_rule": "median"},
    }

    def grow(self, model, step):
        model.add_head(step.n_new, init=share_background)

    def prepare(self, ctx, loader):
        if not self.pseudo:
            return {}
        n_all = ctx.step.n_seen + 1
        counts = [entropy_histogram(batch.label, ctx.old_model(batch.image).logits, n_all) for batch in loader]
        return {
            "thresholds": entropy_thresholds(
                torch.stack(counts).sum(dim=0), n_all, base=self.base_threshold, rule=self.threshold_rule
            )
        }

    def targets(self, batch, teacher, ctx):
        return self._settled(batch, teacher, ctx)[0]

    def _settled(self, batch, teacher, ctx):
        """Labels, and per image the share of its background that they settle."""
        if teacher is None or not self.pseudo:
            return batch.label, torch.ones(len(batch.label), device=batch.label.device)
        return entropy_labels(batch.label, teacher.logits, ctx.stats["thresholds"], ctx.step.n_seen + 1)

    def losses(self, batch, student, teacher, ctx):
        if teacher is None:
            return {"ce": cross_entropy(student.logits, batch.label)}
        y, share = self._settled(batch, teacher, ctx)
        terms = {"ce": (share.view(-1, 1, 1) * cross_entropy(student.logits, y, reduction="none")).mean()}
        if self.pod:
            terms["pod"] = pod_loss(
                [student.features[name] for name in MAPS], [teacher.features[name] for name in MAPS],
                student.scores, teacher.scores, factor_features=self.factor_features, factor_logits=self.factor_logits,
            )  # fmt: skip
        return terms

    def base_key(self):
        return {"loss": "cross-entropy"}


METHOD = PLOP
