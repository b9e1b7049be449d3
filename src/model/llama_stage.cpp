#include "pipeinfer/model/llama_stage.h"

#include <algorithm>
#include <bit>
#include <map>
#include <span>
#include <utility>

#include "pipeinfer/base/error.h"
#include "pipeinfer/device/graph.h"
#include "pipeinfer/trace/range.h"
#include "stage_modules.h"
#include "step_upload.h"

namespace pipeinfer {

using namespace model;

namespace {

// A step's tables on the host, in the order of the plan. They keep their capacity from step to step.
struct HostTables {
  std::vector<kernels::SlotEntry> opened;
  std::vector<kernels::BlockEntry> granted;
  std::vector<int32_t> decode_slot, decode_position;              // of each row of the graph
  std::vector<int32_t> token, slot, position;                     // of each token outside the graph
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

  // The first `n` rows of the plan, padded with rows of the null slot.
  void set_decode(const StepPlan& plan, int n, int padded, int32_t null_slot) {
    decode_slot.assign(padded, null_slot);
    decode_position.assign(padded, 0);
    for (int i = 0; i < n; ++i) {
      decode_slot[i] = plan.rows[i].slot;
      decode_position[i] = plan.rows[i].position;
    }
  }

  // The rows from `first` on.
  void set_rows(const StepPlan& plan, int first) {
    token.clear(), slot.clear(), position.clear();
    max_context = n_single = 0;
    for (const StepRow& row : std::span(plan.rows).subspan(first)) {
      if (row.n_tokens == 1 && n_single == static_cast<int>(token.size())) ++n_single;
      for (int32_t i = 0; i < row.n_tokens; ++i) {
        token.push_back(row.first_token == kFromSlot ? kFromSlot : plan.tokens[row.first_token + i]);
        slot.push_back(row.slot);
        position.push_back(row.position + i);
      }
      max_context = std::max(max_context, row.position + row.n_tokens);
    }
  }

  void set_samples(const StepPlan& plan, int first) {
    sample_row.clear(), sample_slot.clear(), sample_position.clear();
    int32_t end = 0;  // of the row's tokens
    for (const StepRow& row : std::span(plan.rows).subspan(first)) {
      end += row.n_tokens;
      for (int32_t i = row.n_samples; i > 0; --i) {
        sample_row.push_back(end - i);
        sample_slot.push_back(row.slot);
        sample_position.push_back(row.position + row.n_tokens - i);
      }
    }
  }
};

// The same on the device, of the step that was prepared last.
struct DeviceTables {
  int n_decode = 0;  // leading rows of the plan that the graph runs
  const int32_t *token, *slot, *position;
  const int32_t *sample_row, *sample_slot, *sample_position;
};

}  // namespace

struct LlamaStage::Impl {
  Impl(const ModelConfig& config, const StageOptions& options, Device device);

  bool is_first() const { return options.first_layer == 0; }
  bool is_last() const { return options.last_layer == config.n_layers; }
  size_t hidden_bytes(int n_tokens) const {
    return size_t{dtype_size(options.dtype)} * config.hidden_size * n_tokens;
  }

  std::string warm_up();
  void run_empty_prompt(int n_tokens, Stream& stream);
  void prepare(const StepPlan& plan, Stream& stream);
  void take_tokens(const StepPlan& earlier, const int32_t* sampled, Stream& stream);
  void run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream);

  Pass make_pass(void* x, kernels::TokenTable tokens, Stream& stream) const;
  const int32_t* decode_slot() const { return upload.first<int32_t>(); }
  const int32_t* decode_position() const { return decode_slot() + position_offset; }
  Pass decode_pass(int rows, Stream& stream) const;
  Pass rest_pass(void* x, Stream& stream) const;
  void prepare(const Pass& pass) const;
  void enqueue_decode(int rows, Stream& stream) const;
  void run_decode(const StepPlan& plan, const StepBuffers& buffers, Stream& stream);
  void take_hidden(void* to, const StepBuffers& buffers, int first, int n_tokens, Stream& stream) const;
  void pick(const StepPlan& plan, const StepBuffers& buffers, int first, int n, const int32_t* slot,
            const int32_t* position, Stream& stream);

