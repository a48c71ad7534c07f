"""IDEC. "Inherit with Distillation and Evolve with Contrast", TPAMI 2023.

Idea: inherit what the old model knows by distilling all its aspects, inner features included (DADA), and evolve by pulling a
class region of the new model to the same region of the old one, and away from the rest of the image (ARCL). An unknown head
takes what no label names; old classes come back as pseudo-labels.

    L = BCE(z, y~) + Σ_l w_l λ(e) KD(s_l, t_l) + KD(s_out, t_out) + ARCL
    KD(s, t) = - mean over positions and channels of softmax(α t) log softmax(s)      λ(e) = decay^(epoch / epochs)
    y~ = the old model's class where y names none and its sigmoid is >= τ             l layer1, layer2, layer3
    ARCL = max(|a - p| - |a - n| + 1, 0)     a a region in the old model, p the same in the new one, n the rest of the image

``mode = "released"``: as the code ran that made the published numbers: after step 0 the network is frozen and three heads
learn, so that DADA and ARCL are computed and change no weight; what acts is the unknown head, weight transfer and
pseudo-labels. ``mode = "described"``: the network trains, as the paper says, and its terms act; no published number is known
to come from it. A number of this kit names its mode.

Whose is what:
- [released code] KD, its layer weights, BCE, weight transfer, the fixed threshold, and ``arcl = "released"``: a mask that grows
  over ten random draws, features of the first image only, the first 256 positive values instead of embeddings, and, in place,
  unknown scores added to the background before BCE sees them. The published scripts left ARCL off, and so does the released mode.
- [kit's own reading] ``arcl = "region"`` (mean features of regions, nearest negative; on in the described mode) and
  ``pseudo = "class_dynamic"`` (a running median per class as threshold): the paper's figure and words, not its equations.
- [paper's words, commented out in the code] distilled logits: on in the described mode.
- Unlabelled pixels: unknown where saliency maps show something, else background (the training era's rule on VOC); all unknown
  where the data have no maps, or with ``saliency = false`` (the head revision). The scenes' maps are perfect.
- Kept: the last weights. The released code keeps the best on the new classes of the TEST images (protocol "idec").
"""

import random
from typing import Literal

import torch

from cisskit.losses import (
    arcl_released,
    binary_cross_entropy,
    draw_classes,
    layer_distillation,
    merged,
    region_contrast,
    soft_cross_entropy,
    unknown_added,
)  # fmt: skip
from cisskit.method import STRICT, Method, Recipe, dataclass
from cisskit.models import Kept, unknown_head
from cisskit.models.unknown_head import LAYERS
from cisskit.pseudo import class_medians, closed_labels, confident, open_labels, predict_open

VOC = (
    Recipe(epochs=30, batch_size=12, lr=1e-3, head_factor=10, schedule="poly_floor", crop=513, augment="scale"),
    Recipe(epochs=30, batch_size=12, lr=1e-3, head_factor=10, schedule="poly_floor", crop=513, augment="scale", freeze=("bn",)),
)
ADE = (
    Recipe(epochs=50, batch_size=12, lr=1e-3, head_factor=10, schedule="poly_floor", crop=513, augment="scale"),
    Recipe(epochs=50, batch_size=12, lr=1e-3, head_factor=10, schedule="poly_floor", crop=513, augment="scale", freeze=("bn",)),
)


