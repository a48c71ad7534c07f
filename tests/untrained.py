"""Chains of runs that nobody trained: random networks on a few scenes, for views that read models. Nothing is written."""

from pathlib import Path
from types import SimpleNamespace

import torch

from cisskit.data import Batch, Data, Toy
from cisskit.errors import KitError
from cisskit.method import configure
from cisskit.protocols import protocol
from cisskit.runs import Run
from cisskit.scenario import Scenario
from cisskit.views.tables import Chain

TASK = Scenario.named("toy-5-2")  # classes 1..5, 6 and 7, 8 and 9
DATA = Data(TASK, Toy(train=40, heldout=1, test=12), batch_size=5)


def run(method: str, step: int, arch: str = "toy") -> Run:
    settings = {
        "scenario": "toy-5-2", "setting": "overlap", "labels": None, "method": method, "seed": 0, "step": step, "arch": arch,
        "protocol": protocol("clean", TASK).settings(),
    }  # fmt: skip
    return Run(Path(f"{method}/seed0/step{step}"), settings)


def chain(method: str, steps: int = 3) -> Chain:
    arch = configure(method, {})[0].arch(TASK)
    return Chain(tuple(run(method, step, arch) for step in range(steps)))


class Restore:
    """Stands for `cisskit.train.restore`: the same network in all steps, with new heads, and moved a little if ``move``.

    broken: (method, step) whose weights are said to be damaged.
    """

    def __init__(self, *, move: float = 0.0, broken: tuple[tuple[str, int], ...] = ()) -> None:
        self.move, self.broken = move, broken

    def __call__(self, of: Run) -> SimpleNamespace:
        name = str(of.settings["method"])
        if (name, of.step) in self.broken:
            raise KitError(f"{of.folder} is damaged.")
        method, _ = configure(name, {})
        torch.manual_seed(0)
        model = method.build(TASK, of.settings["arch"], None)
        for step in TASK.steps[1 : of.step + 1]:
            method.grow(model, step)
            with torch.no_grad():
                for weight in model.decoder.parameters():
                    weight += self.move * torch.randn(weight.shape)
        return SimpleNamespace(
            scenario=TASK, step=TASK.step(of.step), method=method, run=of, data=DATA, device=torch.device("cpu"), model=model
        )


def step_of(name: str) -> tuple[SimpleNamespace, Batch]:
    """Step 1 of a method's name with untrained small CNNs, and a batch of it: old class 2 above, new class 6 below left."""
    step = TASK.step(1)
    method, _ = configure(name, {})
    torch.manual_seed(0)
    old = method.build(TASK, "toy", None).eval()
    model = method.build(TASK, "toy", None)
    model.load_state_dict(old.state_dict())
    method.grow(model, step)
    model.freeze("bn")
    ctx = SimpleNamespace(
        step=step, scenario=TASK, data=SimpleNamespace(palette=DATA.source.palette, source=DATA.source), method=method,
        model=model, old_model=old, recipe=SimpleNamespace(epochs=4), progress=0.0, seed=0,
    )  # fmt: skip
    truth = torch.zeros(2, 64, 64, dtype=torch.long)
    truth[:, :30], truth[:, 40:, :30] = 2, 6
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    extra = {"names": ["a", "b"], "truth": truth, "saliency": truth > 0}
    return ctx, Batch(image, torch.where(truth == 6, 6, 0), extra)
