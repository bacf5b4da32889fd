"""SGD of parameters that are spread over processes (fully_shard) or replicated in them (DistributedDataParallel).

Two processes on the CPU are started once and run everything; each test here looks at what became of its case.
"""

import copy
import datetime
import os
import queue
import traceback

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import gdcore

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)

PROCESSES = 2
HYPER = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.2},
    "nesterov and weight decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
}
TOGETHER = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02}


def model(dtype=torch.float32):
    """Odd sizes: of 7 rows one process has 4 and the other 3; of a single one the other has none."""
    torch.manual_seed(7)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)).to(dtype)


def batch(step, everywhere=False, dtype=torch.float32):
    """Inputs of this process, or the same in all."""
    generator = torch.Generator().manual_seed(100 * step + (0 if everywhere else dist.get_rank()))
    return torch.randn(6, 5, generator=generator).to(dtype)


def sharded(dtype=torch.float32):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (PROCESSES,))
    network = model(dtype)
    fully_shard(network[0], mesh=mesh)
    return fully_shard(network, mesh=mesh)


def train(network, optimizer, steps, everywhere=False, clip=None, zero=True):
    for step in steps:
        network(batch(step, everywhere, next(network.parameters()).dtype)).square().mean().backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        if zero:
            optimizer.zero_grad()


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def assert_close(ours, theirs, tolerance=2e-6):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(whole(p), whole(q), rtol=tolerance, atol=tolerance)


def momenta(optimizer, network):
    return [optimizer.state[p]["momentum_buffer"] for p in network.parameters()]


# The cases. Everything in them happens in every process.


def fully_sharded_as_stock(hyper):
    ours, theirs = sharded(), sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, **HYPER[hyper])
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **HYPER[hyper], foreach=False)
    train(ours, a, range(3)), train(theirs, b, range(3))
    assert_close(ours.parameters(), theirs.parameters())
    if "momentum" in HYPER[hyper]:
        assert_close(momenta(a, ours), momenta(b, theirs))


def fully_sharded_state_is_sharded_alike():
    ours = sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    train(ours, a, range(2))
    for p, v in zip(ours.parameters(), momenta(a, ours), strict=True):
        assert type(v) is type(p.data)
        assert v.placements == p.placements
        assert v.shape == p.shape
        assert v.to_local().shape == p.to_local().shape


def fully_sharded_clips_the_norm_of_the_whole(max_norm=0.05):
    ours, alone = sharded(), model()
    a = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER, max_norm=max_norm)
    b = torch.optim.SGD(alone.parameters(), lr=0.1, **TOGETHER, foreach=False)
    for step in range(3):
        ours(batch(step, everywhere=True)).square().mean().backward()
        alone(batch(step, everywhere=True)).square().mean().backward()
        before = [p.grad.to_local().clone() for p in ours.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), max_norm)
        a.step(), b.step()
        for p, grad in zip(ours.parameters(), before, strict=True):
            assert torch.equal(p.grad.to_local(), grad)
        assert type(a.grad_norm) is torch.Tensor
        assert a.grad_norm.dtype is torch.float64
        torch.testing.assert_close(a.grad_norm.float(), norm, rtol=1e-5, atol=0)
        a.zero_grad(), b.zero_grad()
    assert_close(ours.parameters(), alone.parameters())


def fully_sharded_norm_is_unscaled():
    ours = sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, max_norm=0.05)
    ours(batch(0, everywhere=True)).square().mean().backward()
    exact = sum(whole(p.grad).double().square().sum() for p in ours.parameters()).sqrt() / 8
    a.grad_scale, a.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    a.step()
    torch.testing.assert_close(a.grad_norm, exact, rtol=1e-6, atol=0)


def fully_sharded_momentum_is_saved_and_loaded():
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    ours, theirs = sharded(), sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER)
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **TOGETHER, foreach=False)
    train(ours, a, range(2)), train(theirs, b, range(2))
    options = StateDictOptions(full_state_dict=True)
    saved = get_optimizer_state_dict(ours, a, options=options)
    expected = get_optimizer_state_dict(theirs, b, options=options)
    assert saved["state"].keys() == expected["state"].keys()
    for name, entry in expected["state"].items():
        assert_close([saved["state"][name]["momentum_buffer"]], [entry["momentum_buffer"]])
    c = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER)
    set_optimizer_state_dict(ours, c, copy.deepcopy(saved), options=options)
    train(ours, c, [2]), train(theirs, b, [2])
    assert_close(ours.parameters(), theirs.parameters())
    assert_close(momenta(c, ours), momenta(b, theirs))


