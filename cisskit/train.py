"""The one place that trains: `begin` a step, `fit` it, `evaluate` it. It knows the contract and names no method."""

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cisskit.data import Batch, Data, Source, TrainLoader, open_source, read_scenario
from cisskit.errors import KitError
from cisskit.files import write_json, write_text, written_whole
from cisskit.method import Context, Method, Recipe, changed, checked, configure, for_step, settings_of
from cisskit.metrics import ConfusionMatrix, PseudoLabelQuality, class_iou, mean_iou, summarise
from cisskit.models import Model, Output
from cisskit.protocols import Protocol
from cisskit.protocols import protocol as choose
from cisskit.replay import Exemplar
from cisskit.runs import Run, digest, folder_of, load_tensors, save_tensors
from cisskit.scenario import DATASETS, Scenario
from cisskit.schedules import one_cycle, poly, poly_lr, warm_poly

CHOSEN = "checkpoint.json"
"""Which iteration a protocol that chooses its checkpoint has kept."""
LOG_EVERY = 20  # iterations between two looks at the losses; a look waits for the device

SCHEDULES: dict[str, Callable[[float, int, int], float]] = {  # (base rate, iteration, iterations) -> rate
    "poly": lambda base, k, K: base * poly(k, K),
    "poly_floor": poly_lr,
    "warm_poly": lambda base, k, K: base * warm_poly(k, K),
    "warm_poly_floor": lambda base, k, K: max(base * warm_poly(k, K, warmup=0.1), 1e-6),
    "constant": lambda base, k, K: base,
    "one_cycle": lambda base, k, K: base * one_cycle(k, K),
}


def plan(
    scenario: str,
    method: str,
    step: int,
    *,
    setting: str = "overlap",
    seed: int = 0,
    arch: str = "",
    weights: str = "imagenet",
    data_root: str = "",
    data_options: Mapping[str, Any] | None = None,
    protocol: str = "clean",
    eval_size: str = "",
    overrides: Mapping[str, Any] | None = None,
    runs: Path | str = "runs",
    source: Source | None = None,
) -> tuple[Method, Recipe, Data, dict[str, Any]]:
    """Everything that decides the result of one step, checked, before anything is written or trained.

    scenario, setting: see `Scenario.named`. arch: "" is the paper's network, a small one of its kind on the scenes.
    weights: "imagenet", "none" or a file. protocol: how the result is scored, see `cisskit.protocols`; eval_size: another
    size than the protocol's. overrides: fields of the method or of its recipe, see `for_step`. runs: where the step before
    is looked up. source: the data set, if it is open already. Returns the method, its recipe, the data and the run's settings
    (JSON values).
    Raises `KitError` for anything unknown or missing.
    """
    task = read_scenario(scenario, setting=setting, root=data_root)
    rules = choose(protocol, task, eval_size=eval_size)
    now = task.step(step)
    paper, changes = configure(method, for_step(overrides or {}, step), task.dataset)
    arch = paper.arch(task, arch)
    recipe = changed(paper.recipe(task, now), changes)
    data = _data(task, recipe, data_root, data_options or {}, rules, seed, source)
    extras = [*paper.needs, *(name for name in paper.wants if data.offers(name))]
    settings: dict[str, Any] = {
        "scenario": task.text,
        "setting": setting,
        "labels": None if task.dataset in DATASETS else asdict(task.labels),
        "protocol": rules.settings(),
        "method": method,
        "step": step,
        "seed": seed,
        "arch": arch,
        "weights": None if arch.startswith("toy") else _weights_key(weights),
        "recipe": settings_of(recipe),
        "fields": settings_of(paper),
        "base": paper.base_key(),
        "data": data.describe(extras),
        "extras": extras,
        "options": dict(data_options or {}),
        "previous": None,
    }
    if step > 0:
        before = folder_of(Path(runs), task, protocol, method, seed, step - 1)
        settings["previous"] = digest(dict(Run.load(before).settings)) if (before / "config.json").exists() else "missing"
    return paper, recipe, data, json.loads(json.dumps(settings))  # tuples become lists here, as they do in config.json


