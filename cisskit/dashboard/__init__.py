"""A page over a folder of runs: choose scenario, methods, seed, step and images; everything is there at once.

`build` draws what the page shows into small files, once per run, and writes ``index.html`` beside them. The page needs no
server, no kernel and no network: a click changes which files are shown. (A Voila application would start a Python process
with torch for every visitor and compute while they wait; this opens from disk, also on a lecturer's machine without the kit.)
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cisskit.data import Batch
from cisskit.errors import KitError
from cisskit.files import write_json, write_text, written_whole
from cisskit.method import Context
from cisskit.runs import Run, find_runs
from cisskit.scenario import IGNORE
from cisskit.train import restore
from cisskit.views import masks
from cisskit.views.forgetting import old_pixels
from cisskit.views.style import ERRORS, RIGHT, in_order, method_colour, method_title
from cisskit.views.tables import protocol

Say = Callable[[str], None]
Palette = NDArray[np.uint8]

FORMAT = 1
FOLDER = "dashboard"
TEST_IMAGES, TRAINING_IMAGES = 6, 4
VOID = (155, 155, 155)
"""Colour of 255 on the page: no class has it."""


def build(runs: Path | str, *, data_root: str = "", say: Say = print) -> Path:
    """Draw what is missing or old under ``runs/dashboard`` and write the page; returns the path of ``index.html``.

    data_root: where images lie, if not where they were when the runs were made. Runs whose images or weights cannot be read
    keep their numbers and lose their pictures, with a note on the page. Raises `KitError` when no run is finished.
    """
    runs = Path(runs)
    found = find_runs(runs, lambda run: run.done and FOLDER not in run.folder.parts)
    if not found:
        raise KitError(f"no finished run under {runs}. Make some first: cisskit demo.")
    out = runs / FOLDER
    scenes: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(found, start=1):
        where = run.folder.resolve().relative_to(runs.resolve())
        scenario = "/".join(where.parts[:-3])
        panel, fresh = _panel(run, out / where, data_root)
        if fresh:
            say(f"[{number}/{len(found)}] {where}{': ' + panel['note'] if panel['note'] else ''}")
        if scenario not in scenes:
            scenes[scenario] = _scene([r for r in found if r.folder.parents[2] == run.folder.parents[2]])
        scenes[scenario]["runs"][f"{run.settings['method']}/{run.seed}/{run.step}"] = panel | {"path": where.as_posix()}
    about = {"scenes": scenes, "errors": {kind: list(words) for kind, words in ERRORS.items()}, "right": RIGHT, "void": VOID}
    page = (files(__name__) / "page.html").read_text(encoding="utf-8")
    # "</" would end the script element inside a class name or a path
    write_text(out / "index.html", page.replace("/*DATA*/null", json.dumps(about).replace("</", "<\\/")))
    return out / "index.html"


def _scene(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs of one folder share."""
    scenario = runs[0].scenario
    return {
        "title": f"{scenario.name}, {scenario.setting}",
        "protocol": protocol(runs),
        "classes": list(scenario.classes),
        "steps": [[*range(step.new.start, step.new.stop)] for step in scenario.steps],
        "methods": [{"id": m, "title": method_title(m), "colour": method_colour(m)} for m in in_order(_methods(runs))],
        "seeds": sorted({run.seed for run in runs}),
        "runs": {},
    }


def _methods(runs: Sequence[Run]) -> Iterator[str]:
    return (str(run.settings["method"]) for run in runs)


def _panel(run: Run, folder: Path, data_root: str) -> tuple[dict[str, Any], bool]:
    """What the page says of one run, and whether it had to be made now."""
    metrics = (run.folder / "metrics.json").read_bytes()
    key = hashlib.sha256(metrics + json.dumps([FORMAT, dict(run.settings)], sort_keys=True).encode()).hexdigest()
    cached = folder / "panel.json"
    try:
        panel = json.loads(cached.read_text(encoding="utf-8"))
        if panel["key"] == key and not panel["note"]:
            return panel, False
    except (OSError, ValueError, KeyError):
        pass  # not there yet, or half of one: it is made anew
    shutil.rmtree(folder, ignore_errors=True)  # everything in it was made here
    panel = {"key": key, "note": "", "palette": [], "images": [], "training": [], **_numbers(run)}
    try:
        panel |= _pictures(restore(run, data_root=data_root), folder)
    except KitError as error:
        panel["note"] = f"no pictures: {error}"
    write_json(cached, panel)
    return panel, True


