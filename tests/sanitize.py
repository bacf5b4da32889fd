"""Every kernel family once or twice, on small odd shapes, for compute-sanitizer: `make sanitize`.

    compute-sanitizer --tool memcheck --error-exitcode 1 python tests/sanitize.py

Memory is not cached, so that an allocation ends where its tensor ends, and an access beyond is seen. Results are compared
with float64. Without a GPU, TRITON_INTERPRET=1 plays the same launches on the CPU, to check this script.
"""

import os
import pathlib
import sys

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # read by torch as it is imported
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # before tests/, whose gdcore/ holds tests

import functools
import time

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    sys.exit("tests/sanitize.py needs CUDA, and there is none here (TRITON_INTERPRET=1 checks the script itself)")

import gdcore
from gdcore import devices
from gdcore.kernels.backward_input import backward_input
from gdcore.kernels.backward_products import backward_products
from gdcore.kernels.backward_products_descriptors import backward_products_descriptors
from gdcore.kernels.backward_target import backward_target
from gdcore.kernels.backward_weight import backward_weight
from gdcore.kernels.backward_weight_step import backward_weight_step
from gdcore.kernels.backward_weight_step_descriptors import backward_weight_step_descriptors
from gdcore.kernels.column_sums import column_sums
from gdcore.kernels.configs import Config, one_pass_config, product_config
from gdcore.kernels.forward import forward
from gdcore.kernels.forward_descriptors import forward_descriptors
from gdcore.kernels.loss import loss as loss_of
from gdcore.kernels.one_pass_dot import one_pass_dot
from gdcore.kernels.one_pass_rows import one_pass_rows
from gdcore.kernels.one_pass_step import one_pass_step
from gdcore.kernels.one_pass_tall import one_pass_tall
from gdcore.kernels.one_pass_vector import one_pass_vector
from gdcore.kernels.reduce import add_rows
from gdcore.kernels.residual import residual_of
from gdcore.kernels.run_batches import run_batches
from gdcore.kernels.run_grid import run_grid
from gdcore.kernels.run_resident import run_resident
from gdcore.kernels.step import Step
from product_support import SMALL, normal
from run_support import FULL, full_batch, launch, loop, problem, start, tile
from support import DEVICE

HALF = torch.bfloat16
ARCHITECTURE = devices.describe(torch.device(DEVICE), interpreted=True).architecture
ONE_PASS = {"rows": one_pass_rows, "vector": one_pass_vector, "dot": one_pass_dot, "tall": one_pass_tall}
TILES = {  # so small that small shapes have several
    "rows": lambda k: Config(block_n=32, num_warps=1),
    "vector": lambda k: Config(block_n=8, block_k=min(1 << (k - 1).bit_length(), 32)),
    "dot": lambda k: Config(block_n=16, block_k=max(1 << (k - 1).bit_length(), 16), block_m=16, num_stages=2),
    "tall": lambda k: Config(16, max(1 << (k - 1).bit_length(), 16), 16, num_warps=4, num_stages=2),
}
DESCRIPTORS = Config(block_n=32, block_k=64, block_m=32, num_warps=4, num_stages=2)


def near(what: str, ours: torch.Tensor, exact: torch.Tensor, operands: torch.dtype = torch.float32) -> None:
    """Fails where an error is more than rounding explains, of the result or of its operands."""
    exact = exact.detach().double().to(ours.device)
    error = (ours.detach().double() - exact).norm().item()
    tolerance = 3e-2 if HALF in (ours.dtype, operands) else 3e-3
    if ours.shape != exact.shape or not error <= tolerance * (exact.norm().item() + 1e-2):
        sys.exit(f"{what}: error {error:.2e}, of {exact.norm().item():.2e}")


def operands(n, k, m, dtype=torch.float32):
    """X, W, Y, b and E in float64."""
    x, w, y, b = normal(n, k, dtype=dtype), normal(m, k, dtype=dtype), normal(n, m, dtype=dtype), normal(m, dtype=dtype)
    return x, w, y, b, x.double() @ w.double().t() + b.double() - y.double()


def blank(*shape, dtype=torch.float32):
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def one() -> torch.Tensor:
    return torch.ones((), device=DEVICE)


