"""What programs find around them in Python, read and change there; and what a caller changes between calls."""

from __future__ import annotations

# The source that programs begin with which find something. `effects` gives all that a call may leave behind outside
# its module, and `put_effects` puts it back: eager and fused run on the same start, each in its turn.
SOURCE = """\
LOG = []
SEEN = {}


def counter():
    n = 0

    def tick():
        nonlocal n
        n += 1
        return n

    def put(value):
        nonlocal n
        n = value

    return tick, lambda: n, put


tick, ticks, put_ticks = counter()


class Around(torch.nn.Module):
    scale = 2

    def __init__(self):
        super().__init__()
        self.log, self.count, self.last = [], 0, None

    def helper(self, x):
        return x * 2 + 1

    def step(self):
        self.count += 1
        return self.count


def effects():
    return [list(LOG), dict(SEEN), ticks()]


def put_effects(held):
    LOG[:] = held[0]
    SEEN.clear()
    SEEN.update(held[1])
    put_ticks(held[2])


"""

# A class to put in the place of {0}'s, after that is defined.
OTHER = """\
class Other{0}({0}):
    def helper(self, x):
        return x - 3


"""

READS = """
{x} * self.scale
{x} + len(LOG)
{x} * SEEN.get("k", 1)
{x} + ticks()
{x} * (len(self.log) + 1)
self.helper({x})
self.helper({x})
{x} + torch.ones(1)
{x} / 2 + torch.arange(1.0)
"""

MODES = """
with torch.no_grad(): {r} = {x} * 2
with torch.enable_grad(): {r} = {x} + 1
with torch.inference_mode(): {r} = {x} * 3
with torch.enable_grad(): t = {x}.detach().float().requires_grad_(); {r} = torch.autograd.grad((t * t).sum(), t)[0]
torch.set_grad_enabled(True); {r} = {x} * 2
"""

# What a forward switches while it calls its blocks.
WITHIN = (
    "torch.no_grad()", "torch.enable_grad()", "torch.inference_mode()", "torch.autocast('cpu', torch.bfloat16)",
    "torch.autocast('cpu', enabled=False)", "torch.device('cpu')", "torch.overrides.BaseTorchFunctionMode()",
)  # fmt: skip

EFFECTS = """
{r} = {x} * self.step()
{r} = {x} + tick()
self.log.append({x}.shape[0]); {r} = {x} + 1
LOG.append(tuple({x}.shape)); {r} = {x} * 2
SEEN["k"] = {x}.size(-1); {r} = {x} * 2
self.last = {x}.shape; {r} = {x} - 1
"""

EVENTS = (
    "module.__class__ = OtherForward",
    "Around.helper = lambda self, x: x * 3",
    "module.helper = lambda x: x * 5",
    "Around.scale = 4",
    "module.scale = 7",
    "module.log.append(0)",
    "LOG.append(0)",
    "SEEN['k'] = 3",
    "tick()",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_default_dtype(torch.float32)",
    "torch.set_default_device('cpu')",
)
BLOCK_EVENTS = ("module.blocks[0].__class__ = OtherBlock", "module.blocks[-1].helper = lambda x: x * 7")

# Names of buffers and parameters, and keys of dicts: each would do harm, or be no text of a program, as source.
HOSTILE = (
    "x'); import os #", 'a"b', "{y}", "class", "__import__('os')", "caf\u00e9", "back\\slash", "line\nbreak", "_f_0",
)  # fmt: skip


def hostile(name: str) -> str:
    """One of `HOSTILE` for a name such as "b0" or "x3"; different names get different ones."""
    return f"{HOSTILE[sum(map(ord, name)) % len(HOSTILE)]}{name}"
