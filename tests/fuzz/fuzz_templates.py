"""Steps as models write them: lines of Python with blanks that a draw fills in.

Blanks: x a value; y one that broadcasts with it; z one of its shape and dtype; i one of int64; n a number; t a dtype;
d and e dimensions of x, as seen from either end; D one more than it has; s some of its dimensions; c the indexing `:, `
of the dimensions before d; o an order of its dimensions; m a number around 0; k and j small numbers; b True or False;
h the size of a part of dimension d, and g what is left of it; a an integer that the forward is given.
"""

from __future__ import annotations

VIEW = """
{x}.transpose({d}, {e})
{x}.permute({o})
{x}.unsqueeze({D})
{x}[{c}{m}:]
{x}[{c}:{m}]
{x}[{c}::{j}]
{x}[{c}{k}::{j}]
{x}[..., {k}:{j}]
{x}[{c}0]
{x}[{c}-1]
{x}[..., None, :]
{x}[:, None]
{x}.squeeze({d})
{x}.squeeze()
{x}.flatten()
{x}.flatten(0, 1)
{x}.flatten({d})
{x}.reshape(-1)
{x}.reshape({x}.shape[0], -1)
{x}.reshape(-1, {x}.shape[-1])
{x}.view(*{x}.shape[:-1], -1, 2)
{x}.view({x}.shape)
{x}.unflatten({d}, (-1, {j}))
{x}.unsqueeze(-1).expand(*{x}.shape, {j})
{x}.expand({j}, *{x}.shape)
{x}.expand_as({y})
{x}.narrow({d}, {k}, {j})
{x}.select({d}, {m})
{x}.mT
{x}.movedim({d}, {e})
{x}.swapaxes({d}, {e})
{x}.diagonal()
{x}.unfold({d}, {j}, {j})
{x}.unbind({d})[0]
{x}.view_as({z})
{x}.contiguous()
{x}.clone()
{x}.detach()
"""

PARTS = """
{x}.chunk(2, {d})
torch.tensor_split({x}, 2, {d})
{x}.split([{h}, {g}], {d})
torch.split({x}, {h}, dim={d})
{x}.unbind({d})
"""

PAIRS = """
{x}.max({d}, {b})
{x}.min({d})
{x}.topk(2, {d})
{x}.topk(1, {d}, largest={b})
{x}.sort({d}, descending={b})
{x}.median({d})
{x}.cummax({d})
{x}.cummin({d})
{x}.aminmax(dim={d}, keepdim={b})
torch.var_mean({x}, {s}, keepdim={b})
torch.std_mean({x}, {s})
"""

JOIN = """
torch.cat(({x}, {z}), {d})
torch.cat(({x}, {z}, {x}), dim={d})
torch.cat((-{x}[..., 1:], {x}[..., :1]), dim=-1)
torch.cat(({x}, {y}), dim=-1)
torch.stack(({x}, {z}), {D})
torch.stack(({x}, {z}, {x}), dim=-1).flatten(-2)
F.pad({x}, ({k}, {j}))
F.pad({x}, ({k}, {m}), value={n})
F.pad({x}, ({k}, 1, {m}, {k}))
F.pad({x}, (1, {k}), mode="replicate")
torch.hstack(({x}, {z}))
torch.stack(({x}, {y}.to({x}.dtype).expand_as({x})), {D})
torch.meshgrid({x}.flatten()[:3], {x}.flatten()[:2], indexing="ij")[0]
{x}.flip({d})
{x}.flip({s})
torch.roll({x}, {m}, {d})
{x}.repeat(2, *[1] * {x}.dim())
{x}.repeat(*[1] * ({x}.dim() - 1), 2)
{x}.repeat_interleave(2, dim={d})
torch.tril({x}, {m})
torch.triu({x}, {m})
torch.diff({x}, dim={d})
"""

CREATE = """
torch.arange({x}.shape[{d}])
torch.arange({x}.shape[{d}], dtype={t})
torch.arange(1, {x}.shape[{d}] + 1, 2)
torch.zeros({x}.shape[{d}], 2)
torch.ones({x}.shape, dtype={t})
torch.full(({x}.shape[{d}], 1), {n})
torch.zeros_like({x})
torch.ones_like({x}, dtype={t})
torch.full_like({x}, {n})
{x}.new_ones(({x}.shape[{d}],))
{x}.new_zeros({x}.shape)
{x}.new_full((2,), {n})
torch.eye({x}.shape[{d}])
torch.tensor({n})
torch.tensor([{n}, 1.0])
torch.arange({x}.shape[{d}])[:, None] >= torch.arange({x}.shape[{d}])
torch.arange({x}.shape[{d}])[None, :] - torch.arange({x}.shape[{e}])[:, None]
"""

