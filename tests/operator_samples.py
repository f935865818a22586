"""Small networks of all kinds of operators, for tests: each name of ``SAMPLES`` is a function that returns one.

As a script it runs each of them on the simulated NPU, where an operator that torch-npu lacks raises, and prints as JSON
which did not run there, beside those that the record of a run on the CPU says an NPU lacks operators of. Those that did
run are recorded there too: ``complete`` are the ones that lack nothing.
"""

import json
import sys
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

SAMPLES = {
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    "block_diagonal": lambda x: torch.block_diag(x, x),
    "bicubic": lambda x: F.interpolate(x[None, None], (9, 9), mode="bicubic"),
    "convolution": lambda x: F.conv2d(x[None, None], x[None, None, :2, :2]),
    "cumulative": lambda x: x.cumsum(0) + x.flip(0),
    "distances": lambda x: torch.cdist(x, x + 1),
    "double": lambda x: x.double().sum().float(),
    "dropout": lambda x: F.dropout(x, 0.5),
    "eigenvalues": lambda x: torch.linalg.eigvalsh(x @ x.T),
    "entropy": lambda x: torch.special.entr(x.abs() + 1),
    "gelu_of_norm": lambda x: F.gelu(F.layer_norm(x, (6,))),
    "hardtanh": lambda x: F.hardtanh(x),
    "huber": lambda x: F.huber_loss(x, x * 2),
    "indices": lambda x: x[torch.arange(3, device=x.device)] + x.gather(1, x.argsort(1))[:3],
    "log_cumulative": lambda x: torch.logcumsumexp(x, 0),
    "logarithm_of_gamma": lambda x: torch.lgamma(x.abs() + 1),
    "masked": lambda x: x.masked_fill(x > 0, 1.0).where(x < 1, x),
    "poisson": lambda x: torch.poisson(x.detach().abs()) + x,
    "rolled": lambda x: torch.roll(x, 1, 0).repeat(2, 1),
    "smooth": lambda x: F.smooth_l1_loss(x, x * 2),
    "softmax": lambda x: x.softmax(-1).log().logsumexp(0),
    "top": lambda x: x.topk(2).values + x.max(1, keepdim=True).values,
    "variance": lambda x: torch.var_mean(x, 1)[0] + x.std(),
}


class Sample(nn.Module):
    """A linear layer before a function."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.function = function

    def forward(self, x):
        return self.function(self.layer(x))


def build(name):
    torch.manual_seed(0)
    return Sample(SAMPLES[name]), torch.randn(6, 6)


for each in SAMPLES:
    globals()[each] = partial(build, each)


def main():
    import torch_npu  # noqa: F401  the simulated one

    from ehm.backends.torch.diagnosis.callables import record_callable
    from ehm.backends.torch.diagnosis.operators import judge_calls

    def lacks_operators(calls):
        return any(row.verdict in ("falls back", "no float64") for row in judge_calls(calls))

    sys.modules["operator_samples"] = sys.modules["__main__"]
    refused = []
    lacking = []
    complete = []
    for name in SAMPLES:
        module, x = build(name)
        try:
            y = module.to("npu")(x.to("npu"))
            y.backward(torch.ones_like(y))
        except (NotImplementedError, RuntimeError) as error:
            if "NPU" not in str(error):
                raise
            refused.append(name)
        if lacks_operators(record_callable(f"operator_samples:{name}", torch.device("cpu"))):
            lacking.append(name)
        if name not in refused and not lacks_operators(
            record_callable(f"operator_samples:{name}", torch.device("npu"))
        ):
            complete.append(name)
    print(json.dumps({"refused": refused, "lacking": lacking, "complete": complete}))


if __name__ == "__main__":
    main()
