"""The optimizer's state, which remembers whether anybody has looked at it."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def _exposing(name: str) -> Callable[..., Any]:
    method = getattr(defaultdict, name)

    def exposing(self: "State", *args: Any, **kwargs: Any) -> Any:
        self.exposed = True
        return method(self, *args, **kwargs)

    exposing.__name__ = name
    return exposing


class State(defaultdict):
    """Parameter -> its state, as torch.optim.Optimizer.state, and `exposed`: whether it may have changed unseen.

    A step knows the addresses of all momentum buffers. As long as nobody outside has had a reference to one, nobody can
    have replaced it, and a step need not ask, which is a good part of what it costs the host (bench/sgd_host.py has the
    figures). Whoever reads the state, also through state_dict, ends that.
    """

    def __init__(self, factory: type = dict, entries: Iterable[Any] = ()) -> None:
        super().__init__(factory, entries)
        self.exposed = bool(entries)

    def peek(self, param: Tensor) -> dict[str, Any]:
        """A parameter's state for the steps' own use; empty where there is none."""
        return dict.get(self, param, {})

    def own(self, param: Tensor) -> dict[str, Any]:
        """A parameter's state for the steps' own use; made where there is none."""
        return dict.setdefault(self, param, {})

    def entries(self) -> list[dict[str, Any]]:
        """All states, for the steps' own use."""
        return list(dict.values(self))

    def copy(self) -> "State":
        self.exposed = True
        return State(dict, dict.items(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (dict, dict(dict.items(self)))

    __getitem__, get, pop, popitem, setdefault = map(_exposing, ("__getitem__", "get", "pop", "popitem", "setdefault"))
    __setitem__, __delitem__, update, clear = map(_exposing, ("__setitem__", "__delitem__", "update", "clear"))
    __iter__, keys, values, items, __ior__ = map(_exposing, ("__iter__", "keys", "values", "items", "__ior__"))
    __copy__ = copy
