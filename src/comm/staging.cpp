#include "staging.h"

#include <algorithm>
#include <bit>

namespace pipeinfer {

StagingPtr StagingPool::take(size_t bytes) {
  const size_t capacity = std::bit_ceil(std::max<size_t>(bytes, 256));
  std::unique_ptr<Staging> staging;
  {
    std::lock_guard lock(mutex_);
    auto found = std::find_if(free_.begin(), free_.end(), [&](const auto& candidate) {
      return candidate->memory.bytes() == capacity && candidate->event.ready();
    });
    if (found != free_.end()) {
      staging = std::move(*found);
      free_.erase(found);
    }
  }
  if (!staging) staging = std::make_unique<Staging>(device_, capacity);
  staging->bytes = bytes;
  return {staging.release(), Return{shared_from_this()}};
}

void StagingPool::Return::operator()(Staging* staging) const {
  std::lock_guard lock(pool->mutex_);
  pool->free_.emplace_back(staging);
}

}  // namespace pipeinfer