def begin(
    scenario: str,
    method: str,
    step: int,
    *,
    runs: Path | str = "runs",
    weights: str = "imagenet",
    device: str = "",
    **options: Any,
) -> Context:
    """Open the run of one step and set up its networks: teacher copied and frozen, new head born, statistics gathered.

    Arguments as in `plan`; device "" is the GPU when there is one. A step 0 that another method has trained already is
    taken over; a finished step is opened with its weights. Raises `KitError` as `plan` and `Run.open` do.
    """
    paper, recipe, data, settings = plan(scenario, method, step, runs=runs, weights=weights, **options)
    run = Run.open(runs, settings)
    ctx = _context(run, paper, recipe, data, device, None if weights == "none" else weights)
    run.record(place={"data_root": str(options.get("data_root", ""))})  # all is well: from here on there is a run
    if run.adopt() or (run.folder / "model.safetensors").exists():
        ctx.model.load_state_dict(run.weights())
    if ctx.step.index > 0:
        ctx.memory = _memory(ctx)
        _seed(ctx, "prepare")
        with torch.no_grad():
            ctx.stats = paper.prepare(ctx, train_loader(ctx).epoch(0, ctx.device))
    return ctx


def restore(run: Run, *, data_root: str = "", device: str = "cpu") -> Context:
    """A finished run with its model and teacher, for views: nothing is trained or written.

    data_root: where its images lie; "" is where they were when the run was made.
    """
    settings = run.settings
    paper, _ = configure(settings["method"], settings["fields"])
    recipe = checked(Recipe, settings["recipe"], "recipe")
    root = data_root or run.place.get("data_root", "")
    data = _data(run.scenario, recipe, root, settings["options"], run.protocol, run.seed)
    ctx = _context(run, paper, recipe, data, device, None)
    ctx.model.load_state_dict(run.weights())
    return ctx


def _data(
    scenario: Scenario, recipe: Recipe, root: str, options: Mapping[str, Any], rules: Protocol, seed: int,
    source: Source | None = None,
) -> Data:  # fmt: skip
    source = source or open_source(scenario.dataset, root or None, **options)
    return Data(
        scenario, source, crop=recipe.crop, augment=recipe.augment, ratio=recipe.ratio, protocol=rules,
        batch_size=recipe.batch_size, seed=seed,
    )  # fmt: skip


def _context(run: Run, method: Method, recipe: Recipe, data: Data, device: str, weights: str | None) -> Context:
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda":  # a GPU is fed by loader processes; on a CPU they would take the cores that train
        data.workers = min(16, os.cpu_count() or 1)
    ctx = Context(
        scenario=run.scenario, step=run.scenario.step(run.step), recipe=recipe, method=method, run=run, data=data,
        device=where, seed=run.seed, arch=run.settings["arch"], weights=weights,
    )  # fmt: skip
    _seed(ctx, "networks")
    ctx.old_model, ctx.model = _networks(ctx)
    return ctx


def train_loader(ctx: Context, *, truth: bool = False) -> TrainLoader:
    """This step's training batches as `fit` sees them; truth adds the true learned ids as ``extra["truth"]``."""
    extras = [*ctx.run.settings["extras"], *(["truth"] if truth else [])]
    memory = [exemplar.name for exemplar in ctx.memory]
    return ctx.data.train(ctx.step.index, sees=ctx.method.sees, memory=memory, replay=ctx.method.replay, extras=extras)


def fit(ctx: Context, *, bar: bool = True) -> pd.DataFrame:
    """Train the step, or continue it from its last epoch; returns the history, one row per iteration.

    Every epoch is a pure function of (weights, optimizer, seed, step, epoch), so a continued run ends with the weights
    of an uninterrupted one. Raises `KitError` when a loss term is not finite: the last good checkpoint stays.
    """
    if not (ctx.run.folder / "model.safetensors").exists():
        with ctx.run.locked():
            _train(ctx, bar)
    return ctx.run.history


