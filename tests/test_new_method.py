"""A method is one file: this one uses every verb that the shipped methods leave alone, and nothing else has to change."""

import textwrap

import pytest
import torch

from cisskit import cli
from cisskit import methods as method_files
from cisskit.method import available
from cisskit.train import begin, evaluate, fit

TINY = {"data_options": {"train": 24, "heldout": 4, "test": 6}, "overrides": {"epochs": 1, "batch_size": 8}, "device": "cpu"}

MINE = '''
    """Mine. A method that exists for a test.

        L = CE(z, y + pseudo-labels of the teacher) + λ mean |prototype|
    """

    import torch

    from cisskit.losses import cross_entropy
    from cisskit.method import STRICT, Method, dataclass


    @dataclass(frozen=True, config=STRICT)
    class Mine(Method):
        weight: float = 0.1

        title = "Mine"
        paper = "a test"
        needs = ("saliency",)

        def build(self, scenario, arch, weights):
            model = super().build(scenario, arch, weights)
            model.aux["prototype"] = torch.nn.Linear(model.channels, 1)
            return model

        def prepare(self, ctx, loader):
            return {"salient": torch.stack([batch.extra["saliency"].float().mean() for batch in loader]).mean().item()}

        def targets(self, batch, teacher, ctx):
            if teacher is None:
                return batch.label
            sure = (teacher.logits.softmax(1).max(1).values > 0.5) & batch.extra["saliency"]
            return torch.where((batch.label == 0) & sure, teacher.logits.argmax(1), batch.label)

        def losses(self, batch, student, teacher, ctx):
            pull = ctx.model.aux["prototype"].weight.abs().mean()
            return {"ce": cross_entropy(student.logits, self.targets(batch, teacher, ctx)), "pull": self.weight * pull}


    METHOD = Mine
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "mine.py").write_text(textwrap.dedent(MINE), encoding="utf-8")
    monkeypatch.setattr(method_files, "__path__", [*method_files.__path__, str(folder)])
    return tmp_path / "runs"


def test_it_is_found(mine, capsys):
    assert "mine" in available()
    assert cli.main(["methods"]) == 0 and "weight=0.1" in capsys.readouterr().out


def test_it_trains_through_a_step_boundary(mine):
    for step in range(2):
        ctx = begin("toy-5-4", "mine", step, runs=mine, **TINY)
        history = fit(ctx, bar=False)
        metrics = evaluate(ctx)
    assert list(history.columns[3:]) == ["ce", "pull"]
    assert 0.1 < ctx.stats["salient"] < 0.9
    assert metrics["pseudo_labels"]["coverage"] == 1.0
    aux = {k: v for k, v in ctx.run.weights().items() if k.startswith("aux.")}
    assert set(aux) == {"aux.prototype.weight", "aux.prototype.bias"}
    before = ctx.run.previous.weights()["aux.prototype.weight"]
    assert torch.equal(ctx.old_model.aux["prototype"].weight.cpu(), before) and not torch.equal(
        aux["aux.prototype.weight"], before
    )