def one_pass(family, n, k, m, dtype=torch.float32, programs=(1, 3), config=None):
    x, w, y, b, e = operands(n, k, m, dtype)
    config = config or TILES[family](k)
    blocks = -(-m // config.block_m) if family == "tall" else 1
    for number in programs:
        residual = blank(n, m, dtype=dtype)
        sums = ONE_PASS[family](
            x, w, y, b, config=config, programs=number * blocks, loss_scale=1.0, grad_scale=2.0, want_grads=True,
            residual=residual,
        )  # fmt: skip
        near("E", residual, e)
        near("loss", sums[0], e.square().sum(), dtype)
        near("db", sums[1 : 1 + m], 2 * e.sum(0), dtype)
        near("dW", sums[1 + m :].view(m, k), 2 * e.t() @ x.double(), dtype)


def stepped(n, k, m, run, dtype=torch.float32):
    """W, b and their momenta after a step of `run(x, y, step, e)`, against the formula."""
    x, w, y, b, e = operands(n, k, m, dtype)
    lr, mu, decay, c = 0.05, 0.9, 0.1, 2 / (n * m)
    v, u = torch.ones_like(w), torch.ones_like(b)
    exact = []
    for p, buffer, gradient in ((w, v, e.t() @ x.double()), (b, u, e.sum(0))):
        moved = mu * buffer.double() + c * gradient + decay * p.double()
        exact += [p.double() - lr * moved, moved]
    run(x, y, Step(w, b, v, u, lr, momentum=mu, weight_decay=decay), e.to(dtype))
    for what, ours, reference in zip(("W", "momentum", "b", "its momentum"), (w, v, b, u), exact, strict=True):
        near(what, ours, reference)


def one_pass_steps(family, n, k, m, dtype=torch.float32):
    def run(x, y, step, e, one_launch):
        counter = torch.zeros(1, dtype=torch.int32, device=DEVICE) if one_launch else None
        config, loss = TILES[family](k), blank(1)[0]
        programs = 3 * -(-m // config.block_m) if family == "tall" else 3
        one_pass_step(
            family, x, y, loss, step, config=config, programs=programs, loss_scale=1 / (n * m), grad_scale=2 / (n * m),
            counter=counter,
        )  # fmt: skip
        near("loss", loss, e.double().square().mean())

    for one_launch in (True, False):
        stepped(n, k, m, functools.partial(run, one_launch=one_launch), dtype)


def forwards(kernel, n, k, m, dtype, config, **more):
    x, w, y, b, e = operands(n, k, m, dtype)
    residual, squares = blank(n, m, dtype=dtype), blank(n, m, dtype=dtype)
    options = {"config": config, "loss_scale": 1.0, "input_precision": "ieee", **more}
    near("loss", kernel(x, w, y, b, residual=residual, squares=None, **options), e.square().sum(), dtype)
    near("E", residual, e)
    kernel(x, w, y, None, residual=None, squares=squares, **options)
    near("E²", squares, (e - b.double()).square())


def products(kernel, n, k, m, dtype, config):
    x, w, _, _, e = operands(n, k, m, dtype)
    e = e.to(dtype)
    for split in (1, 3):
        d_input = blank(n, k, dtype=dtype)
        d_weight, d_bias = kernel(
            e, x, w, one(), scale=0.5, config=config, split=split, input_precision="ieee", want_bias=True,
            out_input=d_input, out_dtype=dtype, programs=3,
        )  # fmt: skip
        near("dX", d_input, 0.5 * e.double() @ w.double())
        near("dW", d_weight, 0.5 * e.double().t() @ x.double())
        near("db", d_bias, 0.5 * e.double().sum(0))


def input_gradient(dtype=torch.float32):
    _, w, _, _, e = operands(33, 20, 18, dtype)
    for upstream in (one(), normal(33, 18, dtype=dtype)):
        out = blank(33, 20, dtype=dtype)
        e_ = e.to(dtype)
        backward_input(e_, w, upstream, scale=0.5, config=SMALL, input_precision="ieee", out=out)
        near("dX", out, 0.5 * (upstream.double() * e_.double()) @ w.double())


def weight_gradient():
    x, _, _, _, e = operands(70, 21, 18)
    e = e.float()
    for split in (1, 3):
        found = backward_weight(
            e, x, one(), scale=0.5, config=SMALL, split=split, input_precision="ieee", want_bias=True,
            out_dtype=torch.float32,
        )  # fmt: skip
        near("dW", found[0], 0.5 * e.double().t() @ x.double())
        near("db", found[1], 0.5 * e.double().sum(0))


def weight_steps():
    for split in (1, 3):
        stepped(70, 21, 18, lambda x, y, step, e, split=split: backward_weight_step(
            e, x, step, scale=2 / e.numel(), config=SMALL, split=split, input_precision="ieee"
        ))  # fmt: skip


def weight_steps_on_descriptors():
    stepped(70, 72, 40, lambda x, y, step, e: backward_weight_step_descriptors(
        e, x, step, scale=2 / e.numel(), config=DESCRIPTORS, input_precision="ieee"
    ), HALF)  # fmt: skip


def elementwise():
    x, w, y, b, e = operands(33, 20, 4099)
    product, stored = x @ w.t(), blank(33, 4099)
    near(
        "loss", add_rows(residual_of(product, y, b, loss_scale=1.0, residual=stored, squares=None))[0], e.square().sum()
    )
    near("E", stored, e)
    near("loss of E", loss_of(stored, loss_scale=1.0), e.square().sum())
    near("loss of a transpose", loss_of(stored.t()[:-1], loss_scale=1.0), e[:, :-1].square().sum())
    for upstream in (one(), normal(33, 4099)):
        out = blank(33, 4099)
        backward_target(stored, upstream, scale=0.5, out=out)
        near("dY", out, -0.5 * upstream.double() * e)


def sums():
    for shape, options in (((37, 5), {}), ((300, 1), {}), ((5, 999), {}), ((3, 5004), {"lead": 4, "losses": 2})):
        partials = normal(*shape)
        exact = partials.double().sum(0)
        if options:
            exact = torch.cat([exact[:2].sum().view(1), exact[4:]])
        near(f"sums of {shape}", add_rows(partials, **options), exact)
    for shape in ((9000, 5), (9, 200), (300, 64)):
        e = normal(*shape, dtype=HALF)
        upstream = torch.tensor(3.0, device=DEVICE)
        near(f"sums of rows of {shape}", column_sums(e, upstream, scale=0.5), 1.5 * e.double().sum(0))


def optimizer(dtype=torch.float32, **beyond):
    """Sizes about those of a chunk, one tensor by strides, one at an odd address; clipped, so that the norm is formed."""
    params = [normal(n, dtype=dtype) for n in (1, 300, 4096, 5001)]
    params += [normal(7, 33, dtype=dtype).t(), normal(302, dtype=dtype)[1:]]
    exact = [p.double().requires_grad_() for p in params]
    params = [p.detach().requires_grad_() for p in params]
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    ours = gdcore.SGD(params, **options, max_norm=1.0, zero_grad=True, **beyond)
    stock = torch.optim.SGD(exact, **options, foreach=False)
    for _ in range(2):
        for p, q in zip(params, exact, strict=True):
            p.grad = normal(*p.shape, dtype=dtype)
            q.grad = p.grad.double()
        torch.nn.utils.clip_grad_norm_(exact, 1.0)
        ours.step()
        stock.step()
    for p, q in zip(params, exact, strict=True):
        near(f"parameter {tuple(p.shape)}", p, q)


def runs(kernel, n, k, m, batches, steps=4, **options):
    x, y = problem(n, k, m)
    state = start(x, y, True)
    found = launch(functools.partial(kernel, **options), x, y, state, steps, **FULL)
    for what, ours, exact in zip(
        ("state", "losses", "trajectory"), found, loop(x, y, state, batches, dtype=torch.float64, **FULL), strict=True
    ):
        near(what, ours, exact)


def batch_runs():
    order = torch.cat([torch.randperm(37) for _ in range(2)]).to(torch.int32).to(DEVICE)
    batches = [rows for epoch in order.long().split(37) for rows in epoch.split(8)]
    runs(run_batches, 37, 5, 3, batches, len(batches), order=order, first_step=0, batch_size=8, config=tile(8, 5))


def grid_runs():
    programs = 4 if DEVICE == "cuda" else 1  # interpreted, programs would wait for each other for ever
    config = tile(-(-41 // programs), 3, 4)
    runs(run_grid, 41, 3, 2, full_batch(4), config=config, programs=programs)


def shipped(family):
    return product_config(family, ARCHITECTURE, HALF, 130, 72, 264)


FAMILIES = {
    "one_pass_rows": lambda: one_pass("rows", 331, 3, 2),
    "one_pass_vector": lambda: one_pass("vector", 37, 5, 3),
    "one_pass_vector, K in parts": lambda: one_pass("vector", 37, 70, 1, programs=(3,)),
    "one_pass_dot": lambda: one_pass("dot", 37, 20, 5, HALF, programs=(3,)),
    "one_pass_tall": lambda: one_pass("tall", 37, 33, 19, programs=(2,)),
    "one_pass_tall, as shipped": lambda: one_pass(
        "tall", 133, 64, 72, HALF, (2,), one_pass_config("tall", ARCHITECTURE, HALF, 64, 72)
    ),
    "one_pass_tall, rows at odd addresses": lambda: one_pass(
        "tall", 133, 61, 71, HALF, (2,), one_pass_config("tall", ARCHITECTURE, HALF, 61, 71)
    ),
    "one_pass_step of rows": lambda: one_pass_steps("rows", 331, 3, 2),
    "one_pass_step of vector": lambda: one_pass_steps("vector", 37, 5, 3),
    "one_pass_step of dot": lambda: one_pass_steps("dot", 37, 20, 5),
    "one_pass_step of tall": lambda: one_pass_steps("tall", 37, 33, 19),
    "forward": lambda: forwards(forward, 33, 20, 18, torch.float32, SMALL),
    "forward_descriptors": lambda: forwards(forward_descriptors, 70, 72, 40, HALF, DESCRIPTORS, programs=3),
    "forward_descriptors, as shipped": lambda: forwards(
        forward_descriptors, 130, 72, 264, HALF, shipped("forward_descriptors"), programs=2
    ),
    "backward_input": input_gradient,
    "backward_weight": weight_gradient,
    "backward_products": lambda: products(backward_products, 70, 73, 41, HALF, DESCRIPTORS),
    "backward_products_descriptors": lambda: products(
        backward_products_descriptors, 70, 72, 40, HALF, DESCRIPTORS
    ),
    "backward_products_descriptors, as shipped": lambda: products(
        backward_products_descriptors, 130, 72, 264, HALF, shipped("backward_products_descriptors")
    ),
    "backward_weight_step": weight_steps,
    "backward_weight_step_descriptors": weight_steps_on_descriptors,
    "residual, loss, backward_target": elementwise,
    "reduce, column_sums": sums,
    "sgd and sgd_norm": optimizer,
    "sgd, rounded stochastically": lambda: optimizer(HALF, stochastic_rounding=True),
    "run_resident": lambda: runs(run_resident, 37, 5, 3, full_batch(4), config=tile(37, 5, 2)),
    "run_grid": grid_runs,
    "run_batches": batch_runs,
}  # fmt: skip


def main() -> None:
    """Every family, or those whose names are given or begin so."""
    torch.manual_seed(int(os.environ.get("GDCORE_SEED", time.time_ns() % 2**31)))
    chosen = [name for name in FAMILIES if not sys.argv[1:] or name.startswith(tuple(sys.argv[1:]))]
    print(f"seed {torch.initial_seed()} on {torch.cuda.get_device_name() if DEVICE == 'cuda' else 'the interpreter'}")
    with gdcore.use_backend("triton"):
        for name in chosen:
            began = time.perf_counter()
            print(f"{name} ...", end="", flush=True)
            FAMILIES[name]()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            print(f" right, {time.perf_counter() - began:.1f} s", flush=True)
    print(f"{len(chosen)} families of {len(FAMILIES)}: all right")


if __name__ == "__main__":
    main()
