#include "pipeinfer/model/llama_stage.h"

#include <algorithm>
#include <utility>

#include "stage_modules.h"
#include "step_upload.h"

namespace pipeinfer {

using namespace model;

namespace {

// A step's tables on the host, in the order of the plan. They keep their capacity from step to step.
struct HostTables {
  std::vector<kernels::SlotEntry> opened;
  std::vector<kernels::BlockEntry> granted;
  std::vector<int32_t> token, slot, position;                     // of each token
  std::vector<int32_t> sample_row, sample_slot, sample_position;  // of each sample; row: index of its token
  int max_context = 0;
  int n_single = 0;  // leading rows of one token

  // What the plan changes. `n_blocks` [slots] counts each slot's blocks.
  void set_changes(const StepPlan& plan, std::vector<int32_t>& n_blocks) {
    opened.clear();
    granted.clear();
    for (const SlotOpen& open : plan.opened) {
      opened.push_back({open.slot, open.prompt_tokens, open.sampling});
      n_blocks[open.slot] = 0;
    }
    for (const BlockGrant& grant : plan.granted)
      for (int32_t block : grant.blocks) granted.push_back({grant.slot, n_blocks[grant.slot]++, block});
  }

  void set_rows(const StepPlan& plan) {
    token.clear(), slot.clear(), position.clear();
    max_context = n_single = 0;
    for (const StepRow& row : plan.rows) {
      if (row.n_tokens == 1 && n_single == static_cast<int>(token.size())) ++n_single;
      for (int32_t i = 0; i < row.n_tokens; ++i) {
        token.push_back(row.first_token == kFromSlot ? kFromSlot : plan.tokens[row.first_token + i]);
        slot.push_back(row.slot);
        position.push_back(row.position + i);
      }
      max_context = std::max(max_context, row.position + row.n_tokens);
    }
  }

  void set_samples(const StepPlan& plan) {
    sample_row.clear(), sample_slot.clear(), sample_position.clear();
    int32_t end = 0;  // of the row's tokens
    for (const StepRow& row : plan.rows) {
      end += row.n_tokens;
      for (int32_t i = row.n_samples; i > 0; --i) {
        sample_row.push_back(end - i);
        sample_slot.push_back(row.slot);
        sample_position.push_back(row.position + row.n_tokens - i);
      }
    }
  }
};

}  // namespace

struct LlamaStage::Impl {
  Impl(const ModelConfig& config, const StageOptions& options, Device device)
      : config(config),
        options(options),
        weights(device, weight_bytes(config, options),
                cat("the weights of layers ", options.first_layer, " to ", options.last_layer - 1)),
        modules(config, options, weights, device),
        cache(config, options, device),
        work(device, workspace_bytes(config, options), "activations"),
        space(make_workspace(config, options, work)),
        upload(options, device, space.tables),
        n_blocks(options.slots, 0) {
    const std::vector<float> frequencies = inv_freq(config);
    Stream stream(device);
    copy_async(space.inv_freq, frequencies.data(), frequencies.size() * sizeof(float), stream);
    finish_copies(stream);
    rope = {.inv_freq = space.inv_freq,
            .dynamic = config.rope.type == RopeType::dynamic,
            .theta = static_cast<float>(config.rope.theta),
            .factor = static_cast<float>(config.rope.factor),
            .max_position = config.max_position_embeddings};
  }

  bool is_first() const { return options.first_layer == 0; }
  bool is_last() const { return options.last_layer == config.n_layers; }

  void run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream);
  void sample(const StepPlan& plan, const StepBuffers& buffers, const Pass& pass, const int32_t* row,
              const int32_t* slot, const int32_t* position);

  ModelConfig config;
  StageOptions options;
  Arena weights;
  StageModules modules;
  KvCache cache;
  Arena work;
  Workspace space;
  kernels::Rope rope;
  StepUpload upload;
  HostTables host;
  std::vector<int32_t> n_blocks;  // [slots]
  LogitsHook hook;
};