CONVERT = """
{x}.to({t})
{x}.float()
{x}.double()
{x}.type_as({y})
{x}.to({y}.dtype)
{x}.to({t}).to({x}.dtype)
"""

ARITHMETIC = """
{x} + {y}
{x} - {y}
{x} * {y}
{x} / {y}
{x} * {n}
{x} + {n}
{n} - {x}
{n} / {x}
-{x}
{x} == {y}
{x} > {y}
{x} < {n}
{x} & {y}
{x} | {y}
{x} ^ {y}
~{x}
{x} // {y}
{x} // {n}
{x} % {y}
{x} ** 2
{x} ** {n}
torch.where({x} > 0, {x}, {y})
torch.where({x} == {y}, {n}, {x})
torch.where({x} > {y}, {n}, {m})
torch.where({x} > 0, {x}, {n})
{x} * ~({y} > 0)
{x} - ({y} >= 0)
torch.logical_and({x}, {y})
torch.isclose({x}, {y})
torch.lerp({x}, {y}, 0.3)
torch.addcmul({x}, {y}, {y}, value={n})
{x}.masked_fill({y} == 0, {n})
torch.maximum({x}, {y})
{x}.clamp({n})
torch.clamp({x}, -1, 1)
torch.add({x}, {y}, alpha={n})
{x} * ({y} + {n}) - {x}
"""

ACTIVATION = """
F.relu({x})
F.silu({x})
F.gelu({x})
F.gelu({x}, approximate="tanh")
torch.sigmoid({x})
torch.tanh({x})
F.softplus({x})
F.leaky_relu({x})
F.logsigmoid({x})
F.silu({x}) * {y}
torch.tanh({x} / 5) * 5
torch.exp({x})
torch.sin({x})
torch.cos({x})
torch.sqrt({x})
torch.rsqrt({x})
torch.log({x})
torch.log1p({x})
torch.expm1({x})
torch.erf({x})
torch.abs({x})
torch.square({x})
torch.reciprocal({x})
torch.floor({x})
torch.round({x})
torch.trunc({x})
torch.isnan({x})
torch.nan_to_num({x})
"""

REDUCTION = """
{x}.sum({d}, keepdim={b})
{x}.mean({d}, keepdim={b})
{x}.amax({s}, {b})
{x}.amin({s}, {b})
{x}.sum({s}, {b})
{x}.mean({s}, {b})
{x}.sum()
{x}.mean()
{x}.max()
{x}.min()
{x}.max({d}).values
{x}.min({d}, {b})[0]
{x}.argmax({d})
{x}.argmin({d}, {b})
{x}.any({d}, {b})
{x}.all({d})
{x}.any()
{x}.prod({d})
{x}.cumsum({d})
{x}.var({s}, keepdim={b})
{x}.std({d})
{x}.sum({d}, dtype=torch.float32)
{x}.any({s}, {b})
{x}.all({s})
{x}.count_nonzero({s})
{x}.argmax()
{x}.argmax({d}, True) + {x}.argmin({d}, True)
{x}.cumprod({d})
{x}.cumsum({d}, dtype={t})
{x}.flip({d}).cumsum({d}).flip({d})
{x}.logcumsumexp({d})
{x}.nansum({d})
{x}.norm(dim={d})
{x}.softmax({d}).cumsum({d})
({x} * {y}).sum({d}, {b}) / {y}.abs().sum()
torch.softmax({x}, {d})
torch.softmax({x}, {d}, dtype=torch.float32).to({x}.dtype)
torch.log_softmax({x}, {d})
torch.logsumexp({x}, {s}, {b})
torch.linalg.vector_norm({x}, dim={s}, keepdim={b})
F.layer_norm({x}, {x}.shape[-1:])
F.layer_norm({x}, {x}.shape[{d}:])
F.rms_norm({x}, {x}.shape[-1:])
F.normalize({x}, dim={d})
{x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-5)
{x} - {x}.amax({d}, keepdim=True)
({x} != 0).long().cumsum({d}) - 1
"""

