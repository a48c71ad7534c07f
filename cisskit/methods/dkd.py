"""DKD. "Decomposed Knowledge Distillation for Class-Incremental Semantic Segmentation", NeurIPS 2022. With memory: DKD-M.

Idea: every class is its own sigmoid, so a new class cannot push an old one down; "background" is where no class fires.
What the old model knew about a class is more than its logit: the logit is evidence for (positive weights) plus
evidence against (negative weights), and both are distilled. A new class is born from an auxiliary head that has
learnt to stay silent everywhere, so it starts without false alarms.

    L = L_mBCE + λ_kd L_KD + λ_dkd (L_+ + L_-) + λ_ac L_AC          (L_mBCE + λ_ac L_AC at step 0)
    L_mBCE  sigmoid BCE of the new classes, positives weighted γ      L_KD   old logits against the old model's sigmoid
    L_±     scores p = max(w, 0)·f and m = min(w, 0)·f, likewise      L_AC   auxiliary logit towards 0 on every pixel
    f decoder features   w head weights   γ pos_weight   λ_kd, λ_dkd, λ_ac lambda_*
    All terms: mean over pixels of the batch per class, then SUM over classes. Void (255) is a negative, not ignored.

Follows the released code. Where it differs from the paper:
- p and m are averaged over the feature map, without bias; the paper says over input pixels.
- γ is 2 at step 0 and 1 later on VOC, 35 on ADE20K; decoder and heads learn 10 times faster than the backbone; after
  step 0 batch norm is frozen, dropout is off, and only the new head has weight decay. None of this is in the paper.
- Exemplars carry this step's labels only: their old classes are background. Their class lists come, from step 2 on, with
  pseudo-labels of a model that the released script has not restored yet (``memory_tags = "released"``: noise);
  ``"restored"`` uses the previous model. It matters only for t >= 2.
Deviation: float32 or bfloat16 instead of float16 with loss scaling.
"""

from typing import Literal

import numpy as np
import torch

from cisskit.losses import auxiliary_background, masked_bce, reasoning_scores, sigmoid_distillation
from cisskit.method import STRICT, Method, Recipe, dataclass, trainable
from cisskit.models import create
from cisskit.models.heads import copy_first, kaiming
from cisskit.replay import Exemplar, draw, presence_of, shuffled

VOC = (
    Recipe(epochs=60, batch_size=32, lr=1e-3, head_factor=10),
    Recipe(epochs=60, batch_size=32, lr=1e-4, head_factor=10, freeze=("bn", "dropout")),
)
ADE = (
    Recipe(epochs=100, batch_size=24, lr=2.5e-3, head_factor=10, schedule="warm_poly"),
    Recipe(epochs=100, batch_size=24, lr=2.5e-4, head_factor=10, schedule="warm_poly", freeze=("bn", "dropout")),
)


@dataclass(frozen=True, config=STRICT)
class DKD(Method):
    lambda_kd: float = 5.0
    lambda_dkd: float = 5.0
    lambda_ac: float = 1.0
    pos_weight: tuple[float, float] = (2.0, 1.0)  # γ at step 0, later
    memory: int = 0  # exemplars in total; 100 on VOC is DKD-M
    memory_tags: Literal["released", "restored"] = "released"

    title = "DKD"
    paper = "Decomposed Knowledge Distillation for Class-Incremental Semantic Segmentation, NeurIPS 2022"
    recipes = {"voc": VOC, "ade": ADE}
    on = {"ade": {"pos_weight": (35.0, 35.0)}, "ade-m": {"memory": 300}}
    families = ("cnn",)
    variants = {"m": ("DKD-M", {"memory": 100})}
    ablations = {
        "no-kd": {"lambda_kd": 0.0},
        "no-dkd": {"lambda_dkd": 0.0},
        "no-ac": {"lambda_ac": 0.0},
    }

    def build(self, scenario, arch, weights):
        model = create(arch, weights)
        model.add_head(1, init=kaiming, detached=True)  # channel 0: the auxiliary head, never shapes the features
        model.add_head(scenario.steps[0].n_new, init=kaiming)
        return model

    def grow(self, model, step):
        model.add_head(step.n_new, init=copy_first if self.lambda_ac else kaiming)

    def losses(self, batch, student, teacher, ctx):
        new, old, z = ctx.step.new, ctx.step.old, student.logits
        gamma = self.pos_weight[min(ctx.step.index, 1)]
        terms = {
            "mbce": masked_bce(z[:, new], batch.label, first=new.start, pos_weight=gamma).sum(),
            "ac": self.lambda_ac * auxiliary_background(z[:, :1]),
        }
        if teacher is None:
            return terms
        p, m = reasoning_scores(student.features["decoder"], ctx.model.classifier()[0][old])
        p_old, m_old = reasoning_scores(teacher.features["decoder"], ctx.old_model.classifier()[0][old])
        return terms | {
            "kd": self.lambda_kd * sigmoid_distillation(z[:, old], teacher.logits[:, old]).sum(),
            "dkd_pos": self.lambda_dkd * sigmoid_distillation(p, p_old).sum(),
            "dkd_neg": self.lambda_dkd * sigmoid_distillation(m, m_old).sum(),
        }

    def predict(self, output):
        score, best = output.logits[:, 1:].sigmoid().max(dim=1)  # on sigmoids: saturated ties go to the lower id
        return torch.where(score > 0.5, best + 1, 0)

    def param_groups(self, model, recipe, step):
        fast, decay = recipe.lr * recipe.head_factor, recipe.weight_decay
        if step.index == 0:
            parts = [(model.backbone, recipe.lr, decay), (model.decoder, fast, decay), (model.heads, fast, decay)]
        else:  # nothing old is decayed towards zero
            parts = [(model.backbone, recipe.lr, 0.0), (model.decoder, fast, 0.0)]
            parts += [(model.heads[:-1], fast, 0.0), (model.heads[-1:], fast, decay)]
        return [{"params": trainable(part), "lr": lr, "weight_decay": wd} for part, lr, wd in parts]

    def exemplars(self, ctx, earlier):
        if not self.memory:
            return []
        previous = ctx.scenario.step(ctx.step.index - 1)
        candidates = earlier + self._tagged(ctx, previous)
        rng = np.random.RandomState(ctx.seed + ctx.step.index)
        candidates, classes = shuffled(candidates, range(1, ctx.step.n_old + 1), rng)
        return draw(candidates, classes, self.memory)

    def _tagged(self, ctx, previous):
        """Training images of the previous step with the classes that their augmented, masked labels show."""
        tagger = None
        if previous.index > 0:
            tagger = ctx.old_model if self.memory_tags == "restored" else self._unrestored(ctx, previous)
        tagged = []
        for batch in ctx.data.train(previous.index).epoch(0, ctx.device, whole=True):
            logits = tagger(batch.image).logits if tagger is not None else None
            classes = presence_of(batch.label, logits)
            tagged += [Exemplar(name, found) for name, found in zip(batch.extra["names"], classes, strict=True)]
        return tagged

    def _unrestored(self, ctx, previous):
        model = self.build(ctx.scenario, ctx.arch, ctx.weights)
        for step in ctx.scenario.steps[1 : previous.index + 1]:
            self.grow(model, step)
        return model.to(ctx.device).eval()

    def base_key(self):
        return {"loss": "dkd", "pos_weight": self.pos_weight[0], "lambda_ac": self.lambda_ac}


METHOD = DKD
