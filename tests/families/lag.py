"""LAG: losses, label rules, semantic-invariance maps."""

from collections.abc import Callable
from typing import Any

import torch

from cisskit.errors import KitError
from cisskit.losses.contrast import LEFT_OUT, batch_contrast, decoupled_contrast
from cisskit.losses.features import channel_decoupling
from cisskit.pseudo import confident, margins
from cisskit.semantics import channel_change, semantic_maps, semantic_split
from families.idec import arcl, layers
from families.pieces import Arrays, Outputs, grads


def dcl(meta: Any, a: Arrays) -> Outputs:
    args, z1, z2 = meta["args"], a.tensor("z1", grad=True), a.tensor("z2", grad=True)
    if abs(args["mask_constant"] - LEFT_OUT) > 1e-9:
        raise KitError(f"the kit adds {LEFT_OUT} to what is left out, not {args['mask_constant']}.")
    options: Any = {"temperature": args["temperature"], "sigma": args["sigma"]}
    loss = decoupled_contrast(z1, z2, **options)
    both = batch_contrast(z1.flatten(1), z2.flatten(1), **options)  # the kit stops the gradient of the old features
    return {"loss": loss, "grad_z1": grads(loss, z1)[0], "grad_z2": grads(both, z2)[0]}


def decouple(meta: Any, a: Arrays) -> Outputs:
    student, teacher, alpha = a.tensor("cur", grad=True), a.tensor("prev"), meta["args"]["alpha"]
    out: Outputs = {}
    for suffix, sim, channels in (("released", "sim_released", student.shape[2]), ("all_channels", "sim_all", None)):
        options: Any = {"alpha": alpha, "channels": channels}
        try:
            loss = channel_decoupling(student, teacher, **options)
        except KitError:
            assert suffix == "released" and meta["args"]["raises_if_released"]
            continue
        out[f"loss_{suffix}"] = loss
        out[f"grad_{suffix}"] = grads(loss, student)[0]
        out[sim] = channel_decoupling(student, teacher, **options, reduction="none")
    return out


def total(meta: Any, a: Arrays) -> Outputs:
    student, teacher, terms, _ = layers(meta, a)
    pair = student["out"], teacher["out"]
    contrast = decoupled_contrast(*pair, temperature=meta["args"].get("temperature", 0.5))
    decoupling = channel_decoupling(*pair, channels=student["out"].shape[2], alpha=meta["args"].get("alpha", 2.0))
    kd_terms = torch.stack(list(terms.values()))
    summed = kd_terms.sum() + contrast + decoupling
    return {
        "kd_terms": kd_terms,
        "dcl": contrast,
        "decouple": decoupling,
        "total": summed,
        **dict(zip([f"grad_{name}" for name in student], grads(summed, *student.values()), strict=True)),
    }


def upseudo(meta: Any, a: Arrays) -> Outputs:
    args, teacher, labels = meta["args"], a.tensor("teacher_logits"), a.tensor("labels")
    options: Any = {"threshold": args["pseudo_thresh"], "first": args["fg_idx"] + 1}
    margin = margins(teacher)
    return {
        "margin": margin,
        "ranking": (1 - margin) * teacher.sigmoid().argmax(dim=1),
        "pseudo_labels": confident(labels, teacher, **options, ranking=args["ranking_thresh"]),
        "pseudo_labels_plain": confident(labels, teacher, **options),
    }


def semantic(meta: Any, a: Arrays) -> Outputs:
    student, teacher = a.tensor("cur").double(), a.tensor("prev").double()
    change = channel_change(student, teacher)
    si, ss = semantic_split(student, teacher, meta["args"]["rho"])
    assert len(si) == meta["args"]["n_si"]
    maps = semantic_maps(student, teacher, si, ss)
    return {
        "entropy_prev": change.old_entropy,
        "entropy_cur": change.new_entropy,
        "divergence": change.divergence,
        "order": change.divergence.argsort(stable=True),
        "si_channels": si,
        "ss_channels": ss,
        "si_map": maps.si,
        "ss_map": maps.ss,
        "si_consistency": maps.consistency,
    }


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "lag/arcl": arcl,
    "lag/dcl": dcl,
    "lag/dclw": dcl,
    "lag/decouple": decouple,
    "lag/semantic": semantic,
    "lag/total": total,
    "lag/upseudo": upseudo,
}
TOLERANCES: dict[str, float] = {}