void LlamaStage::Impl::run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream) {
  const int n_tokens = plan.n_tokens();
  PI_CHECK(n_tokens <= options.max_tokens, "step ", plan.step, " has ", n_tokens, " tokens, not at most ",
           options.max_tokens);
  host.set_changes(plan, n_blocks);
  host.set_rows(plan);
  host.set_samples(plan);

  upload.begin();
  const auto* opened = upload.put(host.opened);
  const auto* granted = upload.put(host.granted);
  const int32_t* token = upload.put(host.token);
  const int32_t* slot = upload.put(host.slot);
  const int32_t* position = upload.put(host.position);
  const int32_t* sample_row = upload.put(host.sample_row);
  const int32_t* sample_slot = upload.put(host.sample_slot);
  const int32_t* sample_position = upload.put(host.sample_position);
  upload.send(stream);

  if (!host.opened.empty()) kernels::open_slots(space.slots, opened, host.opened.size(), stream);
  if (!host.granted.empty())
    kernels::set_blocks(space.block_table, granted, host.granted.size(), options.max_blocks(), stream);
  if (n_tokens == 0) return;

  const Pass pass{.space = space,
                  .x = is_last() ? space.x : buffers.hidden_out,
                  .tokens = {.slot = slot,
                             .position = position,
                             .block_table = space.block_table,
                             .prompt_tokens = space.slots.prompt_tokens,
                             .max_blocks = options.max_blocks(),
                             .n_tokens = n_tokens,
                             .max_context = host.max_context,
                             .n_single = host.n_single},
                  .rope = rope,
                  .dtype = options.dtype,
                  .stream = stream};
  if (is_first())
    modules.embed(pass, token, space.slots.last_token);
  else
    copy_async(pass.x, buffers.hidden_in, n_tokens * config.hidden_size * dtype_size(options.dtype), stream);
  modules.forward(pass, cache);
  if (!is_last()) return;
  kernels::mark_seen(space.slots, slot, token, n_tokens, stream);
  sample(plan, buffers, pass, sample_row, sample_slot, sample_position);
}

void LlamaStage::Impl::sample(const StepPlan& plan, const StepBuffers& buffers, const Pass& pass,
                              const int32_t* row, const int32_t* slot, const int32_t* position) {
  const int n_samples = host.sample_row.size();
  for (int first = 0; first < n_samples; first += kHeadRows) {
    const int n = std::min(kHeadRows, n_samples - first);
    modules.head(space.logits, pass, row + first, n);
    if (hook) hook(plan, first, n, space.logits, pass.stream);
    if (plan.want_top)
      kernels::top_logits(buffers.top + first * kTopLogits, space.logits, n, config.vocab_size, pass.stream);
    kernels::sample(buffers.sampled + first, space.logits, slot + first, position + first, space.slots, n,
                    config.vocab_size, pass.stream);
  }
}

LlamaStage::LlamaStage(const ModelConfig& config, const StageOptions& options, const Checkpoint& checkpoint,
                       Device device)
    : impl_(std::make_unique<Impl>(config, options, device)) {
  load_weights(impl_->modules.slices(), checkpoint, options.dtype, device);
}

LlamaStage::LlamaStage(const ModelConfig& config, const StageOptions& options, RandomWeights weights,
                       Device device)
    : impl_(std::make_unique<Impl>(config, options, device)) {
  randomize_weights(impl_->modules.slices(), weights.seed, options.dtype, device);
}

LlamaStage::~LlamaStage() = default;

int64_t LlamaStage::hidden_bytes() const {
  return impl_->config.hidden_size * dtype_size(impl_->options.dtype);
}

void LlamaStage::run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream) {
  impl_->run(plan, buffers, stream);
}

void LlamaStage::take_tokens(const StepPlan& plan, const int32_t* sampled, Stream& stream) {
  impl_->host.set_samples(plan);
  const auto& slots = impl_->host.sample_slot;
  if (slots.empty()) return;
  impl_->upload.begin();
  const int32_t* slot = impl_->upload.put(slots);
  impl_->upload.send(stream);
  kernels::set_last_token(impl_->space.slots, slot, sampled, slots.size(), stream);
}

void LlamaStage::on_logits(LogitsHook hook) { impl_->hook = std::move(hook); }

}  // namespace pipeinfer
