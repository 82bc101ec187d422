"""A failing program as a script that needs only torch and fusion."""

from __future__ import annotations

import inspect
from pathlib import Path

import fuzz_program
from fuzz_program import Program

SEEDS = range(0, 10_000, 100)


def calls(program: Program) -> list[tuple[dict[str, int], int]]:
    """The sizes and seed of every call: recorded, answered by its plan, then at other sizes, then the first again."""
    first, second, third = map(dict, program.sizes)
    return list(zip((first, first, second, second, third, third, first), SEEDS, strict=False))


def script(program: Program, found: str) -> str:
    """The script's text: it makes every call of the check and prints what differs, fused and eager.

    Args:
        program: the program, as small as it was found to fail.
        found: what the check said.
    """
    said = [f"# {line}".rstrip() for line in found.splitlines()[:40]]
    helpers = [inspect.getsource(fuzz_program.fill), inspect.getsource(fuzz_program.laid_out)]
    config = f"MIN_NODES = {program.min_nodes}"
    lines = [
        '"""A random program on which fused and eager were found to differ. It exits with 1 while they do."""',
        "",
        *said,
        "",
        "import copy\nimport sys\n\nimport torch\nimport torch.nn.functional as F\n\nimport fusion\n\n",
        *helpers,
        "",
        program.text(),
        "",
        f"CALLS = {calls(program)}",
        f"EVENTS = {program.events}",
        *([] if program.around else ["def effects():\n    return None", "def put_effects(held):\n    pass"]),
        config,
        _MAIN,
    ]
    return "\n".join(lines)


def write(program: Program, found: str, folder: Path) -> Path:
    """Writes the script into `folder` as fuzz-failure-<digest>.py."""
    path = folder / f"fuzz-failure-{program.digest}.py"
    path.write_text(script(program, found))
    return path


_MAIN = '''

def attempt(module, given, events, left):
    """The result, the arguments afterwards and the module's state; or the error. `left` is all that is around it."""
    put_effects(left[0])
    try:
        for event in events:
            exec(event, {**globals(), "module": module})
        result = module(*given)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        modes = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        left[0] = effects()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    python = [[m.log, m.count, m.last] for m in module.modules() if hasattr(m, "log")]
    return {"result": result, "grad": modes, "arguments": given, "state": state, "left": [left, copy.deepcopy(python)]}


def same(a, b):
    if type(a) is not type(b):
        return False
    if not isinstance(a, torch.Tensor):
        return a == b
    alike = (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
    return alike and bool(((a == b) | ((a != a) & (b != b))).all())


def main():
    wrong = False
    flatten = torch.utils._pytree.tree_leaves_with_path
    for verify in (False, True):
        eager = Forward().eval()
        config = {"profile": False, "verify": verify, "min_nodes": MIN_NODES, "enable_cache": False}
        fused = fusion.enable(copy.deepcopy(eager), config)
        lefts = [[effects()], [effects()]]
        for number, (sizes, seed) in enumerate(CALLS):
            events = [event for at, event in EVENTS if at == number]
            with torch.no_grad():
                wanted = flatten(attempt(eager, arguments(**sizes, seed=seed), events, lefts[0]))
                found = flatten(attempt(fused, arguments(**sizes, seed=seed), events, lefts[1]))
            pairs = [(p, a, b) for (p, a), (_, b) in zip(found, wanted) if "Store" not in type(a).__name__]
            for path, a, b in pairs:
                if not same(a, b):
                    print(f"verify={verify}, {sizes}, seed {seed}: {path} differs")
                    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape:
                        print("  largest difference", (a.double() - b.double()).abs().nan_to_num(0.0).max().item())
                    print(f"  fused {a}\\n  eager {b}")
                    wrong = True
        print(fusion.report(fused))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
'''
