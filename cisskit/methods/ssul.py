"""SSUL. "SSUL: Semantic Segmentation with Unknown Label for Exemplar-based Class-Incremental Learning", NeurIPS 2021.

Idea: what cannot move cannot be forgotten. After step 0 network and old heads are frozen. An extra class, "unknown", learns
every object that no label names, and a new class is born as a copy of it. Old classes reach the labels through the old
model where it is sure. With exemplars (``memory``) it is SSUL-M.

    L = BCE(z, y~)        sum over channels, mean over pixels that are not void
    y~ = argmax_c σ(ẑ_c) where y is unknown or background, that class is an old one and σ(ẑ) >= τ;   y elsewhere
    z student   ẑ teacher   τ threshold   channels: 0 unknown, 1 background, 2.. classes   prediction: σ_bg + σ_unknown

Follows the released code. Where it differs from the paper, and what is ours:
- After step 0 three heads learn: the new one, the unknown one, and the background one 10,000 times slower; of them only the
  convolutions, as batch norm stands still. Dropout in the frozen part stays on.
- With saliency maps, as on VOC in print, unlabelled salient pixels are unknown and the others background. Where the data have
  none, or with ``saliency = false``, every unlabelled pixel is unknown and the background head never sees a positive (the
  released rule for ADE20K). The scenes' maps are perfect: they show every object, also those of later steps.
- Exemplars carry the labels of all classes seen. The released code forgets to shift them by one, so each lands one channel too
  low (``memory_labels = "released"``); by default they are shifted.
- Exemplars are drawn afresh for every batch (kit's own reading) and chosen from training crops, not from centre crops; the
  choice ends when candidates run out (released: never).
- The last weights are kept; the released code keeps those that are best on the new classes of the TEST images (protocol "ssul").
"""

from typing import Literal

import numpy as np
import torch

from cisskit.losses import binary_cross_entropy
from cisskit.method import STRICT, Method, Recipe, dataclass
from cisskit.models import unknown_head
from cisskit.pseudo import closed_labels, confident, open_labels, predict_open
from cisskit.replay import Exemplar, draw, presence_of, shuffled

VOC = (
    Recipe(epochs=50, batch_size=32, lr=1e-3, head_factor=10, schedule="poly_floor", crop=513, augment="scale"),
    Recipe(epochs=50, batch_size=32, lr=1e-3, head_factor=10, schedule="poly_floor", crop=513, augment="scale", freeze=("bn",)),
)
ADE = (
    Recipe(epochs=100, batch_size=24, lr=1e-3, head_factor=10, schedule="warm_poly_floor", crop=513, augment="scale"),
    Recipe(
        epochs=100, batch_size=24, lr=5e-3, head_factor=10, schedule="warm_poly_floor", crop=513, augment="scale", freeze=("bn",)
    ),
)


@dataclass(frozen=True, config=STRICT)
class SSUL(Method):
    threshold: float = 0.7  # τ
    saliency: bool = True  # where the data have maps
    memory: int = 0  # exemplars in total; 100 on VOC is SSUL-M
    memory_labels: Literal["fixed", "released"] = "fixed"

    title = "SSUL"
    paper = "SSUL: Semantic Segmentation with Unknown Label for Exemplar-based Class-Incremental Learning, NeurIPS 2021"
    recipes = {"voc": VOC, "ade": ADE}
    on = {"ade-m": {"memory": 300}}
    families = ("cnn",)
    ablations = {"no-saliency": {"saliency": False}, "released-memory": {"memory": 100, "memory_labels": "released"}}
    variants = {"m": ("SSUL-M", {"memory": 100})}
    replay = "half"

    @property
    def wants(self):
        return ("saliency",) if self.saliency else ()

    def build(self, scenario, arch, weights):
        return unknown_head.build(scenario, arch, weights)

    def grow(self, model, step):
        unknown_head.grow(model, step)

    def param_groups(self, model, recipe, step):
        return unknown_head.param_groups(model, recipe, step)

    def targets(self, batch, teacher, ctx):
        return closed_labels(self._targets(batch, teacher))

    def _targets(self, batch, teacher):
        y = open_labels(batch.label, batch.extra.get("saliency"))
        if self.memory_labels == "released":
            y = torch.where(batch.extra["from_memory"].view(-1, 1, 1), batch.label, y)
        return y if teacher is None else confident(y, teacher.open_logits, threshold=self.threshold)

    def losses(self, batch, student, teacher, ctx):
        return {"bce": binary_cross_entropy(student.open_logits, self._targets(batch, teacher))}

    def predict(self, output):
        return predict_open(output.open_logits)[1]

    def exemplars(self, ctx, earlier):
        if not self.memory:
            return []
        previous, candidates = ctx.scenario.step(ctx.step.index - 1), list(earlier)
        for batch in ctx.data.train(previous.index).epoch(0, ctx.device, whole=True):
            labels = batch.label
            if previous.index > 0:
                y = open_labels(labels)
                labels = closed_labels(confident(y, ctx.old_model(batch.image).open_logits, threshold=self.threshold))
            candidates += [Exemplar(*pair) for pair in zip(batch.extra["names"], presence_of(labels), strict=True)]
        rng = np.random.RandomState(ctx.seed + ctx.step.index)
        candidates, classes = shuffled(candidates, range(1, ctx.step.n_old + 1), rng)
        return draw(candidates, classes, self.memory)

    def base_key(self):
        return {"loss": "open bce", "saliency": self.saliency, "taps": False}


METHOD = SSUL
