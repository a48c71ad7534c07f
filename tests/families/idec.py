"""IDEC: losses and label rules."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cisskit.errors import KitError
from cisskit.losses.contrast import arcl_released, draw_classes, unknown_added
from cisskit.losses.features import layer_distillation, soft_cross_entropy
from cisskit.losses.pixels import binary_cross_entropy, focal_loss
from cisskit.pseudo import activate, confident, predict_open
from cisskit.scenario import IGNORE
from families.pieces import Arrays, Outputs, grads


def bce(meta: Any, a: Arrays) -> Outputs:
    logits, labels = a.tensor("logits", grad=True), a.tensor("labels")
    labels = torch.where(labels == meta["args"]["ignore_index"], IGNORE, labels)
    weight = a.tensor("weight") if "weight" in a else None
    out: Outputs = {}
    for name in meta["args"]["reduction"]:
        loss = binary_cross_entropy(logits, labels, weight=weight, reduction="valid" if name == "mean" else name)
        if name == "mean" and bool((labels == IGNORE).all()):
            loss = loss * torch.nan  # released: 0 / 0
        out[f"loss_{name}"] = loss
        if name != "none":
            out[f"grad_{name}"] = grads(loss, logits)[0]
    return out


def focal(meta: Any, a: Arrays) -> Outputs:
    logits, args = a.tensor("logits", grad=True), meta["args"]
    reduction = "mean" if args["size_average"] else "sum"
    loss = focal_loss(logits, a.tensor("labels"), alpha=args["alpha"], gamma=args["gamma"], reduction=reduction)
    return {"loss": loss, "grad": grads(loss, logits)[0]}


def kd(meta: Any, a: Arrays) -> Outputs:
    student, teacher, args = a.tensor("student", grad=True), a.tensor("teacher"), meta["args"]
    options: Any = {"alpha": args["alpha"], "mask": a.tensor("mask") if "mask" in a else None}
    if args["kd_cil_weights"]:  # not in the kit: weighs every image with the teacher's entropy in EVERY image of the batch
        entropy = -(teacher.softmax(dim=1) * teacher.log_softmax(dim=1)).sum(dim=1)
        pixels = soft_cross_entropy(student, teacher, **options, reduction="none") * (1 + entropy).unsqueeze(1)
        loss = {"mean": pixels.mean(), "sum": pixels.sum(), "none": pixels}[args["reduction"]]
    else:
        loss = soft_cross_entropy(student, teacher, **options, reduction=args["reduction"])
    return {"loss": loss, "grad_student": grads(loss.sum(), student)[0]}


def layers(meta: Any, a: Arrays) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], float]:
    """Maps of student and teacher, the weighted terms, and the decay that was in force."""
    args = meta["args"]
    names = args["layer_weights"]
    student = {name: a.tensor(f"student_{name}", grad=True) for name in names}
    teacher = {name: a.tensor(f"teacher_{name}") for name in names}
    decay = args["lamb"] ** (args["epoch"] / args["epochs"])
    options: Any = {"alpha": args.get("alpha", 2.0), "decay": decay, "decayed_out": args["lamb_applies_to_out"]}
    return student, teacher, layer_distillation(student, teacher, args["layer_weights"], **options), decay


def dada(meta: Any, a: Arrays) -> Outputs:
    student, teacher, terms, _ = layers(meta, a)
    total = torch.stack(list(terms.values())).sum()
    unit = {name: soft_cross_entropy(student[name], teacher[name], alpha=meta["args"]["alpha"]) for name in terms}
    return {
        **{f"term_{name}": term for name, term in terms.items()},
        **dict(zip([f"grad_{name}" for name in terms], grads(total, *student.values()), strict=True)),
        "total": total,
        "coef": torch.stack([terms[name] / unit[name] for name in terms]),
    }


def arcl(meta: Any, a: Arrays) -> Outputs:
    args, feature, drawn = meta["args"], a.tensor("feature", grad=True), [*map(int, a.get("drawn_class", ()))]
    n, rounds = args["num_classes"], args["min_classes"]
    out: Outputs = {"outputs_after": unknown_added(a.tensor("outputs")) if args["unknown"] else a.tensor("outputs")}
    if args["raises"]:
        with pytest.raises(KitError):
            draw_classes(n, rounds, random.Random(0))
    else:
        assert len(drawn) == min(n, rounds) == len(draw_classes(n, rounds, random.Random(0)))
    options: Any = {"unknown_class": args["unknown"], "activation": "sigmoid" if args["use_sigmoid"] else "softmax"}
    maps = (feature, a.tensor("feature_prev"), a.tensor("outputs_prev"), drawn)
    loss = arcl_released(*maps, **options)
    return out | {
        "loss": loss,
        "grad_feature": grads(loss, feature)[0],
        "triplet_value": arcl_released(*maps, **options, reduction="none"),
    }


def arcl_side_effect(meta: Any, a: Arrays) -> Outputs:
    logits, labels = a.tensor("logits", grad=True), a.tensor("labels")
    plain, after = binary_cross_entropy(logits, labels), binary_cross_entropy(unknown_added(logits), labels)
    return {
        "loss_plain": plain,
        "grad_plain": grads(plain, logits)[0],
        "loss_after_arcl": after,
        "grad_after_arcl": grads(after, logits)[0],
    }


def pseudo(meta: Any, a: Arrays) -> Outputs:
    args, student, labels = meta["args"], a.tensor("student_logits", grad=True), a.tensor("labels")
    options: Any = {"threshold": args["pseudo_thresh"], "first": args["fg_idx"] + 1, "activation": args["activation"]}
    completed = confident(labels, a.tensor("teacher_logits"), **options)
    loss = binary_cross_entropy(student, completed)
    return {
        "pseudo_labels": completed,
        "n_replaced": (completed != labels).sum(),
        "loss_seg": loss,
        "grad_student": grads(loss, student)[0],
    }


def predict(meta: Any, a: Arrays) -> Outputs:
    logits, activation = a.tensor("logits"), meta["args"]["activation"]
    if not meta["args"]["unknown"]:
        scores = activate(logits, activation)
        return {"scores": scores, "preds": scores.argmax(dim=1)}
    return dict(zip(("scores", "preds"), predict_open(logits, activation=activation), strict=True))


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "idec/arcl": arcl,
    "idec/arcl_side_effect": arcl_side_effect,
    "idec/bce": bce,
    "idec/dada": dada,
    "idec/focal": focal,
    "idec/kd": kd,
    "idec/predict": predict,
    "idec/pseudo": pseudo,
}
TOLERANCES: dict[str, float] = {}
