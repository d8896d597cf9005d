"""What a user's program needs beside the image: requirements.txt, installed without replacing anything."""

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
#: What packages that bring the same modules differ by: none of them may come in another version.
VARIANTS = ("-cpu", "-gpu", "-headless")
#: Folders beside it whose wheels are taken instead of an index.
VENDORED = ("wheels", "lib")
OPTIONS = (
    "--disable-pip-version-check",
    "--no-input",
    "--root-user-action=ignore",
    "--no-warn-script-location",
)


def install_requirements(folder: Path) -> list[Path]:
    """Install `requirements.txt` of `folder` aside; give the folders to import from, none without the file.

    Every package that is already installed keeps its version. Wheels in `wheels/` or `lib/` are taken
    without asking an index. Raises `UserError` with pip's reason where that is not possible.
    """
    wanted = folder / NAME
    if not wanted.is_file():
        return []
    prefix = Path(tempfile.mkdtemp(prefix="requirements-"))
    constraints = prefix / "constraints.txt"
    constraints.write_text("".join(f"{line}\n" for line in list_installed()), encoding="utf-8")
    vendored = find_wheels(folder)
    source = ["--no-index", "--find-links", str(vendored)] if vendored else []
    places = ["--prefix", str(prefix), "--constraint", str(constraints), "--requirement", str(wanted)]
    logger.info("installing %s from %s", wanted, vendored or "the index that pip is set to")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *OPTIONS, *source, *places],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    logger.log(logging.ERROR if done.returncode else logging.INFO, "pip: %s", done.stdout.strip())
    if done.returncode:
        where = f"{vendored} has no fitting wheel" if vendored else "no index was reached or has it"
        raise UserError(f"{wanted} cannot be installed: {explain(done.stdout, where)}")
    scheme = sysconfig.get_preferred_scheme("prefix")
    variables = {"base": str(prefix), "platbase": str(prefix)}
    paths = (Path(sysconfig.get_path(kind, scheme, variables)) for kind in ("purelib", "platlib"))
    return [path for path in dict.fromkeys(paths) if path.is_dir()]


def find_wheels(folder: Path) -> Path | None:
    """Find the folder of vendored wheels beside requirements.txt; None where there is none."""
    found = (folder / name for name in VENDORED if any((folder / name).glob("*.whl")))
    return next(found, None)


def list_installed() -> list[str]:
    """List what is installed as constraints for pip, `name==version`, with the variants of each name."""
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
    """Make one sentence of what pip printed: the conflict, or what was not found."""
    lines = [line.strip() for line in output.splitlines()]
    faults = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if "The conflict is caused by:" in lines:
        start = lines.index("The conflict is caused by:") + 1
        sides = [line.replace("The user requested (constraint)", "this image has") for line in lines[start:]]
        sides = [side.replace("The user requested", "asked for is") for side in sides[: sides.index("")]]
        return (
            f"{'; '.join(sides)}. What the image has stays; ask for a version that fits it, or leave it out."
        )
    missing = next((line for line in faults if line.startswith("No matching distribution found for ")), None)
    if missing:
        python = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {sysconfig.get_platform()}"
        name = missing.removeprefix("No matching distribution found for ")
        if present := _find_version(name):
            return (
                f"{name} was not found: {where}. This image has {present}, which stays; ask for a version "
                "that fits it, or leave it out."
            )
        return f"{name} was not found: {where}. Put a wheel of it for {python} into wheels/ beside the file."
    return faults[0] if faults else "pip failed; its words stand in the log."


def _find_version(requirement: str) -> str:
    """Give what is installed of a requirement's package, or in its place, as name==version; else ""."""
    named = re.match(r"[\w.-]+", requirement, re.ASCII)
    if not named:
        return ""
    try:
        return f"{named[0]}=={metadata.version(named[0])}"
    except metadata.PackageNotFoundError:  # another distribution may have brought its module
        module = re.sub(r"[-.]", "_", named[0]).lower()
        names = dict.fromkeys(metadata.packages_distributions().get(module, []))
        return " and ".join(f"{name}=={metadata.version(name)}" for name in names)
