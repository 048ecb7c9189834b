// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace hired {
namespace {

using Wide = __int128;  // products of two 64-bit arguments

std::string number(int64_t value) {
  return std::to_string(value);
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  // printf signs a NaN; Python does not.
  return std::isnan(value) ? "nan" : text;
}

std::string quoted(const std::string& text) {
  return "'" + text + "'";
}

std::string for_picture(const std::string& got, size_t picture) {
  return got + " for picture " + std::to_string(picture);
}

std::string grid_text(int64_t R, int64_t C) {
  return "(" + number(R) + ", " + number(C) + ")";
}

// Policies and orders by their names, in the order of their enums.
constexpr const char* kPolicies[] = {"exact", "published", "pooled"};
constexpr const char* kOrders[] = {"raster", "partition", "full_last"};
constexpr int64_t kMaxMerge = 64;

// Where `word` stands among the names; as many as there are where it is none of them.
template <size_t kCount>
size_t place_of(const std::string& word, const char* const (&names)[kCount]) {
  return static_cast<size_t>(std::find(names, names + kCount, word) - names);
}

template <size_t kCount>
Status check_word(const char* argument, const std::string& word,
                  const char* const (&names)[kCount]) {
  if (place_of(word, names) < kCount) return Status::Ok();
  std::string expected = names[0];
  for (size_t i = 1; i < kCount; ++i)
    expected += (i + 1 < kCount ? ", " : " or ") + std::string(names[i]);
  return Status::Refused(argument, expected, quoted(word));
}

Status check_words(const Integers& in) {
  for (Status status :
       {check_word("policy", in.policy, kPolicies), check_word("order", in.order, kOrders)}) {
    if (!status.ok()) return status;
  }
  if (!(in.alpha >= 0.0 && in.alpha <= 1.0)) {
    return Status::Refused("alpha", "a number in [0, 1]", number(in.alpha));
  }
  return Status::Ok();
}

Status check_merge(const Integers& in, int64_t T, int64_t side) {
  if (in.merge < 1 || in.merge > kMaxMerge) {
    return Status::Refused("merge", "an integer in [1, " + number(kMaxMerge) + "]",
                           number(in.merge));
  }
  if (in.merge == 1) return Status::Ok();
  if (in.policy == "published") {
    return Status::Refused("merge", "1 under the published policy", number(in.merge));
  }
  if (side * side != T) {
    return Status::Refused("features", "T square, for blocks of patches", "T = " + number(T));
  }
  if (side % in.merge != 0) {
    return Status::Refused("merge", "a divisor of the side of " + number(side) + " patches",
                           number(in.merge));
  }
  return Status::Ok();
}

Status check_lengths(const Integers& in) {
  if (in.grids.size() % 2 != 0) {
    return Status::Refused("grids", "two integers a picture", std::to_string(in.grids.size()));
  }
  const size_t B = in.grids.size() / 2;
  const std::string pictures = " for each of " + std::to_string(B) + " pictures";
  if (in.budgets.size() != B) {
    return Status::Refused("budgets", "one integer" + pictures, std::to_string(in.budgets.size()));
  }
  if (in.crops && in.crops->size() != 4 * B) {
    return Status::Refused("crops", "four integers" + pictures, std::to_string(in.crops->size()));
  }
  return Status::Ok();
}

Status check_grids(const Integers& in, int64_t P) {
  constexpr Wide kTooMany = Wide{1} << 63;
  Wide total = 0;
  for (size_t i = 0; i < in.budgets.size(); ++i) {
    const int64_t R = in.grids[2 * i], C = in.grids[2 * i + 1];
    if (R < 0 || C < 0 || (R == 0) != (C == 0)) {
      return Status::Refused("grids", "R and C both 0 or both at least 1",
                             for_picture(grid_text(R, C), i));
    }
    // Stop adding where the sum has left the range of P: the total stays below 2^127.
    if (total < kTooMany) total += 1 + Wide{R} * C;
  }
  if (total != P) {
    return Status::Refused(
        "grids", "1 + R * C to sum to P = " + number(P),
        total < kTooMany ? number(static_cast<int64_t>(total)) : std::string("2^63 or more"));
  }
  return Status::Ok();
}

Status check_sub_images(const Integers& in, size_t i, int64_t T, int64_t side) {
  const int64_t R = in.grids[2 * i], C = in.grids[2 * i + 1], budget = in.budgets[i];
  if (in.policy == "exact" || in.order == "raster" || in.crops) {
    if (side * side != T) {
      return Status::Refused("features",
                             "T square, for the regions, raster order or crops of "
                             "sub-images",
                             "T = " + number(T));
    }
    if (in.crops) {
      const int64_t* crop = in.crops->data() + 4 * i;
      const int64_t top = crop[0], bottom = crop[1], left = crop[2], right = crop[3];
      const Wide rows = Wide{R} * (side / in.merge), cols = Wide{C} * (side / in.merge);
      if (!(0 <= top && top <= bottom && bottom <= rows && 0 <= left && left <= right &&
            right <= cols)) {
        return Status::Refused(
            "crops",
            "0 <= top <= bottom <= " + number(static_cast<int64_t>(rows)) +
                " and 0 <= left <= right <= " + number(static_cast<int64_t>(cols)),
            for_picture("(" + number(top) + ", " + number(bottom) + ", " + number(left) + ", " +
                            number(right) + ")",
                        i));
      }
    }
  }
  if (in.policy == "published") {
    if (T % (R * C) != 0) {
      return Status::Refused("grids",
                             "R * C to divide T = " + number(T) + " under the published policy",
                             for_picture(grid_text(R, C), i));
    }
    if (first_share(T, 1.0 - in.alpha) == 0 &&
        budget > std::min(first_share(budget, in.alpha), T)) {
      return Status::Refused("alpha",
                             "int(T * (1 - alpha)) >= 1 where tokens are left for sub-images "
                             "under the published policy",
                             number(in.alpha));
    }
  }
  return Status::Ok();
}

Status check_limits(const Integers& in, int64_t P, int64_t T, const Limits& limits) {
  const std::string served = std::string(" on the ") + limits.backend + " backend";
  if (P > limits.partitions) {
    return Status::Refused("features", "P <= " + number(limits.partitions) + served,
                           "P = " + number(P));
  }
  if (P > 0 && T > limits.tokens) {
    return Status::Refused("features", "T <= " + number(limits.tokens) + served,
                           "T = " + number(T));
  }
  for (size_t i = 0; i < in.budgets.size(); ++i) {
    const int64_t R = in.grids[2 * i], C = in.grids[2 * i + 1];
    if (R * C > limits.sub_images) {
      return Status::Refused("grids", "R * C <= " + number(limits.sub_images) + served,
                             for_picture(grid_text(R, C), i));
    }
  }
  return Status::Ok();
}

int64_t integer_root(int64_t T) {
  auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(T)));
  while (root > 0 && root > T / root) --root;
  while (root + 1 <= T / (root + 1)) ++root;
  return root;
}

