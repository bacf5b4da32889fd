"""Taking all steps of a run: shown, interrupted, and never far ahead of a GPU."""

import warnings

import torch

from .engine import Engine
from .progress import shown
from .steps import Exhausted

_AHEAD = 2  # chunks of steps that the host is ahead of a GPU


def drive(engine: Engine, wanted: bool) -> bool:
    """Take all steps; whether a KeyboardInterrupt ended them early."""
    steps = engine.spec.steps
    under_way: list[torch.cuda.Event] = []
    with shown(wanted, steps) as tell:
        try:
            while engine.done < steps:
                engine.advance(min(engine.chunk, steps - engine.done))
                if engine.losses.is_cuda and engine.done < steps:
                    under_way.append(torch.cuda.current_stream(engine.losses.device).record_event())
                if len(under_way) > _AHEAD:  # or the whole run is enqueued at once, and neither shown nor interrupted
                    under_way.pop(0).synchronize()
                tell(engine.done)
        except KeyboardInterrupt:
            return True
        except Exhausted:
            tell(engine.done)
            warnings.warn(
                f"the batches ended after {engine.done} of {steps} steps, and cannot be iterated again: what has been "
                "learnt until then is returned",
                stacklevel=3,
            )
    return False
