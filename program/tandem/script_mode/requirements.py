"""Installation of a user's requirements.txt without replacing installed packages."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from tandem.errors import UserError

logger = logging.getLogger(__name__)

NAME = "requirements.txt"
#: Suffixes of packages with the same modules: none of them may be installed in another version.
VARIANTS = ("-cpu", "-gpu", "-headless")
#: Folders beside it whose wheels replace an index.
VENDORED = ("wheels", "lib")
OPTIONS = (
    "--disable-pip-version-check",
    "--no-input",
    "--root-user-action=ignore",
    "--no-warn-script-location",
)


def install_requirements(folder: Path) -> list[Path]:
    """Install `requirements.txt` of `folder` to a new prefix; return the folders to import from.

    Installed packages keep their versions. With wheels in `wheels/` or `lib/`, no index is used. Without the
    file, nothing is installed. Raises `UserError` with pip's reason for a failure.
    """
    wanted = folder / NAME
    if not wanted.is_file():
        return []
    prefix = Path(tempfile.mkdtemp(prefix="requirements-"))
    constraints = prefix / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in list_installed()), encoding="utf-8")
    vendored = find_wheels(folder)
    source = ["--no-index", "--find-links", str(vendored)] if vendored else []
    target = ["--prefix", str(prefix), "--constraint", str(constraints), "--requirement", str(wanted)]
    logger.info("installing %s from %s", wanted, vendored or "the index that pip is set to")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *OPTIONS, *source, *target],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    logger.log(logging.ERROR if done.returncode else logging.INFO, "pip: %s", done.stdout.strip())
    if done.returncode:
        where = f"{vendored} has no matching wheel" if vendored else "no index was reached or has it"
        raise UserError(f"{wanted} cannot be installed: {explain(done.stdout, where)}")
    scheme = sysconfig.get_preferred_scheme("prefix")
    variables = {"base": str(prefix), "platbase": str(prefix)}
    paths = (Path(sysconfig.get_path(kind, scheme, variables)) for kind in ("purelib", "platlib"))
    return [path for path in dict.fromkeys(paths) if path.is_dir()]


def find_wheels(folder: Path) -> Path | None:
    """Return the folder of vendored wheels beside requirements.txt; None if there is none."""
    found = (folder / name for name in VENDORED if any((folder / name).glob("*.whl")))
    return next(found, None)


def list_installed() -> list[str]:
    """Return constraints for pip, `name==version`, of the installed packages and their variants."""
    found = {
        str(each.metadata["Name"]).lower().replace("_", "-"): each.version
        for each in metadata.distributions()
        if each.metadata["Name"] and each.version
    }
    for name in list(found):
        base = next((name.removesuffix(variant) for variant in VARIANTS if name.endswith(variant)), name)
        for other in (base, *(base + variant for variant in VARIANTS)):
            found.setdefault(other, found[name])
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def explain(output: str, where: str) -> str:
    """Return pip's output as one sentence: the conflict, or the missing package."""
    lines = [line.strip() for line in output.splitlines()]
    faults = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if "The conflict is caused by:" in lines:
        start = lines.index("The conflict is caused by:") + 1
        sides = [line.replace("The user requested (constraint)", "this image has") for line in lines[start:]]
        sides = [
            side.replace("The user requested", "requirements.txt has") for side in sides[: sides.index("")]
        ]
        return (
            f"{'; '.join(sides)}. The image's packages are not replaced; request a version that fits, or "
            "leave it out."
        )
    missing = next((line for line in faults if line.startswith("No matching distribution found for ")), None)
    if missing:
        python = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sysconfig.get_platform()}"
        name = missing.removeprefix("No matching distribution found for ")
        if present := _find_version(name):
            return (
                f"{name} was not found: {where}. This image has {present}, which is not replaced; request "
                "a version that fits, or leave it out."
            )
        return f"{name} was not found: {where}. Put a wheel of it for {python} into wheels/ beside the file."
    return faults[0] if faults else "pip failed; its output is in the log."


def _find_version(requirement: str) -> str:
    """Return the installed packages with a requirement's name or modules as name==version; else ""."""
    named = re.match(r"[\w.-]+", requirement, re.ASCII)
    if not named:
        return ""
    try:
        return f"{named[0]}=={metadata.version(named[0])}"
    except metadata.PackageNotFoundError:  # another distribution may have its module
        module = re.sub(r"[-.]", "_", named[0]).lower()
        names = dict.fromkeys(metadata.packages_distributions().get(module, []))
        return " and ".join(f"{name}=={metadata.version(name)}" for name in names)
