"""A random permutation of the rows for each epoch, as a function of (seed, epoch): the same on every device, nothing stored.

A Feistel network permutes the numbers below 2^b, the least power of two that holds N; what is not a row is left out, and
the rest keeps its order (Mitchell, Stokes, Frank and Holmes, Bandwidth-optimal random shuffling for GPUs, 2021). Any part
of an epoch can be computed without the rest, so an order takes no memory, however many rows there are.

A round of the network adds to one half of the bits a hash of the other half: the highest bits of A r + B modulo 2^64
(Dietzfelbinger, Hagerup, Katajainen and Penttonen, A reliable randomized algorithm for the closest-pair problem, 1997).
A, odd, and B are new for every round and epoch and come from Philox (Salmon et al., Parallel random numbers: as easy as
1, 2, 3, 2011), with the seed as its key and the epoch as its counter. Rounds alone make even permutations of 16 numbers or
more; a random number is added to all modulo 2^b before them, and half of the numbers to add are odd permutations.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_ROUNDS = 12
# A half of few bits has few hashes, so it takes more rounds until all permutations are equally likely.
_SMALL, _SMALL_ROUNDS = 256, 32
_BLOCK = 1 << 20  # numbers permuted at a time


def width(n: int) -> int:
    """Bits of a permuted number: two at least, one for each half."""
    return max(2, (n - 1).bit_length())


def _keys(seed: int, epochs: range, n: int) -> Tensor:
    """(2 + rounds, 2, epochs): A and B as int64, after two pairs of which one B is what is added before the rounds."""
    rounds = 2 + (_SMALL_ROUNDS if n <= _SMALL else _ROUNDS)
    words = 2 * rounds  # of an epoch; a count of Philox's counter gives four
    philox = np.random.Philox(key=seed, counter=epochs.start * words // 4)
    keys = philox.random_raw(words * len(epochs)).reshape(len(epochs), rounds, 2).transpose(1, 2, 0).copy()
    keys[:, 0] |= np.uint64(1)
    return torch.from_numpy(keys.view(np.int64))


def _permuted(numbers: Tensor, keys: Tensor, bits: int) -> Tensor:
    """What the network makes of numbers (P,), for every epoch: (epochs, P)."""
    low_bits = bits // 2
    high_bits = bits - low_bits
    numbers = (numbers + keys[0, 1][:, None]).__iand__((1 << bits) - 1)
    low, high = numbers & ((1 << low_bits) - 1), numbers >> low_bits
    for i, (factor, summand) in enumerate(keys[2:]):
        source, wanted = (low, high_bits) if i % 2 == 0 else (high, low_bits)
        hashed = (source * factor[:, None]).add_(summand[:, None])
        hashed = hashed.__irshift__(64 - wanted).__iand__((1 << wanted) - 1)
        if i % 2 == 0:
            high = high ^ hashed
        else:
            low = low ^ hashed
    return (high << low_bits) | low


def orders(seed: int, epochs: range, n: int, device: torch.device) -> Tensor:
    """A permutation of n rows for each of these epochs: (epochs, n), int64."""
    bits = width(n)
    together = max(1, _BLOCK >> bits)  # there are a dozen temporaries of this size
    if len(epochs) > together:
        some = (epochs[first : first + together] for first in range(0, len(epochs), together))
        return torch.cat([orders(seed, part, n, device) for part in some])
    if 1 << bits > _BLOCK:
        return torch.cat([*parts(seed, epochs.start, n, _BLOCK, device)])[None]
    keys = _keys(seed, epochs, n).to(device)
    permuted = _permuted(torch.arange(1 << bits, device=device), keys, bits)
    return permuted[permuted < n].view(len(epochs), n)


def parts(seed: int, epoch: int, n: int, size: int, device: torch.device) -> Iterator[Tensor]:
    """The same permutation of one epoch, `size` rows at a time, the last part the rest; memory O(size)."""
    bits = width(n)
    keys = _keys(seed, range(epoch, epoch + 1), n).to(device)
    waiting: list[Tensor] = []
    held = 0
    block = min(_BLOCK, max(size, 1 << 10))
    for first in range(0, 1 << bits, block):
        permuted = _permuted(torch.arange(first, min(first + block, 1 << bits), device=device), keys, bits)[0]
        waiting.append(permuted[permuted < n])
        held += waiting[-1].numel()
        while held >= size:
            rows = torch.cat(waiting)
            yield rows[:size]
            waiting, held = [rows[size:]], held - size
    if held:
        yield torch.cat(waiting)


def batches(
    seed: int, n: int, batch_size: int, steps: int, unit: int, device: torch.device
) -> Iterator[tuple[Tensor, list[int]]]:
    """(row numbers, sizes of the batches that they fill), one unit after another, endlessly; no batch goes over an epoch's end.

    A unit is several whole epochs, or a part of one, of about `unit` rows. Epochs that `steps` updates cannot reach are not drawn.
    """
    per_epoch = -(-n // batch_size)
    if n > unit:
        size = max(1, unit // batch_size) * batch_size
        for epoch in itertools.count():
            for rows in parts(seed, epoch, n, size, device):
                yield rows, _sizes(rows.numel(), batch_size)
    count = min(max(1, unit // n), -(-steps // per_epoch))
    for first in itertools.count(step=count):
        yield orders(seed, range(first, first + count), n, device).view(-1), count * _sizes(n, batch_size)


def _sizes(rows: int, batch_size: int) -> list[int]:
    whole, rest = divmod(rows, batch_size)
    return [batch_size] * whole + [rest] * (rest > 0)
