// Ids 0 to n - 1 that are free or taken: KV blocks, and slots.
#pragma once

#include <cstdint>
#include <vector>

namespace pipeinfer {

/// Deterministic: a fresh allocator gives 0, 1, 2, ..., later the id released last comes first.
class IdAllocator {
 public:
  explicit IdAllocator(int32_t n);

  int32_t available() const { return static_cast<int32_t>(free_.size()); }

  /// There must be one.
  int32_t take();

  /// Must be taken.
  void release(int32_t id);

 private:
  std::vector<int32_t> free_;  // the next one is the last
  std::vector<bool> taken_;    // [n]
};

}  // namespace pipeinfer
