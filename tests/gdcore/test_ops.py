"""The torch.library operators: PyTorch's own checks, and torch.compile without a graph break."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import gdcore
from gdcore import ops
from gdcore.backends.reference import oracle, relative_error
from support import DEVICE, NAMES, draw, leaves

WANTED = list(itertools.product((False, True), repeat=4))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("wanted", WANTED, ids=lambda w: "".join("iwtb"[i] if f else "-" for i, f in enumerate(w)))
def test_opcheck(wanted, reduction):
    t = draw(6, 3, 2)
    for flag, v in zip(wanted, t.values(), strict=True):
        v.requires_grad_(flag)
    torch.library.opcheck(ops.linear_mse, (t["input"], t["weight"], t["target"], t["bias"], reduction, *wanted))


@pytest.mark.parametrize("shape", [(7, 5, 3, 2), (5, 3, 2)], ids=["two leading dimensions", "one leading dimension"])
def test_opcheck_without_bias_and_with_a_wider_target(shape):
    *lead, k, m = shape
    t = leaves(draw(lead, k, m, torch.bfloat16, bias=False, target_dtype=torch.float32))
    torch.library.opcheck(ops.linear_mse, (t["input"], t["weight"], t["target"], None, "mean", True, True, True, False))


@pytest.mark.parametrize("wanted", [(True, True, True, True), (False, True, False, True)], ids=["all", "weight-bias"])
@pytest.mark.parametrize("shape", [(6, 3, 2), (6, 40, 20)], ids=str)
def test_opcheck_of_the_backward_operator(shape, wanted, backend):
    """All gradients come from the residual, also of shapes whose weight gradient a forward pass would have made."""
    t = draw(*shape)
    args = (torch.tensor(2.0, device=DEVICE), t["input"], t["weight"], t["target"])
    residual = F.linear(t["input"], t["weight"]) - t["target"]
    torch.library.opcheck(ops.linear_mse_backward, (*args, residual, "mean", *wanted))
    found = ops.linear_mse_backward(*args, residual, "mean", *wanted)
    _, exact = oracle(**{**t, "bias": torch.zeros_like(t["bias"])}, grad_output=args[0])
    for name, gradient, is_wanted in zip(NAMES, found, wanted, strict=True):
        if is_wanted:
            assert relative_error(gradient, exact[name]) < 1e-5, name
        else:
            assert not gradient.numel()


def test_the_backward_operator_takes_a_wider_targets_residual(backend):
    t = draw(40, 3, 2, torch.bfloat16, bias=False, target_dtype=torch.float32)
    residual = F.linear(t["input"].float(), t["weight"].float()) - t["target"]
    args = (torch.tensor(1.0, device=DEVICE), t["input"], t["weight"], t["target"], residual, "mean")
    _, gradient, _, _ = ops.linear_mse_backward(*args, False, True, False, False)
    _, exact = oracle(**t)
    assert relative_error(gradient, exact["weight"]) < 2e-2


def compile_and_compare(shape, reduction, backend):
    t = leaves(draw(*shape))
    compiled = torch.compile(
        lambda i, w, y, b: gdcore.linear_mse(i * 2, w, y, b, reduction=reduction) + 1, fullgraph=True, backend=backend
    )
    ours = torch.autograd.grad(compiled(*leaves_in_order(t)).sum(), list(t.values()))
    stock = F.mse_loss(F.linear(t["input"] * 2, t["weight"], t["bias"]), t["target"], reduction=reduction) + 1
    for a, b in zip(ours, torch.autograd.grad(stock.sum(), list(t.values())), strict=True):
        # Some elements of sums over the rows are near zero where their terms are not: as exact as the large ones.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=max(1e-5, 2e-6 * b.abs().max().item()))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_graph_break(reduction):
    compile_and_compare((65, 9, 4), reduction, "aot_eager")


@pytest.mark.parametrize(
    ("reduction", "backend"), [("none", "aot_eager"), ("mean", "aot_eager"), ("mean", "inductor")], ids=str
)
def test_compiles_to_the_operators_without_a_graph_break(reduction, backend, every_shape_fused):
    compile_and_compare((700, 60, 20), reduction, backend)


def leaves_in_order(t):
    return t["input"], t["weight"], t["target"], t["bias"]


def test_a_large_shape_compiles_to_the_operator(every_shape_fused):
    graphs = []

    def spy(graph, _):
        graphs.append(graph)
        return graph.forward

    t = leaves(draw(5000, 20, 3), ("weight",))
    torch.compile(lambda: gdcore.linear_mse(*leaves_in_order(t)), fullgraph=True, backend=spy)()
    assert any("gdcore.linear_mse" in str(node.target) for graph in graphs for node in graph.graph.nodes)


def test_a_whole_training_step_compiles(every_shape_fused):
    t = leaves(draw(5000, 20, 3), ("weight", "bias"))
    module = gdcore.LinearMSELoss(20, 3, device=DEVICE)
    with torch.no_grad():
        module.weight.copy_(t["weight"])
        module.bias.copy_(t["bias"])
    losses = []
    for function in (torch.compile(module, fullgraph=True, backend="aot_eager"), module):
        module.zero_grad()
        loss = function(t["input"], t["target"])
        loss.backward()
        losses.append((loss.detach(), module.weight.grad.clone()))
    torch.testing.assert_close(losses[0], losses[1])


def test_dynamic_shapes_do_not_recompile_for_every_size(every_shape_fused):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda i, w, y: gdcore.linear_mse(i, w, y), fullgraph=True, backend=counter, dynamic=True)
    w = torch.randn(3, 20, device=DEVICE, requires_grad=True)
    for n in (4000, 5000, 6001, 7003):
        compiled(torch.randn(n, 20, device=DEVICE), w, torch.randn(n, 3, device=DEVICE)).backward()
    assert counter.frame_count == 1


def test_compiles_function_transforms(every_shape_fused):
    t = draw(700, 60, 20)

    def loss(w):
        return gdcore.linear_mse(t["input"], w, t["target"], t["bias"])

    compiled = torch.compile(torch.func.grad(loss), backend="aot_eager")(t["weight"])
    torch.testing.assert_close(compiled, torch.func.grad(loss)(t["weight"]))
