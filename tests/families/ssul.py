"""SSUL: loss, label rules, decision."""

from collections.abc import Callable
from typing import Any

import torch

from cisskit.losses.contrast import merged
from cisskit.losses.pixels import binary_cross_entropy
from cisskit.pseudo import confident, open_labels
from cisskit.scenario import IGNORE
from families.pieces import Arrays, Outputs, grads


def ssul_bce(meta: Any, a: Arrays) -> Outputs:
    logits, targets = a.tensor("logits", grad=True), a.tensor("targets")
    targets = torch.where(targets == meta["arguments"]["ignore_index"], IGNORE, targets)
    loss = binary_cross_entropy(logits, targets)
    if bool((targets == IGNORE).all()):
        loss = loss * torch.nan  # released: 0 / 0
    pixels = binary_cross_entropy(logits, targets, reduction="none")
    # recorded in float32 also for float64 scores
    return {"loss": loss.float(), "loss_map": pixels.float(), "grad_logits": grads(loss, logits)[0]}


def ssul_infer(meta: Any, a: Arrays) -> Outputs:
    p = merged(a.tensor("probs"))
    return {"merged": p, "prediction": p.argmax(dim=1)}


def ssul_pseudo(meta: Any, a: Arrays) -> Outputs:
    args, student, teacher = meta["arguments"], a.tensor("student_logits", grad=True), a.tensor("teacher_logits")
    assert student.shape[1] - teacher.shape[1] == args["num_new"]
    options: Any = {"threshold": args["threshold"], "first": args["first_foreground_index"]}
    labels = confident(a.tensor("labels"), teacher, **options)
    loss = binary_cross_entropy(student, labels)
    return {"labels_out": labels, "loss": loss.float(), "grad_student": grads(loss, student)[0]}


def ssul_unknown(meta: Any, a: Arrays) -> Outputs:
    salient = a.tensor("saliency") if "saliency" in a else None
    return {"labels_out": open_labels(a.tensor("labels"), salient)}


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "baselines/ssul_bce": ssul_bce,
    "baselines/ssul_infer": ssul_infer,
    "baselines/ssul_pseudo": ssul_pseudo,
    "baselines/ssul_unknown": ssul_unknown,
}
