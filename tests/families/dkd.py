"""DKD: losses, decoder, births, labels, memory, transforms, metrics."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cisskit.losses import auxiliary_background, masked_bce, reasoning_scores, sigmoid_distillation
from cisskit.metrics import class_accuracy, class_iou, harmonic_mean, mean_iou, pixel_accuracy
from cisskit.replay import Exemplar, draw, presence_of, shuffled
from cisskit.scenario import BACKGROUND, IGNORE
from cisskit.schedules import poly, warm_poly
from families.pieces import (
    Arrays,
    Outputs,
    any_scenario,
    count,
    grads,
    head_grads,
    heads_of,
    imagenet,
    members,
    output_of,
    presence,
    step_of,
    steps_of,
)


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
    from cisskit.models.heads import copy_first

    model = heads_of(a, "old_", a["task_classes"][:-1])
    model.add_head(int(a["task_classes"][-1]), init=copy_first)
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
        scenario = any_scenario(groups, setting)
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


FAMILIES = {
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
}
TOLERANCES = {"dkd/aspp": 1e-6, "dkd/croptransform": 1e-5, "dkd/evaltransform": 1e-5}
