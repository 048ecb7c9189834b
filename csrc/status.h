// SPDX-License-Identifier: Apache-2.0
//
// The one way in which csrc says no: which argument, what was expected, what came. Nothing here
// prints, throws or exits; python/ raises, with the operator's name in front.
#pragma once

#include <string>
#include <utility>

namespace hired {

struct [[nodiscard]] Status {
  std::string argument;  // empty: all is well
  std::string expected;
  std::string got;

  bool ok() const { return argument.empty(); }
  std::string message() const { return argument + ": expected " + expected + ", got " + got; }

  static Status Ok() { return {}; }
  static Status Refused(std::string argument, std::string expected, std::string got) {
    return {std::move(argument), std::move(expected), std::move(got)};
  }
};

}  // namespace hired
