// The modules of a stage, seen without LibTorch's headers: those take longer to compile than all the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "arena.h"
#include "pipeinfer/kernels/kernels.h"
#include "pipeinfer/model/kv_cache.h"
#include "pipeinfer/model/stage_options.h"
#include "weights.h"
#include "workspace.h"

namespace pipeinfer::model {

/// What the layers share in one step.
struct Pass {
  const Workspace& space;
  void* x;  // [n_tokens, hidden]: the residual stream
  kernels::TokenTable tokens;
  DType dtype;
  Stream& stream;
  bool fused = false;  // fused products; see fused_tokens
};

/// Most tokens of a pass that may be fused; 0: none. That takes 16 bits, and a GPU that has the instructions.
int fused_tokens(const ModelConfig& config, const StageOptions& options, Device device);

class LlamaModel;

class StageModules {
 public:
  /// Parameters are uninitialised memory of `arena`, which must outlive them.
  StageModules(const ModelConfig& config, const StageOptions& options, Arena& arena, Device device);
  ~StageModules();

  /// What of the checkpoint goes where.
  const std::vector<WeightSlice>& slices() const { return slices_; }

  /// First stage: pass.x = embeddings of `token` [n_tokens], or of last_token[slot] where it is kFromSlot.
  void embed(const Pass& pass, const int32_t* token, const int32_t* last_token) const;
  /// All layers, in place in pass.x.
  void forward(const Pass& pass, const KvCache& cache) const;
  /// Last stage: logits of pass.x's rows `row` [n_rows] (null: the first), n_rows <= kHeadRows.
  void head(float* logits, const Pass& pass, const int32_t* row, int n_rows) const;

 private:
  std::vector<WeightSlice> slices_;
  std::shared_ptr<LlamaModel> model_;
};

}  // namespace pipeinfer::model
