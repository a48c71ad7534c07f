"""SSUL, IDEC, LAG, MBS and AMIS, PLOP and LwF: what their papers change in a step, and how their modes differ."""

import pytest
import torch
from test_contract import terms_of, toy_batch, toy_context

from cisskit.data import Data, open_source
from cisskit.errors import KitError
from cisskit.losses import binary_cross_entropy
from cisskit.method import configure, method_class, title_of
from cisskit.models import Output
from cisskit.pseudo import open_labels
from cisskit.replay import Exemplar
from cisskit.scenario import Scenario
from cisskit.train import begin, evaluate, fit

SMALL = {"data_options": {"train": 48, "heldout": 4, "test": 8}, "device": "cpu"}


def grads_of(ctx, term):
    named = {name: p for name, p in ctx.model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(term, list(named.values()), allow_unused=True, retain_graph=True)
    return {name for name, grad in zip(named, found, strict=True) if grad is not None and grad.any()}


# --- names ---


def test_variants_and_ablations_are_names():
    assert title_of("dkd-m") == "DKD-M" and configure("dkd-m", {})[0].memory == 100
    assert configure("dkd-m", {"memory": 3})[0].memory == 3
    assert title_of("idec") == "IDEC (released)" and title_of("idec-described") == "IDEC (described)"
    assert title_of("mbs-no-lgod") == "MBS: no lgod" and not configure("mbs-no-lgod", {})[0].lgod
    with pytest.raises(KitError, match=r"unknown variant of dkd 'n'"):
        method_class("dkd-n")


def test_a_method_refuses_a_network_that_lacks_what_it_reads():
    method, _ = configure("plop", {})
    assert method.arch(Scenario.named("toy-5-2")) == "toy" and method.arch(Scenario.named("voc-15-1")) == "deeplabv3_resnet101"
    with pytest.raises(KitError, match=r"PLOP cannot run on toy_segmenter.*toy, deeplabv3_resnet101"):
        method.arch(Scenario.named("toy-5-2"), "toy_segmenter")


# --- the unknown class: SSUL, IDEC, LAG ---


@pytest.mark.parametrize("name", ["ssul", "idec", "lag"])
def test_after_step_zero_three_heads_learn(name):
    ctx = toy_context(name, index=2)
    ctx.model.freeze(*ctx.recipe.freeze)
    learning = {n for n, p in ctx.model.named_parameters() if p.requires_grad}
    assert learning == {f"heads.{k}.{part}" for k in (0, 1, 4) for part in ("0.weight", "3.weight", "3.bias")}
    rates = {id(p): g["lr"] for g in ctx.method.param_groups(ctx.model, ctx.recipe, ctx.step) for p in g["params"]}
    new, background = (rates[id(ctx.model.heads[k][3].weight)] for k in (4, 1))
    assert background == pytest.approx(1e-4 * new) and rates[id(ctx.model.heads[0][3].weight)] == new


@pytest.mark.parametrize("name", ["idec-described", "lag-described"])
def test_described_mode_trains_the_network(name):
    ctx = toy_context(name)
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    for key in terms:
        if key.startswith("kd_l"):
            assert any(n.startswith("backbone") for n in grads_of(ctx, terms[key])), key


@pytest.mark.parametrize("name", ["idec", "lag"])
def test_modes_differ_where_they_should(name):
    released, described = toy_context(name), toy_context(f"{name}-described")
    assert released.method.inert and not described.method.inert
    assert released.method.base_key() == described.method.base_key()  # one step 0 for both
    a, b = (set(terms_of(ctx, toy_batch(ctx.step))[0]) for ctx in (released, described))
    assert b - a == {"idec": {"kd_logits", "arcl"}, "lag": {"spm"}}[name]


@pytest.mark.parametrize("name", ["ssul", "idec", "lag"])
def test_new_classes_are_born_unknown(name):
    ctx = toy_context(name)
    unknown, new = ctx.model.heads[0], ctx.model.heads[-1]
    assert torch.equal(new[3].weight, unknown[3].weight.expand_as(new[3].weight))
    assert all(torch.equal(a, b) for a, b in zip(new[1].state_dict().values(), unknown[1].state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["ssul", "idec", "lag"])
def test_saliency_decides_between_unknown_and_background(name):
    method, _ = configure(name, {"saliency": False})
    assert method.wants == () and configure(name, {})[0].wants == ("saliency",)
    ctx = toy_context(name, index=0)
    batch = next(ctx.data.train(0, extras=["saliency"]).epoch(0))
    student = ctx.model(batch.image)
    want = open_labels(batch.label, batch.extra["saliency"])
    assert {0, 1} <= set(want.unique().tolist())  # future classes are salient: unknown; the rest is background
    term = ctx.method.losses(batch, student, None, ctx)["bce" if name == "ssul" else "seg"]
    assert torch.equal(term, binary_cross_entropy(student.open_logits, want))


def test_predictions_fold_unknown_into_background():
    scores = torch.tensor([0.2, 0.9, -3.0]).view(1, 3, 1, 1)  # σ: background 0.55, class 1 0.71, class 2 0.05
    sure, unsure = (Output(scores, (1, 1), extra={"unknown": torch.full((1, 1, 1, 1), v)}) for v in (-5.0, 0.0))
    for name in ("ssul", "idec", "lag"):
        method, _ = configure(name, {})
        assert method.predict(sure).item() == 1 and method.predict(unsure).item() == 0  # 0.55 + 0.5 > 0.71


def test_targets_take_what_the_old_model_is_sure_of():
    ctx = toy_context("ssul")
    batch = toy_batch(ctx.step)
    teacher = Output(torch.full((2, 6, 32, 32), -4.0), (32, 32), extra={"unknown": torch.full((2, 1, 32, 32), -4.0)})
    teacher.scores[:, 3] = 2.0  # σ = 0.88 for class 3
    targets = ctx.method.targets(batch, teacher, ctx)
    assert (targets[batch.label == 0] == 3).all()
    assert torch.equal(targets[batch.label != 0], batch.label[batch.label != 0])


def test_ssul_memory_shows_all_classes_seen(tmp_path):
    options = {**SMALL, "runs": tmp_path, "overrides": {"epochs": 1, "batch_size": 8, "memory": 6}}
    for step in range(3):
        ctx = begin("toy-5-2", "ssul-m", step, **options)
        fit(ctx, bar=False)
        evaluate(ctx)
        assert len(ctx.memory) == (6 if step else 0)
    again = begin("toy-5-2", "ssul-m", 2, **options)
    assert again.memory == ctx.memory and all(isinstance(e, Exemplar) for e in again.memory)


def test_released_memory_labels_are_one_channel_low():
    ctx = toy_context("ssul", memory_labels="released")
    batch = toy_batch(ctx.step)
    batch.extra["from_memory"] = torch.tensor([True, False])
    y = ctx.method._targets(batch, None)
    assert torch.equal(y[0], batch.label[0]) and torch.equal(y[1], open_labels(batch.label[1:])[0])


# --- IDEC ---


def test_arcls_merge_reaches_the_segmentation_loss():
    plain, merged = toy_context("idec"), toy_context("idec", arcl="released")
    batch = toy_batch(plain.step)
    a, b = (terms_of(ctx, batch)[0]["seg"] for ctx in (plain, merged))
    assert not torch.equal(a, b)


def test_class_dynamic_thresholds_follow_and_are_saved():
    ctx = toy_context("idec", pseudo="class_dynamic")
    batch = toy_batch(ctx.step, "background only")
    kept = ctx.model.aux["thresholds"].median
    assert torch.equal(kept, torch.full((5,), 0.7))
    teacher = Output(torch.full((2, 6, 32, 32), -4.0), (32, 32), extra={"unknown": torch.full((2, 1, 32, 32), -4.0)})
    teacher.scores[:, 2] = 0.0  # class 2 wins everywhere with 0.5
    ctx.method._follow(batch, teacher, ctx)
    assert kept[1].item() == pytest.approx(0.99 * 0.7 + 0.01 * 0.5) and (kept[[0, 2, 3, 4]] == 0.7).all()
    assert "aux.thresholds.median" in ctx.model.state_dict()


# --- LAG ---


def test_prototypes_are_class_means_of_the_old_model_and_travel_on():
    ctx = toy_context("lag-described")
    solid = ctx.model.aux["prototypes"]
    assert solid.mean.shape == (6, ctx.model.channels) and (solid.count[1:] > 0).all() and solid.count[0] == 0
    total, count = torch.zeros(ctx.model.channels), 0
    with torch.no_grad():
        for batch in ctx.data.train(0).epoch(0, whole=True):
            f = ctx.old_model(batch.image).features["decoder"]
            where = batch.label[:, :: 64 // f.shape[2], :: 64 // f.shape[3]] == 2
            total += f.permute(0, 2, 3, 1)[where].sum(dim=0)
            count += int(where.sum())
    torch.testing.assert_close(solid.mean[2], total / count)
    first = solid.mean.clone()
    ctx.method.grow(ctx.model, ctx.scenario.steps[2])
    later = ctx.model.aux["prototypes"].mean
    assert later.shape[0] == 8 and torch.equal(later[:6], first) and not later[6:].any()


def test_data_limited_steps_keep_the_first_images():
    task = Scenario.named("toy-5-2")
    source = open_source("toy", None, train=64, heldout=4, test=4)
    whole, limited = (Data(task, source, batch_size=4, ratio=ratio) for ratio in (1.0, 0.5))
    for step in range(3):
        names, kept = whole.train(step).names, limited.train(step).names
        assert kept == (names if step == 0 else names[: round(0.5 * len(names))])


# --- MBS and AMIS ---


@pytest.mark.parametrize("name", ["mbs", "amis"])
def test_new_tokens_are_the_background_token(name):
    ctx = toy_context(name)
    rows = ctx.model.class_rows()
    assert torch.equal(rows[6], rows[0]) and torch.equal(rows[7], rows[0]) and not torch.equal(rows[1], rows[0])


def test_amis_without_its_changes_is_mbs():
    mbs, amis = toy_context("mbs"), toy_context("amis", gab=False, decoder_blocks=2, al=False, ocl=False)
    state = mbs.model.state_dict()
    assert state.keys() == amis.model.state_dict().keys()
    amis.model.load_state_dict(state)
    amis.old_model.load_state_dict(mbs.old_model.state_dict())
    batch = toy_batch(mbs.step)
    a, b = (terms_of(ctx, batch)[0] for ctx in (mbs, amis) if ctx.model.eval())
    pairs = {"ce": "ce", "afd_patch": "amd", "lgod": "od", "ortho": "ortho"}
    assert set(a) == {*pairs, "afd_cls"} and set(b) == set(pairs.values())
    assert all(torch.equal(a[ours], b[theirs]) for ours, theirs in pairs.items())


def test_mbs_on_a_cnn_has_no_class_embeddings():
    ctx = toy_context("mbs", arch="toy")
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    assert set(terms) == {"ce", "afd_patch", "lgod", "ortho"}
    assert any(n.startswith("heads.1") for n in grads_of(ctx, terms["ortho"]))


def test_mbs_switched_off_is_its_own_baseline():
    ctx = toy_context("mbs-baseline")
    terms, _, _ = terms_of(ctx, toy_batch(ctx.step))
    assert set(terms) == {"ce", "afd_patch", "afd_cls", "kd"}


# --- LwF-MC, PLOP ---


def test_lwf_mc_sums_over_classes():
    ctx = toy_context("lwf-mc")
    batch = toy_batch(ctx.step)
    terms, student, teacher = terms_of(ctx, batch)
    z, old = student.logits, student.logits[:, :6]
    one_hot = torch.zeros_like(z).scatter_(1, batch.label.clamp(max=7).unsqueeze(1), 1.0)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(z, one_hot, reduction="none").sum(dim=1)
    assert terms["bce"].item() == pytest.approx(bce[batch.label != 255].sum().item() / batch.label.numel(), rel=1e-5)
    kd = torch.nn.functional.binary_cross_entropy_with_logits(old, teacher.logits.sigmoid())
    assert terms["kd"].item() == pytest.approx(10 * 6 * kd.item(), rel=1e-5)


def test_plop_has_a_threshold_per_class_and_weighs_images():
    ctx = toy_context("plop")
    assert ctx.stats["thresholds"].shape == (8,)
    batch = toy_batch(ctx.step)
    with torch.no_grad():
        teacher = ctx.old_model(batch.image)
    y, share = ctx.method._settled(batch, teacher, ctx)
    assert share.shape == (2,) and ((share >= 0) & (share <= 1)).all()
    assert torch.equal(y[batch.label >= 6], batch.label[batch.label >= 6])


# --- other data sets ---


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "rates", "schedule"),
    [
        ("ft", 60, 24, (0.01, 0.001), "poly"), ("mib", 60, 24, (0.01, 0.001), "poly"), ("plop", 60, 24, (0.01, 0.001), "poly"),
        ("ssul", 100, 24, (1e-3, 5e-3), "warm_poly_floor"), ("dkd", 100, 24, (2.5e-3, 2.5e-4), "warm_poly"),
        ("idec", 50, 12, (1e-3, 1e-3), "poly_floor"), ("lag", 30, 12, (1e-3, 1e-3), "poly_floor"),
        ("mbs", 64, 8, (1e-3, 5e-4), "constant"), ("amis", 64, 8, (1e-3, 5e-4), "constant"),
    ],
)  # fmt: skip
def test_recipes_on_ade20k(name, epochs, batch, rates, schedule):
    scenario = Scenario.named("ade-100-50")
    method, _ = configure(name, {}, "ade")
    recipes = [method.recipe(scenario, step) for step in scenario.steps]
    assert [(r.epochs, r.batch_size, r.schedule) for r in recipes] == [(epochs, batch, schedule)] * 2
    assert tuple(r.lr for r in recipes) == pytest.approx(rates)


def test_fields_that_papers_set_otherwise_on_ade20k():
    assert configure("dkd", {}, "ade")[0].pos_weight == (35.0, 35.0) and configure("dkd", {})[0].pos_weight == (2.0, 1.0)
    assert [configure(name, {}, "ade")[0].memory for name in ("dkd", "dkd-m", "ssul-m")] == [0, 300, 300]
    assert configure("dkd-m", {"memory": 7, "pos_weight": (1.0, 1.0)}, "ade")[0].memory == 7
    assert configure("mbs-no-lgod", {}, "ade")[0].lambda_od == 50.0 and not configure("mbs-no-lgod", {}, "ade")[0].lgod
    assert configure("amis", {}, "ade")[0].ocl_batch_factor == 2
    plop, _ = configure("plop", {}, "ade")
    assert (plop.factor_features, plop.factor_logits) == (0.001, 0.00001)


def test_data_without_a_published_recipe_use_that_of_voc():
    isprs, published = (Scenario.named(f"{name}-4-1") for name in ("isprs", "isprs_compat"))
    for name in ("dkd", "idec"):
        method, _ = configure(name, {})
        recipe = method.recipe(Scenario.named("voc-15-1"), isprs.step(1))
        assert method.recipe(isprs, isprs.step(1)) == recipe == method.recipe(published, published.step(1))
