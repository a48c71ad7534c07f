"""AMIS: what it changes in MBS."""

from collections.abc import Callable
from typing import Any

import torch

from cisskit.losses.tokens import pooled_embeddings, pooled_patches, pooled_statistics, reliability, token_cosine
from cisskit.models.segmenter import Block
from families.mbs import block_names, decoder, expect, fill, gradients, iteration, maps
from families.pieces import Arrays, Outputs, grads


def ms(meta: Any, a: Arrays) -> Outputs:
    expect(meta, schedule="sqrt(C/n_new)")
    args, student, teacher = meta["args"], a.tensor("student", grad=True), a.tensor("teacher")
    factors = {"factor": args["factor_all_but_last_sample"], "last_factor": args["factor_last_sample"]}
    loss = pooled_embeddings(student, teacher, scales=args["scales"], **factors)
    return {
        "loss": loss,
        "grad_student": grads(loss, student)[0],
        "pooled_teacher": pooled_statistics(teacher, args["scales"]),
    }


def ocl(meta: Any, a: Arrays) -> Outputs:
    rows = a.tensor("class_tokens", grad=True)
    loss = meta["args"]["batch"] * token_cosine(rows[0], a.tensor("class_tokens_prev")[0])
    return {"loss": loss, "grad_class_tokens": grads(loss, rows)[0]}


def amd_pool_patch(meta: Any, a: Arrays) -> Outputs:
    student, groups = a.tensor("student", grad=True), meta["args"]["n_cls"]
    weights = maps(a.tensor("weights"))[:, 0]
    counts: Any = {"n_classes": sum(groups), "n_new": groups[-1]}
    loss = pooled_patches(maps(student), maps(a.tensor("teacher")), weights, **counts)
    return {"loss": loss, "grad_student": grads(loss, student)[0]}


def gab_block(meta: Any, a: Arrays) -> Outputs:
    args = meta["args"]
    layer = Block(args["dim"], args["heads"], args["mlp_dim"], global_token=True).eval()
    fill(a, block_names(layer))
    x, token = a.tensor("x", grad=True), a.tensor("general", grad=True)
    out = layer(x, token)
    by_x, by_token = grads((out * a.tensor("probe")).sum(), x, token)
    # the release lets the token ask, too, and throws the answer away: its row, from a plain block over all rows
    assert layer.attn.norm is not None
    seen = layer.attn.norm(layer.attn.proj(token)).expand(len(x), -1, -1)
    everyone = layer.attn.attention_map(torch.cat([layer.norm1(x), seen], dim=1))
    return {
        "out": out,
        "out_without_token": layer(x),
        "grad_x": by_x,
        "grad_general": by_token,
        "attn": torch.cat([layer.attention_map(x, token), everyone[:, :, -1:]], dim=2),
    }


def step_loss(meta: Any, a: Arrays) -> Outputs:
    from cisskit.methods.amis import AMIS

    a.unused(*(name for name in a if "w::encoder." in name and ".attn.norm." in name))  # norms that the release never applies
    args, (model, batch, student, teacher, ctx) = meta["args"], iteration(meta, a)
    options: Any = {"tau": args["pseudo_thresh"], "ocl_batch_factor": len(batch.label)}
    plain = AMIS(lambda_od=1, **options).losses(batch, student, teacher, ctx)
    method = AMIS(lambda_od=args["distill_lambda"], **options)
    terms = method.losses(batch, student, teacher, ctx)
    total, y = torch.stack(list(terms.values())).sum(), method.targets(batch, teacher, ctx)
    return {
        "labels_used": y,
        "logits": student.logits,
        "logits_prev": teacher.logits,
        "scoremap": reliability(teacher.scores, y).flatten(1),
        **{f"loss_{name}": plain[name] for name in ("ce", "amd", "al", "ocl", "od", "ortho")},
        "loss_bcs": terms["od"] + terms["ortho"] + terms["al"],
        "loss_total": total,
    } | gradients(total, model)


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "amis/amd_pool_patch": amd_pool_patch,
    "amis/decoder_gab": decoder,
    "amis/gab_block": gab_block,
    "amis/ms": ms,
    "amis/ocl": ocl,
    "amis/step_loss_amis": step_loss,
}
TOLERANCES: dict[str, float] = {
    "amis/decoder_gab": 1e-4,
    "amis/gab_block": 1e-5,
    "amis/step_loss_amis": 2e-4,
}
