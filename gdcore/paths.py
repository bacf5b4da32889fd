"""The paths that could compute a shape on CUDA, each with its configuration, and the choice between them.

Where the paths of a shape (or of one near it) were measured on this kind of GPU, the fastest measured one is taken.
Otherwise the predicted times decide (cost.py), and as a prediction errs, the library's products are taken where they are as
near to the fastest as it may err (rates.trusted_to): what is gained by less is not worth losing to stock by as much.
"""

import dataclasses
from typing import TYPE_CHECKING

import torch

from . import cost, measured, rates
from .cost import Alternative, Asked
from .kernels import configs
from .kernels.configs import Config
from .launches import bound_of, predicted_seconds
from .tuned import Entry

if TYPE_CHECKING:  # plan imports this module
    from .plan import Plan

SKINNY = {"one_pass_rows", "one_pass_vector", "one_pass_dot"}
TILED = {"tiled", "epilogue"}  # whose forward product is the tiled kernel
MOST_GRIDS = 6  # of one_pass_tall, each with half as many parts as the one before
NEAR = rates.UNSURE  # that a path must be predicted to be faster than stock, of whose kernels few were measured


def candidates(plan: "Plan", asked: Asked, family: str | None, why: str) -> list["Plan"]:
    """Every path for the shape, with its launches; `family` is the one-pass kernel's, if there is one."""
    found = [_tiled(plan, asked)]
    if _library_takes(plan, asked):
        found += _epilogue(plan, asked)
        found.append(_library(found[0], asked))
    if family is not None:
        found.append(_one_pass(plan, asked, family, why))
    return [dataclasses.replace(p, launches=cost.launches_of(p, asked)) for p in found]


def choose(found: list["Plan"], asked: Asked, may_be_stock: bool) -> "Plan":
    """The path that is taken, with what is known of the others. It is stock's only where the caller can leave it to stock."""
    first = found[0]
    row = measured.nearest(first.device, first.dtype, first.input_precision, (first.n, first.k, first.m), asked)
    by_path = {p.path: p for p in found}
    timed = {path: row.seconds[path] for path in by_path if path in row.seconds} if row else {}
    if timed and may_be_stock:
        timed["stock"] = row.seconds["stock"]
    precision = "ieee" if first.input_precision == "tf32x3" else first.input_precision
    why = "the stock composition is the fastest here"
    stock = dataclasses.replace(first, path="stock", config=None, why=why, input_precision=precision)
    by_path["stock"] = dataclasses.replace(stock, launches=cost.launches_of(stock, asked))
    seconds = {path: p.predicted_seconds for path, p in by_path.items()}
    near = rates.trusted_to(first.device, first.dtype, first.input_precision)
    rounds = first.dtype.itemsize == 2 or first.input_precision == "tf32x3"  # stock's is not quite the same result
    margin = NEAR if rounds else rates.TRUSTED
    if timed:
        path = min(timed, key=timed.__getitem__)
        reason = f"measured: {row.words(path)}"
    else:
        row = None
        # A skinny shape's tiled kernels differ by launches at most, and a whole step has one launch in the other path.
        considered = [p.path for p in found if p.path not in TILED or not SKINNY & by_path.keys()]
        path = min(considered, key=seconds.__getitem__)
        if "library" in seconds and seconds["library"] <= near * seconds[path]:
            path = "library"
        if may_be_stock and seconds[path] > margin * seconds["stock"]:
            path = "stock"  # mostly half types, where ours rounds less and moves more
        reason = by_path[path].why
    told = []
    for name, total in sorted(seconds.items(), key=lambda item: item[1]):
        made = by_path[name].launches
        why_not = "" if name == path else _why_not(name, total, path, seconds[path], timed, near, margin)
        told.append(Alternative(name, total, len(made), bound_of(made), why_not))
    return dataclasses.replace(by_path[path], why=reason, alternatives=tuple(told), measured=row)