def _train(ctx: Context, bar: bool) -> None:
    run, recipe, model, method, step = ctx.run, ctx.recipe, ctx.model, ctx.method, ctx.step
    loader = train_loader(ctx)
    total = recipe.epochs * loader.batches_per_epoch
    rate_at = SCHEDULES[recipe.schedule]
    optimizer = _optimizer(method.param_groups(model, recipe, step), recipe)
    rates = [group["lr"] for group in optimizer.param_groups]
    log = _Log(ctx)
    best = _Best(ctx, total)
    done = _resume(ctx, optimizer, log, best)
    checkpoint = run.folder / "checkpoint.safetensors"
    model.train()
    shared = _share_trunk(ctx)
    with tqdm(
        total=total,
        initial=done * loader.batches_per_epoch,
        disable=not bar,
        desc=f"{method.title} step {step.index}",
        mininterval=0.5,
    ) as tick:
        for epoch in range(done, recipe.epochs):
            began = time.perf_counter()
            _seed(ctx, f"epoch {epoch}")
            model.train()
            for i, batch in enumerate(loader.epoch(epoch, ctx.device)):
                k = epoch * loader.batches_per_epoch + i
                ctx.progress = k / total
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate_at(rate, k, total)
                with torch.autocast(ctx.device.type, torch.bfloat16, enabled=ctx.device.type == "cuda"):
                    student, teacher = _outputs(ctx, batch.image, shared)
                terms = method.losses(batch, student, teacher, ctx)
                optimizer.zero_grad(set_to_none=True)
                torch.stack(list(terms.values())).sum().backward()
                optimizer.step()
                log.add(epoch, k, optimizer.param_groups[-1]["lr"], terms, batch.extra["names"])
                tick.update()
                best.look(k + 1)
                if (k + 1) % LOG_EVERY == 0:
                    log.settle()
                    tick.set_postfix(loss=f"{log.last:.3f}")
            log.settle()
            seconds = time.perf_counter() - began
            run.note(epoch=epoch + 1, epochs=recipe.epochs, loss=log.last, seconds=round(seconds, 2))
            if epoch + 1 < recipe.epochs:
                about = {"settings": run.settings, "epochs": epoch + 1, "terms": log.names, "best": best.note()}
                save_tensors(checkpoint, _state(model, optimizer, log, best), about)
    loader.close()
    ctx.progress = 1.0
    write_text(run.folder / "history.csv", log.table().to_csv(index=False, float_format="%.6g"))
    if best.weights:
        write_json(run.folder / CHOSEN, best.note())
        model.load_state_dict(best.weights)
    save_tensors(run.folder / "model.safetensors", model.state_dict(), run.settings)
    checkpoint.unlink(missing_ok=True)


def _share_trunk(ctx: Context) -> bool:
    """Whether student and teacher have one and the same frozen backbone, so that it need not run twice."""
    old, new = (m.backbone if m is not None else None for m in (ctx.old_model, ctx.model))
    if old is None or new is None or any(p.requires_grad for p in new.parameters()):
        return False
    norms = (m for m in new.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if any(m.training for m in norms) or any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in new.modules()):
        return False
    return all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), old.state_dict().values(), strict=True))


def _outputs(ctx: Context, image: Tensor, shared: bool) -> tuple[Output, Output | None]:
    """What student and teacher say; with a shared trunk, which no gradient enters, from one pass through it."""
    if ctx.old_model is None:
        return ctx.model(image), None
    if not shared:
        student = ctx.model(image)
        with torch.no_grad():
            return student, ctx.old_model(image)
    size = (image.shape[2], image.shape[3])
    with torch.no_grad():
        trunk = ctx.model.trunk(image)
        teacher = ctx.old_model.read(trunk, size)
    return ctx.model.read(trunk, size), teacher


def evaluate(ctx: Context) -> dict[str, Any]:
    """Score the step on the test images, write confusion.npy and metrics.json, return the metrics.

    One confusion matrix over the whole set, on the device; its rows keep classes that have not arrived yet, so that
    every convention can be computed from the file. Values are fractions in [0, 1].
    """
    run = ctx.run
    if run.done:
        return run.metrics
    if not (run.folder / "model.safetensors").exists():
        raise KitError(f"{run.folder} has no trained model yet; call fit(ctx) before evaluate(ctx).")
    counter = ConfusionMatrix(len(ctx.scenario.classes), device=ctx.device)
    images, began = 0, time.perf_counter()
    for batch, predicted in predictions(ctx, ctx.model, which=run.protocol.test_images):
        counter.update(batch.label, predicted)
        images += len(batch.label)
    seconds = time.perf_counter() - began
    confusion = counter.numpy()
    earlier = _earlier(run)
    metrics = summarise(confusion, ctx.scenario, ctx.step, run.protocol, earlier=earlier)
    metrics |= {
        "test_images": images,
        "train_images": train_loader(ctx).n_images,
        "exemplars": len(ctx.memory),
        "protocol": run.protocol.label,
        "eval_size": run.protocol.eval_size,
        "checkpoint": _checkpoint_note(run),
        "seconds_evaluation": round(seconds, 2),
        "device": _device_name(ctx.device),
    }
    if ctx.step.index > 0 and type(ctx.method).targets is not Method.targets:
        metrics["pseudo_labels"] = _pseudo_labels(ctx)
    with written_whole(run.folder / "confusion.npy") as beside, beside.open("wb") as file:
        np.save(file, confusion, allow_pickle=False)
    write_json(run.folder / "metrics.json", metrics)
    (run.folder / "progress.jsonl").unlink(missing_ok=True)
    return run.metrics