def fully_sharded_weights_are_loaded_between_steps():
    ours, theirs = sharded(), sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER)
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **TOGETHER, foreach=False)
    for network, optimizer in ((ours, a), (theirs, b)):
        train(network, optimizer, range(2))
        state = {name: value.clone().fill_(0.1) for name, value in network.state_dict().items()}
        network.load_state_dict(state)
        train(network, optimizer, [2])
    assert_close(ours.parameters(), theirs.parameters())


def fully_sharded_memory_is_replaced_between_steps():
    """Converted and converted back, the parameters are the same objects, their local tensors others."""
    ours, theirs = sharded(), sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER)
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **TOGETHER, foreach=False)
    for network, optimizer in ((ours, a), (theirs, b)):
        train(network, optimizer, range(2))
        before = list(network.parameters())
        network.double().float()
        assert all(p is q for p, q in zip(network.parameters(), before, strict=True))
        train(network, optimizer, [2])
    assert_close(ours.parameters(), theirs.parameters())


def fully_sharded_with_an_absent_gradient():
    ours, theirs = sharded(), sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER, max_norm=1e6)
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **TOGETHER, foreach=False)
    for step in range(3):
        for network, optimizer in ((ours, a), (theirs, b)):
            network(batch(step)).square().mean().backward()
            if step < 2:
                list(network.parameters())[step].grad = None
            optimizer.step()
            optimizer.zero_grad()
    assert_close(ours.parameters(), theirs.parameters())


def fully_sharded_masters():
    """The float32 run from the same start, with the gradients of this one."""
    ours = sharded(torch.bfloat16)
    a = gdcore.SGD(ours.parameters(), lr=0.01, momentum=0.9, master_weights=True)
    exact = [p.detach().to_local().float().requires_grad_() for p in ours.parameters()]
    b = torch.optim.SGD(exact, lr=0.01, momentum=0.9, foreach=False)
    for step in range(3):
        ours(batch(step, dtype=torch.bfloat16)).square().mean().backward()
        for p, q in zip(ours.parameters(), exact, strict=True):
            q.grad = p.grad.to_local().float()
        a.step(), b.step()
        a.zero_grad()
    for p, q in zip(ours.parameters(), exact, strict=True):
        master = a.state[p]["master_weight"]
        assert master.placements == p.placements
        torch.testing.assert_close(master.to_local(), q.detach(), rtol=2e-6, atol=2e-6)
        assert torch.equal(p.to_local(), master.to_local().bfloat16())


def fully_sharded_zeroes_gradients():
    ours, theirs = sharded(), sharded()
    a = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER, zero_grad=True)
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **TOGETHER, foreach=False)
    train(ours, a, range(3), zero=False), train(theirs, b, range(3))
    assert all(p.grad is not None and p.grad.to_local().count_nonzero() == 0 for p in ours.parameters())
    assert_close(ours.parameters(), theirs.parameters())


def replicated_as_stock(hyper, view):
    ours, theirs = (torch.nn.parallel.DistributedDataParallel(model(), gradient_as_bucket_view=view) for _ in range(2))
    a = gdcore.SGD(ours.parameters(), lr=0.1, **HYPER[hyper])
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **HYPER[hyper], foreach=False)
    train(ours, a, range(3)), train(theirs, b, range(3))
    assert_close(ours.parameters(), theirs.parameters())
    assert_replicas_are_equal(ours)


def replicated_clipped_and_zeroed(view):
    ours, theirs = (torch.nn.parallel.DistributedDataParallel(model(), gradient_as_bucket_view=view) for _ in range(2))
    a = gdcore.SGD(ours.parameters(), lr=0.1, **TOGETHER, max_norm=0.05, zero_grad=True)
    b = torch.optim.SGD(theirs.parameters(), lr=0.1, **TOGETHER, foreach=False)
    train(ours, a, range(3), zero=False), train(theirs, b, range(3), clip=0.05)
    assert_close(ours.parameters(), theirs.parameters())
    assert_replicas_are_equal(ours)