def _numbers(run: Run) -> dict[str, Any]:
    metrics, step = run.metrics, run.scenario.step(run.step)
    shares = old_pixels(run.confusion, step) if step.n_old else {}
    quality = metrics.get("pseudo_labels")
    return {
        "iou": list(metrics["iou"].values()),
        "miou": {part: metrics["miou"][part] for part in ("old", "new", "all")},
        "old_pixels": {kind: None if np.isnan(share) else share for kind, share in shares.items()},
        "pseudo": quality and {k: quality[k] for k in ("coverage", "precision", "recall", "contamination", "background_truth")},
    }


def _pictures(ctx: Context, folder: Path) -> dict[str, Any]:
    """Test images with this run's masks, and training images with its targets; the same images for every method."""
    palette, colours, images = _palette(ctx), [colour for colour, _ in ERRORS.values()], []
    pictures = masks.test_pictures(ctx.data, ctx.scenario.step(len(ctx.scenario.steps) - 1), TEST_IMAGES)
    for i, (picture, said) in enumerate(zip(pictures, masks.predict(ctx, pictures, ctx.model), strict=True)):
        seen = np.where(picture.truth <= ctx.step.n_seen, picture.truth, IGNORE)
        wrong = masks.errors(picture.truth, said, ctx.step)
        names = {
            "image": _save(picture.image.permute(1, 2, 0).numpy(), folder / f"test{i}-image.png"),
            "truth": _save_labels(seen, palette, folder / f"test{i}-truth.png"),
            "said": _save_labels(said, palette, folder / f"test{i}-said.png"),
            "wrong": _save(masks.on_photo(wrong, colours, picture.image), folder / f"test{i}-wrong.png"),
        }
        images.append({"name": picture.name, **names})
    return {"palette": palette[: len(ctx.scenario.classes)].tolist(), "images": images, "training": _training(ctx, folder)}


def _training(ctx: Context, folder: Path) -> list[dict[str, str]]:
    """Images of the step as labelled, what is really there, and what the method trains on."""
    extras = [*ctx.run.settings["extras"], "truth"]
    loader = ctx.data.train(ctx.step.index, sees=ctx.method.sees, extras=extras)  # without memory: all methods show the same
    batch: Batch = masks.telling(next(loader.epoch(0, ctx.device)), ctx.step, TRAINING_IMAGES)
    loader.close()
    with torch.no_grad():
        teacher = ctx.old_model(batch.image) if ctx.old_model is not None else None
        targets = ctx.method.targets(batch, teacher, ctx)
    palette, rows = _palette(ctx), []
    labels = {"told": batch.label, "truth": batch.extra["truth"], "targets": targets}
    for i, image in enumerate(batch.image):
        files_ = {"image": _save(masks.photo(image, ctx.data.source).permute(1, 2, 0).numpy(), folder / f"train{i}-image.png")}
        for name, maps in labels.items():
            files_[name] = _save_labels(maps[i].cpu().numpy(), palette, folder / f"train{i}-{name}.png")
        rows.append(files_)
    return rows


def _palette(ctx: Context) -> Palette:
    palette = ctx.data.palette.copy()
    palette[IGNORE] = VOID
    return palette


def _save(pixels: NDArray[np.uint8], path: Path) -> str:
    return _write(Image.fromarray(pixels), path)


def _save_labels(labels: NDArray[Any], palette: Palette, path: Path) -> str:
    picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
    picture.putpalette(palette.tobytes())
    return _write(picture, path)


def _write(picture: Image.Image, path: Path) -> str:
    with written_whole(path) as beside:
        picture.save(beside, format="PNG", optimize=True)
    return path.name
