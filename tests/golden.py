"""Runs recorded cases against the kit: ``python tests/golden.py DIR...``

A case is an ``.npz`` file of arrays plus ``meta``, a JSON string. ``meta["family"]`` says which quantity was recorded;
`FAMILIES` maps it to a function that calls the kit with the arguments in ``meta`` and the arrays, and returns outputs under
the recorded names. Every array of a file must be read by that function or compared with what it returns; one that is
neither is a failure, so nothing recorded goes unchecked. Values must agree to the tolerance of the file, integers exactly.

Exit status 1 if a case failed or could not be read. Families without a function are listed as unmapped and do not fail.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without installing, too

import numpy as np
import torch
from torch import Tensor, nn

from cisskit.errors import KitError
from cisskit.losses import (
    auxiliary_background,
    masked_bce,
    output_distillation,
    reasoning_scores,
    sigmoid_distillation,
    unbiased_cross_entropy,
    unbiased_distillation,
)
from cisskit.metrics import (
    ConfusionMatrix,
    class_accuracy,
    class_iou,
    frequency_weighted_iou,
    harmonic_mean,
    mean_iou,
    pixel_accuracy,
)
from cisskit.replay import Exemplar, draw, presence_of, shuffled
from cisskit.scenario import BACKGROUND, IGNORE, Scenario, Step
from cisskit.schedules import poly, poly_lr, warm_poly

Outputs = dict[str, Any]


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a case; remembers which were read."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.all, self.read = dict(arrays), set[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self.all[name]

    def __contains__(self, name: object) -> bool:
        return name in self.all

    def __iter__(self) -> Iterator[str]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def tensor(self, name: str, *, grad: bool = False) -> Tensor:
        return torch.from_numpy(self[name].copy()).requires_grad_(grad)

    def unused(self, *names: str) -> None:
        """Inputs that are in the file but play no part."""
        self.read.update(names)


# --- the families: one function each ---


def ac(meta: Any, a: Arrays) -> Outputs:
    logit = a.tensor("aux_logit", grad=True)
    loss = auxiliary_background(logit)
    return {"loss": loss, "loss_map": auxiliary_background(logit, reduction="none"), "grad_aux": grads(loss, logit)[0]}


def mbce(meta: Any, a: Arrays) -> Outputs:
    logits, labels = a.tensor("logits", grad=True), a.tensor("label")
    options: Any = {"first": int(a["n_old"]) + 1, "pos_weight": float(a["pos_weight"])}
    per_class = masked_bce(logits, labels, **options)
    return {
        "loss_map": masked_bce(logits, labels, **options, reduction="none"),
        "loss_per_class": per_class,
        "loss": per_class.sum(),
        "grad_logits": grads(per_class.sum(), logits)[0],
    }


def kd(meta: Any, a: Arrays) -> Outputs:
    student = a.tensor("student_logits", grad=True)
    per_class = sigmoid_distillation(student, a.tensor("teacher_logits"))
    return {"loss_per_class": per_class, "loss": per_class.sum(), "grad_student": grads(per_class.sum(), student)[0]}


def decomp(meta: Any, a: Arrays) -> Outputs:
    model, features = heads_of(a), a.tensor("features", grad=True)
    output = output_of(model, features, a["out_size"])
    positive, negative = reasoning_scores(features, model.classifier()[0][1:])
    out = {"pos": positive, "neg": negative, "logits_small": output.scores, "logits": output.logits}
    if "cot_pos" in a:
        pulled = (positive * a.tensor("cot_pos")).sum() + (negative * a.tensor("cot_neg")).sum()
        out |= dict(zip(("grad_features", "grad_weight", "grad_bias"), head_grads(pulled, features, model), strict=True))
    return out


def dkd(meta: Any, a: Arrays) -> Outputs:
    model, teacher, features = heads_of(a), heads_of(a, "teacher_"), a.tensor("features", grad=True)
    old = step_of(a["task_classes"]).old
    student_scores = reasoning_scores(features, model.classifier()[0][old])
    teacher_scores = reasoning_scores(a.tensor("teacher_features"), teacher.classifier()[0][old])
    positive, negative = map(sigmoid_distillation, student_scores, teacher_scores)
    grad_features, grad_weight, _ = head_grads(positive.sum() + negative.sum(), features, model)
    return {
        "loss_pos_per_class": positive,
        "loss_neg_per_class": negative,
        "loss_pos": positive.sum(),
        "loss_neg": negative.sum(),
        "grad_features": grad_features,
        "grad_weight": grad_weight,
    }


def objective(meta: Any, a: Arrays) -> Outputs:
    from cisskit.data import Batch
    from cisskit.methods.dkd import DKD

    step, size = step_of(a["task_classes"]), a["out_size"]
    model, features = heads_of(a), a.tensor("features", grad=True)
    student, teacher, old_model = output_of(model, features, size), None, None
    if "teacher_features" in a:
        old_model = heads_of(a, "teacher_")
        with torch.no_grad():
            teacher = output_of(old_model, a.tensor("teacher_features"), size)
    ctx: Any = SimpleNamespace(step=step, model=model, old_model=old_model)
    batch = Batch(torch.empty(0), a.tensor("label"))
    names = ("mbce", "kd", "dkd_pos", "dkd_neg", "ac")
    weights = dict(zip(names, a["loss_weights"].tolist(), strict=True))
    gamma = (float(a["pos_weight"]),) * 2
    plain = DKD(lambda_kd=1, lambda_dkd=1, lambda_ac=1, pos_weight=gamma).losses(batch, student, teacher, ctx)
    if weights["mbce"] == 1 and weights["dkd_pos"] == weights["dkd_neg"]:
        lambdas: Any = {f"lambda_{name}": weights[key] for name, key in (("kd", "kd"), ("dkd", "dkd_pos"), ("ac", "ac"))}
        loss = sum(DKD(**lambdas, pos_weight=gamma).losses(batch, student, teacher, ctx).values(), torch.tensor(0.0))
    else:  # weights that the method's fields cannot say
        loss = sum((weights[name] * term for name, term in plain.items()), torch.tensor(0.0))
    gradients = zip(("grad_features", "grad_weight", "grad_bias"), head_grads(loss, features, model), strict=True)
    return {f"loss_{name}": term for name, term in plain.items()} | {"loss": loss} | dict(gradients)


def predict(meta: Any, a: Arrays) -> Outputs:
    from cisskit.methods.dkd import DKD
    from cisskit.models.base import Output

    logits = a.tensor("logits")
    return {"pred": DKD().predict(Output(logits, (logits.shape[2], logits.shape[3])))}


def dkd_metrics(meta: Any, a: Arrays) -> Outputs:
    old, new = a["old_classes"], a["new_classes"]
    confusion = count(a["gt"], a["pred"], len(old) + len(new))
    iou = class_iou(confusion, absent="zero", epsilon=-1e-6)
    accuracy = class_accuracy(confusion, absent="zero")
    out = {
        "iou_by_class": iou,
        "iou_overall": mean_iou(iou),
        "acc_class_by_class": class_accuracy(confusion),  # recorded before NaN was replaced by 0 for the means
        "acc_class_overall": mean_iou(accuracy),
        "acc_overall": pixel_accuracy(confusion),
    }
    if len(new):
        for name, ids in (("old", old), ("new", new)):
            out[f"iou_{name}"] = mean_iou(iou, ids)
            out[f"acc_class_{name}"] = mean_iou(accuracy, ids)
            out[f"acc_{name}"] = pixel_accuracy(confusion, ids)
        for name in ("iou", "acc_class", "acc"):
            out[f"{name}_harmonic"] = harmonic_mean(out[f"{name}_old"], out[f"{name}_new"])
    return {name: 100 * np.asarray(value) for name, value in out.items()} | {"confusion": confusion}


def headinit(meta: Any, a: Arrays) -> Outputs:
    from cisskit.models.heads import copy_auxiliary

    model = heads_of(a, "old_", a["task_classes"][:-1])
    model.add_head(int(a["task_classes"][-1]), init=copy_auxiliary)
    weight, bias = model.classifier()
    return {"new_weight": weight, "new_bias": bias}


def labelmap(meta: Any, a: Arrays) -> Outputs:
    from cisskit.data import label_table

    label, old, new = a.tensor("label").int(), a["old_classes"].tolist(), a["new_classes"].tolist()
    out = {name: label_table({c: c for c in new})[label] for name in ("train", "memory")}
    for name, other in (("voc", BACKGROUND), ("ade", IGNORE)):
        out[f"val_{name}"] = label_table({c: c for c in new}, other=other)[label]
        out[f"test_{name}"] = label_table({c: c for c in old + new}, other=other)[label]
    return out


def dkd_lr(meta: Any, a: Arrays) -> Outputs:
    settings, total = meta["arguments"], int(a["max_iters"])
    power = settings["power"]
    if settings["schedule"] == "poly":
        factors = [poly(k, total, power=power) for k in range(total)]
    else:
        warm = {"warmup": settings["warmup_fraction"], "start": settings["warmup_factor"]}
        factors = [warm_poly(k, total, power=power, **warm) for k in range(total)]
    return {"lrs": np.outer(factors, a["base_lrs"])}


def memory(meta: Any, a: Arrays) -> Outputs:
    recorded, carried = a["candidate_labels"], int(a["n_previous_memory"])
    found = presence_of(a.tensor("label_pixels"), a.tensor("model_logits") if "model_logits" in a else None)
    lists = [np.flatnonzero(row).tolist() for row in recorded[:carried]] + found
    presence = np.zeros_like(recorded)
    for row, classes in zip(presence, lists, strict=True):
        row[list(classes)] = 1
    candidates = [Exemplar(str(i), tuple(classes)) for i, classes in enumerate(lists)]
    rng = np.random.RandomState(int(a["numpy_seed"]))
    candidates, order = shuffled(candidates, range(1, recorded.shape[1]), rng)
    chosen = [int(exemplar.name) for exemplar in draw(candidates, order, int(a["memory_size"]))]
    return {
        "candidate_labels": presence,
        "shuffled_candidates": [int(exemplar.name) for exemplar in candidates],
        "class_order": order,
        "chosen": chosen,
        "chosen_sorted": sorted(chosen),
    }


def splitrule(meta: Any, a: Arrays) -> Outputs:
    from cisskit.data import select_test, shows

    groups = tuple(map(tuple, meta["arguments"]["classes_per_step"]))
    train, val = presence(a["train_labels"]), presence(a["val_labels"])
    out = {}
    for setting in ("overlap", "disjoint"):
        scenario = AnyScenario("voc", groups, setting)
        out[f"{setting}_train"] = np.array([members(train, scenario, t) for t in range(len(groups))])
        out[f"{setting}_val"] = np.array([shows(val, group) for group in groups])
        out[f"{setting}_test"] = np.array([select_test(val, scenario, t, "seen") for t in range(len(groups))])
    return out


def evaltransform(meta: Any, a: Arrays) -> Outputs:
    from cisskit.data.transforms import evaluation_crop

    image, label = evaluation_crop(a.tensor("image").permute(2, 0, 1), a.tensor("label"), int(a["crop_size"]))
    return {"out_image": imagenet(image), "out_label": label}


def croptransform(meta: Any, a: Arrays) -> Outputs:
    from cisskit.data.transforms import crop_resize, flip

    top, left, height, width = a["box"].tolist()
    maps = crop_resize(a.tensor("image").permute(2, 0, 1), a.tensor("label"), (top, left, height, width), int(a["crop_size"]))
    mirrored = torch.tensor([bool(a["flip"])])
    image, label = (flip(m.unsqueeze(0), mirrored)[0] for m in maps)
    return {"out_image": imagenet(image), "out_label": label}


def cropparams(meta: Any, a: Arrays) -> Outputs:
    from cisskit.data.transforms import crop_box

    settings = meta["arguments"]
    scale, ratio = tuple(settings["scale"]), tuple(settings["ratio"])
    boxes = []
    for height, width in a["sizes"].tolist():  # the generator starts anew for every image size
        rng = random.Random(int(a["python_seed"]))
        draws = range(a.all["boxes"].shape[1])
        boxes.append([crop_box(height, width, rng, scale=scale, ratio=ratio, attempts=settings["attempts"]) for _ in draws])
    return {"boxes": np.array(boxes)}


def aspp(meta: Any, a: Arrays) -> Outputs:
    from cisskit.models.deeplab import aspp_decoder

    settings = meta["arguments"]
    rates = {16: (6, 12, 18), 8: (12, 24, 36)}[settings["output_stride"]]
    decoder = aspp_decoder(settings["in_channels"], rates).double().eval()
    tensors = {name: t for name, t in decoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    for i, (name, tensor) in enumerate(tensors.items()):
        base = torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + 1.3 * i + settings["seed"]).view_as(tensor)
        if tensor.ndim == 4:
            value = settings["weight_scale"] * base
        elif name.endswith("running_var"):
            value = 1 + 0.5 * base
        elif name.endswith("weight"):
            value = 1 + 0.3 * base
        else:  # shift and running mean
            value = 0.1 * base
        tensor.copy_(value)
    with torch.no_grad():
        return {"y": decoder(a.tensor("x"))}


def paramgroups(meta: Any, a: Arrays) -> Outputs:
    from cisskit.method import changed
    from cisskit.methods.dkd import DKD

    steps, method = steps_of(a["task_classes"]), DKD()
    step = steps[int(a["step"])]
    recipe = changed(DKD.recipes["voc"][min(step.index, 1)], {"lr": float(a["base_lr"])})
    with torch.device("meta"):  # shapes only: no memory, no initialisation
        scenario: Any = SimpleNamespace(steps=steps)
        model = method.build(scenario, "deeplabv3_resnet101", None)
        for later in steps[1 : step.index + 1]:
            method.grow(model, later)
    model.freeze(*recipe.freeze)
    groups = method.param_groups(model, recipe, step)
    return {
        "n_tensors": [len(group["params"]) for group in groups],
        "n_elements": [sum(p.numel() for p in group["params"]) for group in groups],
        "lr": [group["lr"] for group in groups],
        "weight_decay": [group["weight_decay"] for group in groups],
        "total_parameters": sum(p.numel() for p in model.parameters()),
    }


def mib_unce(meta: Any, a: Arrays) -> Outputs:
    logits, targets = a.tensor("logits", grad=True), a.tensor("targets")
    ignore = meta["arguments"]["ignore_index"]
    if ignore != IGNORE:
        targets = torch.where(targets == ignore, IGNORE, targets)
    known = slice(0, meta["arguments"]["num_old_classes"])
    pixels = unbiased_cross_entropy(logits, targets, known=known, reduction="none")
    loss = unbiased_cross_entropy(logits, targets, known=known)
    return {
        "loss_map": pixels,
        "loss_trainer": loss,
        "grad_logits": grads(loss, logits)[0],
        "loss_mean_valid": pixels[targets != IGNORE].mean(),
    }


def mib_unkd(meta: Any, a: Arrays) -> Outputs:
    student, teacher = a.tensor("student_logits", grad=True), a.tensor("teacher_logits")
    options: Any = {
        "new": slice(meta["arguments"]["num_old_classes"], student.shape[1]),
        "alpha": meta["arguments"]["alpha"],
        "mask": a.tensor("mask") if "mask" in a else None,
    }
    loss = unbiased_distillation(student, teacher, **options)
    loss_map = unbiased_distillation(student, teacher, **options, reduction="none")
    return {"loss_map": loss_map, "loss": loss, "grad_student": grads(loss, student)[0]}


def mib_init(meta: Any, a: Arrays) -> Outputs:
    from cisskit.models.heads import share_background

    sizes = meta["arguments"]["classes_per_step"]
    base = conv(a.tensor("w_step0"), a.tensor("b_step0"))
    between = [nn.Conv2d(base.in_channels, n, 1).to(base.weight) for n in sizes[1:-1]]
    new = nn.Conv2d(base.in_channels, sizes[-1], 1).to(base.weight)
    share_background(nn.ModuleList([base, *between]), new)
    return {"new_weight": new.weight, "new_bias": new.bias, "b_step0_after": base.bias}


def lwf_kd(meta: Any, a: Arrays) -> Outputs:
    student, teacher, alpha = a.tensor("student_logits", grad=True), a.tensor("teacher_logits"), meta["arguments"]["alpha"]
    loss = output_distillation(student, teacher, alpha=alpha)
    loss_map = output_distillation(student, teacher, alpha=alpha, reduction="none")
    return {"loss_map": loss_map, "loss": loss, "grad_student": grads(loss, student)[0]}


def remap(meta: Any, a: Arrays) -> Outputs:
    """How the code bases select and renumber, as values of `label_table` and `select`."""
    from cisskit.data import label_table, select_test

    settings, labels = meta["arguments"], a.tensor("labels").int()
    old, new = [c for c in settings["old_classes"] if c], settings["new_classes"]
    rest = [c for c in range(1, IGNORE) if c not in old + new]
    groups = tuple(tuple(group) for group in (old, new, rest) if group)
    step, here, ade = int(bool(old)), presence(a["labels"]), settings["dataset"] == "ade"
    learned = {c: k + 1 for k, c in enumerate(old + new)}
    current = {c: learned[c] for c in new}
    out: Outputs = {}

    def keep(name: str, table: Tensor, chosen: np.ndarray) -> None:
        out[f"{name}_selected"] = chosen
        out[f"{name}_targets"] = torch.where(torch.from_numpy(chosen).view(-1, 1, 1), table[labels], 254)

    seen = select_test(here, AnyScenario("any", groups, "overlap"), step, "seen")
    for setting in ("overlap", "disjoint"):
        chosen = members(here, AnyScenario("any", groups, setting), step)
        keep(f"mib_train_{setting}", label_table(current, void=BACKGROUND), chosen)
        keep(f"plop_train_{setting}", label_table(current), chosen)
    keep("mib_test", label_table(learned, other=IGNORE, background=IGNORE if ade else BACKGROUND), seen)
    keep("plop_test", label_table(learned), seen)
    final = learned | {c: c for c in rest}
    out["ssul_train_targets"], out["ssul_test_targets"] = label_table(current)[labels], label_table(final)[labels]
    raw = label_table({c: c for c in old + new}, other=IGNORE if ade else BACKGROUND)
    out["dkd_train_targets"], out["dkd_test_targets"] = label_table({c: c for c in new})[labels], raw[labels]
    return out


def metrics(meta: Any, a: Arrays) -> Outputs:
    """Three conventions for absent classes side by side."""
    settings = meta["arguments"]
    confusion = count(a["gt"], a["pred"], settings["num_classes"])
    skip, zero = (class_iou(confusion, absent=absent, epsilon=1e-6) for absent in ("skip", "zero"))
    dkd_iou = 100 * class_iou(confusion, absent="zero", epsilon=-1e-6)
    old, new = (mean_iou(dkd_iou, settings[name]) for name in ("old", "new"))
    return {
        "confusion": confusion,
        "mib_class_iou": np.nan_to_num(skip, nan=-1),
        "mib_mean_iou": mean_iou(skip),
        "overall_acc": pixel_accuracy(confusion),
        "mib_mean_acc": mean_iou(class_accuracy(confusion, absent="skip", epsilon=1e-6)),
        "fw_iou": np.nan_to_num(frequency_weighted_iou(confusion, epsilon=1e-6)),  # released: 0, an empty sum
        "ssul_class_iou": zero,
        "ssul_mean_iou": mean_iou(zero),
        "ssul_mean_acc": mean_iou(class_accuracy(confusion, absent="zero", epsilon=1e-6)),
        "dkd_class_iou": dkd_iou,
        "dkd_miou_old": old,
        "dkd_miou_new": new,
        "dkd_hiou": harmonic_mean(old, new),
        "dkd_miou_all": mean_iou(dkd_iou),
        "dkd_acc": 100 * pixel_accuracy(confusion),
    }


def lr(meta: Any, a: Arrays) -> Outputs:
    settings = meta["arguments"]
    base, total, power, warmup = (settings[k] for k in ("base_lr", "iterations", "power", "warmup_fraction"))
    return {
        "poly": [base * poly(k, total, power=power) for k in range(total)],
        "poly_floor": [poly_lr(base, k, total, power=power) for k in range(total)],
        "warm_poly": [base * warm_poly(k, total, warmup=warmup, power=power) for k in range(total)],
    }


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "dkd/ac": ac,
    "dkd/aspp": aspp,
    "dkd/cropparams": cropparams,
    "dkd/croptransform": croptransform,
    "dkd/decomp": decomp,
    "dkd/dkd": dkd,
    "dkd/evaltransform": evaltransform,
    "dkd/headinit": headinit,
    "dkd/kd": kd,
    "dkd/labelmap": labelmap,
    "dkd/lr": dkd_lr,
    "dkd/mbce": mbce,
    "dkd/memory": memory,
    "dkd/metrics": dkd_metrics,
    "dkd/objective": objective,
    "dkd/paramgroups": paramgroups,
    "dkd/predict": predict,
    "dkd/splitrule": splitrule,
    "baselines/lr": lr,
    "baselines/lwf_kd": lwf_kd,
    "baselines/metrics": metrics,
    "baselines/mib_init": mib_init,
    "baselines/mib_unce": mib_unce,
    "baselines/mib_unkd": mib_unkd,
    "baselines/remap": remap,
}
TOLERANCES = {"dkd/aspp": 1e-6, "dkd/croptransform": 1e-5, "dkd/evaltransform": 1e-5}
"""Relative and absolute, where a file states none and its precision is not what limits it."""


# --- pieces that several families need ---


class AnyScenario(Scenario):
    """A scenario of classes that the kit has no data set for, such as ADE20K's."""

    def __post_init__(self) -> None:
        pass

    @property
    def classes(self) -> tuple[str, ...]:
        return ("background", *map(str, self.order))


