// SPDX-License-Identifier: Apache-2.0
//
// Where patches lie: which part of a sub-image is picture and not padding, and which sub-image a
// patch of the full image falls to.
#pragma once

#include "../group.h"
#include "../picture.h"

namespace hired {
inline namespace HIRED_ISA {

// Patches of one sub-image that are picture: [y0, y1) x [x0, x1) of side x side.
struct Box {
  int32_t y0, y1, x0, x1;

  HIRED_FN int32_t area() const { return (y1 - y0) * (x1 - x0); }
  HIRED_FN bool holds(int32_t y, int32_t x) const { return y0 <= y && y < y1 && x0 <= x && x < x1; }
};

HIRED_FN int32_t clamp_to(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

HIRED_FN Box sub_image_box(const Picture& picture, int32_t side, int32_t sub_image) {
  const int32_t y = sub_image / picture.cols * side, x = sub_image % picture.cols * side;
  return {clamp_to(picture.top - y, 0, side), clamp_to(picture.bottom - y, 0, side),
          clamp_to(picture.left - x, 0, side), clamp_to(picture.right - x, 0, side)};
}

// Whether no sub-image has padding. T need not be square then.
HIRED_FN bool is_whole(const Picture& picture, int32_t side) {
  return picture.bottom - picture.top == picture.rows * side &&
         picture.right - picture.left == picture.cols * side;
}

// Which of `parts` sub-images along one axis the centre of patch i of the full image lies in, where
// the full image shows [low, high) of the assembled axis.
template <class Wide>
HIRED_FN int32_t part_of(int32_t i, int32_t side, int32_t low, int32_t high, int32_t parts) {
  const Wide centre = Wide{2} * side * low + (Wide{2} * i + 1) * (high - low);
  const auto part = static_cast<int32_t>(centre / (Wide{2} * side * side));
  return part < parts ? part : parts - 1;
}

template <class Wide>
HIRED_FN int32_t sub_image_of(const Picture& picture, int32_t side, int32_t t) {
  const int32_t r = part_of<Wide>(t / side, side, picture.top, picture.bottom, picture.rows);
  const int32_t c = part_of<Wide>(t % side, side, picture.left, picture.right, picture.cols);
  return r * picture.cols + c;
}

}  // namespace HIRED_ISA
}  // namespace hired
