"""Evaluation protocols by name: the conventions behind a number, as each code base has them.

    protocol("mbs", scenario).all_with_background

A protocol decides what training makes of void pixels, which test images and pixels count, at which size, which checkpoint
is reported and what the means cover. It does not touch a method: MBS can be scored by DKD's protocol. ``clean`` is the
kit's own and the default; it selects nothing on test images. The others repeat released code, its questionable habits
included, so that a number can stand beside the published ones; each says whose.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cisskit.errors import unknown
from cisskit.scenario import BACKGROUND, IGNORE, Scenario


@dataclass(frozen=True)
class Protocol:
    """How a number is made. Means are over learned ids; "old" are the classes of step 0, "new" all later ones.

    void_in_training: what 255 becomes in training labels.
    future_as: what pixels of classes that have not arrived count as in a test, see `settle_future`.
    zero_at_test: whether pixels that the files label 0 are scored (ADE20K: "other", unlabelled).
    test_images: all, or those that show a class seen so far.
    eval_size: "full", or "cropN": shorter side N and centre crop.
    checkpoint: which weights a step hands on. "last"; or "best": of every max(100, I // looks) of its I iterations those with the
        best mean IoU of the current classes on the TEST images that show one, labelled as in training (step 0: background
        included). With fewer than 100 iterations nothing is ever compared: the weights before the first iteration remain, or
        with "best_or_last" (whose code then writes none and fails) the last ones.
    absent, epsilon: IoU of absent classes, see `class_iou`.
    old_with_background, all_with_background: whether channel 0 is among the classes of the mean.
    drop_zero: whether classes with an IoU of exactly 0 are left out of "all".
    """

    name: str
    source: str
    void_in_training: int = IGNORE
    future_as: Literal["ignore", "background"] = "ignore"
    zero_at_test: bool = True
    test_images: Literal["all", "seen"] = "all"
    eval_size: str = "full"
    checkpoint: Literal["last", "best", "best_or_last"] = "last"
    looks: int = 100
    absent: Literal["nan", "skip", "zero"] = "nan"
    epsilon: float = 0.0
    old_with_background: bool = True
    all_with_background: bool = True
    drop_zero: bool = False

    @property
    def label(self) -> str:
        """For tables: ``"clean"``, or ``"clean, crop160"`` when it is not the protocol's own size."""
        usual = PROTOCOLS[self.name].eval_size
        return self.name if self.eval_size == usual else f"{self.name}, {self.eval_size}"

    def settings(self) -> dict[str, Any]:
        """Its fields, for a run's settings (JSON values)."""
        return asdict(self)


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("clean", "the kit's own", old_with_background=False),
        Protocol(
            "mib", "MiB's released code", void_in_training=BACKGROUND, test_images="seen", eval_size="crop512", absent="skip",
            epsilon=1e-6, old_with_background=False, all_with_background=False,
        ),
        Protocol(
            "plop", "PLOP's released code; RCIL and REMINDER follow it", future_as="background", test_images="seen",
            eval_size="crop512", absent="skip", epsilon=1e-6,
        ),
        Protocol("ssul", "SSUL's released code", eval_size="crop513", checkpoint="best", absent="zero", epsilon=1e-6),
        Protocol(
            "dkd", "DKD's released code; STAR follows it", future_as="background", test_images="seen", eval_size="crop512",
            absent="zero", epsilon=-1e-6,
        ),
        Protocol(
            "mbs", "MBS's released code; AMIS follows it", eval_size="crop512", checkpoint="best_or_last", looks=10,
            absent="zero", epsilon=1e-6, old_with_background=False, drop_zero=True,
        ),
        Protocol(  # its looks while training see whole images; here they see the crop that is scored in the end
            "idec", "IDEC's and LAG's released code, scored by IDEC's evaluation script", eval_size="crop513", checkpoint="best",
            absent="zero", epsilon=1e-6,
        ),
    )
}  # fmt: skip

ON_ADE: Mapping[str, Mapping[str, Any]] = {
    "mib": {"zero_at_test": False},
    "dkd": {"future_as": "ignore"},
    "mbs": {"zero_at_test": False, "all_with_background": False},
}
"""What differs on ADE20K."""


def protocol(name: str, scenario: Scenario, eval_size: str = "") -> Protocol:
    """The protocol of this name for the data set of a scenario.

    eval_size: another evaluation size than the protocol's own; the label of every table then says so.
    Data without a true background never count channel 0. Raises `KitError` for an unknown name.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    found = PROTOCOLS[name]
    if scenario.dataset == "ade":
        found = replace(found, **ON_ADE.get(name, {}))
    if not scenario.labels.background:
        found = replace(found, zero_at_test=False, old_with_background=False, all_with_background=False)
    return replace(found, eval_size=eval_size) if eval_size else found