def predictions(ctx: Context, model: Model, *, which: str = "all", use: str = "truth") -> Iterator[tuple[Batch, Tensor]]:
    """(batch, predicted (B, H, W) learned ids) over test images; ``batch.label`` holds the truth over all classes.

    which, use: see `Data.test`.
    """
    model.eval()
    with torch.inference_mode(), torch.autocast(ctx.device.type, torch.bfloat16, enabled=ctx.device.type == "cuda"):
        for batch in ctx.data.test(ctx.step.index, which=which, device=ctx.device, use=use):
            yield batch, ctx.method.predict(model(batch.image))


class _Best:
    """The checkpoint rule "best" of `Protocol`: weights, score and iteration of the best look at the current classes."""

    def __init__(self, ctx: Context, total: int) -> None:
        self.ctx = ctx
        self.rule = ctx.run.protocol.checkpoint
        self.every = max(100, total // ctx.run.protocol.looks)
        self.iteration, self.score = 0, -1.0  # before the first iteration: whatever is looked at wins
        self.weights: dict[str, Tensor] = self._copy() if self.rule == "best" else {}

    def look(self, done: int) -> None:
        """After ``done`` iterations: score the model when the rule asks for it, and remember its weights if they are the best."""
        if self.rule == "last" or done % self.every:
            return
        ctx, rules = self.ctx, self.ctx.run.protocol
        counter = ConfusionMatrix(ctx.step.n_seen + 1, device=ctx.device)
        for batch, predicted in predictions(ctx, ctx.model, which="current", use="train"):
            counter.update(batch.label, predicted)
        current = ctx.step.new if ctx.step.index > 0 else slice(0, ctx.step.n_seen + 1)
        score = mean_iou(class_iou(counter.numpy(), rules.absent, rules.epsilon), current)
        if score > self.score:
            self.iteration, self.score, self.weights = done, score, self._copy()
        ctx.model.train()

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.ctx.model.state_dict().items()}

    def note(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "score": self.score if self.score >= 0 else None}


def _networks(ctx: Context) -> tuple[Model | None, Model]:
    """(teacher, student) at the start of the step; the teacher is None at step 0 and for the joint bound."""
    fresh = ctx.step.index == 0 or ctx.method.sees == "seen"
    model = ctx.method.build(ctx.scenario, ctx.arch, ctx.weights if fresh else None)
    for step in ctx.scenario.steps[1 : ctx.step.index + (1 if fresh else 0)]:
        ctx.method.grow(model, step)
    teacher = None
    if not fresh:
        previous = ctx.run.previous
        assert previous is not None
        model.load_state_dict(previous.weights())
        teacher = copy.deepcopy(model).to(ctx.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        ctx.method.grow(model, ctx.step)
    model = model.to(ctx.device).to(memory_format=torch.channels_last)
    model.freeze(*ctx.recipe.freeze)
    return teacher, model


def _memory(ctx: Context) -> list[Exemplar]:
    """Exemplars for this step, from memory.json or chosen now."""
    file = ctx.run.folder / "memory.json"
    if not file.exists():
        previous = ctx.run.previous
        assert previous is not None
        _seed(ctx, "memory")
        with torch.no_grad():
            chosen = ctx.method.exemplars(ctx, _read_memory(previous.folder / "memory.json"))
        if not chosen:
            return []
        write_json(file, [{"name": e.name, "classes": list(e.classes)} for e in chosen])
    return _read_memory(file)


def _read_memory(file: Path) -> list[Exemplar]:
    if not file.exists():
        return []
    return [Exemplar(e["name"], tuple(e["classes"])) for e in json.loads(file.read_text(encoding="utf-8"))]


def _optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    groups = [group for group in groups if group["params"]]  # a frozen part leaves an empty one
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)


