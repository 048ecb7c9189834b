// SPDX-License-Identifier: Apache-2.0
//
// Cuts one piece of workspace into aligned arrays, a gap behind each; where there is no workspace
// yet, the same code counts its bytes. Under AddressSanitizer the gaps are out of bounds.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace hired {

class Arena {
 public:
  // Whether the workspace is memory of this machine, or of a GPU.
  enum class Where { kHost, kDevice };

  Arena(void* base, Where where)
      : poison_(base != nullptr && where == Where::kHost),
        next_(aligned(reinterpret_cast<uintptr_t>(base))) {}

  template <class Value>
  Value* take(int64_t count) {
    const uintptr_t piece = next_, end = piece + static_cast<uintptr_t>(count) * sizeof(Value);
    next_ = aligned(end) + kAlignment;
#if defined(__SANITIZE_ADDRESS__)
    if (poison_) __asan_poison_memory_region(reinterpret_cast<void*>(end), next_ - end);
#endif
    return reinterpret_cast<Value*>(piece);
  }

  // Of an arena without memory: what a workspace of any alignment has to have.
  size_t bytes() const { return next_ + kAlignment; }

 private:
  static constexpr uintptr_t kAlignment = 64;
  static uintptr_t aligned(uintptr_t p) { return (p + kAlignment - 1) / kAlignment * kAlignment; }

  [[maybe_unused]] bool poison_;
  uintptr_t next_;
};

}  // namespace hired
