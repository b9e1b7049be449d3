#include "pipeinfer/app/run_plan.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <limits>

#include "pipeinfer/base/bytes.h"
#include "pipeinfer/config/world.h"

namespace pipeinfer {

namespace {

// Prompt tokens of a step: enough for matrix products at full speed, no more than delays the others' tokens.
constexpr int64_t kChunkGpu = 2048, kChunkCpu = 512;

// Ranks that draw on the same memory: those of one GPU, or the CPU ranks of one host.
bool share_memory(const RankResources& a, const RankResources& b) {
  return a.host == b.host && a.kind == b.kind && a.device.pci_bus_id == b.device.pci_bus_id;
}

// Steps of a lane that are queued on a GPU, so that it never waits for the host; a CPU is the host.
int steps_ahead(DeviceKind kind) { return kind == DeviceKind::cuda ? 2 : 1; }

std::string mib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f MiB", static_cast<double>(bytes) / (1 << 20));
  return text;
}

}  // namespace

std::vector<std::byte> RankResources::serialize() const {
  ByteWriter out;
  out.put_text(host);
  out.put(kind);
  out.put_text(device.name);
  out.put_text(device.pci_bus_id);
  out.put(device.total_bytes);
  out.put(device.free_bytes);
  out.put_text(cores);
  out.put(n_cores);
  return out.take();
}

RankResources RankResources::parse(std::span<const std::byte> bytes) {
  ByteReader in(bytes, "hello");
  RankResources rank;
  rank.host = in.get_text();
  rank.kind = in.get<DeviceKind>();
  rank.device.name = in.get_text();
  rank.device.pci_bus_id = in.get_text();
  rank.device.total_bytes = in.get<int64_t>();
  rank.device.free_bytes = in.get<int64_t>();
  rank.cores = in.get_text();
  rank.n_cores = in.get<int>();
  in.end();
  return rank;
}

RankResources local_resources(const std::string& host, Device device) {
  RankResources rank;
  rank.host = host;
  rank.kind = device.kind;
  rank.device = device_info(device);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(0, sizeof cores, &cores);
  rank.n_cores = std::max(1, CPU_COUNT(&cores));
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &cores)) rank.cores += cat(core, " ");
  return rank;
}

StageOptions RunPlan::stage_options(int stage) const {
  StageOptions options;
  options.first_layer = layout.layers[stage];
  options.last_layer = layout.layers[stage + 1];
  options.dtype = dtype;
  options.slots = layout.scheduler.batch_size;
  options.blocks = layout.scheduler.blocks;
  options.block_size = layout.scheduler.block_size;
  options.context = layout.scheduler.context;
  options.max_tokens = layout.max_tokens();
  return options;
}

void check_stages(const ModelConfig& model, const RunConfig& run, int n_stages) {
  (void)World(0, n_stages, static_cast<int>(run.pipeline_parallel_size),
              static_cast<int>(run.tensor_parallel_size),
              static_cast<int>(run.data_parallel_size));  // throws
  if (!run.partition.empty()) explicit_partition(run.partition, model.n_layers, n_stages);
  if (n_stages > model.n_layers)
    usage_error(cat("there are more ranks than layers: ", n_stages, " pipeline stages for ", model.n_layers,
                    " layers"));
}

