#include "pipeinfer/config/world.h"

#include <cstdint>

#include "pipeinfer/base/check.h"
#include "pipeinfer/base/error.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {

World::World(int rank, int size, int pipeline, int tensor, int data)
    : rank_(rank), pipeline_(pipeline), tensor_(tensor), data_(data) {
  PI_CHECK(size >= 1 && pipeline >= 0 && tensor >= 1 && data >= 1, "size ", size);
  if (rank < 0 || rank >= size) usage_error(cat("rank ", rank, " is not one of ", size, " ranks"));
  if (pipeline_ == 0) pipeline_ = size / (data_ * tensor_);
  if (static_cast<int64_t>(data_) * pipeline_ * tensor_ == size && pipeline_ >= 1) return;
  usage_error(cat("the job has ", size, size == 1 ? " rank" : " ranks", ", but data_parallel_size ", data_,
                  " x pipeline_parallel_size ", pipeline_, " x tensor_parallel_size ", tensor_, " needs ",
                  static_cast<int64_t>(data_) * pipeline_ * tensor_));
}

Coordinates World::coordinates(int rank) const {
  PI_CHECK(rank >= 0 && rank < size(), "rank ", rank, " of ", size());
  return {rank / (pipeline_ * tensor_), rank / tensor_ % pipeline_, rank % tensor_};
}

int World::rank_of(const Coordinates& place) const {
  PI_CHECK(place.replica >= 0 && place.replica < data_ && place.stage >= 0 && place.stage < pipeline_ &&
               place.shard >= 0 && place.shard < tensor_,
           "replica ", place.replica, " stage ", place.stage, " shard ", place.shard);
  return (place.replica * pipeline_ + place.stage) * tensor_ + place.shard;
}

int World::rank_of_stage(int stage) const {
  Coordinates place = coordinates();
  place.stage = stage;
  return rank_of(place);
}

}  // namespace pipeinfer
