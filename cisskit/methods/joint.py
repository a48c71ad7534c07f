"""Joint. The upper bound: what the same network reaches when nothing has to be remembered.

Idea: at step t train a fresh network on all images of steps 0..t with the labels of all classes seen so far.

    L = CE(z, y)
    z student logits   y labels: background, every class seen so far, 255

Papers report the last step only (one training with all classes); here every step has its own bound, so
that curves can be compared at every step, and the last one is the published kind. ``--setting joint`` trains that alone.
"""

from cisskit.losses import cross_entropy
from cisskit.method import STRICT, Method, Recipe, dataclass

VOC, ADE = (Recipe(epochs=epochs, batch_size=24, lr=0.01) for epochs in (30, 60))


@dataclass(frozen=True, config=STRICT)
class Joint(Method):
    title = "Joint"
    paper = "joint training, upper bound (as in MiB's code, CVPR 2020)"
    recipes = {"voc": (VOC, VOC), "ade": (ADE, ADE)}
    sees = "seen"

    def losses(self, batch, student, teacher, ctx):
        return {"ce": cross_entropy(student.logits, batch.label)}

    def base_key(self):
        return {"loss": "cross-entropy"}


METHOD = Joint
