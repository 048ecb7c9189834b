#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts a browser under build/browser, for the test of the demo's page.

    python tools/fetch_browser.py [FOLDER]      FOLDER: build/browser unless given

It is Chromium without windows, for x86-64 Linux, as the npm package @sparticuz/chromium carries it,
compressed, with the libraries that a small system lacks. About 68 MB are fetched, 210 MB unpacked.
npm fetches and checks it; node, which comes with npm, unpacks it.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "@sparticuz/chromium@147.0.0"
DONE = ".package"  # holds the name of the package that the folder has
UNPACK = """
const fs = require("fs"), zlib = require("zlib"), { pipeline } = require("stream");
const [from, to] = process.argv.slice(1);
pipeline(fs.createReadStream(from), zlib.createBrotliDecompress(), fs.createWriteStream(to),
         (error) => { if (error) throw error; });
"""


def fetch(folder: Path) -> Path:
    """The package, unpacked from npm's archive."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"npm could not fetch {PACKAGE}: see above")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / "package"


def unpack(package: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, target in (
            ("chromium.br", folder / "chromium"),
            ("al2023.tar.br", Path(scratch) / "libraries.tar"),
        ):
            source = package / "bin" / name
            subprocess.run(["node", "-e", UNPACK, str(source), str(target)], check=True)
        with tarfile.open(Path(scratch) / "libraries.tar") as files:
            files.extractall(folder, filter="data")
    (folder / "chromium").chmod(0o755)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "browser")
    folder = parser.parse_args().folder.resolve()
    done = folder / DONE
    if done.exists() and done.read_text().strip() == PACKAGE:
        print(f"{folder}: {PACKAGE} is there")
        return
    if folder.exists() and any(folder.iterdir()) and not (folder / "chromium").exists():
        sys.exit(f"{folder}: expected an empty folder, or one that this script began")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("expected Linux on x86-64, which is what the package's browser is for")
    if not (shutil.which("npm") and shutil.which("node")):
        sys.exit("expected npm and node, found none. Install them (Debian: npm)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        unpack(fetch(Path(scratch)), folder)
    done.write_text(PACKAGE + "\n")
    print(f"{folder}: {PACKAGE}")


if __name__ == "__main__":
    main()
