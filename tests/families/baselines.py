"""The baselines: MiB, LwF, the label rules of their code bases, their metrics and schedules."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cisskit.losses import output_distillation, unbiased_cross_entropy, unbiased_distillation
from cisskit.metrics import (
    class_accuracy,
    class_iou,
    frequency_weighted_iou,
    harmonic_mean,
    mean_iou,
    pixel_accuracy,
)
from cisskit.scenario import BACKGROUND, IGNORE
from cisskit.schedules import poly, poly_lr, warm_poly
from families.pieces import Arrays, Outputs, any_scenario, conv, count, grads, members, presence


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

    seen = select_test(here, any_scenario(groups, "overlap"), step, "seen")
    for setting in ("overlap", "disjoint"):
        chosen = members(here, any_scenario(groups, setting), step)
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


FAMILIES = {
    "baselines/lr": lr,
    "baselines/lwf_kd": lwf_kd,
    "baselines/metrics": metrics,
    "baselines/mib_init": mib_init,
    "baselines/mib_unce": mib_unce,
    "baselines/mib_unkd": mib_unkd,
    "baselines/remap": remap,
}
