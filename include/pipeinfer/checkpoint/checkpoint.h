// The weights of a model folder: one safetensors file, or shards with an index. Shards are opened when one of
// their tensors is first asked for, so a rank touches only the files of its own stage.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pipeinfer/checkpoint/safetensors.h"

namespace pipeinfer {

/// Tensor name -> shard's file name, from the text of a `model.safetensors.index.json`. Throws Error(usage):
/// broken JSON, no weight_map, a shard name that leaves the folder. `file` only names the index in errors.
std::map<std::string, std::string> parse_shard_index(const std::string& file, std::string_view text);

/// Thread-safe.
class Checkpoint {
 public:
  /// Finds the files of `folder`: `model.safetensors`, else `model.safetensors.index.json` and its shards
  /// (all must be there), else the only other *.safetensors. Throws Error(usage); a folder with only
  /// pytorch_model*.bin gets one that names scripts/convert_checkpoint.py.
  explicit Checkpoint(const std::string& folder);
  ~Checkpoint();

  const std::string& folder() const { return folder_; }

  /// Names of all tensors, sorted.
  std::vector<std::string> names() const;

  /// The tensor of this name, or null. Opens its shard. Throws Error(usage) where the shard is broken, or
  /// lacks a tensor that the index puts there.
  const TensorInfo* find(const std::string& name) const;

  /// The same, but throws Error(usage) where it is missing, has another shape than `shape`, or is none of
  /// F32, F16 and BF16; the message names file, tensor, expected and found.
  const TensorInfo& require(const std::string& name, std::span<const int64_t> shape) const;
  const TensorInfo& require(const std::string& name, std::initializer_list<int64_t> shape) const {
    return require(name, std::span(shape.begin(), shape.size()));
  }

  /// Reads elements [first, first + count) of a tensor as `to` into host memory: row r of [rows, cols] is
  /// elements [r * cols, (r + 1) * cols). Loop over it with two pinned buffers to upload slice by slice.
  /// Needs 4 MiB of host memory of its own where it converts, none otherwise.
  void read(const std::string& name, int64_t first, int64_t count, DType to, void* values) const;
  /// The whole tensor.
  void read(const std::string& name, DType to, void* values) const;

  /// Bytes of tensors read from files so far.
  uint64_t bytes_read() const;

  /// Hash of the headers of all shards: what the manifest knows a checkpoint by. Opens all of them.
  uint64_t header_hash() const;

 private:
  struct Shard;
  Shard& open(const std::string& file) const;

  std::string folder_;
  std::string source_;                          // the index, or the only file: names the checkpoint in errors
  std::map<std::string, std::string> weights_;  // tensor -> file name; from the index
  mutable std::mutex mutex_;                    // guards the opening of shards
  mutable std::map<std::string, std::unique_ptr<Shard>> shards_;  // file name -> null until opened
};

}  // namespace pipeinfer
