#include "pipeinfer/sched/id_allocator.h"

#include <cstddef>

#include "pipeinfer/base/check.h"

namespace pipeinfer {

IdAllocator::IdAllocator(int32_t n) : taken_(static_cast<size_t>(n)) {
  free_.reserve(static_cast<size_t>(n));
  for (int32_t id = n - 1; id >= 0; --id) free_.push_back(id);
}

int32_t IdAllocator::take() {
  PI_CHECK(!free_.empty(), "all ", taken_.size(), " ids are taken");
  const int32_t id = free_.back();
  free_.pop_back();
  taken_[static_cast<size_t>(id)] = true;
  return id;
}

void IdAllocator::release(int32_t id) {
  PI_CHECK(id >= 0 && static_cast<size_t>(id) < taken_.size(), "id ", id, " of ", taken_.size());
  PI_CHECK(taken_[static_cast<size_t>(id)], "id ", id, " is free already");
  taken_[static_cast<size_t>(id)] = false;
  free_.push_back(id);
}

}  // namespace pipeinfer
