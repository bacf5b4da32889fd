"""SGD as torch.optim.SGD, in one launch on a GPU, without what its fused version gets wrong."""

import importlib
import inspect
import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.optim.optimizer as hooks
from torch import Tensor
from torch._compile import _disable_dynamo

from . import backends
from .sgd.members import HALF, ElsewhereError, Member, MovedError, is_plain, local, overlapping
from .sgd.norm import sharded_squared_norm
from .sgd.state import State


class SGD(torch.optim.SGD):
    r"""Stochastic gradient descent: a drop-in for :class:`torch.optim.SGD`.

        g ← ±gradient / grad_scale · clip + weight_decay · w
        v ← g in the first step, else momentum · v + (1 − dampening) · g
        w ← w − lr · (g + momentum · v if nesterov, else v, else g)

    On CUDA one Triton launch steps all tensors of all groups, whatever their sizes, dtypes and hyperparameters. On the CPU
    it takes the fastest of PyTorch's own kernels that is right. Sparse and complex tensors, other devices and
    ``differentiable=True`` go to PyTorch's functions.

    Parameters
    ----------
    params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused
        As torch.optim.SGD's, with its defaults and its checks. ``lr`` and ``weight_decay`` may be tensors of one element;
        those on the parameters' device are read there, so that a CUDA graph sees what a scheduler writes. ``foreach``
        matters where PyTorch's own functions step; ``fused`` is only checked.
    max_norm : float, optional
        Clip the gradients of all groups together to this 2-norm first, as `torch.nn.utils.clip_grad_norm_` does, but
        without modifying them. The norm before clipping is then in ``grad_norm``, a 0-d float64 tensor. No
        synchronisation on CUDA.
    master_weights : bool
        Keep a float32 copy of each float16 and bfloat16 parameter and step that, with float32 momentum. In the state as
        ``master_weight``. Where something else writes the parameter, the copy follows. Parameters of other dtypes are
        stepped as they are, but at least one must be of half precision.
    stochastic_rounding : bool
        Round float16 and bfloat16 parameters up or down at random, so that the mean of many roundings is exact: updates
        too small for the dtype then are not lost. Costs no memory.
    seed : int
        Of the rounding. A run repeats bit for bit from its start, or from where its state was loaded; replicas with the same
        seed stay equal.
    zero_grad : bool
        Set the gradients to zero in the step, which then is the only thing that modifies them.

    Raises
    ------
    ValueError, RuntimeError, TypeError
        As torch.optim.SGD. ValueError for ``max_norm`` that is negative or NaN, for ``master_weights`` or
        ``stochastic_rounding`` without a parameter of half precision, and for both together; RuntimeError for
        ``differentiable`` with any of the options beyond torch's. A step that raises has changed nothing.

    Notes
    -----
    Mutates parameters and momentum, and gradients only with ``zero_grad``. ``grad_scale`` and ``found_inf``, which
    `torch.amp.GradScaler` sets, are honoured: gradients are divided by the first, and the step is not taken where the second
    is not zero. With parameters that are sharded outside FSDP2 call `scaler.unscale_(optimizer)` first, which reduces
    ``found_inf`` over the processes. Bytes moved for each float32 parameter: 12, with momentum 20, 4 more with ``max_norm`` and
    4 more with ``zero_grad``. Steps repeat bit for bit. A step can be captured in a CUDA graph after one step outside; keep the
    optimizer as long as the graph. Under `torch.compile` a step breaks the graph and runs as it is. State is interchangeable
    with torch.optim.SGD in both directions and keeps its dtype.

    Formula: Sutskever et al., On the importance of initialization and momentum in deep learning (2013), as modified by
    PyTorch.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        max_norm: float | None = None,
        master_weights: bool = False,
        stochastic_rounding: bool = False,
        seed: int = 0,
        zero_grad: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.max_norm, self.zeroes_grads, self.seed = max_norm, zero_grad, seed
        self.master_weights, self.stochastic_rounding = master_weights, stochastic_rounding
        self._check_options()
        self._forget()
        self._arrange()

    def _check_options(self) -> None:
        """Refuse what cannot be."""
        if self.max_norm is not None and not self.max_norm >= 0:
            raise ValueError(f"Invalid max_norm value: {self.max_norm}")
        dtypes = {p.dtype for group in self.param_groups for p in group["params"]}
        for name in ("master_weights", "stochastic_rounding"):
            if getattr(self, name) and not dtypes & set(HALF):
                raise ValueError(
                    f"{name} needs float16 or bfloat16 parameters, got {', '.join(sorted(map(str, dtypes)))}"
                )
        if self.master_weights and self.stochastic_rounding:
            raise ValueError(
                "master_weights and stochastic_rounding exclude each other: a master loses nothing to rounding"
            )
        beyond = {
            "max_norm": self.max_norm is not None,
            "master_weights": self.master_weights,
            "stochastic_rounding": self.stochastic_rounding,
            "zero_grad": self.zeroes_grads,
        }
        if self.defaults["differentiable"] and any(beyond.values()):
            names = ", ".join(f"`{name}`" for name, on in beyond.items() if on)
            raise RuntimeError(f"`differentiable` does not support {names}")

    def _forget(self) -> None:
        """Drop what is only derived."""
        self.grad_norm: Tensor | None = None
        self.generator = torch.Generator().manual_seed(self.seed)
        self._steppers: dict[tuple[str, torch.device], Any] = {}
        self._kept: list[Any] = []
        self._params: list[Tensor] = []
        self._lengths: list[int] = []
        self._arranged: list[dict[str, Any]] = []  # the groups that the steppers were made for
        self._backend = ""
        self._overlapping: set[int] = set()  # parameters that share memory
        self._elsewhere: set[int] = set()  # parameters whose gradients or state only stock takes

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Perform a single optimization step.

        Parameters
        ----------
        closure : callable, optional
            Reevaluates the model and returns the loss.

        Returns
        -------
        The closure's result, or None.
        """
        if torch.compiler.is_compiling():  # one launch is what a compiler could do at best
            return _uncompiled_step(self, *args, **kwargs)
        if _needs_hooks(self):
            return _hooked_step(self, *args, **kwargs)
        return self._step(*args, **kwargs)

    step.hooked = True  # torch would put a wrapper around it that costs more than the step

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        steppers = self._checked_steppers()  # nothing is modified before all of them have been checked
        for stepper in steppers:
            stepper.ready()
        norm = None
        if self.max_norm is not None:
            norm = self.grad_norm = self._norm(steppers, grad_scale)
        for stepper in steppers:
            stepper.run(grad_scale, found_inf, norm)
        return loss

    def _checked_steppers(self) -> list[Any]:
        """The steppers of all parameters, each ready to raise no more."""
        while True:
            if not self._is_arranged():
                self._arrange()
            try:
                steppers = self._steppers.values()
                for stepper in steppers:
                    stepper.check()
                return steppers
            except MovedError:
                self._arranged = []
            except ElsewhereError as error:
                self._elsewhere.add(id(error.param))
                self._arranged = []

    def _is_arranged(self) -> bool:
        """Whether the steppers were made for the parameters, groups and backends that there are now."""
        groups, known = self.param_groups, self._arranged
        return (
            len(groups) == len(known)
            and all(map(operator.is_, groups, known))
            and [len(group["params"]) for group in groups] == self._lengths
            and all(map(operator.is_, itertools.chain.from_iterable([g["params"] for g in groups]), self._params))
            and type(self.state) is State
            and backends.chosen() == self._backend
        )

    def _arrange(self) -> None:
        """Give each parameter to the stepper that takes it."""
        params: list[Tensor] = []
        if type(self.state) is not State:
            self.state = State(dict, self.state)
        members: dict[tuple[str, torch.device], list[Member]] = {}
        self._overlapping = overlapping([param for group in self.param_groups for param in group["params"]])
        kept_out = self._overlapping | self._elsewhere
        for group in self.param_groups:
            for param in group["params"]:
                member = Member(param, group, len(params))
                params.append(param)
                inner = local(param)
                name = "stock"
                if is_plain(param) and id(param) not in kept_out:
                    name = backends.backend_for(inner.device)
                if name not in ("triton", "cpu") or self.defaults["differentiable"]:
                    name = "stock"
                members.setdefault((name, inner.device), []).append(member)
        self._arranged, self._params, self._backend = list(self.param_groups), params, backends.chosen()
        self._is_sharded = any(hasattr(param, "to_local") for param in params)
        self._lengths = [len(group["params"]) for group in self.param_groups]
        before = self._steppers
        self._steppers = {
            key: _stepper_class(key[0])(self, key[1], found, before.get(key)) for key, found in members.items()
        }
        stays = {id(m.param) for key, found in members.items() if key in before for m in found}
        for param in itertools.chain.from_iterable(stepper.not_started() for stepper in before.values()):
            if id(param) not in stays:  # another stepper would take its empty momentum for one
                self.state.own(param).pop("momentum_buffer", None)

    def keep(self, what: Any) -> None:
        """Memory that a captured graph reads lives as long as the optimizer."""
        self._kept.append(what)

    def check_overlap(self) -> None:
        """For a stepper whose parameters have moved in memory."""
        if overlapping(self._params) != self._overlapping:
            raise MovedError

    @torch.no_grad()
    def _norm(self, steppers: list[Any], grad_scale: Tensor | None) -> Tensor:
        """The 2-norm of all gradients, unscaled: float64, on the first stepper's device."""
        if self._is_sharded:
            total = sharded_squared_norm([param.grad for param in self._params if param.grad is not None])
            if grad_scale is not None:
                total = total / grad_scale.to(total.device).double().square()
        else:
            total, *others = [stepper.squared_norm(grad_scale) for stepper in steppers]
            for other in others:
                total = total + other.to(total.device)
        return total.sqrt()

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.SGD's, which can load it. Momentum whose first step has not been taken is left out."""
        packed = super().state_dict()
        empty = self._not_started()
        for index, param in enumerate(itertools.chain.from_iterable(group["params"] for group in self.param_groups)):
            if id(param) in empty and index in packed["state"]:
                entry = {name: value for name, value in packed["state"][index].items() if name != "momentum_buffer"}
                packed["state"] = {**packed["state"], index: entry}
                if not entry:
                    del packed["state"][index]
        return packed

    def _not_started(self) -> set[int]:
        return {id(param) for stepper in self._steppers.values() for param in stepper.not_started()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what state_dict of this class or of torch.optim.SGD returned; momentum keeps the dtype that it was saved in."""
        loaded: dict[str, Any] = {}
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        after = self.register_load_state_dict_post_hook(lambda _: self._restore_dtypes(loaded), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _restore_dtypes(self, loaded: dict[str, Any]) -> None:
        """torch casts all state to the parameter's dtype: take float32 momentum of a bfloat16 parameter as it was saved."""
        saved = itertools.chain.from_iterable(group["params"] for group in loaded["param_groups"])
        params = itertools.chain.from_iterable(group["params"] for group in self.param_groups)
        for index, param in zip(saved, params, strict=True):
            for name, value in loaded["state"].get(index, {}).items():
                if isinstance(value, Tensor) and self.state[param][name].dtype is not value.dtype:
                    self.state[param][name] = value.to(param.device)

    def __getstate__(self) -> dict[str, Any]:
        empty = self._not_started()
        state = State(dict, {param: dict(entry) for param, entry in self.state.items()})
        for param, entry in list(state.items()):
            if id(param) in empty:
                del entry["momentum_buffer"]
            if not entry:
                del state[param]
        return {**super().__getstate__(), "state": state, **{name: getattr(self, name) for name in _OPTIONS}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_steppers" in self.__dict__:
            self._arranged = []
        else:
            self._forget()

    def __repr__(self) -> str:
        options = "".join(
            f"{shown}: {getattr(self, name)}\n" for name, shown in _OPTIONS.items() if getattr(self, name)
        )
        return super().__repr__().removesuffix(")") + options + ")"


# Attribute -> what the constructor calls it.
_OPTIONS = {
    "max_norm": "max_norm",
    "master_weights": "master_weights",
    "stochastic_rounding": "stochastic_rounding",
    "seed": "seed",
    "zeroes_grads": "zero_grad",
}


def _stepper_class(name: str) -> type:
    return importlib.import_module(f".sgd.{name}", __package__).Stepper  # Triton is imported only where it steps


def _needs_hooks(optimizer: SGD) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or hooks._global_optimizer_pre_hooks
        or hooks._global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )


SGD.step.__signature__ = inspect.signature(SGD._step)
_hooked_step = torch.optim.Optimizer.profile_hook_step(SGD._step)
_uncompiled_step = _disable_dynamo(SGD.step)  # torch.compiler.disable, which imports the compiler, on first use
