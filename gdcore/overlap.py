"""Which tensors share memory: what is written in place must have each number once, and to itself."""

import functools
from collections.abc import Sequence
from itertools import combinations, pairwise
from math import gcd

import torch
from torch import Tensor


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements of a tensor of up to two dimensions lie at the same address, as after expand()."""
    if tensor.is_contiguous():
        return False
    dims = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
    if any(stride == 0 for _, stride in dims):
        return tensor.numel() > 0
    if len(dims) < 2:
        return False
    (n, a), (m, b) = dims
    common = gcd(a, b)  # i a = j b for the first time at i = b / common
    return b // common < n and a // common < m


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether an element of one tensor lies where an element of the other does; both on one device."""
    (start_a, end_a), (start_b, end_b) = _span(a), _span(b)
    if end_a <= start_b or end_b <= start_a or start_a == end_a or start_b == end_b:
        return False
    return _meet(_layout(a), _layout(b), start_b - start_a)


def sharing(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """Two of the tensors that share memory, by their places, or None."""
    spans = sorted(map(_span, tensors))
    if all(end <= start for (_, end), (start, _) in pairwise(spans)):
        return None
    pairs = combinations(range(len(tensors)), 2)
    return next(((i, j) for i, j in pairs if share_memory(tensors[i], tensors[j])), None)


def any_shared(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether any of some tensors shares memory with any of the others."""
    spans = [*map(_span, others)]
    for tensor in some:
        start, end = _span(tensor)
        for other, (first, last) in zip(others, spans, strict=True):
            if start < last and first < end and share_memory(tensor, other):
                return True
    return False


def _span(tensor: Tensor) -> tuple[int, int]:
    """First address, and the one behind the last."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.numel() * tensor.element_size()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _layout(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    return tuple(tensor.shape), tensor.stride(), tensor.element_size()


@functools.lru_cache(maxsize=256)
def _meet(a: tuple, b: tuple, distance: int) -> bool:
    """The same for two layouts so many bytes apart, by marking bytes: the spans meet, but gaps may keep elements apart."""
    first, second = max(-distance, 0), max(distance, 0)
    sizes = [1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) for shape, strides, _ in (a, b)]

    def places(layout: tuple, offset: int) -> Tensor:
        shape, strides, item = layout
        return marks.as_strided((*shape, item), (*(s * item for s in strides), 1), offset)

    with torch.inference_mode(False), torch.no_grad():
        marks = torch.zeros(max(first + sizes[0] * a[2], second + sizes[1] * b[2]), dtype=torch.bool, device="cpu")
        places(a, first).fill_(True)
        return bool(places(b, second).any())
