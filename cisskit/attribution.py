"""What a network looks at: attributions of one score, with Captum, and how far two networks agree about it.

Explained is always one number: the logit of one class, summed over the pixels of a mask that is passed in and stays as it is
while the image is perturbed. Take the mask from the truth or from the prediction on the unperturbed image; one that moved with
the perturbation would make every method measure a moving target. An unknown class counts as background, by raw scores.

    Grad-CAM               gradient-weighted sum of the channels of a feature map; coarse, fast, no unit
    Integrated Gradients   how much each pixel adds on the straight way from a blank image to this one
    occlusion              by how much the score falls when a window is blanked, mean over the windows that cover a pixel
    ablation               by how much the score falls when a segment is blanked
    LRP                    the score handed down layer by layer, each input of a layer getting its share (the epsilon rule)

Blank is 0 after normalisation: the mean colour. All attributions are signed: what speaks for the score and what against it.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from captum.attr import LRP, FeatureAblation, IntegratedGradients, LayerAttribution, LayerGradCam, LayerLRP, Occlusion
from captum.attr._utils.lrp_rules import EpsilonRule, IdentityRule
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from cisskit.errors import KitError, unknown
from cisskit.models import Kept, Model, Output, Segmenter
from cisskit.models.base import Add, Resize
from cisskit.runs import digest, load_tensors, save_tensors

WORDS = {
    "grad_cam": "Grad-CAM",
    "integrated_gradients": "Integrated Gradients",
    "occlusion": "occlusion",
    "ablation": "ablation of segments",
    "lrp": "LRP",
}
"""Methods of attribution -> how pictures call them."""

ADDITIVE = ("integrated_gradients", "lrp")
"""Those whose maps are shares of one total: they are summed over a segment, others are averaged."""

LAYERS = ("backbone", "decoder")
"""Maps inside a network of the kit that can be explained: the last one of its backbone, and the one that its heads read."""


def class_scores(logits: Tensor, mask: Tensor) -> Tensor:
    """(B, C): the logits of each class, summed over the pixels of a mask.

    logits: (B, C, H, W). mask: (B, H, W); bool: the same pixels for every class; integer, as from an argmax: class c has the
    pixels that carry c. A class without pixels has score 0.
    """
    if mask.shape != (logits.shape[0], *logits.shape[2:]):
        raise KitError(
            f"the mask has shape {tuple(mask.shape)}, logits {tuple(logits.shape)}: it needs (B, H, W) of these logits."
        )
    return (logits * _pixels(mask, logits.shape[1])).sum(dim=(2, 3))


def _pixels(mask: Tensor, classes: int) -> Tensor:
    """(B, C or 1, H, W) bool."""
    if mask.dtype == torch.bool:
        return mask.unsqueeze(1)
    return mask.unsqueeze(1) == torch.arange(classes, device=mask.device).view(1, -1, 1, 1)


class Scores(nn.Module):
    """image (B, 3, H, W), mask (B, H, W) -> `class_scores` (B, C); the unknown score is added to that of the background.

    net: a network of the kit, or any module that returns logits (B, C, H, W). A copy is kept, in evaluation mode; ``layers`` are
    modules through which its maps `LAYERS` pass, for Captum to look at. A head that shapes no features when it is trained (DKD's
    auxiliary head) is explained like the others.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.add, self.resize = Add(), Resize()
        self.layers = nn.ModuleDict()
        if isinstance(self.net, Model):
            self.net.detached = [False] * len(self.net.heads)
            self.layers.update({name: _Tap() for name in LAYERS})
            self.net.backbone.register_forward_hook(self._through("backbone", "layer4"))
            self.net.decoder.register_forward_hook(self._through("decoder", "decoder"))
        self.fingerprint = _digest(*self.net.state_dict().values())

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return class_scores(self.logits(image), mask)

    def logits(self, image: Tensor) -> Tensor:
        """(B, C, H, W). `Output.logits` says the same; here sums and resizing are modules, for LRP."""
        out = self.net(image)
        if not isinstance(out, Output):
            return out
        scores = out.scores
        if "unknown" in out.extra:
            scores = torch.cat([self.add(scores[:, :1], out.extra["unknown"]), scores[:, 1:]], dim=1)
        return self.resize(scores, size=out.padded or out.size)[..., : out.size[0], : out.size[1]]

    def covered(self, image: Tensor) -> tuple[int, int]:
        """(H', W') that the maps inside the network cover: a Segmenter pads to whole patches."""
        patch = self.net.backbone.patch if isinstance(self.net, Segmenter) else 1
        return -(-image.shape[2] // patch) * patch, -(-image.shape[3] // patch) * patch

    def _through(self, layer: str, key: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, out: Any) -> Any:
            if isinstance(out, tuple):  # a Segmenter's decoder: features, classes
                return (self.layers[layer](out[0]), *out[1:])
            return {**out, key: self.layers[layer](out[key])}

        return hook


class _Tap(nn.Module):
    """Nothing happens here, but to a tensor of its own: Captum hooks inputs and outputs, which must not be one and the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class _Total(nn.Module):
    """A sum over pixels as a module, so that each pixel starts with the relevance of its own logit."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=(2, 3))


class _Start(nn.Module):
    """What `lrp` explains. pixels: (B, 1, H, W) float, 0 or 1 (Captum adds 0 to it, which makes integers of truth values).

    equal: the sum is no module, and Captum gives each of its pixels the same relevance.
    """

    def __init__(self, scores: Scores, equal: bool) -> None:
        super().__init__()
        self.scores, self.equal, self.total = scores, equal, _Total()

    def forward(self, image: Tensor, pixels: Tensor) -> Tensor:
        logits = self.scores.logits(image) * pixels
        return logits.sum(dim=(2, 3)) if self.equal else self.total(logits)


# --- methods ---


def grad_cam(scores: Scores, image: Tensor, mask: Tensor, target: int, *, layer: str | nn.Module = "decoder") -> Tensor:
    """(B, 1, h, w) at the size of the layer, signed (no ReLU). layer: one of `LAYERS`, or a module inside ``scores``."""
    cam = LayerGradCam(scores, _layer(scores, layer))
    return cam.attribute(_fresh(image), target, additional_forward_args=mask).detach()


def upsample(cam: Tensor, size: tuple[int, int], *, mode: str = "nearest") -> Tensor:
    """A map of `grad_cam` at the size of the image; ``nearest`` is Captum's default."""
    return LayerAttribution.interpolate(cam, size, interpolate_mode=mode)


def integrated_gradients(
    scores: Scores, image: Tensor, mask: Tensor, target: int, *, steps: int = 32, batch: int = 8, bar: bool = False
) -> tuple[Tensor, Tensor]:
    """Attributions (B, 3, H, W) and their error (B,): sum of attributions - (score of the image - score of a blank one).

    steps: points of Gauss-Legendre quadrature; more of them make the error smaller. batch: images in memory at once.
    """
    method = IntegratedGradients(scores)
    with _bar(scores, (steps + 2) * len(image), WORDS["integrated_gradients"], bar):
        found, delta = method.attribute(
            _fresh(image), target=target, additional_forward_args=mask, n_steps=steps, internal_batch_size=max(batch, len(image)),
            return_convergence_delta=True,
        )  # fmt: skip
    return found.detach(), delta.detach()


def occlusion(
    scores: Scores,
    image: Tensor,
    mask: Tensor,
    target: int,
    *,
    window: int = 0,
    stride: int = 0,
    batch: int = 8,
    bar: bool = False,
) -> Tensor:
    """(B, 3, H, W), equal in the three colours: fall of the score when a window is blanked, mean over windows over a pixel.

    window: side in pixels, 0 is an eighth of the shorter side of the image; stride: between windows, 0 is half of one. The last
    windows of a row or column are cut at the border.
    """
    height, width = image.shape[2:]
    window = min(window or max(1, min(height, width) // 8), height, width)
    stride = min(stride or max(1, window // 2), window)  # windows leave no gaps
    places = [-(-(side - window) // stride) + 1 for side in (height, width)]
    with _bar(scores, (1 + places[0] * places[1]) * len(image), WORDS["occlusion"], bar), torch.no_grad():
        return Occlusion(scores).attribute(
            _fresh(image), (image.shape[1], window, window), strides=(image.shape[1], stride, stride), target=target,
            additional_forward_args=mask, perturbations_per_eval=batch,
        )  # fmt: skip


def ablation(
    scores: Scores, image: Tensor, mask: Tensor, target: int, segments: Tensor, *, batch: int = 8, bar: bool = False
) -> Tensor:
    """(B, 3, H, W), one value per segment: fall of the score when the segment is blanked.

    segments: (H, W) integer, the same for all images of the batch, for example predicted labels; without them Captum would
    blank every single value of the image, 196,608 passes at 256 x 256.
    """
    if segments.shape != image.shape[2:]:
        raise KitError(
            f"segments have shape {tuple(segments.shape)}, the image needs {tuple(image.shape[2:])}: one id per pixel."
        )
    ids, groups = segments.unique(return_inverse=True)
    with _bar(scores, (1 + len(ids)) * len(image), WORDS["ablation"], bar), torch.no_grad():
        return FeatureAblation(scores).attribute(
            _fresh(image), target=target, additional_forward_args=mask, feature_mask=groups[None, None],
            perturbations_per_eval=min(batch, len(ids)),
        )  # fmt: skip


KNOWN_TO_US: dict[type[nn.Module], type[EpsilonRule]] = {
    Add: EpsilonRule, Resize: EpsilonRule, _Total: EpsilonRule, _Tap: EpsilonRule, nn.ReLU6: IdentityRule,
    nn.ModuleDict: EpsilonRule, nn.ModuleList: EpsilonRule, Kept: EpsilonRule,  # empty, or never called
}  # fmt: skip
"""Rules for modules that Captum's own table lacks. Relevance passes a ReLU6 as it passes a ReLU."""


def lrp(scores: Scores, image: Tensor, mask: Tensor, target: int, *, layer: str = "", equal: bool = False) -> Tensor:
    """(B, 3, H, W), or the relevance of a map (B, D, h, w); layer: "" or one of `LAYERS`. Without biases it sums to the score.

    Rules: epsilon (1e-9) for every layer that is linear, batch norm in evaluation mode included; ReLUs pass relevance on. A bias
    keeps its share, so in trained networks the sum differs. With ReLUs this is known to equal gradient x input (Ancona et al.,
    ICLR 2018), and a test holds the kit's networks to it; relevance also passes ReLU6s that are saturated, a gradient does not.

    equal: as released, every pixel of the mask starts with the same relevance, the mean score, instead of with its own logit; it
    grows without bound where a logit is near 0. Relevance is that of the mean, times the number of pixels, as Captum gives it.

    Raises `KitError` for a Segmenter and for layers without a rule.
    """
    if isinstance(scores.net, Segmenter):
        raise KitError(
            "LRP has no rule here for attention, layer norm and the normalised products of a Segmenter, so relevance would not "
            "be conserved. Use Grad-CAM, Integrated Gradients, occlusion or ablation, or a CNN."
        )
    net = _Start(scores, equal)
    pixels = (mask if mask.dtype == torch.bool else mask == target).unsqueeze(1).to(image)
    try:
        for module in net.modules():
            if type(module) in KNOWN_TO_US and not list(module.children()):
                module.rule = KNOWN_TO_US[type(module)]()
        method = LayerLRP(net, _layer(scores, layer)) if layer else LRP(net)
        return method.attribute(_fresh(image), target=target, additional_forward_args=pixels).detach()
    except TypeError as error:
        raise KitError(f"LRP cannot explain this network: {error} Networks of the family cnn have rules everywhere.") from error
    finally:
        for module in net.modules():  # Captum leaves them
            for name in ("rule", "activations"):
                module.__dict__.pop(name, None)


def _layer(scores: Scores, layer: str | nn.Module) -> nn.Module:
    if isinstance(layer, nn.Module):
        return layer
    if layer not in scores.layers:
        raise unknown("layer", layer, scores.layers)
    return scores.layers[layer]


def _fresh(image: Tensor) -> Tensor:
    """A copy that wants gradients: Captum would ask them of the tensor it is given, and warn."""
    return image.detach().clone().requires_grad_()


@contextmanager
def _bar(scores: Scores, total: int, words: str, show: bool) -> Iterator[None]:
    """Counts the images that pass through ``scores``."""
    with tqdm(total=total, desc=words, unit="image", disable=not show, leave=False) as tick:

        def count(module: nn.Module, inputs: Any, out: Tensor) -> None:
            tick.update(len(out))

        handle = scores.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()


# --- one image, one map, kept ---


def attribute(
    scores: Scores,
    method: str,
    image: Tensor,
    mask: Tensor,
    target: int,
    *,
    segments: Tensor | None = None,
    folder: Path | None = None,
    bar: bool = False,
    **settings: Any,
) -> Tensor:
    """(H, W) float32 on the CPU, at the size of the image: what one of `WORDS` says, colours added up, over the size of the mask.

    image: (3, H, W) normalised. mask: (H, W) bool, the pixels whose logits of class ``target`` are explained. segments: (H, W),
    what ablation blanks; required there. settings: those of the method, for example ``steps`` or ``batch``. folder: a run; its
    "attribution" keeps results, and they are computed again when anything that decides them, or the file, has changed.
    So the mean logit over the mask is explained. LRP adds up to about that, Integrated Gradients to its rise from a blank image;
    ablation and occlusion are falls of it; Grad-CAM has no unit.
    Raises `KitError` for an unknown method, setting or class, and for a mask without pixels.
    """
    if method not in WORDS:
        raise unknown("method of attribution", method, WORDS)
    count = int(mask.sum())
    if not count:
        raise KitError("the mask has no pixel, so there is no score to explain. Choose an image that shows the class.")
    if method == "ablation" and segments is None:
        raise KitError("ablation blanks segments: pass segments, (H, W) ids, for example the labels that a model predicts.")
    free = {name: settings.pop(name) for name in FREE if name in settings}
    settings = _settings(method, settings)
    question: dict[str, Any] = {
        "method": method, "class": target, "settings": settings, "image": _digest(image), "mask": _digest(mask),
        "segments": _digest(segments) if method == "ablation" and segments is not None else None,
        "model": scores.fingerprint, "version": VERSION,
    }  # fmt: skip

    def compute() -> Tensor:
        device = next(scores.net.parameters()).device
        x, where = image[None].to(device), mask[None].to(device)
        n = scores(x, where).shape[1]
        if not 0 <= target < n:
            raise KitError(
                f"this model has no class {target}: it scores {n} of them, 0..{n - 1}. Choose an earlier class or a later step."
            )
        if method == "grad_cam":
            cam = grad_cam(scores, x, where, target, **settings)
            found = upsample(cam, scores.covered(x), mode="bilinear")[:, 0, : x.shape[2], : x.shape[3]]
        elif method == "integrated_gradients":
            found = integrated_gradients(scores, x, where, target, bar=bar, **settings, **free)[0].sum(dim=1)
        elif method == "occlusion":
            found = occlusion(scores, x, where, target, bar=bar, **settings, **free)[:, 0]
        elif method == "ablation":
            assert segments is not None
            found = ablation(scores, x, where, target, segments.to(device), bar=bar, **settings, **free)[:, 0]
        else:
            found = lrp(scores, x, where, target, **settings).sum(dim=1) / (count if settings["equal"] else 1)
        return found[0] / count

    return kept(folder, question, compute)


VERSION = 1
"""Of what `attribute` computes; kept results of another one are computed again."""

FREE = ("batch",)
"""Settings that do not decide the result."""


def _settings(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a method, with their defaults. Raises `KitError` for an unknown one."""
    parameters = inspect.signature(globals()[method]).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY and p.name not in (*FREE, "bar")}
    for name in given:
        if name not in known:
            raise unknown(f"setting of {WORDS[method]}", name, known)
    return known | dict(given)


def kept(folder: Path | None, question: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
    """``compute()`` on the CPU, or what it gave before for the same question, from ``folder``/attribution.

    A file that is damaged, or answers another question, is not trusted: it is computed again and replaced. Where nothing can be
    written (a full disk, a folder of somebody else) nothing is kept.
    """
    if folder is None:
        return compute().detach().float().cpu()
    file = folder / "attribution" / f"{question['method']}-class{question['class']}-{digest(question)}.safetensors"
    try:
        tensors, about = load_tensors(file)
        found = tensors["found"]
        if about == {"question": dict(question), "digest": _digest(found)}:
            return found
    except (KitError, ValueError, KeyError):
        pass  # missing or damaged
    found = compute().detach().float().cpu().contiguous()
    with suppress(KitError, OSError):
        save_tensors(file, {"found": found}, {"question": dict(question), "digest": _digest(found)})
    return found


def _digest(*tensors: Tensor) -> str:
    """Fingerprint of values, types and shapes."""
    found = hashlib.sha256()
    for x in tensors:
        x = x.detach().cpu().contiguous()
        found.update(f"{x.dtype} {tuple(x.shape)}".encode())
        found.update(x.numpy().tobytes())
    return found.hexdigest()[:32]


# --- old model against new model ---

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """The same score in two models. old, new: (H, W) from `attribute`. mask: (H, W) bool. segments: (H, W) ids, as for both.

    score_old, score_new: mean logit of class ``target`` over the mask.
    """

    method: str
    target: int
    mask: NDArray[np.bool_]
    segments: NDArray[np.int64]
    old: Map
    new: Map
    score_old: float
    score_new: float

    @property
    def difference(self) -> Map:
        """new - old."""
        return self.new - self.old

    @property
    def scale(self) -> float:
        """The largest size that old and new are drawn with: the 99.5th percentile of both together, never 0."""
        return float(np.percentile(np.abs(np.stack([self.old, self.new])), 99.5)) or 1.0

    @property
    def own(self) -> int:
        """The segment that holds most pixels of the mask: the object's own one."""
        ids, counts = np.unique(self.segments[self.mask], return_counts=True)
        return int(ids[counts.argmax()])

    def support(self) -> pd.DataFrame:
        """One row per segment: its pixels, its support in both models, the change, and these three as shares in percent.

        Support is the sum over the pixels of the segment where attributions add up (`ADDITIVE`), else the mean. A share is that
        over the sum of all segments' absolute support in the model where that is larger: it keeps its sign, support that vanished
        has a small share, and shares of methods whose logits differ in size compare.
        """
        ids, index = np.unique(self.segments, return_inverse=True)
        pixels = np.bincount(index.ravel())
        columns: dict[str, NDArray[Any]] = {"segment": ids, "pixels": pixels}
        for name, found in (("old", self.old), ("new", self.new)):
            total = np.bincount(index.ravel(), weights=found.ravel().astype(np.float64))
            columns[name] = total if self.method in ADDITIVE else total / pixels
        columns["change"] = columns["new"] - columns["old"]
        whole = max(np.abs(columns["old"]).sum(), np.abs(columns["new"]).sum()) or 1.0
        return pd.DataFrame(columns | {f"{name} share": 100 * columns[name] / whole for name in ("old", "new", "change")})


def compare(
    old: Scores,
    new: Scores,
    method: str,
    image: Tensor,
    mask: Tensor,
    target: int,
    *,
    segments: Tensor,
    folder: Path | None = None,
    bar: bool = False,
    **settings: Any,
) -> Comparison:
    """`attribute` in the old and the new model: the same image, mask, class and segments. Arguments as there.

    Raises `KitError` also for a class that only the new model knows.
    """
    maps, means = [], []
    for scores in (old, new):
        given = {"segments": segments, "folder": folder, "bar": bar, **settings}
        maps.append(attribute(scores, method, image, mask, target, **given).numpy())
        device = next(scores.net.parameters()).device
        with torch.no_grad():
            means.append(float(scores(image[None].to(device), mask[None].to(device))[0, target] / mask.sum()))
    where, ids = mask.cpu().numpy(), segments.long().cpu().numpy()
    return Comparison(method, target, where, ids, maps[0], maps[1], means[0], means[1])


# --- neuron-relevant semantic consistency ---


def consistency(a: Tensor, b: Tensor) -> float:
    """Cosine of the flattened positive parts of two relevances, 0..1; NaN where neither has one."""
    a, b = (x.detach().double().clamp(min=0).flatten() for x in (a, b))
    if not a.any() and not b.any():
        return float("nan")
    return float(F.cosine_similarity(a, b, dim=0))


def relevance_consistency(
    old: Scores,
    new: Scores,
    images: Sequence[Tensor],
    masks: Sequence[Tensor],
    target: int,
    *,
    method: str = "grad_cam",
    layer: str = "decoder",
    folder: Path | None = None,
) -> Tensor:
    """(n,) `consistency` of a class between two models, one per image: does the class still stand on the same neurons?

    Relevance is taken at a map inside the networks, whose channels mean the same in both as the new one was trained from the old.
    images: (3, H, W) each, normalised; masks: (H, W) bool. method: "grad_cam" (positions) or "lrp" (channels and positions).
    """
    explain: dict[str, Any] = {"grad_cam": grad_cam, "lrp": lrp}
    if method not in explain:
        raise unknown("method of relevance", method, explain)
    question = {
        "method": f"consistency-{method}", "class": target, "settings": {"layer": layer}, "image": _digest(*images),
        "mask": _digest(*masks), "model": [old.fingerprint, new.fingerprint], "version": VERSION,
    }  # fmt: skip

    def compute() -> Tensor:
        values = []
        for image, mask in zip(images, masks, strict=True):
            device = next(new.net.parameters()).device
            x, where = image[None].to(device), mask[None].to(device)
            values.append(consistency(*(explain[method](scores, x, where, target, layer=layer) for scores in (old, new))))
        return torch.tensor(values)

    return kept(folder, question, compute)