// The budget of one picture, and how the full image and the sub-images part it, of M tokens each.
// Where M is not square, nothing is cropped, and rows and columns say nothing.
void part_budget(int64_t budget, double alpha, int64_t M, Policy policy, bool cropped,
                 Picture* picture) {
  const int64_t sub_images = picture->sub_images();
  const int64_t area = int64_t{picture->bottom - picture->top} * (picture->right - picture->left);
  const int64_t taken = policy == Policy::kPublished || !cropped ? sub_images * M : area;
  const int64_t rows = std::min(budget, M + taken);
  picture->output_rows = static_cast<int32_t>(rows);
  if (policy == Policy::kPooled) return;  // which parts nothing
  int64_t full = rows;
  if (sub_images > 0 && policy == Policy::kExact) {
    full = std::max(std::min(first_share(rows, alpha), M), rows - taken);
  } else if (sub_images > 0) {
    full = std::min(first_share(budget, alpha), M);
  }
  picture->full_budget = static_cast<int32_t>(full);
  picture->rest = static_cast<int32_t>(std::min(budget - full, taken));
}

}  // namespace

int64_t first_share(int64_t count, double alpha) {
  const double product = static_cast<double>(count) * alpha;
  return product >= static_cast<double>(count) ? count : static_cast<int64_t>(product);
}

Status make_plan(const Integers& in, int64_t P, int64_t T, const Limits& limits, Plan* plan) {
  const int64_t side = integer_root(T);
  for (Status status : {check_words(in), check_merge(in, T, side), check_lengths(in)}) {
    if (!status.ok()) return status;
  }
  if (Status status = check_grids(in, P); !status.ok()) return status;
  const size_t B = in.budgets.size();
  for (size_t i = 0; i < B; ++i) {
    if (in.budgets[i] < 0) {
      return Status::Refused("budgets", "integers of at least 0",
                             for_picture(number(in.budgets[i]), i));
    }
  }
  if (Status status = check_limits(in, P, T, limits); !status.ok()) return status;
  for (size_t i = 0; i < B; ++i) {
    if (in.grids[2 * i] == 0) continue;
    if (Status status = check_sub_images(in, i, T, side); !status.ok()) return status;
  }

  const int64_t M = T / (in.merge * in.merge), cells = side / in.merge;
  plan->rules.tokens = static_cast<int32_t>(M);
  plan->rules.side = static_cast<int32_t>(cells);
  plan->rules.merge = static_cast<int32_t>(in.merge);
  plan->rules.counted = static_cast<int32_t>(first_share(M, 1.0 - in.alpha));
  plan->rules.policy = static_cast<Policy>(place_of(in.policy, kPolicies));
  plan->rules.order = static_cast<Order>(place_of(in.order, kOrders));
  plan->pictures.resize(B);
  plan->output_rows = 0;
  plan->init_rows = 0;
  int64_t partition = 0;
  for (size_t i = 0; i < B; ++i) {
    Picture& picture = plan->pictures[i];
    picture.first_row = plan->output_rows;
    picture.first_partition = static_cast<int32_t>(partition);
    picture.rows = static_cast<int32_t>(in.grids[2 * i]);
    picture.cols = static_cast<int32_t>(in.grids[2 * i + 1]);
    const bool cropped = in.crops && picture.sub_images() > 0;
    const int64_t* crop = cropped ? in.crops->data() + 4 * i : nullptr;
    picture.top = cropped ? static_cast<int32_t>(crop[0]) : 0;
    picture.bottom = static_cast<int32_t>(cropped ? crop[1] : picture.rows * cells);
    picture.left = cropped ? static_cast<int32_t>(crop[2]) : 0;
    picture.right = static_cast<int32_t>(cropped ? crop[3] : picture.cols * cells);
    part_budget(in.budgets[i], in.alpha, M, plan->rules.policy, cropped, &picture);
    plan->output_rows += picture.output_rows;
    picture.init_row = plan->init_rows;
    plan->init_rows += picture.rest > 0;
    partition += 1 + picture.sub_images();
  }
  return Status::Ok();
}

}  // namespace hired
