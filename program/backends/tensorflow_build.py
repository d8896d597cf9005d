"""What the installed TensorFlow was built for, read from its files, as importing it comes too late."""

import ast
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tandem.errors import TandemError
from tandem.runtime.devices import Build

BUILD_INFO = Path("python", "platform", "build_info.py")


def read_build(path: Sequence[str] | None = None) -> Build | None:
    """Describe the TensorFlow that `import tensorflow` would find on `path` (default `sys.path`), or None.

    Raises `TandemError` when it is there but incomplete.
    """
    spec = PathFinder.find_spec("tensorflow", path)
    # a folder without __init__.py, left behind by an uninstall, has no origin
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    facts = _read_facts(package / BUILD_INFO)
    is_cuda_build = bool(facts.get("is_cuda_build"))
    return Build(
        framework=f"TensorFlow {_read_version(package.parent, is_cuda_build=is_cuda_build)}".rstrip(),
        cuda_version=facts.get("cuda_version") if is_cuda_build else None,
        capabilities=tuple(facts.get("cuda_compute_capabilities", ())) if is_cuda_build else (),
    )


def _read_facts(file: Path) -> dict[str, Any]:
    """Evaluate the one assignment `build_info = collections.OrderedDict([(name, value), …])` of the file."""
    try:
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "build_info":
                literal = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
                return dict(ast.literal_eval(literal))
    except (OSError, SyntaxError, ValueError, TypeError, IndexError) as error:
        raise TandemError(
            f"the installed TensorFlow is incomplete: {file}: {error}; install it again"
        ) from error
    raise TandemError(f"the installed TensorFlow is incomplete: {file} has no build_info; install it again")


def _read_version(site_packages: Path, *, is_cuda_build: bool) -> str:
    """Version of the distribution that the package came from, empty when neither usual name is there."""
    # both may be installed over each other; the files then belong to the one of their kind
    names = ("tensorflow", "tensorflow-cpu") if is_cuda_build else ("tensorflow-cpu", "tensorflow")
    for name in names:
        for distribution in metadata.distributions(name=name, path=[str(site_packages)]):
            return distribution.version
    return ""
