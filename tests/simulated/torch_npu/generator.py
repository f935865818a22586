"""Random numbers of the device: a stream of its own, of the CPU's kind, so that equal seeds give the CPU's numbers."""

import torch

_ours = set()  # identities of the device's generators: a kernel sees a new wrapper of the same one


class Generator(torch._C.Generator):
    """``torch.Generator`` that also takes the device ``npu``."""

    def __new__(cls, device="cpu"):
        device = torch.device(device)
        generator = super().__new__(cls, "cpu" if device.type == "npu" else device)
        generator._npu = device.type == "npu"
        if generator._npu:
            _ours.add(generator._cdata)
        return generator

    def __init__(self, device="cpu"):
        pass

    def __del__(self):
        if self._npu and _ours is not None:  # None while the interpreter ends
            _ours.discard(self._cdata)

    @property
    def device(self):
        return torch.device("npu", 0) if self._npu else super().device


default = Generator("npu")


def call(operator, args, kwargs):
    """Run a random operator on the CPU with the device's stream, or with the generator that the caller gave."""
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch._C.Generator)]
    if given:
        if given[0]._cdata not in _ours:
            raise RuntimeError("Expected a 'npu' device type for generator but found 'cpu'")
        return operator(*args, **kwargs)
    host, kept = torch.default_generator, torch.default_generator.get_state()
    host.set_state(default.get_state())
    try:
        return operator(*args, **kwargs)
    finally:
        default.set_state(host.get_state())
        host.set_state(kept)


def install():
    torch.Generator = Generator