def _why_not(
    name: str, total: float, chosen: str, seconds: float, timed: dict[str, float], near: float, margin: float
) -> str:
    if name in timed:
        return f"measured {timed[name] / timed[chosen]:.2f} times as long"
    if timed and name != "stock":
        return "not measured, where others are"
    if name == "stock" and total < seconds:
        return f"predicted less than {margin - 1:.0%} faster, and half types it rounds first"
    if name == "stock":
        return "writes the prediction and reads it three times; half types it rounds first"
    if total < seconds and name in TILED and chosen != "library":
        return "stores the residual and reads the data again for dW"
    if total < seconds:
        return f"predicted less than {near - 1:.0%} faster than the library's products"
    return f"predicted {total / seconds:.2f} times as long"


def _one_pass(plan: "Plan", asked: Asked, family: str, why: str) -> "Plan":
    n, k, m, dtype, device = plan.n, plan.k, plan.m, plan.dtype, plan.device
    store_residual = asked.wanted.input or asked.wanted.target
    entry = tuned(plan, asked, "one_pass_" + family, store_residual)
    shipped = configs.one_pass_config(
        family, device.architecture, dtype, k, m, plan.input_precision, contiguous=asked.contiguous
    )
    config = entry.config if entry else shipped
    weight_config = _product(plan, asked, "backward_weight")  # for the backward operator, which is given E alone
    made = dataclasses.replace(
        plan,
        path="one_pass_" + family,
        why=why,
        config=config,
        tuned=entry,
        store_residual=store_residual,
        grad_in_forward=True,
        input_config=_product(plan, asked, "backward_input") if asked.wanted.input else None,
        weight_config=weight_config,
        split=configs.default_split(n, k, m, weight_config, device.sms),
    )
    if asked.wanted.input and _library_takes(plan, asked):
        made = _with_faster_input_gradient(made, asked)
    tiles = -(-n // configs.rows_per_tile(family, config, k, dtype))
    blocks = -(-m // config.block_m) if family == "tall" else 1
    parts = max(1, min(tiles, device.sms * made.resident // blocks))  # a persistent grid is one wave
    grids = [dataclasses.replace(made, programs=parts * blocks)]
    while (
        family == "tall" and parts > 1 and len(grids) < MOST_GRIDS
    ):  # every part leaves M x K partial sums: few rows want few parts
        parts //= 2
        grids.append(dataclasses.replace(made, programs=parts * blocks))
    if len(grids) == 1:
        return grids[0]
    return min(grids, key=lambda grid: predicted_seconds(cost.launches_of(grid, asked)))


def _with_faster_input_gradient(plan: "Plan", asked: Asked) -> "Plan":
    """The plan with dX by the library, which is no input_config, where that is predicted to be as fast."""
    by_library = dataclasses.replace(plan, input_config=None)
    ours, theirs = (predicted_seconds(cost.input_gradient(p, asked)) for p in (plan, by_library))
    return by_library if theirs <= NEAR * ours else plan


def _tiled(plan: "Plan", asked: Asked) -> "Plan":
    """The tiled kernels: of those that the table offers for these operands, the ones that are predicted to be the fastest."""
    made = _by_pointers(plan, asked)

    def available(family: str) -> Config | None:
        return None if made.tuned is not None else offered(plan, asked, family)

    variants = [made]
    if (config := available("forward_descriptors")) is not None:
        variants.append(dataclasses.replace(made, forward_config=config))
    if asked.wanted.input and (asked.wanted.weight or asked.wanted.bias) and asked.reduction != "none":
        config = available("backward_products_descriptors") or available("backward_products")
        if config is not None:
            split = configs.default_products_split(plan.n, plan.k, plan.m, config, plan.device.sms)
            variants += [dataclasses.replace(p, products_config=config, products_split=split) for p in variants]
    if len(variants) == 1:
        return made

    def seconds(variant: "Plan") -> float:
        """The forward product on descriptors was measured, the one on pointers was not where arithmetic is the limit."""
        doubt = rates.TRUSTED if variant.forward_config is None else 1.0
        return doubt * predicted_seconds(cost.launches_of(variant, asked))

    return min(variants, key=seconds)


def offered(plan: "Plan", asked: Asked, family: str) -> Config | None:
    """A product's configuration, where the table has one for these operands."""
    options = {
        "input_precision": plan.input_precision,
        "wide": _is_wide(plan, asked),
        "aligned": cost.is_aligned(plan, asked),
    }
    if not configs.product_offered(family, plan.device.architecture, plan.dtype, **options):
        return None
    return configs.product_config(family, plan.device.architecture, plan.dtype, plan.n, plan.k, plan.m, **options)


def _by_pointers(plan: "Plan", asked: Asked) -> "Plan":
    weight_config = _product(plan, asked, "backward_weight")
    why = "loss and residual are formed in the product's epilogue, the prediction is never stored"
    if asked.reduction == "none":
        why = 'reduction="none": the squares are formed in the product\'s epilogue'
    return dataclasses.replace(
        plan,
        path="tiled",
        why=why,
        config=_product(plan, asked, "forward"),
        tuned=tuned(plan, asked, "forward", any(asked.wanted)),
        input_config=_product(plan, asked, "backward_input") if asked.wanted.input else None,
        weight_config=weight_config,
        split=configs.default_split(plan.n, plan.k, plan.m, weight_config, plan.device.sms),
        store_residual=any(asked.wanted),
    )


def _library(tiled_plan: "Plan", asked: Asked) -> "Plan":
    why = "the library's products, the fastest there are where arithmetic is the limit, and one fused pass between them"
    made = dataclasses.replace(
        tiled_plan, path="library", why=why, split=1, forward_config=None, products_config=None, products_split=1
    )
    if asked.wanted.input and made.dtype is torch.float16:  # others multiply with c W, or c E
        return _with_faster_input_gradient(made, asked)
    return made


def _epilogue(plan: "Plan", asked: Asked) -> list["Plan"]:
    """The forward product on descriptors, and the library's products behind it: offered where both are.

    Without descriptors our product is behind the library's by more than the pass over E that it saves: measured in float32
    and of rows that are not aligned, assumed in float64 and on Ampere.
    """
    wanted = asked.wanted
    config = offered(plan, asked, "forward_descriptors")
    if config is None or not (wanted.input or wanted.weight or wanted.bias):
        return []
    return [epilogue(plan, asked, config)]


def epilogue(plan: "Plan", asked: Asked, forward_config: Config | None) -> "Plan":
    """The path with this forward product; None: on pointers."""
    why = "loss and residual are formed in our product's epilogue, and the gradients are the library's products"
    made = dataclasses.replace(_by_pointers(plan, asked), path="epilogue", why=why, forward_config=forward_config)
    if forward_config is not None:
        made = dataclasses.replace(made, tuned=None, config=_product(made, asked, "forward"))
    if asked.wanted.input and made.dtype is torch.float16:  # others multiply with c W, or c E
        return _with_faster_input_gradient(made, asked)
    return made


def _library_takes(plan: "Plan", asked: Asked) -> bool:
    """Not a residual wider than the products' operands, which would be rounded; nor a precision that it has no name for."""
    wide_residual = torch.promote_types(plan.dtype, asked.target_dtype) is not plan.dtype
    return not wide_residual and plan.input_precision != "tf32x3"


def tuned(plan: "Plan", asked: Asked, family: str, store_residual: bool) -> Entry | None:
    """The user's own configuration, for launches of the kind that were tuned."""
    if plan.device.tuned is None or _is_wide(plan, asked) or not asked.contiguous:
        return None
    return plan.device.tuned.find(family, plan.dtype, plan.n, plan.k, plan.m, plan.input_precision, store_residual)


def _is_wide(plan: "Plan", asked: Asked) -> bool:
    return asked.target_dtype is not plan.dtype or asked.reduction == "none"


def _product(plan: "Plan", asked: Asked, family: str) -> Config:
    if (entry := tuned(plan, asked, family, False)) is not None:
        return entry.config
    return configs.product_config(
        family,
        plan.device.architecture,
        plan.dtype,
        plan.n,
        plan.k,
        plan.m,
        input_precision=plan.input_precision,
        wide=_is_wide(plan, asked),
        aligned=cost.is_aligned(plan, asked),
    )
