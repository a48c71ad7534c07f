"""ISPRS Potsdam and Vaihingen: crops of aerial images, in one of two layouts.

    isprs/{potsdam,vaihingen}/{images,labels}/{train,test}/x.png     as `data_prep` makes it
    {potsdam,vaihingen}/{img_dir,ann_dir}/{train,val}/x.png          as mmsegmentation makes it

Label files are 8-bit index PNGs: 0 boundary, 1 impervious surface, 2 building, 3 low vegetation, 4 tree, 5 car, 6 clutter.
Saliency maps lie in ``saliency_map`` beside the images.

``isprs`` is the kit's own reading: five classes, and a channel 0 that means "not told at this step". ``isprs_compat`` is the
published one (IDEC, LAG): impervious surface takes channel 0, clutter counts as impervious surface in training and as void
in tests, and images are chosen by the lists as released, whose class ids are one too small: an image belongs to the step of
class c when it shows class c - 1.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cisskit.data.files import SALIENCY, Cache, Coding, FileSource, Folders, Pair, coding, shared_names, split_folders
from cisskit.data.manifest import check_manifest
from cisskit.errors import KitError, first_ten, unknown
from cisskit.scenario import BACKGROUND, IGNORE, Scenario

Site = Literal["potsdam", "vaihingen"]
LAYOUTS = (("isprs", "images", "labels", "test"), ("", "images", "labels", "test"), ("", "img_dir", "ann_dir", "val"))
"""Folder above the sites, of images, of labels, and of the test split."""
BOUNDARY, CLUTTER = 0, 6
COLOURS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0))
"""Of file values 1..5, as the benchmark draws them."""
COMPAT = "isprs_compat"


class Isprs(FileSource):
    """ISPRS; splits ``train`` and ``test``.

    root: the folder that holds ``isprs``, or the folders of the sites. site: whose images are used. later_site: increments
    of domain: step 0 trains on ``site`` alone, later steps on this one; both are tested on. clutter: "void", or
    "background". isprs_compat: the published protocol, under the name ``isprs_compat``. cache_mb, cache: see `FileSource`.
    Raises `KitError` for a missing site and what `FileSource` finds; a site without test images can only be looked at.
    """

    dataset = "isprs"

    def __init__(
        self,
        root: str | Path,
        *,
        site: Site = "potsdam",
        later_site: Site | Literal[""] = "",
        clutter: Literal["void", "background"] = "void",
        isprs_compat: bool = False,
        cache_mb: int = 2000,
        cache: Cache = "memory",
    ) -> None:
        root = Path(root).expanduser().absolute()
        if isprs_compat:
            self.dataset = COMPAT  # type: ignore[misc]
        self.compat = self.dataset == COMPAT
        self.site, self.later_site, self.clutter = site, later_site, clutter
        options: dict[str, tuple[str, tuple[str, ...]]] = {
            "site": (site, get_args(Site)),
            "later_site": (later_site, ("", *get_args(Site))),
            "clutter": (clutter, ("void", "background")),
        }
        for name, (chosen, known) in options.items():
            if chosen not in known:
                raise unknown(f"{name} of ISPRS:", chosen, known)
        if later_site == site:
            raise KitError(f"later_site={site!r} is the site that training starts on; name the other one, or none.")
        if self.compat and clutter != "void":
            raise KitError("the published protocol has its own rule for clutter; leave out clutter, or use the data set 'isprs'.")
        self.label_rule = (
            "ISPRS labels are 8-bit index PNGs: 0 boundary, 1 impervious surface, 2 building, 3 low vegetation, 4 tree, 5 car, "
            f"6 clutter. `python -m data_prep isprs --root {root}` makes them from the coloured tiles."
        )
        found = [_site(root, name) for name in (site, later_site) if name]
        self._n_first = len(found[0][0]["train"])
        missing = {split: text for _, lacking in found for split, text in lacking.items()}
        pairs = {split: [p for listed, _ in found for p in listed[split]] for split in self.splits if split not in missing}
        shared = shared_names(pairs["train"], pairs.get("test", []))
        if shared:
            raise KitError(f"ISPRS crops are both in the training and in the test split: {first_ten(shared)}. Take one away.")
        super().__init__(pairs, missing, cache_mb=cache_mb, cache=cache)
        self.palette = np.zeros((256, 3), dtype=np.uint8)
        start = 0 if self.compat else 1
        self.palette[start : start + len(COLOURS)] = COLOURS
        self.palette[IGNORE] = 128

    def coding(self, split: str) -> Coding:
        first = 0 if self.compat else 1
        hidden = BACKGROUND if (self.compat and split == "train") or self.clutter == "background" else IGNORE
        return coding({BOUNDARY: IGNORE, **{v: v - 1 + first for v in range(1, CLUTTER)}, CLUTTER: hidden})

    def presence(self, split: str) -> NDArray[np.bool_]:
        shown = super().presence(split)
        if self.compat:  # one too small, and file values are one larger than their ids: what is left is the file value
            shown[:, 1:CLUTTER] = self._index(split).pixels[:, 1:CLUTTER] > 0
        return shown

    def allowed(self, scenario: Scenario) -> NDArray[np.bool_] | None:
        if not self.later_site:
            return None
        first = np.arange(len(self._pairs("train"))) < self._n_first
        return np.stack([first if step == 0 else ~first for step in range(len(scenario.groups))], axis=1)

    def describe(self) -> dict[str, Any]:
        return {"site": self.site, "later_site": self.later_site} | ({} if self.compat else {"clutter": self.clutter})


class IsprsCompat(Isprs):
    """`Isprs` by the published protocol."""

    dataset = COMPAT


def _site(root: Path, site: str) -> tuple[dict[str, list[Pair]], dict[str, str]]:
    """Pairs of one site by split, and what is missing."""
    remedy = f"`python -m data_prep isprs --root {root}` makes it, and with --check says what is missing."
    for above, images, labels, test in LAYOUTS:
        folder = root / above / site
        if (folder / images / "train").is_dir():
            splits = {"train": "train", "test": test}
            folders = {
                split: Folders(*(folder / kind / name for kind in (images, labels, SALIENCY))) for split, name in splits.items()
            }
            pairs, missing = split_folders(f"ISPRS {site}", folders, remedy)
            check_manifest(folder, pairs)
            return pairs, missing
    looked = ", ".join(str(root / above / site / images / "train") for above, images, *_ in LAYOUTS)
    raise KitError(f"no crops of ISPRS {site}; looked for {looked}. {remedy}")
