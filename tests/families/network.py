"""Network, transfer and frozen parts of IDEC and LAG."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cisskit.models import Model, create, unknown_head
from cisskit.models.heads import conv_head, copy_first
from cisskit.scenario import Step
from families.pieces import Arrays, Outputs

RELEASED = {  # prefix in the kit -> prefix in the released state
    "backbone.stem.0.": "backbone.conv1.",
    "backbone.stem.1.": "backbone.bn1.",
    "decoder.decoder.": "classifier.aspp.",
    **{f"decoder.taps.context{k}.": f"classifier.aspp_l{k}." for k in (1, 2, 3)},
    "heads.": "classifier.head.",
}


def released_name(name: str) -> str:
    for ours, theirs in RELEASED.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name  # backbone.layer1 .. layer4


def built(arch: str, head_classes: list[int]) -> Model:
    model = create(arch, None, conv_heads=True, taps=True)
    for k, n in enumerate(head_classes):
        model.add_head(n, unknown=k == 0)
    return model


def fill(name: str, shape: torch.Size) -> Tensor:
    """Values that the case file derives from the released name of a tensor."""
    if name.endswith("running_mean"):
        return torch.zeros(shape, dtype=torch.float64)
    if name.endswith("running_var"):
        return torch.ones(shape, dtype=torch.float64)
    key = sum(p * ord(c) for p, c in enumerate(name, start=1)) % 99991
    noise = torch.from_numpy(np.random.RandomState(key).standard_normal(shape.numel())).view(shape)
    if len(shape) == 4:
        return noise * (2 / shape[1:].numel()) ** 0.5
    if ".head." in name and name.endswith(".3.bias"):
        return 0.1 * noise
    if name.endswith("weight"):
        return torch.full(shape, 0.2 if name.startswith("backbone") and ".bn3." in name else 1.0, dtype=torch.float64)
    return torch.zeros(shape, dtype=torch.float64)


def network(meta: Any, a: Arrays) -> Outputs:
    args = meta["args"]
    model = built(args["arch"], args["head_classes"]).double().eval()
    state = model.state_dict()
    theirs = {released_name(name): tuple(value.shape) for name, value in state.items()}
    listed = {name: tuple(shape) for name, shape in args["state_keys"]}
    odd = {name for name in listed if theirs.get(name) != listed[name]}
    count = sum(p.numel() for p in model.parameters())
    if odd or count != args["n_parameters"]:
        raise ValueError(f"{count} parameters, {args['n_parameters']} recorded; names or shapes that differ: {sorted(odd)[:5]}")
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            value.copy_(fill(released_name(name), value.shape))
    image = torch.from_numpy(np.random.RandomState(args["image_seed"]).standard_normal(args["input"]))
    with torch.no_grad():
        output = model(image)
    z = output.open_logits
    out: Outputs = {
        "logits_sub": z[:, :, ::8, ::8],
        "logits_shape": np.array(z.shape),
        "logits_mean": z.mean(dim=(0, 2, 3)),
        "preds_sub": z.argmax(dim=1)[:, ::4, ::4],
    }
    for name, key in {"l1": "context1", "l2": "context2", "l3": "context3", "out": "decoder"}.items():
        f = output.features[key]
        out[f"feature_{name}_shape"] = np.array(f.shape)
        out[f"feature_{name}_sub"] = f[:, ::32, ::4, ::4]
        out[f"feature_{name}_absmean"] = f.abs().mean()
    return out


def trainable(meta: Any, a: Arrays) -> Outputs:
    args = meta["args"]
    before = args["head_classes"][: -1 if args["step"] else None]
    with torch.device("meta"):  # shapes only
        model = built(args["arch"], before)
        if args["step"]:
            n_old = sum(args["head_classes"][2:-1])
            unknown_head.grow(model, Step(args["step"], n_old, args["head_classes"][-1]), frozen=args["freeze"])
    if args["bn_freeze"] and args["step"]:
        model.freeze("bn")
    model.train()
    named = {released_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    if isinstance(args["names"], list) and sorted(named) != sorted(args["names"]):
        raise ValueError(f"trainable are {sorted(named)[:10]}, recorded {sorted(args['names'])[:10]}")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return {"n_trainable": sum(p.numel() for p in named.values()), "n_bn_training": sum(m.training for m in norms)}


def transfer(meta: Any, a: Arrays) -> Outputs:
    args = meta["args"]
    model = Model(nn.Identity(), nn.Identity(), args["channels"], make_head=conv_head)
    for k, n in enumerate(args["prev_heads"]):
        head = model.add_head(n, unknown=k == 0)
        for name, value in head.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(a.tensor(f"before__head.{k}.{name}"))
    new = model.add_head(args["new_classes"], init=copy_first)
    return {f"after__head.{args['new_head_index']}.{name}": value for name, value in new.state_dict().items()}


FAMILIES = {"idec/network": network, "idec/trainable": trainable, "idec/transfer": transfer}
TOLERANCES = {"idec/network": 1e-3}
