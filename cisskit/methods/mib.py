"""MiB. "Modeling the Background for Incremental Learning in Semantic Segmentation", CVPR 2020.

Idea: at step t, old and future classes are all labelled background. So let background mean "not told": in the labels it
covers every known class, in the teacher it covers every new class.

    L = CE_unbiased(q, y) + λ KD_unbiased(q, q̂)
    q student   q̂ teacher   λ lambda_kd   Y^{t-1} step.known   C^t step.new

Follows the released code. Where it differs from the paper:
- KD is divided by the number of teacher channels, and λ is scaled to that. The preset is 10 for every task; the authors
  told users that the tables need 100 on VOC 15-1.
- Void (255) stays ignored; the released loader turns it into background, as the protocol "mib" does.
- Plain batch norm + ReLU with torchvision's weights instead of the in-place unit.
"""

from cisskit.losses import cross_entropy, unbiased_cross_entropy, unbiased_distillation
from cisskit.method import STRICT, Method, Recipe, dataclass
from cisskit.models.heads import share_background

VOC = (Recipe(epochs=30, batch_size=24, lr=0.01), Recipe(epochs=30, batch_size=24, lr=0.001))
ADE = (Recipe(epochs=60, batch_size=24, lr=0.01), Recipe(epochs=60, batch_size=24, lr=0.001))


@dataclass(frozen=True, config=STRICT)
class MiB(Method):
    lambda_kd: float = 10.0

    title = "MiB"
    paper = "Modeling the Background for Incremental Learning in Semantic Segmentation, CVPR 2020"
    recipes = {"voc": VOC, "ade": ADE}

    def grow(self, model, step):
        model.add_head(step.n_new, init=share_background)  # each new class starts as an equal share of background

    def losses(self, batch, student, teacher, ctx):
        if teacher is None:  # step 0: nothing to remember yet
            return {"ce": cross_entropy(student.logits, batch.label)}
        return {
            "unce": unbiased_cross_entropy(student.logits, batch.label, known=ctx.step.known),
            "unkd": self.lambda_kd * unbiased_distillation(student.logits, teacher.logits, new=ctx.step.new),
        }

    def base_key(self):
        return {"loss": "cross-entropy"}


METHOD = MiB
