"""The command `align`. Help and mistakes are answered without importing torch."""

from __future__ import annotations

import ast
import atexit
import difflib
import gc
import importlib
import os
import sys
import threading
import traceback
from pathlib import Path

# command -> (module, what it does); each module has main(overrides: list[str]) -> None and a docstring for --help
COMMANDS = {
    "train": ("recipes.train", "align a generator by an objective, measure, report"),
    "study": ("recipes.study", "train an objective and its control over seeds, compare with the base, report"),
    "data": ("recipes.data", "make training data (codes, captions, preference pairs) and statistics of real images"),
    "bench": ("recipes.bench", "tabulate what every objective gains, or measure time and memory beside others"),
    "sample": ("recipes.sample", "draw images from any checkpoint"),
    "eval": ("recipes.evaluate", "score a checkpoint under one sampling setting, or anybody's images"),
    "sweep": ("recipes.sweep", "score checkpoints over a grid of sampling settings, report the best on other seeds"),
    "compare": ("recipes.compare", "set runs side by side: differences with intervals, paired by seed"),
    "report": ("recipes.report", "write a run's report.html again, or a leaderboard over many runs"),
    "push": ("recipes.push", "put an aligned generator on the Hugging Face Hub, with a model card"),
    "rewards": ("recipes.rewards", "list rewards, show one, score images by it, check your own"),
    "doctor": ("recipes.doctor", "look at machine, packages and rewards, and say what to do about each finding"),
    "inspect": ("recipes.inspect_checkpoint", "tell what a checkpoint is, what is odd about it, and which recipes fit"),
    "zoo": ("recipes.zoo", "list the shipped generators, or show one's card"),
    "pretrain": ("recipes.pretrain", "make a zoo entry from nothing"),
}
USAGE = """usage: align COMMAND [key=value ...]

Post-training alignment for autoregressive image generators.

{commands}

Every setting is a key=value; `align COMMAND --help` shows them. To begin:
  align train experiment=mnist/cca      align the shipped generator, a few minutes on two cores
  align zoo                             what is shipped
"""


def entry() -> None:
    """What the command `align` runs: `main`, and the way out of the process."""
    code = main()
    # a reward that was broken off is still on its way: met in torch by the end of the interpreter, it would abort. So
    # would gloo's threads; and of several processes the one that fails must not wait for anything, for the others wait
    on_its_way = any(thread.name.startswith("reward") for thread in threading.enumerate())
    if on_its_way or "WORLD_SIZE" in os.environ:
        if code == 0:
            atexit._run_exitfuncs()  # trackers finish their runs there
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: list[str] | None = None) -> int:
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `align train --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at its end
        return 0
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:<10}{summary}" for name, (_, summary) in COMMANDS.items())))
        return 0
    command, *overrides = arguments
    if command == "--version":
        from align import __version__

        print(__version__)
        return 0
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean: align {near[0]}?" if near else ""
        return _fail(f"unknown command {command!r}; known: {', '.join(COMMANDS)}.{hint}", 2)
    if "-h" in overrides or "--help" in overrides:
        return _help(command, overrides)
    # objectives of the user's own, named in a YAML, lie where they work; behind us, or their rewards.py would hide ours
    before = list(sys.path)
    sys.path += [str(Path(__file__).parents[1]), str(Path.cwd())]
    try:
        importlib.import_module(COMMANDS[command][0]).main(overrides)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("ALIGN_TRACEBACK"):
            traceback.print_exc()
        return _fail(str(error), 1, error)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if "WORLD_SIZE" not in os.environ:
            raise
        from recipes.failures import tell_unexpected

        tell_unexpected(error)
        return 1
    finally:
        if (rewards := sys.modules.get("recipes.reward_settings")) is not None:
            rewards.close_rewards()
        sys.path[:] = before
    leave_group()  # not after an error: another process may still wait for this one
    return 0


def leave_group() -> None:
    """End this process's part of a group that trained together, threads included; nothing where there is none.

    Left to the interpreter's end, gloo's threads now and then abort the process. The group ends with the last that holds
    it, and trainers do: destroying it alone leaves the threads of those that wait in reference cycles.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()


def _help(command: str, words: list[str]) -> int:
    """What a command's module says of itself; of a command of several kinds, what the chosen kind's does."""
    module = COMMANDS[command][0]
    tree = ast.parse(_source(module).read_text())
    kinds = _kinds(tree)
    kind = next((word for word in words if word in kinds), None)
    if kind is not None:
        module = kinds[kind]
        tree = ast.parse(_source(module).read_text())
    chosen = kind or (f"{{{','.join(kinds)}}}" if kinds else "")
    print(f"usage: {' '.join(filter(None, ['align', command, chosen]))} [key=value ...]\n")
    print(ast.get_docstring(tree))
    name = command if kind is None else _source(module).stem
    if (Path(__file__).parent / "conf" / f"{name}.yaml").exists():
        from recipes.help_text import describe

        print(f"\n{describe(name, words)}")
    return 0


def _source(module: str) -> Path:
    return Path(__file__).parent / f"{module.split('.')[1]}.py"


def _kinds(tree: ast.Module) -> dict[str, str]:
    """A module's KINDS: the words that may follow its command, and the module that each is for."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "KINDS":
            kinds: dict[str, str] = ast.literal_eval(node.value)
            return kinds
    return {}


def _fail(message: str, code: int, error: Exception | None = None) -> int:
    if error is not None and "WORLD_SIZE" in os.environ:
        from recipes.failures import tell_failure

        tell_failure(error, message)
    else:
        print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    entry()
