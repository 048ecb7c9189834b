# SPDX-License-Identifier: Apache-2.0
"""Pictures of every kind of pixel come out as their eight-bit twins."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hired_kernels.cli import demo

VALUES = np.linspace(0, 255, 64 * 48).round().reshape(48, 64)
GREY = Image.fromarray(VALUES.astype(np.uint8))
KINDS = {
    "16.png": np.uint16(VALUES * 257),
    "16.tif": np.uint16(VALUES * 257),
    "16-big-endian.tif": (VALUES * 257).astype(">u2"),
    "32-as-16.tif": np.int32(VALUES * 257),
    "32-as-8.tif": np.int32(VALUES),
    "32.tif": np.int32(VALUES * 8421504),
    "unit.tif": np.float32(VALUES / 255),
    "float-as-8.tif": np.float32(VALUES),
    "float-as-16.tif": np.float32(VALUES * 257),
    "float.tif": np.float32(VALUES * 1e30),
}


@pytest.mark.parametrize("name", KINDS)
def test_more_bits_are_scaled_to_eight(name, tmp_path):
    Image.fromarray(KINDS[name]).save(tmp_path / name)
    read = demo.open_picture(str(tmp_path / name))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), np.stack([VALUES] * 3, axis=-1))


def test_16_bits_of_a_netpbm_file(tmp_path):
    header = b"P5 64 48 65535 "
    (tmp_path / "16.pgm").write_bytes(header + (VALUES * 257).astype(">u2").tobytes())
    assert np.array_equal(np.asarray(demo.open_picture(str(tmp_path / "16.pgm")))[..., 1], VALUES)


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    Image.fromarray(np.uint16(VALUES)).save(tmp_path / "dark.png")
    assert np.asarray(demo.open_picture(str(tmp_path / "dark.png"))).max() == 1


def test_what_is_no_number_is_black_or_white(tmp_path):
    values = np.float32(VALUES / 255)
    values[0, :4] = np.nan, np.inf, -np.inf, -0.5
    Image.fromarray(values).save(tmp_path / "odd.tif")
    read = np.asarray(demo.open_picture(str(tmp_path / "odd.tif")))[..., 0]
    assert read[0, :4].tolist() == [0, 255, 0, 0]
    assert np.array_equal(read[1:], VALUES[1:])


@pytest.mark.parametrize("name", ["1.png", "L.png", "LA.png", "P.png", "RGBA.png", "CMYK.tif"])
def test_other_modes(name, tmp_path):
    picture = GREY.convert(name.partition(".")[0])
    picture.save(tmp_path / name)
    read = demo.open_picture(str(tmp_path / name))
    assert np.array_equal(np.asarray(read), np.asarray(picture.convert("RGB")))


def test_16_bits_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.fromarray(np.uint16(VALUES * 257)).save(tmp_path / "turned.png", exif=exif)
    read = np.asarray(demo.open_picture(str(tmp_path / "turned.png")))
    assert np.array_equal(read[..., 0], np.rot90(VALUES, -1))