def replicated_stochastic_rounding_keeps_replicas_equal():
    ours = torch.nn.parallel.DistributedDataParallel(model(torch.bfloat16))
    torch.manual_seed(dist.get_rank())  # the global random state is no part of it
    a = gdcore.SGD(ours.parameters(), lr=0.01, momentum=0.9, stochastic_rounding=True, seed=3)
    train(ours, a, range(3))
    assert_replicas_are_equal(ours)


def assert_replicas_are_equal(network):
    for p in network.parameters():
        others = [torch.empty_like(p) for _ in range(PROCESSES)]
        dist.all_gather(others, p.detach())
        assert all(torch.equal(p, other) for other in others)


CASES = {f"fully sharded, {hyper}": (fully_sharded_as_stock, hyper) for hyper in HYPER}
CASES |= {f"replicated in views of buckets, {hyper}": (replicated_as_stock, hyper, True) for hyper in HYPER}
CASES["replicated, momentum"] = (replicated_as_stock, "momentum", False)
CASES |= {
    function.__name__.replace("_", " "): (function,)
    for function in (
        fully_sharded_state_is_sharded_alike,
        fully_sharded_clips_the_norm_of_the_whole,
        fully_sharded_norm_is_unscaled,
        fully_sharded_momentum_is_saved_and_loaded,
        fully_sharded_weights_are_loaded_between_steps,
        fully_sharded_memory_is_replaced_between_steps,
        fully_sharded_with_an_absent_gradient,
        fully_sharded_masters,
        fully_sharded_zeroes_gradients,
        replicated_stochastic_rounding_keeps_replicas_equal,
    )
}
CASES["replicated in views of buckets, clipped and zeroed"] = (replicated_clipped_and_zeroed, True)
# The kernels are interpreted here, which costs time: they run where the arranging differs.
INTERPRETED = {
    "fully sharded, nesterov and weight decay",
    "replicated in views of buckets, momentum",
    "fully sharded clips the norm of the whole",
    "fully sharded momentum is saved and loaded",
    "fully sharded memory is replaced between steps",
    "fully sharded with an absent gradient",
    "fully sharded masters",
}
ALL = [(case, "cpu") for case in CASES] + [(case, "triton") for case in CASES if case in INTERPRETED]


def work(rank, path, outcomes):
    """One process: every case with every stepper."""
    torch.set_num_threads(1)
    store = dist.FileStore(path, PROCESSES)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=PROCESSES, timeout=datetime.timedelta(seconds=20)
    )
    for case, stepper in ALL:
        function, *arguments = CASES[case]
        message = ""
        try:
            with gdcore.use_backend(stepper):
                function(*arguments)
        except Exception:
            message = f"process {rank}: {traceback.format_exc()}"
        flag = torch.tensor([len(message)])
        outcomes.put((case, stepper, rank, message))
        dist.all_reduce(flag)  # the next case starts in all processes at once
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(case, stepper) -> the messages of the processes where it failed; a case that no process came to is missing."""
    context = mp.get_context("spawn")
    answers = context.Queue()
    path = os.fspath(tmp_path_factory.mktemp("store") / "store")
    workers = [context.Process(target=work, args=(rank, path, answers), daemon=True) for rank in range(PROCESSES)]
    for worker in workers:
        worker.start()
    found = {}
    try:
        for _ in range(PROCESSES * len(ALL)):
            case, stepper, _, message = answers.get(timeout=60)
            found.setdefault((case, stepper), []).append(message)
    except queue.Empty:
        pass
    for worker in workers:
        worker.join(10)
        if worker.is_alive():
            worker.kill()
            worker.join()
    return found


@pytest.mark.parametrize(("case", "stepper"), ALL)
def test_two_processes(case, stepper, outcomes):
    messages = outcomes.get((case, stepper), [])
    assert len(messages) == PROCESSES, "a process died or hangs"
    assert not any(messages), "\n".join(messages)
