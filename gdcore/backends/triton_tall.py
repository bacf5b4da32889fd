"""The launch of one_pass_tall for tensors that begin anywhere, which a plan does not know of: it is made for shapes."""

from torch import Tensor

from ..kernels.configs import VECTOR_BYTES, Config, one_pass_config
from ..plan import Plan


def launch_of(plan: Plan, input: Tensor, target: Tensor) -> tuple[Config | None, int]:
    """(configuration, programs) of a one-pass kernel: the plan's, or for rows at odd addresses the table's own for such.

    Their loads are not asynchronous, and what they take of shared memory beside can be more than there is.
    """
    if plan.path != "one_pass_tall" or all(t.data_ptr() % VECTOR_BYTES == 0 for t in (input, target)):
        return plan.config, plan.programs
    of = plan.device.architecture, plan.dtype, plan.k, plan.m, plan.input_precision
    config = one_pass_config("tall", *of, contiguous=False)
    parts = plan.programs // -(-plan.m // plan.config.block_m)
    return config, parts * -(-plan.m // config.block_m)
