"""One contract for every method in `cisskit/methods/`, also for the eleventh."""

import copy

import pytest
import torch

from cisskit.data import Batch, Data, open_source
from cisskit.method import Context, available, configure, method_class, variants_of
from cisskit.models import FAMILIES, family
from cisskit.scenario import IGNORE, Scenario

NAMES = [name for method in available() for name in variants_of(method)]
LABELS = ("mixed", "background only", "all ignored", "new class everywhere")


def toy_context(name, scenario="toy-5-2", index=1, arch="", **fields):
    """A method just before training step ``index``, on random weights that see every class somewhere, without a run folder."""
    torch.manual_seed(0)
    task = Scenario.named(scenario)
    method, _ = configure(name, fields)
    arch = method.arch(task, arch)
    model = method.build(task, arch, None)
    for step in task.steps[1:index]:
        method.grow(model, step)
    with torch.no_grad():  # at random nothing is sure
        if model.unknown is not None:
            model.heads[-1][-1].bias[0] += 4  # there would be no pseudo-label
        elif family(arch) == "segmenter":
            model.heads[0].bias[0] += 4  # there would be no reliable background
    step, teacher = task.steps[index], None
    if index and method.sees == "step":
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
    if index:
        method.grow(model, step)
    ctx = Context(
        scenario=task, step=step, recipe=method.recipe(task, step), method=method, run=None,
        data=Data(task, open_source("toy", None, train=24, heldout=4, test=4), batch_size=8),
        device=torch.device("cpu"), seed=0, arch=arch, weights=None, old_model=teacher,
    )  # fmt: skip
    ctx.model = model.train()
    if teacher is not None:
        with torch.no_grad():
            ctx.stats = method.prepare(ctx, ctx.data.train(index).epoch(0))
    return ctx


def toy_batch(step, kind="mixed", images=2, size=32):
    g = torch.Generator().manual_seed(1)
    image = torch.randn(images, 3, size, size, generator=g)
    label = torch.randint(step.new.start, step.new.stop, (images, size, size), generator=g)
    if kind == "mixed":
        label[:, : size // 2], label[:, -3:] = 0, IGNORE
    elif kind == "background only":
        label[:] = 0
    elif kind == "all ignored":
        label[:] = IGNORE
    return Batch(image, label, {"names": [str(i) for i in range(images)], "from_memory": torch.zeros(images, dtype=torch.bool)})


def terms_of(ctx, batch):
    student = ctx.model(batch.image)
    teacher = None
    if ctx.old_model is not None:
        with torch.no_grad():
            teacher = ctx.old_model(batch.image)
    return ctx.method.losses(batch, student, teacher, ctx), student, teacher


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_losses_are_alive_and_leave_inputs_alone(name, index):
    ctx = toy_context(name, index=index)
    batch = toy_batch(ctx.step)
    student = ctx.model(batch.image)
    teacher = ctx.old_model(batch.image) if ctx.old_model is not None else None
    before = [student.scores.detach().clone(), batch.label.clone(), *([teacher.scores.clone()] if teacher else [])]
    terms = ctx.method.losses(batch, student, teacher, ctx)
    for key, term in terms.items():
        assert term.shape == () and term.isfinite(), key
        weights = [p for p in ctx.model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(term, weights, allow_unused=True, retain_graph=True) if term.requires_grad else []
        moved = any(g is not None and g.abs().max() > 0 for g in grads)
        assert moved == (key not in ctx.method.inert), f"{key} trains nothing" if not moved else f"{key} is declared inert"
    after = [student.scores, batch.label, *([teacher.scores] if teacher else [])]
    assert all(torch.equal(a, b.detach()) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_leaf_of_the_loss_belongs_to_the_model(name):
    ctx = toy_context(name)
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    owned = {id(p) for p in ctx.model.parameters()}
    seen, todo = set(), [sum(terms.values()).grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            assert id(node.variable) in owned  # else it would never be optimised, never saved
        todo += [edge for edge, _ in node.next_functions]
    assert len(seen) > 10


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(("scenario", "images"), [("toy-5-2", 2), ("toy-5-1", 1), ("toy-1-8", 2)])
def test_hard_batches_give_finite_gradients(name, kind, scenario, images):
    ctx = toy_context(name, scenario)
    ctx.model.freeze("bn")  # a batch of one image
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step, kind, images))
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in ctx.model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_is_never_trained(name):
    ctx = toy_context(name)
    if ctx.old_model is None:
        pytest.skip("has no teacher")
    before = copy.deepcopy(ctx.old_model.state_dict())
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    sum(terms.values()).backward()
    assert all(p.grad is None for p in ctx.old_model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in ctx.old_model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_learned_ids(name):
    ctx = toy_context(name)
    output = ctx.model(toy_batch(ctx.step).image)
    predicted = ctx.method.predict(output)
    assert predicted.shape == (2, 32, 32) and predicted.dtype == torch.int64
    assert predicted.min() >= 0 and predicted.max() <= ctx.step.n_seen
    assert output.logits.shape[1] == ctx.step.n_seen + 1  # channel c is label c


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [0, 1])
def test_optimizer_gets_every_trainable_parameter_once(name, index):
    ctx = toy_context(name, index=index)
    ctx.model.freeze(*ctx.recipe.freeze)
    groups = ctx.method.param_groups(ctx.model, ctx.recipe, ctx.step)
    given = [id(p) for group in groups for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) <= {id(p) for p in ctx.model.parameters() if p.requires_grad}
    assert all({"params", "lr", "weight_decay"} <= group.keys() for group in groups)
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    sum(terms.values()).backward()
    reached = {id(p) for p in ctx.model.parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached <= set(given), "a parameter gets gradients and is in no group"


@pytest.mark.parametrize("name", NAMES)
def test_weights_survive_a_step_boundary(name):
    ctx = toy_context(name, index=1)
    task, method = ctx.scenario, ctx.method
    again = method.build(task, ctx.arch, None)
    method.grow(again, task.steps[1])
    again.load_state_dict(ctx.model.state_dict())
    x = toy_batch(ctx.step).image
    assert torch.equal(again.eval()(x).scores, ctx.model.eval()(x).scores)
    method.grow(again, task.steps[2])
    assert again(x).scores.shape[1] == task.steps[2].n_seen + 1


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_who_it_is(name):
    cls = method_class(name)
    assert cls.title and cls.paper and cls.__module__.endswith(f".{name.partition('-')[0]}")
    assert "L = " in __import__(cls.__module__, fromlist=["x"]).__doc__  # its page starts with its equation


@pytest.mark.parametrize(("name", "arch"), [
    (name, FAMILIES[kind][0]) for name in available() for kind in method_class(name).families[1:]
])  # fmt: skip
def test_it_trains_on_the_other_architecture(name, arch):
    for index in (0, 1):
        ctx = toy_context(name, arch=arch, index=index)
        terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert any(p.grad is not None and p.grad.any() for p in ctx.model.backbone.parameters())


@pytest.mark.parametrize("name", available())
def test_every_ablation_changes_the_method(name):
    plain, _ = configure(name, {})
    for suffix in method_class(name).ablations:
        other, _ = configure(f"{name}-{suffix}", {})
        assert other != plain and type(other) is type(plain)
