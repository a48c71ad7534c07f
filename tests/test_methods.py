"""What each paper changes, beyond its losses: how heads are born, what trains what, what is replayed."""

import math

import pytest
import torch
from test_contract import terms_of, toy_batch, toy_context

from cisskit.method import configure
from cisskit.models import Output
from cisskit.scenario import Scenario
from cisskit.train import begin, evaluate, fit, train_loader


def test_mib_classes_are_born_as_a_share_of_the_background():
    ctx = toy_context("mib")
    base, new = ctx.model.heads[0], ctx.model.heads[-1]
    assert torch.equal(new.weight, base.weight[:1].expand_as(new.weight))
    before = ctx.old_model.heads[0].bias[0]
    assert base.bias[0].item() == pytest.approx(before.item() - math.log(3)) and torch.equal(new.bias, base.bias[:1].expand(2))


def test_ft_classes_are_born_at_random():
    ctx = toy_context("ft")
    assert not torch.equal(ctx.model.heads[-1].weight[0], ctx.model.heads[-1].weight[1])


def test_dkd_classes_are_born_as_the_auxiliary_head():
    ctx = toy_context("dkd")
    new, auxiliary = ctx.model.heads[-1], ctx.model.heads[0]
    assert torch.equal(new.weight, auxiliary.weight.expand_as(new.weight)) and torch.equal(new.bias, auxiliary.bias.expand(2))


def test_dkd_without_the_auxiliary_term_has_nothing_to_transfer():
    method, _ = configure("dkd", {"lambda_ac": 0.0})
    task = Scenario.named("toy-5-2")
    model = method.build(task, "toy", None)
    method.grow(model, task.steps[1])
    assert not torch.equal(model.heads[-1].weight[0], model.heads[0].weight[0])


def test_dkds_auxiliary_term_trains_the_auxiliary_head_alone():
    ctx = toy_context("dkd")
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    named = dict(ctx.model.named_parameters())
    grads = torch.autograd.grad(terms["ac"], list(named.values()), allow_unused=True)
    moved = {name for name, grad in zip(named, grads, strict=True) if grad is not None and grad.any()}
    assert moved == {"heads.0.weight", "heads.0.bias"}


def test_dkds_evidence_terms_leave_new_heads_and_biases_alone():
    ctx = toy_context("dkd")
    with torch.no_grad():
        ctx.model.heads[1].weight.mul_(1.1)  # else student and teacher agree
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    named = dict(ctx.model.named_parameters())
    grads = torch.autograd.grad(terms["dkd_pos"] + terms["dkd_neg"], list(named.values()), allow_unused=True)
    moved = {name for name, grad in zip(named, grads, strict=True) if grad is not None and grad.any()}
    assert "heads.1.weight" in moved and any(name.startswith("decoder") for name in moved)
    assert not {"heads.0.weight", "heads.2.weight", "heads.1.bias"} & moved


def test_dkd_says_background_where_no_class_is_above_one_half():
    method, _ = configure("dkd", {})
    logits = torch.tensor([[9.0, -1.0, -2.0], [-9.0, 0.0, -1.0], [0.0, 0.1, 3.0]]).T.reshape(1, 3, 1, 3)
    assert method.predict(Output(logits, (1, 3))).tolist() == [[[0, 0, 2]]]


def test_dkd_weights_positives_more_at_step_0_only():
    for index, gamma in ((0, 2.0), (1, 1.0)):
        ctx = toy_context("dkd", index=index)
        batch = toy_batch(ctx.step, "new class everywhere")
        terms, student, _ = terms_of(ctx, batch)
        plain = torch.nn.functional.binary_cross_entropy_with_logits(
            student.logits[:, ctx.step.new],
            torch.nn.functional.one_hot(batch.label - ctx.step.new.start, ctx.step.n_new).permute(0, 3, 1, 2).float(),
            pos_weight=torch.full((ctx.step.n_new, 1, 1), gamma),
            reduction="none",
        )
        assert terms["mbce"].item() == pytest.approx(plain.mean((0, 2, 3)).sum().item(), rel=1e-5)


def test_dkd_m_replays_its_exemplars_with_this_steps_labels(tmp_path):
    tiny = {"data_options": {"train": 40, "heldout": 2, "test": 4}, "device": "cpu", "runs": tmp_path}
    options = {**tiny, "overrides": {"epochs": 1, "batch_size": 8, "memory": 6}}
    ctx = begin("toy-5-2", "dkd", 0, **options)
    fit(ctx, bar=False)
    evaluate(ctx)
    ctx = begin("toy-5-2", "dkd", 1, **options)
    loader, kept = train_loader(ctx), {e.name for e in ctx.memory}
    assert loader.n_images == len(ctx.data.members(1)) + 6 and len(kept) == 6
    replayed = set()
    for batch in loader.epoch(0, whole=True):
        assert set(batch.label.unique().tolist()) <= {0, 6, 7}  # an exemplar's old classes are background
        replayed |= {name for name, old in zip(batch.extra["names"], batch.extra["from_memory"].tolist(), strict=True) if old}
    assert replayed == kept


@pytest.mark.parametrize("tags", ["released", "restored"])
def test_memory_tags_of_an_unrestored_and_of_the_previous_model_differ(tmp_path, tags, monkeypatch):
    tiny = {"data_options": {"train": 40, "heldout": 2, "test": 4}, "device": "cpu", "runs": tmp_path}
    options = {**tiny, "overrides": {"epochs": 1, "batch_size": 8, "memory": 6, "memory_tags": tags}}
    for step in range(2):
        ctx = begin("toy-5-2", "dkd", step, **options)
        fit(ctx, bar=False)
        evaluate(ctx)
    used = []
    forward = type(ctx.model).forward
    monkeypatch.setattr(type(ctx.model), "forward", lambda self, image: used.append(self) or forward(self, image))
    ctx = begin("toy-5-2", "dkd", 2, **options)
    assert used and all((model is ctx.old_model) == (tags == "restored") for model in used)
    assert not any(model.training for model in used)
