"""Labels, splits, crops, schedules and metrics of the IDEC, LAG and MBS code bases."""

import random
from typing import Any

import numpy as np
import torch

from cisskit.data import kept, label_table
from cisskit.data.transforms import evaluation_crop, merge_windows, padded_crop, windows
from cisskit.metrics import class_accuracy, class_iou, frequency_weighted_iou, mean_iou, pixel_accuracy
from cisskit.pseudo import open_labels
from cisskit.scenario import BACKGROUND, IGNORE, Scenario
from cisskit.schedules import poly_lr, warm_poly
from families.pieces import Arrays, Outputs, count, imagenet, members


def labels(meta: Any, a: Arrays) -> Outputs:
    settings, raw, order = meta["args"], a.tensor("raw").int(), a["ordering_map"]
    task = {c: int(order[c]) for c in np.flatnonzero(order != IGNORE).tolist() if c}
    current = label_table({c: k for c, k in task.items() if c in settings["target_classes"]})[raw].long()
    salient = a.tensor("saliency") > 0 if "saliency" in a else None
    return {
        "train": open_labels(current, salient) if settings["unknown"] else current,
        "val": current,
        "test": label_table(task, other=IGNORE)[raw].long(),
    }


def lr(meta: Any, a: Arrays) -> Outputs:
    settings, total = meta["args"], meta["args"]["total_iters"]
    power, floor = settings["power"], settings["min_lr"] or 0.0

    def rate(base: float, k: int) -> float:
        if k == total:  # the rate that is left behind after the last iteration
            return floor
        if settings["kind"] == "poly":
            return poly_lr(base, k, total, floor=floor, power=power)
        warm = {"warmup": settings["warmup_iters"] / total, "start": settings["warmup_factor"]}
        return max(floor, base * warm_poly(k, total, power=power, **warm))

    return {"lr": np.array([[rate(base, k) for base in a["base_lr"].tolist()] for k in range(total + 1)])}


def idec_metrics(meta: Any, a: Arrays) -> Outputs:
    n = meta["args"]["n_classes"]
    confusion = count(np.where(a["label"] < n, a["label"], IGNORE), a["pred"], n)
    iou, accuracy = class_iou(confusion, absent="zero", epsilon=1e-6), class_accuracy(confusion, absent="zero", epsilon=1e-6)
    return {
        "confusion": confusion.astype(np.float64),
        "iou": iou,
        "acc": accuracy,
        "miou": mean_iou(iou),
        "macc": mean_iou(accuracy),
        "overall": pixel_accuracy(confusion),
        "fw": np.nan_to_num(frequency_weighted_iou(confusion, epsilon=1e-6)),
    }


def mbs_metrics(meta: Any, a: Arrays) -> Outputs:
    n, eps = meta["args"]["n_classes"], meta["args"]["eps"]
    confusion = count(np.where(a["gt"] < n, a["gt"], IGNORE), a["pred"], n)
    iou, accuracy = class_iou(confusion, absent="zero", epsilon=eps), class_accuracy(confusion, absent="zero", epsilon=eps)
    return {
        "hist": confusion.astype(np.float64),
        "class_iou": iou,
        "class_acc": accuracy,
        "mean_iou": mean_iou(iou, drop_zero=True),
        "mean_acc": mean_iou(accuracy),
        "overall_acc": pixel_accuracy(confusion),
        "fw_iou": np.nan_to_num(frequency_weighted_iou(confusion, epsilon=eps)),
    }


def limited(meta: Any, a: Arrays) -> Outputs:
    return {"n_keep": np.array([[kept(int(n), float(delta)) for delta in a["delta"]] for n in a["N"]])}


def gtmap(meta: Any, a: Arrays) -> Outputs:
    settings, raw = meta["args"], a.tensor("raw").int()
    ade = settings["dataset"] == "ade"
    if settings["image_set"] == "test":
        table = label_table({c: c for c in range(1, IGNORE)}, background=IGNORE if ade else BACKGROUND)
    else:
        table = label_table({c: c for c in settings["step_classes"] if c}, void=BACKGROUND if ade else IGNORE)
    return {"mapped": table[raw]}


def split(meta: Any, a: Arrays) -> Outputs:
    shown = np.zeros((len(a["lines"]), 256), dtype=bool)
    for row, line in zip(shown, a["lines"], strict=True):
        row[[int(word) + 1 for word in str(line).split()[1:]]] = True
    out, dataset = {}, meta["args"]["dataset"]
    first, by = map(int, meta["args"]["task"].split("-"))
    for setting in ("overlap", "disjoint"):
        scenario = Scenario.named(f"{dataset}-{first}-{by}", setting=setting)
        for step in range(len(scenario.steps)):
            out[f"{setting}_{step}"] = np.flatnonzero(members(shown, scenario, step))
    return out


def eval_transform(meta: Any, a: Arrays) -> Outputs:
    image, label = evaluation_crop(a.tensor("image").permute(2, 0, 1), a.tensor("label"), meta["args"]["size"])
    return {"out_image": imagenet(image), "out_label": label}


def random_crop(meta: Any, a: Arrays) -> Outputs:
    rng = random.Random(meta["args"]["python_random_seed"])
    image, label = padded_crop(a.tensor("image").permute(2, 0, 1), a.tensor("label"), meta["args"]["size"], rng)
    return {"out_image": image.permute(1, 2, 0), "out_label": label}


def sliding_window(meta: Any, a: Arrays) -> Outputs:
    settings, shape = meta["args"], a["image"].shape[2:]
    at = windows(*shape, settings["window_size"], settings["window_stride"])
    merged = merge_windows(a.tensor("seg_maps"), at, shape, tuple(settings["ori_shape"]))
    return {"anchors": torch.tensor(at), "merged": merged}


FAMILIES = {
    "idec/labels": labels,
    "idec/lr": lr,
    "idec/metrics": idec_metrics,
    "lag/limited": limited,
    "mbs/eval_transform": eval_transform,
    "mbs/gtmap": gtmap,
    "mbs/metrics": mbs_metrics,
    "mbs/random_crop_padded": random_crop,
    "mbs/sliding_window": sliding_window,
    "mbs/split": split,
}
TOLERANCES = {"mbs/eval_transform": 1e-5, "mbs/sliding_window": 1e-6}
