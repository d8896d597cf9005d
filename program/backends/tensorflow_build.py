"""What the installed TensorFlow was built for.

`tf.sysconfig.get_build_info()` returns the same, but importing TensorFlow takes seconds, and variables such
as CUDA_VISIBLE_DEVICES must be set before. So build_info.py, which is not a public module, is read as a file.
"""

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
    """Return the build of the TensorFlow that would be imported from `path` (default `sys.path`), or None.

    Raises `TandemError` if the installation is incomplete.
    """
    spec = PathFinder.find_spec("tensorflow", path)
    # A folder without __init__.py, left behind by an uninstall, has no origin.
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    info = _read_build_info(package / BUILD_INFO)
    is_cuda_build = bool(info.get("is_cuda_build"))
    return Build(
        framework=f"TensorFlow {_read_version(package.parent, is_cuda_build=is_cuda_build)}".rstrip(),
        cuda_version=info.get("cuda_version") if is_cuda_build else None,
        capabilities=tuple(info.get("cuda_compute_capabilities", ())) if is_cuda_build else (),
    )


def _read_build_info(file: Path) -> dict[str, Any]:
    """Return the value assigned by `build_info = collections.OrderedDict([(name, value), …])` in `file`."""
    try:
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "build_info":
                literal = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
                return dict(ast.literal_eval(literal))
    except (OSError, SyntaxError, ValueError, TypeError, IndexError) as error:
        raise TandemError(
            f"the installed TensorFlow is incomplete: {file}: {error}; install it again."
        ) from error
    raise TandemError(f"the installed TensorFlow is incomplete: {file} has no build_info; install it again.")


def _read_version(site_packages: Path, *, is_cuda_build: bool) -> str:
    """Return the version of the distribution that contains the package, empty if it has an unusual name."""
    # Both may be installed over each other; the files then show which of them is in use.
    names = ("tensorflow", "tensorflow-cpu") if is_cuda_build else ("tensorflow-cpu", "tensorflow")
    for name in names:
        for distribution in metadata.distributions(name=name, path=[str(site_packages)]):
            return distribution.version
    return ""