  ModelConfig config;
  StageOptions options;
  Device device;
  Arena weights;
  StageModules modules;
  KvCache cache;
  Arena work;
  DeviceBuffer decode_work;
  Workspace space;
  kernels::Rope rope;
  StepUpload upload;
  HostTables host;
  DeviceTables tables;
  std::vector<int32_t> n_blocks;  // [slots]
  LogitsHook hook;
  int most_fused;               // tokens of a fused pass
  size_t position_offset;       // from decode_slot(), in elements
  std::map<int, Graph> graphs;  // by their rows; last: they go first
};

LlamaStage::Impl::Impl(const ModelConfig& config, const StageOptions& options, Device device)
    : config(config),
      options(options),
      device(device),
      weights(device, weight_bytes(config, options),
              cat("the weights of layers ", options.first_layer, " to ", options.last_layer - 1)),
      modules(config, options, weights, device),
      cache(config, options, device),
      work(device, workspace_bytes(config, options), "activations"),
      decode_work(device,
                  kernels::decode_workspace_bytes(config.n_heads, config.n_kv_heads, config.head_dim, device),
                  "the workspace of decode attention"),
      space(make_workspace(config, options, work)),
      upload(options, device, space.tables),
      n_blocks(options.slots, 0),
      most_fused(fused_tokens(config, options, device)),
      position_offset(StepUpload::padded(options.max_graph_rows() * sizeof(int32_t)) / sizeof(int32_t)) {
  const std::vector<float> frequencies = inv_freq(config);
  const std::vector<int32_t> null_blocks(options.max_blocks(), cache.null_block());
  Stream stream(device);
  copy_async(space.inv_freq, frequencies.data(), frequencies.size() * sizeof(float), stream);
  copy_async(space.block_table + int64_t{options.slots} * options.max_blocks(), null_blocks.data(),
             null_blocks.size() * sizeof(int32_t), stream);
  // The null slot: a prompt of no tokens, token 0.
  fill_async(space.slots.prompt_tokens, 0, sizeof(int32_t) * (options.slots + 1), stream);
  fill_async(space.slots.last_token, 0, sizeof(int32_t) * (options.slots + 1), stream);
  static_assert(kFromSlot == -1);
  fill_async(space.from_slot, 0xff, sizeof(int32_t) * options.max_graph_rows(), stream);
  space.decode = decode_work.data();
  if (space.decode) fill_async(space.decode, 0, decode_work.bytes(), stream);
  finish_copies(stream);
  rope = {.inv_freq = space.inv_freq,
          .dynamic = config.rope.type == RopeType::dynamic,
          .theta = static_cast<float>(config.rope.theta),
          .factor = static_cast<float>(config.rope.factor),
          .max_position = config.max_position_embeddings};
}

// Everything is run once, and before it is captured: libraries choose and load their kernels at first use, others for other
// numbers of tokens, which would take as long as some steps each time.
std::string LlamaStage::Impl::warm_up() {
  if (!device.is_cuda()) return "no CUDA graphs: the device is a CPU";
  Stream stream(device);
  run_empty_prompt(options.max_tokens, stream);
  // Powers of two, as chunks of prompts are, and what lies between them
  for (int n = static_cast<int>(std::bit_floor(static_cast<unsigned>(options.max_tokens))); n > most_fused;
       n /= 2) {
    for (int n_tokens : {n + n / 2, n}) {
      if (n_tokens < options.max_tokens) run_empty_prompt(n_tokens, stream);
    }
  }
  if (!options.cuda_graphs) return "no CUDA graphs: they were not wanted";
  host.set_decode({}, 0, options.max_graph_rows(), options.slots);
  upload.begin();
  upload.put(host.decode_slot);
  upload.put(host.decode_position);
  upload.send(stream);
  try {
    for (int rows = 1; rows <= options.max_graph_rows(); rows = StageOptions::graph_rows(rows + 1)) {
      prepare(decode_pass(rows, stream));
      enqueue_decode(rows, stream);
      graphs.emplace(rows, Graph(stream, [&] { enqueue_decode(rows, stream); }));
    }
    finish_copies(stream);
  } catch (const Error& e) {
    graphs.clear();
    return cat("no CUDA graphs: ", e.what());
  }
  return cat(graphs.size(), " CUDA graphs, of up to ", graphs.rbegin()->first, " rows");
}

