"""PLOP: Local POD, entropies, thresholds, pseudo-labels; and ILT's sum of terms."""

from typing import Any

import torch
import torch.nn.functional as F

from cisskit.losses import cross_entropy, output_distillation
from cisskit.losses.pooled import pod_embedding, pod_loss
from cisskit.pseudo import entropy_histogram, entropy_labels, entropy_thresholds, scaled_entropy
from families.pieces import Arrays, Outputs, grads


def embed(meta: Any, a: Arrays) -> Outputs:
    return {"embedding": pod_embedding(a.tensor("x"), meta["arguments"]["scales"])}


def entropy(meta: Any, a: Arrays) -> Outputs:
    return {"entropy": scaled_entropy(a.tensor("probs"))}


def median(meta: Any, a: Arrays) -> Outputs:
    settings = meta["arguments"]
    if settings["bins"] != 100 or settings["mode"] != "entropy":
        raise ValueError(f"only 100 bins of entropies are in the kit, not {settings}")
    n_all = settings["num_old"] + settings["num_new"]
    histogram = sum(
        entropy_histogram(labels, logits, n_all)
        for labels, logits in zip(a.tensor("labels"), a.tensor("teacher_logits"), strict=True)
    )
    thresholds = entropy_thresholds(torch.as_tensor(histogram), n_all, base=settings["base_threshold"])
    return {"thresholds": thresholds, "max_entropy": torch.log(torch.tensor(float(n_all)))}


def pod(meta: Any, a: Arrays) -> Outputs:
    settings = meta["arguments"]
    layers = sorted((name for name in a if name.startswith("new_feat")), key=lambda name: int(name.removeprefix("new_feat")))
    new = [a.tensor(name, grad=True) for name in layers]
    old = [a.tensor(name.replace("new", "old")) for name in layers]
    scores = a.tensor("new_logits", grad=True)
    factors = {name: settings[name] for name in ("factor_features", "factor_logits", "scales")}
    loss = pod_loss(new, old, scores, a.tensor("old_logits"), **factors)
    *by_map, by_scores = grads(loss, *new, scores)
    by_name = dict(zip((name.replace("new", "grad") for name in layers), by_map, strict=True))
    return {"loss": loss, "grad_logits": by_scores, **by_name}


def pseudo(meta: Any, a: Arrays) -> Outputs:
    settings = meta["arguments"]
    n_all = settings["num_old"] + settings["num_new"]
    labels, teacher, thresholds = a.tensor("labels"), a.tensor("teacher_logits"), a.tensor("thresholds")
    student = a.tensor("student_logits", grad=True)
    new, share = entropy_labels(labels, teacher, thresholds, n_all)
    share = share.clamp(min=settings["min_factor"])  # not in the kit: the released preset has no least factor
    loss = (share.view(-1, 1, 1) * cross_entropy(student, new, reduction="none")).mean()
    p = teacher.softmax(dim=1)
    max_entropy = torch.log(torch.tensor(float(n_all)))
    return {
        "labels_out": new,
        "valid": scaled_entropy(p) / max_entropy < thresholds[p.argmax(dim=1)],
        "adaptive_factor": share,
        "max_entropy": max_entropy,
        "loss": loss,
        "grad_student": grads(loss, student)[0],
    }


def ilt_total(meta: Any, a: Arrays) -> Outputs:
    settings = meta["arguments"]
    z, f = a.tensor("logits", grad=True), a.tensor("feat", grad=True)
    ce = cross_entropy(z, a.tensor("targets"))
    kd = settings["weight_kd"] * output_distillation(z, a.tensor("teacher_logits"))
    features = settings["weight_feat"] * F.mse_loss(f, a.tensor("teacher_feat"))
    total = ce + kd + features
    by_logits, by_features = grads(total, z, f)
    return {"ce": ce, "kd": kd, "feat_loss": features, "total": total, "grad_logits": by_logits, "grad_feat": by_features}


FAMILIES = {
    "baselines/ilt_total": ilt_total,
    "baselines/plop_embed": embed,
    "baselines/plop_entropy": entropy,
    "baselines/plop_median": median,
    "baselines/plop_pod": pod,
    "baselines/plop_pseudo": pseudo,
}
