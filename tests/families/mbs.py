"""MBS."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cisskit.losses.pixels import binary_cross_entropy, output_distillation
from cisskit.losses.tokens import class_embeddings, label_guided_distillation, orthogonality, reliability, reliable_patches
from cisskit.models.heads import copy_background
from cisskit.models.segmenter import Block, Encoder, MaskDecoder, Segmenter, TokenHead, mask_norm
from cisskit.pseudo import activate, selective
from families.pieces import Arrays, Outputs, grads, step_of

RELEASED = {  # parts of names: kit -> released
    "backbone.token": "encoder.cls_token",
    "backbone.position": "encoder.pos_embed",
    "backbone.embed.": "encoder.patch_embed.proj.",
    "backbone.": "encoder.",
    ".mlp.0.": ".mlp.fc1.",
    ".mlp.2.": ".mlp.fc2.",
    "decoder.global_token": "decoder.general_emb.0",
}


def released(name: str) -> str:
    """The released name of a parameter of a `Segmenter`."""
    if name.startswith("heads."):
        _, group, kind = name.split(".")
        return f"decoder.cls_emb.{group}" if kind == "token" else f"decoder.mask_norm.{kind}.{group}"
    for ours, theirs in RELEASED.items():
        name = name.replace(ours, theirs)
    return name


def expect(meta: Any, **fixed: Any) -> None:
    """What the kit has no argument for must be as recorded, where a file says it."""
    for name, value in fixed.items():
        if meta["args"].get(name, value) != value:
            raise ValueError(f"{name} is {meta['args'][name]!r}, but the kit has {value!r} only")


def fill(a: Arrays, named: dict[str, Tensor]) -> None:
    """Set tensors from the arrays of these names."""
    for name, value in named.items():
        with torch.no_grad():
            value.copy_(a.tensor(name).view_as(value))


def decoder_of(meta: Any, a: Arrays, prefix: str, names: tuple[str, str, str], *, inputs: int) -> MaskDecoder:
    """A decoder of the sizes in the file. names: under which meta has blocks, heads, width."""
    blocks, heads, dim = (meta["args"][name] for name in names)
    hidden, token = meta["args"]["d_ff"], f"{prefix}general_emb.0" in a
    return MaskDecoder(inputs, dim, blocks=blocks, heads=heads, hidden=hidden, global_token=token)


def model_of(meta: Any, a: Arrays, prefix: str) -> Segmenter:
    """The student ("w::") or teacher ("tw::") of a file."""
    args = meta["args"]
    patch, (height, width) = args["patch_size"], args["trained_image_size"]
    encoder = Encoder(
        patch=patch, grid=(height // patch, width // patch), dim=args["d_model"], depth=args["encoder_layers"],
        heads=args["encoder_heads"], hidden=args["d_ff"],
    )  # fmt: skip
    names = ("decoder_layers", "decoder_heads", "d_model")
    model = Segmenter(encoder, decoder_of(meta, a, f"{prefix}decoder.", names, inputs=args["d_model"]))
    for group, classes in enumerate(args["n_cls"]):
        if f"{prefix}decoder.cls_emb.{group}" in a:  # the teacher has a group less
            model.add_head(classes)
    fill(a, {f"{prefix}{released(name)}": value for name, value in model.named_parameters()})
    return model.eval()


def tokens(maps: Tensor) -> Tensor:
    """(B, D, h, w) as the released (B, N, D)."""
    return maps.flatten(2).transpose(1, 2)


def maps(tokens: Tensor) -> Tensor:
    """Released (B, 1, N, D) as a map of one column."""
    return tokens[:, 0].transpose(1, 2).unsqueeze(3)


def afd_patch(meta: Any, a: Arrays) -> Outputs:
    expect(meta, reduction="mean", alpha=1)
    student = a.tensor("student", grad=True)
    loss = reliable_patches(maps(student), maps(a.tensor("teacher")), maps(a.tensor("weights"))[:, 0])
    return {"loss": loss, "grad_student": grads(loss, student)[0]}


def afd_cls(meta: Any, a: Arrays) -> Outputs:
    expect(meta, weights=1)
    student, teacher = a.tensor("student", grad=True), a.tensor("teacher")
    if student.shape[1] - teacher.shape[1] != meta["args"]["n_new"]:
        raise ValueError(f"{meta['args']['n_new']} new rows expected beside the teacher's {teacher.shape[1]}")
    loss = class_embeddings(student, teacher)
    return {"loss": loss, "grad_student": grads(loss, student)[0]}


def bce(meta: Any, a: Arrays) -> Outputs:
    logits, labels = a.tensor("logits", grad=True), a.tensor("labels")
    mean, total = binary_cross_entropy(logits, labels), binary_cross_entropy(logits, labels, reduction="sum")
    return {
        "loss_mean": mean,
        "grad_logits_mean": grads(mean, logits)[0],
        "loss_sum": total,
        "grad_logits_sum": grads(total, logits)[0],
        "loss_none": binary_cross_entropy(logits, labels, reduction="none"),
    }


def block_names(layer: Block) -> dict[str, Tensor]:
    return {"w::" + released(f".{name}")[1:]: value for name, value in layer.named_parameters()}


def block(meta: Any, a: Arrays) -> Outputs:
    expect(meta, dropout=0, ln_eps=1e-5)
    args = meta["args"]
    layer = Block(args["dim"], args["heads"], args["mlp_dim"], drop_path=args["drop_path"]).eval()
    fill(a, block_names(layer))
    x = a.tensor("x", grad=True)
    out = layer(x)
    return {"out": out, "grad_x": grads((out * a.tensor("probe")).sum(), x)[0], "attn": layer.attention_map(x)}


def encoder(meta: Any, a: Arrays) -> Outputs:
    args = meta["args"]
    patch, (height, width) = args["patch_size"], args["trained_image_size"]
    layers = Encoder(
        patch=patch, grid=(height // patch, width // patch), dim=args["d_model"], depth=args["n_layers"], heads=args["n_heads"],
        hidden=args["d_ff"],
    )  # fmt: skip
    fill(a, {released(f"backbone.{name}").replace("encoder.", "w::"): value for name, value in layers.named_parameters()})
    image = a.tensor("image", grad=True)
    out = layers.tokens(image)
    return {"tokens": out, "grad_image": grads((out * a.tensor("probe")).sum(), image)[0]}


class Given(nn.Module):
    """In place of an encoder: its map is the input."""

    patch = 1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"layer4": x}


def decoder(meta: Any, a: Arrays) -> Outputs:
    x, size = a.tensor("x", grad=True), a.all["masks"].shape[2:]
    given: Any = Given()
    layers = decoder_of(meta, a, "w::", ("n_layers", "n_heads", "d_model"), inputs=x.shape[2])
    model = Segmenter(given, layers).eval()
    for classes in meta["args"]["n_cls"]:
        model.add_head(classes)
    fill(a, {released(name).replace("decoder.", "w::"): value for name, value in model.named_parameters()})
    output = model(x.transpose(1, 2).unflatten(2, size))
    pulled = (output.scores * a.tensor("probe")).sum()
    by_x, *by_head = grads(pulled, x, *(head.token for head in model.heads))
    found = {
        "masks": output.scores,
        "patches": tokens(output.features["decoder"]),
        "cls_seg_feat": output.features["classes"],
        "cls_token": model.class_rows().expand(len(x), -1, -1),
        "grad_x": by_x,
    } | {f"gcls::{group}": grad for group, grad in enumerate(by_head)}
    if layers.global_token is not None:
        found["grad_general"] = grads(pulled, layers.global_token)[0]
    return found


def mask_norms(meta: Any, a: Arrays) -> Outputs:
    expect(meta, eps=1e-5)
    x, groups = a.tensor("x", grad=True), range(len(meta["args"]["n_cls"]))
    weights, biases = ([a.tensor(f"w::{kind}.{g}").float().requires_grad_() for g in groups] for kind in ("weight", "bias"))
    out = mask_norm(x.transpose(1, 2), torch.cat(weights), torch.cat(biases)).transpose(1, 2)
    by_x, *rest = grads((out * a.tensor("probe")).sum(), x, *weights, *biases)
    names = [f"gw::{kind}.{g}" for kind in ("weight", "bias") for g in groups]
    return {"out": out, "grad_x": by_x} | dict(zip(names, rest, strict=True))


def segmenter(meta: Any, a: Arrays) -> Outputs:
    with torch.no_grad():
        output = model_of(meta, a, "w::")(a.tensor("image"))
    return {
        "logits": output.logits,
        "masks_low": output.scores,
        "patches": tokens(output.features["decoder"]),
        "cls_seg_feat": output.features["classes"],
    }


def bwt(meta: Any, a: Arrays) -> Outputs:
    sizes, new = meta["args"]["n_cls_prev"], meta["args"]["n_new"]
    given: Any = Given()
    channels = a.all["prev::decoder.cls_emb.0"].shape[2]
    model = Segmenter(given, MaskDecoder(channels, channels, blocks=1, heads=1, hidden=channels))
    for classes in sizes:
        model.add_head(classes)
    heads = [name for name, _ in model.named_parameters() if name.startswith("heads.")]
    fill(a, {f"prev::{released(name)}": model.get_parameter(name) for name in heads})
    a.unused(*(f"init::{released(name)}" for name in heads))  # loading the previous model overwrites them
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fresh(channels: int, classes: int) -> TokenHead:
        head = TokenHead(channels, classes)
        fill(a, {f"init::{released(f'heads.{len(sizes)}.{name}')}": value for name, value in head.named_parameters()})
        return head

    model.make_head = fresh
    model.add_head(new, init=copy_background)
    after = model.state_dict()
    found: Outputs = {f"out::{released(name)}": value for name, value in after.items() if name.startswith("heads.")}
    return found | {"other_params_copied": all(torch.equal(after[name], value) for name, value in before.items())}


def kd(meta: Any, a: Arrays) -> Outputs:
    expect(meta, reduction="mean")
    student = a.tensor("student", grad=True)
    loss = output_distillation(student, a.tensor("teacher"), alpha=meta["args"]["alpha"])
    return {"loss": loss, "grad_student": grads(loss, student)[0]}


def lgod(meta: Any, a: Arrays) -> Outputs:
    student, teacher, labels = a.tensor("student", grad=True), a.tensor("teacher"), a.tensor("labels_gt")
    options: Any = {"alpha": meta["args"]["alpha"]}
    mean = label_guided_distillation(student, teacher, labels, **options)
    each = label_guided_distillation(student, teacher, labels, **options, reduction="none")
    return {
        "loss_mean": mean,
        "grad_student_mean": grads(mean, student)[0],
        "loss_none": each,
        "loss_sum": each.sum(),
        "grad_student_sum": grads(each.sum(), student)[0],
    }


def ortho(meta: Any, a: Arrays) -> Outputs:
    rows, first = a.tensor("class_tokens", grad=True), meta["args"]["first_new_class"]
    loss = orthogonality(rows[0], new=slice(first, first + meta["args"]["n_new"]))  # n / C is inside
    return {"loss": loss, "grad_class_tokens": grads(loss, rows)[0]}


def scoremap(meta: Any, a: Arrays) -> Outputs:
    expect(meta, bg_label=0, ignore_index=255)
    scores, new = a.tensor("masks"), a["target_cls"]
    if not np.array_equal(np.sort(new), scores.shape[1] + np.arange(len(new))):
        raise ValueError(f"new classes {new} do not follow the teacher's {scores.shape[1]} channels")
    return {"scoremap": reliability(scores, a.tensor("label").long())}


def spl(meta: Any, a: Arrays) -> Outputs:
    expect(meta, ignore_index=255)
    args = meta["args"]
    activation = {"ce_loss": "softmax", "bce_loss": "sigmoid"}[args["loss_type"]]
    labels, teacher = a.tensor("labels_gt"), a.tensor("logits_prev")
    options: Any = {"threshold": args["pseudo_thresh"], "activation": activation}
    return {
        "prob_prev": activate(teacher, activation),
        "labels_thresholded": selective(labels, teacher, **options, ignore_objects=False),
        "labels_selective": selective(labels, teacher, **options),
    }


def gradients(loss: Tensor, model: Segmenter) -> Outputs:
    """ "grad::" and "gnorm::" of every parameter, under the released names."""
    named = {released(name): value for name, value in model.named_parameters()}
    found = dict(zip(named, grads(loss, *named.values()), strict=True))
    return {f"grad::{name}": g for name, g in found.items()} | {f"gnorm::{name}": g.norm() for name, g in found.items()}


def iteration(meta: Any, a: Arrays) -> tuple[Segmenter, Any, Any, Any, Any]:
    """Student model, batch, both outputs and context of the training iteration in a file."""
    from cisskit.data import Batch

    args = meta["args"]
    step = step_of([sum(args["n_cls"][:-1]) - 1, args["n_cls"][-1]])
    expect(meta, target_cls=list(range(step.new.start, step.new.stop)))
    model, old_model = model_of(meta, a, "w::"), model_of(meta, a, "tw::")
    batch = Batch(a.tensor("image"), a.tensor("labels_gt"))
    with torch.no_grad():
        teacher = old_model(batch.image)
    return model, batch, model(batch.image), teacher, SimpleNamespace(step=step, model=model, old_model=old_model)


def step_loss(meta: Any, a: Arrays) -> Outputs:
    from cisskit.methods.mbs import MBS

    args, (model, batch, student, teacher, ctx) = meta["args"], iteration(meta, a)
    ours, weight = args["method_switch"], args["distill_lambda"]
    options: Any = {
        "tau": args["pseudo_thresh"],
        "base_loss": args["base_loss"].removesuffix("_loss"),
        **dict.fromkeys(("spl", "afd_weighting", "lgod", "ortho"), ours),
    }
    plain = MBS(lambda_od=1, **options).losses(batch, student, teacher, ctx)
    method = MBS(lambda_od=weight, **options)
    total = torch.stack(list(method.losses(batch, student, teacher, ctx).values())).sum()
    y = method.targets(batch, teacher, ctx)
    r = reliability(teacher.scores, y) if ours else torch.ones_like(teacher.scores[:, 0])
    return {
        "labels_used": y,
        "logits": student.logits,
        "logits_prev": teacher.logits,
        "scoremap": r.flatten(1),
        "loss_seg": plain[options["base_loss"]],
        "loss_afd_patch": plain["afd_patch"],
        "loss_afd_cls": plain["afd_cls"],
        "loss_od": plain["lgod" if ours else "kd"],
        "loss_ortho": plain.get("ortho", torch.zeros(())),
        "loss_total": total,
    } | gradients(total, model)


FAMILIES: dict[str, Callable[[Any, Arrays], Outputs]] = {
    "mbs/afd_cls": afd_cls,
    "mbs/afd_patch": afd_patch,
    "mbs/bce": bce,
    "mbs/block": block,
    "mbs/bwt": bwt,
    "mbs/decoder": decoder,
    "mbs/encoder": encoder,
    "mbs/kd": kd,
    "mbs/lgod": lgod,
    "mbs/mask_norm": mask_norms,
    "mbs/ortho": ortho,
    "mbs/scoremap": scoremap,
    "mbs/segmenter": segmenter,
    "mbs/spl": spl,
    "mbs/step_loss": step_loss,
}
TOLERANCES: dict[str, float] = {
    "mbs/block": 1e-5,
    "mbs/decoder": 2e-4,
    "mbs/encoder": 1e-5,
    "mbs/segmenter": 1e-4,
    "mbs/step_loss": 2e-4,
}
"""Networks in single precision; the mask norm divides by a deviation that may be small."""