// A step of so many tokens, token 0 in the null slot.
void LlamaStage::Impl::run_empty_prompt(int n_tokens, Stream& stream) {
  host.token.assign(n_tokens, 0);
  host.slot.assign(n_tokens, options.slots);
  host.position.resize(n_tokens);
  for (int i = 0; i < n_tokens; ++i) host.position[i] = i % options.context;
  upload.begin();
  const int32_t* token = upload.put(host.token);
  const Pass pass = make_pass(space.x,
                              {.slot = upload.put(host.slot),
                               .position = upload.put(host.position),
                               .n_tokens = n_tokens,
                               .max_context = options.context},
                              stream);
  upload.send(stream);
  prepare(pass);
  if (is_first()) modules.embed(pass, token, space.slots.last_token);
  modules.forward(pass, cache);
  if (is_last()) modules.head(space.logits, pass, nullptr, 1);
  finish_copies(stream);
}

Pass LlamaStage::Impl::make_pass(void* x, kernels::TokenTable tokens, Stream& stream) const {
  tokens.block_table = space.block_table;
  tokens.prompt_tokens = space.slots.prompt_tokens;
  tokens.angle = space.angle;
  tokens.max_blocks = options.max_blocks();
  tokens.reference = options.reference_kernels;
  return {.space = space,
          .x = x,
          .tokens = tokens,
          .dtype = options.dtype,
          .stream = stream,
          .fused = tokens.n_tokens <= most_fused};
}

// The rows' tables are at addresses that never change.
Pass LlamaStage::Impl::decode_pass(int rows, Stream& stream) const {
  return make_pass(space.x,
                   {.slot = decode_slot(),
                    .position = decode_position(),
                    .n_tokens = rows,
                    .max_context = options.context,
                    .n_single = rows},
                   stream);
}

// Not in the graph, whose first kernel would not wait for it as it must (see kernels::decode_attention): the graph does.
void LlamaStage::Impl::prepare(const Pass& pass) const {
  kernels::prepare_attention(space.angle, space.decode, cache.layer(0), pass.tokens, rope, config.n_heads,
                             pass.stream);
}

void LlamaStage::Impl::enqueue_decode(int rows, Stream& stream) const {
  const Pass pass = decode_pass(rows, stream);
  if (is_first()) modules.embed(pass, space.from_slot, space.slots.last_token);
  modules.forward(pass, cache);
  if (is_last() && rows <= kHeadRows) modules.head(space.logits, pass, nullptr, rows);
}

void LlamaStage::Impl::run_decode(const StepPlan& plan, const StepBuffers& buffers, Stream& stream) {
  const Range range("decode");
  const int n = tables.n_decode, rows = StageOptions::graph_rows(n);
  if (!is_first()) take_hidden(space.x, buffers, 0, n, stream);
  graphs.at(rows).launch(stream);
  if (!is_last()) return copy_async(buffers.hidden_out, space.x, hidden_bytes(n), stream);
  for (int first = 0; first < n; first += kHeadRows) {
    const int count = std::min(kHeadRows, n - first);
    if (rows > kHeadRows) {
      Pass pass = decode_pass(count, stream);
      pass.fused = false;  // as the pass through the layers was not
      pass.x = static_cast<char*>(space.x) + hidden_bytes(first);
      modules.head(space.logits, pass, nullptr, count);
    }
    pick(plan, buffers, first, count, decode_slot() + first, decode_position() + first, stream);
  }
}

void LlamaStage::Impl::take_hidden(void* to, const StepBuffers& buffers, int first, int n_tokens,
                                   Stream& stream) const {
  copy_async(to, static_cast<const char*>(buffers.hidden_in) + hidden_bytes(first), hidden_bytes(n_tokens),
             stream);
}

// The rows outside the graph.
Pass LlamaStage::Impl::rest_pass(void* x, Stream& stream) const {
  return make_pass(x,
                   {.slot = tables.slot,
                    .position = tables.position,
                    .n_tokens = static_cast<int>(host.token.size()),
                    .max_context = host.max_context,
                    .n_single = host.n_single},
                   stream);
}

