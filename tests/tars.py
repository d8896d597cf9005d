"""Tar archives of a user's files."""

import io
import tarfile


def pack(path, *members):
    """Write a tar archive; a member is a name with its content, or a ready TarInfo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if name.endswith(".sh") else 0o600
            tar.addfile(info, io.BytesIO(content))
    return path
