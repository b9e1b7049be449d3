// Which rank does what: pure arithmetic, no communication.
#pragma once

#include <string>

namespace pipeinfer {

/// A rank's place: replica (data parallel), stage (pipeline parallel), shard (tensor parallel).
struct Coordinates {
  int replica = 0;
  int stage = 0;
  int shard = 0;
  bool operator==(const Coordinates&) const = default;
};

/// dp x pp x tp ranks. rank = (replica * pp + stage) * tp + shard: shards of a stage are neighbours, a
/// replica's stages are contiguous.
class World {
 public:
  World() = default;
  /// `pipeline` 0: size / (data * tensor). Throws Error(usage) where the product is not `size`, or `rank` is
  /// not in it.
  World(int rank, int size, int pipeline = 0, int tensor = 1, int data = 1);

  int rank() const { return rank_; }
  int size() const { return data_ * pipeline_ * tensor_; }
  int stages() const { return pipeline_; }
  int shards() const { return tensor_; }
  int replicas() const { return data_; }

  Coordinates coordinates(int rank) const;
  Coordinates coordinates() const { return coordinates(rank_); }
  int rank_of(const Coordinates& place) const;

  int stage() const { return coordinates().stage; }
  bool first_stage() const { return stage() == 0; }
  bool last_stage() const { return stage() == pipeline_ - 1; }
  /// The rank with this replica and shard on a stage.
  int rank_of_stage(int stage) const;
  /// The rank on the next or previous stage, -1 where there is none.
  int next() const { return last_stage() ? -1 : rank_of_stage(stage() + 1); }
  int previous() const { return first_stage() ? -1 : rank_of_stage(stage() - 1); }

 private:
  int rank_ = 0, pipeline_ = 1, tensor_ = 1, data_ = 1;
};

}  // namespace pipeinfer