@dataclass(frozen=True, config=STRICT)
class IDEC(Method):
    mode: Literal["released", "described"] = "released"
    threshold: float = 0.7  # τ
    pseudo: Literal["fixed", "class_dynamic"] = "fixed"
    least_threshold: float = 0.4  # of a class, for class_dynamic
    saliency: bool = True  # where the data have maps
    transfer: bool = True
    dada: bool = True
    alpha: float = 2.0
    layer_weights: tuple[float, float, float, float] = (0.5, 1.0, 2.0, 1.0)
    decay: float = 1.0
    kd_logits: bool | None = None  # None: off in the released mode, on in the described one
    arcl: Literal["off", "released", "region"] | None = None  # None: off, and region
    arcl_rounds: int = 10

    title = "IDEC"
    paper = "Inherit with Distillation and Evolve with Contrast, TPAMI 2023"
    recipes = {"voc": VOC, "ade": ADE, "isprs": VOC}
    families = ("cnn",)
    modes = unknown_head.MODES
    variants = {"": ("IDEC (released)", {}), "described": ("IDEC (described)", {"mode": "described"})}
    ablations = {
        "no-saliency": {"saliency": False},
        "no-transfer": {"transfer": False},
        "no-dada": {"dada": False},
        "with-arcl": {"arcl": "released"},
        "class-dynamic": {"pseudo": "class_dynamic"},
        "described-no-dada": {"mode": "described", "dada": False, "kd_logits": False},
        "described-no-arcl": {"mode": "described", "arcl": "off"},
    }

    @property
    def wants(self):
        return ("saliency",) if self.saliency else ()

    @property
    def inert(self):
        """In the released mode every feature is frozen: what compares features trains nothing."""
        return frozenset({"kd_l1", "kd_l2", "kd_l3", "kd_out", "arcl"} if self.mode == "released" else ())

    def build(self, scenario, arch, weights):
        return unknown_head.build(scenario, arch, weights, taps=True)

    def grow(self, model, step):
        unknown_head.grow(model, step, transfer=self.transfer, frozen=self.mode == "released")
        if self.pseudo == "class_dynamic":  # a new old model: its classes start at τ again
            model.aux["thresholds"] = Kept(median=torch.full((step.n_old,), self.threshold))

    def param_groups(self, model, recipe, step):
        return unknown_head.param_groups(model, recipe, step)

    def targets(self, batch, teacher, ctx):
        return closed_labels(self._targets(batch, teacher, ctx))

    def _targets(self, batch, teacher, ctx):
        """In the layout of `Output.open_logits`."""
        y = open_labels(batch.label, batch.extra.get("saliency"))
        return y if teacher is None else confident(y, teacher.open_logits, threshold=self._thresholds(ctx))

    def _thresholds(self, ctx):
        if self.pseudo == "fixed":
            return self.threshold
        median = ctx.model.aux["thresholds"].median.clamp(self.least_threshold, self.threshold)
        return torch.cat([median.new_full((2,), self.threshold), median])

    def _follow(self, batch, teacher, ctx):
        """Move the class-dynamic thresholds towards this batch: running median, momentum 0.99."""
        median = ctx.model.aux["thresholds"].median
        now = class_medians(open_labels(batch.label, batch.extra.get("saliency")), teacher.open_logits)[2:]
        median.copy_(torch.where(now.isnan(), median, 0.99 * median + 0.01 * now))

    def losses(self, batch, student, teacher, ctx):
        z = student.open_logits
        if teacher is None:
            return {"seg": binary_cross_entropy(z, self._targets(batch, None, ctx))}
        described = self.mode == "described"
        arcl = self.arcl or ("region" if described else "off")
        if self.pseudo == "class_dynamic" and ctx.model.training:  # looking on changes nothing
            self._follow(batch, teacher, ctx)
        if arcl == "released":  # its merge works in place, and so the segmentation loss sees it
            z = unknown_added(z)
        terms = {"seg": binary_cross_entropy(z, self._targets(batch, teacher, ctx))}
        if self.dada:
            s, t = ({name: output.features[key] for name, key in LAYERS.items()} for output in (student, teacher))
            epoch = int(ctx.progress * ctx.recipe.epochs) + 1
            weights = dict(zip(LAYERS, self.layer_weights, strict=True))
            decay = self.decay ** (epoch / ctx.recipe.epochs)
            kd = layer_distillation(s, t, weights, alpha=self.alpha, decay=decay, decayed_out=False)
            terms |= {f"kd_{name}": term for name, term in kd.items()}
        if described if self.kd_logits is None else self.kd_logits:
            terms["kd_logits"] = soft_cross_entropy(z, teacher.open_logits, alpha=self.alpha)
        if arcl != "off":
            terms["arcl"] = self._arcl(arcl, batch, student, teacher, ctx)
        return terms

    def _arcl(self, kind, batch, student, teacher, ctx):
        f, f_old = student.features["decoder"], teacher.features["decoder"]
        if kind == "released":
            classes = len(ctx.scenario.order)
            rng = random.Random(f"{ctx.seed}/{ctx.step.index}/{ctx.progress:.9f}")
            drawn = draw_classes(classes, min(self.arcl_rounds, classes - 1), rng)
            return arcl_released(f, f_old, teacher.open_logits, drawn)
        return region_contrast(f, f_old, batch.label, merged(teacher.open_logits), n_old=ctx.step.n_old)

    def predict(self, output):
        return predict_open(output.open_logits)[1]

    def base_key(self):
        return {"loss": "open bce", "saliency": self.saliency, "taps": True}


METHOD = IDEC
