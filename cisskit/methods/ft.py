"""FT. Fine-tuning, the lower bound of every paper in the field.

Idea: none. Train on the labels of this step, in which every earlier class is background, and watch it disappear.

    L = CE(z, y)
    z student logits, all C channels   y labels of this step: 0, its classes, 255

Follows the MiB code: the mean divides by all pixels of the batch, ignored ones included; the new head starts at
random; everything is trained.
Deviation: plain batch norm + ReLU with torchvision's weights instead of MiB's in-place unit.
"""

from cisskit.losses import cross_entropy
from cisskit.method import STRICT, Method, Recipe, dataclass

VOC = (Recipe(epochs=30, batch_size=24, lr=0.01), Recipe(epochs=30, batch_size=24, lr=0.001))
ADE = (Recipe(epochs=60, batch_size=24, lr=0.01), Recipe(epochs=60, batch_size=24, lr=0.001))


@dataclass(frozen=True, config=STRICT)
class FT(Method):
    title = "FT"
    paper = "fine-tuning, lower bound (as in MiB's code, CVPR 2020)"
    recipes = {"voc": VOC, "ade": ADE}

    def losses(self, batch, student, teacher, ctx):
        return {"ce": cross_entropy(student.logits, batch.label)}

    def base_key(self):
        return {"loss": "cross-entropy"}  # step 0 of FT, MiB and the joint bound is one and the same run


METHOD = FT
