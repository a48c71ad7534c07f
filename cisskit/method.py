"""The contract between a paper and the training loop.

A method is one file in `cisskit/methods/` that defines ``METHOD``, a frozen dataclass derived from `Method`. Its fields
are the paper's hyper-parameters; it overrides the verbs that its paper changes. `fit` knows this class and no paper.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from cisskit import methods as method_files
from cisskit.errors import KitError, unknown
from cisskit.models import FAMILIES, Model, Output, create, family, trainable
from cisskit.scenario import Scenario, Step

if TYPE_CHECKING:
    from cisskit.data import Batch, Data
    from cisskit.replay import Exemplar
    from cisskit.runs import Run

STRICT = ConfigDict(extra="forbid", strict=False)


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """How one step is trained. Fields hold the values of a paper or of the scenes; every one of them is overridable.

    lr is the backbone's; decoder and heads learn ``head_factor`` times as fast. schedule: ``poly`` (1 - k/K)^0.9 per
    iteration; ``poly_floor`` the same, never below 1e-6; ``warm_poly`` after a linear warm-up over the first fifth (DKD on
    ADE20K); ``warm_poly_floor`` over the first tenth and never below 1e-6 (SSUL on ADE20K); ``constant``; ``one_cycle`` up and
    down once. crop: side of the random training crops in pixels, None takes images as they are. augment: how a crop is found;
    ``area`` a random area and aspect ratio, resized (MiB, PLOP, DKD); ``scale`` the image scaled by 0.5 to 2, then cut, padded
    with background where it is too small (SSUL, IDEC, LAG); ``shorter_scale`` with the shorter side resized to the crop before
    (MBS, AMIS). freeze: parts that `Model.freeze` keeps still during this step. ratio: the share of their images that steps
    after the first train on (LAG's data-limited protocol).
    """

    epochs: int
    batch_size: int
    lr: float
    head_factor: float = 1.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["poly", "poly_floor", "warm_poly", "warm_poly_floor", "constant", "one_cycle"] = "poly"
    weight_decay: float = 1e-4
    crop: int | None = 512
    augment: Literal["area", "scale", "shorter_scale"] = "area"
    freeze: tuple[str, ...] = ()
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0 or not 0 < self.ratio <= 1:
            raise ValueError(f"epochs and batch_size are at least 1, lr is positive and ratio in (0, 1], not {self}")


SCENES = (
    Recipe(epochs=8, batch_size=16, lr=6e-3, optimizer="adamw", schedule="one_cycle", crop=None),
    Recipe(epochs=4, batch_size=16, lr=4e-3, optimizer="adamw", schedule="one_cycle", crop=None, freeze=("bn",)),
)
"""The embedded scenes, one rule for all methods: a network from scratch in seconds, batch norm frozen after step 0."""


@plain_dataclass
class Context:
    """What a method may look at during a step."""

    scenario: Scenario
    step: Step
    recipe: Recipe
    method: "Method"
    run: "Run"
    data: "Data"
    device: torch.device
    seed: int
    arch: str
    weights: str | None  # of the backbone before step 0
    model: Model = field(init=False)
    old_model: Model | None = None  # frozen copy of the model after the previous step; None at step 0
    memory: "list[Exemplar]" = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)  # what `Method.prepare` returned
    progress: float = 0.0  # share of this step's iterations done, 0..1


class Method:
    """One paper. Derive, decorate with ``@dataclass(frozen=True, config=STRICT)``, override what the paper changes."""

    title: ClassVar[str] = ""
    """Name as the field writes it, e.g. "MiB"."""
    paper: ClassVar[str] = ""
    """Title, venue and year."""
    recipes: ClassVar[Mapping[str, tuple[Recipe, Recipe]]] = {}
    """Data set -> recipes of step 0 and of the later steps, as published. Other data are trained by VOC's."""
    on: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Data set -> fields that the paper sets otherwise there; ``"ade-m"``: further ones of the variant "m"."""
    sees: ClassVar[Literal["step", "seen"]] = "step"
    """"seen": images and labels of all steps so far, trained anew at every step (the joint upper bound)."""
    families: ClassVar[tuple[str, ...]] = ("cnn", "segmenter")
    """Families of `cisskit.models.FAMILIES` that its terms allow; the first is the paper's."""
    replay: ClassVar[Literal["pool", "half"]] = "pool"
    """How exemplars are trained with, see `Data.train`."""
    modes: ClassVar[Mapping[str, str]] = {}
    """Of a method with a field ``mode``: what each says about a number, in one sentence for notebooks and reports."""
    variants: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    """Further names under which it runs: suffix -> title and fields, e.g. ``{"m": ("DKD-M", {"memory": 100})}`` is dkd-m."""
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What breaks without it: suffix -> the fields that switch a part off or over. They run under a name of their own, too."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Extras that the data must bring, e.g. ("saliency",)."""
        return ()

    @property
    def wants(self) -> tuple[str, ...]:
        """Extras that it uses where the data have them, e.g. ("saliency",); the settings of a run say whether they had."""
        return ()

    @property
    def inert(self) -> frozenset[str]:
        """Published terms that train nothing; they are logged, and a test holds them to it."""
        return frozenset()

    @property
    def id(self) -> str:
        return type(self).__module__.rsplit(".", 1)[-1]

    def arch(self, scenario: Scenario, asked: str = "") -> str:
        """The network to use: ``asked``, or the paper's, which is a small one on the scenes.

        Raises `KitError` for an unknown architecture and for one that lacks what the method's terms read.
        """
        if not asked:
            return FAMILIES[self.families[0]][0 if scenario.dataset == "toy" else 1]
        if family(asked) not in self.families:
            fit = [arch for name in self.families for arch in FAMILIES[name]]
            raise KitError(
                f"{self.title} cannot run on {asked}: its terms read what only {', '.join(fit)} have. Use one of them."
            )
        return asked

    def recipe(self, scenario: Scenario, step: Step) -> Recipe:
        """The paper's recipe for this data set; for data that it does not know, its recipe for VOC."""
        recipes = {"toy": SCENES, **self.recipes}
        dataset = scenario.dataset.removesuffix("_compat")
        first = step.index == 0 or self.sees == "seen"  # trained anew: each step is a step 0
        return recipes[dataset if dataset in recipes else "voc"][0 if first else 1]

    def build(self, scenario: Scenario, arch: str, weights: str | None) -> Model:
        """The network before step 0: one head for background and base classes."""
        model = create(arch, weights)
        model.add_head(1 + scenario.steps[0].n_new)
        return model

    def grow(self, model: Model, step: Step) -> None:
        """Make room for the classes of ``step`` (> 0); the teacher has been copied already. Default: a random head."""
        model.add_head(step.n_new)

    def param_groups(self, model: Model, recipe: Recipe, step: Step) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, each with "params", "lr" and "weight_decay"."""
        fast = recipe.lr * recipe.head_factor
        parts = {"backbone": recipe.lr, "decoder": fast, "heads": fast, "aux": fast}
        return [
            {"params": trainable(getattr(model, part)), "lr": lr, "weight_decay": recipe.weight_decay}
            for part, lr in parts.items()
        ]

    def exemplars(self, ctx: Context, earlier: "list[Exemplar]") -> "list[Exemplar]":
        """Training images to keep from earlier steps, chosen before step t >= 1; ``earlier`` is the memory of step t - 1."""
        return []

    def prepare(self, ctx: Context, loader: "Iterable[Batch]") -> dict[str, Any]:
        """Statistics for ``ctx.stats``, gathered without gradients before step t >= 1 trains."""
        return {}

    def targets(self, batch: "Batch", teacher: Output | None, ctx: Context) -> Tensor:
        """(B, H, W) labels to train on; a method with pseudo-labels returns a new tensor."""
        return batch.label

    def losses(self, batch: "Batch", student: Output, teacher: Output | None, ctx: Context) -> dict[str, Tensor]:
        """Named, weighted scalar terms; `fit` sums and logs them. teacher is None at step 0."""
        raise TypeError(f"{type(self).__name__} must define losses(); it is what a method is.")

    def predict(self, output: Output) -> Tensor:
        """(B, H, W) int64 learned ids. Default: argmax."""
        return output.logits.argmax(dim=1)

    def base_key(self) -> dict[str, Any]:
        """What of this method decides the result of step 0. Methods with equal keys share that run."""
        return {"method": self.id, **settings_of(self)}


def settings_of(item: Any) -> dict[str, Any]:
    """Fields of a Method or Recipe as JSON values."""
    return {f.name: _plain(getattr(item, f.name)) for f in fields(item)}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def available() -> list[str]:
    """Ids of all methods: the files in `cisskit/methods/`."""
    return sorted(m.name for m in pkgutil.iter_modules(method_files.__path__))


def method_class(name: str) -> type[Method]:
    """The class behind an id, with or without the suffix of a variant or an ablation. Raises `KitError` for an unknown one."""
    return _named(name)[0]


def variants_of(method: str) -> list[str]:
    """The names under which a method runs: its id and those of its variants."""
    return [method, *(f"{method}-{suffix}" for suffix in method_class(method).variants if suffix)]


def ablations_of(method: str) -> list[str]:
    """The names of a method's ablations."""
    return [f"{method}-{suffix}" for suffix in method_class(method).ablations]


def title_of(name: str) -> str:
    """How tables and legends call a method, a variant or an ablation."""
    return _named(name)[2]


def _named(name: str) -> tuple[type[Method], Mapping[str, Any], str]:
    """Class, fields and title behind a name such as "mbs", "dkd-m" or "mbs-no-lgod"."""
    method, _, suffix = name.partition("-")
    if method not in available():
        raise unknown("method", method, available())
    cls = importlib.import_module(f"{method_files.__name__}.{method}").METHOD
    if suffix in cls.variants:
        return cls, cls.variants[suffix][1], cls.variants[suffix][0]
    if suffix in cls.ablations:
        return cls, cls.ablations[suffix], f"{cls.title}: {suffix.replace('-', ' ')}"
    if suffix:
        raise unknown(f"variant of {method}", suffix, [*filter(None, cls.variants), *cls.ablations])
    return cls, {}, cls.title


def configure(name: str, overrides: Mapping[str, Any], dataset: str = "") -> tuple[Method, dict[str, Any]]:
    """A method with some of its fields changed, and the changes that belong to its recipes.

    name: an id, with or without the suffix of a variant. ``overrides`` mixes fields of the method and of `Recipe`, e.g.
    ``{"lambda_kd": 5.0, "epochs": 3}``; they win over the variant's. dataset: what the paper sets otherwise there holds too,
    see `Method.on`.
    Raises `KitError` for an unknown field (the nearest one is named) and for a value of the wrong type.
    """
    cls, preset, _ = _named(name)
    own, recipe = {f.name for f in fields(cls)}, {f.name for f in fields(Recipe)}  # type: ignore[arg-type]
    for key in overrides:
        if key not in own | recipe:
            raise unknown(f"field of {name}", key, sorted(own) + sorted(recipe))
    there = cls.on.get(dataset, {}), preset, cls.on.get(f"{dataset}-{name.partition('-')[2]}", {})
    changes = {k: v for fields_there in there for k, v in fields_there.items()} | dict(overrides)
    method = checked(cls, {k: v for k, v in changes.items() if k in own}, name)
    return method, {k: v for k, v in changes.items() if k in recipe}


WHEN = ("step0", "later")


def for_step(overrides: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The overrides that hold at a step: ``"step0.epochs"`` and ``"later.epochs"`` win over ``"epochs"`` where they apply.

    Only recipes may change from step to step; a field of the method is one for the whole chain. Raises `KitError` otherwise.
    """
    plain = {k: v for k, v in overrides.items() if "." not in k}
    own = [f.name for f in fields(Recipe)]
    for key, value in overrides.items():
        when, _, name = key.rpartition(".")
        if not when:
            continue
        if when not in WHEN:
            raise unknown(f"prefix of the field {name!r}:", when, WHEN)
        if name not in own:
            raise unknown(f"field of a recipe after {when!r}:", name, own)
        if when == WHEN[min(step, 1)]:
            plain[name] = value
    return plain


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with some fields changed. Raises `KitError` for values that do not fit."""
    return checked(Recipe, {**settings_of(recipe), **changes}, "recipe")


def checked(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """``cls(**values)``; raises `KitError`, naming every field that does not fit, instead of pydantic's error."""
    try:
        return cls(**values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'values'} = {e['input']!r}: {e['msg']}" for e in error.errors())
        raise KitError(f"{where}: {faults}.") from error


def methods_table() -> list[dict[str, str]]:
    """Facts about each method for `cisskit methods`, oldest first."""
    table = []
    for name in available():
        cls = method_class(name)
        own = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        year = re.search(r"\b(19|20)\d\d\b", cls.paper.split("(")[0])  # not that of the code it follows
        table.append({
            "id": name,
            "name": cls.title,
            "year": year[0] if year else "",
            "paper": cls.paper,
            "architecture": ", ".join(cls.families),
            "memory": "optional" if "memory" in own else "all images" if cls.sees == "seen" else "none",
            "modes": ", ".join(cls.modes),
            "variants": ", ".join(variants_of(name)[1:]),
            "fields": ", ".join(f"{f.name}={f.default!r}" for f in own.values()),
        })  # fmt: skip
    return sorted(table, key=lambda row: (row["year"] == "", row["year"], row["id"]))


__all__ = [
    "SCENES", "STRICT", "Context", "Method", "Recipe", "ablations_of", "available", "changed", "checked", "configure",
    "dataclass", "for_step", "method_class", "methods_table", "settings_of", "title_of", "trainable", "variants_of",
]  # fmt: skip
