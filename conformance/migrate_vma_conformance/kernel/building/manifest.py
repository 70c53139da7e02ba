"""The manifest of a built guest: what it was made from and what came out, as JSON beside the products.

Rules:
- A product that the manifest does not name, or names with another size or hash, is not used.
- The manifest is written last, in one rename: a guest without one is not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

MANIFEST = "manifest.json"
FORMAT = 1
_PART = 1 << 20


class Unreadable(Exception):
    """A manifest, or a product that it names, is not as it was written. The message is a clause of a sentence."""


@frozen
class Product:
    """A file of a guest."""

    sha256: str
    size: int


@frozen
class Manifest:
    """What a guest was made from, and what came out.

    `inputs` are hashes of all that is ours and decides the products, by names for people; another hash makes a guest stale.
    `source` is the package's name and version, or the file that it was taken from, and `source_sha256` the hash of its archive.
    `tools` are the versions of what built it, `built` is the time of its end (UTC, ISO 8601). `seconds` are what each stage took
    by the clock, `processor_seconds` what it took of all processors together, which a busy machine changes little.
    """

    name: str
    generation: str
    release: str
    source: str
    source_sha256: str
    inputs: Mapping[str, str]
    tools: Mapping[str, str]
    seconds: Mapping[str, float]
    built: str
    products: Mapping[str, Product]
    processor_seconds: Mapping[str, float] = field(factory=dict[str, float])

    def check_sizes(self, directory: Path) -> None:
        """Are the products there, each with its size? Quick: for every use of a guest.

        Raises:
            Unreadable: one is not.
        """
        for name, product in self.products.items():
            path = directory / name
            if not path.is_file():
                raise Unreadable(f"{name} is missing")
            if path.stat().st_size != product.size:
                raise Unreadable(f"{name} has {path.stat().st_size} bytes where {product.size} were built")

    def check_hashes(self, directory: Path) -> None:
        """Are the products what was built, byte for byte?

        Raises:
            Unreadable: one is not.
        """
        self.check_sizes(directory)
        for name, product in self.products.items():
            if sha256(directory / name) != product.sha256:
                raise Unreadable(f"{name} is not what was built: its hash differs")


def sha256(path: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def products_of(directory: Path, names: Iterable[str]) -> dict[str, Product]:
    """These files of the directory, as a manifest names them."""
    return {name: Product(sha256(directory / name), (directory / name).stat().st_size) for name in names}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write it in the place of an earlier one, whole or not at all."""
    partial = directory / f"{MANIFEST}.partial"
    partial.write_text(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2, sort_keys=True) + "\n")
    partial.replace(directory / MANIFEST)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a directory.

    Raises:
        Unreadable: it is missing, none of ours, or of another format.
    """
    try:
        document: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        if document.pop("format") != FORMAT:
            raise Unreadable("its manifest is of another format")
        products = {name: Product(**product) for name, product in document.pop("products").items()}
        return Manifest(products=products, **document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Unreadable(f"its manifest cannot be read ({type(error).__name__}: {error})") from error
