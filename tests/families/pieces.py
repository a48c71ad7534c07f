"""What the functions of several families need: the arrays of a case, and bits of a model or a scenario."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cisskit.errors import KitError
from cisskit.metrics import ConfusionMatrix
from cisskit.scenario import Labels, Scenario, Step

Outputs = dict[str, Any]


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a case; remembers which were read."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.all, self.read = dict(arrays), set[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return self.all[name]

    def __contains__(self, name: object) -> bool:
        return name in self.all

    def __iter__(self) -> Iterator[str]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def tensor(self, name: str, *, grad: bool = False) -> Tensor:
        return torch.from_numpy(self[name].copy()).requires_grad_(grad)

    def unused(self, *names: str) -> None:
        """Inputs that are in the file but play no part."""
        self.read.update(names)


def any_scenario(groups: Sequence[Sequence[int]], setting: str) -> Scenario:
    """A scenario of classes without names."""
    names = tuple(map(str, range(1, 256)))
    return Scenario("any", tuple(map(tuple, groups)), setting, Labels(names))


def steps_of(task_classes: Sequence[int]) -> tuple[Step, ...]:
    sizes = [int(n) for n in task_classes]
    return tuple(Step(t, sum(sizes[:t]), n) for t, n in enumerate(sizes))


def step_of(task_classes: Sequence[int]) -> Step:
    """The last step."""
    return steps_of(task_classes)[-1]


def conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A 1x1 head with these values."""
    head = nn.Conv2d(weight.shape[1], len(weight), 1).to(weight)
    head.load_state_dict({"weight": weight.view_as(head.weight), "bias": bias})
    return head


def heads_of(a: Arrays, prefix: str = "", task_classes: Sequence[int] | None = None) -> Any:
    """A `Model` that is nothing but heads: auxiliary, then one per step, from stacked rows."""
    from cisskit.models.base import Model

    weight, bias = a.tensor(f"{prefix}weight"), a.tensor(f"{prefix}bias")
    sizes = [1, *map(int, a["task_classes"] if task_classes is None else task_classes)]
    while sum(sizes) > len(weight):  # the previous model lacks the current head
        sizes.pop()
    model = Model(nn.Identity(), nn.Identity(), weight.shape[1])
    for k, (w, b) in enumerate(zip(weight.split(sizes), bias.split(sizes), strict=True)):
        model.heads.append(conv(w, b))
        model.detached.append(k == 0)
    return model


def output_of(model: Any, features: Tensor, size: np.ndarray) -> Any:
    """What the model says about decoder features, in their own precision."""
    from cisskit.models.base import Output

    maps = [head(features.detach() if alone else features) for head, alone in zip(model.heads, model.detached, strict=True)]
    return Output(torch.cat(maps, dim=1), (int(size[0]), int(size[1])), {"decoder": features})


def grads(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Gradients, zero where the loss does not reach."""
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def head_grads(loss: Tensor, features: Tensor, model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by features, stacked weight rows (C, D) and stacked biases (C,)."""
    by_features, *rest = grads(loss, features, *(p for head in model.heads for p in (head.weight, head.bias)))
    return by_features, torch.cat([g.flatten(1) for g in rest[::2]]), torch.cat(rest[1::2])


def count(truth: np.ndarray, prediction: np.ndarray, n: int) -> np.ndarray:
    matrix = ConfusionMatrix(n)
    for t, p in zip(truth, prediction, strict=True):
        matrix.update(torch.from_numpy(t), torch.from_numpy(p))
    return matrix.numpy()


def presence(labels: np.ndarray) -> np.ndarray:
    """(n, 256): which ids each label map shows."""
    shown = np.zeros((len(labels), 256), dtype=bool)
    np.put_along_axis(shown, labels.reshape(len(labels), -1).astype(np.int64), True, axis=1)
    return shown


def members(shown: np.ndarray, scenario: Scenario, step: int) -> np.ndarray:
    """`select`, with "no image" as an answer instead of an error."""
    from cisskit.data import select

    try:
        return select(shown, scenario, step)
    except KitError:
        return np.zeros(len(shown), dtype=bool)


def imagenet(image: Tensor) -> Tensor:
    from cisskit.data import Source
    from cisskit.data.transforms import normalise

    return normalise(image, torch.tensor(Source.mean), torch.tensor(Source.std))
