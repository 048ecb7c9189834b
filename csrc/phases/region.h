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

// Patch i of the full image lies in part (2 * side * low + (2 * i + 1) * (high - low)) / (2 *
// side^2) along one axis, rounded down and no more than the last, where the full image shows [low,
// high) of the assembled axis, low < high. This is the first patch in part `part` or a later one.
template <class Wide>
HIRED_FN int32_t first_in_part(int32_t part, int32_t side, int32_t low, int32_t high) {
  const Wide before = Wide{2} * side * (Wide{side} * part - low);
  if (before <= 0) return 0;
  // 2 * i + 1 >= before / (high - low), rounded up
  const Wide odd = (before + (high - low) - 1) / (high - low);
  return odd / 2 < side ? static_cast<int32_t>(odd / 2) : side;
}

// The patches of the full image whose centres lie in a sub-image.
template <class Wide>
HIRED_FN Box full_image_box(const Picture& picture, int32_t side, int32_t sub_image) {
  const int32_t r = sub_image / picture.cols, c = sub_image % picture.cols;
  const auto first = [&](int32_t part, int32_t parts, int32_t low, int32_t high) {
    return part < parts ? first_in_part<Wide>(part, side, low, high) : side;
  };
  return {first(r, picture.rows, picture.top, picture.bottom),
          first(r + 1, picture.rows, picture.top, picture.bottom),
          first(c, picture.cols, picture.left, picture.right),
          first(c + 1, picture.cols, picture.left, picture.right)};
}

}  // namespace HIRED_ISA
}  // namespace hired
