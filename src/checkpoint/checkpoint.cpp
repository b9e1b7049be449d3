#include "pipeinfer/checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <unordered_map>

#include "pipeinfer/base/error.h"
#include "pipeinfer/base/hash.h"
#include "pipeinfer/base/text.h"

namespace pipeinfer {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

/// The folder's only safetensors file, of whatever name. Throws Error(usage) where there is none, or several.
std::string only_safetensors_file(const std::string& folder) {
  std::vector<std::string> found;
  bool pytorch = false;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename();
    if (entry.path().extension() == ".safetensors") found.push_back(name);
    pytorch |= name.starts_with("pytorch_model") && name.ends_with(".bin");
  }
  if (error) usage_error(cat("cannot list the model folder ", folder, ": ", error.message()));
  if (found.size() > 1)
    usage_error(cat("the model folder ", folder, " holds ", found.size(), " safetensors files but no ",
                    kIndex, " that says which of them holds which tensor"));
  if (found.empty() && pytorch)
    usage_error(cat("the model folder ", folder, " holds only pytorch_model*.bin, expected ", kSingle,
                    ": convert it with scripts/convert_checkpoint.py"));
  if (found.empty()) usage_error(cat("the model folder ", folder, " holds no ", kSingle, " and no ", kIndex));
  return found.front();
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(in), {});
  if (!in) usage_error(cat("cannot read ", path));
  return text;
}

}  // namespace

struct Checkpoint::Shard {
  explicit Shard(const std::string& path) : file(path) {
    for (const TensorInfo& tensor : file.tensors()) by_name.emplace(tensor.name, &tensor);
  }
  SafetensorsFile file;
  std::unordered_map<std::string, const TensorInfo*> by_name;
};

Checkpoint::Checkpoint(const std::string& folder) : folder_(folder) {
  if (!fs::is_directory(folder)) usage_error(cat("the model folder ", folder, " does not exist"));
  const std::string index = folder + "/" + kIndex;
  // Both there: transformers takes the single file, so do we.
  if (!fs::exists(folder + "/" + kSingle) && fs::exists(index)) {
    source_ = index;
    weights_ = parse_shard_index(index, read_text(index));
    for (const auto& [tensor, shard] : weights_) shards_.try_emplace(shard);
    for (const auto& [shard, unopened] : shards_)
      if (!fs::exists(folder + "/" + shard))
        usage_error(cat(index, " names the shard ", shard, ", which is not in the folder"));
    return;
  }
  const std::string file = fs::exists(folder + "/" + kSingle) ? kSingle : only_safetensors_file(folder);
  source_ = folder + "/" + file;
  for (const TensorInfo& tensor : open(file).file.tensors()) weights_.emplace(tensor.name, file);
}

Checkpoint::~Checkpoint() = default;

Checkpoint::Shard& Checkpoint::open(const std::string& file) const {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Shard>& shard = shards_[file];
  if (!shard) {
    auto opened = std::make_unique<Shard>(folder_ + "/" + file);
    for (const auto& [tensor, holder] : weights_)
      if (holder == file && !opened->by_name.contains(tensor))
        usage_error(cat(source_, " puts tensor ", tensor, " into ", file, ", which does not hold it"));
    shard = std::move(opened);
  }
  return *shard;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [tensor, file] : weights_) names.push_back(tensor);
  return names;
}

const TensorInfo* Checkpoint::find(const std::string& name) const {
  const auto it = weights_.find(name);
  return it == weights_.end() ? nullptr : open(it->second).by_name.at(name);
}

const TensorInfo& Checkpoint::require(const std::string& name, std::span<const int64_t> shape) const {
  const TensorInfo* tensor = find(name);
  if (!tensor)
    usage_error(cat(source_, " has no tensor ", name, ", expected one of shape ", shape_text(shape)));
  const std::string where = cat(open(weights_.at(name)).file.path(), ": tensor ", name);
  if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end()))
    usage_error(cat(where, " has shape ", shape_text(tensor->shape), ", expected ", shape_text(shape)));
  if (!tensor->dtype) usage_error(cat(where, " has dtype ", tensor->stored, ", expected F32, F16 or BF16"));
  return *tensor;
}

void Checkpoint::read(const std::string& name, int64_t first, int64_t count, DType to, void* values) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) usage_error(cat(source_, " has no tensor ", name));
  open(weights_.at(name)).file.read(*tensor, first, count, to, values);
}

void Checkpoint::read(const std::string& name, DType to, void* values) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) usage_error(cat(source_, " has no tensor ", name));
  read(name, 0, tensor->elements, to, values);
}

uint64_t Checkpoint::bytes_read() const {
  const std::lock_guard lock(mutex_);
  uint64_t bytes = 0;
  for (const auto& [name, shard] : shards_) bytes += shard ? shard->file.bytes_read() : 0;
  return bytes;
}

uint64_t Checkpoint::header_hash() const {
  std::vector<std::string> files;
  for (const auto& [tensor, file] : weights_) files.push_back(file);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  uint64_t hash = hash64("");
  for (const std::string& file : files) hash = hash64(hex64(open(file).file.header_hash()), hash);
  return hash;
}

}  // namespace pipeinfer
