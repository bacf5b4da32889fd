"""Which program of a launch is the last to finish its part: it can then do what needs everybody's, in the same launch."""

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(
    counter_ptr,  # (1,) int32: zero before the launch, and after it again
    programs,
):
    """Whether all other programs have arrived before this one. What they stored before they did is visible from here on.

    The barrier puts every store of the program before its one count, which releases them; the count of the last program
    acquires everybody's. What was stored must be read past L1 (cache_modifier=".cg"), which may hold older lines.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel", scope="gpu") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last