SIZED = """
{x} * {x}.shape[{d}]
{x} / {x}.size({d}) ** 0.5
{x} + {x}.numel()
{x} + {x}.dim()
{x} + 1 if {x}.shape[{d}] > {k} + 3 else {y} * 2
{x} * 2 if {x}.shape[{d}] % 2 else {y} - {x}
{x} * {a}
{x}[..., :{a}]
{x} + 1 if {a} > 2 else {x}
{x}.sum() / {a}
{x}[: {x}.shape[0] // 2]
{x}[{x}.shape[0] - 1 :]
{x}[..., {x}.shape[-1] // 2 :]
"""

WRITE = """
{x}.add_({n})
{x}.mul_({y})
{x}.sub_({y})
{x}.copy_({y})
{x}.fill_({n})
{x}.zero_()
{x}.masked_fill_({y} > 0, {n})
{x}.clamp_(-1, 1)
{x} += {y}
{x} *= 2
{x}.neg_()
{x}.relu_()
{x}.exp_()
torch.add({x}, {y}, out={x})
torch.mul({y}, 2, out={x})
{x}.copy_({x} * 2 - {y})
{x}[..., 1:] = {n}
{x}[..., :1] += 1
{x}[..., ::2] = {y}[..., ::2]
{x}[..., 1:] = {x}[..., :-1] + 1
{x}[0] = {n}
{x}[..., 0] = {y}[..., 0]
{x}.select({d}, 0).mul_(3)
{x}.transpose(0, -1).add_({n})
{x}.view(-1)[1:] = {n}
{x}[{x} > 1] = {n}
{x}.cumsum_({d})
{x}[..., -1:].copy_({y}[..., :1])
{x}[::2].add_({n})
{x}.flatten()[0] = {n}
{x}.diagonal().fill_({n})
{x}.index_fill_({d}, torch.tensor([0]), {n})
{x}.scatter_({d}, torch.zeros_like({x}, dtype=torch.int64), {n})
{x}.index_add_({d}, torch.zeros({x}.shape[{d}], dtype=torch.int64), {x} * 1)
{x}[torch.zeros(1, dtype=torch.int64)] = {n}
{x}.unsqueeze(0).mul_({y})
{x}.clamp_min_({y})
{x}.where({y} > 0, {x} * 2).add_(1)
{x}.squeeze().neg_()
"""

LIBRARY = """
{x} @ {z}.mT
torch.matmul({x}, {z}.transpose(-1, -2))
F.linear({x}, {y})
{x}.index_select({d}, {i}.flatten().abs() % 2)
torch.gather({x}, {d}, torch.zeros_like({x}, dtype=torch.int64))
{x}.topk(1, {d}).values
{x}.sort({d}).values
{x}[{i}.abs() % 2]
F.one_hot({i}.abs() % 4, 4)
F.embedding({i}.abs() % 2, {x})
F.scaled_dot_product_attention({x}, {z}, {z})
torch.where({x} > 0)[0]
{x}[{x} > 0]
{x}.argsort({d})
{x}.index_select({d}, torch.arange({x}.shape[{d}]))
{x}[:, torch.zeros(2, dtype=torch.int64)]
{x}[..., torch.arange({x}.shape[-1]).flip(0)]
torch.take_along_dim({x}, torch.zeros_like({x}, dtype=torch.int64), {d})
{x}.scatter({d}, torch.zeros_like({x}, dtype=torch.int64), {x} * 2)
torch.einsum("...i,...i->...", {x}, {z})
torch.outer({x}.flatten(), {x}.flatten())
{x}.masked_select({y} > 0)
torch.isin({x}, {z})
"""

DATA = """
{x} * float(({y} > 0).sum())
{x} + 1 if bool(({y} > 0).any()) else {x} * 2
{x}[..., : int(({y} > 0).sum()) % 3]
{x} + {y}.max().item()
{x} * 2 if {y}.all() else -{x}
{x}[..., : {y}.flatten()[:1].long().sum().item() % 2 + 1]
{x} if {y}.abs().amax() > 1 else {x} + {y}
{x} - len({y}.nonzero())
"""

RANDOM = """
torch.rand_like({x})
{x} + torch.randn({x}.shape[{d}], 1)
F.dropout({x}, 0.5, training=True)
torch.bernoulli({x}.abs().clamp(0, 1))
{x} * torch.randint(0, 5, {x}.shape)
"""

ISLAND = """
cache.update({x}, {k})
"""


def lines(templates: str) -> tuple[str, ...]:
    """The templates of a block, one a line."""
    return tuple(templates.strip().splitlines())