void LlamaStage::Impl::prepare(const StepPlan& plan, Stream& stream) {
  PI_CHECK(plan.n_tokens() <= options.max_tokens, "step ", plan.step, " has ", plan.n_tokens(),
           " tokens, not at most ", options.max_tokens);
  const int n_decode = graphs.empty() ? 0 : std::min(plan.n_decode(), options.max_graph_rows());
  host.set_changes(plan, n_blocks);
  host.set_decode(plan, n_decode, n_decode > 0 ? options.max_graph_rows() : 0, options.slots);
  host.set_rows(plan, n_decode);
  host.set_samples(plan, n_decode);

  upload.begin();
  upload.put(host.decode_slot);  // these two first: see decode_slot()
  upload.put(host.decode_position);
  const auto* opened = upload.put(host.opened);
  const auto* granted = upload.put(host.granted);
  tables = {.n_decode = n_decode,
            .token = upload.put(host.token),
            .slot = upload.put(host.slot),
            .position = upload.put(host.position),
            .sample_row = upload.put(host.sample_row),
            .sample_slot = upload.put(host.sample_slot),
            .sample_position = upload.put(host.sample_position)};
  upload.send(stream);

  if (!host.opened.empty()) kernels::open_slots(space.slots, opened, host.opened.size(), stream);
  if (!host.granted.empty())
    kernels::set_blocks(space.block_table, granted, host.granted.size(), options.max_blocks(), stream);
  if (n_decode == 0) return prepare(rest_pass(space.x, stream));
  const int rows = StageOptions::graph_rows(n_decode);
  Pass padded = decode_pass(rows, stream);
  padded.tokens.n_padding = rows - n_decode;
  prepare(padded);
}

void LlamaStage::Impl::take_tokens(const StepPlan& earlier, const int32_t* sampled, Stream& stream) {
  host.set_samples(earlier, 0);  // this stage takes no samples of its own
  upload.lend(host.sample_slot, stream, [&](const int32_t* slot) {
    kernels::set_last_token(space.slots, slot, sampled, host.sample_slot.size(), stream);
  });
}

void LlamaStage::Impl::run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream) {
  const int n_decode = tables.n_decode, n_tokens = host.token.size();
  if (n_decode > 0) run_decode(plan, buffers, stream);
  if (n_tokens == 0) return;

  const Range range(host.n_single == n_tokens ? "decode" : "prefill");
  const Pass pass = rest_pass(
      is_last() ? space.x : static_cast<char*>(buffers.hidden_out) + hidden_bytes(n_decode), stream);
  if (n_decode > 0) prepare(pass);  // only now: the rows of the graph had the same space
  if (is_first())
    modules.embed(pass, tables.token, space.slots.last_token);
  else
    take_hidden(pass.x, buffers, n_decode, n_tokens, stream);
  modules.forward(pass, cache);
  if (!is_last()) return;
  kernels::mark_seen(space.slots, tables.slot, tables.token, n_tokens, stream);
  const int n_samples = host.sample_row.size();
  for (int first = 0; first < n_samples; first += kHeadRows) {
    const int n = std::min(kHeadRows, n_samples - first);
    modules.head(space.logits, pass, tables.sample_row + first, n);
    pick(plan, buffers, n_decode + first, n, tables.sample_slot + first, tables.sample_position + first,
         stream);
  }
}

// Samples [first, first + n) of the plan, whose logits are there.
void LlamaStage::Impl::pick(const StepPlan& plan, const StepBuffers& buffers, int first, int n,
                            const int32_t* slot, const int32_t* position, Stream& stream) {
  const Range range("sample");
  if (hook) hook(plan, first, n, space.logits, stream);
  if (plan.want_top)
    kernels::top_logits(buffers.top + first * kTopLogits, space.logits, n, config.vocab_size, stream);
  kernels::sample(buffers.sampled + first, space.logits, slot, position, space.slots, n, config.vocab_size,
                  stream);
  if (is_first()) kernels::set_last_token(space.slots, slot, buffers.sampled + first, n, stream);
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

int64_t LlamaStage::hidden_bytes() const { return impl_->hidden_bytes(1); }

std::string LlamaStage::warm_up() { return impl_->warm_up(); }

void LlamaStage::prepare(const StepPlan& plan, Stream& stream) { impl_->prepare(plan, stream); }

void LlamaStage::take_tokens(const StepPlan& earlier, const int32_t* sampled, Stream& stream) {
  impl_->take_tokens(earlier, sampled, stream);
}

void LlamaStage::run(const StepPlan& plan, const StepBuffers& buffers, Stream& stream) {
  impl_->run(plan, buffers, stream);
}

void LlamaStage::on_logits(LogitsHook hook) { impl_->hook = std::move(hook); }

}  // namespace pipeinfer