def steps_of(task_classes: Sequence[int]) -> tuple[Step, ...]:
    sizes = [int(n) for n in task_classes]
    return tuple(Step(t, sum(sizes[:t]), n) for t, n in enumerate(sizes))


def step_of(task_classes: Sequence[int]) -> Step:
    """The last step."""
    return steps_of(task_classes)[-1]


def conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A 1x1 head with these values."""
    head = nn.Conv2d(weight.shape[1], len(weight), 1).to(weight)
    head.load_state_dict({"weight": weight.view_as(head.weight), "bias": bias})
    return head


def heads_of(a: Arrays, prefix: str = "", task_classes: Sequence[int] | None = None) -> Any:
    """A `Model` that is nothing but heads: auxiliary, then one per step, from stacked rows."""
    from cisskit.models.base import Model

    weight, bias = a.tensor(f"{prefix}weight"), a.tensor(f"{prefix}bias")
    sizes = [1, *map(int, a["task_classes"] if task_classes is None else task_classes)]
    while sum(sizes) > len(weight):  # the previous model lacks the current head
        sizes.pop()
    model = Model(nn.Identity(), nn.Identity(), weight.shape[1])
    for k, (w, b) in enumerate(zip(weight.split(sizes), bias.split(sizes), strict=True)):
        model.heads.append(conv(w, b))
        model.detached.append(k == 0)
    return model


def output_of(model: Any, features: Tensor, size: np.ndarray) -> Any:
    """What the model says about decoder features, in their own precision."""
    from cisskit.models.base import Output

    maps = [head(features.detach() if alone else features) for head, alone in zip(model.heads, model.detached, strict=True)]
    return Output(torch.cat(maps, dim=1), (int(size[0]), int(size[1])), {"decoder": features})


def grads(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Gradients, zero where the loss does not reach."""
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def head_grads(loss: Tensor, features: Tensor, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by features, stacked weight rows (C, D) and stacked biases (C,)."""
    by_features, *rest = grads(loss, features, *(p for head in model.heads for p in (head.weight, head.bias)))
    return by_features, torch.cat([g.flatten(1) for g in rest[::2]]), torch.cat(rest[1::2])


def count(truth: np.ndarray, prediction: np.ndarray, n: int) -> np.ndarray:
    matrix = ConfusionMatrix(n)
    for t, p in zip(truth, prediction, strict=True):
        matrix.update(torch.from_numpy(t), torch.from_numpy(p))
    return matrix.numpy()


def presence(labels: np.ndarray) -> np.ndarray:
    """(n, 256): which ids each label map shows."""
    shown = np.zeros((len(labels), 256), dtype=bool)
    np.put_along_axis(shown, labels.reshape(len(labels), -1).astype(np.int64), True, axis=1)
    return shown


def members(shown: np.ndarray, scenario: Scenario, step: int) -> np.ndarray:
    """`select`, with "no image" as an answer instead of an error."""
    from cisskit.data import select

    try:
        return select(shown, scenario, step)
    except KitError:
        return np.zeros(len(shown), dtype=bool)


def imagenet(image: Tensor) -> Tensor:
    from cisskit.data import Source
    from cisskit.data.transforms import normalise

    return normalise(image, torch.tensor(Source.mean), torch.tensor(Source.std))


# --- running and reporting ---


@dataclass
class Case:
    """What became of a file. status: "passed", "failed" or "unmapped"."""

    path: Path
    family: str = "unreadable"
    status: str = "failed"
    faults: list[str] = field(default_factory=list)


def run_case(path: Path) -> Case:
    """Check one file against the kit."""
    case = Case(path)
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = Arrays({name: file[name] for name in file.files if name != "meta"})
            meta = json.loads(str(file["meta"]))
        case.family = meta["family"]
    except Exception as error:  # a damaged file can raise almost anything; each means the same here
        case.faults.append(f"cannot be read: {type(error).__name__}: {error}")
        return case
    if case.family not in FAMILIES:
        case.status = "unmapped"
        return case
    try:
        outputs = FAMILIES[case.family](meta, arrays)
    except Exception as error:  # the other cases are still worth a run
        case.faults.append(f"the kit raised {type(error).__name__}: {error}")
        return case
    compared = [name for name in outputs if name in arrays]
    for name in compared:
        fault = difference(outputs[name], arrays.all[name], tolerance(meta, arrays, name))
        if fault:
            case.faults.append(f"{name}: {fault}")
    left = sorted(set(arrays) - arrays.read - set(compared))
    if left:
        case.faults.append(f"neither used nor compared: {', '.join(left)}")
    if not compared:
        case.faults.append("holds no output that could be compared")
    case.status = "failed" if case.faults else "passed"
    return case


def tolerance(meta: Any, arrays: Arrays, name: str) -> tuple[float, float]:
    """(relative, absolute) for one array: what the file states, else by family, else by its coarsest floating type.

    The absolute part is never below the rounding of the recorded value itself: released losses subtract numbers as large
    as the logits, so a small loss carries the last digit of the largest number in the file, and a gradient that share of
    its own size.
    """
    stated, floats = meta.get("tolerance"), [x for x in arrays.all.values() if x.dtype.kind == "f"]
    if stated and stated.get("exact"):
        return 0.0, 0.0
    coarsest = max((np.finfo(x.dtype).eps for x in floats), default=0.0)
    if stated:
        relative, absolute = stated.get("rtol", 0.0), stated.get("atol", 0.0)
    elif meta["family"] in TOLERANCES:
        relative = absolute = TOLERANCES[meta["family"]]
    else:
        relative, absolute = (2e-5, 1e-7) if coarsest > 1e-10 else (1e-9, 1e-12)
    rounding = float(2 * coarsest * max(map(largest, floats), default=0))
    if name.startswith("grad"):
        rounding *= largest(arrays.all[name])
    return relative, max(absolute, rounding)


def largest(x: np.ndarray) -> float:
    return float(np.abs(x[np.isfinite(x)]).max(initial=0))


def difference(got: Any, want: np.ndarray, allowed: tuple[float, float]) -> str:
    """What is wrong with ``got``, or "". NaN equals NaN; integers and truth values must be equal."""
    got = got.detach().numpy() if isinstance(got, Tensor) else np.asarray(got)
    if got.shape != want.shape:
        return f"shape {got.shape}, recorded {want.shape}"
    if want.dtype.kind != "f":
        wrong = int((got != want).sum())
        largest = np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0)
        return f"{wrong} of {want.size} values differ, by up to {largest:g}" if wrong else ""
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, got) - np.where(same, 0.0, want)))
    rtol, atol = allowed
    wrong = int((~(gap <= atol + rtol * np.abs(np.where(same, 0.0, want)))).sum())  # NaN and infinite gaps are wrong
    if not wrong:
        return ""
    return f"{wrong} of {want.size} values differ, by up to {gap.max():.3g} (allowed {rtol:g} relative, {atol:g} absolute)"


def find(places: Sequence[Path]) -> list[Path]:
    """All case files under the folders. Raises `KitError` for a place without any."""
    found = []
    for place in places:
        files = [place] if place.is_file() else sorted(place.rglob("*.npz"))
        if not files:
            raise KitError(f"no .npz file under {place}; pass folders of recorded cases, such as tests/golden.")
        found += files
    return found


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        cases = [run_case(path) for path in find([Path(a) for a in arguments])]
    except KitError as error:
        print(error)
        return 1
    tally = Counter((case.family, case.status) for case in cases)
    print(f"{'family':28}passed  failed")
    for family in sorted({case.family for case in cases if case.status != "unmapped"}):
        print(f"{family:28}{tally[family, 'passed']:6d}  {tally[family, 'failed']:6d}")
    for case in cases:
        for fault in case.faults:
            print(f"FAILED {case.path}: {fault}")
    unmapped = Counter(case.family for case in cases if case.status == "unmapped")
    if unmapped:
        print(f"unmapped, not checked: {', '.join(f'{name} ({n})' for name, n in sorted(unmapped.items()))}")
    total = Counter(case.status for case in cases)
    print(f"{total['passed']} passed, {total['failed']} failed, {total['unmapped']} unmapped")
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
