"""Networks with an unknown class, as SSUL's released code builds, grows and trains them; IDEC and LAG took them over.

Heads, each a `conv_head`: 0 unknown (one channel, no class), 1 background, 2 the classes of step 0, 3 those of step 1, ...
The unknown head learns what no label names; a new class is born from it.
"""

from typing import TYPE_CHECKING, Any

from torch import nn

from cisskit.models import Model, create, trainable
from cisskit.models.heads import copy_first
from cisskit.scenario import Scenario, Step

if TYPE_CHECKING:
    from cisskit.method import Recipe

LAYERS = {"l1": "context1", "l2": "context2", "l3": "context3", "out": "decoder"}
"""Names of IDEC's and LAG's distilled maps -> features: the three auxiliary ASPPs and the main one."""

MODES = {
    "released": "after step 0 the network is frozen and three heads learn; distillation and contrast are only logged",
    "described": "the network trains and all terms act; no published number is known to come from this mode",
}
"""What a mode of IDEC and LAG says about a number."""


def build(scenario: Scenario, arch: str, weights: str | None, *, taps: bool = False) -> Model:
    """The network before step 0. taps: see `cisskit.models.deeplab.deeplab`."""
    model = create(arch, weights, conv_heads=True, taps=taps)
    model.add_head(1, unknown=True)
    model.add_head(1)
    model.add_head(scenario.steps[0].n_new)
    return model


def grow(model: Model, step: Step, *, transfer: bool = True, frozen: bool = True) -> None:
    """A head for the classes of ``step`` (> 0).

    transfer: it starts as the unknown head, statistics included (else at random, and as batch norm is frozen its statistics
    stay 0 and 1 for ever). frozen: from now on only the unknown, the background and the new head learn.
    """
    model.add_head(step.n_new, init=copy_first if transfer else None)
    if frozen:
        model.freeze("backbone", "decoder")
        for old in model.heads[2:-1]:
            old.requires_grad_(False)


def param_groups(model: Model, recipe: "Recipe", step: Step) -> list[dict[str, Any]]:
    """As `Method.param_groups`; after step 0 the background head is 10,000 times slower than the other heads."""
    fast = recipe.lr * recipe.head_factor
    heads: list[nn.Module] = list(model.heads)
    groups = [([model.backbone], recipe.lr), ([model.decoder], fast)]
    if step.index == 0:
        groups.append((heads, fast))
    else:
        groups += [([heads[0], *heads[2:]], fast), ([heads[1]], 1e-4 * fast)]
    return [{"params": trainable(*parts), "lr": rate, "weight_decay": recipe.weight_decay} for parts, rate in groups]