def _state(model: Model, optimizer: torch.optim.Optimizer, log: "_Log", best: "_Best") -> dict[str, Tensor]:
    """Model, optimizer and history as flat tensors, for a safetensors checkpoint."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"best.{k}": v for k, v in best.weights.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in entry.items() if v is not None}
    return tensors | {"history": torch.tensor(log.rows, dtype=torch.float64)}


def _resume(ctx: Context, optimizer: torch.optim.Optimizer, log: "_Log", best: "_Best") -> int:
    """Load the checkpoint of an interrupted step, if there is one; returns the epochs that are done."""
    file = ctx.run.folder / "checkpoint.safetensors"
    if not file.exists():
        return 0
    tensors, about = load_tensors(file)
    ctx.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, entry in optimizer.state.items():
        for name, value in entry.items():  # the fused kernels walk memory: a moment must lie as its (channels-last) weight does
            if value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter).copy_(value)
    log.names, log.rows = about["terms"], tensors["history"].tolist()
    best.weights = {k.removeprefix("best."): v.to(ctx.device) for k, v in tensors.items() if k.startswith("best.")}
    best.iteration, best.score = about["best"]["iteration"], -1.0 if about["best"]["score"] is None else about["best"]["score"]
    return about["epochs"]


class _Log:
    """Loss terms per iteration. They stay on the device until `settle`, which looks at them once and checks them."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.names: list[str] = []
        self.rows: list[list[float]] = []
        self._pending: list[tuple[list[float], Tensor, list[str]]] = []

    @property
    def last(self) -> float:
        """Sum of the terms at the last settled iteration."""
        return sum(self.rows[-1][3:])

    def add(self, epoch: int, iteration: int, lr: float, terms: Mapping[str, Tensor], images: list[str]) -> None:
        self.names = self.names or list(terms)
        self._pending.append(([epoch, iteration, lr], torch.stack([terms[name].detach() for name in self.names]), images))

    def settle(self) -> None:
        if not self._pending:
            return
        values = torch.stack([v for _, v, _ in self._pending]).double().cpu()
        for (head, _, images), row in zip(self._pending, values.tolist(), strict=True):
            bad = [name for name, value in zip(self.names, row, strict=True) if not np.isfinite(value)]
            if bad:
                raise KitError(
                    f"loss term {', '.join(bad)} is not finite at epoch {head[0]:.0f}, iteration {head[1]:.0f} (images "
                    f"{', '.join(images[:8])}). Training stopped; {self._good()}. Lower lr, or look at these images."
                )
            self.rows.append(head + row)
        self._pending.clear()

    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(self.rows, columns=["epoch", "iteration", "lr", *self.names])
        return table.astype({"epoch": int, "iteration": int})

    def _good(self) -> str:
        file = self.ctx.run.folder / "checkpoint.safetensors"
        return f"the last good checkpoint is {file}" if file.exists() else "no epoch had been finished"


def _pseudo_labels(ctx: Context) -> dict[str, Any]:
    """How good the method's own targets are on this step's training images; the truth is used for reporting only."""
    quality = PseudoLabelQuality(ctx.scenario, ctx.step)
    assert ctx.old_model is not None
    _seed(ctx, "pseudo-labels")
    with torch.no_grad():
        for batch in train_loader(ctx, truth=True).epoch(0, ctx.device, whole=True):
            targets = ctx.method.targets(batch, ctx.old_model(batch.image), ctx)
            quality.update(batch.extra["truth"], batch.label, targets)
    return quality.result()


def _earlier(run: Run) -> list[list[float | None]]:
    """IoU per class in learned order after every earlier step of the chain."""
    ious = [before.metrics["iou"] for before in run.chain[:-1]]
    return [[iou[name] for name in run.scenario.classes if name in iou] for iou in ious]


def _seed(ctx: Context, purpose: str) -> None:
    """Give torch's generator a state that depends on the run and the purpose alone, never on what ran before."""
    text = f"{ctx.seed}/{ctx.step.index}/{purpose}"
    torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)


def _weights_key(weights: str) -> Any:
    """What decides about the weights: torchvision's name, or the content of the file, wherever it lies."""
    if weights in ("none", "imagenet"):
        return None if weights == "none" else weights
    path = Path(weights)
    if not path.is_file():
        raise KitError(f"no weights at {weights}. Pass the path of a state-dict file, 'imagenet', or 'none' for random weights.")
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}


def _checkpoint_note(run: Run) -> dict[str, Any]:
    """Which weights were scored: the rule, and under "best" the iteration and its score on the current classes."""
    file = run.folder / CHOSEN
    rule = {"rule": run.protocol.checkpoint}
    return rule | json.loads(file.read_text(encoding="utf-8")) if file.exists() else rule


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} thread(s)"


__all__ = ["begin", "evaluate", "fit", "plan", "predictions", "restore", "train_loader"]