RunPlan plan_run(const ModelConfig& model, const RunConfig& run, const std::vector<RankResources>& ranks) {
  const int n_stages = static_cast<int>(ranks.size());
  for (int r = 1; r < n_stages; ++r)
    if (ranks[r].kind != ranks[0].kind)
      usage_error(cat("rank ", r, " (", ranks[r].host, ") has ",
                      ranks[r].kind == DeviceKind::cuda ? "a GPU" : "no GPU", ", rank 0 (", ranks[0].host,
                      ") has ", ranks[0].kind == DeviceKind::cuda ? "one" : "none", "; give --device"));
  const bool cuda = ranks[0].kind == DeviceKind::cuda;
  RunPlan plan;
  plan.dtype = run.dtype().value_or(cuda ? model.dtype : DType::fp32);
  plan.layout.vocab_size = model.vocab_size;
  SchedulerConfig& scheduler = plan.layout.scheduler;
  scheduler.batch_size = static_cast<int>(run.batch_size);
  // More lanes than sequences would only be looked through.
  scheduler.lanes = run.lanes > 0
                        ? std::min(static_cast<int>(run.lanes), std::max(n_stages, scheduler.batch_size))
                        : n_stages;
  const int64_t chunk = run.prefill_chunk > 0 ? run.prefill_chunk : cuda ? kChunkGpu : kChunkCpu;
  scheduler.prefill_chunk = static_cast<int>(std::min<int64_t>(chunk, model.context()));
  scheduler.block_size = static_cast<int>(run.block_size);
  scheduler.context = model.context();
  scheduler.steps_ahead = steps_ahead(ranks[0].kind);
  scheduler.eos_ids = model.eos_ids;

  plan.stages.resize(n_stages);
  std::vector<int64_t> capacity;
  for (int s = 0; s < n_stages; ++s) {
    int sharers = 0, core_sharers = 0;
    for (const RankResources& other : ranks) {
      sharers += share_memory(ranks[s], other);
      core_sharers += ranks[s].host == other.host && ranks[s].cores == other.cores;
    }
    plan.stages[s].available = ranks[s].device.free_bytes / sharers;
    plan.threads.push_back(run.threads > 0 ? static_cast<int>(run.threads)
                                           : std::max(1, ranks[s].n_cores / core_sharers));
    capacity.push_back(plan.stages[s].available);
  }
  const auto size = static_cast<int64_t>(dtype_size(plan.dtype));
  const PartitionModel costs{.n_layers = model.n_layers,
                             .layer_bytes = size * model.layer_parameters(),
                             .head_bytes = size * (model.head_parameters() + model.norm_parameters()),
                             .embed_bytes = size * model.embedding_parameters(),
                             .tied = model.tie_word_embeddings};
  plan.layout.layers = run.partition.empty() ? auto_partition(costs, capacity)
                                             : explicit_partition(run.partition, model.n_layers, n_stages);

  const int one_context = (scheduler.context + scheduler.block_size - 1) / scheduler.block_size;
  int64_t blocks = static_cast<int64_t>(one_context) * scheduler.batch_size;  // more could never be used
  if (run.kv_blocks > 0) blocks = std::min<int64_t>(run.kv_blocks, std::numeric_limits<int32_t>::max() / 2);
  for (int s = 0; s < n_stages; ++s) {
    StageMemory& stage = plan.stages[s];
    const StageOptions options = plan.stage_options(s);
    stage.weights = weight_bytes(model, options);
    stage.workspace = workspace_bytes(model, options);
    stage.kv_block = kv_block_bytes(model, options);
    const int64_t left = stage.available - stage.weights - stage.workspace;
    const auto share =
        static_cast<int64_t>(run.kv_cache_fraction * static_cast<double>(std::max<int64_t>(left, 0)));
    const int64_t fit = share / stage.kv_block - 1;  // the null block
    if (run.kv_blocks > 0 ? left < (run.kv_blocks + 1) * stage.kv_block : fit < 1)
      usage_error(cat("stage ", s, " does not fit on rank ", s, " (", ranks[s].host,
                      "): ", mib(stage.available), " are free, its weights take ", mib(stage.weights),
                      ", its workspace ", mib(stage.workspace), ", and ",
                      run.kv_blocks > 0 ? cat(run.kv_blocks, " KV blocks ") : "one KV block ",
                      mib(stage.kv_block * std::max<int64_t>(1, run.kv_blocks))));
    if (run.kv_blocks == 0) blocks = std::min(blocks, fit);
  }
  scheduler.blocks = static_cast<int>(blocks);
  for (StageMemory& stage : plan.stages) stage.kv_pool = (blocks + 1) * stage.kv_block;
  return plan;
}

std::string plan_text(const ModelConfig& model, const RunPlan& plan) {
  const SchedulerConfig& scheduler = plan.layout.scheduler;
  std::string text = cat(counted(model.n_layers, "layer"), " over ", counted(plan.layout.n_stages(), "stage"),
                         ", ", dtype_name(plan.dtype), ", ", counted(scheduler.lanes, "lane"), "\n");
  const auto line = [&](const char* stage, const std::string& layers, const std::string& weights,
                        const std::string& workspace, const std::string& kv, const std::string& available) {
    char row[160];
    std::snprintf(row, sizeof row, "%-6s %-8s %14s %14s %14s %14s\n", stage, layers.c_str(), weights.c_str(),
                  workspace.c_str(), kv.c_str(), available.c_str());
    text += row;
  };
  line("stage", "layers", "weights", "workspace", "KV cache", "memory free");
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const StageMemory& stage = plan.stages[s];
    line(std::to_string(s).c_str(), cat(plan.layout.layers[s], "-", plan.layout.layers[s + 1] - 1),
         mib(stage.weights), mib(stage.workspace), mib(stage.kv_pool), mib(stage.available));
  }
  const int64_t tokens = int64_t{scheduler.blocks} * scheduler.block_size;
  text += cat("KV capacity: ", scheduler.blocks, " blocks of ", scheduler.block_size, " tokens = ", tokens,
              " tokens, ", tokens / scheduler.context, " sequences of the whole context (", scheduler.context,
              ")\n");
  return text;
}

}  // namespace pipeinfer
